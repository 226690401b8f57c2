//! SIGKILL at each point that a message passes on its way into the queue and out of it. What the store has on disk
//! at its own points is said at `smtp_uplift::spool::store::point`; those of the relay are
//!
//! | Name | What is known |
//! |---|---|
//! | `dot-sent` | the dot is on its way up, and no answer is there |
//! | `dot-answered` | the answer is there, and nothing was made of it yet |
//! | `settling` | the queue is about to be told what became of a delivery |
//! | `reply-due` | everything, but for the device |

use std::{os::unix::process::ExitStatusExt as _, process::ExitStatus, sync::Arc};

use crate::{
    book::{Book, Crowd},
    common::{KEEP, Plan, SPOOL, fault},
    relay::{House, PATIENCE, Relay},
};

/// On the way into the queue and out of it.
const SPOOLED: [&str; 11] = [
    "body-written",
    "body-synced",
    "body-renamed",
    "row-inserted",
    "committed",
    "reply-due",
    "lease-committed",
    "dot-sent",
    "dot-answered",
    "settling",
    "settled",
];

/// Where the smarthost is asked first.
const STREAMED: [&str; 6] =
    ["dot-sent", "dot-answered", "committed", "reply-due", "settling", "settled"];

/// Runs a relay that dies at the `time`-th passing of a point, and the one that finds what it has left.
async fn dies_at(house: &House, book: &Arc<Book>, point: &str, time: u32) {
    let mut command = house.command();
    command.env("SMTP_UPLIFT_KILL_AT", format!("{point}:{time}"));
    let mut relay = Relay::start(command);
    let crowd = Crowd::start(book, house.address, 4, 3);
    let end: Option<ExitStatus> = relay.ended(PATIENCE).await;
    let signal = end.and_then(|status| status.signal());
    assert_eq!(signal, Some(9), "it does not die at {point}: {}", relay.said());
    crowd.stop().await;
    let relay = house.start().ready().await;
    let too_many = book.settle(house).await;
    eprintln!("{point}: {} messages so far, {too_many} second copies", book.answered());
    relay.stop().await;
}

/// Three relays at a time, for most of their lives is waiting.
async fn all<'a>(plan: impl Fn() -> Plan<'a>, points: &[&str], times: &[u32]) {
    if !cfg!(debug_assertions) {
        eprintln!("a release build has no points to be killed at");
        return;
    }
    let mut parts = points.chunks(points.len().div_ceil(3));
    let mut part = || some(plan(), parts.next().unwrap_or_default(), times);
    tokio::join!(part(), part(), part());
}

async fn some(plan: Plan<'_>, points: &[&str], times: &[u32]) {
    let house = House::build(plan).await;
    let book = Arc::new(Book::default());
    for point in points {
        for time in times {
            dies_at(&house, &book, point, *time).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_survives_a_kill_at_each_point() {
    // The first time of all, and in the middle of the work.
    all(|| Plan { delivery: SPOOL, ..Plan::default() }, &SPOOLED, &[1, 7]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_streams_and_spools_survives_a_kill_at_each_point() {
    let scenario = || fault("stage = 'dot'\nreply = '451 4.2.0 not now'\nevery = 3");
    let plan = || Plan { delivery: KEEP, scenario: scenario(), ..Plan::default() };
    all(plan, &STREAMED, &[2]).await;
}
