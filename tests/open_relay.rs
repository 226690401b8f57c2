//! Nobody sends through the relay but those who are meant to: source, login, recipient, sender, and what comes of it.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use std::fs;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use common::{KEEP, Plan, STREAM, hash, memory::InMemory};
use smtp_uplift::sandbox::device::Device;

const INSIDE: &str = "10.1.2.3";
const OUTSIDE: &str = "193.99.144.85";
const RIGHT: Option<(&str, &str)> = Some(("scan", "geheim"));
const WRONG: Option<(&str, &str)> = Some(("scan", "wrong"));
const NOBODY: Option<(&str, &str)> = Some(("nobody", "geheim"));

const SENT: &str = "250 2.0.0 ";
const TURNED_AWAY: &str = "554 5.7.1 this address is not allowed to connect";
const NO_LOGIN: &str = "530 5.7.0 authentication required";
const NOT_THIS: &str = "550 5.7.1 ";

type Row<'a> = (&'a str, Option<(&'a str, &'a str)>, &'a str, &'a str, &'a str);

/// Plays each row against a relay with these lines at its listener and these sections: address, login, sender,
/// recipient and what is heard in the end.
async fn play(listener: &str, sections: &str, rows: &[Row<'_>]) {
    let folder = tempfile::tempdir().unwrap();
    let users = folder.path().join("users.txt");
    fs::write(&users, format!("scan:{0}\nalarm:{0}\n", hash("geheim"))).unwrap();
    let more = format!("[auth]\nusers_file = {users:?}\n{sections}");
    for delivery in [STREAM, KEEP] {
        let plan = Plan { listener, more: &more, delivery, ..Plan::default() };
        let house = InMemory::build(plan).await;
        for (number, (peer, login, from, to, outcome)) in rows.iter().enumerate() {
            let before = house.sandbox.deliveries().len();
            let heard = try_to_send(&house, peer, *login, from, to).await;
            let row = format!("row {number} of {listener:?} {sections:?}, {delivery}");
            assert!(heard.starts_with(outcome), "{row}: {heard} is not {outcome}");
            let sent = house.sandbox.deliveries().len() - before;
            assert_eq!(sent, usize::from(*outcome == SENT), "{row}");
        }
    }
}

/// Goes on after every refusal, as an attacker would; returns what is heard in the end.
async fn try_to_send(
    house: &InMemory,
    peer: &str,
    login: Option<(&str, &str)>,
    from: &str,
    to: &str,
) -> String {
    let mut device = Device::over(house.connect_from(peer.parse().unwrap())).await.unwrap();
    if device.greeting.code.get() != 220 {
        assert!(device.is_closed().await, "nothing is listened to");
        return device.greeting.to_string();
    }
    device.say("EHLO somebody").await.unwrap();
    if let Some((user, secret)) = login {
        let secret = BASE64_STANDARD.encode(format!("\0{user}\0{secret}"));
        device.say(&format!("AUTH PLAIN {secret}")).await.unwrap();
    }
    let heard =
        device.send(from, &[to], "Subject: scan\r\n\r\nline\r\n").await.unwrap().to_string();
    if !heard.starts_with("250 ") {
        // Whatever was refused, the rest is of no use either.
        device.say(&format!("RCPT TO:<{to}>")).await.unwrap();
        let data = device.say("DATA").await.unwrap();
        assert_ne!(data.code.get(), 354, "after {heard}");
    }
    heard
}

#[tokio::test(start_paused = true)]
async fn by_default_the_house_sends_and_nobody_else() {
    let inside =
        ["10.1.2.3", "172.16.9.9", "192.168.1.1", "127.0.0.1", "::1", "fd00::1", "::ffff:10.1.2.3"];
    let outside = [
        "193.99.144.85",
        "172.32.0.1",
        "11.0.0.1",
        "2001:678::1",
        "::ffff:193.99.144.85",
        "64:ff9b::a01:203",
        "2002:a01:203::1",
        "::10.1.2.3",
    ];
    let mut rows: Vec<Row<'_>> = Vec::new();
    for peer in inside {
        rows.push((peer, None, "a@x", "b@elsewhere.test", SENT));
        rows.push((peer, None, "", "b@x", SENT));
    }
    for peer in outside {
        for login in [None, RIGHT, WRONG] {
            rows.push((peer, login, "a@x", "scanner@example.com", TURNED_AWAY));
        }
    }
    play("", "", &rows).await;
    play("auth = \"offer\"\nauth_without_tls = true", "", &rows).await;
}

#[tokio::test(start_paused = true)]
async fn where_everybody_may_connect_a_login_is_needed() {
    let listener = "auth = \"require\"\nauth_without_tls = true\nallow = [\"0.0.0.0/0\", \"::/0\"]";
    let rows: &[Row<'_>] = &[
        (OUTSIDE, None, "a@x", "b@x", NO_LOGIN),
        (OUTSIDE, None, "", "scanner@example.com", NO_LOGIN),
        (OUTSIDE, WRONG, "a@x", "b@x", NO_LOGIN),
        ("193.99.144.86", NOBODY, "a@x", "b@x", NO_LOGIN),
        ("193.99.144.87", Some(("", "")), "a@x", "b@x", NO_LOGIN),
        ("193.99.144.88", Some(("scan", "")), "a@x", "b@x", NO_LOGIN),
        ("2001:678::1", None, "a@x", "b@x", NO_LOGIN),
        (INSIDE, None, "a@x", "b@x", NO_LOGIN),
        ("127.0.0.1", None, "a@x", "b@x", NO_LOGIN),
        ("193.99.144.89", RIGHT, "a@x", "b@x", SENT),
        ("2001:678::1", RIGHT, "a@x", "b@x", SENT),
        (INSIDE, RIGHT, "a@x", "b@x", SENT),
    ];
    play(listener, "", rows).await;
    // That the device does not see it offered changes nothing.
    play(&format!("{listener}\nhide = [\"AUTH\"]"), "", rows).await;
    // One address is trusted, and no other.
    let device = "[[device]]\naddress = \"193.99.144.85\"\nauth = \"none\"\n";
    play(
        listener,
        device,
        &[
            (OUTSIDE, None, "a@x", "b@x", SENT),
            ("::ffff:193.99.144.85", None, "a@x", "b@x", SENT),
            ("193.99.144.86", None, "a@x", "b@x", NO_LOGIN),
            ("2001:678::1", None, "a@x", "b@x", NO_LOGIN),
            ("193.99.144.86", RIGHT, "a@x", "b@x", SENT),
        ],
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn any_credentials_will_do_from_the_house_only() {
    let listener = "auth = \"require\"\nauth_without_tls = true\naccept_any_credentials = true";
    play(
        listener,
        "",
        &[
            (INSIDE, None, "a@x", "b@x", NO_LOGIN),
            (INSIDE, WRONG, "a@x", "b@x", SENT),
            (INSIDE, NOBODY, "a@x", "b@x", SENT),
            (OUTSIDE, None, "a@x", "b@x", TURNED_AWAY),
            (OUTSIDE, RIGHT, "a@x", "b@x", TURNED_AWAY),
            (OUTSIDE, NOBODY, "a@x", "b@x", TURNED_AWAY),
        ],
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_device_sends_no_further_than_its_entry_says() {
    let sections = "[[device]]\naddress = \"10.1.2.3\"\nsenders = [\"copier@x\"]\nrecipients = [\"*@x\"]\n\
                    [[device]]\nlogin = \"alarm\"\nsenders = [\"alarm@x\"]\nrecipients = [\"guard@x\"]\n";
    let alarm = Some(("alarm", "geheim"));
    let listener = "auth = \"offer\"\nauth_without_tls = true";
    play(
        listener,
        sections,
        &[
            (INSIDE, None, "copier@x", "b@x", SENT),
            (INSIDE, None, "", "b@x", SENT),
            (INSIDE, None, "boss@x", "b@x", NOT_THIS),
            (INSIDE, None, "copier@x", "b@y", NOT_THIS),
            (INSIDE, None, "copier@x", "b@x.evil.test", NOT_THIS),
            (INSIDE, None, "copier@x", "b%evil.test@y", NOT_THIS),
            (INSIDE, None, "copier@x", "postmaster", NOT_THIS),
            // A login frees no device from what its address may do.
            (INSIDE, alarm, "alarm@x", "guard@x", NOT_THIS),
            (INSIDE, alarm, "copier@x", "b@x", SENT),
            ("10.9.9.9", alarm, "alarm@x", "guard@x", SENT),
            ("10.9.9.9", alarm, "boss@x", "guard@x", NOT_THIS),
            ("10.9.9.9", alarm, "alarm@x", "b@x", NOT_THIS),
            ("10.9.9.9", RIGHT, "boss@x", "b@y", SENT),
            (OUTSIDE, alarm, "alarm@x", "guard@x", TURNED_AWAY),
        ],
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_open_relay_is_one_by_name() {
    play(
        "allow = [\"0.0.0.0/0\"]\nopen_relay = true",
        "",
        &[(OUTSIDE, None, "a@x", "b@x", SENT), ("2001:678::1", None, "a@x", "b@x", TURNED_AWAY)],
    )
    .await;
}
