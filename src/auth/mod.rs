//! Logins of devices.

pub mod accounts;
pub mod edit;
