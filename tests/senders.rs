//! Whom messages are from when they arrive, in all modes: with the clock stopped and streams in memory.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use std::time::Duration;

use common::{
    KEEP, MAILBOX, PASSWORD, Plan, SPOOL, STREAM,
    memory::{InMemory, timed},
};
use openssl::sha::sha256;
use smtp_uplift::{
    sandbox::{Delivery, Sandbox, device::Device, scenario::Scenario},
    spool::queue::{Filter, Queue as _, State},
};

const REWRITE: &str = "[sender]\nrewrite = \"mailbox\"\n";
const MODES: [&str; 3] = [STREAM, KEEP, SPOOL];
const TO: &str = "office@example.com";

fn plan<'a>(delivery: &'a str, more: &'a str) -> Plan<'a> {
    Plan { delivery, more, settled: false, ..Plan::default() }
}

async fn send(house: &InMemory, from: &str, message: &[u8]) -> String {
    let mut device = house.device().await;
    device.send(from, &[TO], message.to_vec()).await.unwrap().to_string()
}

/// The next message that arrives: its delivery, its header section and what is behind the blank line.
async fn arrives(sandbox: &Sandbox, count: u64) -> (Delivery, String, Vec<u8>) {
    sandbox.delivered(count).await;
    let delivery = sandbox.deliveries().pop().unwrap();
    let end = delivery.data.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = String::from_utf8_lossy(&delivery.data[..end + 2]).into_owned();
    let body = delivery.data[end + 4..].to_vec();
    (delivery, head, body)
}

/// The lines of a header section behind our Received field.
fn fields(head: &str) -> Vec<&str> {
    head.split_inclusive("\r\n").skip(4).collect()
}

#[tokio::test(start_paused = true)]
async fn row_24_senders_become_the_mailbox_before_any_data_go_up() {
    let body = b"line\r\n..stuffed\r\nFrom: not a header field\r\n";
    let table: &[(&str, &str, &str, &[&str])] = &[
        (
            "copier@printer.local",
            "From: \"Copier, 3rd floor\"\r\n <scanner@printer.local>\r\nSubject: scan\r\n",
            MAILBOX,
            &["From: \"Copier, 3rd floor\" <scanner@example.com>\r\n", "Subject: scan\r\n"],
        ),
        (
            "boss@example.com",
            "Subject: scan\r\nFrom: Boss <boss@example.com>\r\nFrom: x\r\n",
            MAILBOX,
            &[
                "From: Boss <scanner@example.com>\r\n",
                "Reply-To: boss@example.com\r\n",
                "Subject: scan\r\n",
            ],
        ),
        (
            "helpdesk@example.com",
            "From: Help <helpdesk@example.com>\r\n",
            "helpdesk@example.com",
            &["From: Help <helpdesk@example.com>\r\n"],
        ),
        ("", "Subject: x\r\n", MAILBOX, &["From: <scanner@example.com>\r\n", "Subject: x\r\n"]),
        ("", "From:\r\n", MAILBOX, &["From: <scanner@example.com>\r\n"]),
    ];
    let mailbox = "password = { file = \"password\" }\nsend_as = [\"helpdesk@example.com\"]";
    for delivery in MODES {
        let house = InMemory::build(Plan { mailbox, ..plan(delivery, REWRITE) }).await;
        let mut count = 0;
        for (from, header, sender, expected) in table {
            count += 1;
            let known = "Date: Sun, 22 Nov 2026 10:00:00 +0000\r\nMessage-ID: <a@b>\r\n";
            let message = [known.as_bytes(), header.as_bytes(), b"\r\n", &body[..]].concat();
            let heard = send(&house, from, &message).await;
            assert!(heard.starts_with("250 "), "{delivery} {header:?}: {heard}");
            let (arrived, head, behind) = arrives(&house.sandbox, count).await;
            assert_eq!(arrived.from, *sender, "{delivery} {header:?}");
            let mut ours: Vec<&str> = fields(&head);
            ours.retain(|line| !known.contains(line));
            assert_eq!(ours, *expected, "{delivery} {header:?}");
            assert!(behind == body, "{delivery} {header:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_is_held_to_its_own_senders() {
    let mailbox = "password = { file = \"password\" }\nsend_as = [\"*@example.com\"]";
    let more = format!(
        "{REWRITE}[[device]]\nname = \"copier\"\naddress = \"127.0.0.1\"\nsenders = [\"copier@example.com\"]\n"
    );
    for delivery in MODES {
        let house = InMemory::build(Plan { mailbox, ..plan(delivery, &more) }).await;
        let message = b"From: Boss <boss@example.com>\r\n\r\nx\r\n";
        let heard = send(&house, "copier@example.com", message).await;
        assert!(heard.starts_with("250 "), "{delivery}: {heard}");
        let (arrived, head, _) = arrives(&house.sandbox, 1).await;
        assert_eq!(arrived.from, "copier@example.com", "{delivery}");
        assert!(head.contains("\r\nFrom: Boss <scanner@example.com>\r\n"), "{delivery}: {head}");
    }
}

#[tokio::test(start_paused = true)]
async fn where_nothing_is_rewritten_a_from_of_somebody_else_is_refused_at_the_dot() {
    let more = "[sender]\nrewrite = \"keep\"\n[[device]]\nname = \"copier\"\naddress = \"127.0.0.1\"\nsenders = [\"copier@example.com\"]\n";
    for delivery in MODES {
        let house = InMemory::build(plan(delivery, more)).await;
        for from in ["Boss <boss@example.com>", "[<boss@example.com>] <copier@example.com>"] {
            let message = format!("From: {from}\r\n\r\nx\r\n");
            let heard = send(&house, "copier@example.com", message.as_bytes()).await;
            let expected =
                "550 5.7.1 copier may not send as boss@example.com; whoever runs the relay";
            assert!(heard.starts_with(expected), "{delivery}: {heard}");
        }
        let message = b"From: Me <copier@example.com>\r\n\r\nx\r\n";
        let heard = send(&house, "copier@example.com", message).await;
        assert!(heard.starts_with("250 "), "{delivery}: {heard}");
        let (_, head, _) = arrives(&house.sandbox, 1).await;
        assert!(head.contains("\r\nFrom: Me <copier@example.com>\r\n"), "{delivery}: {head}");
    }
}

/// The entry of the address has the name, that of the login the senders.
#[tokio::test(start_paused = true)]
async fn what_a_login_may_send_as_counts_for_the_from_field_too() {
    let mailbox = "password = { file = \"password\" }\nsend_as = [\"*@example.com\"]";
    let folder = tempfile::tempdir().unwrap();
    let users = folder.path().join("users.txt");
    std::fs::write(&users, format!("copier3:{}\n", common::hash("x"))).unwrap();
    let users = users.display();
    let more = format!(
        "{REWRITE}[auth]\nusers_file = \"{users}\"\n[[device]]\nname = \"floor\"\naddress = \"127.0.0.0/8\"\n[[device]]\nname = \"copier\"\nlogin = \"copier3\"\nsenders = [\"copier@example.com\"]\n"
    );
    for delivery in MODES {
        let listener = "auth = \"offer\"\nauth_without_tls = true";
        let house = InMemory::build(Plan { mailbox, listener, ..plan(delivery, &more) }).await;
        let mut device = house.device().await;
        device.say("EHLO copier").await.unwrap();
        let login = device.say("AUTH PLAIN AGNvcGllcjMAeA==").await.unwrap().to_string();
        assert!(login.starts_with("235 "), "{login}");
        let message = b"From: Boss <boss@example.com>\r\n\r\nx\r\n".to_vec();
        let heard = device.send("copier@example.com", &[TO], message).await.unwrap().to_string();
        assert!(heard.starts_with("250 "), "{delivery}: {heard}");
        let (arrived, head, _) = arrives(&house.sandbox, 1).await;
        assert_eq!(arrived.from, "copier@example.com", "{delivery}");
        assert!(head.contains("\r\nFrom: Boss <scanner@example.com>\r\n"), "{delivery}: {head}");
        if delivery == SPOOL {
            let all = house.keeper().queue.list(Filter::default()).await.unwrap();
            assert!(all.iter().all(|message| message.device == "copier"), "{all:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn row_25_a_date_and_a_message_id_are_added_where_they_are_missing() {
    for delivery in MODES {
        for more in [REWRITE, "[sender]\nrewrite = \"keep\"\n"] {
            let house = InMemory::build(plan(delivery, more)).await;
            let message = b"From: scanner@example.com\r\nX: y\r\n\r\nbody\r\n";
            let heard = send(&house, MAILBOX, message).await;
            let id = heard.split("id ").nth(1).unwrap().split(';').next().unwrap();
            let (_, head, _) = arrives(&house.sandbox, 1).await;
            let lines = fields(&head);
            assert!(lines[0].starts_with("Date: ") && lines.len() == 4, "{delivery}: {head}");
            assert_eq!(lines[1], format!("Message-ID: <{id}@relay.example>\r\n"), "{delivery}");
            assert_eq!(lines[2..], ["From: scanner@example.com\r\n", "X: y\r\n"], "{delivery}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn row_25_they_stay_the_same_over_attempts_and_a_restart() {
    for delivery in [KEEP, SPOOL] {
        let house = InMemory::build(plan(delivery, REWRITE)).await;
        house.sandbox.refuse(true);
        let heard = send(&house, "a@printer.lan", b"Subject: x\r\n\r\nbody\r\n").await;
        assert!(heard.starts_with("250 2.0.0 queued, id "), "{heard}");
        let id = house.keeper().queue.list(Filter::default()).await.unwrap()[0].id.clone();
        let kept = house.keeper().queue.show(id.clone()).await.unwrap().unwrap().head;
        assert!(kept.contains("\r\nDate: ") && kept.contains(&format!("Message-ID: <{id}@")));
        assert!(!kept.contains("From: "), "that depends on the mailbox: {kept}");
        tokio::time::sleep(Duration::from_secs(100)).await;
        let (sandbox, folder) = house.stop().await;
        let house = InMemory::with(sandbox, folder, plan(delivery, REWRITE)).await;
        house.sandbox.refuse(false);
        let (_, head, _) = arrives(&house.sandbox, 1).await;
        let expected = "From: \"a@printer.lan\" <scanner@example.com>\r\nSubject: x\r\n";
        assert_eq!(head, format!("{kept}{expected}"), "{delivery}");
    }
}

#[tokio::test(start_paused = true)]
async fn another_mailbox_is_another_from_and_a_stopped_one_is_passed_over() {
    let more = format!(
        "[[mailbox]]\naddress = \"second@example.com\"\npassword = {{ file = \"password\" }}\n{REWRITE}"
    );
    let mailbox = "password = { file = \"password\" }\nsend_as = [\"*@printer.test\"]";
    let wrong = Scenario { password: Some("another".to_owned()), ..Scenario::default() };
    let good = Scenario { password: Some(PASSWORD.to_owned()), ..Scenario::default() };
    for delivery in MODES {
        let plan = Plan { scenario: wrong.clone(), mailbox, ..plan(delivery, &more) };
        let house = InMemory::several(plan, vec![good.clone()]).await;
        let message = b"From: Copier <a@printer.test>\r\n\r\nx\r\n";
        for count in 1..3 {
            // The first could send as this sender, and cannot log in.
            let heard = send(&house, "a@printer.test", message).await;
            assert!(heard.starts_with("250 "), "{delivery}: {heard}");
            let (arrived, head, _) = arrives(&house.more[0], count).await;
            assert_eq!(arrived.from, "second@example.com", "{delivery}");
            let from = "\r\nFrom: Copier <second@example.com>\r\nReply-To: a@printer.test\r\n";
            assert!(head.contains(from), "{delivery}: {head}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn row_22_without_a_header_section_the_data_are_a_body() {
    for delivery in MODES {
        let house = InMemory::build(plan(delivery, REWRITE)).await;
        let messages: [(&[u8], &[u8]); 5] = [
            (
                b"door 4 is open\r\nFrom: text\r\n\r\nmore\r\n",
                b"door 4 is open\r\nFrom: text\r\n\r\nmore\r\n",
            ),
            (b"\r\nFrom: text\r\n", b"From: text\r\n"),
            (b"T\xfcr 4\r\n..\r\n", b"T\xfcr 4\r\n..\r\n"),
            (b"QUJD\r\nREVG\r\n", b"QUJD\r\nREVG\r\n"),
            (b"From a@b Mon\r\nthe door\r\n", b"From a@b Mon\r\nthe door\r\n"),
        ];
        for (count, (message, body)) in (1..).zip(messages) {
            let heard = send(&house, MAILBOX, message).await;
            assert!(heard.starts_with("250 "), "{delivery}: {heard}");
            let (_, head, behind) = arrives(&house.sandbox, count).await;
            assert!(fields(&head)[2..] == ["From: <scanner@example.com>\r\n"], "{head}");
            assert_eq!(behind, body, "{delivery}");
        }
        // A mail file's line and a byte order mark would end the header section behind fields of ours.
        for (count, front) in (6..).zip(["From a@b Mon Jan  1 00:00:00 2026\r\n", "\u{feff}"]) {
            let message = format!("{front}From: A <a@x.lan>\r\nX: y\r\n\r\n{front}z\r\n");
            let heard = send(&house, MAILBOX, message.as_bytes()).await;
            assert!(heard.starts_with("250 "), "{delivery}: {heard}");
            let (_, head, behind) = arrives(&house.sandbox, count).await;
            let expected = ["From: A <scanner@example.com>\r\n", "X: y\r\n"];
            assert!(fields(&head)[2..] == expected, "{delivery}: {head}");
            assert_eq!(behind, format!("{front}z\r\n").as_bytes(), "{delivery}");
        }
        // Header only, and octets outside ASCII in it.
        let heard = send(&house, MAILBOX, b"From: B\xfcro <a@x.lan>\r\nSubject: \xe9\r\n").await;
        assert!(heard.starts_with("250 "), "{delivery}: {heard}");
        house.sandbox.delivered(8).await;
        let data = house.sandbox.deliveries().pop().unwrap().data;
        assert!(data.ends_with(b"From: B\xfcro <scanner@example.com>\r\nSubject: \xe9\r\n"));
    }
}

#[tokio::test(start_paused = true)]
async fn row_33_smtputf8_is_asked_for_only_by_addresses_as_they_are_sent() {
    let scenario = || Scenario {
        password: Some(PASSWORD.to_owned()),
        hide: vec!["SMTPUTF8".to_owned()],
        ..Scenario::default()
    };
    let message = "From: M\u{fc}ller <m\u{fc}ller@b\u{fc}cher.example>\r\n\r\nx\r\n".as_bytes();
    let sender = "m\u{fc}ller@b\u{fc}cher.example";
    for delivery in MODES {
        let house = InMemory::build(Plan { scenario: scenario(), ..plan(delivery, REWRITE) }).await;
        let heard = send(&house, sender, message).await;
        assert!(heard.starts_with("250 "), "{delivery}: {heard}");
        let (arrived, head, _) = arrives(&house.sandbox, 1).await;
        assert_eq!(arrived.from, MAILBOX, "{delivery}");
        let from = format!("\r\nFrom: M\u{fc}ller <{MAILBOX}>\r\nReply-To: {sender}\r\n");
        assert!(head.contains(&from), "{delivery}: {head}");
        let house = InMemory::build(Plan { ..plan(delivery, "") }).await;
        let heard = send(&house, sender, message).await;
        assert!(heard.starts_with("250 "), "{delivery}: {heard}");
        let (arrived, head, _) = arrives(&house.sandbox, 1).await;
        assert_eq!(arrived.from, sender, "{delivery}: as it came");
        assert!(head.contains(&format!("<{sender}>")), "{delivery}: {head}");
    }
}

#[tokio::test(start_paused = true)]
async fn long_header_sections_and_long_bodies_arrive() {
    let body = b"0123456789abcdef0123456789abcdef\r\n..\r\n".repeat(10_000);
    for delivery in MODES {
        let house = InMemory::build(plan(delivery, REWRITE)).await;
        for (count, kib) in (1..).zip([1, 64, 200, 255]) {
            let more = b"X-Page: 0123456789abcdef\r\n".repeat(kib * 1024 / 26);
            let from = b"From: Copier <a@printer.lan>\r\n";
            let message = [&more[..], from, b"\r\n", &body].concat();
            let mut device = house.device().await;
            for line in ["MAIL FROM:<a@printer.lan>", "RCPT TO:<office@example.com>", "DATA"] {
                device.say(line).await.unwrap();
            }
            for piece in message.chunks(20_001) {
                device.write(piece.to_vec()).await.unwrap();
            }
            let heard = device.say(".").await.unwrap().to_string();
            assert!(heard.starts_with("250 "), "{delivery} {kib}: {heard}");
            let (arrived, head, _) = arrives(&house.sandbox, count).await;
            assert_eq!(arrived.body, sha256(&body), "{delivery} {kib}");
            let (ours, theirs) = head.split_at(head.find("X-Page").unwrap());
            assert!(ours.ends_with("From: Copier <scanner@example.com>\r\n"), "{ours}");
            assert!(theirs.as_bytes() == more, "{delivery} {kib}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_header_section_without_an_end_is_refused_at_the_dot() {
    for delivery in MODES {
        let house = InMemory::build(plan(delivery, REWRITE)).await;
        let message =
            [&b"X: y\r\n".repeat(50_000)[..], b"\r\n", &b"body\r\n".repeat(50_000)].concat();
        let mut device = house.device().await;
        let heard = device.send(MAILBOX, &[TO], message).await.unwrap().to_string();
        assert!(heard.starts_with("552 5.3.4 the header section has more than 256 KiB"), "{heard}");
        let heard = device.send(MAILBOX, &[TO], "X: y\r\n\r\nz\r\n").await.unwrap().to_string();
        assert!(heard.starts_with("250 "), "the session goes on: {heard}");
        house.sandbox.delivered(1).await;
        assert_eq!(house.sandbox.deliveries().len(), 1, "{delivery}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_goes_in_circles_is_refused_and_not_kept() {
    let hop = "Received: from a by b with SMTP; Sun, 22 Nov 2026 10:00:00 +0000\r\n";
    let ours = "Received: from x ([192.0.2.1])\r\n by relay.example (smtp-uplift)\r\n with SMTP id k3.1;\r\n now\r\n";
    for delivery in MODES {
        let house = InMemory::build(plan(delivery, REWRITE)).await;
        for (trace, reason) in [
            (ours.to_owned(), "a loop: this relay had this message before; end the forwarding"),
            (
                hop.repeat(101),
                "a loop: the message has passed more than 100 servers; end the forwarding",
            ),
        ] {
            let heard = send(&house, MAILBOX, format!("{trace}\r\nx\r\n").as_bytes()).await;
            assert!(heard.starts_with(&format!("554 5.4.6 {reason}")), "{delivery}: {heard}");
        }
        assert_eq!(house.metric("device_faults_total{kind=\"loop\",listener=\"lan\"}"), 2.0);
        if delivery != STREAM {
            let all = house.keeper().queue.list(Filter::default()).await.unwrap();
            assert!(all.iter().all(|message| message.state == State::Done), "{all:?}");
        }
        let long = format!("{}\r\nx\r\n", hop.repeat(100));
        assert!(send(&house, MAILBOX, long.as_bytes()).await.starts_with("250 "), "{delivery}");
        house.sandbox.delivered(1).await;
        assert_eq!(house.sandbox.deliveries().len(), 1, "{delivery}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_that_trickles_its_header_section_loses_its_connection() {
    let house = InMemory::build(plan(STREAM, REWRITE)).await;
    let mut device: Device = house.device().await;
    for line in ["MAIL FROM:<a@x>", "RCPT TO:<office@example.com>", "DATA"] {
        device.say(line).await.unwrap();
    }
    device.write("From: a@x\r\nX: ").await.unwrap();
    tokio::time::sleep(Duration::from_secs(12)).await;
    let (heard, _) = timed(device.say("y\r\n\r\nbody\r\n.")).await;
    assert!(heard.unwrap().to_string().starts_with("451 4.4.2 too slow"));
    assert_eq!(house.sandbox.deliveries().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn where_no_memory_is_left_to_edit_a_long_section_in_the_spool_takes_the_message() {
    let delivery =
        "mode = \"stream-then-spool\"\nreplay_memory = \"0B\"\nreplay_memory_total = \"0B\"";
    let house = InMemory::build(plan(delivery, REWRITE)).await;
    for (octets, answer) in [(1_000, "ok"), (30_000, "queued")] {
        let line = format!("X-Long: {}\r\n", "x".repeat(900)).repeat(octets / 900);
        let message = format!("From: <boss@example.com>\r\n{line}\r\nbody\r\n");
        let heard = send(&house, "boss@example.com", message.as_bytes()).await;
        assert!(heard.starts_with("250 2.0.0 "), "{heard}");
        assert_eq!(heard.contains("queued"), answer == "queued", "{heard}");
    }
    let (_, head, body) = arrives(&house.sandbox, 2).await;
    assert!(head.contains("From: \"boss@example.com\" <scanner@example.com>\r\n"), "{head}");
    assert_eq!(body, b"body\r\n");
}
