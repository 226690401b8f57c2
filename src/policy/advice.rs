//! What an operator could write for a device, after what it has shown of TLS.

use std::net::IpAddr;

use super::{Offer, TlsProfile};

/// What was last seen of a device and TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// A handshake came about, where so much was taken.
    Secured(Option<Offer>, TlsProfile),
    /// A handshake failed, where so much was taken; without an offer, what came was no TLS.
    Failed(Option<Offer>, TlsProfile),
    /// The device fell silent in a handshake.
    Unfinished,
    /// TLS began where a command was expected.
    TlsAtOnce,
    /// Where TLS begins at once, the device waited, or sent something else.
    NoTls,
}

impl Finding {
    /// What to write, if anything would be better; `entry` is the device's name, if it has an entry.
    pub fn advice(&self, address: IpAddr, entry: Option<&str>) -> Option<String> {
        let entry = |setting: &str| match entry {
            Some(name) => format!("add {setting} to the [[device]] called {name:?}"),
            None => format!("write [[device]] with address = \"{address}\" and {setting}"),
        };
        let without_starttls = entry("hide = [\"STARTTLS\"]");
        Some(match self {
            Self::Secured(offer, profile) => {
                let offer = offer.as_ref()?;
                let stricter = offer.needs.filter(|needs| needs < profile)?;
                format!("offered {offer}: tls_profile = \"{stricter}\" would do")
            }
            Self::Failed(Some(offer), profile) => match offer.needs {
                None => format!(
                    "offered {offer}: no tls_profile would let it in; update its firmware or switch its TLS off, and if \
                     it has no switch, {without_starttls}"
                ),
                Some(needs) if needs > *profile => {
                    let setting = entry(&format!("tls_profile = \"{needs}\""));
                    format!("offered {offer}: tls_profile = \"{needs}\" would let it in; {setting}")
                }
                Some(_) => format!(
                    "offered {offer}, which tls_profile = \"{profile}\" takes, and gave up: it may not trust the \
                     certificate; switch that check off at the device, or import the CA there"
                ),
            },
            Self::Failed(None, _) => {
                format!("sent something that is no TLS after STARTTLS; {without_starttls}")
            }
            Self::Unfinished => format!(
                "fell silent in the handshake; see that it reaches the relay, and if it does, {without_starttls}"
            ),
            Self::TlsAtOnce => format!(
                "begins TLS at once, where a command is expected; {}, or enter a port at the device whose listener \
                 has tls = \"implicit\"",
                entry("tls = \"auto\"")
            ),
            Self::NoTls => format!(
                "does not begin TLS on a port where nothing else is spoken; {}, or enter a port at the device whose \
                 listener has tls = \"starttls\"",
                entry("tls = \"auto\"")
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{ClientHello, TlsVersion};

    #[test]
    fn a_device_could_be_raised_or_lowered() {
        use TlsProfile::{Ancient, Legacy, Modern};
        let address: IpAddr = "10.1.2.3".parse().unwrap();
        let offer = |version, suite| {
            Some(ClientHello { version: Some(version), suites: vec![suite] }.offer())
        };
        let good = || offer(TlsVersion::Tls1_2, "ECDHE-RSA-AES128-GCM-SHA256");
        let rsa = || offer(TlsVersion::Tls1_0, "AES128-SHA");
        let old = || offer(TlsVersion::Ssl3, "AES128-SHA");
        for (finding, advice) in [
            (
                Finding::Secured(good(), Ancient),
                Some("offered TLS 1.2 with ECDHE: tls_profile = \"modern\" would do"),
            ),
            (
                Finding::Secured(rsa(), Ancient),
                Some("offered TLS 1.0 with RSA key exchange: tls_profile = \"legacy\" would do"),
            ),
            (Finding::Secured(good(), Modern), None),
            (Finding::Secured(rsa(), Legacy), None),
            (Finding::Secured(None, Legacy), None),
            (
                Finding::Failed(old(), Legacy),
                Some(
                    "offered SSLv3 only: tls_profile = \"ancient\" would let it in; \
                     write [[device]] with address = \"10.1.2.3\" and tls_profile = \"ancient\"",
                ),
            ),
            (
                Finding::Failed(rsa(), Modern),
                Some("offered TLS 1.0 with RSA key exchange: tls_profile = \"legacy\" would let"),
            ),
            (
                Finding::Failed(rsa(), Legacy),
                Some(
                    "offered TLS 1.0 with RSA key exchange, which tls_profile = \"legacy\" takes, and gave up",
                ),
            ),
            (
                Finding::Failed(offer(TlsVersion::Ssl3, "NULL-MD5"), Legacy),
                Some("offered SSLv3 without a suite that can be taken: no tls_profile"),
            ),
            (
                Finding::Failed(None, Legacy),
                Some(
                    "sent something that is no TLS after STARTTLS; write [[device]] with address = \"10.1.2.3\" and hide = [\"STARTTLS\"]",
                ),
            ),
            (Finding::Unfinished, Some("fell silent")),
            (
                Finding::TlsAtOnce,
                Some(
                    "begins TLS at once, where a command is expected; write [[device]] with address = \"10.1.2.3\" and tls = \"auto\"",
                ),
            ),
            (Finding::NoTls, Some("does not begin TLS")),
        ] {
            let said = finding.advice(address, None);
            let expected =
                said.as_deref().zip(advice).is_some_and(|(said, advice)| said.starts_with(advice));
            assert!(expected || said.as_deref() == advice, "{finding:?}: {said:?}");
        }
    }
}
