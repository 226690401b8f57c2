//! What a listener offers its devices, and what it insists on.

use std::fmt;

/// The oldest TLS that a listener takes. Ordered: a later profile takes all that an earlier one does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum TlsProfile {
    /// TLS 1.3, and 1.2 with forward secrecy and AEAD ciphers.
    Modern,
    /// Adds TLS 1.0 to 1.2 with CBC ciphers and RSA or DHE key exchange.
    #[default]
    Legacy,
    /// Adds SSLv3, 3DES and RC4.
    Ancient,
}

impl TlsProfile {
    /// The word of the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Modern => "modern",
            Self::Legacy => "legacy",
            Self::Ancient => "ancient",
        }
    }
}

impl fmt::Display for TlsProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// When a listener speaks TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ListenerTls {
    /// Never.
    None,
    /// After STARTTLS, which is offered (RFC 3207).
    #[default]
    StartTls,
    /// After STARTTLS, without which no mail is taken.
    RequireStartTls,
    /// From the first octet (RFC 8314, section 3.3).
    Implicit,
}

impl ListenerTls {
    /// The word of the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::StartTls => "starttls",
            Self::RequireStartTls => "require-starttls",
            Self::Implicit => "implicit",
        }
    }
}

/// Whether devices log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DeviceAuth {
    /// AUTH is not offered.
    #[default]
    None,
    /// AUTH is offered, mail is taken without it too.
    Offer,
    /// No mail without AUTH.
    Require,
}
