//! What a connection is to the floors above: octets in both directions, and what protects them.

use std::fmt;

use tokio::io::{AsyncRead, AsyncWrite};

/// Anything that octets can be read from and written to.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection, whatever it is made of.
pub type BoxIo = Box<dyn Io>;

/// Version and cipher that a handshake agreed on, by OpenSSL's names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsInfo {
    /// `TLSv1.3`, `TLSv1.2`, `TLSv1.1`, `TLSv1`, `SSLv3`.
    pub version: &'static str,
    /// The cipher suite.
    pub cipher: String,
}

impl fmt::Display for TlsInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.version, self.cipher)
    }
}
