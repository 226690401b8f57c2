//! The platform's library, by native-tls: for servers that know neither ECDHE nor AES-GCM.

use native_tls::{Certificate, Protocol};
use tokio_native_tls::TlsConnector;

use super::{ClientTlsError, HandshakeError, Secured, Shown, bad_roots, extra_roots};
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
        let connector =
            builder.build().map_err(|error| ClientTlsError::Settings(error.to_string()))?;
        Ok(Self {
            connector: connector.into(),
            host: smarthost.host.clone(),
            oldest,
            min: smarthost.tls_min,
        })
    }

    pub(super) async fn connect(&self, io: BoxIo) -> Result<Secured, HandshakeError> {
        let stream = self
            .connector
            .connect(&self.host, io)
            .await
            .map_err(|error| explain(&error.to_string(), &self.host, self.min))?;
        let certificate = stream.get_ref().peer_certificate().ok().flatten();
        let shown = certificate.and_then(|shown| Shown::read(&shown.to_der().ok()?));
        // native-tls tells neither version nor cipher; the version is what was asked for at least.
        let tls = TlsInfo { version: self.oldest, cipher: "unreported".to_owned() };
        Ok(Secured { io: Box::new(stream), tls, shown })
    }
}

/// What a failure means to an operator. All that native-tls passes on is the library's text: OpenSSL's here.
fn explain(text: &str, host: &str, oldest: TlsMin) -> HandshakeError {
    let says = |words: &[&str]| words.iter().any(|words| text.contains(words));
    if says(&["hostname mismatch", "IP address mismatch"]) {
        HandshakeError::other_name(None, host)
    } else if says(&["certificate has expired", "certificate is not yet valid"]) {
        HandshakeError::out_of_time(None)
    } else if says(&["self-signed certificate", "unable to get", "certificate verify failed"]) {
        HandshakeError::unknown_issuer(None)
    } else if says(&["unsupported protocol", "alert protocol version"]) {
        HandshakeError::too_old(oldest)
    } else if says(&["wrong version number", "packet length too long"]) {
        HandshakeError::new(
            "what the server says is not TLS",
            "check tls and port in [smarthost]: 587 takes starttls, 465 takes implicit",
        )
    } else if says(&["handshake failure", "no ciphers available"]) {
        HandshakeError::new(
            "the server shares no key exchange and cipher with this machine's TLS library",
            "allow ECDHE or RSA key exchange with AES at the server",
        )
    } else if says(&["unexpected EOF", "reset by peer", "Broken pipe"]) {
        HandshakeError::plain(format!("the server ended it ({text})"))
    } else {
        HandshakeError::plain(text)
    }
}
