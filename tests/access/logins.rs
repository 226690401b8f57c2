//! Logins that fail, and those that have succeeded.

use std::{fs, time::Duration};

use tokio::{task::JoinSet, time::Instant};

use super::{LOGINS, device_at, hash, limited, log_in, say, seconds, users};
use crate::common::{MAILBOX, MESSAGE, Plan, memory::InMemory, memory::timed};

async fn house(section: &str) -> InMemory {
    InMemory::build(Plan { listener: LOGINS, more: section, ..Plan::default() }).await
}

/// devices.md row 12: no room for more than a short name, or only for what looks like an address.
#[tokio::test(start_paused = true)]
async fn row_12_a_short_name_or_one_that_looks_like_an_address() {
    let (_folder, _, section) = users(&["c3"]);
    let house = house(&section).await;
    for user in ["c3", "c3@anything", "c3@copier.lan"] {
        let mut device = device_at(&house, "10.0.0.3").await;
        assert!(log_in(&mut device, user, "geheim").await.starts_with("235 "), "{user}");
        let heard = device.send("a@x", &["b@x"], MESSAGE).await.unwrap();
        assert_eq!(heard.code.get(), 250, "{user}");
    }
    let mut device = device_at(&house, "10.0.0.3").await;
    assert!(log_in(&mut device, "c3x", "geheim").await.starts_with("535 "));
}

#[tokio::test(start_paused = true)]
async fn each_failed_login_doubles_the_wait_of_its_address() {
    let (_folder, _, section) = users(&["scan", "other"]);
    let house = house(&section).await;
    let mut device = device_at(&house, "fd00::1").await;
    for wait in [0, 1, 2, 4, 8, 16] {
        // The rest of its /64 waits with it.
        let (heard, took) = timed(log_in(&mut device, "scan", "wrong")).await;
        assert!(heard.starts_with("535 5.7.8 "), "{heard}");
        // It has waited a moment for its greeting.
        let waited = took + Duration::from_millis(10);
        assert!(waited >= seconds(wait) && waited < seconds(wait + 1), "{wait}: {took:?}");
        device = device_at(&house, &format!("fd00::{wait:x}:1")).await;
    }
    // Half a minute is more than a device waits for an answer.
    let (heard, took) = timed(log_in(&mut device, "scan", "geheim")).await;
    assert_eq!(
        heard,
        "454 4.7.0 too many logins from this address have failed; try again in a minute"
    );
    assert!(took >= seconds(20) && took < seconds(21), "{took:?}");
    assert_eq!(limited(&house, "login_wait"), 1.0);
    let mut elsewhere = device_at(&house, "fd00:0:0:1::1").await;
    let (heard, took) = timed(log_in(&mut elsewhere, "scan", "geheim")).await;
    assert!(heard.starts_with("235 ") && took < seconds(1), "{heard} {took:?}");
    // What has succeeded is remembered, even where others guess.
    let mut again = device_at(&house, "fd00::2").await;
    let (heard, took) = timed(log_in(&mut again, "scan", "geheim")).await;
    assert!(heard.starts_with("235 ") && took < seconds(1), "{heard} {took:?}");
    tokio::time::sleep(seconds(60)).await;
    let mut device = device_at(&house, "fd00::1").await;
    assert!(log_in(&mut device, "other", "geheim").await.starts_with("235 "), "a minute is over");
}

#[tokio::test(start_paused = true)]
async fn a_remembered_login_ends_with_its_line_and_after_ten_idle_minutes() {
    let (_folder, file, section) = users(&["scan"]);
    let house = house(&section).await;
    let secret = "geheim";
    let mut device = device_at(&house, "10.0.0.3").await;
    assert!(log_in(&mut device, "scan", secret).await.starts_with("235 "));
    // This address is slow from now on, so that only what is remembered is quick.
    for _ in 0..6 {
        let mut guesser = device_at(&house, "10.0.0.3").await;
        log_in(&mut guesser, "scan", "wrong").await;
    }
    let now = async || {
        let mut device = device_at(&house, "10.0.0.3").await;
        let (heard, took) = timed(log_in(&mut device, "scan", secret)).await;
        (heard.starts_with("235 "), took < seconds(1))
    };
    assert_eq!(now().await, (true, true));
    let lines = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("scan:{}\n", hash("changed"))).unwrap();
    assert_eq!(now().await, (false, false), "the password is another");
    fs::write(&file, "").unwrap();
    assert!(!now().await.0, "the line is gone");
    fs::write(&file, lines).unwrap();
    // A guesser behind the same NAT locks out nobody that comes every few minutes.
    for _ in 0..5 {
        assert_eq!(now().await, (true, true));
        let mut guesser = device_at(&house, "10.0.0.3").await;
        log_in(&mut guesser, "scan", "wrong").await;
        tokio::time::sleep(seconds(300)).await;
    }
    assert_eq!(now().await, (true, true));
    tokio::time::sleep(seconds(600)).await;
    let mut guesser = device_at(&house, "10.0.0.3").await;
    log_in(&mut guesser, "scan", "wrong").await;
    let mut guesser = device_at(&house, "10.0.0.3").await;
    log_in(&mut guesser, "scan", "wrong").await;
    assert_eq!(now().await, (true, false), "it is judged anew");
}

/// One address with many sessions waits for itself, and nobody else for it.
#[tokio::test(start_paused = true)]
async fn guessers_at_one_address_keep_nobody_else_waiting() {
    let (_folder, _, section) = users(&["scan"]);
    let house = house(&section).await;
    let mut guessers = JoinSet::new();
    for _ in 0..200 {
        let mut device = device_at(&house, "10.0.0.66").await;
        guessers.spawn(async move { log_in(&mut device, "scan", "wrong").await });
    }
    tokio::task::yield_now().await;
    let began = Instant::now();
    for last in 1..=20 {
        let mut device = device_at(&house, &format!("10.0.1.{last}")).await;
        assert!(log_in(&mut device, "scan", "geheim").await.starts_with("235 "));
    }
    assert!(began.elapsed() < seconds(1), "{:?}", began.elapsed());
    let mut judged = 0;
    while let Some(heard) = guessers.join_next().await {
        judged += usize::from(heard.unwrap().starts_with("535 "));
    }
    // At 0, 1, 3, 7 and 15 seconds; the others hear after 20 that it is too much.
    assert_eq!(judged, 5);
    assert_eq!(limited(&house, "login_wait"), 195.0);
}

#[tokio::test(start_paused = true)]
async fn logins_that_are_not_judged_end_a_session_too() {
    let (_folder, _, section) = users(&["scan"]);
    let house = house(&section).await;
    let mut device = device_at(&house, "10.0.0.3").await;
    let mut heard = String::new();
    for _ in 0..20 {
        heard = log_in(&mut device, "scan", "wrong").await;
    }
    assert_eq!(heard, "421 4.7.0 too many errors, closing");
    assert_eq!(limited(&house, "errors"), 1.0);
    assert!(device.is_closed().await);
}

#[tokio::test(start_paused = true)]
async fn any_credentials_wait_for_nobody_and_prove_nothing() {
    let listener = "auth = \"offer\"\nauth_without_tls = true\naccept_any_credentials = true";
    let more = "[limits]\nmessages_per_device = \"1/h\"\n";
    let house = InMemory::build(Plan { listener, more, ..Plan::default() }).await;
    let began = Instant::now();
    for number in 0..10 {
        let mut device = device_at(&house, "10.0.0.3").await;
        assert!(log_in(&mut device, &format!("user{number}"), "x").await.starts_with("235 "));
        let heard = say(&mut device, "MAIL FROM:<a@x>").await;
        assert!(heard.starts_with(if number == 0 { "250 " } else { "451 4.7.0 " }), "{heard}");
        if number == 0 {
            say(&mut device, "RSET").await;
            assert!(device.send("a@x", &["b@x"], MESSAGE).await.unwrap().code.is_positive());
        }
    }
    assert!(began.elapsed() < seconds(1));
}

#[tokio::test(start_paused = true)]
async fn any_credentials_bind_to_nothing() {
    let (_folder, _, section) = users(&["alarm"]);
    let more = format!(
        "{section}[[mailbox]]\naddress = \"second@example.com\"\npassword = {{ file = \"password\" }}\n\
         [[device]]\nname = \"panel\"\nlogin = \"alarm\"\nmailbox = \"second@example.com\"\n\
         senders = [\"alarm@x\"]\nrecipients = [\"guard@x\"]\ndelivery = \"spool\"\n"
    );
    for (any, heard, name) in
        [("true", "250 2.0.0 ok, id ", "10.0.0.3"), ("false", "550 5.7.1 panel ", "panel")]
    {
        let listener = format!("{LOGINS}\naccept_any_credentials = {any}");
        let plan = Plan { listener: &listener, more: &more, settled: false, ..Plan::default() };
        let house = InMemory::build(plan).await;
        let mut device = device_at(&house, "10.0.0.3").await;
        assert!(log_in(&mut device, "alarm", "geheim").await.starts_with("235 "));
        let sent = device.send("boss@x", &["b@x"], MESSAGE).await.unwrap().to_string();
        assert!(sent.starts_with(heard), "{sent}");
        assert_eq!(&*house.relay.roster.devices()[0].name, name);
        if any == "true" {
            let delivery = &house.sandbox.deliveries()[0];
            assert_eq!(delivery.user, MAILBOX);
            let received = String::from_utf8_lossy(&delivery.data).into_owned();
            assert!(received.contains(" with ESMTPA id "), "{received}");
        }
    }
}
