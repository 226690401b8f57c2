//! What `/status` tells, to whom, and the transcripts of what went wrong.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use std::{fs, sync::atomic::Ordering, time::Duration};

use common::{House, KEEP, MAILBOX, PASSWORD, Plan};
use serde_json::Value;
use smtp_uplift::{sandbox::device::Device, transport::device_tls::DeviceTls};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

async fn json(house: &House, path: &str) -> Value {
    let answer = common::get(house.service.admin().unwrap(), path, "").await;
    assert!(answer.contains("content-type: application/json"), "{answer}");
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

/// The lines of the youngest transcript under an id, without their times.
async fn transcript(house: &House, id: &str) -> Vec<String> {
    let found = json(house, &format!("/status/{id}")).await;
    let lines = found[0]["lines"].as_array().unwrap();
    let said = |line: &Value| line.as_str().unwrap().split_once(' ').unwrap().1.to_owned();
    lines.iter().map(said).collect()
}

#[tokio::test]
async fn it_tells_of_listeners_and_mailboxes() {
    let house = House::new().await;
    assert!(house.send("a@x", &["b@x"]).await.starts_with("250"));
    let status = json(&house, "/status").await;
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert!(status["uptime_seconds"].is_u64());
    let address = house.address().to_string();
    assert_eq!(
        status["listeners"],
        serde_json::json!([{"name": "lan", "address": address, "tls": "starttls", "tls_profile": "legacy"}])
    );
    let mailbox = &status["mailboxes"][0];
    assert_eq!((&mailbox["address"], &mailbox["state"]), (&MAILBOX.into(), &"ready".into()));
    assert_eq!(mailbox["connections"], serde_json::json!({"leased": 0, "shelved": 1}));
    assert_eq!(mailbox["waiting"], 0);
    assert_eq!(mailbox["last_error"], Value::Null);
    assert_eq!(status["transcripts"], serde_json::json!([]), "nothing has failed");
}

#[tokio::test]
async fn it_tells_of_devices_those_that_were_seen_last_first() {
    let more = "[[device]]\nname = \"copier\"\naddress = \"127.0.0.0/16\"\n";
    let house =
        House::build(Plan { listener: "tls_profile = \"legacy\"", more, ..Plan::default() }).await;
    assert_eq!(json(&house, "/status").await["devices"], serde_json::json!([]), "nobody was there");
    let mut other = common::own_device(house.address(), 1).await;
    let heard = other.send("a@x", &["reply-550-5.1.1-rcpt@x"], common::MESSAGE).await.unwrap();
    assert_eq!(heard.code.get(), 550);
    assert_eq!(other.say("NONSENSE").await.unwrap().code.get(), 500);
    other.say("QUIT").await.unwrap();
    let mut device = house.old_device().await;
    assert!(device.send("a@x", &["b@x"], common::MESSAGE).await.unwrap().code.is_positive());
    let devices = json(&house, "/status").await["devices"].clone();
    let device = &devices[0];
    assert_eq!((&device["name"], &device["address"]), (&"copier".into(), &"127.0.0.1".into()));
    assert_eq!(device["tls"]["version"], "TLSv1");
    assert!(device["tls"]["cipher"].as_str().unwrap().ends_with("-SHA"), "{device}");
    assert_eq!((&device["messages"], &device["last"]["result"]), (&1.into(), &"relayed".into()));
    assert!(device["last"]["reply"].as_str().unwrap().starts_with("250 "), "{device}");
    assert!(device["last"]["time"].as_str().unwrap().ends_with('Z'), "{device}");
    assert_eq!(
        (&device["faults"], &device["advice"]),
        (&serde_json::json!({}), &serde_json::json!([]))
    );
    if cfg!(target_os = "linux") {
        let other = &devices[1];
        assert_eq!((&other["tls"], &other["messages"]), (&Value::Null, &0.into()));
        assert_eq!(other["faults"], serde_json::json!({"bad_command": 1}));
        assert_eq!(other["last"]["result"], "refused");
        assert!(other["last"]["reply"].as_str().unwrap().starts_with("550 5.1.1 "), "{other}");
    }
}

#[tokio::test]
async fn it_warns_of_an_open_relay_and_of_devices_that_share_an_address() {
    let house = House::new().await;
    for name in 0..8 {
        assert_eq!(json(&house, "/status").await["warnings"], serde_json::json!([]), "{name}");
        let mut device = Device::connect(house.address()).await.unwrap();
        device.say(&format!("EHLO copier{name}")).await.unwrap();
        device.say("MAIL FROM:<a@x>").await.unwrap();
    }
    let status = json(&house, "/status").await;
    let warning = status["warnings"][0].as_str().unwrap();
    assert!(warning.starts_with("all devices come from this machine, under 8 names"), "{warning}");
    assert!(!warning.contains("  "), "{warning:?}");

    let listener = "allow = [\"0.0.0.0/0\"]\nopen_relay = true";
    let house = House::build(Plan { listener, ..Plan::default() }).await;
    let status = json(&house, "/status").await;
    let warning = status["warnings"][0].as_str().unwrap();
    assert!(warning.starts_with("listener lan is an OPEN RELAY: "), "{warning}");

    let folder = tempfile::tempdir().unwrap();
    let users_file = folder.path().join("users.txt");
    std::fs::write(&users_file, "").unwrap();
    let (listener, more) = (
        format!("{listener}\nauth = \"require\"\nauth_without_tls = true"),
        format!("[auth]\nusers_file = {users_file:?}\n"),
    );
    let plan = Plan { listener: &listener, more: &more, ..Plan::default() };
    let status = json(&House::build(plan).await, "/status").await;
    assert_eq!(status["warnings"], serde_json::json!([]), "a login is needed");
}

#[tokio::test]
async fn it_tells_of_the_spool_and_of_what_is_stopped() {
    let house = House::build(Plan { delivery: KEEP, ..Plan::default() }).await;
    let sender = "reply-554-5.2.252-dot@example.com";
    assert!(house.send(sender, &["b@x"]).await.starts_with("250 2.0.0 queued, id "));
    let status = json(&house, "/status").await;
    let stopped = format!("sender:{sender}");
    assert_eq!(status["mailboxes"][0]["stopped"], serde_json::json!([stopped]));
    let spool = &status["spool"];
    assert_eq!(
        (&spool["held"], &spool["ready"], &spool["failed"]),
        (&1.into(), &0.into(), &0.into())
    );
    assert_eq!(spool["bytes"], common::MESSAGE.len());
    assert!(spool["oldest_seconds"].is_u64() && spool["notices_waiting"] == 0);
    assert_eq!(spool["trouble"], Value::Null);
    let ready = common::get(house.service.admin().unwrap(), "/readyz", "").await;
    assert!(ready.starts_with("HTTP/1.1 200 ") && ready.ends_with("ready\n"), "{ready}");
}

#[tokio::test]
async fn what_failed_can_be_read_up_under_the_id_of_its_log_line() {
    let house = House::new().await;
    assert!(house.send("a@x", &["b@x"]).await.starts_with("250"));
    let mut device = house.old_device().await;
    let heard = device.send("a@x", &["reply-554-5.2.252-dot@x"], common::MESSAGE).await.unwrap();
    assert_eq!(heard.code.get(), 451);
    let status = json(&house, "/status").await;
    let id = status["transcripts"][0]["id"].as_str().unwrap().to_owned();
    let session = id.strip_suffix(".1").unwrap();
    let said = transcript(&house, session).await;
    let has =
        |line: &str| assert!(said.iter().any(|said| said.starts_with(line)), "{line} in {said:#?}");
    has("device > EHLO copier");
    has("device < 220 2.0.0");
    has("* TLS with the device: TLSv1/");
    has("device > MAIL FROM:<a@x>");
    has("smarthost > MAIL FROM:<a@x>");
    has("smarthost > RCPT TO:<reply-554-5.2.252-dot@x>");
    has("smarthost < 354 ");
    has("device > (mail data, ");
    has("smarthost > (mail data) and the final dot");
    has("smarthost < 554 5.2.252");
    has("device < 451 4.7.0 waiting for the relay's operator: ");
    assert_eq!(said.last().unwrap(), &format!("* message {id}: refused"));
    let trouble = &json(&house, "/status").await["mailboxes"][0]["last_error"];
    assert_eq!(trouble["rule"], "send-as-denied");
    assert!(trouble["reply"].as_str().unwrap().starts_with("554 5.2.252 "), "{trouble}");
    assert!(trouble["remedy"][0].as_str().unwrap().contains("the mailbox's address"), "{trouble}");
    let none = common::get(house.service.admin().unwrap(), "/status/nothing", "").await;
    assert!(
        none.starts_with("HTTP/1.1 404") && none.contains("no transcript of nothing"),
        "{none}"
    );
}

#[tokio::test]
async fn a_last_error_is_told_as_past_once_a_message_was_taken() {
    let house = House::new().await;
    house.send("reply-554-5.2.252-dot@x", &["b@x"]).await;
    let last = async || json(&house, "/status").await["mailboxes"][0]["last_error"].clone();
    assert_eq!(last().await["past"], false);
    assert!(house.send("a@x", &["b@x"]).await.starts_with("250 "));
    let last = last().await;
    assert_eq!((&last["past"], &last["rule"]), (&true.into(), &"send-as-denied".into()));
}

#[tokio::test]
async fn it_is_not_ready_while_no_mailbox_can_send_and_says_why() {
    let more = "[[mailbox]]\naddress = \"second@example.com\"\npassword = { file = \"second\" }\n";
    for (second, ready) in [(PASSWORD, true), ("wrong", false)] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("second"), second).unwrap();
        let more =
            more.replace("\"second\" }", &format!("\"{}/second\" }}", folder.path().display()));
        let house =
            House::build(Plan { mailbox: "password = \"wrong\"", more: &more, ..Plan::default() })
                .await;
        let logins = |house: &House| {
            let counts = house.sandbox.counts();
            counts.logins.load(Ordering::SeqCst) + counts.refused_logins.load(Ordering::SeqCst)
        };
        while logins(&house) < 2
            || house.service.metrics().render().matches("upstream_connects_total{").count() < 2
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let admin = house.service.admin().unwrap();
        let answer = common::get(admin, "/readyz", "").await;
        assert_eq!(answer.starts_with("HTTP/1.1 200 "), ready, "{answer}");
        if !ready {
            assert!(
                answer.contains(
                    "no mailbox can send: scanner@example.com: its login was refused; second@"
                ),
                "{answer}"
            );
        }
        let status = json(&house, "/status").await;
        let states: Vec<_> = status["mailboxes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it["state"].as_str().unwrap())
            .collect();
        assert_eq!(states, ["login-refused", if ready { "ready" } else { "login-refused" }]);
        let metrics = common::get(admin, "/metrics", "").await;
        for (mailbox, open) in [(MAILBOX, 1), ("second@example.com", i32::from(!ready))] {
            for (name, value) in [("breaker_open", open), ("up", 1 - open)] {
                let line = format!("smtp_uplift_mailbox_{name}{{mailbox=\"{mailbox}\"}} {value}\n");
                assert!(metrics.contains(&line), "{line}{metrics}");
            }
        }
    }
}

#[tokio::test]
async fn the_last_error_is_the_cause_and_not_what_follows_from_it() {
    let house = House::new().await;
    // MAIL and RCPT go up in one flight: RCPT is refused because MAIL was.
    assert!(house.send("reply-550-5.7.60@x", &["b@x"]).await.starts_with("451 4.7.0 "));
    let status = json(&house, "/status").await;
    let reply = status["mailboxes"][0]["last_error"]["reply"].as_str().unwrap().to_owned();
    assert!(reply.starts_with("550 5.7.60 "), "{reply}");
}

#[tokio::test]
async fn a_failed_login_and_a_failed_handshake_have_transcripts() {
    let house = House::build(Plan {
        listener: "tls_profile = \"modern\"",
        mailbox: "password = \"wrong\"",
        ..Plan::default()
    })
    .await;
    let said = transcript(&house, MAILBOX).await;
    let position = |line: &str| {
        said.iter()
            .position(|said| said.starts_with(line))
            .unwrap_or_else(|| panic!("{line} in {said:#?}"))
    };
    assert!(position("smarthost < 220 ") < position("* TLS with the smarthost: TLSv1.3"));
    assert!(position("smarthost > AUTH LOGIN") < position("smarthost > [redacted]"));
    assert!(position("smarthost < 535 5.7.139 ") < said.len() - 1);
    assert_eq!(json(&house, "/status").await["mailboxes"][0]["state"], "login-refused");

    let device = Device::connect(house.address()).await.unwrap();
    let old = DeviceTls::new(openssl::ssl::SslVersion::TLS1, None).unwrap();
    assert!(device.starttls(&old).await.is_err());
    let status = json(&house, "/status").await;
    let said = transcript(&house, status["transcripts"][0]["id"].as_str().unwrap()).await;
    assert!(said.iter().any(|said| said.starts_with("* TLS handshake failed: ")), "{said:#?}");
}

#[tokio::test]
async fn only_this_machine_or_who_shows_the_token_may_read_it() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    fs::write(&token, "open-sesame\n").unwrap();
    for (admin, more, open) in [
        ("127.0.0.1:0", "", [true, true, false, false]),
        ("0.0.0.0:0", "", [false, false, false, false]),
        ("0.0.0.0:0", "token", [false, false, false, true]),
    ] {
        let more =
            if more.is_empty() { String::new() } else { format!("token = {{ file = {token:?} }}") };
        let house = House::build(Plan { admin, more: &more, ..Plan::default() }).await;
        let port = house.service.admin().unwrap().port();
        let address = ([127, 0, 0, 1], port).into();
        for (lines, open) in [
            format!("Host: localhost:{port}\r\n"),
            "Host: [::1]\r\n".to_owned(),
            // A page whose author has pointed a name of his at this machine.
            format!("Host: attacker.example:{port}\r\n"),
            "Host: relay.example\r\nAuthorization: Bearer open-sesame\r\n".to_owned(),
        ]
        .iter()
        .zip(open)
        {
            for path in ["/status", "/status/x"] {
                let answer = common::get(address, path, lines).await;
                let refused = answer.starts_with("HTTP/1.1 403");
                assert_eq!(!refused, open, "{admin} {more} {path} {lines}: {answer}");
            }
            let answer = common::get(address, "/readyz", lines).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "health is for everybody: {answer}");
        }
        let wrong = "Host: localhost\r\nAuthorization: Bearer open-sesamf\r\n";
        let answer = common::get(address, "/status", wrong).await;
        let refused = answer.starts_with("HTTP/1.1 403");
        assert_eq!(refused, admin != "127.0.0.1:0", "{answer}");
    }
}

#[tokio::test]
async fn who_asks_for_nothing_keeps_nobody_else_waiting() {
    let house = House::new().await;
    let admin = house.service.admin().unwrap();
    let mut idle = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(admin).await.unwrap();
        stream.write_all(b"GET /status HTTP/1.1\r\nHost:").await.unwrap();
        idle.push(stream);
    }
    let answer = common::get(admin, "/healthz", "").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let mut rest = Vec::new();
    // Closed, with or without a word about the time that was up.
    idle[0].read_to_end(&mut rest).await.unwrap();
}
