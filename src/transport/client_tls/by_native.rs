//! The platform's library, by native-tls: for servers that know neither ECDHE nor AES-GCM.

use std::io;

use native_tls::{Certificate, Identity, Protocol};
use tokio_native_tls::TlsConnector;

use super::{ClientTlsError, HandshakeError, Secured, Shown, bad_key, bad_roots, extra_roots, own};
use crate::{
    config::{Smarthost, TlsMin},
    transport::stream::{BoxIo, TlsInfo},
};

#[derive(Clone)]
pub(super) struct Connector {
    connector: TlsConnector,
    host: String,
    oldest: &'static str,
    min: TlsMin,
    shows_certificate: bool,
}

impl Connector {
    pub(super) fn new(smarthost: &Smarthost) -> Result<Self, ClientTlsError> {
        let (protocol, oldest) = match smarthost.tls_min {
            TlsMin::V1_2 => (Protocol::Tlsv12, "TLSv1.2+"),
            TlsMin::V1_3 => (Protocol::Tlsv13, "TLSv1.3"),
        };
        let mut builder = native_tls::TlsConnector::builder();
        builder.min_protocol_version(Some(protocol));
        if let Some((path, pem)) = extra_roots(smarthost)? {
            let roots =
                Certificate::stack_from_pem(&pem).map_err(|error| bad_roots(path, error))?;
            if roots.is_empty() {
                return Err(bad_roots(path, "no certificate in PEM form"));
            }
            for root in roots {
                builder.add_root_certificate(root);
            }
        }
        let own = own(smarthost)?;
        let shows_certificate = own.is_some();
        if let Some(own) = own {
            let bad = |error: &dyn std::fmt::Display| {
                bad_key(smarthost, error, "write RSA or EC with P-256: openssl genpkey makes one")
            };
            let mut chain = own.certificate.to_pem().map_err(|error| bad(&error))?;
            for between in &own.chain {
                chain.extend(between.to_pem().map_err(|error| bad(&error))?);
            }
            let key = own.key.private_key_to_pem_pkcs8().map_err(|error| bad(&error))?;
            builder.identity(Identity::from_pkcs8(&chain, &key).map_err(|error| bad(&error))?);
        }
        let connector =
            builder.build().map_err(|error| ClientTlsError::Settings(error.to_string()))?;
        Ok(Self {
            connector: connector.into(),
            host: smarthost.host.clone(),
            oldest,
            min: smarthost.tls_min,
            shows_certificate,
        })
    }

    pub(super) async fn connect(&self, io: BoxIo) -> Result<Secured, HandshakeError> {
        let stream = self
            .connector
            .connect(&self.host, io)
            .await
            .map_err(|error| self.explain(&error.to_string()))?;
        let certificate = stream.get_ref().peer_certificate().ok().flatten();
        let shown = certificate.and_then(|shown| Shown::read(&shown.to_der().ok()?));
        // native-tls tells neither version nor cipher; the version is what was asked for at least.
        let tls = TlsInfo { version: self.oldest, cipher: "unreported".to_owned() };
        Ok(Secured { io: Box::new(stream), tls, shown })
    }
    pub(super) fn refused_ours(&self, error: &io::Error) -> Option<HandshakeError> {
        self.ours(&error.to_string())
    }

    /// The alerts by which a server says what it has against our certificate, in OpenSSL's words.
    fn ours(&self, text: &str) -> Option<HandshakeError> {
        const ALERTS: [&str; 7] = [
            "alert certificate required",
            "alert bad certificate",
            "alert unsupported certificate",
            "alert certificate revoked",
            "alert certificate expired",
            "alert certificate unknown",
            "alert unknown ca",
        ];
        let alert = ALERTS.iter().find(|alert| text.contains(**alert))?;
        Some(HandshakeError::ours(self.shows_certificate, alert))
    }

    /// What a failure means to an operator. All that native-tls passes on is the library's text: OpenSSL's here.
    fn explain(&self, text: &str) -> HandshakeError {
        let says = |words: &[&str]| words.iter().any(|words| text.contains(words));
        if let Some(ours) = self.ours(text) {
            return ours;
        }
        if says(&["hostname mismatch", "IP address mismatch"]) {
            HandshakeError::other_name(None, &self.host)
        } else if says(&["certificate has expired", "certificate is not yet valid"]) {
            HandshakeError::out_of_time(None)
        } else if says(&["self-signed certificate", "unable to get", "certificate verify failed"]) {
            HandshakeError::unknown_issuer(None)
        } else if says(&["unsupported protocol", "alert protocol version"]) {
            HandshakeError::too_old(self.min)
        } else if says(&["wrong version number", "packet length too long"]) {
            HandshakeError::new(
                "what the server says is not TLS",
                "check tls and port in [smarthost]: 587 takes starttls, 465 takes implicit",
            )
        } else if says(&["handshake failure", "no ciphers available"]) {
            HandshakeError::new(
                "the server shares no key exchange and cipher with this machine's TLS library",
                "allow ECDHE or RSA key exchange with AES at the server; where it asks for a certificate of ours, name one in \
 client_certificate",
            )
        } else if says(&["unexpected EOF", "reset by peer", "Broken pipe"]) {
            HandshakeError::plain(format!("the server ended it ({text})"))
        } else {
            HandshakeError::plain(text)
        }
    }
}
