//! The protocol itself (RFC 5321 and its extensions), without sockets, clocks or logs.
//!
//! Two machines mirror each other: [`session::Session`] answers a device, [`client::Opening`] logs in
//! to the smarthost. Both take what the peer said and return what to do next; whoever drives them owns
//! the stream. Everything else here is a noun of the RFC: [`command`], [`path`], [`param`], [`reply`],
//! [`capabilities`], [`sasl`], [`envelope`], [`trace`], [`header`], [`mailbox_list`]; [`first_octets`] tells TLS
//! from it.

pub mod capabilities;
pub mod client;
pub mod command;
pub mod envelope;
pub mod first_octets;
pub mod header;
pub mod limits;
pub mod mailbox_list;
pub mod param;
pub mod path;
pub mod reply;
pub mod sasl;
pub mod session;
pub mod trace;
