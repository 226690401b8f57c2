//! What the relay keeps on disk: messages that it has answered for and not delivered yet.
//!
//! [`queue`] says what a queue is, [`store`] is one in SQLite, [`schedule`] when to try again.

pub mod queue;
pub mod schedule;
pub mod store;
