//! What becomes of messages that the smarthost does not take at once: with the clock stopped and streams in memory.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use std::{sync::atomic::Ordering, time::Duration};

use common::{
    KEEP, MESSAGE, Plan, SPOOL, fault,
    memory::{InMemory, timed},
};
use smtp_uplift::{
    sandbox::scenario::Scenario,
    spool::queue::{Filter, Hold, Queue as _, State, Summary},
};
use tokio::task::JoinSet;

fn keep<'a>() -> Plan<'a> {
    Plan { delivery: KEEP, settled: false, ..Plan::default() }
}

async fn queue(house: &InMemory) -> Vec<Summary> {
    house.keeper().queue.list(Filter::default()).await.unwrap()
}

/// The states of all messages, once nothing is under way.
async fn states(house: &InMemory) -> Vec<State> {
    queue(house).await.iter().map(|summary| summary.state).collect()
}

async fn until(house: &InMemory, wanted: &[State]) {
    for _ in 0..10_000 {
        if states(house).await == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    panic!("{:?} instead of {wanted:?}", queue(house).await);
}

#[tokio::test(start_paused = true)]
async fn what_goes_through_leaves_nothing_behind() {
    let house = InMemory::build(keep()).await;
    let heard = house.send("copier@example.com", &["office@example.com"]).await;
    assert!(heard.starts_with("250 2.0.0 ok, id "), "{heard}");
    assert_eq!(queue(&house).await, []);
    let delivery = house.sandbox.deliveries().pop().unwrap();
    assert!(
        delivery.data.ends_with(MESSAGE.as_bytes()) && delivery.data.starts_with(b"Received: ")
    );
}

#[tokio::test(start_paused = true)]
async fn a_smarthost_that_is_away_gets_it_when_it_is_back() {
    let house = InMemory::build(keep()).await;
    house.sandbox.refuse(true);
    let (heard, took) = timed(house.send("copier@example.com", &["office@example.com"])).await;
    assert!(heard.starts_with("250 2.0.0 queued, id "), "{heard}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert_eq!(states(&house).await, [State::Ready]);
    tokio::time::sleep(Duration::from_secs(1_000)).await;
    house.sandbox.refuse(false);
    until(&house, &[State::Done]).await;
    let delivery = house.sandbox.deliveries().pop().unwrap();
    assert!(delivery.data.ends_with(MESSAGE.as_bytes()));
}

#[tokio::test(start_paused = true)]
async fn a_dot_that_is_answered_late_gives_one_copy() {
    let house = InMemory::build(keep()).await;
    let (heard, took) = timed(house.send("a@example.com", &["slow-dot-25@example.com"])).await;
    assert!(heard.starts_with("250 2.0.0 queued, id "), "{heard}");
    assert!(took >= Duration::from_secs(19) && took <= Duration::from_secs(20), "{took:?}");
    assert_eq!(states(&house).await, [State::Awaiting]);
    until(&house, &[State::Done]).await;
    assert_eq!(house.sandbox.counts().accepted.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn in_spool_mode_the_spool_answers() {
    let house = InMemory::build(Plan { delivery: SPOOL, ..keep() }).await;
    let heard = house.send("copier@example.com", &["office@example.com", "b@example.com"]).await;
    assert!(heard.starts_with("250 2.0.0 queued, id "), "{heard}");
    until(&house, &[State::Done]).await;
    assert_eq!(house.sandbox.deliveries()[0].recipients, ["office@example.com", "b@example.com"]);
}

#[tokio::test(start_paused = true)]
async fn what_a_setting_heals_is_held_and_goes_when_one_is_accepted() {
    let scenario =
        fault("stage = 'dot'\nreply = '430 4.2.0 STOREDRV; mailbox logon failure'\ntimes = 2");
    let house = InMemory::build(Plan { scenario, ..keep() }).await;
    for device in ["a@example.com", "b@example.com"] {
        let heard = house.send(device, &["office@example.com"]).await;
        assert!(heard.starts_with("250 2.0.0 queued, id "), "{heard}");
    }
    assert_eq!(states(&house).await, [State::Held; 2]);
    let refused = house.sandbox.counts().accepted.load(Ordering::SeqCst);
    assert_eq!(refused, 0);
    assert_eq!(house.metric("mailbox_breaker_open{mailbox=\"scanner@example.com\"}"), 1.0);
    let (_, took) = timed(until(&house, &[State::Done; 2])).await;
    assert!(took > Duration::from_secs(30 * 60), "the second probe is the one: {took:?}");
    assert_eq!(house.metric("mailbox_breaker_open{mailbox=\"scanner@example.com\"}"), 0.0);
}

#[tokio::test(start_paused = true)]
async fn one_senders_trouble_is_nobody_elses() {
    let house = InMemory::build(keep()).await;
    let heard = house.send("reply-554-5.2.252-dot@example.com", &["office@example.com"]).await;
    assert!(heard.starts_with("250 2.0.0 queued, id "), "{heard}");
    let heard = house.send("copier@example.com", &["office@example.com"]).await;
    assert!(heard.starts_with("250 2.0.0 ok, id "), "{heard}");
    assert_eq!(states(&house).await, [State::Held]);
    let held = house.send("reply-554-5.2.252-dot@example.com", &["office@example.com"]).await;
    assert!(held.starts_with("250 2.0.0 queued, id "), "{held}");
    assert_eq!(queue(&house).await[1].attempts, 0, "it was not tried");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_for_good_is_the_devices_own() {
    let house = InMemory::build(keep()).await;
    let heard = house.send("a@example.com", &["reply-550-5.1.1@example.com"]).await;
    assert!(heard.starts_with("550 5.1.1 "), "{heard}");
    assert_eq!(queue(&house).await, []);
}

#[tokio::test(start_paused = true)]
async fn a_wrong_password_is_presented_once_and_the_mail_is_held() {
    let scenario = Scenario { password: Some("another".to_owned()), ..Scenario::default() };
    let house = InMemory::build(Plan { scenario, ..keep() }).await;
    for _ in 0..5 {
        let heard = house.send("a@example.com", &["office@example.com"]).await;
        assert!(heard.starts_with("250 2.0.0 queued, id "), "{heard}");
    }
    tokio::time::sleep(Duration::from_secs(7 * 3_600)).await;
    assert_eq!(states(&house).await, [State::Held; 5]);
    assert_eq!(house.sandbox.counts().refused_logins.load(Ordering::SeqCst), 1);
    for summary in queue(&house).await {
        assert!(summary.reason.starts_with("535 5.7.139 "), "{}", summary.reason);
        assert_eq!((&*summary.rule, summary.hold), ("password-refused", Some(Hold::Credential)));
    }
}

#[tokio::test(start_paused = true)]
async fn who_stops_the_others_again_is_held_alone() {
    let house = InMemory::build(keep()).await;
    let bad = "reply-550-5.1.8-dot@example.com";
    house.send(bad, &["office@example.com"]).await;
    let held = house.send("copier@example.com", &["office@example.com"]).await;
    assert!(held.starts_with("250 2.0.0 queued, id "), "the mailbox is barred, it seems: {held}");
    until(&house, &[State::Held, State::Done]).await;
    // Released with the others, it has met with the same again.
    for _ in 0..2_000 {
        if queue(&house).await[0].hold == Some(Hold::Message) {
            break;
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    assert_eq!(queue(&house).await[0].hold, Some(Hold::Message));
    let heard = house.send("copier@example.com", &["office@example.com"]).await;
    assert!(heard.starts_with("250 2.0.0 ok, id "), "it stops nobody else: {heard}");
}

#[tokio::test(start_paused = true)]
async fn what_one_recipient_brings_about_stops_nobody() {
    let house = InMemory::build(keep()).await;
    let heard =
        house.send("a@example.com", &["b@example.com", "reply-550-5.7.708@example.com"]).await;
    assert!(heard.starts_with("250 2.0.0 queued, id "), "{heard}");
    let heard = house.send("a@example.com", &["reply-550-5.7.708@example.com"]).await;
    assert!(heard.starts_with("250 2.0.0 queued, id "), "{heard}");
    assert_eq!(states(&house).await, [State::Held; 2]);
    assert!(queue(&house).await.iter().all(|summary| summary.hold == Some(Hold::Message)));
    let heard = house.send("copier@example.com", &["office@example.com"]).await;
    assert!(heard.starts_with("250 2.0.0 ok, id "), "{heard}");
}

#[tokio::test(start_paused = true)]
async fn a_probe_without_a_verdict_leaves_its_message_held() {
    let scenario =
        fault("stage = 'dot'\nreply = '430 4.2.0 STOREDRV; mailbox logon failure'\ntimes = 1");
    let house = InMemory::build(Plan { scenario, ..keep() }).await;
    house.send("a@example.com", &["office@example.com"]).await;
    house.sandbox.refuse(true);
    house.sandbox.cut();
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_secs(120)).await;
        let state = states(&house).await;
        assert!(matches!(state[0], State::Held | State::Leased), "{state:?}");
    }
    house.sandbox.refuse(false);
    until(&house, &[State::Done]).await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_no_yes_is_none() {
    let scenario = fault("stage = 'dot'\nreply = '252 2.0.0 perhaps'\ntimes = 1");
    let house = InMemory::build(Plan { scenario, ..keep() }).await;
    let heard = house.send("a@example.com", &["office@example.com"]).await;
    assert!(heard.starts_with("250 2.0.0 queued, id "), "{heard}");
    assert_eq!(states(&house).await, [State::MaybeSent]);
    until(&house, &[State::Done]).await;
    assert_eq!(queue(&house).await[0].maybe_sent, 1);
}

#[tokio::test(start_paused = true)]
async fn a_device_that_stalls_gives_its_lease_back_and_is_delivered_once() {
    let house = InMemory::build(keep()).await;
    let mut device = house.device().await;
    for line in ["MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>", "DATA"] {
        device.say(line).await.unwrap();
    }
    let leased = || house.pool().connections().leased;
    device.write("Subject: scan\r\n\r\n".to_owned()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(leased(), 0, "nobody waits for a slow device");
    let half = "0123456789abcdef\r\n".repeat(5_000);
    device.write(half.clone()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(leased(), 1, "more than 64 KiB are there");
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(leased(), 0, "it says nothing, and the data end without a dot");
    assert_eq!(house.sandbox.counts().cut.load(Ordering::SeqCst), 1);
    device.write(half.clone()).await.unwrap();
    let heard = device.say(".").await.unwrap().to_string();
    assert!(heard.starts_with("250 2.0.0 ok, id "), "{heard}");
    let deliveries = house.sandbox.deliveries();
    assert_eq!(deliveries.len(), 1);
    assert!(deliveries[0].data.ends_with(format!("\r\n\r\n{half}{half}").as_bytes()));
    assert!(!house.keeper().queue.incoming().read_dir().unwrap().any(|_| true), "no file was made");
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_into_memory_goes_through_a_file_that_is_gone_afterwards() {
    let delivery = format!("{KEEP}\nreplay_memory = \"100KiB\"");
    let house = InMemory::build(Plan { delivery: &delivery, ..keep() }).await;
    let data = format!("Subject: scan\r\n\r\n{}", "0123456789abcdef\r\n".repeat(50_000));
    let heard = house.device().await.send("a@example.com", &["b@example.com"], data.clone()).await;
    assert!(heard.unwrap().to_string().starts_with("250 2.0.0 ok, id "));
    assert!(house.sandbox.deliveries()[0].data.ends_with(data.as_bytes()));
    house.sandbox.refuse(true);
    house.sandbox.cut();
    let heard = house.device().await.send("a@example.com", &["b@example.com"], data.clone()).await;
    assert!(heard.unwrap().to_string().starts_with("250 2.0.0 queued, id "));
    assert!(
        !house.keeper().queue.incoming().read_dir().unwrap().any(|_| true),
        "it is in its place"
    );
    house.sandbox.refuse(false);
    until(&house, &[State::Done]).await;
    assert!(house.sandbox.deliveries()[1].data.ends_with(data.as_bytes()));
}

#[tokio::test(start_paused = true)]
async fn who_sends_on_and_on_keeps_nobody_waiting_who_has_sent_all() {
    let house = InMemory::build(keep()).await;
    let mut senders = JoinSet::new();
    for _ in 0..4 {
        let mut device = house.device().await;
        for line in ["MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>", "DATA"] {
            device.say(line).await.unwrap();
        }
        // Twice as fast as a device has to be to keep its connection for longer.
        senders.spawn(async move {
            loop {
                device.write("0123456789abcdef\r\n".repeat(3_500)).await.unwrap();
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(house.pool().connections().leased, 3, "they have all that there are");
    for _ in 0..5 {
        let (heard, took) = timed(house.send("a@example.com", &["office@example.com"])).await;
        assert!(heard.starts_with("250 2.0.0 ok, id "), "{heard}");
        assert!(took < Duration::from_secs(5), "{took:?}");
    }
    senders.shutdown().await;
}
