//! TLS with the smarthost, TLS 1.2 or newer, the name always checked. rustls does it unless the configuration
//! asks for the platform's library, which still knows what old servers on premises need.

mod by_native;
mod by_rustls;

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use openssl::{
    nid::Nid,
    x509::{X509, X509NameRef},
};
use thiserror::Error;

use super::{
    certificate::{self, CertificateError, Identity},
    stream::{BoxIo, TlsInfo},
};
use crate::config::{Smarthost, TlsBackend, TlsMin, unreadable};

/// The relay's side of TLS with the smarthost.
#[derive(Clone)]
pub struct ClientTls(Backend);

#[derive(Clone)]
enum Backend {
    Rustls(by_rustls::Connector),
    Native(by_native::Connector),
}

/// A connection that is protected.
pub struct Secured {
    /// What goes on on it.
    pub io: BoxIo,
    /// Version and cipher.
    pub tls: TlsInfo,
    /// What the smarthost has shown.
    pub shown: Option<Shown>,
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
    /// The certificate that we show cannot be used.
    #[error("{key} {reason}; {remedy}")]
    Client {
        /// The key of the configuration.
        key: &'static str,
        /// The file, and what is wrong with it.
        reason: String,
        /// What the operator can do about it.
        remedy: &'static str,
    },
    /// The smarthost's name is neither a name nor an address.
    #[error("{0:?} is not a host name")]
    Name(String),
    /// The library does not take the settings.
    #[error("the TLS library does not take the settings: {0}")]
    Settings(String),
}

/// A handshake that failed.
#[derive(Debug, Error)]
#[error("{reason}{}", remedy.map(|remedy| format!("; {remedy}")).unwrap_or_default())]
pub struct HandshakeError {
    /// What went wrong.
    pub reason: String,
    /// What the operator can do about it, where that is known.
    pub remedy: Option<&'static str>,
    /// The certificate was the reason, not the protocol.
    pub about_certificate: bool,
}

/// The certificate that a smarthost shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Whose it is.
    pub subject: String,
    /// Who says so.
    pub issuer: String,
    /// When it ends, in seconds since 1970.
    pub not_after: i64,
}

impl Shown {
    /// Reads a certificate in DER form; `None` if it is none.
    fn read(der: &[u8]) -> Option<Self> {
        let certificate = X509::from_der(der).ok()?;
        let name = |name: &X509NameRef| {
            let of = |nid| name.entries_by_nid(nid).next()?.data().to_string().ok();
            let found = of(Nid::COMMONNAME).or_else(|| of(Nid::ORGANIZATIONNAME));
            // Anybody can write anything into a certificate.
            let plain = |name: String| name.chars().filter(|c| !c.is_control()).take(100).collect();
            found.map_or_else(|| "nobody".to_owned(), plain)
        };
        Some(Self {
            subject: name(certificate.subject_name()),
            issuer: name(certificate.issuer_name()),
            not_after: certificate::unix(certificate.not_after())?,
        })
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "that of {}, issued by {}", self.subject, self.issuer)
    }
}

impl ClientTls {
    /// Settings for a smarthost.
    pub fn new(smarthost: &Smarthost) -> Result<Self, ClientTlsError> {
        Ok(Self(match smarthost.tls_backend {
            TlsBackend::Rustls => Backend::Rustls(by_rustls::Connector::new(smarthost)?),
            TlsBackend::Native => Backend::Native(by_native::Connector::new(smarthost)?),
        }))
    }

    /// Shakes hands with the smarthost.
    pub async fn connect(&self, io: BoxIo) -> Result<Secured, HandshakeError> {
        match &self.0 {
            Backend::Rustls(connector) => connector.connect(io).await,
            Backend::Native(connector) => connector.connect(io).await,
        }
    }

    /// What the smarthost has against our certificate, if that is why the connection broke. With TLS 1.3 it looks
    /// at it only when the handshake is over for us (RFC 8446 section 2).
    pub fn refused_ours(&self, error: &io::Error) -> Option<HandshakeError> {
        match &self.0 {
            Backend::Rustls(connector) => connector.refused_ours(error),
            Backend::Native(connector) => connector.refused_ours(error),
        }
    }
}

/// Our side of TLS with a web server, with the roots that a smarthost's side trusts. It is shown no certificate.
pub fn for_web(smarthost: &Smarthost) -> Result<rustls::ClientConfig, ClientTlsError> {
    by_rustls::config(smarthost, TlsMin::V1_2, None)
}

/// What is wrong with the certificate of `host`, if that is why an exchange failed.
pub fn refused_certificate(
    error: &(dyn std::error::Error + 'static),
    host: &str,
) -> Option<String> {
    by_rustls::refused_certificate(error, host)
}

impl HandshakeError {
    /// No answer.
    pub fn timed_out(after: std::time::Duration) -> Self {
        Self::new(
            format!("no answer within {} s", after.as_secs()),
            "check tls and port in [smarthost]: implicit and starttls do not understand each other",
        )
    }

    fn new(reason: impl Into<String>, remedy: &'static str) -> Self {
        Self { reason: reason.into(), remedy: Some(remedy), about_certificate: false }
    }

    fn plain(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), remedy: None, about_certificate: false }
    }

    /// About the certificate that was shown, as far as the library tells which.
    fn about(shown: Option<&Shown>, reason: &str, remedy: &'static str) -> Self {
        let which = shown.map(|shown| format!(", {shown},")).unwrap_or_default();
        Self {
            reason: format!("its certificate{which} {reason}"),
            remedy: Some(remedy),
            about_certificate: true,
        }
    }

    fn unknown_issuer(shown: Option<&Shown>) -> Self {
        Self::about(
            shown,
            "was issued by nobody that this machine trusts",
            "if the server is your own, name its CA in ca_file; else a box on the way opens the connection: \
             take this machine out of its TLS inspection",
        )
    }

    fn other_name(shown: Option<&Shown>, host: &str) -> Self {
        Self::about(
            shown,
            &format!("is not for the name {host}"),
            "write the name that the certificate has as host in [smarthost]",
        )
    }

    fn out_of_time(shown: Option<&Shown>) -> Self {
        Self::about(
            shown,
            "is not valid now",
            "check this machine's clock, else the server's certificate has to be renewed",
        )
    }

    /// The server has ended it because of our certificate, or because there is none.
    fn ours(is_shown: bool, alert: &str) -> Self {
        let (reason, remedy) = if is_shown {
            (
                format!(
                    "the server does not accept the certificate of client_certificate ({alert})"
                ),
                "its CA has to be known there, and its time must not be over; the file holds the CAs between the two as well",
            )
        } else {
            (
                format!("the server asks for a certificate of ours ({alert})"),
                "name one that it knows in client_certificate, and its key in client_key of [smarthost]",
            )
        };
        Self { reason, remedy: Some(remedy), about_certificate: true }
    }

    fn too_old(asked: TlsMin) -> Self {
        Self::new(
            "the server does not take a TLS version as new as tls_min asks for",
            match asked {
                TlsMin::V1_2 => {
                    "TLS 1.2 is the oldest that the relay takes: the server has to be updated"
                }
                TlsMin::V1_3 => "write tls_min = \"1.2\" in [smarthost]",
            },
        )
    }
}

/// The certificates of `ca_file`, in PEM form.
fn extra_roots(smarthost: &Smarthost) -> Result<Option<(&Path, Vec<u8>)>, ClientTlsError> {
    let Some(path) = smarthost.ca_file.as_deref() else { return Ok(None) };
    Ok(Some((path, fs::read(path).map_err(|cause| bad_roots(path, unreadable(path, &cause)))?)))
}

/// The certificate of `client_certificate` with its key.
fn own(smarthost: &Smarthost) -> Result<Option<Identity>, ClientTlsError> {
    let Some(files) = &smarthost.client else { return Ok(None) };
    let read = Identity::read(&files.certificate, &files.private_key);
    read.map(Some).map_err(|error| {
        let key = match &error {
            CertificateError::File { path, .. } | CertificateError::Content { path, .. }
                if *path == files.certificate =>
            {
                "client_certificate"
            }
            _ => "client_key",
        };
        let remedy = match &error {
            CertificateError::File { .. } => "the relay's user must be able to read it",
            CertificateError::Content { .. } => {
                "openssl x509 -inform der makes PEM of a certificate that Windows has written, openssl pkey of a key"
            }
            _ => "name the key that the certificate was made with",
        };
        ClientTlsError::Client { key, reason: error.to_string(), remedy }
    })
}

/// The key of `client_key` is none that the library takes.
fn bad_key(
    smarthost: &Smarthost,
    reason: impl fmt::Display,
    remedy: &'static str,
) -> ClientTlsError {
    let path = smarthost.client.as_ref().map(|files| files.private_key.display().to_string());
    let reason = format!("{}: {reason}", path.unwrap_or_default());
    ClientTlsError::Client { key: "client_key", reason, remedy }
}

fn bad_roots(path: &Path, reason: impl ToString) -> ClientTlsError {
    ClientTlsError::Roots { path: path.to_owned(), reason: reason.to_string() }
}
