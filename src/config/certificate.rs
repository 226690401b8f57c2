//! Certificates that the relay proves itself with to others, looked at when the configuration is read.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use openssl::{
    asn1::{Asn1Time, Asn1TimeRef},
    error::ErrorStack,
    pkey::{PKey, Private},
    x509::X509,
};

use super::{file::unreadable, raw::Table};

/// Longer than any chain, and a stop for `/dev/zero`.
const MAX_OCTETS: u64 = 1024 * 1024;

/// Reads a certificate and its key, which is PEM text already. Problems and warnings stand at the two keys; `renew` is
/// the next step when the certificate has ended. That is a warning only: other mailboxes may be well.
pub(super) fn pair(
    table: &Table<'_>,
    (at, path): (&str, &Path),
    (key_at, pem): (&str, &[u8]),
    renew: &str,
) -> Option<PKey<Private>> {
    let certificate = certificate(table, at, path);
    if let Some((reason, hint)) = certificate.as_ref().and_then(|it| out_of_time(it, renew)) {
        table.warning(at, format!("{} {reason}", path.display()), hint);
    }
    // Without the callback OpenSSL would ask for a passphrase on the terminal.
    let Ok(key) = PKey::private_key_from_pem_callback(pem, |_| Ok(0)) else {
        let hint =
            "openssl pkey -in KEY -out NEW makes one of another form, or of one with a passphrase";
        table.problem(key_at, "no private key without a passphrase in PEM form", hint);
        return None;
    };
    let certificate = certificate?;
    if !certificate.public_key().is_ok_and(|public| public.public_eq(&key)) {
        let reason = format!("the key does not belong to the certificate {}", path.display());
        table.problem(key_at, reason, "name the key that the certificate was made with");
        return None;
    }
    Some(key)
}

/// The first certificate of a file, which is the relay's own.
fn certificate(table: &Table<'_>, at: &str, path: &Path) -> Option<X509> {
    let pem = match read(path) {
        Ok(pem) => pem,
        Err(error) => {
            let reason = format!("{} cannot be read: {}", path.display(), unreadable(path, &error));
            table.problem(at, reason, "the relay's user must be able to read it");
            return None;
        }
    };
    let first = X509::stack_from_pem(&pem).ok().and_then(|chain| chain.into_iter().next());
    if first.is_none() {
        let hint = "openssl x509 -inform der -in FILE -out NEW makes one of a file that Windows has written";
        table.problem(at, format!("{}: no certificate in PEM form", path.display()), hint);
    }
    first
}

/// Reads a file to its end, or as much of it as a certificate or a key can have.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut octets = Vec::new();
    File::open(path)?.take(MAX_OCTETS).read_to_end(&mut octets)?;
    Ok(octets)
}

fn out_of_time(certificate: &X509, renew: &str) -> Option<(String, String)> {
    let compared = |time: &Asn1TimeRef| -> Result<_, ErrorStack> {
        time.compare(Asn1Time::days_from_now(0)?.as_ref())
    };
    let (begin, end) = (certificate.not_before(), certificate.not_after());
    if compared(end).is_ok_and(|order| order.is_lt()) {
        return Some((format!("has ended on {end}"), renew.to_owned()));
    }
    let hint = "look whether this machine's clock is right";
    compared(begin)
        .is_ok_and(|order| order.is_gt())
        .then(|| (format!("begins on {begin} only"), hint.to_owned()))
}
