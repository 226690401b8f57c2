//! A relay and its smarthost on loopback, for the tests of themes.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

pub mod memory;

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use argon2::{Argon2, Params, PasswordHasher as _, password_hash::SaltString};
use openssl::ssl::SslVersion;
use smtp_uplift::{
    config,
    sandbox::{Sandbox, device::Device, scenario::Scenario},
    service::Service,
    telemetry::metrics::Metrics,
    transport::device_tls::DeviceTls,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};

pub const MAILBOX: &str = "scanner@example.com";
pub const PASSWORD: &str = "correct horse battery staple";
pub const MESSAGE: &str = "From: a@example.com\r\nSubject: scan\r\n\r\nline\r\n..stuffed\r\n";

/// Every verdict is the smarthost's own.
pub const STREAM: &str = "mode = \"stream\"";
/// The relay keeps what the smarthost does not take at once.
pub const KEEP: &str = "mode = \"stream-then-spool\"";
/// The relay keeps everything.
pub const SPOOL: &str = "mode = \"spool\"";

/// A running relay with its smarthost.
pub struct House {
    pub sandbox: Sandbox,
    pub service: Service,
    pub folder: TempDir,
}

/// What differs from the usual house.
pub struct Plan<'a> {
    pub scenario: Scenario,
    /// Lines for the `[[listener]]` section.
    pub listener: &'a str,
    /// Lines for the `[smarthost]` section.
    pub smarthost: &'a str,
    /// The `[[mailbox]]` section's way to log in.
    pub mailbox: &'a str,
    /// Lines for the `[delivery]` section, the mode first.
    pub delivery: &'a str,
    /// The admin address.
    pub admin: &'a str,
    /// Further sections.
    pub more: &'a str,
    /// Whether to wait for the first login, or its failure.
    pub settled: bool,
}

impl Default for Plan<'_> {
    fn default() -> Self {
        Self {
            scenario: Scenario { password: Some(PASSWORD.into()), ..Scenario::default() },
            listener: "",
            smarthost: "",
            mailbox: "password = { file = \"password\" }",
            delivery: STREAM,
            admin: "127.0.0.1:0",
            more: "",
            settled: true,
        }
    }
}

impl House {
    pub async fn new() -> Self {
        Self::build(Plan::default()).await
    }

    pub async fn build(plan: Plan<'_>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let sandbox =
            Sandbox::start(([127, 0, 0, 1], 0).into(), plan.scenario.clone()).await.unwrap();
        let text =
            configuration(&plan, sandbox.address().port(), sandbox.certificate(), folder.path());
        let config = config::parse(&text, &folder.path().join("smtp-uplift.toml")).unwrap().config;
        let house = Self { sandbox, service: Service::start(config).await.unwrap(), folder };
        while plan.settled && !house.service.metrics().render().contains("upstream_connects_total{")
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        house
    }

    pub fn address(&self) -> SocketAddr {
        self.service.address("lan").unwrap()
    }

    /// A device that has said EHLO.
    pub async fn device(&self) -> Device {
        let mut device = Device::connect(self.address()).await.unwrap();
        device.say("EHLO copier").await.unwrap();
        device
    }

    /// A device that has said EHLO over TLS 1.0.
    pub async fn old_device(&self) -> Device {
        let tls = DeviceTls::new(SslVersion::TLS1, None).unwrap();
        let mut device = self.device().await.starttls(&tls).await.unwrap();
        device.say("EHLO copier").await.unwrap();
        device
    }

    /// Sends the usual message; returns what the device hears.
    pub async fn send(&self, from: &str, to: &[&str]) -> String {
        let mut device = self.device().await;
        let heard = device.send(from, to, MESSAGE).await.unwrap().to_string();
        device.say("QUIT").await.unwrap();
        heard
    }

    /// The value of a metric, by the whole of its name and labels.
    pub fn metric(&self, name: &str) -> f64 {
        metric(self.service.metrics(), name)
    }
}

/// A device that has said EHLO, from an address of its own where the system has that many on loopback.
pub async fn own_device(relay: SocketAddr, number: usize) -> Device {
    let socket = TcpSocket::new_v4().unwrap();
    if cfg!(target_os = "linux") {
        let [.., high, low] = u32::try_from(256 + number).unwrap().to_be_bytes();
        socket.bind(([127, 0, high, low], 0).into()).unwrap();
    }
    let stream = socket.connect(relay).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut device = Device::over(Box::new(stream)).await.unwrap();
    device.say("EHLO copier").await.unwrap();
    device
}

fn metric(metrics: &Metrics, name: &str) -> f64 {
    value(&metrics.render(), name)
}

fn value(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("smtp_uplift_{name} ")));
    line.map_or(0.0, |value| value.parse().unwrap())
}

/// Writes a house's files; returns the text of its configuration.
pub fn configuration(plan: &Plan<'_>, port: u16, certificate: &[u8], folder: &Path) -> String {
    fs::write(folder.join("sandbox.crt"), certificate).unwrap();
    fs::write(folder.join("password"), PASSWORD).unwrap();
    fs::set_permissions(folder.join("password"), fs::Permissions::from_mode(0o600)).unwrap();
    let Plan { listener, smarthost, mailbox, delivery, admin, more, .. } = plan;
    // Tests send more than 28 messages a minute, but for those that are about it.
    let said = mailbox.contains("messages_per_minute");
    let limits = if said { "" } else { "messages_per_minute = 0" };
    // Most tests compare what arrives with what was sent, whoever it is from.
    let sender = if more.contains("[sender]") { "" } else { "[sender]\nrewrite = \"keep\"" };
    format!(
        r#"
hostname = "relay.example"
state_dir = "state"
[[listener]]
name = "lan"
address = "127.0.0.1:0"
{listener}
[smarthost]
host = "localhost"
port = {port}
ca_file = "sandbox.crt"
{smarthost}
[[mailbox]]
address = "{MAILBOX}"
{limits}
{mailbox}
[delivery]
{delivery}
{sender}
[admin]
address = "{admin}"
{more}
"#
    )
}

/// A scenario in which one thing goes wrong.
pub fn fault(lines: &str) -> Scenario {
    Scenario::parse(&format!("password = \"{PASSWORD}\"\n[[fault]]\n{lines}")).unwrap()
}

/// A line of a users file takes this behind its colon: argon2id with little memory, quick on purpose.
pub fn hash(password: &str) -> String {
    let quick = Params::new(8, 1, 1, None).unwrap();
    let salt = SaltString::encode_b64(b"12345678").unwrap();
    let argon2 = Argon2::new(Default::default(), Default::default(), quick);
    argon2.hash_password(password.as_bytes(), &salt).unwrap().to_string()
}

/// The value of a metric of a relay in another process.
pub async fn metric_of(admin: SocketAddr, name: &str) -> f64 {
    value(&get(admin, "/metrics", "").await, name)
}

/// What the admin address answers to a GET, with its head; further lines of the request may be given.
pub async fn get(admin: SocketAddr, path: &str, lines: &str) -> String {
    let mut stream = TcpStream::connect(admin).await.unwrap();
    let host = if lines.contains("Host:") { String::new() } else { format!("Host: {admin}\r\n") };
    let request = format!("GET {path} HTTP/1.1\r\n{host}{lines}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}
