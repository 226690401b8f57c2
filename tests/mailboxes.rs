//! Several mailboxes: which one a message goes through, and what one's trouble means for the others. In memory, with
//! the clock stopped.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use std::{
    fs,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use common::{
    KEEP, MAILBOX, MESSAGE, Plan, SPOOL, STREAM, fault, hash,
    memory::{InMemory, timed},
};
use smtp_uplift::{
    sandbox::{Sandbox, device::Device, scenario::Scenario},
    spool::queue::{Change, Filter, Hold, Queue as _, State, Summary},
};
use tokio::task::JoinSet;

const SECOND: &str = "second@example.com";
/// A second mailbox that may send as anybody, as the first may: the configuration says nothing of either.
const TWO: &str =
    "[[mailbox]]\naddress = \"second@example.com\"\npassword = { file = \"password\" }\n";
/// Two mailboxes, and a device that is bound to the first.
const BOUND: &str = "[[mailbox]]\naddress = \"second@example.com\"\npassword = { file = \"password\" }\n\
                     [[device]]\nname = \"bound\"\naddress = \"10.0.0.7\"\nmailbox = \"scanner@example.com\"\n";
const BOUND_DEVICE: &str = "10.0.0.7";

fn plan<'a>(more: &'a str) -> Plan<'a> {
    Plan { delivery: KEEP, settled: false, more, ..Plan::default() }
}

/// One that takes the usual password.
fn good() -> Scenario {
    Plan::default().scenario
}

/// One that takes another.
fn wrong_password() -> Scenario {
    Scenario { password: Some("another".to_owned()), ..Scenario::default() }
}

async fn queue(house: &InMemory) -> Vec<Summary> {
    house.keeper().queue.list(Filter::default()).await.unwrap()
}

async fn until(house: &InMemory, wanted: impl Fn(&[Summary]) -> bool) {
    for _ in 0..20_000 {
        if wanted(&queue(house).await) {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    panic!("{:#?}", queue(house).await);
}

fn all_are(state: State) -> impl Fn(&[Summary]) -> bool {
    move |rows| rows.iter().all(|row| row.state == state)
}

fn accepted(sandbox: &Sandbox) -> u64 {
    sandbox.counts().accepted.load(Ordering::SeqCst)
}

fn users(sandbox: &Sandbox) -> Vec<String> {
    sandbox.deliveries().into_iter().map(|delivery| delivery.user).collect()
}

#[track_caller]
fn taken(heard: &str) {
    assert!(heard.starts_with("250 2.0.0 ok, id "), "{heard}");
}

#[track_caller]
fn queued(heard: &str) {
    assert!(heard.starts_with("250 2.0.0 queued, id "), "{heard}");
}

#[tokio::test(start_paused = true)]
async fn a_device_is_bound_by_its_address() {
    for delivery in [STREAM, KEEP, SPOOL] {
        let more = format!(
            "{TWO}[[device]]\nname = \"floor\"\naddress = \"10.0.0.0/24\"\nmailbox = \"{SECOND}\"\n"
        );
        let house = InMemory::build(Plan { delivery, ..plan(&more) }).await;
        for (peer, user) in [("10.0.0.7", SECOND), ("10.0.1.7", MAILBOX)] {
            let before = accepted(&house.sandbox);
            let heard = house.send_from(peer, "a@example.com", &["b@example.com"]).await;
            assert!(heard.starts_with("250 "), "{heard}");
            house.sandbox.delivered(before + 1).await;
            assert_eq!(users(&house.sandbox).pop().unwrap(), user, "{delivery} {peer}");
        }
        if delivery == SPOOL {
            until(&house, all_are(State::Done)).await;
            let devices: Vec<_> = queue(&house).await.into_iter().map(|row| row.device).collect();
            assert_eq!(devices, ["floor", "10.0.1.7"], "it has a name");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_that_is_told_by_its_login_has_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let users_file = folder.path().join("users.txt");
    fs::write(&users_file, format!("alarm:{}\n", hash("geheim"))).unwrap();
    let more = format!(
        "{TWO}[auth]\nusers_file = {users_file:?}\n[[device]]\nname = \"panel\"\nlogin = \"alarm\"\n"
    );
    let listener = "auth = \"offer\"\nauth_without_tls = true";
    let house = InMemory::build(Plan { listener, delivery: SPOOL, ..plan(&more) }).await;
    let mut device = house.device().await;
    let secret = BASE64_STANDARD.encode("\0alarm\0geheim");
    device.say(&format!("AUTH PLAIN {secret}")).await.unwrap();
    let heard = device.send("a@example.com", &["b@example.com"], MESSAGE).await.unwrap();
    assert_eq!(heard.code.get(), 250);
    assert_eq!(queue(&house).await[0].device, "panel");
}

#[tokio::test(start_paused = true)]
async fn a_login_binds_and_so_does_a_listener() {
    let folder = tempfile::tempdir().unwrap();
    let users_file = folder.path().join("users.txt");
    let line = |name: &str, rest: &str| format!("{name}:{}{rest}\n", hash("geheim"));
    let text = [line("scan", ":SECOND@example.com"), line("plain", ""), line("named", "")].concat();
    fs::write(&users_file, &text).unwrap();
    let more = format!(
        "{TWO}[[mailbox]]\naddress = \"third@example.com\"\npassword = {{ file = \"password\" }}\n\
         [auth]\nusers_file = \"{}\"\n\
         [[device]]\nname = \"by login\"\nlogin = \"named\"\nmailbox = \"{SECOND}\"\n",
        users_file.display()
    );
    let listener = "auth = \"offer\"\nauth_without_tls = true\nmailbox = \"third@example.com\"";
    let house = InMemory::build(Plan { listener, ..plan(&more) }).await;
    for (login, user) in [
        (Some("scan"), SECOND),
        (Some("named@copier.lan"), SECOND),
        (Some("plain"), "third@example.com"),
        (None, "third@example.com"),
    ] {
        let mut device = house.device().await;
        if let Some(name) = login {
            let secret = BASE64_STANDARD.encode(format!("\0{name}\0geheim"));
            let heard = device.say(&format!("AUTH PLAIN {secret}")).await.unwrap().to_string();
            assert!(heard.starts_with("235 "), "{heard}");
        }
        taken(
            &device.send("a@example.com", &["b@example.com"], MESSAGE).await.unwrap().to_string(),
        );
        assert_eq!(users(&house.sandbox).pop().unwrap(), user, "{login:?}");
    }
    // The line names a mailbox now that nobody has.
    fs::write(&users_file, text.replace("SECOND@", "nobody@")).unwrap();
    let mut device = house.device().await;
    let secret = BASE64_STANDARD.encode("\0scan\0geheim");
    device.say(&format!("AUTH PLAIN {secret}")).await.unwrap();
    taken(&device.send("a@example.com", &["b@example.com"], MESSAGE).await.unwrap().to_string());
    assert_eq!(users(&house.sandbox).pop().unwrap(), "third@example.com", "the listener's");
}

#[tokio::test(start_paused = true)]
async fn who_may_send_as_the_sender_sends_it() {
    let more = format!("{TWO}send_as = [\"*@two.example\"]\n");
    let house = InMemory::build(plan(&more)).await;
    for (from, user) in [
        ("a@TWO.example", SECOND),
        (SECOND, SECOND),
        (MAILBOX, MAILBOX),
        ("x@nobody.example", MAILBOX),
    ] {
        taken(&house.send(from, &["b@example.com"]).await);
        assert_eq!(users(&house.sandbox).pop().unwrap(), user, "{from}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_mailbox_whose_limit_is_below_the_size_is_passed_over() {
    let small = "password = { file = \"password\" }\nmessage_size = \"64KiB\"";
    let house = InMemory::build(Plan { mailbox: small, settled: true, ..plan(BOUND) }).await;
    let large = "0123456789abcdef\r\n".repeat(10_000);
    let mut device = house.device().await;
    let greeted = device.say("EHLO copier").await.unwrap().to_string();
    assert!(!greeted.contains("SIZE 65536"), "the most that any takes: {greeted}");
    for line in [
        &*format!("MAIL FROM:<a@example.com> SIZE={}", large.len()),
        "RCPT TO:<b@example.com>",
        "DATA",
    ] {
        device.say(line).await.unwrap();
    }
    device.write(large.clone()).await.unwrap();
    taken(&device.say(".").await.unwrap().to_string());
    assert_eq!(users(&house.sandbox), [SECOND]);
    // Who is bound to it hears of its limit, and is held to it.
    let mut device = Device::over(house.connect_from(BOUND_DEVICE.parse().unwrap())).await.unwrap();
    let greeted = device.say("EHLO copier").await.unwrap().to_string();
    assert!(greeted.contains("SIZE 65536"), "{greeted}");
    let heard = device.send("a@example.com", &["b@example.com"], large).await.unwrap().to_string();
    assert!(heard.starts_with("552 5.3.4 "), "{heard}");
}

#[tokio::test(start_paused = true)]
async fn a_mailbox_that_cannot_log_in_is_passed_over_and_its_password_is_presented_once() {
    for delivery in [STREAM, KEEP, SPOOL] {
        let plan = Plan { scenario: wrong_password(), delivery, ..plan(BOUND) };
        let house = InMemory::several(plan, vec![good()]).await;
        for n in 0..5 {
            let heard = house.send("a@example.com", &["b@example.com"]).await;
            assert!(heard.starts_with("250 "), "{delivery} {n}: {heard}");
        }
        house.more[0].delivered(5).await;
        tokio::time::sleep(Duration::from_secs(2_000)).await;
        assert_eq!(house.sandbox.counts().refused_logins.load(Ordering::SeqCst), 1, "{delivery}");
        assert_eq!(accepted(&house.more[0]), 5, "{delivery}");
        assert!(house.relay.mailboxes.trouble().is_none(), "one can send");
        if delivery == STREAM {
            let heard = house.send_from(BOUND_DEVICE, "a@example.com", &["b@example.com"]).await;
            assert!(heard.starts_with("451 4.7.0 "), "{heard}");
            continue;
        }
        assert!(all_are(State::Done)(&queue(&house).await), "{delivery}");
        assert_eq!(house.metric("mailbox_breaker_open{mailbox=\"scanner@example.com\"}"), 1.0);
        assert_eq!(house.metric("mailbox_breaker_open{mailbox=\"second@example.com\"}"), 0.0);
        // What is bound to it is held until it can.
        queued(&house.send_from(BOUND_DEVICE, "a@example.com", &["b@example.com"]).await);
        let held = |rows: &[Summary]| rows.last().unwrap().hold == Some(Hold::Credential);
        until(&house, held).await;
        assert_eq!(house.sandbox.counts().refused_logins.load(Ordering::SeqCst), 1, "{delivery}");
        fs::write(house.folder.path().join("password"), "another").unwrap();
        until(&house, all_are(State::Done)).await;
        assert_eq!(users(&house.sandbox), [MAILBOX]);
        assert_eq!(house.metric("mailbox_breaker_open{mailbox=\"scanner@example.com\"}"), 0.0);
    }
}

#[tokio::test(start_paused = true)]
async fn with_two_wrong_passwords_each_is_presented_once_and_the_relay_is_not_ready() {
    for delivery in [KEEP, SPOOL] {
        let plan = Plan { scenario: wrong_password(), delivery, ..plan(BOUND) };
        let house = InMemory::several(plan, vec![wrong_password()]).await;
        for n in 0..10 {
            queued(
                &house.send_from(&format!("10.0.0.{n}"), "a@example.com", &["b@example.com"]).await,
            );
        }
        tokio::time::sleep(Duration::from_secs(2_000)).await;
        for sandbox in [&house.sandbox, &house.more[0]] {
            assert_eq!(sandbox.counts().refused_logins.load(Ordering::SeqCst), 1, "{delivery}");
        }
        let rows = queue(&house).await;
        assert!(rows.iter().all(|row| row.hold == Some(Hold::Credential)), "{delivery} {rows:#?}");
        let trouble = house.relay.mailboxes.trouble().unwrap();
        assert!(
            trouble.contains("scanner@example.com: credential stopped: 535 5.7.139"),
            "{trouble}"
        );
        assert!(trouble.contains("second@example.com: "), "{trouble}");
        fs::write(house.folder.path().join("password"), "another").unwrap();
        until(&house, all_are(State::Done)).await;
        assert!(house.relay.mailboxes.trouble().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn what_stops_one_mailbox_after_the_dot_sends_the_message_through_another_and_people_are_told_once()
 {
    let scenario = fault("stage = 'dot'\nreply = '430 4.2.0 STOREDRV; mailbox logon failure'");
    let more = format!("{BOUND}[notices]\nto = \"it@example.com\"\nsmtp = \"127.0.0.1:9\"\n");
    let house = InMemory::several(Plan { scenario, ..plan(&more) }, vec![good()]).await;
    taken(&house.send("a@example.com", &["b@example.com"]).await);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let notices = house.keeper().queue.notices().await.unwrap();
    assert_eq!(notices[0].notice.subject, "Held: all mail of scanner@example.com");
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_secs(120)).await;
        taken(&house.send("a@example.com", &["b@example.com"]).await);
    }
    assert_eq!(accepted(&house.more[0]), 21);
    assert_eq!(house.keeper().queue.notices().await.unwrap().len(), 1);
    let first = house.relay.mailboxes.first();
    assert_eq!(first.stops().names(), ["mailbox"], "seldom one is let through, and it is so still");
    house.sandbox.mend();
    house.relay.try_again();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(2)).await;
        taken(&house.send("a@example.com", &["b@example.com"]).await);
    }
    assert!(first.stops().is_empty(), "and over when one was accepted");
}

#[tokio::test(start_paused = true)]
async fn a_sender_is_stopped_at_one_mailbox_only() {
    let scenario =
        fault("stage = 'dot'\nreply = '554 5.2.252 SendAsDenied; not allowed'\ntimes = 1");
    let house = InMemory::several(Plan { scenario, ..plan(BOUND) }, vec![good()]).await;
    taken(&house.send("x@example.com", &["b@example.com"]).await);
    assert_eq!((accepted(&house.sandbox), accepted(&house.more[0])), (0, 1));
    assert_eq!(house.relay.mailboxes.first().stops().names(), ["sender:x@example.com"]);
    taken(&house.send("x@example.com", &["b@example.com"]).await);
    assert_eq!((accepted(&house.sandbox), accepted(&house.more[0])), (0, 2), "passed over");
    taken(&house.send("y@example.com", &["b@example.com"]).await);
    assert_eq!((accepted(&house.sandbox), accepted(&house.more[0])), (1, 2), "nobody else is");
    queued(&house.send_from(BOUND_DEVICE, "x@example.com", &["b@example.com"]).await);
    assert_eq!(queue(&house).await[0].hold, Some(Hold::Sender("x@example.com".to_owned())));
}

#[tokio::test(start_paused = true)]
async fn mail_flows_through_one_mailbox_while_the_smarthost_of_the_other_is_away() {
    for delivery in [KEEP, SPOOL] {
        let house = InMemory::several(Plan { delivery, ..plan(BOUND) }, vec![good()]).await;
        house.sandbox.refuse(true);
        for n in 0..20 {
            queued(&house.send_from(BOUND_DEVICE, "a@example.com", &["b@example.com"]).await);
            let heard = house.send("a@example.com", &["b@example.com"]).await;
            assert!(heard.starts_with("250 "), "{delivery} {n}: {heard}");
        }
        house.more[0].delivered(20).await;
        assert_eq!(accepted(&house.sandbox), 0);
        let away = house.relay.mailboxes.first();
        assert_eq!(away.state(), "smarthost-away");
        house.sandbox.refuse(false);
        until(&house, all_are(State::Done)).await;
        assert_eq!(users(&house.sandbox), vec![MAILBOX; 20]);
        assert_eq!(away.state(), "ready");
    }
}

#[tokio::test(start_paused = true)]
async fn what_waited_for_a_smarthost_that_is_away_goes_when_another_can_send() {
    let house = InMemory::several(plan(TWO), vec![good()]).await;
    house.sandbox.refuse(true);
    house.more[0].refuse(true);
    for _ in 0..5 {
        queued(&house.send("a@example.com", &["b@example.com"]).await);
    }
    house.more[0].refuse(false);
    until(&house, all_are(State::Done)).await;
    assert_eq!(accepted(&house.more[0]), 5);
}

#[tokio::test(start_paused = true)]
async fn a_pause_of_one_mailbox_is_no_pause_of_the_other_and_no_attempt() {
    let house = InMemory::several(Plan { delivery: SPOOL, ..plan(BOUND) }, vec![good()]).await;
    let pause = Duration::from_secs(1_000);
    house.pool().pause(pause);
    for _ in 0..20 {
        queued(&house.send_from(BOUND_DEVICE, "a@example.com", &["b@example.com"]).await);
    }
    for _ in 0..20 {
        let more = house.send("second@example.com", &["b@example.com"]).await;
        queued(&more);
    }
    let (_, took) = timed(house.more[0].delivered(20)).await;
    assert!(took < Duration::from_secs(60), "{took:?}");
    assert_eq!(accepted(&house.sandbox), 0);
    let (_, took) = timed(until(&house, all_are(State::Done))).await;
    assert!(took > pause / 2 && took < pause * 2, "{took:?}");
    assert!(queue(&house).await.iter().all(|row| row.attempts == 1), "a pause is no attempt");
}

#[tokio::test(start_paused = true)]
async fn what_is_released_from_a_mailbox_that_is_gone_goes_through_another() {
    let house = InMemory::build(plan(BOUND)).await;
    house.sandbox.refuse(true);
    queued(&house.send_from(BOUND_DEVICE, "a@example.com", &["b@example.com"]).await);
    let (sandbox, folder) = house.stop().await;
    sandbox.refuse(false);
    // The configuration writes the first mailbox's address as MAILBOX: here it has become another one.
    let text = common::configuration(&plan(""), 25, sandbox.certificate(), folder.path());
    let other = text.replace(MAILBOX, "other@example.com");
    let house = InMemory::of(&other, sandbox, Vec::new(), folder, false).await;
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    let row = queue(&house).await.remove(0);
    assert_eq!((row.state, row.hold), (State::Held, Some(Hold::MailboxGone)));
    let now = house.keeper().clock.now();
    house.keeper().queue.change(row.id, Change::Release, now).await.unwrap();
    until(&house, all_are(State::Done)).await;
    assert_eq!(users(&house.sandbox), ["other@example.com"]);
    assert_eq!(queue(&house).await[0].mailbox, "other@example.com");
}

/// How long it takes until so many messages have come from ten devices at once.
async fn throughput(mailboxes: &str, limit: &str, messages: u64) -> Duration {
    let mailbox = format!("password = {{ file = \"password\" }}\n{limit}");
    let more = mailboxes.replace("{limit}", limit);
    let plan = Plan { mailbox: &mailbox, ..plan(&more) };
    let house = Arc::new(InMemory::build(plan).await);
    let (_, took) = timed(async {
        let mut devices = JoinSet::new();
        for device in 0..10 {
            let house = Arc::clone(&house);
            devices.spawn(async move {
                for n in 0..messages / 10 {
                    let peer = format!("10.0.0.{device}");
                    let from = format!("copier-{device}-{n}@example.com");
                    let heard = house.send_from(&peer, &from, &["b@example.com"]).await;
                    assert!(heard.starts_with("250 "), "{heard}");
                }
            });
        }
        devices.join_all().await;
        house.sandbox.delivered(messages).await;
    })
    .await;
    assert_eq!(accepted(&house.sandbox), messages);
    took
}

#[tokio::test(start_paused = true)]
async fn a_second_mailbox_doubles_what_goes_through_within_the_limits() {
    let two = format!("{TWO}{{limit}}\n");
    let limit = "messages_per_minute = 30";
    let one = throughput("", limit, 300).await;
    let both = throughput(&two, limit, 300).await;
    assert!(one >= Duration::from_secs(9 * 60), "300 messages at 30 a minute: {one:?}");
    let ratio = one.as_secs_f64() / both.as_secs_f64();
    assert!((1.7..=2.5).contains(&ratio), "{one:?} with one, {both:?} with two");
}
