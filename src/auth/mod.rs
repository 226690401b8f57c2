//! Logins of devices.

pub mod accounts;
pub mod edit;
pub mod remembered;
pub mod throttle;
