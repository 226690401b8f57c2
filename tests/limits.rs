//! What a mailbox may send at a time, in a minute and in a day, and who goes first.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use std::{sync::Arc, time::Duration};

use common::memory::{limited_pool, timed};
use smtp_uplift::{
    proto::{
        envelope::Envelope,
        param::MailParams,
        path::{Address, ForwardPath, ReversePath},
    },
    sandbox::{Sandbox, scenario::Scenario},
    smarthost::{
        ledger::Ledger,
        pool::{Allowance, Budget, LeaseError, Pool, Spent, Who},
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
    let lease = pool.lease(who, recipients, wait).await?;
    let path = ForwardPath::Address(Address::parse("b@x").unwrap());
    let envelope = Envelope {
        reverse_path: ReversePath::Null,
        params: MailParams::default(),
        recipients: vec![path; recipients],
    };
    let begun = lease.begin(&envelope, 0, STEP, true).await.unwrap();
    begun.transfer.unwrap().end(STEP).await.unwrap();
    Ok(())
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
