//! Logins of devices.

pub mod accounts;
