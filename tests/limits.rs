//! What a mailbox may send at a time, in a minute and in a day, and who goes first.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use common::{
    MAILBOX, Plan, fault,
    memory::{InMemory, limited_pool, pool, timed},
};
use smtp_uplift::{
    proto::{
        envelope::Envelope,
        param::MailParams,
        path::{Address, ForwardPath, ReversePath},
    },
    sandbox::{Sandbox, scenario::Scenario},
    smarthost::{
        ledger::Ledger,
        pool::{Allowance, Budget, Lease, LeaseError, Lifetime, Pool, Spent, Who},
    },
};
use tempfile::TempDir;
use tokio::{sync::mpsc, task::JoinSet, time::sleep};

const STEP: Duration = Duration::from_secs(60);

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn allowance(messages_per_minute: u32, recipients_per_day: u32) -> Allowance {
    Allowance { connections: 1, messages_per_minute, recipients_per_day }
}

fn house(allowance: Allowance) -> (Sandbox, Arc<Pool>, TempDir) {
    let sandbox = Sandbox::in_memory(Scenario::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let pool = limited_pool(&sandbox, &folder, allowance, None);
    (sandbox, pool, folder)
}

fn device(name: &str) -> Who {
    Who::Device(name.into())
}

/// Sends a message to so many recipients up to its dot, and no further.
async fn send(
    pool: &Arc<Pool>,
    who: &Who,
    recipients: usize,
    wait: Duration,
) -> Result<(), LeaseError> {
    send_over(pool.lease(who, recipients, wait).await?, recipients).await;
    Ok(())
}

async fn send_over(lease: Lease, recipients: usize) {
    let path = ForwardPath::Address(Address::parse("b@x").unwrap());
    let envelope = Envelope {
        reverse_path: ReversePath::Null,
        params: MailParams::default(),
        recipients: vec![path; recipients],
    };
    let begun = lease.begin(&envelope, 0, STEP, true).await.unwrap();
    begun.transfer.unwrap().end(STEP).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_a_minute_has_no_room_for_is_told_at_once_to_whoever_would_wait_in_vain() {
    let (_sandbox, pool, _folder) = house(allowance(2, 0));
    for _ in 0..2 {
        send(&pool, &Who::Spool, 1, seconds(5)).await.unwrap();
    }
    let (sent, took) = timed(send(&pool, &device("a"), 1, seconds(5))).await;
    let Err(LeaseError::Spent(Spent { count: 2, what: Budget::Messages, left })) = sent else {
        panic!("{sent:?}");
    };
    assert!(left > seconds(59) && left <= seconds(61) && took < seconds(1), "{left:?} {took:?}");
    assert_eq!((pool.left().messages, pool.left().recipients), (Some(0), None));
    let (sent, took) = timed(send(&pool, &device("a"), 1, seconds(90))).await;
    sent.unwrap();
    assert!(took > seconds(59) && took < seconds(62), "{took:?}");
    pool.stop();
}

#[tokio::test(start_paused = true)]
async fn who_waits_already_hears_of_it_when_others_use_up_the_minute() {
    let (_sandbox, pool, _folder) = house(allowance(2, 0));
    let lent = pool.lease(&device("a"), 1, seconds(5)).await.unwrap();
    let (second, third) = (device("b"), device("c"));
    let (second, third, ()) = tokio::join!(
        send(&pool, &second, 1, seconds(5)),
        send(&pool, &third, 1, seconds(30)),
        async {
            sleep(seconds(1)).await;
            drop(lent);
        }
    );
    // The first has sent nothing, so that two may: the other two.
    second.unwrap();
    third.unwrap();
    let (sent, took) = timed(send(&pool, &device("d"), 1, seconds(30))).await;
    assert!(matches!(sent, Err(LeaseError::Spent(_))) && took < seconds(1), "{took:?}");
    pool.stop();
}

#[tokio::test(start_paused = true)]
async fn the_days_recipients_bar_a_large_message_and_not_a_small_one() {
    let (_sandbox, pool, _folder) = house(allowance(0, 10));
    send(&pool, &device("a"), 7, seconds(5)).await.unwrap();
    let large = send(&pool, &device("a"), 4, seconds(5)).await;
    let Err(LeaseError::Spent(Spent { what: Budget::Recipients, left, .. })) = large else {
        panic!("{large:?}")
    };
    assert!(left > seconds(86_000) && left < seconds(87_000), "{left:?}");
    send(&pool, &device("a"), 3, seconds(5)).await.unwrap();
    assert_eq!(pool.left().recipients, Some(0));
    sleep(seconds(87_000)).await;
    send(&pool, &device("a"), 10, seconds(5)).await.unwrap();
    pool.stop();
}

#[tokio::test(start_paused = true)]
async fn who_is_to_send_to_too_many_keeps_nobody_behind_it_waiting() {
    let (_sandbox, pool, _folder) = house(allowance(0, 10));
    let lent = pool.lease(&Who::Spool, 9, seconds(5)).await.unwrap();
    let took = |recipients, wait| {
        let pool = Arc::clone(&pool);
        async move { timed(send(&pool, &Who::Spool, recipients, wait)).await }
    };
    let (large, small, ()) = tokio::join!(took(9, seconds(30)), took(1, seconds(30)), async {
        sleep(seconds(1)).await;
        // All but one of the ten are used up while they wait.
        send_over(lent, 9).await;
    });
    assert!(matches!(large.0, Err(LeaseError::Spent(_))), "{large:?}");
    assert!(small.0.is_ok(), "{small:?}");
    assert!(large.1 < seconds(2) && small.1 < seconds(2), "{large:?} {small:?}");
    pool.stop();
}

#[tokio::test(start_paused = true)]
async fn in_stream_mode_the_day_ends_in_the_midst_of_a_message() {
    let mailbox = "password = { file = \"password\" }\nrecipients_per_day = 3";
    let house = InMemory::build(Plan { mailbox, ..Plan::default() }).await;
    let mut device = house.device().await;
    device.say("MAIL FROM:<a@x>").await.unwrap();
    for place in 0..3 {
        let said = device.say(&format!("RCPT TO:<{place}@x>")).await.unwrap();
        assert_eq!(said.code.get(), 250);
    }
    let said = device.say("RCPT TO:<4@x>").await.unwrap().to_string();
    assert!(said.starts_with("452 4.5.3 "), "{said}");
}

#[tokio::test(start_paused = true)]
async fn in_stream_mode_too_what_the_smarthost_says_of_too_much_is_heeded() {
    let too_fast = fault(
        "stage = \"mail\"\nreply = \"421 4.4.2 Message submission rate for this client has exceeded the configured limit\"\n\
         times = 1",
    );
    let house = InMemory::build(Plan { scenario: too_fast, ..Plan::default() }).await;
    assert!(house.send("a@x", &["b@x"]).await.starts_with("451 "));
    let (heard, took) = timed(house.send("a@x", &["b@x"])).await;
    assert!(heard.starts_with("451 4.3.2 the smarthost has asked us to send less"), "{heard}");
    assert!(took < seconds(1), "{took:?}");
    sleep(seconds(61)).await;
    assert!(house.send("a@x", &["b@x"]).await.starts_with("250 "));

    let too_many = fault(
        "stage = \"dot\"\nreply = \"432 4.3.2 Concurrent connections limit exceeded.\"\ntimes = 1",
    );
    let house = InMemory::build(Plan { scenario: too_many, ..Plan::default() }).await;
    let all = house.pool().max_connections();
    assert!(house.send("a@x", &["b@x"]).await.starts_with("451 "));
    let mut lent = Vec::new();
    while let Ok(lease) = house.pool().lease(&Who::Spool, 1, seconds(2)).await {
        lent.push(lease);
    }
    assert_eq!(lent.len(), all - 1);
}

#[tokio::test(start_paused = true)]
async fn one_device_with_many_messages_keeps_nobody_waiting() {
    let (_sandbox, pool, _folder) = house(Allowance::unlimited(1));
    let lent = pool.lease(&Who::Spool, 1, seconds(5)).await.unwrap();
    let (served, mut order) = mpsc::unbounded_channel();
    let mut devices = JoinSet::new();
    let mut asks = vec!["busy"; 100];
    asks.extend(["b", "c"]);
    for name in asks {
        let (pool, served) = (Arc::clone(&pool), served.clone());
        devices.spawn(async move {
            let lease = pool.lease(&device(name), 1, seconds(600)).await.unwrap();
            served.send(name).unwrap();
            lease.park();
        });
        // Each waits before the next one comes.
        tokio::task::yield_now().await;
    }
    assert_eq!(pool.waiting(), 102);
    lent.park();
    let mut first = Vec::new();
    for _ in 0..5 {
        first.push(order.recv().await.unwrap());
    }
    assert_eq!(first, ["busy", "b", "c", "busy", "busy"]);
    pool.stop();
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_leaves_nothing_behind() {
    let (_sandbox, pool, _folder) = house(Allowance::unlimited(1));
    let lent = pool.lease(&Who::Spool, 1, seconds(5)).await.unwrap();
    for _ in 0..100 {
        assert!(matches!(pool.lease(&device("a"), 1, seconds(1)).await, Err(LeaseError::Busy(_))));
    }
    assert_eq!(pool.waiting(), 0);
    lent.park();
    pool.lease(&device("a"), 1, seconds(1)).await.unwrap().park();
    pool.stop();
}

/// A relay's life: the runtime ends with it, and whatever it still had to do.
fn life<T>(living: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(living)
}

#[test]
fn the_minute_goes_on_after_a_restart_and_after_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let limits = folder.path().join("limits");
    let ledger = || Some(Ledger::new(&limits, "scanner@example.com"));
    let relay = || {
        let sandbox = Sandbox::in_memory(Scenario::default()).unwrap();
        let pool = limited_pool(&sandbox, &folder, allowance(2, 100), ledger());
        (sandbox, pool)
    };
    let written = async |recipients: u32| loop {
        let read = Ledger::new(&limits, "scanner@example.com").read(seconds(1_000_000));
        if read.1.iter().map(|(_, count)| count).sum::<u32>() == recipients {
            break;
        }
        sleep(Duration::from_millis(1)).await;
    };
    life(async {
        let (_sandbox, pool) = relay();
        send(&pool, &Who::Spool, 40, seconds(5)).await.unwrap();
        pool.stop();
        written(40).await;
    });
    life(async {
        let (_sandbox, pool) = relay();
        assert_eq!(pool.left().messages, Some(1));
        send(&pool, &Who::Spool, 50, seconds(5)).await.unwrap();
        // Nobody says goodbye to this one.
        written(90).await;
    });
    life(async {
        let (_sandbox, pool) = relay();
        assert_eq!((pool.left().messages, pool.left().recipients), (Some(0), Some(10)));
        assert!(matches!(
            pool.lease(&Who::Spool, 1, seconds(1)).await,
            Err(LeaseError::Spent(Spent { what: Budget::Messages, .. }))
        ));
    });
}

#[tokio::test(start_paused = true)]
async fn metrics_tell_what_is_left_and_who_waits() {
    let mailbox = "password = { file = \"password\" }\nmessages_per_minute = 2\nrecipients_per_day = 10\n\
                   max_connections = 1";
    let house = InMemory::build(Plan { mailbox, ..Plan::default() }).await;
    assert!(house.send("a@x", &["b@x", "c@x"]).await.starts_with("250 "));
    let left =
        |what| house.metric(&format!("mailbox_left{{mailbox=\"{MAILBOX}\",what=\"{what}\"}}"));
    assert_eq!((left("messages"), left("recipients")), (1.0, 8.0));
    let waiting = || house.metric(&format!("mailbox_waiting{{mailbox=\"{MAILBOX}\"}}"));
    let lent = house.pool().lease(&Who::Relay, 0, seconds(5)).await.unwrap();
    let (spool, ()) = tokio::join!(house.pool().lease(&Who::Spool, 1, seconds(5)), async {
        sleep(seconds(1)).await;
        assert_eq!(waiting(), 1.0);
        lent.park();
    });
    spool.unwrap().park();
    assert_eq!(waiting(), 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_password_that_was_changed_elsewhere_is_presented_once() {
    // The first login succeeds, the second is refused.
    let refusal = "535 5.7.139 Authentication unsuccessful, the user credentials were incorrect.";
    let scenario = fault(&format!("stage = \"auth\"\nreply = {refusal:?}\nevery = 2"));
    let (sandbox, pool, _folder) = pool(scenario, 3, Lifetime::default());
    pool.lease(&Who::Spool, 1, seconds(5)).await.unwrap().park();
    // Long enough for the connection to be given up.
    sleep(seconds(300)).await;
    let ask = || pool.lease(&Who::Spool, 1, seconds(60));
    let (one, two, three) = tokio::join!(ask(), ask(), ask());
    assert!(one.is_err() && two.is_err() && three.is_err());
    let logins = sandbox.counts().logins.load(Ordering::SeqCst);
    let refused = sandbox.counts().refused_logins.load(Ordering::SeqCst);
    assert_eq!((logins, refused), (1, 1));
    pool.stop();
}
