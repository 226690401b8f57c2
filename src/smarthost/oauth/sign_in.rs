//! Somebody signs in for a mailbox: with a code on another device (RFC 8628), or in a browser on this machine
//! (`browser`). What comes of it is kept, and a running relay takes it up.

mod browser;

use std::{path::PathBuf, sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::Timestamp;
use openssl::rand::rand_bytes;
use secrecy::ExposeSecret as _;
use serde::Deserialize;
use tokio::time::{Instant, sleep_until};

use super::{
    TokenError, Tokens,
    endpoint::{self, Form, Granted, Hidden, printable},
    error::Kind,
    fault::Code,
    proof::Proof,
    store::SignIn,
};
use crate::smarthost::{examination::Finding, token};

/// RFC 8628 section 3.2: how often to ask if the endpoint does not say it, and by how much less if it is too often.
const INTERVAL: Duration = Duration::from_secs(5);
/// The longest pause between two questions.
const SLOWEST: Duration = Duration::from_secs(60);
/// The shortest, should the endpoint say that there is to be none.
const FASTEST: Duration = Duration::from_secs(1);

/// What somebody is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// The page to open.
    pub url: String,
    /// The code to enter there; `None` for a browser on this machine.
    pub code: Option<String>,
    /// How long there is time.
    pub within: Duration,
}

/// A sign-in that is kept.
#[derive(Clone, Debug)]
pub struct SignedIn {
    /// Who it was, as far as the token tells.
    pub who: Option<String>,
    /// Whom the token is for, what it allows and until when.
    pub token: Finding,
    /// When the sign-in ends if it is not used.
    pub expires: Timestamp,
    /// Where it is kept.
    pub path: PathBuf,
}

/// RFC 8628 section 3.2.
#[derive(Deserialize)]
struct Begun {
    device_code: Hidden,
    user_code: String,
    #[serde(alias = "verification_url")]
    verification_uri: String,
    expires_in: Option<u64>,
    interval: Option<u64>,
}

/// Lets somebody sign in with a code, on any device that has a browser.
pub async fn with_device_code(
    tokens: &Arc<Tokens>,
    tell: &mut (dyn FnMut(&Prompt) + Send),
) -> Result<SignedIn, TokenError> {
    by_code(tokens, tell).await.map_err(|error| error.of(&tokens.mailbox))
}

/// Lets somebody sign in with a browser on this machine.
pub async fn with_browser(
    tokens: &Arc<Tokens>,
    tell: &mut (dyn FnMut(&Prompt) + Send),
) -> Result<SignedIn, TokenError> {
    browser::sign_in(tokens, tell).await.map_err(|error| error.of(&tokens.mailbox))
}

async fn by_code(
    tokens: &Arc<Tokens>,
    tell: &mut (dyn FnMut(&Prompt) + Send),
) -> Result<SignedIn, TokenError> {
    let oauth = &tokens.oauth;
    let mut form = Form::new(&oauth.client_id);
    form.add("scope", &oauth.scope);
    let begun: Begun = tokens.endpoint.post(&beside(tokens, "devicecode")?, &form).await?;
    let within = Duration::from_secs(begun.expires_in.unwrap_or(900).clamp(1, 3600));
    let deadline = Instant::now() + within;
    tell(&Prompt {
        url: printable(&begun.verification_uri, 200),
        code: Some(printable(&begun.user_code, 50)),
        within,
    });
    let mut interval = begun.interval.map_or(INTERVAL, Duration::from_secs).clamp(FASTEST, SLOWEST);
    loop {
        let next = Instant::now() + interval;
        if next >= deadline {
            return Err(TokenError::refused("expired_token", "", None));
        }
        sleep_until(next).await;
        let mut form = Form::new(&oauth.client_id);
        form.add("grant_type", "urn:ietf:params:oauth:grant-type:device_code");
        form.add("device_code", begun.device_code.0.expose_secret());
        match exchange(tokens, form).await {
            Ok(granted) => return keep(tokens, granted).await,
            Err(error) if error.code == Some(Code::Pending) => {}
            Err(error) if error.code == Some(Code::SlowDown) => {
                interval = (interval + INTERVAL).min(SLOWEST);
            }
            // Section 3.5: what passes is waited for, with growing pauses.
            Err(error) if error.kind == Kind::Passing => {
                interval = error.retry_after.unwrap_or(2 * interval).clamp(INTERVAL, SLOWEST);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Changes what a person has brought about into tokens; the application proves itself if it can.
async fn exchange(tokens: &Arc<Tokens>, mut form: Form) -> Result<Granted, TokenError> {
    Proof::load(&tokens.oauth)?.add_to(&mut form, &tokens.oauth, Timestamp::now())?;
    tokens.endpoint.post(&tokens.oauth.token_url, &form).await
}

/// Keeps what came of a sign-in.
async fn keep(tokens: &Arc<Tokens>, granted: Granted) -> Result<SignedIn, TokenError> {
    let (access, _) = granted.token(&endpoint::host(&tokens.oauth.token_url))?;
    let refresh = granted
        .refresh_token
        .map(|token| token.0)
        .filter(|token| !token.expose_secret().is_empty());
    let refresh = refresh.ok_or_else(|| {
        TokenError::setting(
            "no sign-in: the endpoint gave a token and nothing to get the next one with (refresh_token)",
            "See that scope in [mailbox.oauth] has offline_access in it",
        )
    })?;
    let new = SignIn {
        id: random()?,
        client_id: tokens.oauth.client_id.clone(),
        refresh_token: refresh.expose_secret().to_owned(),
        issued: Timestamp::now(),
        scope: granted.scope.unwrap_or_else(|| tokens.oauth.scope.clone()),
        who: token::who(access.expose_secret()).map(|who| printable(&who, 100)),
        configured: tokens.configured_print(),
    };
    tokens.store.put(&new)?;
    Ok(SignedIn {
        who: new.who,
        token: token::examine(access.expose_secret()),
        expires: new.issued.saturating_add(super::tokens::SIGN_IN_LASTS).unwrap_or(Timestamp::MAX),
        path: tokens.store.path().to_owned(),
    })
}

/// Another URL of the identity platform: Microsoft has them all side by side.
fn beside(tokens: &Tokens, name: &str) -> Result<String, TokenError> {
    let url = &tokens.oauth.token_url;
    let folder = url.strip_suffix("token").filter(|folder| folder.ends_with('/'));
    folder.map(|folder| format!("{folder}{name}")).ok_or_else(|| {
        TokenError::setting(
            format!(
                "no sign-in: token_url does not end in /token, so nobody knows where {name} is"
            ),
            "Correct token_url in [mailbox.oauth], or leave it out for cloud to say it",
        )
    })
}

/// 256 bits that nobody can guess.
fn random() -> Result<String, TokenError> {
    let mut octets = [0; 32];
    rand_bytes(&mut octets).map_err(|error| {
        TokenError::local(
            format!("no sign-in: this machine has no random numbers: {error}"),
            "Try again",
        )
    })?;
    Ok(BASE64_URL_SAFE_NO_PAD.encode(octets))
}
