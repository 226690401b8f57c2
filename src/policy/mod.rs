//! Pure decisions about devices: who may connect, what a listener asks of those who do and what would suit them
//! better, and whom their mail is from.
//!
//! Nothing here reads a clock, a socket or a log: every answer follows from its arguments alone.

pub mod access;
pub mod advice;
pub mod client_hello;
pub mod crowd;
pub mod pattern;
pub mod profile;
pub mod quota;
pub mod sender;

pub use access::{AccessList, canonical, household};
pub use advice::Finding;
pub use client_hello::{ClientHello, Offer, TlsVersion};
pub use pattern::Patterns;
pub use profile::{DeviceAuth, ListenerTls, Overrides, Profile, TlsProfile};
pub use quota::{Quota, Span};
