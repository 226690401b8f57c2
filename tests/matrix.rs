//! What becomes of a message at each stage and with each fault, in each mode: with the clock stopped and streams in
//! memory. `docs/fault-matrix.md` shows what came of it; `UPDATE_DOCS=1 cargo test --test matrix` writes it anew.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]
#![allow(clippy::print_stdout, reason = "the tables are there to be read")]

mod common;

#[path = "matrix/cases.rs"]
mod cases;
#[path = "matrix/cell.rs"]
mod cell;
#[path = "matrix/document.rs"]
mod document;
#[path = "matrix/house.rs"]
mod house;
#[path = "matrix/limits.rs"]
mod limits;
#[path = "matrix/recipients.rs"]
mod recipients;
#[path = "matrix/restart.rs"]
mod restart;
