//! The smarthost's limits: too many connections at once, too many messages a minute.

use std::time::Duration;

use smtp_uplift::{smarthost::pool::Who, spool::queue::State};
use tokio::time::{Instant, sleep};

use super::{
    common::{
        KEEP, SPOOL,
        memory::{InMemory, timed},
    },
    house::{
        COPIER, OFFICE, copies, house, in_its_own_time, is_over, message, rows, send, smarthost,
        until,
    },
};

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// How many connections are to be had at once.
async fn to_be_had(house: &InMemory) -> usize {
    let mut leases = Vec::new();
    while let Ok(lease) = house.pool().lease(&Who::Spool, 1, seconds(2)).await {
        leases.push(lease);
    }
    let count = leases.len();
    for lease in leases {
        lease.park();
    }
    count
}

#[test]
fn too_many_connections_makes_one_less_for_five_minutes_and_the_message_waits() {
    for delivery in [KEEP, SPOOL] {
        in_its_own_time(async {
            let smarthost = smarthost(
                "[[fault]]\nstage = 'dot'\nreply = '432 4.3.2 Concurrent connections limit exceeded.'\ntimes = 1",
            );
            let house = house(smarthost, delivery).await;
            let heard = send(&house, COPIER, &[OFFICE], &message(false)).await;
            assert!(heard.told().starts_with("250 2.0.0 queued"), "{}", heard.told());
            sleep(seconds(3)).await;
            assert_eq!(rows(&house).await[0].state, State::Ready);
            assert_eq!(to_be_had(&house).await, 2);
            let (over, took) = timed(until(&house, seconds(600), is_over)).await;
            assert!(over && took < seconds(60), "{took:?}");
            assert_eq!(copies(&house, OFFICE), 1);
            sleep(seconds(301)).await;
            assert_eq!(to_be_had(&house).await, 3);
        });
    }
}

#[test]
fn too_fast_is_followed_by_a_minutes_silence() {
    for delivery in [KEEP, SPOOL] {
        in_its_own_time(async {
            let smarthost = smarthost(
                "[[fault]]\nstage = 'mail'\nreply = '421 4.4.2 Message submission rate for this client has exceeded the configured limit'\ntimes = 1",
            );
            let house = house(smarthost, delivery).await;
            let began = Instant::now();
            for _ in 0..3 {
                let heard = send(&house, COPIER, &[OFFICE], &message(false)).await;
                assert!(heard.told().starts_with("250 2.0.0 queued"), "{}", heard.told());
                assert_eq!(heard.waited, seconds(0), "in a pause nobody is kept waiting");
                sleep(seconds(1)).await;
            }
            sleep(seconds(59).saturating_sub(began.elapsed())).await;
            assert_eq!(copies(&house, OFFICE), 0, "nothing is sent in the pause");
            let (over, took) = timed(until(&house, seconds(600), is_over)).await;
            assert!(over && took < seconds(180), "{took:?}");
            assert_eq!(copies(&house, OFFICE), 3);
        });
    }
}
