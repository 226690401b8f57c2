//! How the relay gets access tokens, against an endpoint that answers as it is told to.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

#[path = "oauth/answers.rs"]
mod answers;
#[path = "oauth/endpoint.rs"]
mod endpoint;
#[path = "oauth/login.rs"]
mod login;
#[path = "oauth/relay.rs"]
mod relay;
#[path = "oauth/sign_in.rs"]
mod sign_in;
#[path = "oauth/tokens.rs"]
mod tokens;

use std::{fs, path::Path, sync::Arc};

use endpoint::Endpoint;
use smtp_uplift::{
    config::{self, ClientProof, Config, MailboxAuth, OAuth, OAuthFlow, Secret, TokenSource},
    smarthost::{Target, oauth::Tokens},
};
use tempfile::TempDir;

const MAILBOX: &str = common::MAILBOX;
/// Nothing of this may be shown anywhere.
const SECRET: &str = "client~secret+that/nobody=may read";
const REFRESH: &str = "refresh-token-that-nobody-may-read";
const TOKEN: &str = "access-token-that-nobody-may-read";

/// An application with a secret that acts for itself.
fn application(endpoint: &Endpoint, folder: &Path) -> OAuth {
    let secret = folder.join("client-secret");
    fs::write(&secret, SECRET).unwrap();
    OAuth {
        flow: OAuthFlow::ClientCredentials,
        tenant: "contoso.example".into(),
        client_id: "the-client".into(),
        client: Some(ClientProof::Secret(Secret::file(secret))),
        token_url: endpoint.url(),
        scope: "https://outlook.office365.com/.default".into(),
        refresh_token: None,
        client_secret_expires: None,
    }
}

/// A public application that somebody signs in for; there is a refresh token to begin with.
fn signed_in(endpoint: &Endpoint, folder: &Path) -> OAuth {
    let refresh = folder.join("refresh-token");
    fs::write(&refresh, REFRESH).unwrap();
    OAuth {
        flow: OAuthFlow::RefreshToken,
        client: None,
        refresh_token: Some(Secret::file(refresh)),
        scope: "https://outlook.office.com/SMTP.Send offline_access".into(),
        ..application(endpoint, folder)
    }
}

/// A configuration whose mailbox gets its tokens like this. Keys that are no more than text come from `lines`.
fn configured(oauth: OAuth, folder: &Path, lines: &str) -> Config {
    let text = format!(
        "hostname = \"relay.example\"\nstate_dir = \"state\"\n[[listener]]\nname = \"lan\"\naddress = \"127.0.0.1:0\"\n\
         [smarthost]\nhost = \"localhost\"\nport = 1\n{lines}\n[[mailbox]]\naddress = \"{MAILBOX}\"\npassword = \"x\"\n"
    );
    let mut config = config::parse(&text, &folder.join("smtp-uplift.toml")).unwrap().config;
    config.mailboxes[0].auth = MailboxAuth::XOAuth2 { token: TokenSource::OAuth(oauth) };
    config
}

/// A mailbox with its endpoint.
struct Desk {
    endpoint: Endpoint,
    target: Arc<Target>,
    config: Config,
    folder: TempDir,
}

impl Desk {
    async fn new() -> Self {
        Self::with(application).await
    }

    async fn with(oauth: impl FnOnce(&Endpoint, &Path) -> OAuth) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let endpoint = Endpoint::start().await;
        let config = configured(oauth(&endpoint, folder.path()), folder.path(), "");
        let target = Arc::new(Target::new(&config, &config.mailboxes[0]).unwrap());
        Self { endpoint, target, config, folder }
    }

    fn tokens(&self) -> &Arc<Tokens> {
        self.target.tokens().unwrap()
    }

    /// The same mailbox after a restart.
    fn restart(&mut self) {
        self.target = Arc::new(Target::new(&self.config, &self.config.mailboxes[0]).unwrap());
    }

    /// The token that the mailbox logs in with now, or what is said instead.
    async fn token(&self) -> Result<String, String> {
        use secrecy::ExposeSecret as _;
        match self.tokens().token().await {
            Ok(token) => Ok(token.secret.expose_secret().to_owned()),
            Err(error) => {
                let said = format!("{error} {error:?}");
                for secret in [SECRET, REFRESH, TOKEN] {
                    assert!(!said.contains(secret), "{secret} in {said}");
                }
                Err(error.to_string())
            }
        }
    }

    /// Where the sign-in is kept.
    fn kept(&self) -> std::path::PathBuf {
        self.folder.path().join(format!("state/tokens/{MAILBOX}.json"))
    }
}

/// Time passes for timers; sockets are not waited for meanwhile.
async fn pass(seconds: u64) {
    tokio::time::pause();
    tokio::time::advance(std::time::Duration::from_secs(seconds)).await;
    tokio::time::resume();
}
