//! What a device says that it can do of TLS, and the strictest profile that would take it.

use std::fmt;

use super::TlsProfile::{self, Ancient, Legacy, Modern};

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// SSLv3 (RFC 6101).
    Ssl3,
    /// TLS 1.0 (RFC 2246).
    Tls1_0,
    /// TLS 1.1 (RFC 4346).
    Tls1_1,
    /// TLS 1.2 (RFC 5246).
    Tls1_2,
    /// TLS 1.3 (RFC 8446).
    Tls1_3,
}

/// A device's ClientHello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// The highest version; `None` is one that nobody knows.
    pub version: Option<TlsVersion>,
    /// The suites by OpenSSL's names, as far as the library knows them.
    pub suites: Vec<&'static str>,
}

/// A ClientHello in short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The strictest profile that takes it; `None`: there is none.
    pub needs: Option<TlsProfile>,
    what: String,
}

/// How keys are agreed on. Ordered: the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum KeyExchange {
    Ecdhe,
    Dhe,
    Rsa,
}

impl ClientHello {
    /// What it comes to.
    pub fn offer(&self) -> Offer {
        let version = self.version();
        let best = self.suites.iter().filter_map(|suite| judge(self.version?, suite)).min();
        let what = match (best, self.version) {
            (None, _) => format!("{version} without a suite that can be taken"),
            (_, Some(TlsVersion::Ssl3)) => format!("{version} only"),
            (Some((Ancient, _)), _) => format!("{version} with 3DES or RC4 only"),
            (_, Some(TlsVersion::Tls1_3)) => version,
            (Some((_, key_exchange)), _) => format!(
                "{version} with {}",
                match key_exchange {
                    KeyExchange::Ecdhe => "ECDHE",
                    KeyExchange::Dhe => "DHE",
                    KeyExchange::Rsa => "RSA key exchange",
                }
            ),
        };
        Offer { needs: best.map(|(profile, _)| profile), what }
    }

    fn version(&self) -> String {
        self.version.map_or_else(|| "an unknown version".to_owned(), |version| version.to_string())
    }
}

/// The strictest profile that takes a suite, with an RSA certificate. What it says is what
/// [`transport::server_tls`](crate::transport::server_tls) does: a test holds the two together.
fn judge(version: TlsVersion, suite: &str) -> Option<(TlsProfile, KeyExchange)> {
    if suite.starts_with("TLS_") {
        return (!suite.contains("CCM")).then_some((Modern, KeyExchange::Ecdhe));
    }
    let (key_exchange, cipher) =
        match (suite.strip_prefix("ECDHE-RSA-"), suite.strip_prefix("DHE-RSA-")) {
            (Some(cipher), _) => (KeyExchange::Ecdhe, cipher),
            (_, Some(cipher)) => (KeyExchange::Dhe, cipher),
            _ => (KeyExchange::Rsa, suite),
        };
    let aead = cipher.contains("GCM") || cipher.starts_with("CHACHA20");
    let since_1_2 =
        aead || cipher.contains("CCM") || cipher.ends_with("SHA256") || cipher.ends_with("SHA384");
    let profile = if cipher == "DES-CBC3-SHA" || cipher.starts_with("RC4-") {
        Ancient
    } else if aead && key_exchange != KeyExchange::Rsa {
        Modern
    } else if cipher.starts_with("AES") {
        Legacy
    } else {
        return None;
    };
    let profile = if version == TlsVersion::Ssl3 { Ancient } else { profile };
    let oldest = match (since_1_2, key_exchange) {
        (true, _) => TlsVersion::Tls1_2,
        (false, KeyExchange::Ecdhe) => TlsVersion::Tls1_0,
        (false, _) => TlsVersion::Ssl3,
    };
    (version >= oldest).then_some((profile, key_exchange))
}

impl fmt::Display for TlsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ssl3 => "SSLv3",
            Self::Tls1_0 => "TLS 1.0",
            Self::Tls1_1 => "TLS 1.1",
            Self::Tls1_2 => "TLS 1.2",
            Self::Tls1_3 => "TLS 1.3",
        })
    }
}

impl fmt::Display for ClientHello {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suites = self.suites.join(" ");
        write!(
            f,
            "{} with {}",
            self.version(),
            if suites.is_empty() { "no known suite" } else { &suites }
        )
    }
}

impl fmt::Display for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_suite_decides_which_profile_would_do() {
        use TlsVersion::{Ssl3, Tls1_0, Tls1_2, Tls1_3};
        for (version, suites, needs, what) in [
            (Some(Tls1_3), &["TLS_AES_128_GCM_SHA256", "RC4-SHA"][..], Some(Modern), "TLS 1.3"),
            (
                Some(Tls1_2),
                &["RC4-SHA", "ECDHE-RSA-AES128-GCM-SHA256"],
                Some(Modern),
                "TLS 1.2 with ECDHE",
            ),
            (
                Some(Tls1_2),
                &["DHE-RSA-AES128-GCM-SHA256", "AES128-SHA"],
                Some(Modern),
                "TLS 1.2 with DHE",
            ),
            (Some(Tls1_2), &["AES128-GCM-SHA256"], Some(Legacy), "TLS 1.2 with RSA key exchange"),
            (Some(Tls1_2), &["ECDHE-RSA-AES128-SHA"], Some(Legacy), "TLS 1.2 with ECDHE"),
            (
                Some(Tls1_0),
                &["RC4-SHA", "AES128-SHA"],
                Some(Legacy),
                "TLS 1.0 with RSA key exchange",
            ),
            (
                Some(Tls1_0),
                &["RC4-MD5", "DES-CBC3-SHA"],
                Some(Ancient),
                "TLS 1.0 with 3DES or RC4 only",
            ),
            (Some(Ssl3), &["AES128-SHA"], Some(Ancient), "SSLv3 only"),
            (
                Some(Ssl3),
                &["ECDHE-RSA-AES128-SHA"],
                None,
                "SSLv3 without a suite that can be taken",
            ),
            (
                Some(Tls1_0),
                &["AES128-GCM-SHA256"],
                None,
                "TLS 1.0 without a suite that can be taken",
            ),
            (
                Some(Tls1_2),
                &["ADH-AES128-SHA", "DES-CBC-SHA", "ECDHE-ECDSA-AES128-SHA"],
                None,
                "TLS 1.2 without a suite that can be taken",
            ),
            (None, &["AES128-SHA"], None, "an unknown version without a suite that can be taken"),
            (Some(Tls1_2), &[], None, "TLS 1.2 without a suite that can be taken"),
        ] {
            let offer = ClientHello { version, suites: suites.to_vec() }.offer();
            assert_eq!(
                (offer.needs, offer.to_string().as_str()),
                (needs, what),
                "{version:?} {suites:?}"
            );
        }
    }
}
