//! What takes minutes, over streams in memory and with the clock stopped: slow verdicts, pauses, a smarthost that
//! hangs.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use common::{
    MAILBOX, MESSAGE, Plan, fault,
    memory::{InMemory, pool, timed},
};
use smtp_uplift::{
    sandbox::scenario::Scenario,
    smarthost::pool::{Lease, LeaseError, Lifetime, Pool, Who},
};
use tokio::{task::yield_now, time::sleep};

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Whether a time by the clock is as said, give or take what was done beside waiting.
fn about(took: Duration, said: Duration) -> bool {
    took >= said && took < said + seconds(1)
}

#[tokio::test(start_paused = true)]
async fn a_verdict_that_takes_25_seconds_takes_none() {
    let house = InMemory::new().await;
    let (heard, took) = timed(house.send("a@x", &["slow-dot-25@x"])).await;
    assert!(heard.starts_with("250 "), "{heard}");
    assert!(about(took, seconds(25)), "{took:?}");
    let deliveries = house.sandbox.deliveries();
    assert!(deliveries[0].data.ends_with(MESSAGE.as_bytes()), "{deliveries:?}");
    assert_eq!(house.metric(&format!("mailbox_up{{mailbox=\"{MAILBOX}\"}}")), 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_smarthost_that_is_away_comes_back() {
    let house = InMemory::new().await;
    house.sandbox.refuse(true);
    house.sandbox.cut();
    let heard = house.send("a@x", &["b@x"]).await;
    assert!(heard.starts_with("451 4.4.1 "), "{heard}");
    house.sandbox.refuse(false);
    let heard = house.send("a@x", &["b@x"]).await;
    assert!(heard.starts_with("250 "), "{heard}");
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_stops_leaves_its_folder_and_its_smarthost_to_the_next_one() {
    let plan = Plan::default;
    let house = InMemory::build(plan()).await;
    let mut device = house.device().await;
    device.say("MAIL FROM:<a@x>").await.unwrap();
    let (stopped, heard) = tokio::join!(house.stop(), async {
        sleep(seconds(1)).await;
        let heard = device.say("RCPT TO:<b@x>").await.unwrap().to_string();
        device.say("RSET").await.unwrap();
        heard
    });
    assert!(heard.starts_with("250 "), "{heard}");
    let (sandbox, folder) = stopped;
    assert_eq!(sandbox.counts().open.load(Ordering::SeqCst), 0);
    let house = InMemory::with(sandbox, folder, plan()).await;
    assert!(house.send("a@x", &["b@x"]).await.starts_with("250 "));
}

/// What a message meets with when one thing goes wrong; how long that takes.
async fn meet(lines: &str, to: &str, data: &str) -> (String, Duration, InMemory) {
    let house =
        InMemory::build(Plan { scenario: fault(lines), settled: false, ..Plan::default() }).await;
    let mut device = house.device().await;
    let (heard, took) = timed(device.send("a@x", &[to], data.to_owned())).await;
    (heard.unwrap().to_string(), took, house)
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_fails_ends_and_the_next_one_does_not() {
    for (how, took_about) in [
        ("close = true", seconds(0)),
        ("garbage = true", seconds(0)),
        ("reply = '421 4.3.2 no'", seconds(0)),
        ("hang = true", seconds(5)),
    ] {
        let (heard, took, house) =
            meet(&format!("stage = 'tls'\n{how}\ntimes = 1"), "b@x", MESSAGE).await;
        assert!(heard.starts_with("451 4."), "{how}: {heard}");
        assert!(about(took, took_about), "{how}: {took:?}");
        // The handshake that hangs is given up after half a minute.
        sleep(seconds(40)).await;
        let heard = house.send("a@x", &["b@x"]).await;
        assert!(heard.starts_with("250 "), "{how}: {heard}");
        assert_eq!(house.sandbox.counts().connections.load(Ordering::SeqCst), 2, "{how}");
    }
    let (heard, took, _) = meet("stage = 'tls'\ndelay = 3.0", "b@x", MESSAGE).await;
    assert!(heard.starts_with("250 ") && about(took, seconds(3)), "{heard} {took:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_no_reply_or_never_comes_is_no_yes() {
    for (to, heard_about, took_about) in [
        ("garbage-rcpt@x", "451 4.4.2 ", 0),
        ("garbage-data@x", "451 4.4.2 ", 0),
        ("garbage-dot@x", "451 4.4.2 ", 0),
        ("hang-rcpt@x", "451 4.4.", 20),
        ("hang-data@x", "451 4.4.", 20),
    ] {
        let (heard, took, house) = meet("stage = 'idle'\ntimes = 0", to, MESSAGE).await;
        assert!(heard.starts_with(heard_about), "{to}: {heard}");
        assert!(about(took, seconds(took_about)), "{to}: {took:?}");
        assert!(house.sandbox.deliveries().is_empty(), "{to}");
        sleep(seconds(2)).await;
        assert_eq!(house.sandbox.counts().open.load(Ordering::SeqCst), 0, "{to}: closed");
    }
}

#[tokio::test(start_paused = true)]
async fn in_the_data_it_may_say_something_close_stop_or_be_slow() {
    let long = "1234567 \r\n".repeat(100_000);
    for (how, heard_about, took_about) in [
        ("reply = '421 4.3.2 going down'", "451 4.4.2 ", 0),
        ("garbage = true", "451 4.4.2 ", 0),
        ("close = true", "451 4.4.2 ", 0),
        ("hang = true", "451 4.4.2 ", 180),
        ("delay = 100.0", "250 ", 100),
    ] {
        let (heard, took, house) =
            meet(&format!("stage = 'in-data'\n{how}\ntimes = 1"), "b@x", &long).await;
        assert!(heard.starts_with(heard_about), "{how}: {heard}");
        assert!(about(took, seconds(took_about)), "{how}: {took:?}");
        let heard = house.send("a@x", &["b@x"]).await;
        assert!(heard.starts_with("250 "), "{how}: {heard}");
    }
    let (heard, took, _) = meet("stage = 'idle'\ntimes = 0", "slow-in-data-7@x", &long).await;
    assert!(heard.starts_with("250 ") && about(took, seconds(7)), "{heard} {took:?}");
    // A short message never comes so far.
    let (heard, ..) = meet("stage = 'in-data'\nclose = true", "b@x", MESSAGE).await;
    assert!(heard.starts_with("250 "), "{heard}");
}

/// As many leases as there are to be had at once.
async fn leases(pool: &Arc<Pool>) -> Vec<Lease> {
    let mut leases = Vec::new();
    while let Ok(lease) = pool.lease(&Who::Spool, 1, seconds(2)).await {
        leases.push(lease);
    }
    leases
}

#[tokio::test(start_paused = true)]
async fn lowered_there_is_one_connection_less_for_five_minutes() {
    let (sandbox, pool, _folder) = pool(Scenario::default(), 3, Lifetime::default());
    let open = || sandbox.counts().open.load(Ordering::SeqCst);
    let lent = leases(&pool).await;
    assert_eq!((lent.len(), open()), (3, 3));
    lent.into_iter().for_each(Lease::park);
    pool.lower();
    sleep(seconds(2)).await;
    assert_eq!(open(), 2, "one that lies on the shelf is closed");
    let mut lent = leases(&pool).await;
    assert_eq!(lent.len(), 2);
    // All are lent: the next one that comes back is not lent again.
    pool.lower();
    lent.pop().unwrap().park();
    sleep(seconds(2)).await;
    assert_eq!(open(), 1);
    assert!(leases(&pool).await.is_empty());
    lent.pop().unwrap().park();
    for _ in 0..3 {
        pool.lower();
    }
    sleep(seconds(2)).await;
    assert_eq!(leases(&pool).await.len(), 1, "never below one");
    sleep(seconds(300)).await;
    assert_eq!(leases(&pool).await.len(), 3, "and back again");
}

#[tokio::test(start_paused = true)]
async fn lowering_ends_with_the_relay_and_lends_nothing_back_that_it_never_had() {
    let (sandbox, pool, _folder) = pool(Scenario::default(), 2, Lifetime::default());
    let lent = leases(&pool).await;
    pool.lower();
    sleep(seconds(301)).await;
    drop(lent);
    sleep(seconds(2)).await;
    let lent = leases(&pool).await;
    assert_eq!(lent.len(), 2, "what was lent all the while was not to be had");
    pool.lower();
    pool.stop();
    drop(lent);
    sleep(seconds(2)).await;
    assert_eq!(sandbox.counts().open.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn in_a_pause_nothing_is_lent() {
    let (_sandbox, pool, _folder) = pool(Scenario::default(), 2, Lifetime::default());
    pool.lease(&Who::Spool, 1, seconds(5)).await.unwrap().park();
    pool.pause(seconds(60));
    pool.pause(seconds(10));
    let (lease, took) = timed(pool.lease(&Who::Spool, 1, seconds(5))).await;
    let Err(LeaseError::Paused(left)) = lease else { panic!("lent") };
    assert_eq!((left, took), (seconds(60), seconds(0)));
    let (lease, took) = timed(pool.lease(&Who::Spool, 1, seconds(90))).await;
    lease.unwrap().park();
    assert!(about(took, seconds(60)), "{took:?}");
    let (lease, took) = timed(pool.lease(&Who::Spool, 1, seconds(5))).await;
    lease.unwrap().park();
    assert_eq!(took, seconds(0), "it is over");
}

#[tokio::test(start_paused = true)]
async fn a_device_hears_of_a_pause_at_once() {
    let house = InMemory::build(Plan::default()).await;
    house.pool().pause(seconds(60));
    let (heard, took) = timed(house.send("a@x", &["b@x"])).await;
    assert!(heard.starts_with("451 4.3.2 ") && took < seconds(1), "{heard} {took:?}");
    sleep(seconds(60)).await;
    assert!(house.send("a@x", &["b@x"]).await.starts_with("250 "));
}

#[tokio::test(start_paused = true)]
async fn a_pause_is_heard_by_those_who_wait_already() {
    let (_sandbox, pool, _folder) = pool(Scenario::default(), 1, Lifetime::default());
    let lent = pool.lease(&Who::Spool, 1, seconds(5)).await.unwrap();
    let (short, long) = tokio::join!(timed(pool.lease(&Who::Spool, 1, seconds(5))), async {
        let (long, ()) = tokio::join!(timed(pool.lease(&Who::Spool, 1, seconds(90))), async {
            yield_now().await;
            sleep(seconds(2)).await;
            pool.pause(seconds(60));
            lent.park();
        });
        long
    });
    assert!(matches!(short.0, Err(LeaseError::Paused(_))));
    assert!(about(short.1, seconds(2)), "{:?}", short.1);
    assert!(long.0.is_ok() && about(long.1, seconds(62)), "{:?}", long.1);
}

#[tokio::test(start_paused = true)]
async fn after_a_refused_login_the_next_one_is_not_admitted_for_a_while() {
    let scenario = fault("stage = 'auth'\nreply = '451 4.7.0 Temporary server error. PRX4'");
    let (_sandbox, pool, _folder) = pool(scenario, 1, Lifetime::default());
    assert!(pool.admits_login());
    assert!(pool.lease(&Who::Spool, 1, seconds(5)).await.is_err());
    assert!(!pool.admits_login());
    sleep(seconds(61)).await;
    assert!(pool.admits_login());
}
