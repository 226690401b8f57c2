//! The stand-in for Microsoft's identity platform, asked by libraries: what it grants, what it refuses and in which
//! words, and what its tokens are worth to the stand-in for Exchange Online.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::{fs, net::SocketAddr, process::Stdio};

use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use openssl::{hash::MessageDigest, sha::sha256, ssl::SslVersion};
use reqwest::{Client, Response, StatusCode, Url, redirect::Policy};
use serde_json::{Value, json};
use smtp_uplift::{
    config::{self, MailboxAuth, TokenSource},
    sandbox::{
        Sandbox,
        device::Device,
        identity::{Fault, Mistake, TENANT_ID, Tenant, TokenIssuer},
        scenario::Scenario,
    },
    transport::{certificate::Identity, device_tls::DeviceTls},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
};

const MAILBOX: &str = "scanner@example.com";
const SCOPE: &str = "https://outlook.office365.com/.default";
const SEND: &str = "https://outlook.office.com/SMTP.Send offline_access";
const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
const DEVICE_CODE: &str = "urn:ietf:params:oauth:grant-type:device_code";

fn client() -> Client {
    // Whoever is first wins; it is the same one each time.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Client::builder().no_proxy().redirect(Policy::none()).build().unwrap()
}

async fn issuer(tenant: Tenant) -> TokenIssuer {
    TokenIssuer::start(tenant).await.unwrap()
}

async fn post(url: &str, form: &[(&str, &str)]) -> (StatusCode, Value) {
    let response = client().post(url).form(form).send().await.unwrap();
    (response.status(), response.json().await.unwrap())
}

/// Asks with the secret.
async fn ask(issuer: &TokenIssuer, changed: &[(&str, &str)]) -> (StatusCode, Value) {
    let mut form = vec![
        ("grant_type", "client_credentials"),
        ("client_id", issuer.tenant().client_id.as_str()),
        ("client_secret", "rehearsal"),
        ("scope", SCOPE),
    ];
    form.retain(|(name, _)| !changed.iter().any(|(other, _)| other == name));
    form.extend(changed.iter().filter(|(_, value)| !value.is_empty()));
    post(&issuer.token_url(), &form).await
}

/// Whether the answer is this refusal.
#[track_caller]
fn refused((status, answer): &(StatusCode, Value), error: &str, number: u32) {
    assert_eq!(
        (answer["error"].as_str(), answer["error_codes"][0].as_u64()),
        (Some(error), Some(number.into())),
        "{answer}"
    );
    let description = answer["error_description"].as_str().unwrap();
    assert!(description.starts_with(&format!("AADSTS{number}: ")), "{description}");
    assert!(description.contains("Trace ID: ") && description.contains("Timestamp: "));
    assert_eq!(status.as_u16(), if error == "invalid_client" { 401 } else { 400 });
}

#[tokio::test]
async fn a_secret_gets_a_token_as_exchange_online_wants_it() {
    let issuer = issuer(Tenant::default()).await;
    let (status, answer) = ask(&issuer, &[]).await;
    assert_eq!(
        (status, &answer["token_type"], &answer["expires_in"]),
        (StatusCode::OK, &"Bearer".into(), &3599.into())
    );
    let token = answer["access_token"].as_str().unwrap();
    let key = DecodingKey::from_rsa_pem(issuer.public_key()).unwrap();
    let mut validation = Validation::new(Algorithm::RS256);
    validation.set_audience(&["https://outlook.office365.com"]);
    validation.set_issuer(&[format!("https://sts.windows.net/{TENANT_ID}/")]);
    validation.validate_nbf = true;
    let claims = jsonwebtoken::decode::<Value>(token, &key, &validation).unwrap().claims;
    assert_eq!(claims["roles"], json!(["SMTP.SendAsApp"]));
    assert_eq!(
        (&claims["tid"], &claims["appid"]),
        (&TENANT_ID.into(), &issuer.tenant().client_id.clone().into())
    );
    assert!(issuer.accepts(token, MAILBOX) && !issuer.accepts(&format!("{token}x"), MAILBOX));
    issuer.revoke();
    assert!(!issuer.accepts(token, MAILBOX));

    let graph = [("scope", "https://graph.microsoft.com/.default")];
    let (status, answer) = ask(&issuer, &graph).await;
    assert_eq!(status, StatusCode::OK);
    assert!(
        !issuer.accepts(answer["access_token"].as_str().unwrap(), MAILBOX),
        "another service's"
    );
    assert_eq!(issuer.requests(), 2);
}

#[tokio::test]
async fn refusals_have_microsofts_numbers() {
    let issuer = issuer(Tenant::default()).await;
    for (changed, error, number) in [
        (("client_secret", "no"), "invalid_client", 7_000_215),
        (("client_secret", ""), "invalid_client", 7_000_218),
        (("client_id", "no"), "unauthorized_client", 700_016),
        (("scope", "https://outlook.office365.com/SMTP.Send"), "invalid_scope", 70_011),
        (("scope", ""), "invalid_request", 900_144),
        (("grant_type", "password"), "unsupported_grant_type", 70_003),
    ] {
        refused(&ask(&issuer, &[changed]).await, error, number);
    }
    let elsewhere = issuer.token_url().replace("contoso", "fabrikam");
    refused(&post(&elsewhere, &[]).await, "invalid_request", 90_002);
    let by_id = issuer.token_url().replace("contoso.onmicrosoft.com", TENANT_ID);
    refused(&post(&by_id, &[]).await, "invalid_request", 900_144);
    for (mistake, error, number) in [
        (Mistake::WrongSecret, "invalid_client", 7_000_215),
        (Mistake::ExpiredSecret, "invalid_client", 7_000_222),
        (Mistake::WrongTenant, "invalid_request", 90_002),
    ] {
        issuer.mistake(Some(mistake));
        refused(&ask(&issuer, &[]).await, error, number);
    }
}

/// An application with a certificate, and the key to it.
struct Application {
    issuer: TokenIssuer,
    identity: Identity,
    _folder: TempDir,
}

impl Application {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let identity = Identity::make(&["relay"]).unwrap();
        let certificate = folder.path().join("app.crt");
        fs::write(&certificate, identity.certificate.to_pem().unwrap()).unwrap();
        let tenant = Tenant { certificate: Some(certificate), ..Tenant::default() };
        Self { issuer: issuer(tenant).await, identity, _folder: folder }
    }

    /// What Microsoft asks for; `changed` goes over it.
    fn claims(&self, changed: Value) -> Value {
        let now = jiff::Timestamp::now().as_second();
        let client_id = &self.issuer.tenant().client_id;
        let mut claims = json!({
            "aud": self.issuer.token_url(), "iss": client_id, "sub": client_id, "nbf": now, "iat": now,
            "exp": now + 600, "jti": fastrand::u64(..).to_string(),
        });
        for (name, value) in changed.as_object().unwrap() {
            claims[name] = value.clone();
        }
        claims
    }

    async fn show(&self, header: &Header, claims: &Value, by: &Identity) -> (StatusCode, Value) {
        let key = EncodingKey::from_rsa_pem(&by.key.private_key_to_pem_pkcs8().unwrap()).unwrap();
        let assertion = jsonwebtoken::encode(header, claims, &key).unwrap();
        let proof = [
            ("client_secret", ""),
            ("client_assertion_type", JWT_BEARER),
            ("client_assertion", assertion.as_str()),
        ];
        ask(&self.issuer, &proof).await
    }
}

fn header(algorithm: Algorithm, identity: &Identity) -> Header {
    let digest = identity.certificate.digest(MessageDigest::sha256()).unwrap();
    Header { x5t_s256: Some(BASE64_URL_SAFE_NO_PAD.encode(digest)), ..Header::new(algorithm) }
}

#[tokio::test]
async fn an_assertion_is_checked_to_the_last_claim() {
    let application = Application::new().await;
    let own = &application.identity;
    let right = header(Algorithm::PS256, own);
    let claims = application.claims(json!({}));
    let (status, answer) = application.show(&right, &claims, own).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert!(application.issuer.accepts(answer["access_token"].as_str().unwrap(), MAILBOX));
    refused(&application.show(&right, &claims, own).await, "invalid_client", 700_027);

    let now = jiff::Timestamp::now().as_second();
    for (changed, number) in [
        (json!({ "aud": "https://login.microsoftonline.com/" }), 700_023),
        (json!({ "iss": "another" }), 700_021),
        (json!({ "sub": "another" }), 700_021),
        (json!({ "exp": now - 400, "nbf": now - 900 }), 700_024),
        (json!({ "nbf": now + 400, "exp": now + 900 }), 700_024),
        (json!({ "exp": now + 3600 }), 700_024),
        (json!({ "jti": "" }), 50_027),
        (json!({ "nbf": "now" }), 50_027),
    ] {
        let claims = application.claims(changed);
        refused(&application.show(&right, &claims, own).await, "invalid_client", number);
    }
    let other = Identity::make(&["another"]).unwrap();
    for (header, by, number, reason) in [
        (&header(Algorithm::RS256, own), own, 50_027, "Invalid JWT token"),
        (&Header::new(Algorithm::PS256), own, 700_027, "The key was not found."),
        (&header(Algorithm::PS256, &other), &other, 700_027, "The key was not found."),
        (&right, &other, 700_027, "signature is invalid"),
    ] {
        let answer = application.show(header, &application.claims(json!({})), by).await;
        refused(&answer, "invalid_client", number);
        let description = answer.1["error_description"].as_str().unwrap();
        assert!(description.contains(reason), "{reason:?} is not in {description}");
    }
    application.issuer.mistake(Some(Mistake::ExpiredCertificate));
    let answer = application.show(&right, &application.claims(json!({})), own).await;
    refused(&answer, "invalid_client", 700_027);
    assert!(answer.1["error_description"].as_str().unwrap().contains("expired"));
}

#[tokio::test]
async fn a_clock_that_is_ahead_shows_and_refuses_assertions() {
    let folder = tempfile::tempdir().unwrap();
    let identity = Identity::make(&["relay"]).unwrap();
    let certificate = folder.path().join("app.crt");
    fs::write(&certificate, identity.certificate.to_pem().unwrap()).unwrap();
    let tenant = Tenant { certificate: Some(certificate), clock: 3_600, ..Tenant::default() };
    let issuer = issuer(tenant).await;
    let response = client().post(issuer.token_url()).send().await.unwrap();
    let date = response.headers()["date"].to_str().unwrap();
    let date = jiff::fmt::rfc2822::parse(date).unwrap().timestamp().as_second();
    let ahead = date - jiff::Timestamp::now().as_second();
    assert!((3_590..=3_600).contains(&ahead), "{ahead}");
    let application = Application { issuer, identity, _folder: folder };
    let right = header(Algorithm::PS256, &application.identity);
    let claims = application.claims(json!({}));
    let answer = application.show(&right, &claims, &application.identity).await;
    refused(&answer, "invalid_client", 700_024);
}

#[tokio::test]
async fn a_refresh_token_is_replaced_and_works_once_more() {
    let issuer = issuer(Tenant::default()).await;
    let started = device_code(&issuer).await;
    assert!(issuer.approve(started["user_code"].as_str().unwrap(), MAILBOX));
    let (status, first) = poll(&issuer, &started).await;
    assert_eq!(status, StatusCode::OK, "{first}");
    assert!(issuer.accepts(first["access_token"].as_str().unwrap(), MAILBOX));
    assert!(!issuer.accepts(first["access_token"].as_str().unwrap(), "another@example.com"));
    let refresh = |token: Value| {
        let (issuer, token) = (&issuer, token.as_str().unwrap().to_owned());
        async move {
            let changed = [
                ("grant_type", "refresh_token"),
                ("client_secret", ""),
                ("scope", SEND),
                ("refresh_token", token.as_str()),
            ];
            ask(issuer, &changed).await
        }
    };
    let token = first["refresh_token"].clone();
    let (status, second) = refresh(token.clone()).await;
    assert_eq!(status, StatusCode::OK);
    assert_ne!(second["refresh_token"], token);
    assert_eq!(refresh(token.clone()).await.0, StatusCode::OK, "once more");
    refused(&refresh(token).await, "invalid_grant", 700_082);
    issuer.mistake(Some(Mistake::NoConsent));
    refused(&refresh(second["refresh_token"].clone()).await, "invalid_grant", 65_001);
    issuer.revoke_refresh_tokens();
    refused(&refresh(second["refresh_token"].clone()).await, "invalid_grant", 700_082);
}

async fn device_code(issuer: &TokenIssuer) -> Value {
    let url = issuer.token_url().replace("/token", "/devicecode");
    let form = [("client_id", issuer.tenant().client_id.as_str()), ("scope", SEND)];
    let (status, answer) = post(&url, &form).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert!(answer["message"].as_str().unwrap().contains(answer["user_code"].as_str().unwrap()));
    answer
}

async fn poll(issuer: &TokenIssuer, started: &Value) -> (StatusCode, Value) {
    let form = [
        ("grant_type", DEVICE_CODE),
        ("client_id", issuer.tenant().client_id.as_str()),
        ("device_code", started["device_code"].as_str().unwrap()),
    ];
    post(&issuer.token_url(), &form).await
}

#[tokio::test]
async fn a_device_code_waits_for_somebody() {
    let issuer = issuer(Tenant { interval: 5, ..Tenant::default() }).await;
    let started = device_code(&issuer).await;
    assert_eq!((&started["interval"], &started["expires_in"]), (&5.into(), &900.into()));
    refused(&poll(&issuer, &started).await, "authorization_pending", 70_016);
    refused(&poll(&issuer, &started).await, "slow_down", 70_016);
    let page = Url::parse_with_params(
        started["verification_uri"].as_str().unwrap(),
        [("code", started["user_code"].as_str().unwrap()), ("answer", "yes")],
    );
    let page = client().get(page.unwrap()).send().await.unwrap().text().await.unwrap();
    assert_eq!(page, "Signed in.");
    assert_eq!(poll(&issuer, &started).await.0, StatusCode::OK);
    refused(&poll(&issuer, &started).await, "bad_verification_code", 70_019);

    let started = device_code(&issuer).await;
    assert!(issuer.decline(started["user_code"].as_str().unwrap()) && !issuer.decline("no"));
    refused(&poll(&issuer, &started).await, "access_denied", 70_018);
}

#[tokio::test]
async fn a_device_code_ends() {
    let issuer = issuer(Tenant { device_code_lifetime: 0, ..Tenant::default() }).await;
    let started = device_code(&issuer).await;
    refused(&poll(&issuer, &started).await, "expired_token", 70_020);
}

#[tokio::test]
async fn a_browser_brings_a_code_that_only_its_sender_can_use() {
    const BACK: &str = "http://localhost:5000/signed-in";
    let issuer = issuer(Tenant::default()).await;
    let challenge = BASE64_URL_SAFE_NO_PAD.encode(sha256(b"a verifier"));
    let authorize = async |back: &str| -> Response {
        let url = issuer.token_url().replace("/token", "/authorize");
        let query = [
            ("client_id", issuer.tenant().client_id.as_str()),
            ("response_type", "code"),
            ("redirect_uri", back),
            ("scope", SEND),
            ("state", "s t&te"),
            ("login_hint", MAILBOX),
            ("code_challenge", challenge.as_str()),
            ("code_challenge_method", "S256"),
        ];
        client().get(url).query(&query).send().await.unwrap()
    };
    let code = async || {
        let response = authorize(BACK).await;
        assert_eq!(response.status(), StatusCode::FOUND);
        let back = Url::parse(response.headers()["location"].to_str().unwrap()).unwrap();
        assert!(back.as_str().starts_with(BACK));
        let query: Vec<(String, String)> = back.query_pairs().into_owned().collect();
        assert_eq!(query[1], ("state".to_owned(), "s t&te".to_owned()));
        query[0].1.clone()
    };
    let redeem = async |code: &str, verifier: &str, back: &str| {
        let form = [
            ("grant_type", "authorization_code"),
            ("client_id", issuer.tenant().client_id.as_str()),
            ("code", code),
            ("code_verifier", verifier),
            ("redirect_uri", back),
        ];
        post(&issuer.token_url(), &form).await
    };
    let first = code().await;
    let (status, answer) = redeem(&first, "a verifier", BACK).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert!(issuer.accepts(answer["access_token"].as_str().unwrap(), MAILBOX));
    refused(&redeem(&first, "a verifier", BACK).await, "invalid_grant", 70_008);
    refused(&redeem(&code().await, "another", BACK).await, "invalid_grant", 501_481);
    refused(
        &redeem(&code().await, "a verifier", "http://localhost/").await,
        "invalid_grant",
        500_112,
    );
    let away = authorize("https://attacker.example/").await;
    let status = away.status();
    refused(&(status, away.json().await.unwrap()), "invalid_request", 50_011);
}

#[tokio::test]
async fn the_endpoint_misbehaves_when_told_to() {
    let issuer = issuer(Tenant::default()).await;
    let answer = async |fault| {
        issuer.fail(Some(fault));
        client().post(issuer.token_url()).send().await
    };
    assert!(answer(Fault::Down).await.is_err());
    let page = answer(Fault::Html).await.unwrap();
    assert!(page.status() == 200 && page.text().await.unwrap().starts_with("<!doctype html>"));
    let moved = answer(Fault::Redirect).await.unwrap();
    let elsewhere = moved.headers()["location"].to_str().unwrap();
    assert_eq!(
        (moved.status().as_u16(), elsewhere),
        (307, "/contoso.onmicrosoft.com/elsewhere/token")
    );
    for (fault, status) in [(Fault::TooMany(17), 429), (Fault::Unavailable(17), 503)] {
        let response = answer(fault).await.unwrap();
        assert_eq!(
            (response.status().as_u16(), response.headers()["retry-after"].to_str().unwrap()),
            (status, "17")
        );
    }
    let wrong: Value = answer(Fault::WrongJson).await.unwrap().json().await.unwrap();
    assert!(!wrong["access_token"].is_string());
    assert!(answer(Fault::Huge).await.unwrap().content_length() > Some(10_000_000));
    let begun = tokio::time::Instant::now();
    assert_eq!(answer(Fault::Slow(0.1)).await.unwrap().status(), 400);
    assert!(begun.elapsed().as_millis() >= 100);
    issuer.fail(None);
    assert_eq!(ask(&issuer, &[]).await.0, StatusCode::OK);
    assert_eq!(issuer.requests(), 8, "all that got through");
}

/// What SMTP says to a token.
async fn login(sandbox: &Sandbox, user: &str, token: &str) -> String {
    let tls = DeviceTls::new(SslVersion::TLS1_2, None).unwrap();
    let mut device = Device::connect(sandbox.address()).await.unwrap();
    device.say("EHLO relay").await.unwrap();
    let mut device = device.starttls(&tls).await.unwrap();
    device.say("EHLO relay").await.unwrap();
    device.say("AUTH XOAUTH2").await.unwrap();
    let blob = format!("user={user}\u{1}auth=Bearer {token}\u{1}\u{1}");
    device.say(&BASE64_STANDARD.encode(blob)).await.unwrap().to_string()
}

async fn sandbox(lines: &str) -> Sandbox {
    let scenario = Scenario::parse(&format!("[identity]\nusers = [\"{MAILBOX}\"]\n{lines}"));
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    Sandbox::start(loopback, scenario.unwrap()).await.unwrap()
}

/// A token from the sandbox's own endpoint.
async fn token(sandbox: &Sandbox) -> String {
    let authority = sandbox.authority().unwrap();
    let form = [
        ("grant_type", "client_credentials"),
        ("client_id", &authority.tenant().client_id),
        ("client_secret", "rehearsal"),
        ("scope", SCOPE),
    ];
    let (status, answer) = post(&authority.token_url(), &form).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    answer["access_token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn smtp_takes_only_tokens_that_allow_it() {
    const REFUSED: &str = "535 5.7.3 Authentication unsuccessful [";
    let right = sandbox("").await;
    let token_of_right = token(&right).await;
    assert!(login(&right, MAILBOX, &token_of_right).await.starts_with("235 2.7.0"));
    assert_eq!(right.counts().token_requests.load(std::sync::atomic::Ordering::SeqCst), 1);
    for (user, shown) in
        [("another@example.com", token_of_right.as_str()), (MAILBOX, "made-up"), (MAILBOX, "")]
    {
        assert!(login(&right, user, shown).await.starts_with(REFUSED), "{user}");
    }
    for lines in ["mistake = \"missing-role\"", "mistake = \"object-id\"", "lifetime = 0"] {
        let wrong = sandbox(lines).await;
        let shown = token(&wrong).await;
        assert!(login(&wrong, MAILBOX, &shown).await.starts_with(REFUSED), "{lines}");
        assert!(login(&wrong, MAILBOX, &token_of_right).await.starts_with(REFUSED), "{lines}");
    }
}

#[tokio::test]
async fn dovecot_may_ask_what_a_token_is_worth() {
    let issuer = issuer(Tenant::default()).await;
    let (_, answer) = ask(&issuer, &[]).await;
    let token = answer["access_token"].as_str().unwrap();
    let (_, worth) = post(&issuer.introspection_url(), &[("token", token)]).await;
    assert_eq!((&worth["active"], &worth["username"]), (&true.into(), &MAILBOX.into()));
    let (_, worth) = post(&issuer.introspection_url(), &[("token", "made-up")]).await;
    assert_eq!(worth, json!({ "active": false }));
    let response =
        client().get(issuer.introspection_url()).bearer_auth(token).send().await.unwrap();
    assert_eq!(response.json::<Value>().await.unwrap()["active"], true);
}

#[test]
fn a_scenario_file_has_a_section_for_it() {
    let text = fs::read_to_string("config/scenario.toml").unwrap();
    let (_, section) = text.split_once("# [identity]\n").unwrap();
    let (section, _) = section.split_once("\n\n").unwrap();
    let lines: String = section.lines().map(|line| format!("{}\n", &line[2..])).collect();
    let tenant = Scenario::parse(&format!("[identity]\n{lines}")).unwrap().identity.unwrap();
    let usual = Tenant::default();
    assert_eq!((&tenant.tenant, &tenant.client_id), (&usual.tenant, &usual.client_id));
    assert_eq!((tenant.mistake, tenant.fault), (Some(Mistake::MissingRole), Some(Fault::Down)));
    let slow = Scenario::parse("[identity]\nfault = { slow = 30 }").unwrap().identity.unwrap();
    assert_eq!(slow.fault, Some(Fault::Slow(30.0)));
    assert!(
        Scenario::parse("[identity]\nmistake = \"spelling\"").unwrap_err().contains("spelling")
    );
}

#[tokio::test]
async fn the_sandbox_prints_a_configuration_that_fits() {
    let folder = tempfile::tempdir().unwrap();
    let mut sandbox = Command::new(env!("CARGO_BIN_EXE_smtp-uplift"))
        .args(["sandbox", "--listen", "127.0.0.1:0", "--identity", "127.0.0.1:0", "--dir"])
        .arg(folder.path())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut said = BufReader::new(sandbox.stdout.take().unwrap()).lines();
    let mut text = String::new();
    while let Some(line) =
        said.next_line().await.unwrap().filter(|line| !line.starts_with("Ctrl-C"))
    {
        text = format!("{text}{line}\n");
    }
    let (_, printed) = text.split_once("\n\n").unwrap();
    let listener = format!(
        "state_dir = {:?}\n[[listener]]\naddress = \"127.0.0.1:0\"\n",
        folder.path().join("state")
    );
    let file = folder.path().join("relay.toml");
    let config = config::parse(&format!("{listener}{printed}"), &file).unwrap().config;
    let MailboxAuth::XOAuth2 { token: TokenSource::OAuth(oauth) } = &config.mailboxes[0].auth
    else {
        panic!("{printed}");
    };
    let form = [
        ("grant_type", "client_credentials"),
        ("client_id", &oauth.client_id),
        ("client_secret", "rehearsal"),
        ("scope", &oauth.scope),
    ];
    let (status, answer) = post(&oauth.token_url, &form).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
}
