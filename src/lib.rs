//! smtp-uplift: a smarthost for devices that only speak old TLS or none, which submits their mail to
//! Exchange Online over TLS 1.2+.
//!
//! The modules are floors; each uses only floors below it (`tests/layering.rs` holds them to it):
//!
//! ```text
//! cli                                               one file a command
//! service                          sandbox          everything wired; the other side, for rehearsals
//! relay                                             one device session
//! smarthost    spool    auth                        connections upstream; what is kept; logins of devices
//! transport                                         sockets and TLS, on both sides
//! codec    policy    config    telemetry            bytes to protocol; decisions; settings; log and metrics
//! proto                                             RFC 5321, without I/O
//! ```
//!
//! The way of one message: [`transport::listener`] accepts, [`relay::session`] drives
//! [`proto::session`] over [`codec::server`]; at the first recipient [`relay::transaction`] leases a
//! connection from [`smarthost::pool`]; mail data pass through [`codec::data`] as the bytes that
//! came; [`smarthost::classify`] knows what a refusal means and [`relay::answer`] tells the device what became
//! of its message. `docs/flow.md` says it in prose.
//!
//! Start reading at [`relay::session`].

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
pub mod spool;
pub mod telemetry;
pub mod transport;
