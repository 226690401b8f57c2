//! Many at once: shared commits, bad company, callers that go away, and another program beside.

use std::{future::Future, pin::pin, task::Poll, time::Duration};

use futures_util::future::join_all;

use super::*;

fn commits(metrics: &Metrics) -> u64 {
    let text = metrics.render();
    let line = text.lines().find_map(|line| line.strip_prefix("smtp_uplift_spool_commits_total "));
    line.map_or(0, |count| count.parse().unwrap())
}

fn counted() -> (TempDir, Arc<Store>, Metrics) {
    let folder = tempfile::tempdir().unwrap();
    let metrics = Metrics::new("test");
    let store = Store::open(folder.path(), u64::MAX, metrics.clone()).unwrap();
    (folder, store, metrics)
}

/// Polls once, so that the work is in the line.
async fn begin<F: Future>(future: &mut std::pin::Pin<&mut F>) {
    std::future::poll_fn(|context| {
        assert!(future.as_mut().poll(context).is_pending());
        Poll::Ready(())
    })
    .await;
}

#[tokio::test]
async fn many_share_a_commit_and_readers_cost_none() {
    let (_folder, store, metrics) = counted();
    let takes = (0..50).map(|n| store.take(message(&format!("m.{n}"))));
    join_all(takes).await.into_iter().for_each(|taken| taken.unwrap());
    let few = commits(&metrics);
    assert!((1..=5).contains(&few), "{few} commits for 50 messages");
    assert_eq!(listed(&store, Filter::default()).await.len(), 50);
    store.totals().await.unwrap();
    store.show("m.1".to_owned()).await.unwrap();
    assert!(lease_ids(&store, at(-1)).await.is_empty());
    assert_eq!(store.hold_all(stop("default", Hold::Message)).await.unwrap(), 0);
    assert_eq!(commits(&metrics), few, "where nothing changes nothing is synced");
    store.take(message("alone")).await.unwrap();
    assert_eq!(commits(&metrics), few + 1);
}

#[tokio::test]
async fn a_bad_job_hurts_no_other() {
    let (_folder, store, _metrics) = counted();
    store.take(large("m.3")).await.unwrap();
    let takes = (0..9).map(|n| store.take(large(&format!("m.{n}"))));
    let more = store.take(NewMessage { notice: Some(notice("x")), ..message("m.3") });
    let (taken, more) = tokio::join!(join_all(takes), more);
    let failed: Vec<_> = (0..9).filter(|n| taken[*n].is_err()).collect();
    assert_eq!((failed, more.is_err()), (vec![3], true));
    assert_eq!(listed(&store, Filter::default()).await.len(), 9);
    assert!(store.notices().await.unwrap().is_empty(), "what belongs to a bad one is undone");
    for n in 0..9 {
        assert!(store.bodies.path(&format!("m.{n}")).exists());
    }
}

#[tokio::test]
async fn whoever_goes_away_leaves_the_others_and_the_turn_alone() {
    let (_folder, store, _metrics) = counted();
    {
        // The first has the turn, the second stands in the line, the third stays.
        let (mut leads, mut waits) =
            (pin!(store.take(message("a"))), pin!(store.take(message("b"))));
        begin(&mut leads).await;
        begin(&mut waits).await;
    }
    store.take(message("c")).await.unwrap();
    let ids = listed(&store, Filter::default()).await;
    // Of the first nobody knows; the second was never begun.
    assert!(ids.ends_with(&["c".to_owned()]) && !ids.contains(&"b".to_owned()), "{ids:?}");
    store.take(message("b")).await.unwrap();
}

#[tokio::test]
async fn a_leader_that_goes_away_while_it_gathers_leaves_the_line_to_the_next() {
    let (_folder, store, _metrics) = counted();
    join_all((0..9).map(|n| store.take(message(&format!("m.{n}"))))).await;
    {
        let mut gathers = pin!(store.take(message("gathers")));
        begin(&mut gathers).await;
        let mut noted = pin!(store.settle(Settlement::new("none", standing(State::Done), at(1))));
        begin(&mut noted).await;
    }
    store.take(message("next")).await.unwrap();
    assert_eq!(listed(&store, Filter::default()).await.len(), 10);
}

#[tokio::test]
async fn a_lease_that_nobody_fetches_is_put_back() {
    let (folder, store, _metrics) = counted();
    let held = Standing { due: Some(at(0)), hold: Some(Hold::Message), ..standing(State::Held) };
    store.take(NewMessage { standing: held, ..message("a") }).await.unwrap();
    for round in 0..3 {
        let mut lease = Box::pin(store.lease_due(due_by(at(0), 9)));
        begin(&mut lease.as_mut()).await;
        drop(lease);
        // Once this is answered the lease is over.
        store.totals().await.unwrap();
        if round < 2 {
            let leased = store.lease_due(due_by(at(0), 9)).await.unwrap();
            assert_eq!((leased.len(), &leased[0].hold), (1, &Some(Hold::Message)), "round {round}");
            assert!(lease_ids(&store, at(0)).await.is_empty());
            let held =
                Standing { hold: Some(Hold::Message), due: Some(at(0)), ..standing(State::Held) };
            assert!(store.settle(Settlement::new("a", held, at(1))).await.unwrap());
        }
    }
    drop(store);
    let store = open_at(folder.path());
    assert_eq!(stands(&store, "a").await, "held/message", "not maybe sent: it was not");
}

#[tokio::test]
async fn a_command_beside_the_relay_sees_and_changes_the_same() {
    let (folder, store, _metrics) = counted();
    take_all(&store, [large("a"), message("b"), message("c")]).await;
    let leased = store.lease_due(due_by(at(0), 1)).await.unwrap().remove(0);
    let visitor = Store::visit(folder.path()).unwrap();
    assert_eq!(state(&visitor, "a").await, State::Leased, "nothing is recovered beside a relay");
    let change = |id: &str, change| visitor.change(id.to_owned(), change, at(1));
    assert_eq!(change("a", Change::Drop).await.unwrap(), Changed::NotNow(State::Leased));
    assert_eq!(change("b", Change::Hold).await.unwrap(), Changed::Done);
    assert_eq!(change("c", Change::Drop).await.unwrap(), Changed::Done);
    assert_eq!(stands(&store, "b").await, "held/operator");
    assert!(lease_ids(&store, at(5)).await.is_empty());
    let ready = Standing { due: Some(at(9)), ..standing(State::Ready) };
    assert!(store.settle(Settlement::new(&leased.id, ready, at(2))).await.unwrap());
    assert_eq!(change("a", Change::Drop).await.unwrap(), Changed::Done);
    assert!(!store.bodies.path("a").exists());
    assert_eq!(listed(&store, Filter::default()).await, ["b"]);
}

#[tokio::test(start_paused = true)]
async fn a_paused_clock_stands_still_while_the_disk_works() {
    let (_folder, store, _metrics) = counted();
    let began = tokio::time::Instant::now();
    let timeout = Duration::from_secs(1);
    for n in 0..5 {
        let take = store.take(large(&format!("m.{n}")));
        tokio::time::timeout(timeout, take).await.expect("no time passes").unwrap();
    }
    assert_eq!(began.elapsed(), Duration::ZERO, "and who is alone never waits for company");
}
