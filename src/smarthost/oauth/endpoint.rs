//! One request to a token endpoint and its answer, over HTTP with a deadline for everything.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use reqwest::{
    Client, Response, StatusCode, Url,
    header::{self, HeaderMap},
    redirect,
};
use secrecy::SecretString;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    TokenError,
    error::Kind,
    fault::{self, Code},
};
use crate::{
    config::Smarthost,
    smarthost::Rooted,
    transport::client_tls::{self, ClientTlsError},
};

const CONNECT: Duration = Duration::from_secs(10);
/// The whole of it: name, connection, TLS, request and answer.
const REQUEST: Duration = Duration::from_secs(30);
/// No token and no error is longer.
const ANSWER: usize = 256 * 1024;
/// The longest that an endpoint is left alone because it asks for that.
const RETRY_AFTER: Duration = Duration::from_secs(3600);
/// How far our clock may be from the endpoint's; an assertion is good for 10 minutes.
const SKEW: i64 = 300;
/// Characters of the endpoint's words that are shown.
const EXCERPT: usize = 200;

/// Where tokens are had, and whom we trust to be it.
pub(super) struct Endpoint {
    smarthost: Smarthost,
    web: Mutex<Rooted<Client>>,
}

/// What is asked: the fields of a form. It has secrets in it, and so no Debug.
pub(super) struct Form(Vec<(&'static str, String)>);

/// The answer of RFC 6749 section 5.1, as it comes.
#[derive(Deserialize)]
pub(super) struct Granted {
    access_token: Option<Hidden>,
    token_type: Option<String>,
    expires_in: Option<Seconds>,
    /// For next time.
    pub(super) refresh_token: Option<Hidden>,
    /// What was granted, where it is not what was asked for.
    pub(super) scope: Option<String>,
}

/// A text that nobody may see.
#[derive(Deserialize)]
#[serde(from = "String")]
pub(super) struct Hidden(pub(super) SecretString);

impl From<String> for Hidden {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

/// Some endpoints write numbers as strings.
#[derive(Deserialize)]
#[serde(untagged)]
enum Seconds {
    Number(f64),
    Text(String),
}

impl Form {
    pub(super) fn new(client_id: &str) -> Self {
        Self(vec![("client_id", client_id.to_owned())])
    }

    pub(super) fn add(&mut self, key: &'static str, value: impl Into<String>) {
        self.0.push((key, value.into()));
    }

    /// What must not be shown, should the endpoint say it back to us: as it is, and as it was sent.
    fn secrets(&self) -> impl Iterator<Item = String> {
        const SECRET: [&str; 6] = [
            "client_secret",
            "client_assertion",
            "refresh_token",
            "code",
            "code_verifier",
            "device_code",
        ];
        let secret = self.0.iter().filter(|(key, value)| SECRET.contains(key) && !value.is_empty());
        secret.flat_map(|(_, value)| {
            let mut sent = Url::parse("http://x").expect("this is a URL");
            sent.query_pairs_mut().append_key_only(value);
            [Some(value.clone()), sent.query().map(str::to_owned)].into_iter().flatten()
        })
    }
}

impl Granted {
    /// The token and how long it is good; `host` is who says so.
    pub(super) fn token(&self, host: &str) -> Result<(SecretString, Duration), TokenError> {
        use secrecy::ExposeSecret as _;
        let wrong = |what: &str| {
            TokenError::passing(
                format!("no token: the answer of {host} {what}"),
                "Check token_url: its answer is that of a token endpoint only in part",
            )
        };
        let token = self
            .access_token
            .as_ref()
            .map(|token| &token.0)
            .ok_or_else(|| wrong("has no access_token"))?;
        // XOAUTH2 takes Ctrl-A for a separator; RFC 6750 section 2.1 has nothing beyond visible ASCII.
        if token.expose_secret().is_empty()
            || !token.expose_secret().bytes().all(|octet| octet.is_ascii_graphic())
        {
            return Err(wrong("has an access_token that is none"));
        }
        if self.token_type.as_ref().is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer")) {
            return Err(wrong("has a token that is not of the type Bearer"));
        }
        // RFC 6749 only recommends to say it; a wrong guess shows at the login, which asks anew.
        let life = match &self.expires_in {
            None => 3600.0,
            Some(Seconds::Number(seconds)) => *seconds,
            Some(Seconds::Text(text)) => text.trim().parse().unwrap_or(0.0),
        };
        if life < 1.0 || life.is_nan() {
            return Err(wrong("has a token that ends at once (expires_in)"));
        }
        Ok((token.clone(), Duration::from_secs_f64(life.min(86_400.0))))
    }
}

impl Endpoint {
    /// Trusts whom the smarthost's side trusts.
    pub(super) fn new(smarthost: &Smarthost) -> Result<Self, ClientTlsError> {
        // The certificate is for the smarthost alone.
        let smarthost = Smarthost { client: None, ..smarthost.clone() };
        Ok(Self { web: Mutex::new(Rooted::new(&smarthost, client)?), smarthost })
    }

    /// Sends a form, and reads the JSON that comes back.
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        url: &str,
        form: &Form,
    ) -> Result<T, TokenError> {
        let host = host(url);
        let client = {
            let mut web = self.web.lock().unwrap_or_else(PoisonError::into_inner);
            web.now(&self.smarthost, client)
        };
        let sent = client.post(url).header(header::ACCEPT, "application/json").form(&form.0).send();
        let response = sent.await.map_err(|error| unreachable(&error, &host))?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = read(response, &host).await?;
        let value: Option<Value> = serde_json::from_slice(&body).ok();
        if let Some(value) = value {
            if let Some(mut error) = refusal(&value, form) {
                if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
                    error.kind = Kind::Passing;
                }
                return Err(with_headers(error, &headers, &host));
            }
            if status.is_success() {
                // What serde says of it would quote it.
                return serde_json::from_value(value).map_err(|_| {
                    TokenError::passing(
                        format!("no token: the JSON of {host} is not what a token endpoint answers (RFC 6749 section 5.1)"),
                        "Check token_url: it ends in /oauth2/v2.0/token at Microsoft",
                    )
                });
            }
        }
        Err(with_headers(unexpected(status, &headers, &body, &host), &headers, &host))
    }
}

fn client(smarthost: &Smarthost) -> Result<Client, ClientTlsError> {
    Client::builder()
        .tls_backend_preconfigured(client_tls::for_web(smarthost)?)
        // Elsewhere than at the configured place a secret has no business.
        .redirect(redirect::Policy::none())
        .retry(reqwest::retry::never())
        .connect_timeout(CONNECT)
        .timeout(REQUEST)
        // One request an hour: a connection that was kept would be stale.
        .pool_max_idle_per_host(0)
        .user_agent(concat!("smtp-uplift/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| ClientTlsError::Settings(error.to_string()))
}

/// The name of an endpoint, for people.
pub(super) fn host(url: &str) -> String {
    let url = Url::parse(url).ok();
    let host = url.as_ref().and_then(Url::host_str).unwrap_or("token_url").to_owned();
    match url.and_then(|url| url.port()) {
        Some(port) => format!("{host}:{port}"),
        None => host,
    }
}

async fn read(mut response: Response, host: &str) -> Result<Vec<u8>, TokenError> {
    let too_long = || {
        TokenError::passing(
            format!(
                "no token: the answer of {host} is longer than {} KiB, and was not read to its end",
                ANSWER / 1024
            ),
            "Check token_url, and whether something on the way answers in the endpoint's place",
        )
    };
    if response.content_length().is_some_and(|length| length > ANSWER as u64) {
        return Err(too_long());
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(&error, host))? {
        if body.len() + chunk.len() > ANSWER {
            return Err(too_long());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The exchange did not come to an end.
fn unreachable(error: &reqwest::Error, host: &str) -> TokenError {
    if error.is_builder() {
        return TokenError::setting(
            format!("no token: {host} cannot be asked, token_url is not a URL"),
            "Correct token_url in [mailbox.oauth]",
        );
    }
    if let Some(reason) = client_tls::refused_certificate(error, host) {
        return TokenError::passing(
            format!("no token: {host} cannot be trusted: {reason}"),
            "Take this machine out of TLS inspection, or name the CA in ca_file of [smarthost]; check this machine's clock",
        );
    }
    if error.is_timeout() {
        let within = if error.is_connect() { CONNECT } else { REQUEST }.as_secs();
        return TokenError::passing(
            format!("no token: {host} did not answer within {within} s"),
            "See that a firewall lets this machine out to it, or set HTTPS_PROXY for the relay",
        );
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    TokenError::passing(
        format!("no token: {host} cannot be reached: {}", printable(&cause.to_string(), EXCERPT)),
        "See that this machine resolves its name and may reach it on its port, through HTTPS_PROXY if that is set",
    )
}

/// What the `error` of an answer means, if it has one.
fn refusal(value: &Value, form: &Form) -> Option<TokenError> {
    let error = value.get("error")?.as_str()?;
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
    let mut description = text("error_description").to_owned();
    let numbers = value.get("error_codes").and_then(Value::as_array);
    let numbers: Vec<u32> = numbers
        .into_iter()
        .flatten()
        .filter_map(|number| u32::try_from(number.as_u64()?).ok())
        .collect();
    let aadsts = fault::aadsts(&description, &numbers);
    let mut error = error.to_owned();
    for secret in form.secrets() {
        description = description.replace(&secret, "[redacted]");
        error = error.replace(&secret, "[redacted]");
    }
    // What follows only says when it was and where to look in Microsoft's own logs.
    let said = description.split(" Trace ID").next().unwrap_or_default();
    let said = said.split(['\r', '\n']).next().unwrap_or_default();
    Some(TokenError::refused(&printable(&error, 40), &printable(said, EXCERPT), aadsts))
}

/// An answer that is none of a token endpoint.
fn unexpected(status: StatusCode, headers: &HeaderMap, body: &[u8], host: &str) -> TokenError {
    let number = status.as_u16();
    if status.is_redirection() {
        let location = headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
        let to =
            location.map_or_else(|| "nowhere".to_owned(), |to| printable(&self::host(to), 100));
        return TokenError::setting(
            format!(
                "no token: {host} sends us on to {to} (HTTP {number}), which the relay does not follow with a secret"
            ),
            "Correct token_url; if it is right, a proxy wants somebody to log in: let this machine through",
        );
    }
    if status.is_server_error()
        || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
    {
        let mut error = TokenError::passing(
            format!("no token: {host} asks to come back later (HTTP {number})"),
            "Nothing to do here if it passes; https://status.cloud.microsoft says how the service fares",
        );
        error.code = Some(Code::Unavailable);
        return error;
    }
    let is_page = body.trim_ascii_start().starts_with(b"<");
    let what = if is_page { "a web page" } else { "no JSON" };
    if status.is_success() {
        return TokenError::passing(
            format!("no token: {host} answers with {what}"),
            "Check token_url: it ends in /oauth2/v2.0/token at Microsoft; else a proxy on the way answers in its place",
        );
    }
    TokenError::setting(
        format!("no token: {host} answers HTTP {number} with {what}"),
        "Check tenant and token_url in [mailbox.oauth], and whether a proxy on the way answers in the endpoint's place",
    )
}

/// How long to leave the endpoint alone, if the error passes. The clock is a cause that nobody thinks of: it is named
/// whenever it is wrong.
fn with_headers(mut error: TokenError, headers: &HeaderMap, host: &str) -> TokenError {
    if error.is_temporary() {
        error.retry_after = retry_after(headers);
    }
    let Some(theirs) = headers.get(header::DATE).and_then(|value| date(value.to_str().ok()?))
    else {
        return error;
    };
    let ahead = Timestamp::now().as_second() - theirs.as_second();
    if ahead.abs() > SKEW {
        let (minutes, way) =
            ((ahead.abs() + 30) / 60, if ahead > 0 { "ahead of" } else { "behind" });
        let step = format!(
            "Set this machine's clock: it is {minutes} minutes {way} that of {host}, and what it signs is taken as long past, or not yet valid"
        );
        error.remedy.insert(0, step);
    }
    error
}

/// Seconds, or a date (RFC 9110 section 10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let seconds = match text.parse::<u64>() {
        Ok(seconds) => seconds,
        Err(_) => {
            let left = date(text)?.as_second() - Timestamp::now().as_second();
            u64::try_from(left).unwrap_or(0)
        }
    };
    Some(Duration::from_secs(seconds).min(RETRY_AFTER))
}

fn date(text: &str) -> Option<Timestamp> {
    Some(jiff::fmt::rfc2822::parse(text).ok()?.timestamp())
}

/// The visible ASCII of somebody else's text, so many characters at most.
pub(super) fn printable(text: &str, most: usize) -> String {
    let visible = text.chars().map(|c| if c == ' ' || c.is_ascii_graphic() { c } else { '?' });
    visible.take(most).collect::<String>().trim().to_owned()
}
