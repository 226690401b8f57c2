//! What the smarthost says and what the relay makes of it: the table of all replies known, real lines from
//! elsewhere, the rules' edges, bad input, and what people are told.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

#[path = "replies/bad_input.rs"]
mod bad_input;
#[path = "replies/explain.rs"]
mod explain;
#[path = "replies/handbook.rs"]
mod handbook;
#[path = "replies/rules.rs"]
mod rules;
#[path = "replies/seen.rs"]
mod seen;
#[path = "replies/table.rs"]
mod table;
