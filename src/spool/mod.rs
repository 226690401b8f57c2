//! What the relay keeps on disk: messages that it has answered for and not delivered yet.
//!
//! [`queue`] says what a queue is, [`store`] is one in SQLite, [`place`] the folder that it lies in, [`schedule`] when to try again.

pub mod place;
pub mod queue;
pub mod schedule;
pub mod store;
