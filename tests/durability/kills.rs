//! SIGKILL at random moments, with many devices at work.

use std::{env, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use crate::{
    book::{Book, Crowd},
    common::{KEEP, Plan, SPOOL, fault},
    relay::{House, Relay},
};

/// Deliveries that may be under way at a time: two for each of the mailbox's three connections.
const HANDS: usize = 6;

fn kills() -> usize {
    env::var("UPLIFT_KILLS").map_or(20, |text| text.parse().expect("UPLIFT_KILLS is a number"))
}

/// Lets it run for a moment that is as good as any other, its start included.
async fn for_a_while(house: &House, book: &Book) {
    let end = Instant::now() + Duration::from_millis(fastrand::u64(20..500));
    while Instant::now() < end {
        sleep(Duration::from_millis(10)).await;
        book.look(house);
    }
}

async fn survives(plan: Plan<'_>) {
    let house = House::build(plan).await;
    let book = Arc::new(Book::default());
    let relay = house.start().ready().await;
    let crowd = Crowd::start(&book, house.address, 12, 8);
    let mut relay: Relay = relay;
    for _ in 0..kills() {
        for_a_while(&house, &book).await;
        relay.kill().await;
        relay = house.start();
    }
    let relay = relay.ready().await;
    for_a_while(&house, &book).await;
    crowd.stop().await;
    let too_many = book.settle(&house).await;
    assert!(book.answered() > 5 * kills(), "{} messages are no load", book.answered());
    // What was under way at a kill, and no more.
    assert!(too_many as usize <= HANDS * kills(), "{too_many} copies too many");
    relay.stop().await;
    eprintln!("{} messages, {} kills, {too_many} second copies", book.answered(), kills());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_survives_kills() {
    survives(Plan { delivery: SPOOL, ..Plan::default() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_streams_and_spools_survives_kills() {
    let scenario = fault("stage = 'dot'\nreply = '451 4.2.0 not now'\nevery = 5");
    survives(Plan { delivery: KEEP, scenario, ..Plan::default() }).await;
}
