//! The smarthost's side: one [`connection`], the [`pool`] of a mailbox that lends connections, and the
//! [`transaction`] that runs on a borrowed one.
//!
//! Whoever wants to send waits at the [`desk`]: [`limits`] say whether anybody may, [`turns`] who is next, and the
//! [`ledger`] remembers what was sent. Connections come about at the [`gate`]; [`breaker`] knows when to log in again
//! after a refusal. [`classify`] knows what the smarthost's replies mean; [`examination`] walks the way to it for a
//! doctor.

pub mod breaker;
pub mod classify;
pub mod connection;
pub mod desk;
pub mod examination;
pub mod gate;
pub mod journal;
pub mod ledger;
pub mod limits;
pub mod pool;
mod token;
pub mod transaction;
pub mod turns;

use std::{
    fs,
    hash::{BuildHasher as _, RandomState},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use secrecy::ExposeSecret as _;
use thiserror::Error;

use self::classify::catalogue::Catalogue;
use crate::{
    config::{
        Config, Mailbox, MailboxAuth, Problems, SecretError, Smarthost, SmarthostTls, Stamp,
        TokenSource, unreadable,
    },
    proto::sasl::{Credentials, Login},
    transport::{
        client_tls::{ClientTls, ClientTlsError},
        dial::Dialler,
    },
};

/// Exchange Online answers a bad login only after some seconds, on purpose.
const PATIENCE: Duration = Duration::from_secs(90);

/// Where to connect, as whom, and how to speak there. Files that it needs may change at any time: the secret
/// is read for each login, the roots when they are no longer what they were.
pub struct Target {
    /// Our name.
    pub hostname: String,
    /// The server.
    pub smarthost: Smarthost,
    /// The mailbox's address: its name in logs and metrics.
    pub mailbox: String,
    /// The name that it logs in with.
    pub username: String,
    /// Octets of a message that it may send; `None`: what the smarthost says.
    pub message_size: Option<u64>,
    /// How long one reply of the dialogue before the first MAIL may take.
    pub patience: Duration,
    /// What its replies mean.
    pub catalogue: Arc<Catalogue>,
    dialler: Dialler,
    auth: MailboxAuth,
    tls: Option<Mutex<Tls>>,
    hasher: RandomState,
}

/// Why there is no way to the smarthost.
#[derive(Debug, Error)]
pub enum TargetError {
    /// There are no TLS settings for it.
    #[error("smarthost: {0}")]
    Tls(#[from] ClientTlsError),
    /// The operator's rules are bad.
    #[error("replies_file {}: {}", path.display(), unreadable(path, cause))]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The operator's rules are bad.
    #[error("{0}")]
    Rules(#[from] Problems),
}

/// Why there is nothing to log in with.
#[derive(Debug, Error)]
pub enum LoginError {
    /// The password or token cannot be read.
    #[error("the mailbox's secret cannot be read: {0}")]
    Secret(#[from] SecretError),
    /// No token was had.
    #[error("there are no tokens yet")]
    NoTokens,
}

/// The built-in rules, and an operator's before them.
pub fn catalogue(own: Option<&Path>) -> Result<Arc<Catalogue>, TargetError> {
    let read = |path: &Path| {
        fs::read_to_string(path).map_err(|cause| TargetError::File { path: path.to_owned(), cause })
    };
    let text = own.map(read).transpose()?.unwrap_or_default();
    Ok(Arc::new(Catalogue::with_own(&text, own.unwrap_or(Path::new("")))?))
}

/// Tells one secret from another without being one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credential(u64);

/// TLS settings, and what `ca_file` was when they were made.
struct Tls {
    client: Arc<ClientTls>,
    roots: Option<Stamp>,
}

impl Tls {
    fn new(smarthost: &Smarthost) -> Result<Self, ClientTlsError> {
        // Stamped before it is read: what changes in between is read again.
        let roots = smarthost.ca_file.as_deref().map(Stamp::of);
        Ok(Self { client: Arc::new(ClientTls::new(smarthost)?), roots })
    }
}

impl Target {
    /// A mailbox of a configuration, and its smarthost.
    pub fn new(config: &Config, mailbox: &Mailbox) -> Result<Self, TargetError> {
        let Smarthost { host, port, .. } = &mailbox.smarthost;
        Self::with_dialler(config, mailbox, Dialler::tcp(host, *port))
    }

    /// A mailbox of a configuration, and its smarthost, with another way to get there.
    pub fn with_dialler(
        config: &Config,
        mailbox: &Mailbox,
        dialler: Dialler,
    ) -> Result<Self, TargetError> {
        let smarthost = &mailbox.smarthost;
        let tls = match smarthost.tls {
            SmarthostTls::None => None,
            SmarthostTls::StartTls | SmarthostTls::Implicit => Some(Tls::new(smarthost)?),
        };
        Ok(Self {
            hostname: config.hostname.clone(),
            smarthost: smarthost.clone(),
            mailbox: mailbox.address.clone(),
            username: mailbox.username.clone(),
            message_size: mailbox.message_size,
            patience: PATIENCE,
            catalogue: catalogue(smarthost.replies_file.as_deref())?,
            dialler,
            auth: mailbox.auth.clone(),
            tls: tls.map(Mutex::new),
            hasher: RandomState::new(),
        })
    }

    /// How the mailbox logs in.
    pub(super) fn auth(&self) -> &MailboxAuth {
        &self.auth
    }

    /// What the secret is told by that the mailbox logs in with now.
    pub fn credential(&self) -> Result<Credential, LoginError> {
        let secret = match &self.auth {
            MailboxAuth::None => return Ok(Credential::default()),
            MailboxAuth::XOAuth2 { token: TokenSource::Ready(secret) }
            | MailboxAuth::Login { password: secret }
            | MailboxAuth::Plain { password: secret } => secret,
            MailboxAuth::XOAuth2 { token: TokenSource::OAuth(_) } => {
                return Err(LoginError::NoTokens);
            }
        };
        Ok(Credential(self.hasher.hash_one(secret.load()?.expose_secret())))
    }

    /// How to log in now, and what that secret is told by.
    pub async fn login(&self) -> Result<(Login, Credential), LoginError> {
        let (secret, token, prefer_plain) = match &self.auth {
            MailboxAuth::None => return Ok((Login::None, Credential::default())),
            MailboxAuth::XOAuth2 { token: TokenSource::Ready(token) } => (token, true, false),
            MailboxAuth::XOAuth2 { token: TokenSource::OAuth(_) } => {
                return Err(LoginError::NoTokens);
            }
            MailboxAuth::Login { password } => (password, false, false),
            MailboxAuth::Plain { password } => (password, false, true),
        };
        let secret = secret.load()?.expose_secret().to_owned();
        let credential = Credential(self.hasher.hash_one(&secret));
        let credentials = Credentials { user: self.username.clone(), secret };
        let login = if token {
            Login::Token(credentials)
        } else {
            Login::Password { credentials, prefer_plain }
        };
        Ok((login, credential))
    }

    /// An operator's word: whatever the last try has met with, the next one is made at once.
    pub fn try_again(&self) {
        self.dialler.try_again();
    }

    /// The smarthost has refused what was logged in with. Returns whether the next [`Target::login`] brings another
    /// token, asked for because of this.
    pub fn refused(&self, _login: &Login) -> bool {
        false
    }

    /// TLS with the smarthost, if it is to have any. Roots that have changed are read anew; while they cannot
    /// be used, the former ones are.
    fn tls(&self) -> Option<Arc<ClientTls>> {
        let mut tls = self.tls.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        let roots = self.smarthost.ca_file.as_deref().map(Stamp::of);
        if roots != tls.roots {
            match Tls::new(&self.smarthost) {
                Ok(anew) => {
                    *tls = anew;
                    tracing::info!("ca_file has changed and was read again");
                }
                Err(error) => {
                    tls.roots = roots;
                    tracing::error!(%error, "ca_file has changed and cannot be used: the former one is");
                }
            }
        }
        Some(Arc::clone(&tls.client))
    }
}
