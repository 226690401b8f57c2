//! No secret is in any output, at the loudest level of the log.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use common::{MAILBOX, MESSAGE, PASSWORD, Plan};
use openssl::ssl::SslVersion;
use smtp_uplift::{
    sandbox::{Sandbox, device::Device, scenario::Scenario},
    transport::device_tls::DeviceTls,
};

/// What a device logs in with.
const DEVICE_SECRET: &str = "the-copiers-secret";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_session_at_trace_level_tells_nothing() {
    let token = "access-token-that-nobody-may-read".to_owned();
    let plain = |user: &str, secret: &str| STANDARD.encode(format!("\0{user}\0{secret}"));
    let xoauth2 = STANDARD.encode(format!("user={MAILBOX}\u{1}auth=Bearer {token}\u{1}\u{1}"));
    let secrets = [
        PASSWORD.to_owned(),
        STANDARD.encode(PASSWORD),
        token.clone(),
        xoauth2,
        DEVICE_SECRET.to_owned(),
        STANDARD.encode(DEVICE_SECRET),
        plain("scan", DEVICE_SECRET),
        // What stands in the message.
        "..stuffed".to_owned(),
    ];
    for (mailbox, scenario) in [
        (
            "password = { file = \"password\" }".to_owned(),
            Scenario { password: Some(PASSWORD.into()), ..Scenario::default() },
        ),
        // A refused login is where secrets like to slip out.
        (
            "password = { file = \"password\" }".to_owned(),
            Scenario { password: Some("another".into()), ..Scenario::default() },
        ),
        (
            format!("[mailbox.oauth]\ntoken = \"{token}\""),
            Scenario { token: Some(token.clone()), ..Scenario::default() },
        ),
    ] {
        let log = session(&mailbox, scenario).await;
        assert!(
            log.contains("to the smarthost")
                && log.contains("AUTH")
                && log.contains("from the smarthost"),
            "{log}"
        );
        for line in log.lines().filter(|line| line.contains(" result=\"")) {
            let relayed = line.contains(" result=\"relayed\"");
            assert_eq!(relayed, line.contains(" rule=\"accepted\""), "{line}");
            assert_eq!(relayed, line.contains(" answer=\"250 2"), "{line}");
        }
        for secret in &secrets {
            assert!(!log.contains(secret), "{secret:?} in {log}");
        }
    }
}

/// Runs the program at trace level through logins on both sides; returns its whole output.
async fn session(mailbox: &str, scenario: Scenario) -> String {
    let folder = tempfile::tempdir().unwrap();
    let sandbox = Sandbox::start(([127, 0, 0, 1], 0).into(), scenario.clone()).await.unwrap();
    let plan = Plan {
        listener: "auth = \"offer\"\naccept_any_credentials = true",
        mailbox,
        more: "[log]\ntranscripts = \"all\"",
        ..Plan::default()
    };
    let text = common::configuration(
        &plan,
        sandbox.address().port(),
        sandbox.certificate(),
        folder.path(),
    );
    let file = folder.path().join("relay.toml");
    std::fs::write(&file, text).unwrap();
    let mut relay = Command::new(env!("CARGO_BIN_EXE_smtp-uplift"))
        .args(["run", "--config"])
        .arg(&file)
        .env("SMTP_UPLIFT_LOG", "trace")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = lines(&mut relay);
    let mut log = String::new();
    let (mut address, mut admin) = (None, None);
    while address.is_none() || admin.is_none() {
        let line = lines.recv().unwrap();
        if line.contains("listening") {
            address = line
                .split("address=")
                .nth(1)
                .and_then(|rest| rest.split(' ').next())
                .map(str::to_owned);
        }
        if let Some((_, rest)) = line.split_once("admin=\"") {
            admin = rest.split('"').next().map(str::to_owned);
        }
        log.push_str(&line);
    }
    let address = address.unwrap().parse().unwrap();
    let tls = DeviceTls::new(SslVersion::TLS1, None).unwrap();
    for login in ["PLAIN", "LOGIN"] {
        let mut device = Device::connect(address).await.unwrap().starttls(&tls).await.unwrap();
        device.say("EHLO copier").await.unwrap();
        let accepted = if login == "PLAIN" {
            device
                .say(&format!("AUTH PLAIN {}", STANDARD.encode(format!("\0scan\0{DEVICE_SECRET}"))))
                .await
                .unwrap()
        } else {
            device.say("AUTH LOGIN").await.unwrap();
            device.say(&STANDARD.encode("scan")).await.unwrap();
            device.say(&STANDARD.encode(DEVICE_SECRET)).await.unwrap()
        };
        assert_eq!(accepted.code.get(), 235);
        device.send("a@x", &["b@x"], MESSAGE).await.unwrap();
        device.say("QUIT").await.unwrap();
    }
    let admin = admin.unwrap().parse().unwrap();
    let status = common::get(admin, "/status", "").await;
    for id in status.split("\"id\": \"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        log += &common::get(admin, &format!("/status/{id}"), "").await;
    }
    assert!(log.contains("device > AUTH PLAIN [redacted]"), "{log}");
    log += &status;
    log += &common::get(admin, "/metrics", "").await;
    relay.kill().unwrap();
    relay.wait().unwrap();
    log.extend(lines);
    log
}

fn lines(relay: &mut Child) -> mpsc::Receiver<String> {
    let (to, lines) = mpsc::channel();
    let output = BufReader::new(relay.stderr.take().unwrap());
    thread::spawn(move || {
        output.lines().map_while(Result::ok).try_for_each(|line| to.send(line + "\n"))
    });
    lines
}
