//! Pure decisions about devices: who may connect, and what a listener asks of those who do.
//!
//! Nothing here reads a clock, a socket or a log: every answer follows from its arguments alone.

pub mod access;
pub mod crowd;
pub mod pattern;
pub mod profile;
pub mod quota;

pub use access::{AccessList, canonical, household};
pub use pattern::Patterns;
pub use profile::{DeviceAuth, ListenerTls, Overrides, Profile, TlsProfile};
pub use quota::{Quota, Span};
