//! Fifty devices and one mailbox: bursts, a device with 1,000 jobs in a row, slow scans of 150 MB among small ones, and
//! a smarthost that allows three connections and thirty messages a minute, and that has its moods.
//!
//! | Where | What |
//! |---|---|
//! | `day` | what the devices do, by the clock of tests and over streams in memory: an hour takes seconds |
//! | `job` | one message of a device, from MAIL to the answer to its dot, with the time of each answer |
//! | `ledger` | what was promised, what arrived, and when |
//! | `burst` | fifty devices at once over real sockets |
//!
//! Each simulation goes by a seed: `UPLIFT_SEED=7 cargo test --test simulation` runs another one, and a failure prints
//! its own. With `-- --nocapture` it prints how long messages took.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

#[path = "simulation/burst.rs"]
mod burst;
mod common;
#[path = "simulation/day.rs"]
mod day;
#[path = "simulation/job.rs"]
mod job;
#[path = "simulation/ledger.rs"]
mod ledger;
