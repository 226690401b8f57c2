//! The smarthost's side: one [`connection`], the [`pool`] of a mailbox that lends connections, and the
//! [`transaction`] that runs on a borrowed one.
//!
//! Whoever wants to send waits at the [`desk`]: [`limits`] say whether anybody may, [`turns`] who is next, and the
//! [`ledger`] remembers what was sent. Connections come about at the [`gate`]; [`breaker`] knows when to log in again
//! after a refusal, and [`oauth`] gets access tokens. [`classify`] knows what the smarthost's replies mean;
//! [`examination`] walks the way to it for a doctor.

pub mod breaker;
pub mod classify;
pub mod connection;
pub mod desk;
pub mod examination;
mod expiry;
pub mod gate;
pub mod journal;
pub mod ledger;
pub mod limits;
pub mod oauth;
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

use jiff::Timestamp;
use secrecy::ExposeSecret as _;
use thiserror::Error;

use self::{
    classify::catalogue::Catalogue,
    expiry::Expiry,
    oauth::{TokenError, Tokens},
};
use crate::{
    config::{
        Config, Mailbox, MailboxAuth, Problems, Secret, SecretError, Smarthost, SmarthostTls,
        Stamp, TokenSource, unreadable,
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
/// is read for each login, roots and certificate when they are no longer what they were.
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
    /// Where the relay gets its access tokens itself.
    tokens: Option<Arc<Tokens>>,
    expiry: Arc<Expiry>,
    tls: Option<Mutex<Rooted<ClientTls>>>,
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
    #[error(transparent)]
    Token(#[from] TokenError),
}

impl LoginError {
    /// Whether it passes without anybody's help.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Token(error) if error.is_temporary())
    }

    /// Whether it is about something on this machine, so that looking at it again harms nobody.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Secret(_) => true,
            Self::Token(error) => error.is_local(),
        }
    }
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

/// What was made of the files of TLS (the roots that are trusted, and the certificate that is shown with its key),
/// and what they were then.
struct Rooted<T> {
    made: T,
    files: Vec<Stamp>,
}

/// The states of the files of TLS.
fn stamps(smarthost: &Smarthost) -> Vec<Stamp> {
    let client = smarthost.client.iter().flat_map(|it| [&it.certificate, &it.private_key]);
    smarthost.ca_file.iter().chain(client).map(|path| Stamp::of(path)).collect()
}

impl<T: Clone> Rooted<T> {
    fn new(
        smarthost: &Smarthost,
        make: fn(&Smarthost) -> Result<T, ClientTlsError>,
    ) -> Result<Self, ClientTlsError> {
        // Stamped before it is read: what changes in between is read again.
        let files = stamps(smarthost);
        Ok(Self { made: make(smarthost)?, files })
    }

    /// Files that have changed are read anew; while they cannot be used, the former ones are.
    fn now(
        &mut self,
        smarthost: &Smarthost,
        make: fn(&Smarthost) -> Result<T, ClientTlsError>,
    ) -> T {
        let files = stamps(smarthost);
        if files != self.files {
            match Self::new(smarthost, make) {
                Ok(anew) => {
                    *self = anew;
                    tracing::info!(
                        "the files of TLS with the smarthost have changed and were read again"
                    );
                }
                Err(error) => {
                    self.files = files;
                    tracing::error!(%error, "the files of TLS with the smarthost have changed and cannot be used: the former ones are");
                }
            }
        }
        self.made.clone()
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
            SmarthostTls::StartTls | SmarthostTls::Implicit => {
                Some(Rooted::new(smarthost, ClientTls::new)?)
            }
        };
        let expiry = Arc::new(Expiry::new(&mailbox.address));
        let tokens = match &mailbox.auth {
            MailboxAuth::XOAuth2 { token: TokenSource::OAuth(oauth) } => {
                Some(Tokens::with_expiry(config, mailbox, oauth, Arc::clone(&expiry))?)
            }
            _ => None,
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
            tokens,
            expiry,
            tls: tls.map(Mutex::new),
            hasher: RandomState::new(),
        })
    }

    /// How the mailbox logs in.
    pub(super) fn auth(&self) -> &MailboxAuth {
        &self.auth
    }

    /// Where the relay gets its access tokens itself; `None` where the mailbox logs in with something else.
    pub fn tokens(&self) -> Option<&Arc<Tokens>> {
        self.tokens.as_ref()
    }

    /// When the access token ends that was used last, as far as that is known.
    pub fn token_expires(&self) -> Option<Timestamp> {
        self.expiry.token()
    }

    /// When the client secret, the certificate or the sign-in ends, as far as that is known.
    pub fn credential_expires(&self) -> Option<Timestamp> {
        self.expiry.credential()
    }

    /// An operator's word: whatever the last try has met with, the next one is made at once.
    pub fn try_again(&self) {
        self.dialler.try_again();
        if let Some(tokens) = &self.tokens {
            tokens.try_again();
        }
    }

    /// What the secret is told by that the mailbox logs in with now.
    pub fn credential(&self) -> Result<Credential, LoginError> {
        if let Some(tokens) = &self.tokens {
            return Ok(Credential(tokens.credential()?));
        }
        let Some(secret) = self.secret() else { return Ok(Credential::default()) };
        let secret = secret.load()?;
        Ok(self.known_by(secret.expose_secret()))
    }

    /// How to log in now, and what that secret is told by.
    pub async fn login(&self) -> Result<(Login, Credential), LoginError> {
        let user = self.username.clone();
        if let Some(tokens) = &self.tokens {
            let token = tokens.token().await?;
            // Of what it was asked for with: the token is another one every hour.
            let credential = Credential(tokens.credential()?);
            let secret = token.secret.expose_secret().to_owned();
            return Ok((Login::Token(Credentials { user, secret }), credential));
        }
        let Some(secret) = self.secret() else { return Ok((Login::None, Credential::default())) };
        let secret = secret.load()?.expose_secret().to_owned();
        let credential = self.known_by(&secret);
        let credentials = Credentials { user, secret };
        let login = match &self.auth {
            MailboxAuth::XOAuth2 { .. } => Login::Token(credentials),
            auth => {
                let prefer_plain = matches!(auth, MailboxAuth::Plain { .. });
                Login::Password { credentials, prefer_plain }
            }
        };
        Ok((login, credential))
    }

    /// The smarthost has refused what was logged in with. Returns whether the next [`Target::login`] brings another
    /// token, asked for because of this.
    pub fn refused(&self, login: &Login) -> bool {
        match (&self.tokens, login) {
            (Some(tokens), Login::Token(credentials)) => tokens.refused(&credentials.secret),
            _ => false,
        }
    }

    /// The secret that the mailbox logs in with as it is.
    fn secret(&self) -> Option<&Secret> {
        match &self.auth {
            MailboxAuth::XOAuth2 { token: TokenSource::Ready(secret) }
            | MailboxAuth::Login { password: secret }
            | MailboxAuth::Plain { password: secret } => Some(secret),
            MailboxAuth::XOAuth2 { token: TokenSource::OAuth(_) } | MailboxAuth::None => None,
        }
    }

    fn known_by(&self, secret: &str) -> Credential {
        if matches!(self.auth, MailboxAuth::XOAuth2 { .. }) {
            self.expiry.token_ends(token::expires(secret));
        }
        Credential(self.hasher.hash_one(secret))
    }

    /// TLS with the smarthost, if it is to have any.
    fn tls(&self) -> Option<ClientTls> {
        let mut tls = self.tls.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        Some(tls.now(&self.smarthost, ClientTls::new))
    }
}
