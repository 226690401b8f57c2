//! What a device was told is kept: through kills, a full disk, and a power cut as far as a test can have one.
//!
//! The built program runs as a child between devices and a sandbox that stay up, is killed, and starts again on
//! the same folder and the same port. Of each message that was answered 250 at least one copy arrives, octet for
//! octet, and a second one only where the queue says *maybe sent*.
//!
//! | Where | What |
//! |---|---|
//! | `kills` | SIGKILL at random moments under load: 20 of them, or as many as `UPLIFT_KILLS` says |
//! | `points` | SIGKILL at each named point of a commit and a delivery |
//! | `syncs` | SIGKILL keeps the page cache: `strace` tells whether each sync came before its 250 |
//! | `disk` | a disk that is full and has room again; folders that a spool cannot use |
//!
//! The long run is `UPLIFT_KILLS=200 cargo test --test durability kills`. What this machine lacks is skipped with a
//! line that says so; with `UPLIFT_INTEROP=require` it is a failure.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

#[path = "durability/book.rs"]
mod book;
mod common;
#[path = "durability/disk.rs"]
mod disk;
#[path = "durability/kills.rs"]
mod kills;
#[path = "interop/needs.rs"]
mod needs;
#[path = "durability/points.rs"]
mod points;
#[path = "durability/relay.rs"]
mod relay;
#[path = "durability/syncs.rs"]
mod syncs;
#[path = "durability/trace.rs"]
mod trace;
