//! smtp-uplift: a smarthost for devices that only speak old TLS or none, which submits their mail to
//! Exchange Online over TLS 1.2+.

pub mod auth;
pub mod cli;
pub mod codec;
pub mod config;
pub mod policy;
pub mod proto;
pub mod relay;
pub mod sandbox;
pub mod service;
pub mod smarthost;
pub mod telemetry;
pub mod transport;
