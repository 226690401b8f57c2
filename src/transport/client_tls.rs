//! TLS with the smarthost: rustls with aws-lc-rs, TLS 1.2 or newer, the name always checked.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use thiserror::Error;
use tokio_rustls::TlsConnector;

use super::stream::{BoxIo, TlsInfo};
use crate::config::{Smarthost, TlsMin};

/// The relay's side of TLS with the smarthost.
#[derive(Clone)]
pub struct ClientTls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

/// Why there are no TLS settings for the smarthost.
#[derive(Debug, Error)]
pub enum ClientTlsError {
    /// The extra roots cannot be read.
    #[error("ca_file {}: {reason}", path.display())]
    Roots {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The smarthost's name is neither a name nor an address.
    #[error("{0:?} is not a host name")]
    Name(String),
    /// rustls does not take the settings.
    #[error("rustls does not take the settings: {0}")]
    Settings(String),
}

impl ClientTls {
    /// Settings for a smarthost.
    pub fn new(smarthost: &Smarthost) -> Result<Self, ClientTlsError> {
        let name = ServerName::try_from(smarthost.host.clone())
            .map_err(|_| ClientTlsError::Name(smarthost.host.clone()))?;
        // Named at each use: a process-wide default would be somebody else's to change.
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let extra = smarthost.ca_file.as_deref().map(read_roots).transpose()?.unwrap_or_default();
        let versions: &[&SupportedProtocolVersion] = match smarthost.tls_min {
            TlsMin::V1_2 => &[&rustls::version::TLS13, &rustls::version::TLS12],
            TlsMin::V1_3 => &[&rustls::version::TLS13],
        };
        let settings = |error: &dyn std::fmt::Display| ClientTlsError::Settings(error.to_string());
        let config = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .map_err(|error| settings(&error))?
            .dangerous()
            .with_custom_certificate_verifier(
                verifier(extra, provider).map_err(|error| settings(&error))?,
            )
            .with_no_client_auth();
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name })
    }

    /// Shakes hands with the smarthost.
    pub async fn connect(&self, io: BoxIo) -> std::io::Result<(BoxIo, TlsInfo)> {
        let stream = self.connector.connect(self.name.clone(), io).await?;
        let (_, session) = stream.get_ref();
        let version = match session.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "TLSv1.2",
        };
        let suite = session.negotiated_cipher_suite().map(|suite| format!("{:?}", suite.suite()));
        let info = TlsInfo { version, cipher: suite.unwrap_or_else(|| "none".to_owned()) };
        Ok((Box::new(stream), info))
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

fn read_roots(path: &Path) -> Result<Vec<CertificateDer<'static>>, ClientTlsError> {
    let failed = |reason: String| ClientTlsError::Roots { path: path.to_owned(), reason };
    let roots = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| failed(error.to_string()))?;
    if roots.is_empty() {
        return Err(failed("no certificate in PEM form".to_owned()));
    }
    Ok(roots)
}
