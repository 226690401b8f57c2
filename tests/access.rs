//! Who may send, as whom, where, and how much.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;
#[path = "access/limits.rs"]
mod limits;
#[path = "access/logins.rs"]
mod logins;

use std::{fs, path::PathBuf, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use common::{MESSAGE, Plan, SPOOL, STREAM, hash, memory::InMemory};
use smtp_uplift::sandbox::device::Device;
use tempfile::TempDir;
use tokio::time::sleep;

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// A users file with these logins, each with the password "geheim", and the section that names it.
fn users(names: &[&str]) -> (TempDir, PathBuf, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("users.txt");
    let lines: String = names.iter().map(|name| format!("{name}:{}\n", hash("geheim"))).collect();
    fs::write(&file, lines).unwrap();
    let section = format!("[auth]\nusers_file = {file:?}\n");
    (folder, file, section)
}

const LOGINS: &str = "auth = \"offer\"\nauth_without_tls = true";

/// A device at that address that has said EHLO.
async fn device_at(house: &InMemory, peer: &str) -> Device {
    let mut device = Device::over(house.connect_from(peer.parse().unwrap())).await.unwrap();
    device.say("EHLO copier").await.unwrap();
    device
}

async fn log_in(device: &mut Device, user: &str, secret: &str) -> String {
    let secret = BASE64_STANDARD.encode(format!("\0{user}\0{secret}"));
    device.say(&format!("AUTH PLAIN {secret}")).await.unwrap().to_string()
}

async fn say(device: &mut Device, line: &str) -> String {
    device.say(line).await.unwrap().to_string()
}

fn limited(house: &InMemory, limit: &str) -> f64 {
    house.metric(&format!("limits_total{{limit=\"{limit}\",listener=\"lan\"}}"))
}

#[tokio::test(start_paused = true)]
async fn a_device_sends_as_whom_and_where_its_entry_says() {
    let more = "[[device]]\nname = \"copier 3\"\naddress = \"10.0.0.3\"\nsenders = [\"copier3@x\", \"*@y\"]\n\
                recipients = [\"*@Example.com\"]\n";
    let house = InMemory::build(Plan { more, ..Plan::default() }).await;
    let mut device = device_at(&house, "10.0.0.3").await;
    assert_eq!(
        say(&mut device, "MAIL FROM:<boss@x>").await,
        "550 5.7.1 copier_3 may not send as boss@x; whoever runs the relay can add it to senders of [[device]]"
    );
    assert!(
        say(&mut device, "RCPT TO:<a@example.com>").await.starts_with("503 "),
        "no transaction"
    );
    for sender in ["", "COPIER3@X", "any@y"] {
        assert!(say(&mut device, &format!("MAIL FROM:<{sender}>")).await.starts_with("250 "));
        let refused = say(&mut device, "RCPT TO:<a@elsewhere.com>").await;
        assert!(
            refused.starts_with("550 5.7.1 copier_3 may not send to a@elsewhere.com; "),
            "{refused}"
        );
        assert!(say(&mut device, "DATA").await.starts_with("503 "), "no recipient");
        assert!(say(&mut device, "RCPT TO:<a@EXAMPLE.COM>").await.starts_with("250 "));
        device.say("RSET").await.unwrap();
    }
    let other = house.send_from("10.0.0.4", "boss@x", &["a@elsewhere.com"]).await;
    assert!(other.starts_with("250 "), "{other}");
}

#[tokio::test(start_paused = true)]
async fn what_a_login_says_counts_after_it() {
    let (_folder, _, section) = users(&["alarm", "free"]);
    let more = format!(
        "{section}[[device]]\nlogin = \"alarm\"\nsenders = [\"alarm@x\"]\nrecipients = [\"guard@x\"]\n\
         line_endings = \"strict\"\ndelivery = \"spool\"\n"
    );
    let house = InMemory::build(Plan { listener: LOGINS, more: &more, ..Plan::default() }).await;
    let mut device = device_at(&house, "10.0.0.3").await;
    assert!(say(&mut device, "MAIL FROM:<boss@x>").await.starts_with("250 "), "nobody yet");
    device.say("RSET").await.unwrap();
    assert!(log_in(&mut device, "alarm@panel.lan", "geheim").await.starts_with("235 "));
    assert!(say(&mut device, "MAIL FROM:<boss@x>").await.starts_with("550 5.7.1 alarm may not"));
    let bare_lf =
        device.send("alarm@x", &["guard@x"], "Subject: a\n\r\n").await.unwrap().to_string();
    assert!(bare_lf.starts_with("554 5.6.0 "), "{bare_lf}");
    let message = "From: alarm@x\r\n\r\nline\r\n";
    let queued = device.send("alarm@x", &["guard@x"], message).await.unwrap().to_string();
    assert!(queued.starts_with("250 2.0.0 queued, id "), "{queued}");
    let mut device = device_at(&house, "10.0.0.3").await;
    log_in(&mut device, "free", "geheim").await;
    let sent = device.send("boss@x", &["a@x"], "Subject: a\n\r\n").await.unwrap().to_string();
    assert!(sent.starts_with("250 2.0.0 ok, id "), "{sent}");
}

#[tokio::test(start_paused = true)]
async fn a_device_may_have_a_delivery_of_its_own() {
    for (all, own, heard) in [
        (STREAM, "spool", ["250 2.0.0 queued, id ", "250 2.0.0 ok, id "]),
        (SPOOL, "stream", ["250 2.0.0 ok, id ", "250 2.0.0 queued, id "]),
    ] {
        let more = format!("[[device]]\naddress = \"10.0.0.3\"\ndelivery = \"{own}\"\n");
        let house = InMemory::build(Plan { delivery: all, more: &more, ..Plan::default() }).await;
        for (peer, heard) in ["10.0.0.3", "10.0.0.4"].into_iter().zip(heard) {
            let said = house.send_from(peer, "a@x", &["b@x"]).await;
            assert!(said.starts_with(heard), "{all} {own} {peer}: {said}");
        }
        sleep(seconds(5)).await;
        assert_eq!(house.sandbox.deliveries().len(), 2, "{all} {own}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_sends_so_many_messages_and_refused_ones_do_not_count() {
    let more = "[limits]\nmessages_per_device = \"2/h\"\n[[device]]\naddress = \"10.0.0.0/24\"\n\
                tls_profile = \"ancient\"\n";
    let house = InMemory::build(Plan { more, ..Plan::default() }).await;
    for to in ["reply-550-5.1.1-rcpt@x", "reply-554-5.7.1-dot@x"] {
        let refused = house.send_from("10.0.0.3", "a@x", &[to]).await;
        assert!(refused.starts_with("55"), "{refused}");
    }
    let mut open = device_at(&house, "10.0.0.3").await;
    let mut second = device_at(&house, "10.0.0.3").await;
    let mut third = device_at(&house, "10.0.0.3").await;
    assert!(say(&mut open, "MAIL FROM:<a@x>").await.starts_with("250 "));
    assert!(say(&mut second, "MAIL FROM:<a@x>").await.starts_with("250 "));
    let spent = say(&mut third, "MAIL FROM:<a@x>").await;
    assert!(
        spent
            .starts_with("451 4.7.0 this device has used its 2 messages of an hour; try again in "),
        "{spent}"
    );
    assert_eq!(limited(&house, "messages_per_device"), 1.0);
    // One gives up: there is room again.
    second.say("RSET").await.unwrap();
    assert!(third.send("a@x", &["b@x"], MESSAGE).await.unwrap().code.is_positive());
    open.say("RSET").await.unwrap();
    assert!(open.send("a@x", &["b@x"], MESSAGE).await.unwrap().code.is_positive());
    assert!(say(&mut second, "MAIL FROM:<a@x>").await.starts_with("451 4.7.0 "));
    let other = house.send_from("10.0.0.4", "a@x", &["b@x"]).await;
    assert!(other.starts_with("250 "), "a network is no device: {other}");
    sleep(seconds(3_700)).await;
    let later = house.send_from("10.0.0.3", "a@x", &["b@x"]).await;
    assert!(later.starts_with("250 "), "{later}");
}

#[tokio::test(start_paused = true)]
async fn a_device_sends_to_so_many_recipients_under_whatever_address() {
    let (_folder, _, section) = users(&["alarm"]);
    let more = format!("{section}[limits]\nrecipients_per_device = \"3/d\"\n");
    let house = InMemory::build(Plan { listener: LOGINS, more: &more, ..Plan::default() }).await;
    for (peer, heard) in [
        ("10.0.0.3", "250 "),
        ("10.0.0.4", "452 4.5.3 this device has used its 3 recipients of a day; try again in "),
    ] {
        let mut device = device_at(&house, peer).await;
        assert!(log_in(&mut device, "alarm", "geheim").await.starts_with("235 "));
        let said = device.send("a@x", &["b@x", "c@x"], MESSAGE).await.unwrap().to_string();
        assert!(said.starts_with(heard), "{peer}: {said}");
    }
    assert_eq!(limited(&house, "recipients_per_device"), 1.0);
    // A /64 is one device, as long as nothing else is known of it.
    for (peer, heard) in
        [("2001:db8::1", "250 "), ("2001:db8::2", "452 "), ("2001:db8:0:1::1", "250 ")]
    {
        let peer = peer.replace("2001:db8", "fd00");
        let said = house.send_from(&peer, "a@x", &["b@x", "c@x"]).await;
        assert!(said.starts_with(heard), "{peer}: {said}");
    }
}

/// devices.md row 31: an ERP sends what it has at once.
#[tokio::test(start_paused = true)]
async fn row_31_fifty_jobs_on_fifty_connections_in_one_second() {
    let mailbox =
        "password = { file = \"password\" }\nmax_connections = 3\nmessages_per_minute = 28";
    let plan = Plan { delivery: common::KEEP, mailbox, ..Plan::default() };
    let house = InMemory::build(plan).await;
    let limits = &house.relay.limits;
    let seats = std::sync::Arc::new(smtp_uplift::transport::listener::Seats::new(
        limits.sessions,
        limits.sessions_per_device,
    ));
    let mut jobs = tokio::task::JoinSet::new();
    for job in 0..50 {
        let peer = "10.0.0.31".parse().unwrap();
        let (seat, io) = (seats.take(peer).unwrap(), house.connect_from(peer));
        jobs.spawn(async move {
            let _seat = seat;
            sleep(Duration::from_millis(20 * job)).await;
            let mut device = Device::over(io).await.unwrap();
            device.say("EHLO erp").await.unwrap();
            let began = tokio::time::Instant::now();
            let heard = device.send("erp@x", &["b@x"], MESSAGE).await.unwrap().to_string();
            (heard, began.elapsed())
        });
    }
    while let Some(job) = jobs.join_next().await {
        let (heard, took) = job.unwrap();
        assert!(heard.starts_with("250 "), "{heard}");
        assert!(took <= seconds(20), "{took:?}");
    }
    sleep(seconds(600)).await;
    assert_eq!(house.sandbox.deliveries().len(), 50);
}
