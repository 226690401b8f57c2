//! The configuration: one TOML file in, one typed [`Config`] out, or every problem at once.
//!
//! * [`load`] and [`parse`] never stop at the first problem. Each one names file, line, key, reason
//!   and, where there is one, the next step.
//! * A [`Config`] that exists is one that this version can act on: a key of the interface that it does
//!   not act on is accepted only at the value that changes nothing.
//! * No secret is in any `Debug` or `Display` output: see [`Secret`].
//!
//! `raw` reads the spanned TOML tree, `value` turns one value into a typed one, `resolve` knows the
//! sections, `word` the settings that are one of several words, `secrets` where passwords and tokens come
//! from, `certificate` whether one is a pair with its key; `effective` writes it all back.

mod certificate;
mod effective;
mod file;
mod problem;
mod raw;
mod resolve;
mod secrets;
mod value;
mod word;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;

use crate::policy::{AccessList, Overrides, Patterns, Profile, Quota, sender::Rewrite};

pub use file::{Stamp, open_mode, unreadable};
pub use problem::{Problem, Problems};
pub use resolve::is_domain;
pub use secrets::{Secret, SecretError};

/// Reads and resolves a configuration file. Relative paths in it start at the file's folder.
pub fn load(path: &Path) -> Result<Loaded, Problems> {
    parse(&text(path)?, path)
}

/// Resolves the text of a configuration. `file` is where it came from: for messages and relative paths.
pub fn parse(text: &str, file: &Path) -> Result<Loaded, Problems> {
    let (config, warnings) = read(text, file, resolve::config)?;
    Ok(Loaded { config, warnings })
}

/// Reads of a configuration file only where things are, for commands that need no more. The files that it
/// names are not opened, and nothing else in it has to be right.
pub fn places(path: &Path) -> Result<Places, Problems> {
    let (places, _) = read(&text(path)?, path, |root| Some(resolve::places(root)))?;
    Ok(places)
}

fn text(path: &Path) -> Result<String, Problems> {
    fs::read_to_string(path).map_err(|error| Problems {
        problems: vec![Problem {
            file: path.to_owned(),
            line: None,
            key: String::new(),
            reason: format!("the configuration cannot be read: {}", unreadable(path, &error)),
            hint: Some("name another with --config, or let smtp-uplift init write one".into()),
        }],
        warnings: Vec::new(),
    })
}

fn read<T>(
    text: &str,
    file: &Path,
    resolve: impl FnOnce(raw::Table<'_>) -> Option<T>,
) -> Result<(T, Vec<Problem>), Problems> {
    let report = raw::Report::new(text, file);
    let read = match toml::de::DeTable::parse(text) {
        Ok(tree) => resolve(raw::Table::root(&report, tree.get_ref())),
        Err(error) => {
            // The error's own Display quotes the line, which may hold a password.
            report.syntax(error.span(), error.message());
            None
        }
    };
    report.verdict(read)
}

/// A configuration without problems, and what is odd about it all the same.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What works but should not stay so.
    pub warnings: Vec<Problem>,
}

/// Where things are that commands beside the relay work on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The folder for what outlives a restart.
    pub state_dir: PathBuf,
    /// What the listeners show; `None` means a self-made certificate in `state_dir`.
    pub certificate: Option<CertificateFiles>,
    /// The logins of devices.
    pub users_file: Option<PathBuf>,
    /// The folder of the spool.
    pub spool: PathBuf,
    /// Rules for the smarthost's replies that go before those that are built in.
    pub replies_file: Option<PathBuf>,
    /// Metrics, health and console; `None` if switched off.
    pub admin: Option<SocketAddr>,
}

/// Everything that an operator can set.
#[derive(Debug, Clone)]
pub struct Config {
    /// Our name: in the greeting, in EHLO to the smarthost, in Received.
    pub hostname: String,
    /// The folder for what outlives a restart.
    pub state_dir: PathBuf,
    /// How long a stopping relay lets transactions finish.
    pub drain_timeout: Duration,
    /// What the Received field says of the device.
    pub received: ReceivedDetail,
    /// Where devices connect; at least one.
    pub listeners: Vec<Listener>,
    /// What the listeners show; `None` means a self-made certificate in `state_dir`.
    pub certificate: Option<CertificateFiles>,
    /// What one device, or all of them, may use up.
    pub limits: Limits,
    /// The logins of devices.
    pub users_file: Option<PathBuf>,
    /// The server that we submit to.
    pub smarthost: Smarthost,
    /// The accounts that we submit with; at least one.
    pub mailboxes: Vec<Mailbox>,
    /// What is known of single devices; the first that matches counts.
    pub devices: Vec<Device>,
    /// Whether senders are rewritten that a mailbox may not use.
    pub rewrite: Rewrite,
    /// How a message goes from device to smarthost.
    pub delivery: Delivery,
    /// What is kept when it cannot go there at once.
    pub spool: Spool,
    /// Who is told of what became of messages; `None`: nobody.
    pub notices: Option<Notices>,
    /// Metrics, health and state; `None` if switched off.
    pub admin: Option<Admin>,
    /// What is logged, and how.
    pub log: Log,
}

/// What the Received field that leaves the house says of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReceivedDetail {
    /// Its EHLO name and address.
    #[default]
    Full,
    /// Nothing.
    NoClient,
}

/// One address that devices connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Its name in logs and metrics; the address if none was given.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// How devices are served whose own entry says nothing else.
    pub profile: Profile,
    /// Who may connect.
    pub allow: AccessList,
    /// Whether an operator has said that everybody may send.
    pub open_relay: bool,
    /// Load balancers, which tell of each device in a PROXY header.
    pub proxy_protocol_from: AccessList,
    /// The address of the mailbox that its devices send through; `None`: any.
    pub mailbox: Option<String>,
}

impl Listener {
    /// Whether it takes mail from the whole Internet, since it is told to.
    pub fn is_open_relay(&self) -> bool {
        self.open_relay && self.allow.is_open() && self.profile.takes_anybody()
    }
}

/// What is known of one device, or of several alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its name in logs.
    pub name: String,
    /// How it is told from others.
    pub who: DeviceMatch,
    /// How it is served.
    pub profile: Overrides,
    /// The address of the mailbox that it sends through; `None`: any.
    pub mailbox: Option<String>,
    /// What its 250 means; `None`: as for all.
    pub delivery: Option<DeliveryMode>,
    /// What it may send as; `None`: anything.
    pub senders: Option<Patterns>,
    /// Where it may send; `None`: anywhere.
    pub recipients: Option<Patterns>,
}

/// How a device is told from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceMatch {
    /// By where it connects from.
    Network(IpNet),
    /// By the name that it logs in with.
    Login(String),
}

/// Paths of a certificate chain and its key, both PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The chain, the relay's own certificate first.
    pub certificate: PathBuf,
    /// The key.
    pub private_key: PathBuf,
}

/// What one device, or all of them, may use up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Octets of mail data.
    pub message_size: u64,
    /// Recipients of one message.
    pub recipients: usize,
    /// Sessions at a time.
    pub sessions: usize,
    /// Sessions of one device at a time.
    pub sessions_per_device: usize,
    /// TLS handshakes with devices at a time; one device has a share of them.
    pub handshakes: usize,
    /// Commands of a session since its last message.
    pub commands: usize,
    /// How long a device may take for one command.
    pub command_timeout: Duration,
    /// How long a device may do nothing between transactions.
    pub idle_timeout: Duration,
    /// How long a device may take from MAIL to DATA.
    pub transaction_timeout: Duration,
    /// Octets a second that mail data must reach, averaged over a minute; 0 means any.
    pub data_min_rate: u64,
    /// Messages of one device in a span of time.
    pub messages_per_device: Quota,
    /// Recipients of one device's messages in a span of time.
    pub recipients_per_device: Quota,
}

/// The server that we submit to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Smarthost {
    /// Its name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// When TLS begins.
    pub tls: SmarthostTls,
    /// The oldest TLS that we take.
    pub tls_min: TlsMin,
    /// Whose TLS library is used.
    pub tls_backend: TlsBackend,
    /// PEM roots that are trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Rules for its replies that go before those that are built in.
    pub replies_file: Option<PathBuf>,
    /// How long a transaction waits for a connection: dialling, TLS and login included.
    pub lease_wait: Duration,
    /// What we show in the handshake, where the server asks for a certificate.
    pub client: Option<CertificateFiles>,
}

impl Smarthost {
    /// Whether mailboxes of Exchange Online submit there, with their limits, in any of Microsoft's clouds. High
    /// Volume Email and MX names are other doors.
    pub fn is_exchange_online(&self) -> bool {
        let host = self.host.to_ascii_lowercase();
        let domains = [".office365.com", ".office365.us", ".partner.outlook.cn"];
        domains.iter().any(|domain| host.ends_with(domain)) && !host.starts_with("smtp-hve.")
    }
}

/// When TLS with the smarthost begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SmarthostTls {
    /// After STARTTLS, without which nothing is sent.
    #[default]
    StartTls,
    /// From the first octet.
    Implicit,
    /// Never: only to loopback addresses.
    None,
}

/// The oldest TLS that we take from the smarthost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum TlsMin {
    /// TLS 1.2.
    #[default]
    V1_2,
    /// TLS 1.3.
    V1_3,
}

/// Whose TLS library is used towards the smarthost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TlsBackend {
    /// rustls.
    #[default]
    Rustls,
    /// The platform's, by native-tls: for servers with nothing but RSA key exchange or CBC ciphers.
    Native,
}

/// The account that we submit with.
#[derive(Debug, Clone)]
pub struct Mailbox {
    /// Its address.
    pub address: String,
    /// The name that it logs in with.
    pub username: String,
    /// How it logs in.
    pub auth: MailboxAuth,
    /// Connections to the smarthost at a time: 3 unless said otherwise, 10 without a login.
    pub max_connections: usize,
    /// Messages in any minute; 0 means any number. 28 unless said otherwise, 0 without a login: connector relay and
    /// Direct Send have no such limit.
    pub messages_per_minute: u32,
    /// Recipients in any 24 hours; 0 means any number. 10,000 unless said otherwise, 0 without a login.
    pub recipients_per_day: u32,
    /// Octets of a message that it may send; `None`: what the smarthost says.
    pub message_size: Option<u64>,
    /// Senders that it may use besides its own address.
    pub send_as: Patterns,
    /// The server that it submits to: that of the configuration, but for what it has of its own.
    pub smarthost: Smarthost,
}

/// How the mailbox logs in.
#[derive(Debug, Clone)]
pub enum MailboxAuth {
    /// XOAUTH2 with an access token.
    XOAuth2 {
        /// Where it comes from.
        token: TokenSource,
    },
    /// LOGIN, and PLAIN where LOGIN is not offered.
    Login {
        /// The password.
        password: Secret,
    },
    /// PLAIN (RFC 4616).
    Plain {
        /// The password.
        password: Secret,
    },
    /// Not at all.
    None,
}

/// Where an access token comes from.
#[derive(Debug, Clone)]
pub enum TokenSource {
    /// Somebody else gets it and writes it there.
    Ready(Secret),
    /// The relay asks the identity platform for it.
    OAuth(OAuth),
}

/// How the relay gets access tokens (RFC 6749).
#[derive(Debug, Clone)]
pub struct OAuth {
    /// On whose behalf.
    pub flow: OAuthFlow,
    /// The tenant: its id or one of its domains.
    pub tenant: String,
    /// The application's id, as its registration shows it.
    pub client_id: String,
    /// What the application proves itself with; `None` for a public one, which only people sign in with.
    pub client: Option<ClientProof>,
    /// Where tokens are had: `https://login.microsoftonline.com/TENANT/oauth2/v2.0/token` or the operator's.
    pub token_url: String,
    /// What they are for.
    pub scope: String,
    /// The first refresh token, if somebody has had one elsewhere; its successors lie in `state_dir`.
    pub refresh_token: Option<Secret>,
    /// When the client secret ends, as far as the operator knows.
    pub client_secret_expires: Option<jiff::civil::Date>,
}

/// On whose behalf a token is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OAuthFlow {
    /// The application's own (RFC 6749 section 4.4).
    ClientCredentials,
    /// That of somebody who signs in with `smtp-uplift login`: with a code on another device (RFC 8628), or in a
    /// browser (RFC 7636).
    DeviceCode,
    /// As before, and `refresh_token` may stand in for the first sign-in (RFC 6749 section 6).
    RefreshToken,
}

/// What an application proves itself with.
#[derive(Debug, Clone)]
pub enum ClientProof {
    /// A secret.
    Secret(Secret),
    /// A signed assertion (RFC 7523).
    Certificate {
        /// The certificate that the registration knows, PEM.
        certificate: PathBuf,
        /// Its key, PEM: more than one line.
        private_key: Secret,
    },
}

/// How a message goes from device to smarthost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// What a device's 250 means.
    pub mode: DeliveryMode,
    /// The longest that a device waits for the reply to a command.
    pub device_patience: Duration,
    /// Octets of one message that are kept in memory; what is beyond goes to a file.
    pub replay_memory: u64,
    /// The same for all messages together.
    pub replay_memory_total: u64,
}

/// What a device's 250 means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeliveryMode {
    /// The smarthost has taken the message.
    Stream,
    /// The smarthost has taken it, or the spool if the smarthost does not for now.
    #[default]
    StreamThenSpool,
    /// The spool has taken it.
    Spool,
}

/// What is kept when it cannot go to the smarthost at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spool {
    /// Its folder.
    pub directory: PathBuf,
    /// Octets of mail data that it may hold.
    pub max_size: u64,
    /// How long a message is tried.
    pub expire: Duration,
    /// How long one is held that waits for somebody to change a setting.
    pub held_expire: Duration,
    /// How long to wait after each failed attempt; the last repeats. At least one.
    pub retry: Vec<Duration>,
    /// How long a message is kept that has failed.
    pub keep_failed: Duration,
}

/// Who is told of what became of messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notices {
    /// The address.
    pub to: String,
    /// How notices get there.
    pub way: NoticeWay,
}

/// How notices get to people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoticeWay {
    /// As mail through the mailbox.
    Mailbox,
    /// As mail to this server, without a login.
    Smtp {
        /// Its name or address.
        host: String,
        /// Its port.
        port: u16,
    },
    /// By a program that reads the message from its standard input.
    Command(Vec<String>),
}

/// Where the relay tells of itself.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Where it listens.
    pub address: SocketAddr,
    /// What has to be shown to read more than metrics and health from elsewhere than this machine.
    pub token: Option<Secret>,
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// The shape of a line.
    pub format: LogFormat,
    /// A level, or a list of `target=level`.
    pub level: String,
    /// Which dialogues are kept to be looked at.
    pub transcripts: Transcripts,
}

/// Which dialogues are kept to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transcripts {
    /// None.
    Off,
    /// Those in which something failed.
    #[default]
    Failed,
    /// All.
    All,
}

/// The shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines.
    Json,
}
