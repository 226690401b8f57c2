//! What an endpoint can answer but a token, and what the operator is told then.

use std::fs;

use smtp_uplift::smarthost::{Target, oauth::Tokens};
use tokio::{io::AsyncReadExt as _, net::TcpListener};

use super::{
    Desk, SECRET, application, configured,
    endpoint::{Answer, Endpoint},
    pass,
};

fn page() -> Answer {
    Answer::new(200, "\n<!DOCTYPE html><html><title>Hotel Wi-Fi</title>")
        .header("content-type", "text/html")
}

#[tokio::test]
async fn each_wrong_answer_is_named_with_the_next_step() {
    let big = || Answer::new(200, vec![b' '; 10 << 20]);
    let json = |text: &str| Answer::new(200, text).header("content-type", "application/json");
    let late = || {
        let then = jiff::Timestamp::now() + jiff::SignedDuration::from_mins(42);
        jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&then).unwrap()
    };
    let echo = format!(
        "AADSTS7000215: Invalid client secret {SECRET}. Trace ID: 0815\r\nCorrelation ID: 4711"
    );
    for (answer, temporary, found, next) in [
        (page(), true, "answers with a web page", "/oauth2/v2.0/token"),
        (Answer::new(200, "hello"), true, "answers with no JSON", "check token_url"),
        (Answer::new(200, ""), true, "answers with no JSON", "check token_url"),
        (json("[1, 2]"), true, "is not what a token endpoint answers", "check token_url"),
        (
            json("{\"access_token\": {\"a\": 1}}"),
            true,
            "is not what a token endpoint answers",
            "check token_url",
        ),
        (json("{\"expires_in\": 3600}"), true, "has no access_token", "check token_url"),
        (
            json("{\"access_token\": \"\", \"expires_in\": 3600}"),
            true,
            "an access_token that is none",
            "token_url",
        ),
        (
            json("{\"access_token\": \"a\\u0001b\"}"),
            true,
            "an access_token that is none",
            "token_url",
        ),
        (json("{\"access_token\": \"a\", \"expires_in\": -5}"), true, "ends at once", "token_url"),
        (
            json("{\"access_token\": \"a\", \"expires_in\": \"soon\"}"),
            true,
            "ends at once",
            "token_url",
        ),
        (
            json("{\"access_token\": \"a\", \"token_type\": \"mac\"}"),
            true,
            "not of the type Bearer",
            "token_url",
        ),
        (json(&"[".repeat(10_000)), true, "answers with no JSON", "check token_url"),
        (big(), true, "longer than 256 KiB", "something on the way"),
        (big().chunked(), true, "longer than 256 KiB", "something on the way"),
        (
            Answer::new(302, "").header("location", "https://portal.example/login?next=x"),
            false,
            "sends us on to portal.example (HTTP 302)",
            "correct token_url",
        ),
        (Answer::new(307, ""), false, "sends us on to nowhere (HTTP 307)", "correct token_url"),
        (Answer::new(404, "<html>"), false, "answers HTTP 404 with a web page", "check tenant"),
        (Answer::new(403, "no"), false, "answers HTTP 403 with no JSON", "proxy on the way"),
        (Answer::new(503, "<html>"), true, "asks to come back later (HTTP 503)", "if it passes"),
        (
            Answer::new(429, "").header("retry-after", "7"),
            true,
            "come back later (HTTP 429)",
            "if it passes",
        ),
        (
            Answer::error(
                "temporarily_unavailable",
                "AADSTS90033: A transient error has occurred.",
            ),
            true,
            "the service is busy (temporarily_unavailable, AADSTS90033): \"AADSTS90033: A transient",
            "if it passes",
        ),
        (
            Answer::json(
                401,
                &serde_json::json!({"error": "invalid_client", "error_description": echo}),
            ),
            false,
            "the client secret is wrong (invalid_client, AADSTS7000215): \
             \"AADSTS7000215: Invalid client secret [redacted].\"",
            "not its id",
        ),
        (
            Answer::error("invalid_request", "AADSTS90002: Tenant 'x' not found."),
            false,
            "there is no such tenant (invalid_request, AADSTS90002)",
            "cloud",
        ),
        (
            Answer::json(
                400,
                &serde_json::json!({"error": "unauthorized_client", "error_codes": [700016]}),
            ),
            false,
            "no such application, or it is switched off there (unauthorized_client, AADSTS700016)",
            "client_id",
        ),
        (
            Answer::error("invalid_client", "AADSTS700024: not within its valid time range")
                .header("date", late()),
            false,
            "AADSTS700024",
            "it is 42 minutes behind that of 127.0.0.1:",
        ),
        (
            Answer::error(&"e\u{1b}[2J".repeat(100), &"\u{7}x".repeat(5000)),
            false,
            "the endpoint says no (e?[2Je?[2J",
            "Look the error up",
        ),
    ] {
        let desk = Desk::new().await;
        desk.endpoint.answers([answer]);
        let error = desk.tokens().token().await.unwrap_err();
        let said = desk.token().await.unwrap_err();
        assert!(said.to_lowercase().contains(&found.to_lowercase()), "{found:?} in {said}");
        assert!(said.to_lowercase().contains(&next.to_lowercase()), "{next:?} in {said}");
        assert!(
            said.len() < 1000 && said.chars().all(|c| c == ' ' || c == '…' || c.is_ascii_graphic()),
            "{said}"
        );
        assert_eq!(error.is_temporary(), temporary, "{said}");
        assert_eq!(desk.endpoint.asked().len(), 1, "once: {said}");
    }
}

/// What was sent may come back in the form in which it was sent.
#[tokio::test]
async fn a_secret_that_is_said_back_to_us_is_not_passed_on() {
    let desk = Desk::new().await;
    let encoded = reqwest::Url::parse_with_params("http://x", [("client_secret", SECRET)]).unwrap();
    let encoded = encoded.query().unwrap().to_owned();
    desk.endpoint.answers([Answer::error("invalid_request", &format!("bad form: {encoded}"))]);
    let said = desk.token().await.unwrap_err();
    assert!(said.contains("bad form: client_secret=[redacted]"), "{said}");
}

#[tokio::test]
async fn an_endpoint_that_is_not_there_is_told_from_one_that_is_silent() {
    let folder = tempfile::tempdir().unwrap();
    let endpoint = Endpoint::start().await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = nobody.local_addr().unwrap();
    drop(nobody);
    let hangs_up = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    let rude = hangs_up.local_addr().unwrap();
    tasks.spawn(async move {
        loop {
            let (mut stream, _) = hangs_up.accept().await.unwrap();
            let _ = stream.read(&mut [0; 100]).await;
        }
    });
    for (url, found) in [
        (
            format!("http://{closed}/token"),
            format!("{closed} cannot be reached: Connection refused"),
        ),
        (format!("http://{rude}/token"), format!("{rude} cannot be reached: ")),
        (
            "http://no-such-name.invalid/token".to_owned(),
            "no-such-name.invalid cannot be reached: ".to_owned(),
        ),
        ("http://".to_owned(), "token_url is not a URL".to_owned()),
    ] {
        let mut oauth = application(&endpoint, folder.path());
        oauth.token_url = url;
        let config = configured(oauth.clone(), folder.path(), "");
        let tokens = Tokens::new(&config, &config.mailboxes[0], &oauth).unwrap();
        let said = tokens.token().await.unwrap_err().to_string();
        assert!(said.contains(&found), "{found} in {said}");
    }
}

#[tokio::test]
async fn a_silent_endpoint_is_waited_for_so_long_and_no_longer() {
    let desk = Desk::new().await;
    desk.endpoint.answers([Answer::token(1, 3600).held()]);
    let mut asking = tokio::task::JoinSet::new();
    let tokens = desk.tokens().clone();
    asking.spawn(async move { tokens.token().await.map(|_| ()) });
    desk.endpoint.asked_times(1).await;
    pass(29).await;
    assert!(asking.try_join_next().is_none());
    pass(2).await;
    let error = asking.join_next().await.unwrap().unwrap().unwrap_err();
    assert!(
        error.message.contains("did not answer within 30 s") && error.is_temporary(),
        "{error}"
    );
    assert!(error.to_string().contains("HTTPS_PROXY"), "{error}");
}

#[tokio::test]
async fn the_endpoint_has_to_show_a_certificate_that_this_machine_or_ca_file_trusts() {
    let folder = tempfile::tempdir().unwrap();
    let endpoint = Endpoint::with_tls().await;
    endpoint.answers([Answer::token(1, 3600)]);
    let oauth = application(&endpoint, folder.path());
    let config = configured(oauth.clone(), folder.path(), "");
    let tokens = Tokens::new(&config, &config.mailboxes[0], &oauth).unwrap();
    let error = tokens.token().await.unwrap_err();
    assert!(
        error.message.contains(
            "cannot be trusted: its certificate, that of localhost, issued by localhost,"
        ),
        "{error}"
    );
    assert!(error.is_temporary() && error.to_string().contains("ca_file"), "{error}");
    assert!(endpoint.asked().is_empty(), "nothing was said to it");

    fs::write(folder.path().join("roots.pem"), &endpoint.certificate).unwrap();
    let config = configured(oauth, folder.path(), "ca_file = \"roots.pem\"");
    let target = Target::new(&config, &config.mailboxes[0]).unwrap();
    target.tokens().unwrap().token().await.unwrap();
    let asked = endpoint.asked();
    assert_eq!(asked[0].path, "/contoso.example/oauth2/v2.0/token");
    let agent = asked[0].headers["user-agent"].to_str().unwrap();
    assert_eq!(agent, concat!("smtp-uplift/", env!("CARGO_PKG_VERSION")));
}
