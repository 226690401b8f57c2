//! How a mailbox comes by access tokens (RFC 6749): [`Tokens`] has the one that is good now and asks for the next
//! one, [`sign_in`] lets somebody sign in for it.
//!
//! Inside: `proof` is what the application proves itself with, `endpoint` one request over HTTP, [`fault`] what a
//! refusal means, `cache` when to ask, `store` where a sign-in is kept.

mod cache;
mod endpoint;
mod error;
pub mod fault;
mod proof;
pub mod sign_in;
mod store;
mod tokens;

pub use error::{Kind, TokenError};
pub use tokens::{AccessToken, Tokens};
