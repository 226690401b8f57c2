//! The connections of a mailbox: kept, bounded, and not used when they have gone bad.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use common::{House, MAILBOX, MESSAGE, Plan, fault};
use smtp_uplift::{
    config,
    sandbox::Sandbox,
    smarthost::{
        Target,
        pool::{Lifetime, Pool},
    },
    telemetry::metrics::Metrics,
};
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

#[tokio::test]
async fn a_connection_is_kept_between_messages() {
    let house = House::new().await;
    for _ in 0..5 {
        assert!(house.send("a@x", &["b@x"]).await.starts_with("250"));
    }
    let counts = house.sandbox.counts();
    assert_eq!(
        (counts.connections.load(Ordering::SeqCst), counts.logins.load(Ordering::SeqCst)),
        (1, 1)
    );
    assert_eq!(
        house.metric(&format!("upstream_connections{{mailbox=\"{MAILBOX}\",state=\"shelved\"}}")),
        1.0
    );
    assert_eq!(house.metric(&format!("mailbox_up{{mailbox=\"{MAILBOX}\"}}")), 1.0);
}

#[tokio::test]
async fn there_are_never_more_connections_than_allowed() {
    let house =
        Arc::new(House::build(Plan { smarthost: "lease_wait = \"30s\"", ..Plan::default() }).await);
    let mut devices = JoinSet::new();
    for number in 0..30 {
        let house = Arc::clone(&house);
        devices.spawn(async move {
            // Some transactions end in a closed connection, which counts until it is closed.
            let to = if number % 5 == 0 { "close-after-dot@x" } else { "b@x" };
            let mut device = house.device().await;
            for _ in 0..3 {
                device.send("a@x", &[to], MESSAGE).await.unwrap();
            }
        });
    }
    devices.join_all().await;
    let counts = house.sandbox.counts();
    assert_eq!(counts.accepted.load(Ordering::SeqCst), 72);
    assert!(counts.most_open.load(Ordering::SeqCst) <= 3, "{counts:?}");
}

#[tokio::test]
async fn a_late_421_is_noticed_before_the_connection_is_used_again() {
    let scenario = fault("stage = 'idle'\nreply = '421 4.4.2 Connection dropped'\nclose = true");
    let house = House::build(Plan { scenario, ..Plan::default() }).await;
    for _ in 0..4 {
        let heard = house.send("a@x", &["b@x"]).await;
        assert!(heard.starts_with("250"), "{heard}");
    }
    assert!(house.sandbox.counts().connections.load(Ordering::SeqCst) >= 4);
}

#[tokio::test]
async fn a_connection_that_ends_just_when_it_is_taken_up_is_replaced() {
    // The smarthost refuses whatever comes second on a connection.
    let scenario = fault(
        "stage = 'mail'\nreply = '421 4.3.2 Service not available'\nclose = true\nevery = 2\ntimes = 3",
    );
    let house = House::build(Plan { scenario, ..Plan::default() }).await;
    for _ in 0..4 {
        let heard = house.send("a@x", &["b@x"]).await;
        assert!(heard.starts_with("250"), "{heard}");
    }
}

#[tokio::test]
async fn a_connection_that_comes_too_late_is_kept_for_the_next_one() {
    // No connection comes about within the time that a device waits for one.
    let scenario = fault("stage = 'connect'\ndelay = 0.4");
    let house = House::build(Plan {
        scenario,
        smarthost: "lease_wait = \"100ms\"",
        mailbox: "password = { file = \"password\" }\nmax_connections = 1",
        ..Plan::default()
    })
    .await;
    // The first login came late, for the start's own attempt: a device has it at once.
    let heard = house.send("a@x", &["b@x"]).await;
    assert!(heard.starts_with("250"), "{heard}");
    // That connection is lost; the next one comes too late for whoever asked, and serves the one behind.
    house.send("a@x", &["close-after-dot@x"]).await;
    let mut refused = 0;
    while !house.send("a@x", &["b@x"]).await.starts_with("250") {
        refused += 1;
    }
    assert!(refused > 0, "nobody waits that long");
    assert_eq!(
        house.sandbox.counts().connections.load(Ordering::SeqCst),
        2,
        "none was thrown away"
    );
}

#[tokio::test]
async fn a_connection_that_is_idle_or_old_is_not_lent_again() {
    let day = Duration::from_secs(86_400);
    let short = Duration::from_millis(20);
    for (lifetime, connections) in [
        (Lifetime { idle: day, age: day }, 1),
        (Lifetime { idle: short, age: day }, 2),
        (Lifetime { idle: day, age: short }, 2),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let plan = Plan::default();
        let sandbox =
            Sandbox::start(([127, 0, 0, 1], 0).into(), plan.scenario.clone()).await.unwrap();
        let port = sandbox.address().port();
        let text = common::configuration(&plan, port, sandbox.certificate(), folder.path());
        let config = config::parse(&text, &folder.path().join("relay.toml")).unwrap().config;
        let target = Target::new(&config).unwrap();
        let pool = Pool::new(target, 3, lifetime, Metrics::new("none"), TaskTracker::new());
        let lease = pool.lease(day).await.unwrap();
        let born = tokio::time::Instant::now();
        lease.park();
        while born.elapsed() <= short {
            tokio::time::sleep(short).await;
        }
        pool.lease(day).await.unwrap().park();
        assert_eq!(
            sandbox.counts().connections.load(Ordering::SeqCst),
            connections,
            "{lifetime:?}"
        );
        pool.stop();
    }
}
