//! `smtp-uplift cert new`

use std::{
    fs, io,
    net::IpAddr,
    path::{self, Path, PathBuf},
};

use jiff::Timestamp;

use crate::{
    cli::{FAILED, OK, USAGE, complain, file},
    config,
    transport::certificate::{self, CertificateError, Identity},
};

/// What the files are called.
pub(in crate::cli) const CERTIFICATE: &str = "relay.crt";
pub(in crate::cli) const KEY: &str = "relay.key";

#[derive(clap::Args)]
pub(in crate::cli) struct Args {
    /// The folder to write relay.crt and relay.key to; made if it is not there
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// A name or an address that devices reach the relay by; may be given several times [default: the system's name]
    #[arg(long = "name", value_name = "NAME", value_parser = name)]
    names: Vec<String>,
    /// How long it is good for
    #[arg(long, value_name = "N", default_value_t = certificate::DAYS, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
    /// Replace the certificate and the key that are there
    #[arg(long)]
    force: bool,
}

pub(in crate::cli) fn run(args: &Args) -> u8 {
    let names = match &args.names[..] {
        [] => match name(&gethostname::gethostname().to_string_lossy()) {
            Ok(name) => vec![name],
            Err(error) => {
                return complain(
                    &format!("the system's name {error}; give another with --name"),
                    USAGE,
                );
            }
        },
        names => names.to_vec(),
    };
    let there: Vec<_> = [CERTIFICATE, KEY]
        .map(|name| args.dir.join(name))
        .into_iter()
        .filter(|path| path.symlink_metadata().is_ok())
        .map(|path| path.display().to_string())
        .collect();
    if !there.is_empty() && !args.force {
        let (files, verb) = (there.join(" and "), if there.len() == 1 { "is" } else { "are" });
        let error = format!(
            "{files} {verb} there already; replace with --force, or name another folder with --dir"
        );
        return complain(&error, FAILED);
    }
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let made = Pair::make(&names, args.days).and_then(|pair| {
        let write = if args.force { Pair::replace } else { Pair::create };
        write(&pair, &args.dir).map(|()| pair)
    });
    let pair = match made {
        Ok(pair) => pair,
        Err(error) => return complain(&format!("{error}; name another folder with --dir"), FAILED),
    };
    let quoted = |name| {
        let path = args.dir.join(name);
        let path = path::absolute(&path).unwrap_or(path);
        toml::Value::from(&*path.to_string_lossy()).to_string()
    };
    say!(
        "Made {CERTIFICATE} and {KEY} for {}, good until {}. In the configuration:",
        names.join(", "),
        day(pair.until)
    );
    say!();
    say!("[tls]");
    say!("certificate = {}", quoted(CERTIFICATE));
    say!("private_key = {}", quoted(KEY));
    OK
}

/// A certificate and its key, in PEM.
pub(in crate::cli) struct Pair {
    certificate: Vec<u8>,
    key: Vec<u8>,
    /// When it ends, in seconds since 1970.
    pub(in crate::cli) until: i64,
}

impl Pair {
    pub(in crate::cli) fn make(names: &[&str], days: u32) -> Result<Self, CertificateError> {
        let made = Identity::make_for(names, days)?;
        Ok(Self {
            certificate: made.certificate.to_pem()?,
            key: made.key.private_key_to_pem_pkcs8()?,
            until: made.not_after().unwrap_or_default(),
        })
    }

    /// Writes both where neither is yet.
    pub(in crate::cli) fn create(&self, folder: &Path) -> Result<(), CertificateError> {
        self.write(folder, file::create)
    }

    /// Writes both in the place of others.
    fn replace(&self, folder: &Path) -> Result<(), CertificateError> {
        self.write(folder, |path, octets, mode| match path.symlink_metadata() {
            Ok(_) => file::replace(path, octets),
            Err(_) => file::create(path, octets, mode),
        })
    }

    fn write(
        &self,
        folder: &Path,
        write: impl Fn(&Path, &[u8], u32) -> io::Result<()>,
    ) -> Result<(), CertificateError> {
        let failed = |path: &Path, cause| CertificateError::File { path: path.to_owned(), cause };
        fs::create_dir_all(folder).map_err(|cause| failed(folder, cause))?;
        for (name, octets, mode) in
            [(KEY, &self.key, file::PRIVATE), (CERTIFICATE, &self.certificate, file::PUBLIC)]
        {
            let path = folder.join(name);
            write(&path, octets, mode).map_err(|cause| failed(&path, cause))?;
        }
        Ok(())
    }
}

/// A day as people write it.
pub(in crate::cli) fn day(seconds: i64) -> String {
    let time = Timestamp::from_second(seconds).unwrap_or_default();
    time.strftime("%Y-%m-%d").to_string()
}

/// A name that a certificate can be for.
fn name(text: &str) -> Result<String, String> {
    let domain = text.strip_prefix("*.").unwrap_or(text);
    if text.parse::<IpAddr>().is_ok() || config::is_domain(domain) {
        return Ok(text.to_owned());
    }
    Err(format!("{text:?} is neither a domain name nor an address"))
}
