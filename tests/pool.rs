//! The connections of a mailbox: kept, bounded, and not used when they have gone bad.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use std::{
    fs,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use common::{House, MAILBOX, MESSAGE, Plan, fault};
use smtp_uplift::{
    config,
    sandbox::{Sandbox, scenario::Scenario},
    smarthost::{
        Target,
        pool::{Allowance, Lifetime, Pool, Who},
    },
    telemetry::{
        metrics::Metrics,
        transcript::{Keep, Transcripts},
    },
    transport::certificate::Identity,
};
use tempfile::TempDir;
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
        let (sandbox, pool, _folder) = pool(Scenario::default(), lifetime).await;
        let lease = pool.lease(&Who::Spool, 1, day).await.unwrap();
        let born = tokio::time::Instant::now();
        lease.park();
        while born.elapsed() <= short {
            tokio::time::sleep(short).await;
        }
        pool.lease(&Who::Spool, 1, day).await.unwrap().park();
        assert_eq!(
            sandbox.counts().connections.load(Ordering::SeqCst),
            connections,
            "{lifetime:?}"
        );
        pool.stop();
    }
}

/// A pool alone, before a smarthost that takes any password or the scenario's.
async fn pool(scenario: Scenario, lifetime: Lifetime) -> (Sandbox, Arc<Pool>, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let sandbox = Sandbox::start(([127, 0, 0, 1], 0).into(), scenario).await.unwrap();
    let port = sandbox.address().port();
    let text = common::configuration(&Plan::default(), port, sandbox.certificate(), folder.path());
    let config = config::parse(&text, &folder.path().join("relay.toml")).unwrap().config;
    let target = Target::new(&config, &config.mailboxes[0]).unwrap();
    (
        sandbox,
        Pool::new(
            target,
            Allowance::unlimited(3),
            None,
            lifetime,
            Metrics::new("none"),
            Transcripts::new(Keep::Failed),
            TaskTracker::new(),
        ),
        folder,
    )
}

#[tokio::test]
async fn a_new_password_ends_the_pause_after_a_refused_login() {
    let scenario = Scenario { password: Some("the new one".into()), ..Scenario::default() };
    let house = House::build(Plan { scenario, ..Plan::default() }).await;
    assert!(house.send("a@x", &["b@x"]).await.starts_with("451 "));
    assert!(house.send("a@x", &["b@x"]).await.starts_with("451 "));
    let refused = &house.sandbox.counts().refused_logins;
    assert_eq!(refused.load(Ordering::SeqCst), 1, "a wrong password is presented once");
    fs::write(house.folder.path().join("password"), "the new one\n").unwrap();
    assert!(house.send("a@x", &["b@x"]).await.starts_with("250 "));
    assert_eq!(refused.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn connections_with_a_former_password_are_not_lent_again() {
    let idle = Duration::from_secs(6);
    let lifetime = Lifetime { idle, age: idle };
    let (sandbox, pool, folder) = pool(Scenario::default(), lifetime).await;
    let (one, two) = (
        pool.lease(&Who::Spool, 1, idle).await.unwrap(),
        pool.lease(&Who::Spool, 1, idle).await.unwrap(),
    );
    one.park();
    let began = tokio::time::Instant::now();
    fs::write(folder.path().join("password"), "the new one").unwrap();
    while sandbox.counts().open.load(Ordering::SeqCst) > 1 {
        assert!(began.elapsed() < idle / 2, "a shelved one lies there still");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    two.park();
    pool.lease(&Who::Spool, 1, idle).await.unwrap().park();
    assert_eq!(sandbox.counts().connections.load(Ordering::SeqCst), 3, "the lent one was kept");
}

#[tokio::test]
async fn a_ca_file_is_read_again_when_it_has_changed() {
    let lifetime = Lifetime::default();
    let (sandbox, pool, folder) = pool(Scenario::default(), lifetime).await;
    let good = fs::read(folder.path().join("sandbox.crt")).unwrap();
    let other = Identity::make(&["other.example"]).unwrap().certificate.to_pem().unwrap();
    let wait = Duration::from_secs(10);
    let one = pool.lease(&Who::Spool, 1, wait).await.unwrap();
    for (roots, trusted) in [(&other[..], false), (b"half a file", false), (&good[..], true)] {
        fs::write(folder.path().join("sandbox.crt"), roots).unwrap();
        let lease = pool.lease(&Who::Spool, 1, wait).await;
        assert_eq!(lease.is_ok(), trusted, "{:?}", lease.map(|_| ()));
    }
    drop(one);
    assert!(sandbox.counts().logins.load(Ordering::SeqCst) == 2);
}

#[tokio::test]
async fn a_refused_password_is_presented_again_only_by_the_operators_word() {
    let scenario = Scenario { password: Some("another".into()), ..Scenario::default() };
    let (sandbox, pool, folder) = pool(scenario, Lifetime::default()).await;
    let refused = || sandbox.counts().refused_logins.load(Ordering::SeqCst);
    let wait = Duration::from_secs(10);
    for _ in 0..3 {
        assert!(pool.lease(&Who::Spool, 1, wait).await.is_err());
    }
    assert_eq!(refused(), 1);
    pool.try_again();
    let said = pool.lease(&Who::Spool, 1, wait).await.map(|_| ()).unwrap_err().to_string();
    assert!(said.contains("535 5.7.139"), "{said}");
    let said = pool.lease(&Who::Spool, 1, wait).await.map(|_| ()).unwrap_err().to_string();
    assert!(said.contains("not tried again with this secret"), "{said}");
    assert_eq!(refused(), 2);
    // A new secret is tried once, however many ask for it at a time.
    fs::write(folder.path().join("password"), "wrong as well").unwrap();
    let (one, two, three) = tokio::join!(
        pool.lease(&Who::Spool, 1, wait),
        pool.lease(&Who::Spool, 1, wait),
        pool.lease(&Who::Spool, 1, wait)
    );
    assert!(one.is_err() && two.is_err() && three.is_err());
    assert_eq!(refused(), 3);
}

#[tokio::test]
async fn a_login_that_is_refused_for_a_while_waits_and_one_that_was_not_judged_does_not() {
    for (reply, connections) in [
        ("451 4.7.0 Temporary server error. Please try again later. PRX4", 1),
        ("454 4.7.0 Temporary authentication failure", 2),
    ] {
        let scenario = fault(&format!("stage = \"auth\"\nreply = {reply:?}"));
        let (sandbox, pool, _folder) = pool(scenario, Lifetime::default()).await;
        let wait = Duration::from_secs(10);
        assert!(pool.lease(&Who::Spool, 1, wait).await.is_err());
        let said = pool.lease(&Who::Spool, 1, wait).await.map(|_| ()).unwrap_err().to_string();
        assert_eq!(said.contains("not tried again for another "), connections == 1, "{said}");
        assert_eq!(sandbox.counts().connections.load(Ordering::SeqCst), connections, "{reply}");
    }
}
