//! A relay with six doors, and the smarthost behind it.

use std::{fs, net::SocketAddr, time::Duration};

use argon2::{Argon2, Params, PasswordHasher as _, password_hash::SaltString};
use smtp_uplift::{
    config,
    sandbox::{Sandbox, scenario::Scenario},
    service::Service,
};
use tempfile::TempDir;

use crate::{
    common::{self, MAILBOX, PASSWORD, Plan},
    needs,
    postfix::Postfix,
};

/// The sender of all messages.
pub(crate) const FROM: &str = "copier@office.example";
/// What devices log in with.
pub(crate) const LOGIN: (&str, &str) = ("copier", "geheim");

/// The profile of what is as old as can be: the system's OpenSSL has no SSLv3.
const OLD: &str = if cfg!(feature = "vendored") { "ancient" } else { "legacy" };

/// How long a message may be under way behind the smarthost.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running relay.
pub(crate) struct Relay {
    pub(crate) service: Service,
    pub(crate) folder: TempDir,
}

/// Where the relay delivers.
pub(crate) enum Smarthost {
    Postfix(Postfix),
    /// Where there is no Postfix: ours.
    Sandbox(Sandbox),
}

impl Relay {
    /// Its listeners. One whose name ends in `-tls` is the implicit sibling of the one with STARTTLS.
    pub(crate) const LISTENERS: [&str; 6] =
        ["lan", "lan-tls", "old", "old-tls", "login", "login-tls"];

    /// Starts one; `mailbox` are lines of that section.
    pub(crate) async fn start(port: u16, certificate: &[u8], mailbox: &str) -> Self {
        Self::start_with(port, certificate, mailbox, "").await
    }

    /// The same with lines for each listener.
    pub(crate) async fn start_with(
        port: u16,
        certificate: &[u8],
        mailbox: &str,
        listener: &str,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut more = "[auth]\nusers_file = \"users.txt\"\n".to_owned();
        for (name, tls, profile, auth) in [
            ("lan-tls", "implicit", "legacy", "none"),
            ("old", "starttls", OLD, "none"),
            ("old-tls", "implicit", OLD, "none"),
            ("login", "starttls", "legacy", "require"),
            ("login-tls", "implicit", "legacy", "require"),
        ] {
            more += &format!(
                "[[listener]]\nname = \"{name}\"\naddress = \"127.0.0.1:0\"\ntls = \"{tls}\"\n\
                 tls_profile = \"{profile}\"\nauth = \"{auth}\"\n{listener}\n"
            );
        }
        fs::write(folder.path().join("users.txt"), users()).unwrap();
        // A machine that is busy otherwise is no reason to refuse.
        let plan = Plan {
            listener,
            smarthost: "lease_wait = \"30s\"",
            mailbox,
            more: &more,
            ..Plan::default()
        };
        let text = common::configuration(&plan, port, certificate, folder.path());
        let config = config::parse(&text, &folder.path().join("relay.toml")).unwrap().config;
        Self { service: Service::start(config).await.unwrap(), folder }
    }

    pub(crate) fn address(&self, listener: &str) -> SocketAddr {
        self.service.address(listener).unwrap()
    }

    /// The value of a metric, by the whole of its name and labels.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.service.metrics().render();
        let value =
            text.lines().find_map(|line| line.strip_prefix(&format!("smtp_uplift_{name} ")));
        value.map_or(0.0, |value| value.parse().unwrap())
    }
}

impl Smarthost {
    /// A Postfix, or what stands in for it.
    pub(crate) async fn start() -> Self {
        if needs::met(&Postfix::needs(), "Postfix as the smarthost (the sandbox takes its place)") {
            return Self::Postfix(Postfix::start());
        }
        let scenario = Scenario { password: Some(PASSWORD.into()), ..Scenario::default() };
        Self::Sandbox(Sandbox::start(([127, 0, 0, 1], 0).into(), scenario).await.unwrap())
    }

    pub(crate) fn port(&self) -> u16 {
        match self {
            Self::Postfix(postfix) => postfix.port,
            Self::Sandbox(sandbox) => sandbox.address().port(),
        }
    }

    pub(crate) fn certificate(&self) -> &[u8] {
        match self {
            Self::Postfix(postfix) => &postfix.certificate,
            Self::Sandbox(sandbox) => sandbox.certificate(),
        }
    }

    /// What came for a recipient, as soon as it has; without the dots of the wire.
    pub(crate) async fn arrived(&self, recipient: &str) -> Result<Vec<u8>, String> {
        let looking = async {
            loop {
                let found = match self {
                    Self::Postfix(postfix) => postfix.arrived(recipient),
                    Self::Sandbox(sandbox) => in_sandbox(sandbox, recipient),
                };
                match found {
                    Some(message) => return message,
                    None => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        };
        tokio::time::timeout(PATIENCE, looking).await.map_err(|_| match self {
            Self::Postfix(postfix) => format!("never arrived: {}", postfix.log()),
            Self::Sandbox(_) => "never arrived".to_owned(),
        })
    }

    /// What the smarthost itself writes into a message that came as it ought to: by TLS, from a login.
    pub(crate) fn stamps(&self) -> Vec<String> {
        match self {
            Self::Postfix(_) => vec![
                "\r\n\t(using TLSv1.3 with cipher ".to_owned(),
                format!("\r\n\t(Authenticated sender: {MAILBOX})\r\n"),
            ],
            Self::Sandbox(_) => vec![],
        }
    }
}

fn in_sandbox(sandbox: &Sandbox, recipient: &str) -> Option<Vec<u8>> {
    let mut deliveries = sandbox.deliveries().into_iter();
    let delivery = deliveries.find(|delivery| delivery.recipients == [recipient])?;
    let lines = delivery.data.split_inclusive(|octet| *octet == b'\n');
    Some(lines.flat_map(|line| line.strip_prefix(b".").unwrap_or(line)).copied().collect())
}

fn users() -> String {
    let (user, password) = LOGIN;
    // The cheapest hash there is.
    let params = Params::new(8, 1, 1, None).unwrap();
    let hasher = Argon2::new(Default::default(), Default::default(), params);
    let salt = SaltString::encode_b64(b"12345678").unwrap();
    format!("{user}:{}\n", hasher.hash_password(password.as_bytes(), &salt).unwrap())
}
