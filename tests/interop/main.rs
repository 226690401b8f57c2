//! Programs that nobody here wrote deliver through the relay: as devices, with the TLS of twenty years, and a
//! real Postfix as the smarthost.
//!
//! What this machine lacks is skipped, with a line that says what to install. With `UPLIFT_INTEROP=require`
//! it is a failure instead.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

#[path = "../common/mod.rs"]
mod common;
mod devices;
mod dialogue;
mod dovecot;
mod group;
mod haproxy;
mod needs;
mod office;
mod postfix;
mod programs;
mod verdicts;
