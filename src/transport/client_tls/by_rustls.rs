//! rustls with aws-lc-rs.

use std::{io, sync::Arc};

use openssl::error::ErrorStack;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError,
    PeerIncompatible, RootCertStore, SignatureScheme, SupportedProtocolVersion,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime, pem::PemObject as _},
};
use tokio_rustls::TlsConnector;

use super::{ClientTlsError, HandshakeError, Secured, Shown, bad_key, bad_roots, extra_roots, own};
use crate::{
    config::{Smarthost, TlsMin},
    transport::{
        certificate::Identity,
        stream::{BoxIo, TlsInfo},
    },
};

/// What the other library can do and rustls will not.
const TRY_NATIVE: &str = "write tls_backend = \"native\" in [smarthost]: it also knows RSA key exchange and CBC ciphers, \
                          which old servers need; where the server asks for a certificate of ours, name one in \
                          client_certificate";

#[derive(Clone)]
pub(super) struct Connector {
    connector: TlsConnector,
    name: ServerName<'static>,
    host: String,
    min: TlsMin,
    shows_certificate: bool,
}

impl Connector {
    pub(super) fn new(smarthost: &Smarthost) -> Result<Self, ClientTlsError> {
        let host = smarthost.host.clone();
        let name =
            ServerName::try_from(host.clone()).map_err(|_| ClientTlsError::Name(host.clone()))?;
        let own = own(smarthost)?;
        let shows_certificate = own.is_some();
        let config = config(smarthost, smarthost.tls_min, own)?;
        Ok(Self {
            connector: TlsConnector::from(Arc::new(config)),
            name,
            host,
            min: smarthost.tls_min,
            shows_certificate,
        })
    }

    pub(super) async fn connect(&self, io: BoxIo) -> Result<Secured, HandshakeError> {
        let stream = self
            .connector
            .connect(self.name.clone(), io)
            .await
            .map_err(|error| self.explain(&error))?;
        let (_, session) = stream.get_ref();
        let version = match session.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "TLSv1.2",
        };
        let suite = session.negotiated_cipher_suite().map(|suite| format!("{:?}", suite.suite()));
        let tls = TlsInfo { version, cipher: suite.unwrap_or_else(|| "none".to_owned()) };
        let shown = session.peer_certificates().and_then(<[_]>::first);
        let shown = shown.and_then(|shown| Shown::read(shown));
        Ok(Secured { io: Box::new(stream), tls, shown })
    }
    /// The alerts by which a server says what it has against our certificate.
    pub(super) fn refused_ours(&self, error: &io::Error) -> Option<HandshakeError> {
        let Some(Error::AlertReceived(alert)) = cause(error) else { return None };
        matches!(
            alert,
            AlertDescription::CertificateRequired
                | AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown
                | AlertDescription::UnknownCA
        )
        .then(|| HandshakeError::ours(self.shows_certificate, &format!("alert {alert:?}")))
    }

    /// What a failure means to an operator.
    fn explain(&self, error: &io::Error) -> HandshakeError {
        if let Some(ours) = self.refused_ours(error) {
            return ours;
        }
        let Some(tls) = cause(error) else {
            // Windows servers reset the connection where others send an alert.
            return HandshakeError::new(
                format!(
                    "the server ended it ({error}), as old ones do that share no cipher with us"
                ),
                TRY_NATIVE,
            );
        };
        match tls {
            Error::AlertReceived(
                AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity,
            )
            | Error::PeerIncompatible(
                PeerIncompatible::NoCipherSuitesInCommon | PeerIncompatible::NoKxGroupsInCommon,
            ) => HandshakeError::new(
                format!("the server shares no key exchange and cipher with rustls ({tls})"),
                TRY_NATIVE,
            ),
            Error::AlertReceived(AlertDescription::ProtocolVersion)
            | Error::PeerIncompatible(
                PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
            ) => HandshakeError::too_old(self.min),
            Error::InvalidCertificate(CertificateError::Other(OtherError(cause))) => {
                match cause.downcast_ref::<Refused>() {
                    Some(refused) => refused.explain(&self.host),
                    None => HandshakeError::plain(tls.to_string()),
                }
            }
            Error::InvalidMessage(_) => HandshakeError::new(
                format!("what the server says is not TLS ({tls})"),
                "check tls and port in [smarthost]: 587 takes starttls, 465 takes implicit",
            ),
            _ => HandshakeError::plain(tls.to_string()),
        }
    }
}

/// What rustls has to say of an error.
fn cause(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// Our side of TLS, with the roots that a smarthost's side trusts, and the certificate that is shown where one is
/// asked for.
pub(super) fn config(
    smarthost: &Smarthost,
    min: TlsMin,
    own: Option<Identity>,
) -> Result<ClientConfig, ClientTlsError> {
    // Named at each use: a process-wide default would be somebody else's to change.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions: &[&SupportedProtocolVersion] = match min {
        TlsMin::V1_2 => &[&rustls::version::TLS13, &rustls::version::TLS12],
        TlsMin::V1_3 => &[&rustls::version::TLS13],
    };
    let settings = |error: &dyn std::fmt::Display| ClientTlsError::Settings(error.to_string());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .map_err(|error| settings(&error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Telling(
            verifier(roots(smarthost)?, provider).map_err(|error| settings(&error))?,
        )));
    let Some(own) = own else { return Ok(builder.with_no_client_auth()) };
    let bad = |error: &dyn std::fmt::Display| {
        let remedy = "rustls takes RSA, EC and Ed25519; write tls_backend = \"native\" for others";
        bad_key(smarthost, error, remedy)
    };
    let chain = std::iter::once(&own.certificate).chain(&own.chain);
    let chain = chain.map(|it| Ok(CertificateDer::from(it.to_der()?)));
    let chain = chain.collect::<Result<Vec<_>, ErrorStack>>().map_err(|error| bad(&error))?;
    let key = own.key.private_key_to_pkcs8().map_err(|error| bad(&error))?;
    let key = PrivatePkcs8KeyDer::from(key).into();
    builder.with_client_auth_cert(chain, key).map_err(|error| bad(&error))
}

/// What is wrong with the certificate of `host`, if that is why an exchange failed.
pub(super) fn refused_certificate(
    error: &(dyn std::error::Error + 'static),
    host: &str,
) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(Error::InvalidCertificate(CertificateError::Other(OtherError(cause)))) =
            error.downcast_ref::<Error>()
        {
            return Some(cause.downcast_ref::<Refused>()?.explain(host).reason);
        }
        // The source of an I/O error is that of what it holds, not what it holds.
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(held) => Some(held),
            None => error.source(),
        };
    }
    None
}

/// A verifier that tells whose certificate it has refused.
#[derive(Debug)]
struct Telling(Arc<dyn ServerCertVerifier>);

/// Why a certificate was refused, and which.
#[derive(Debug, thiserror::Error)]
#[error("{cause}")]
struct Refused {
    cause: CertificateError,
    shown: Option<Shown>,
}

impl ServerCertVerifier for Telling {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let judged = self.0.verify_server_cert(end_entity, intermediates, name, ocsp, now);
        judged.map_err(|error| match error {
            Error::InvalidCertificate(cause) => {
                let refused = Refused { cause, shown: Shown::read(end_entity) };
                Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refused))))
            }
            other => other,
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// The system's roots and `extra`; where the system has none, Mozilla's.
fn verifier(
    extra: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, Box<dyn std::error::Error>> {
    match rustls_platform_verifier::Verifier::new_with_extra_roots(extra.clone(), provider.clone())
    {
        Ok(platform) => Ok(Arc::new(platform)),
        Err(error) => {
            tracing::warn!(%error, "no certificate roots on this system: Mozilla's, built in, are used");
            let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
            roots.add_parsable_certificates(extra);
            Ok(WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build()?)
        }
    }
}

fn roots(smarthost: &Smarthost) -> Result<Vec<CertificateDer<'static>>, ClientTlsError> {
    let Some((path, pem)) = extra_roots(smarthost)? else { return Ok(Vec::new()) };
    let roots = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| bad_roots(path, error))?;
    if roots.is_empty() {
        return Err(bad_roots(path, "no certificate in PEM form"));
    }
    Ok(roots)
}

impl Refused {
    fn explain(&self, host: &str) -> HandshakeError {
        let shown = self.shown.as_ref();
        match &self.cause {
            // A bad signature is what an issuer of the same name with another key looks like.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                HandshakeError::unknown_issuer(shown)
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                HandshakeError::other_name(shown, host)
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => HandshakeError::out_of_time(shown),
            CertificateError::Other(OtherError(cause))
                if cause.to_string().contains("CaUsedAsEndEntity") =>
            {
                HandshakeError::about(
                    shown,
                    "is that of a CA, which rustls takes from no server",
                    "make the server one with CA:FALSE (openssl req -x509 -addext basicConstraints=CA:FALSE), or write \
                     tls_backend = \"native\" in [smarthost]",
                )
            }
            other => HandshakeError::about(
                shown,
                &format!("is not accepted ({other})"),
                "the server needs a certificate for its name from a CA that this machine trusts",
            ),
        }
    }
}
