//! The relay as a running thing: who gets in, logins of devices, limits, metrics, draining.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use std::{fs, time::Duration};

use common::{House, MAILBOX, MESSAGE, Plan};
use openssl::ssl::SslVersion;
use smtp_uplift::{
    config, sandbox::device::Device, service::Service, transport::device_tls::DeviceTls,
};

#[tokio::test]
async fn the_newest_session_above_the_limit_hears_421_and_the_others_go_on() {
    let house =
        House::build(Plan { more: "[limits]\nsessions_per_device = 2", ..Plan::default() }).await;
    let mut first = house.device().await;
    let second = house.device().await;
    let mut third = Device::connect(house.address()).await.unwrap();
    assert_eq!(third.greeting.to_string(), "421 4.7.0 too many sessions; try again later");
    assert!(third.is_closed().await);
    assert!(first.send("a@x", &["b@x"], MESSAGE).await.unwrap().code.is_positive());
    drop(second);
    while Device::connect(house.address()).await.unwrap().greeting.code.get() != 220 {}
    assert!(house.metric("sessions_total{listener=\"lan\",outcome=\"busy\"}") >= 1.0);
}

#[tokio::test]
async fn devices_log_in_from_the_users_file() {
    let hash = common::hash("geheim");
    let folder = tempfile::tempdir().unwrap();
    let users = folder.path().join("users.txt");
    fs::write(&users, format!("scan:{hash}\n")).unwrap();
    let house = House::build(Plan {
        listener: "tls = \"implicit\"\nauth = \"require\"",
        more: &format!("[auth]\nusers_file = {users:?}"),
        ..Plan::default()
    })
    .await;
    let tls = DeviceTls::new(SslVersion::TLS1_2, Some("AES256-SHA")).unwrap();
    let mut device = Device::connect_tls(house.address(), &tls).await.unwrap();
    for (line, answer) in [
        ("EHLO x", "250"),
        ("MAIL FROM:<a@x>", "530"),
        ("AUTH PLAIN AHNjYW4AZmFsc2No", "535 5.7.8"),
        ("AUTH PLAIN AHNjYW4AZ2VoZWlt", "235 2.7.0"),
    ] {
        let said = device.say(line).await.unwrap().to_string();
        assert!(said.starts_with(answer), "{line}: {said}");
    }
    assert!(device.send("a@x", &["b@x"], MESSAGE).await.unwrap().code.is_positive());
    let arrived = house.sandbox.deliveries().pop().unwrap().data;
    assert!(String::from_utf8_lossy(&arrived).contains(" with ESMTPSA id "));
    // A change of the file counts at once.
    fs::write(&users, "").unwrap();
    let mut device = Device::connect_tls(house.address(), &tls).await.unwrap();
    device.say("EHLO x").await.unwrap();
    assert_eq!(device.say("AUTH PLAIN AHNjYW4AZ2VoZWlt").await.unwrap().code.get(), 535);
}

#[tokio::test]
async fn received_can_keep_the_device_in_the_house() {
    let folder = tempfile::tempdir().unwrap();
    let house = House::new().await;
    let text = common::configuration(
        &Plan::default(),
        house.sandbox.address().port(),
        house.sandbox.certificate(),
        folder.path(),
    );
    let text = format!("received = \"no-client\"\n{text}");
    let config = config::parse(&text, &folder.path().join("x.toml")).unwrap().config;
    let service = Service::start(config).await.unwrap();
    let mut device = Device::connect(service.address("lan").unwrap()).await.unwrap();
    device.say("EHLO secret-copier").await.unwrap();
    assert!(device.send("a@x", &["b@x"], MESSAGE).await.unwrap().code.is_positive());
    let arrived = house.sandbox.deliveries().pop().unwrap().data;
    assert!(
        arrived.starts_with(b"Received: by relay.example (smtp-uplift)\r\n with ESMTP id "),
        "{arrived:?}"
    );
}

#[tokio::test]
async fn draining_ends_idle_sessions_and_lets_a_transaction_finish() {
    let House { service, sandbox, folder } = House::new().await;
    let address = service.address("lan").unwrap();
    let mut idle = Device::connect(address).await.unwrap();
    let mut busy = Device::connect(address).await.unwrap();
    busy.say("EHLO x").await.unwrap();
    for line in ["MAIL FROM:<a@x>", "RCPT TO:<b@x>", "DATA"] {
        busy.say(line).await.unwrap();
    }
    let device = async {
        assert_eq!(
            idle.read().await.unwrap().to_string(),
            "421 4.3.2 the relay is stopping, closing"
        );
        assert!(idle.is_closed().await);
        assert!(Device::connect(address).await.is_err(), "nobody is let in any more");
        busy.write(MESSAGE).await.unwrap();
        assert!(busy.say(".").await.unwrap().to_string().starts_with("250 2.0.0"));
        assert_eq!(busy.read().await.unwrap().code.get(), 421);
    };
    tokio::join!(service.stop(std::future::pending()), device);
    assert_eq!(sandbox.deliveries().len(), 1);
    drop(folder);
}

#[tokio::test]
async fn a_hurried_stop_drops_what_is_left_without_a_dot() {
    let House { service, sandbox, folder } = House::new().await;
    let mut device = Device::connect(service.address("lan").unwrap()).await.unwrap();
    device.say("EHLO x").await.unwrap();
    for line in ["MAIL FROM:<a@x>", "RCPT TO:<b@x>", "DATA"] {
        device.say(line).await.unwrap();
    }
    device.write("Subject: half").await.unwrap();
    let metrics = service.metrics().clone();
    service.stop(std::future::ready(())).await;
    assert!(device.is_closed().await);
    let aborted =
        format!("smtp_uplift_messages_total{{mailbox=\"{MAILBOX}\",result=\"aborted\"}} 1");
    assert!(metrics.render().contains(&aborted), "no transaction ends without its line");
    assert_eq!(sandbox.deliveries().len(), 0);
    drop(folder);
}

#[tokio::test]
async fn a_failed_handshake_is_counted_and_leaves_the_listener_alone() {
    let house = House::build(Plan {
        listener: "tls = \"implicit\"\ntls_profile = \"modern\"",
        ..Plan::default()
    })
    .await;
    let old = DeviceTls::new(SslVersion::TLS1, None).unwrap();
    assert!(Device::connect_tls(house.address(), &old).await.is_err());
    let new = DeviceTls::new(SslVersion::TLS1_3, None).unwrap();
    let mut device = Device::connect_tls(house.address(), &new).await.unwrap();
    device.say("EHLO x").await.unwrap();
    assert!(device.send("a@x", &["b@x"], MESSAGE).await.unwrap().code.is_positive());
    assert_eq!(house.metric("tls_handshakes_total{cipher=\"none\",listener=\"lan\",outcome=\"failed\",version=\"none\"}"), 1.0);
    assert_eq!(house.metric("messages_received_total{listener=\"lan\",tls=\"TLSv1.3\"}"), 1.0);
}

#[tokio::test]
async fn metrics_and_health_are_served() {
    let house = House::new().await;
    assert!(house.send("a@x", &["b@x"]).await.starts_with("250"));
    let admin = house.service.admin().unwrap();
    let ask = async |path: &str| common::get(admin, path, "").await;
    let metrics = ask("/metrics").await;
    for line in [
        "content-type: text/plain; version=0.0.4",
        "smtp_uplift_messages_received_total{listener=\"lan\",tls=\"plain\"} 1",
        &format!("smtp_uplift_messages_total{{mailbox=\"{MAILBOX}\",result=\"relayed\"}} 1"),
        &format!(
            "smtp_uplift_upstream_replies_total{{class=\"service\",code=\"250\",enhanced=\"2.0.0\",mailbox=\"{MAILBOX}\",rule=\"accepted\",stage=\"eod\"}} 1"
        ),
        &format!("smtp_uplift_upstream_connects_total{{mailbox=\"{MAILBOX}\",outcome=\"ok\"}} 1"),
        "smtp_uplift_build_info{openssl=\"OpenSSL 3",
        "smtp_uplift_certificate_expiry_timestamp_seconds{listener=\"lan\"} 2",
        "process_resident_memory_bytes",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    assert!(ask("/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(ask("/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(ask("/nothing").await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn what_is_wrong_is_found_at_start() {
    let house = House::new().await;
    let start = async |plan: Plan<'_>| {
        let text =
            common::configuration(&plan, 1, house.sandbox.certificate(), house.folder.path());
        let config = config::parse(&text, &house.folder.path().join("x.toml")).unwrap().config;
        Service::start(config).await.map(|_| ()).unwrap_err().to_string()
    };
    let taken = house.service.admin().unwrap();
    let said = start(Plan { admin: &taken.to_string(), ..Plan::default() }).await;
    assert!(said.starts_with(&format!("admin cannot listen on {taken}: ")), "{said}");
    fs::write(house.folder.path().join("users.txt"), "scan:plain\n").unwrap();
    let said = start(Plan { more: "[auth]\nusers_file = \"users.txt\"", ..Plan::default() }).await;
    assert!(said.contains("users.txt:1: expected name:argon2 hash"), "{said}");
    fs::write(house.folder.path().join("bad.crt"), "x").unwrap();
    let said = start(Plan {
        more: "[tls]\ncertificate = \"bad.crt\"\nprivate_key = \"bad.crt\"",
        ..Plan::default()
    })
    .await;
    assert!(said.contains("bad.crt: no certificate in PEM form"), "{said}");
}

#[tokio::test]
async fn an_idle_session_ends_with_421() {
    let house =
        House::build(Plan { more: "[limits]\nidle_timeout = \"50ms\"", ..Plan::default() }).await;
    let mut device = Device::connect(house.address()).await.unwrap();
    let said = tokio::time::timeout(Duration::from_secs(20), device.read())
        .await
        .unwrap()
        .unwrap()
        .to_string();
    assert_eq!(said, "421 4.4.2 nothing came for too long, closing");
    assert!(device.is_closed().await);
}

#[tokio::test]
async fn a_dot_without_a_verdict_is_unknown_when_the_relay_is_told_to_hurry() {
    let House { service, sandbox, folder } = House::new().await;
    let metrics = service.metrics().clone();
    let mut device = Device::connect(service.address("lan").unwrap()).await.unwrap();
    device.say("EHLO x").await.unwrap();
    for line in ["MAIL FROM:<a@x>", "RCPT TO:<slow-dot-60@x>", "DATA"] {
        device.say(line).await.unwrap();
    }
    device.write(MESSAGE).await.unwrap();
    device.write(".\r\n").await.unwrap();
    let received = "smtp_uplift_messages_received_total{listener=\"lan\",tls=\"plain\"} 1";
    while !metrics.render().contains(received) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    service.stop(std::future::ready(())).await;
    let unknown =
        format!("smtp_uplift_messages_total{{mailbox=\"{MAILBOX}\",result=\"unknown\"}} 1");
    assert!(metrics.render().contains(&unknown));
    drop((sandbox, folder));
}
