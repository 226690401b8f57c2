//! Bytes to protocol and back, over `tokio_util::codec`.
//!
//! Faults of a peer are items, never `Err`: a `Framed` stream ends after a decoder's error, and a session
//! has to go on after a line that is too long.

pub mod client;
pub mod data;
pub mod line;
pub mod server;
