//! A sign-in in a browser on this machine: an authorization code that comes back to a loopback address, and is of
//! use to nobody without the verifier that stays here (RFC 6749 section 4.1, RFC 7636, RFC 8252).

use std::{
    future::IntoFuture as _,
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, Uri},
    response::{Html, IntoResponse},
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use reqwest::Url;
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{Prompt, SignedIn, beside, exchange, keep, random};
use crate::smarthost::oauth::{
    TokenError, Tokens,
    endpoint::{Form, printable},
    fault,
};

/// How long somebody may take to sign in.
const WITHIN: Duration = Duration::from_secs(300);
/// How long the page may take to reach the browser.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Who comes back here, and what it brought.
#[derive(Clone)]
struct Waiting {
    /// What nobody but the page that we asked for can know.
    state: Arc<str>,
    back: mpsc::Sender<Result<String, TokenError>>,
}

/// Lets somebody sign in with a browser on this machine.
pub async fn with_browser(
    tokens: &Arc<Tokens>,
    tell: &mut (dyn FnMut(&Prompt) + Send),
) -> Result<SignedIn, TokenError> {
    let oauth = &tokens.oauth;
    let (state, verifier) = (random()?, random()?);
    let unheard = |cause: std::io::Error| {
        TokenError::local(
            format!("no sign-in: cannot listen on a loopback address: {cause}"),
            "Sign in with a code instead: leave out --browser",
        )
    };
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(unheard)?;
    let port = socket.local_addr().map_err(unheard)?.port();
    // A browser may take the one or the other for localhost.
    let also = TcpListener::bind((Ipv6Addr::LOCALHOST, port)).await.ok();
    let redirect = format!("http://localhost:{port}");
    let mut page = Url::parse(&beside(tokens, "authorize")?).map_err(|_| {
        TokenError::setting(
            "no sign-in: token_url is not a URL",
            "Correct token_url in [mailbox.oauth]",
        )
    })?;
    page.query_pairs_mut().extend_pairs([
        ("client_id", oauth.client_id.as_str()),
        ("response_type", "code"),
        ("response_mode", "query"),
        ("redirect_uri", &redirect),
        ("scope", &oauth.scope),
        ("state", &state),
        ("login_hint", &tokens.username),
        (
            "code_challenge",
            &BASE64_URL_SAFE_NO_PAD.encode(openssl::sha::sha256(verifier.as_bytes())),
        ),
        ("code_challenge_method", "S256"),
    ]);
    let (back, mut came) = mpsc::channel(1);
    let router = Router::new().fallback(answer).with_state(Waiting { state: state.into(), back });
    let over = CancellationToken::new();
    let serve = |socket: TcpListener| {
        let serving = axum::serve(socket, router.clone());
        serving.with_graceful_shutdown(over.clone().cancelled_owned()).into_future()
    };
    let first = serve(socket);
    let second = also.map(serve);
    let serving = async {
        tokio::join!(first, async { if let Some(second) = second { second.await } else { Ok(()) } })
    };
    tokio::pin!(serving);
    tell(&Prompt { url: page.into(), code: None, within: WITHIN });
    let code = tokio::select! {
        came = timeout(WITHIN, came.recv()) => match came {
            Ok(Some(code)) => code,
            _ => Err(TokenError::refused("expired_token", "", None)),
        },
        _ = &mut serving => Err(TokenError::refused("expired_token", "", None)),
    };
    over.cancel();
    let _ = timeout(LAST_WORDS, serving).await;
    let mut form = Form::new(&oauth.client_id);
    form.add("grant_type", "authorization_code");
    form.add("code", code?);
    form.add("redirect_uri", redirect);
    form.add("code_verifier", verifier);
    form.add("scope", &oauth.scope);
    keep(tokens, exchange(tokens, form).await?).await
}

/// Whatever the browser asks for; only what has our state counts.
async fn answer(State(waiting): State<Waiting>, uri: Uri) -> impl IntoResponse {
    let page = |text: &str| Html(format!("<!DOCTYPE html><title>smtp-uplift</title><p>{text}</p>"));
    let query = uri.query().unwrap_or_default();
    let url = Url::parse(&format!("http://localhost/?{query}"));
    let value = |key: &str| {
        let url = url.as_ref().ok()?;
        url.query_pairs().find(|(name, _)| name == key).map(|(_, value)| value.into_owned())
    };
    if value("state").is_none_or(|state| state != *waiting.state) {
        let text = "This is not the sign-in that smtp-uplift waits for.";
        return (StatusCode::BAD_REQUEST, page(text));
    }
    let (result, text) = match (value("code"), value("error")) {
        (Some(code), None) => (
            Ok(code),
            "The sign-in has come back to smtp-uplift, which says what comes of it. You can close this window.",
        ),
        (_, error) => {
            let description = value("error_description").unwrap_or_default();
            let aadsts = fault::aadsts(&description, &[]);
            let error = printable(&error.unwrap_or_else(|| "no code".to_owned()), 40);
            (
                Err(TokenError::refused(&error, &printable(&description, 200), aadsts)),
                "Nobody was signed in: smtp-uplift says why. You can close this window.",
            )
        }
    };
    // The first one counts; a page that is loaded again brings nothing new.
    let _ = waiting.back.try_send(result);
    (StatusCode::OK, page(text))
}
