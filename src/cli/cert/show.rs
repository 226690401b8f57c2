//! `smtp-uplift cert show`

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use openssl::{
    error::ErrorStack,
    hash::MessageDigest,
    pkey::Id,
    x509::{X509, X509NameRef, X509Ref},
};

use super::new::day;
use crate::{
    cli::{CONFIGURATION, ConfigFile, FAILED, OK, complain},
    config::{self, CertificateFiles},
    transport::certificate,
};

#[derive(clap::Args)]
#[command(after_help = "Exits with 1 if it has ended, or if the key is another one's.")]
pub(in crate::cli) struct Args {
    /// The certificate, PEM [default: the one that the configuration shows to devices]
    #[arg(value_name = "FILE", conflicts_with = "config")]
    file: Option<PathBuf>,
    /// Its key [default: FILE with .key at its end, if that is there]
    #[arg(long, value_name = "FILE", requires = "file")]
    key: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigFile,
}

pub(in crate::cli) fn run(args: &Args) -> u8 {
    let (file, key) = match &args.file {
        Some(file) => {
            let beside = file.with_extension("key");
            (file.clone(), args.key.clone().or(beside.exists().then_some(beside)))
        }
        None => match configured(&args.config) {
            Ok(files) => (files.certificate, Some(files.private_key)),
            Err((error, code)) => return complain(&error, code),
        },
    };
    let chain = match certificate::read_chain(&file) {
        Ok(chain) => chain,
        Err(error) => {
            return complain(&format!("{error}; name the PEM file of a certificate"), FAILED);
        }
    };
    match show(&file, &chain, key.as_deref()) {
        Ok(faults) if faults.is_empty() => OK,
        Ok(faults) => complain(&faults.join("; "), FAILED),
        Err(error) => complain(&format!("{}: {error}", file.display()), FAILED),
    }
}

/// What the relay shows, or why that is unknown and what that is to the caller.
fn configured(config: &ConfigFile) -> Result<CertificateFiles, (String, u8)> {
    let places =
        config::places(&config.path()).map_err(|problems| (problems.to_string(), CONFIGURATION))?;
    if let Some(files) = places.certificate {
        return Ok(files);
    }
    let files = certificate::self_made(&places.state_dir);
    if files.certificate.exists() {
        return Ok(files);
    }
    let error = format!(
        "{} is not there yet: the relay makes it at its first start, as [tls] names no other",
        files.certificate.display()
    );
    Err((error, FAILED))
}

/// Prints what there is to know; returns what makes the certificate useless.
fn show(file: &Path, chain: &[X509], key: Option<&Path>) -> Result<Vec<String>, ErrorStack> {
    let own = &chain[0];
    let now = Timestamp::now().as_second();
    let (mut faults, mut warnings) = (Vec::new(), Vec::new());
    let public = own.public_key()?;
    let (kind, bits) = (public.id(), public.bits());
    say!("certificate  {}", file.display());
    say!("subject      {}", name(own.subject_name()));
    let self_signed = own.issuer_name().to_der()? == own.subject_name().to_der()?;
    let whose = if self_signed { " (self-signed)" } else { "" };
    say!("issuer       {}{whose}", name(own.issuer_name()));
    say!("names        {}", names(own));
    say!("valid        {}", validity(own, now));
    say!("key          {}, {bits} bits", key_kind(kind));
    say!("signature    {}", own.signature_algorithm().object().nid().long_name()?);
    say!("SHA-256      {}", fingerprint(own, MessageDigest::sha256())?);
    say!("SHA-1        {}", fingerprint(own, MessageDigest::sha1())?);
    for above in &chain[1..] {
        say!("chain        {}, {}", name(above.subject_name()), validity(above, now));
    }
    let belongs = match key.map(|path| (path.display(), certificate::read_key(path))) {
        None => "not looked at; name it with --key".to_owned(),
        Some((path, Ok(private))) if public.public_eq(&private) => format!("{path} belongs to it"),
        Some((path, Ok(_))) => {
            faults.push(format!(
                "the key {path} does not belong to the certificate; name the right one, or make both with smtp-uplift cert new"
            ));
            format!("{path} does not belong to it")
        }
        Some((_, Err(error))) => format!("unknown: {error}"),
    };
    say!("private key  {belongs}");
    for shown in chain {
        let whose = name(shown.subject_name());
        let (Some(from), Some(until)) = period(shown) else { continue };
        if until < now {
            faults.push(format!(
                "{whose} has ended on {}; make another with smtp-uplift cert new --force, or ask your CA for one",
                day(until)
            ));
        } else if certificate::days_left(until, now) < certificate::RENEW {
            warnings.push(format!("{whose} ends on {}: renew it", day(until)));
        }
        if from > now {
            warnings.push(format!("{whose} is not valid before {}", day(from)));
        }
    }
    if kind != Id::RSA {
        warnings.push(
            "old devices know RSA keys only, and the relay does not start without one".to_owned(),
        );
    } else if bits > 2048 {
        warnings.push("some old devices fail at RSA keys of more than 2048 bits".to_owned());
    }
    for warning in warnings {
        say!("warning: {warning}");
    }
    Ok(faults)
}

/// `CN=relay.example.lan, O=Example`, without what could move a terminal's cursor.
fn name(name: &X509NameRef) -> String {
    let fields = name.entries().map(|entry| {
        let key = entry.object().nid().short_name().unwrap_or("?");
        let value = entry.data().to_string().unwrap_or_default();
        format!("{key}={}", value.replace(char::is_control, "?"))
    });
    let fields: Vec<_> = fields.collect();
    if fields.is_empty() { "none".to_owned() } else { fields.join(", ") }
}

/// What devices may reach the relay by.
fn names(certificate: &X509Ref) -> String {
    let names = certificate.subject_alt_names().into_iter().flatten().filter_map(|name| {
        let address = name.ipaddress().and_then(|octets| match octets.len() {
            4 => <[u8; 4]>::try_from(octets).ok().map(std::net::IpAddr::from),
            _ => <[u8; 16]>::try_from(octets).ok().map(std::net::IpAddr::from),
        });
        let text = name.dnsname().or(name.email()).or(name.uri());
        text.map(|text| text.replace(char::is_control, "?")).or(address.map(|it| it.to_string()))
    });
    let names: Vec<_> = names.collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn validity(shown: &X509Ref, now: i64) -> String {
    let (Some(from), Some(until)) = period(shown) else {
        return "unknown".to_owned();
    };
    let left = match certificate::days_left(until, now) {
        days if days < 0 => "ended".to_owned(),
        1 => "1 day left".to_owned(),
        days => format!("{days} days left"),
    };
    format!("{} to {} ({left})", day(from), day(until))
}

fn period(certificate: &X509Ref) -> (Option<i64>, Option<i64>) {
    (certificate::unix(certificate.not_before()), certificate::unix(certificate.not_after()))
}

fn key_kind(id: Id) -> &'static str {
    match id {
        Id::RSA => "RSA",
        Id::RSA_PSS => "RSA-PSS",
        Id::EC => "ECDSA",
        Id::ED25519 => "Ed25519",
        Id::ED448 => "Ed448",
        _ => "another kind",
    }
}

fn fingerprint(certificate: &X509Ref, digest: MessageDigest) -> Result<String, ErrorStack> {
    let octets: Vec<_> =
        certificate.digest(digest)?.iter().map(|octet| format!("{octet:02X}")).collect();
    Ok(octets.join(":"))
}
