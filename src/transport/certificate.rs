//! Certificate and key of a TLS server: read from PEM files, or made once.

use std::{
    fs, io,
    io::Write as _,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use openssl::{
    asn1::{Asn1Time, Asn1TimeRef},
    bn::{BigNum, MsbOption},
    error::ErrorStack,
    hash::MessageDigest,
    pkey::{PKey, Private},
    rsa::Rsa,
    x509::{
        X509, X509Builder, X509NameBuilder,
        extension::{BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAlternativeName},
    },
};
use thiserror::Error;

use crate::config::{CertificateFiles, unreadable};

/// Days that a self-made certificate is good for; devices rarely check, people rarely renew.
pub const DAYS: u32 = 3_650;

/// Days before its end at which a certificate ought to be renewed.
pub const RENEW: i64 = 30;

/// A certificate chain with its key.
#[derive(Clone)]
pub struct Identity {
    /// The server's own certificate.
    pub certificate: X509,
    /// The certificates between it and its root.
    pub chain: Vec<X509>,
    /// Its key.
    pub key: PKey<Private>,
}

/// Why there is no certificate to show.
#[derive(Debug, Error)]
pub enum CertificateError {
    /// A file cannot be read or written.
    #[error("{}: {}", path.display(), unreadable(path, cause))]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// A file holds something else.
    #[error("{}: no {what} in PEM form", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// Certificate and key are not a pair.
    #[error("{}: the key does not belong to the certificate {}", key.display(), certificate.display())]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// OpenSSL cannot make one.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] ErrorStack),
}

impl Identity {
    /// Reads a chain and its key.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, CertificateError> {
        let mut chain = read_chain(certificate)?;
        let own = chain.remove(0);
        let private = read_key(key)?;
        if !own.public_key()?.public_eq(&private) {
            return Err(CertificateError::Mismatch {
                certificate: certificate.to_owned(),
                key: key.to_owned(),
            });
        }
        Ok(Self { certificate: own, chain, key: private })
    }

    /// Makes a self-signed certificate with an RSA key of 2,048 bits, which the oldest devices know.
    pub fn make(names: &[&str]) -> Result<Self, CertificateError> {
        Self::make_for(names, DAYS)
    }

    /// As [`Identity::make`], good for so many days.
    pub fn make_for(names: &[&str], days: u32) -> Result<Self, CertificateError> {
        let key = PKey::from_rsa(Rsa::generate(2048)?)?;
        let mut serial = BigNum::new()?;
        serial.rand(127, MsbOption::MAYBE_ZERO, false)?;
        let mut subject = X509NameBuilder::new()?;
        // A common name has at most 64 characters (RFC 5280 appendix A.1).
        let common: String = names.first().unwrap_or(&"smtp-uplift").chars().take(64).collect();
        subject.append_entry_by_text("CN", &common)?;
        let subject = subject.build();
        let mut builder = X509Builder::new()?;
        builder.set_version(2)?;
        builder.set_serial_number(serial.to_asn1_integer()?.as_ref())?;
        builder.set_subject_name(&subject)?;
        builder.set_issuer_name(&subject)?;
        builder.set_pubkey(&key)?;
        builder.set_not_before(Asn1Time::days_from_now(0)?.as_ref())?;
        builder.set_not_after(Asn1Time::days_from_now(days)?.as_ref())?;
        let mut alternatives = SubjectAlternativeName::new();
        for name in names {
            match name.parse::<IpAddr>() {
                Ok(_) => alternatives.ip(name),
                Err(_) => alternatives.dns(name),
            };
        }
        builder.append_extension(BasicConstraints::new().critical().build()?)?;
        builder
            .append_extension(KeyUsage::new().digital_signature().key_encipherment().build()?)?;
        builder.append_extension(ExtendedKeyUsage::new().server_auth().build()?)?;
        let alternatives = alternatives.build(&builder.x509v3_context(None, None))?;
        builder.append_extension(alternatives)?;
        builder.sign(&key, MessageDigest::sha256())?;
        Ok(Self { certificate: builder.build(), chain: Vec::new(), key })
    }

    /// Reads the self-made certificate of a folder, making it if there is none.
    pub fn read_or_make(folder: &Path, names: &[&str]) -> Result<Self, CertificateError> {
        let CertificateFiles { certificate, private_key: key } = self_made(folder);
        if certificate.exists() && key.exists() {
            return Self::read(&certificate, &key);
        }
        let made = Self::make(names)?;
        let failed = |path: &Path, cause| CertificateError::File { path: path.to_owned(), cause };
        fs::create_dir_all(folder).map_err(|cause| failed(folder, cause))?;
        write_private(&key, &made.key.private_key_to_pem_pkcs8()?)
            .map_err(|cause| failed(&key, cause))?;
        // The certificate goes last: a key without one is made anew.
        fs::write(&certificate, made.certificate.to_pem()?)
            .map_err(|cause| failed(&certificate, cause))?;
        Ok(made)
    }

    /// When the certificate ends, in seconds since 1970.
    pub fn not_after(&self) -> Option<i64> {
        unix(self.certificate.not_after())
    }
}

/// Where the self-made certificate of a folder is, once it is made.
pub fn self_made(folder: &Path) -> CertificateFiles {
    CertificateFiles {
        certificate: folder.join("self-made.crt"),
        private_key: folder.join("self-made.key"),
    }
}

/// Reads a chain, the server's own certificate first; at least one.
pub fn read_chain(path: &Path) -> Result<Vec<X509>, CertificateError> {
    let content = || CertificateError::Content { path: path.to_owned(), what: "certificate" };
    let chain = X509::stack_from_pem(&read_pem(path)?).map_err(|_| content())?;
    if chain.is_empty() { Err(content()) } else { Ok(chain) }
}

/// Reads a key that has no passphrase.
pub fn read_key(path: &Path) -> Result<PKey<Private>, CertificateError> {
    // Without the callback OpenSSL would ask for a passphrase on the terminal.
    PKey::private_key_from_pem_callback(&read_pem(path)?, |_| Ok(0)).map_err(|_| {
        CertificateError::Content {
            path: path.to_owned(),
            what: "private key without a passphrase",
        }
    })
}

/// Days that are left of a certificate's time, negative once it has ended; both times in seconds since 1970.
pub fn days_left(not_after: i64, now: i64) -> i64 {
    (not_after - now).div_euclid(86_400)
}

/// A time of a certificate in seconds since 1970.
pub fn unix(time: &Asn1TimeRef) -> Option<i64> {
    let span = Asn1Time::from_unix(0).ok()?.diff(time).ok()?;
    Some(i64::from(span.days) * 86_400 + i64::from(span.secs))
}

fn read_pem(path: &Path) -> Result<Vec<u8>, CertificateError> {
    fs::read(path).map_err(|cause| CertificateError::File { path: path.to_owned(), cause })
}

fn write_private(path: &Path, octets: &[u8]) -> io::Result<()> {
    let _ = fs::remove_file(path);
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(octets)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn it_is_made_once_and_the_key_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let first = Identity::read_or_make(folder.path(), &["relay.example", "127.0.0.1"]).unwrap();
        let again = Identity::read_or_make(folder.path(), &["other.example"]).unwrap();
        assert_eq!(first.certificate.to_pem().unwrap(), again.certificate.to_pem().unwrap());
        let mode = fs::metadata(folder.path().join("self-made.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let names = first.certificate.subject_alt_names().unwrap();
        assert_eq!(
            (names[0].dnsname(), names[1].ipaddress()),
            (Some("relay.example"), Some(&[127, 0, 0, 1][..]))
        );
        assert!(first.not_after().unwrap() > 2_000_000_000);
        assert_eq!(first.key.rsa().unwrap().size(), 256);
    }

    #[test]
    fn what_is_wrong_with_a_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["one", "two"] {
            Identity::read_or_make(&path(name), &[name]).unwrap();
        }
        fs::write(path("empty"), "").unwrap();
        let said = |certificate: PathBuf, key: PathBuf| {
            Identity::read(&certificate, &key).err().unwrap().to_string()
        };
        assert!(said(path("none"), path("none")).contains("No such file"));
        assert!(said(path("empty"), path("empty")).ends_with("no certificate in PEM form"));
        assert!(
            said(path("one/self-made.crt"), path("empty"))
                .ends_with("no private key without a passphrase in PEM form")
        );
        assert!(
            said(path("one/self-made.crt"), path("two/self-made.key")).contains("does not belong")
        );
    }
}
