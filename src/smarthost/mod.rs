//! The smarthost's side: one [`connection`], the [`pool`] of a mailbox that lends connections, and the
//! [`transaction`] that runs on a borrowed one.

pub mod connection;
pub mod pool;
pub mod transaction;

use std::sync::Arc;

use crate::{
    config::{Config, MailboxAuth, SecretError, Smarthost, SmarthostTls},
    proto::sasl::{Credentials, Login},
    transport::client_tls::{ClientTls, ClientTlsError},
};
use secrecy::ExposeSecret as _;

/// Where to connect, as whom, and how to speak there.
#[derive(Clone)]
pub struct Target {
    /// Our name.
    pub hostname: String,
    /// The server.
    pub smarthost: Smarthost,
    /// The mailbox's address: its name in logs and metrics.
    pub mailbox: String,
    /// The name that it logs in with.
    pub username: String,
    auth: MailboxAuth,
    tls: Option<Arc<ClientTls>>,
}

impl Target {
    /// The smarthost and mailbox of a configuration.
    pub fn new(config: &Config) -> Result<Self, ClientTlsError> {
        let tls = match config.smarthost.tls {
            SmarthostTls::None => None,
            SmarthostTls::StartTls | SmarthostTls::Implicit => {
                Some(Arc::new(ClientTls::new(&config.smarthost)?))
            }
        };
        Ok(Self {
            hostname: config.hostname.clone(),
            smarthost: config.smarthost.clone(),
            mailbox: config.mailbox.address.clone(),
            username: config.mailbox.username.clone(),
            auth: config.mailbox.auth.clone(),
            tls,
        })
    }

    /// How to log in now: a secret in a file is read anew, since it may have changed.
    fn login(&self) -> Result<Login, SecretError> {
        let (secret, token, prefer_plain) = match &self.auth {
            MailboxAuth::None => return Ok(Login::None),
            MailboxAuth::XOAuth2 { token } => (token, true, false),
            MailboxAuth::Login { password } => (password, false, false),
            MailboxAuth::Plain { password } => (password, false, true),
        };
        let secret = secret.load()?.expose_secret().to_owned();
        let credentials = Credentials { user: self.username.clone(), secret };
        Ok(if token {
            Login::Token(credentials)
        } else {
            Login::Password { credentials, prefer_plain }
        })
    }
}
