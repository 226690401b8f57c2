//! `smtp-uplift login` as a user runs it, for both ways to sign in, and files that may not be read.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use reqwest::Url;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::{
    MAILBOX, REFRESH, SECRET,
    endpoint::{Answer, Endpoint},
};

/// What a token says of whoever has signed in.
fn jwt(who: &str) -> String {
    let exp = jiff::Timestamp::now().as_second() + 3600;
    let claims =
        json!({"aud": "https://outlook.office.com", "scp": "SMTP.Send", "upn": who, "exp": exp});
    format!("x.{}.y", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()))
}

fn granted(who: &str) -> Answer {
    let body = json!({
        "token_type": "Bearer", "expires_in": 3600, "access_token": jwt(who), "refresh_token": REFRESH
    });
    Answer::json(200, &body)
}

fn begun(interval: u64) -> Answer {
    Answer::json(
        200,
        &json!({
            "device_code": SECRET, "user_code": "ABCD-1234", "interval": interval, "expires_in": 900,
            "verification_uri": "https://microsoft.com/devicelogin"
        }),
    )
}

/// A house with a configuration whose mailbox somebody has to sign in for.
struct Desk {
    endpoint: Endpoint,
    folder: TempDir,
}

fn value_of(page: &Url, key: &str) -> String {
    page.query_pairs().find(|(name, _)| name == key).unwrap().1.into_owned()
}

impl Desk {
    /// Begins to sign in; returns the page that is to be opened.
    async fn page(&self) -> (Url, Child) {
        let mut child = self.command(&[MAILBOX, "--browser"]).spawn().unwrap();
        let reading = tokio::task::spawn_blocking(move || {
            let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
            let page =
                lines.find_map(|line| line.ok().filter(|line| line.starts_with("http"))).unwrap();
            (Url::parse(&page).unwrap(), child)
        });
        reading.await.unwrap()
    }

    async fn new() -> Self {
        Self::with(Endpoint::start().await, "flow = \"device-code\"")
    }

    fn with(endpoint: Endpoint, lines: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("roots.pem"), &endpoint.certificate).unwrap();
        let roots = if endpoint.certificate.is_empty() { "" } else { "ca_file = \"roots.pem\"" };
        let text = format!(
            "hostname = \"relay.example\"\nstate_dir = \"state\"\n[[listener]]\nname = \"lan\"\naddress = \"127.0.0.1:0\"\n\
             [smarthost]\nhost = \"localhost\"\nport = 1\n{roots}\n[admin]\naddress = \"\"\n\
             [[mailbox]]\naddress = \"{MAILBOX}\"\n[mailbox.oauth]\n{lines}\ntenant = \"contoso.example\"\nclient_id = \"the-client\"\n\
             token_url = \"{}\"\nscope = \"https://outlook.office.com/SMTP.Send offline_access\"\n\
             [[mailbox]]\naddress = \"other@example.com\"\npassword = \"x\"\n",
            endpoint.url()
        );
        fs::write(folder.path().join("relay.toml"), text).unwrap();
        Self { endpoint, folder }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_smtp-uplift"));
        for variable in [
            "DISPLAY",
            "WAYLAND_DISPLAY",
            "HTTP_PROXY",
            "http_proxy",
            "HTTPS_PROXY",
            "https_proxy",
            "NO_PROXY",
        ] {
            command.env_remove(variable);
        }
        command
            .arg("login")
            .args(arguments)
            .arg("--config")
            .arg(self.folder.path().join("relay.toml"));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn kept(&self) -> PathBuf {
        self.folder.path().join(format!("state/tokens/{MAILBOX}.json"))
    }
}

/// Exit code, stdout, stderr.
async fn end(child: Child) -> (i32, String, String) {
    tokio::task::spawn_blocking(|| {
        let output = child.wait_with_output().unwrap();
        let text = |octets| String::from_utf8(octets).unwrap();
        let (out, err) = (text(output.stdout), text(output.stderr));
        for secret in [SECRET, REFRESH, "x.eyJ"] {
            assert!(!out.contains(secret) && !err.contains(secret), "{secret} in {out}{err}");
        }
        (output.status.code().unwrap(), out, err)
    })
    .await
    .unwrap()
}

async fn run(command: &mut Command) -> (i32, String, String) {
    end(command.spawn().unwrap()).await
}

#[tokio::test]
async fn somebody_signs_in_with_a_code_on_another_device() {
    let desk = Desk::new().await;
    desk.endpoint.answers([
        begun(0),
        Answer::error("authorization_pending", "AADSTS70016: pending"),
        granted(MAILBOX),
    ]);
    let before = tokio::time::Instant::now();
    let (code, out, err) = run(&mut desk.command(&["Scanner@example.com"])).await;
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(
        before.elapsed() >= Duration::from_secs(2),
        "a second before each question, though it says 0"
    );
    for line in [
        "Open https://microsoft.com/devicelogin in a browser, on any device,",
        "enter the code ABCD-1234 and sign in as scanner@example.com. There are 15 minutes for it.",
        "scanner@example.com: signed in as scanner@example.com.",
        "The token is made out to https://outlook.office.com, allows SMTP.Send, good for ",
        "A running relay takes it up by itself.",
    ] {
        assert!(out.contains(line), "{line} in {out}");
    }
    let kept: Value = serde_json::from_slice(&fs::read(desk.kept()).unwrap()).unwrap();
    assert_eq!((&kept["refresh_token"], &kept["who"]), (&REFRESH.into(), &MAILBOX.into()));
    assert_eq!(fs::metadata(desk.kept()).unwrap().mode() & 0o7777, 0o600);
    let asked = desk.endpoint.asked();
    assert_eq!(asked[0].path, "/contoso.example/oauth2/v2.0/devicecode");
    assert_eq!(asked[0].form["scope"], "https://outlook.office.com/SMTP.Send offline_access");
    assert_eq!(asked[2].path, "/contoso.example/oauth2/v2.0/token");
    assert_eq!(asked[2].form["grant_type"], "urn:ietf:params:oauth:grant-type:device_code");
    assert_eq!(asked[2].form["device_code"], SECRET);
}

#[tokio::test]
async fn somebody_signs_in_with_a_browser_on_this_machine() {
    let desk = Desk::new().await;
    desk.endpoint.answers([granted("admin@example.com")]);
    let (page, child) = desk.page().await;
    assert_eq!(page.path(), "/contoso.example/oauth2/v2.0/authorize");
    let value = |key| value_of(&page, key);
    assert_eq!(
        (value("response_type"), value("code_challenge_method")),
        ("code".into(), "S256".into())
    );
    assert_eq!((value("client_id"), value("login_hint")), ("the-client".into(), MAILBOX.into()));
    let back = |query: &str| {
        format!("{}/?{query}", value("redirect_uri").replace("localhost", "127.0.0.1"))
    };
    let browser = browser();
    // A page of somebody else's that has guessed the port.
    let strange = browser.get(back("code=stolen&state=guessed")).send().await.unwrap();
    assert_eq!(strange.status(), 400);
    let good = browser
        .get(back(&format!("code={SECRET}&state={}", value("state")).replace('+', "%2B")))
        .send();
    let shown = good.await.unwrap().text().await.unwrap();
    assert!(shown.contains("You can close this window"), "{shown}");
    let (code, _, err) = end(child).await;
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("admin@example.com needs full access to it"), "{err}");
    let form = desk.endpoint.asked().remove(0).form;
    assert_eq!(
        (form["grant_type"].as_str(), form["code"].as_str()),
        ("authorization_code", SECRET)
    );
    assert_eq!(form["redirect_uri"], value("redirect_uri"));
    let challenge =
        BASE64_URL_SAFE_NO_PAD.encode(openssl::sha::sha256(form["code_verifier"].as_bytes()));
    assert_eq!(challenge, value("code_challenge"));
    assert!(desk.kept().exists());
}

/// A client that goes past any proxy of this machine.
fn browser() -> reqwest::Client {
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().build().unwrap()
}

#[tokio::test]
async fn who_is_refused_in_the_browser_hears_why() {
    let desk = Desk::new().await;
    desk.endpoint.answers([granted(MAILBOX)]);
    let (page, child) = desk.page().await;
    let value = |key| value_of(&page, key);
    let back = value("redirect_uri").replace("localhost", "127.0.0.1");
    let query = "error=access_denied&error_description=AADSTS65004%3a+User+declined+to+consent";
    let answer =
        browser().get(format!("{back}/?{query}&state={}", value("state"))).send().await.unwrap();
    assert!(answer.text().await.unwrap().contains("Nobody was signed in"));
    let (code, _, err) = end(child).await;
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("AADSTS65004") && err.contains("admin consent"), "{err}");
    assert!(desk.endpoint.asked().is_empty() && !desk.kept().exists());
}

#[tokio::test]
async fn each_way_to_fail_has_its_exit_code_and_its_next_step() {
    let mut all = JoinSet::new();
    for (answers, code, found) in [
        (
            vec![begun(0), Answer::error("invalid_grant", "AADSTS53003: Access has been blocked")],
            1,
            "try smtp-uplift login scanner@example.com --browser",
        ),
        (
            vec![begun(0), Answer::error("authorization_declined", "")],
            1,
            "somebody, or a policy, has said no",
        ),
        (
            vec![begun(0), Answer::error("expired_token", "")],
            1,
            "nobody has entered the code in time",
        ),
        (
            vec![Answer::error("unauthorized_client", "AADSTS700016: not found")],
            78,
            "check tenant and client_id",
        ),
        (vec![Answer::error("invalid_request", "AADSTS900432: cross cloud")], 78, "correct cloud"),
        (
            vec![
                begun(0),
                Answer::error("invalid_client", "AADSTS7000218: must contain client_secret"),
            ],
            78,
            "Allow public client flows",
        ),
        (vec![Answer::new(503, "")], 75, "asks to come back later"),
        (vec![Answer::new(200, "<html>")], 75, "answers with a web page"),
        (vec![begun(0), Answer::token(1, 3600)], 78, "offline_access"),
    ] {
        all.spawn(async move {
            let desk = Desk::new().await;
            desk.endpoint.answers(answers);
            let (given, out, err) = run(&mut desk.command(&[MAILBOX])).await;
            assert_eq!(given, code, "{out}{err}");
            assert!(err.to_lowercase().contains(&found.to_lowercase()), "{found} in {err}");
            assert!(err.starts_with("smtp-uplift: "), "{err}");
            assert_eq!(err.trim_end().lines().count(), 1, "{err}");
            assert!(!desk.kept().exists());
        });
    }
    all.join_all().await;
    let desk = Desk::new().await;
    for (mailbox, code, found) in [
        ("nobody@example.com", 64, "name one of scanner@example.com, other@example.com"),
        ("other@example.com", 78, "it does not log in with tokens; write flow = \"device-code\""),
    ] {
        let (given, _, err) = run(&mut desk.command(&[mailbox])).await;
        assert_eq!(given, code, "{err}");
        assert!(err.contains(found), "{err}");
    }
    assert!(desk.endpoint.asked().is_empty());
    let lines = "flow = \"client-credentials\"\nclient_secret = { file = \"secret\" }";
    let desk = Desk::with(Endpoint::start().await, lines);
    fs::write(desk.folder.path().join("secret"), SECRET).unwrap();
    let (given, _, err) = run(&mut desk.command(&[MAILBOX])).await;
    assert!(given == 78 && err.contains("the application acts for itself"), "{err}");
}

/// The endpoint is asked through the proxy that the environment names, unless it is to be left out.
#[tokio::test]
async fn a_proxy_is_honoured() {
    let endpoint = Endpoint::with_tls().await;
    let port = endpoint.port();
    let desk = Desk::with(endpoint, "flow = \"device-code\"");
    let (proxy, connects) = proxy().await;
    for (without, through) in [("", true), ("localhost", false)] {
        desk.endpoint.answers([begun(0), granted(MAILBOX)]);
        let mut command = desk.command(&[MAILBOX]);
        command.env("HTTPS_PROXY", format!("http://127.0.0.1:{proxy}")).env("NO_PROXY", without);
        let (code, out, err) = run(&mut command).await;
        assert_eq!(code, 0, "{out}{err}");
        let seen = std::mem::take(&mut *connects.lock().unwrap());
        assert_eq!(!seen.is_empty(), through, "{seen:?}");
        assert!(
            seen.iter().all(|line| line.starts_with(&format!("CONNECT localhost:{port} "))),
            "{seen:?}"
        );
    }
}

/// An HTTP proxy; its port, and the first lines of what it is asked.
async fn proxy() -> (u16, std::sync::Arc<std::sync::Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = std::sync::Arc::<std::sync::Mutex<Vec<String>>>::default();
    let connects = std::sync::Arc::clone(&seen);
    let tasks = tokio_util::task::TaskTracker::new();
    tasks.clone().spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let seen = std::sync::Arc::clone(&seen);
            tasks.spawn(async move {
                let mut near = tokio::io::BufReader::new(stream);
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    assert!(near.read_line(&mut head).await.unwrap() > 0);
                }
                let first = head.lines().next().unwrap().to_owned();
                let to = first.split(' ').nth(1).unwrap().replace("localhost", "127.0.0.1");
                seen.lock().unwrap().push(first);
                let mut far = TcpStream::connect(to).await.unwrap();
                near.write_all(b"HTTP/1.1 200 ok\r\n\r\n").await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    (port, connects)
}

/// At the loudest level of the log, with an endpoint that takes one token and refuses the next.
#[tokio::test]
async fn a_relay_at_trace_level_tells_no_secret() {
    let lines = "flow = \"refresh-token\"\nrefresh_token = { file = \"refresh\" }\nclient_secret = { file = \"secret\" }";
    let desk = Desk::with(Endpoint::start().await, lines);
    private(desk.folder.path(), "refresh", REFRESH);
    private(desk.folder.path(), "secret", SECRET);
    desk.endpoint.answers([
        Answer::tokens(1, 2, "the-next-refresh-token"),
        Answer::error("invalid_client", SECRET),
    ]);
    let mut child = desk.command(&[]);
    let mut child = relay(&mut child, &desk, "trace").spawn().unwrap();
    let log = until(&mut child, "a new access token").await;
    let log = log + &until(&mut child, "cannot log in to the smarthost").await;
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(log.contains("expires="), "{log}");
    for secret in [SECRET, REFRESH, "the-next-refresh-token", super::TOKEN] {
        assert!(!log.contains(secret), "{secret} in {log}");
    }
}

/// The relay's user owns the folder, and has put a link where root writes.
#[tokio::test]
async fn root_follows_no_link_of_the_relays_user() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can give a file away");
        return;
    }
    let desk = Desk::new().await;
    desk.endpoint.answers([begun(0), granted(MAILBOX)]);
    let (target, state) = (desk.folder.path().join("target"), desk.folder.path().join("state"));
    fs::write(&target, "of root").unwrap();
    let tokens = state.join("tokens");
    fs::create_dir_all(&tokens).unwrap();
    std::os::unix::fs::symlink(&target, tokens.join("lock")).unwrap();
    for folder in [&state, &tokens] {
        std::os::unix::fs::chown(folder, Some(65_534), Some(65_534)).unwrap();
    }
    let (code, _, err) = run(&mut desk.command(&[MAILBOX])).await;
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("tokens/lock is a link, which is not followed; delete it"), "{err}");
    assert_eq!(fs::metadata(&target).unwrap().uid(), 0);
    assert!(!desk.kept().exists());
}

/// Nothing can take the place of a folder: the sign-in goes on in memory, and the log tells.
#[tokio::test]
async fn a_relay_that_cannot_write_says_so_with_the_next_step() {
    let lines = "flow = \"refresh-token\"\nrefresh_token = { file = \"refresh\" }";
    let desk = Desk::with(Endpoint::start().await, lines);
    private(desk.folder.path(), "refresh", REFRESH);
    fs::create_dir_all(desk.kept()).unwrap();
    desk.endpoint.answers([Answer::tokens(1, 3600, SECRET)]);
    let mut child = desk.command(&[]);
    let mut child = relay(&mut child, &desk, "info").spawn().unwrap();
    let log = until(&mut child, "a new access token").await;
    child.kill().unwrap();
    child.wait().unwrap();
    for part in
        [&*desk.kept().display().to_string(), "cannot be written: ", "in memory", "Make room on"]
    {
        assert!(log.contains(part), "{part} in {log}");
    }
    assert!(!log.contains(SECRET) && !log.contains(REFRESH), "{log}");
}

/// The same command line, but for `run`.
fn relay<'a>(command: &'a mut Command, desk: &Desk, level: &str) -> &'a mut Command {
    *command = Command::new(env!("CARGO_BIN_EXE_smtp-uplift"));
    command
        .args(["run", "--config"])
        .arg(desk.folder.path().join("relay.toml"))
        .env("SMTP_UPLIFT_LOG", level)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
}

/// What is logged until something is.
async fn until(child: &mut Child, wanted: &'static str) -> String {
    let mut output = child.stderr.take().unwrap();
    let (log, output) = tokio::task::spawn_blocking(move || {
        let mut log = Vec::new();
        while !String::from_utf8_lossy(&log).contains(wanted) {
            let mut octets = [0; 4096];
            let read = output.read(&mut octets).unwrap();
            assert!(read > 0, "{wanted} is not in {}", String::from_utf8_lossy(&log));
            log.extend_from_slice(&octets[..read]);
        }
        (String::from_utf8(log).unwrap(), output)
    })
    .await
    .unwrap();
    child.stderr = Some(output);
    log
}

fn private(folder: &Path, name: &str, text: &str) {
    fs::write(folder.join(name), text).unwrap();
    fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o600)).unwrap();
}

#[tokio::test]
async fn what_may_not_be_read_is_named_with_what_is_in_the_way() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can become somebody else");
        return;
    }
    let desk = Desk::new().await;
    desk.endpoint.answers([begun(0), granted(MAILBOX)]);
    let here = desk.folder.path();
    let state = here.join("state");
    fs::create_dir(&state).unwrap();
    std::os::unix::fs::chown(&state, Some(65_534), Some(65_534)).unwrap();
    fs::set_permissions(here, fs::Permissions::from_mode(0o755)).unwrap();
    let program = here.join("smtp-uplift");
    fs::copy(env!("CARGO_BIN_EXE_smtp-uplift"), &program).unwrap();

    // Root signs in, and the relay's user can read it.
    let (code, _, err) = run(&mut desk.command(&[MAILBOX])).await;
    assert_eq!(code, 0, "{err}");
    assert_eq!(fs::metadata(desk.kept()).unwrap().uid(), 65_534);
    let nobody = || {
        let mut command = Command::new(&program);
        command.args(["run", "--config"]).arg(here.join("relay.toml")).uid(65_534).gid(65_534);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command
    };
    let stop = |mut child: Child| {
        child.kill().unwrap();
        child.wait().unwrap();
    };
    desk.endpoint.answers([granted(MAILBOX)]);
    let mut child = nobody().spawn().unwrap();
    until(&mut child, "a new access token").await;
    stop(child);

    // A folder that was given to root again.
    let tokens = state.join("tokens");
    std::os::unix::fs::chown(&tokens, Some(0), Some(0)).unwrap();
    let mut child = nobody().spawn().unwrap();
    let log = until(&mut child, "has mode 0700 and belongs to user 0").await;
    stop(child);
    assert!(
        log.contains("cannot be read: permission denied: ")
            && log.contains("the relay runs as user 65534"),
        "{log}"
    );

    // Secrets that another user may not read stop the start, by name.
    for (lines, key) in [
        ("client_secret = { file = \"secret\" }", "client_secret"),
        ("certificate = \"app.crt\"\nprivate_key = { file = \"secret\" }", "private_key"),
    ] {
        let identity = smtp_uplift::transport::certificate::Identity::make(&["app"]).unwrap();
        let desk =
            Desk::with(Endpoint::start().await, &format!("flow = \"client-credentials\"\n{lines}"));
        let here = desk.folder.path();
        fs::write(here.join("app.crt"), identity.certificate.to_pem().unwrap()).unwrap();
        let pem = String::from_utf8(identity.key.private_key_to_pem_pkcs8().unwrap()).unwrap();
        private(here, "secret", if key == "private_key" { &pem } else { SECRET });
        fs::set_permissions(here, fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = Command::new(&program);
        command.args(["check", "--config"]).arg(here.join("relay.toml")).uid(65_534).gid(65_534);
        let (code, _, err) = run(command.stdout(Stdio::piped()).stderr(Stdio::piped())).await;
        assert_eq!(code, 78, "{err}");
        assert!(
            err.contains(&format!("oauth.{key}"))
                && err.contains("permission denied: it has mode 0600"),
            "{err}"
        );
    }
}
