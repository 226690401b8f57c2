//! What a listener offers its devices, and what it insists on; for a single device its own entry may say otherwise.

use std::{fmt, time::Duration};

use crate::proto::limits::LineEndings;

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
    /// As the device likes: a ClientHello within `auto_wait` begins TLS, else it is greeted and offered STARTTLS.
    Auto,
}

impl ListenerTls {
    /// The word of the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::StartTls => "starttls",
            Self::RequireStartTls => "require-starttls",
            Self::Implicit => "implicit",
            Self::Auto => "auto",
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

/// How a device is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// When TLS is spoken.
    pub tls: ListenerTls,
    /// The oldest TLS that is taken.
    pub tls_profile: TlsProfile,
    /// How long `auto` waits for a ClientHello before it greets.
    pub auto_wait: Duration,
    /// How long STARTTLS is not offered to an address whose handshake has failed; zero: it always is.
    pub starttls_fallback: Duration,
    /// Whether the device logs in.
    pub auth: DeviceAuth,
    /// Whether AUTH is offered before TLS too.
    pub auth_without_tls: bool,
    /// Whether any name and password will do.
    pub accept_any_credentials: bool,
    /// What happens to line ends that are not CR LF.
    pub line_endings: LineEndings,
    /// EHLO keywords that are not offered, in capitals.
    pub hide: Vec<String>,
}

/// What a device's own entry says of how it is served; `None`: as its listener does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// See [`Profile::tls`].
    pub tls: Option<ListenerTls>,
    /// See [`Profile::tls_profile`].
    pub tls_profile: Option<TlsProfile>,
    /// See [`Profile::auto_wait`].
    pub auto_wait: Option<Duration>,
    /// See [`Profile::starttls_fallback`].
    pub starttls_fallback: Option<Duration>,
    /// See [`Profile::auth`].
    pub auth: Option<DeviceAuth>,
    /// See [`Profile::auth_without_tls`].
    pub auth_without_tls: Option<bool>,
    /// See [`Profile::accept_any_credentials`].
    pub accept_any_credentials: Option<bool>,
    /// See [`Profile::line_endings`].
    pub line_endings: Option<LineEndings>,
    /// See [`Profile::hide`].
    pub hide: Option<Vec<String>>,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            tls: ListenerTls::default(),
            tls_profile: TlsProfile::default(),
            auto_wait: Duration::from_millis(500),
            starttls_fallback: Duration::from_secs(600),
            auth: DeviceAuth::default(),
            auth_without_tls: false,
            accept_any_credentials: false,
            line_endings: LineEndings::default(),
            hide: Vec::new(),
        }
    }
}

impl Profile {
    /// The same, but for what is said otherwise.
    pub fn with(&self, own: &Overrides) -> Self {
        Self {
            tls: own.tls.unwrap_or(self.tls),
            tls_profile: own.tls_profile.unwrap_or(self.tls_profile),
            auto_wait: own.auto_wait.unwrap_or(self.auto_wait),
            starttls_fallback: own.starttls_fallback.unwrap_or(self.starttls_fallback),
            auth: own.auth.unwrap_or(self.auth),
            auth_without_tls: own.auth_without_tls.unwrap_or(self.auth_without_tls),
            accept_any_credentials: own
                .accept_any_credentials
                .unwrap_or(self.accept_any_credentials),
            line_endings: own.line_endings.unwrap_or(self.line_endings),
            hide: own.hide.clone().unwrap_or_else(|| self.hide.clone()),
        }
    }

    /// The same for a device whose handshake has failed, if it may be served without STARTTLS for a while
    /// (devices.md row 7); see docs/decisions/0011-starttls-fallback.md.
    ///
    /// Only where mail is taken without TLS and without a login anyway: a device that would use STARTTLS loses no more
    /// than somebody on the path could take from it without our help (RFC 3207 section 6). No login is taken in its
    /// place in plaintext: a password is worth more than one message.
    pub fn without_starttls(&self) -> Option<Self> {
        let may = self.tls == ListenerTls::StartTls
            && self.auth != DeviceAuth::Require
            && !self.starttls_fallback.is_zero();
        may.then(|| Self { tls: ListenerTls::None, auth_without_tls: false, ..self.clone() })
    }

    /// Whether mail is taken from whoever connects, without a login that proves anything.
    pub fn takes_anybody(&self) -> bool {
        self.auth != DeviceAuth::Require || self.accept_any_credentials
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starttls_is_withheld_only_where_nobody_is_asked_for_it() {
        let usual = Profile { auth_without_tls: true, ..Profile::default() };
        let without = usual.without_starttls().unwrap();
        assert_eq!((without.tls, without.auth_without_tls), (ListenerTls::None, false));
        for tls in [
            ListenerTls::None,
            ListenerTls::RequireStartTls,
            ListenerTls::Implicit,
            ListenerTls::Auto,
        ] {
            assert_eq!(Profile { tls, ..usual.clone() }.without_starttls(), None, "{tls:?}");
        }
        let require = Profile { auth: DeviceAuth::Require, ..usual.clone() };
        assert_eq!(require.without_starttls(), None);
        let never = Profile { starttls_fallback: Duration::ZERO, ..usual };
        assert_eq!(never.without_starttls(), None);
    }
}
