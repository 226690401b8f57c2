//! What the relay tells of itself: metrics, the log, and one log line a transaction.

pub mod log;
pub mod maillog;
pub mod metrics;
pub mod once;
pub mod transcript;
