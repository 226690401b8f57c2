//! `[smarthost]`, and `[mailbox.smarthost]`, where any of its keys may stand again.

use std::{net::IpAddr, time::Duration};

use toml::de::DeValue;

use super::{REPLIES, TICK, is_domain, oauth::Cloud};
use crate::config::{
    CertificateFiles, Smarthost, SmarthostTls, TlsBackend, TlsMin, certificate,
    file::{open_mode, unreadable},
    raw::{Complaint, Table},
    value,
};

const CERTIFICATE: &str = "certs/client.crt";
const KEY: &str = "certs/client.key";

/// What holds where nothing is said.
pub(super) fn default() -> Smarthost {
    Smarthost {
        host: Cloud::default().smarthost().to_owned(),
        port: 587,
        tls: SmarthostTls::default(),
        tls_min: TlsMin::default(),
        tls_backend: TlsBackend::default(),
        ca_file: None,
        replies_file: None,
        lease_wait: Duration::from_secs(5),
        client: None,
    }
}

/// Reads a section, in which `base` holds where nothing is said.
pub(super) fn smarthost(table: &mut Table<'_>, base: &Smarthost) -> Smarthost {
    let given = table.read("host", host);
    let host_is_known = given.is_some() || !table.has("host");
    let host = given.unwrap_or_else(|| base.host.clone());
    let port = table.number("port", base.port, 1..=u16::MAX);
    let tls = table.one_of("tls", &[]).unwrap_or(base.tls);
    // Where neither is said here, it has been said of the other section.
    let at = ["tls", "host"].into_iter().find(|key| table.has(key));
    if let Some(at) = at
        && tls == SmarthostTls::None
        && host_is_known
        && !is_loopback(&host)
    {
        let reason = format!(
            "mail and password would go to {host} in the clear: none is for loopback addresses only"
        );
        table.problem(at, reason, "write tls = \"starttls\" or \"implicit\"");
    }
    const TOO_OLD: &str = "the way to the smarthost takes nothing older than TLS 1.2";
    let tls_min = table.one_of("tls_min", &[("1.1", TOO_OLD), ("1.0", TOO_OLD), ("1", TOO_OLD)]);
    let tls_backend = table.one_of("tls_backend", &[]);
    let ca_file = table.file("ca_file", "extra-roots.pem");
    let replies_file = table.file("replies_file", REPLIES);
    let lease_wait = table.duration("lease_wait", base.lease_wait, TICK..=Duration::from_secs(600));
    let client = client(table);
    Smarthost {
        host,
        port,
        tls,
        tls_min: tls_min.unwrap_or(base.tls_min),
        tls_backend: tls_backend.unwrap_or(base.tls_backend),
        ca_file: ca_file.or_else(|| base.ca_file.clone()),
        replies_file: replies_file.or_else(|| base.replies_file.clone()),
        lease_wait,
        client: client.or_else(|| base.client.clone()),
    }
}

fn host(value: &DeValue<'_>) -> Result<String, Complaint> {
    let hint = "for example host = \"smtp.office365.com\"";
    let host = value::text(value, hint)?;
    if host.parse::<IpAddr>().is_ok() || is_domain(&host) {
        return Ok(host);
    }
    Err(Complaint::new(format!("{host:?} is not a name or an address"), hint))
}

/// What the relay shows where a server asks for a certificate, as connectors of Exchange Online do.
fn client(table: &mut Table<'_>) -> Option<CertificateFiles> {
    let certificate = table.file("client_certificate", CERTIFICATE);
    let private_key = table.file("client_key", KEY);
    if table.has("client_certificate") || table.has("client_key") {
        table.require("client_certificate", &format!("client_certificate = {CERTIFICATE:?}"));
        table.require("client_key", &format!("client_key = {KEY:?}"));
    }
    let (certificate, private_key) = (certificate?, private_key?);
    if let Some(mode) = open_mode(&private_key, 0o007) {
        let reason =
            format!("{} has mode {mode:04o}: every user can get at it", private_key.display());
        table.warning("client_key", reason, format!("chmod 600 {}", private_key.display()));
    }
    let pem = match certificate::read(&private_key) {
        Ok(pem) => pem,
        Err(error) => {
            let why = unreadable(&private_key, &error);
            let reason = format!("{} cannot be read: {why}", private_key.display());
            table.problem("client_key", reason, "the relay's user must be able to read it");
            return None;
        }
    };
    let renew = "write a new certificate and its key there";
    let own = ("client_certificate", certificate.as_path());
    certificate::pair(table, own, ("client_key", &pem), renew)?;
    Some(CertificateFiles { certificate, private_key })
}

/// Whether nothing that is said to this host leaves the machine.
pub(super) fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host.parse().is_ok_and(|address: IpAddr| address.to_canonical().is_loopback())
}
