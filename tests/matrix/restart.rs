//! A relay that ends in the middle, and the next one in the same folder.

use std::time::Duration;

use smtp_uplift::spool::queue::State;
use tokio::time::sleep;

use super::{
    common::{KEEP, SPOOL, STREAM, memory::InMemory},
    house::{
        COPIER, OFFICE, PATIENCE, copies, house, in_its_own_time, is_over, message, plan, rows,
        send, smarthost, until,
    },
};

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// The answer to the dot takes half a minute, once.
const LATE: &str = "[[fault]]\nstage = 'dot'\ndelay = 30.0\ntimes = 1";
/// It never comes.
const NEVER: &str = "[[fault]]\nstage = 'dot'\nhang = true";

/// Where the message stands.
async fn state(house: &InMemory) -> State {
    rows(house).await[0].state
}

/// The next relay sends it again, once.
async fn is_sent_again(house: &InMemory) {
    assert!(until(house, seconds(600), is_over).await);
    assert_eq!(state(house).await, State::Done);
    assert_eq!(rows(house).await[0].maybe_sent, 1);
}

#[test]
fn a_relay_that_stops_while_the_answer_is_awaited_sends_the_same_octets_again() {
    for (delivery, meanwhile) in [(KEEP, State::Awaiting), (SPOOL, State::Leased)] {
        in_its_own_time(async {
            let house = house(smarthost(LATE), delivery).await;
            let heard = send(&house, COPIER, &[OFFICE], &message(false)).await;
            assert!(heard.told().starts_with("250 2.0.0 queued"), "{}", heard.told());
            sleep((PATIENCE + seconds(2)).saturating_sub(heard.waited)).await;
            assert_eq!(state(&house).await, meanwhile);
            let (smarthost, folder) = house.stop().await;
            // Nobody is there to hear that it was taken.
            smarthost.delivered(1).await;
            let house = InMemory::with(smarthost, folder, plan(delivery)).await;
            is_sent_again(&house).await;
            let deliveries = house.sandbox.deliveries();
            assert_eq!(deliveries.len(), 2, "it may have been sent, so it was sent again");
            assert_eq!(deliveries[0].data, deliveries[1].data);
        });
    }
}

#[test]
fn a_relay_that_is_killed_while_the_answer_is_awaited_sends_it_again() {
    for (delivery, meanwhile) in [(KEEP, State::Awaiting), (SPOOL, State::Leased)] {
        // Whatever runs there ends with its time, in the middle of it.
        let (smarthost, folder) = in_its_own_time(async {
            let house = house(smarthost(NEVER), delivery).await;
            send(&house, COPIER, &[OFFICE], &message(true)).await;
            sleep(seconds(2)).await;
            assert_eq!(state(&house).await, meanwhile);
            let InMemory { sandbox, folder, .. } = house;
            (sandbox, folder)
        });
        in_its_own_time(async {
            smarthost.mend();
            let house = InMemory::with(smarthost, folder, plan(delivery)).await;
            assert_eq!(state(&house).await, State::MaybeSent);
            is_sent_again(&house).await;
            assert_eq!(copies(&house, OFFICE), 1);
            let delivery = house.sandbox.deliveries().pop().unwrap();
            assert!(delivery.data.ends_with(message(true).as_bytes()));
        });
    }
}

#[test]
fn what_is_held_is_held_by_the_next_relay_and_goes_when_it_may() {
    in_its_own_time(async {
        let denied = "[[fault]]\nstage = 'dot'\nreply = '554 5.2.252 SendAsDenied; not allowed to send as copier'";
        let house = house(smarthost(denied), KEEP).await;
        send(&house, COPIER, &[OFFICE], &message(false)).await;
        assert_eq!(state(&house).await, State::Held);
        let (smarthost, folder) = house.stop().await;
        let house = InMemory::with(smarthost, folder, plan(KEEP)).await;
        sleep(seconds(5)).await;
        assert_eq!(state(&house).await, State::Held, "it was found out again");
        let another = send(&house, COPIER, &[OFFICE], &message(false)).await;
        assert!(another.told().starts_with("250 2.0.0 queued"), "{}", another.told());
        house.sandbox.mend();
        assert!(until(&house, seconds(7200), is_over).await);
        assert_eq!(copies(&house, OFFICE), 2);
    });
}

#[test]
fn a_relay_that_keeps_nothing_delivers_what_an_earlier_one_has_kept() {
    in_its_own_time(async {
        let house = house(smarthost(""), KEEP).await;
        house.sandbox.refuse(true);
        send(&house, COPIER, &[OFFICE], &message(true)).await;
        assert_eq!(state(&house).await, State::Ready);
        let (smarthost, folder) = house.stop().await;
        let house = InMemory::with(smarthost, folder, plan(STREAM)).await;
        let heard = send(&house, COPIER, &[OFFICE], &message(false)).await;
        assert_eq!((heard.reply.code.get(), heard.at), (451, "RCPT"), "{}", heard.told());
        assert_eq!(rows(&house).await.len(), 1, "nothing more is kept");
        house.sandbox.refuse(false);
        assert!(until(&house, seconds(3600), is_over).await);
        assert_eq!(copies(&house, OFFICE), 1);
    });
}
