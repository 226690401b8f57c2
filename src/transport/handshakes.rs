//! Places for TLS handshakes with devices: so many at a time, and a fair share of them for each address.
//!
//! A handshake takes milliseconds, or a few seconds with an old device. Who holds a place for longer gives it up when
//! somebody waits: of the address that holds most of them, the oldest. So whoever opens hundreds and finishes none
//! keeps nobody out.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::policy::household;

/// How long a handshake may take before it gives its place up to somebody who waits.
const GRACE: Duration = Duration::from_secs(5);
/// How long a place is waited for.
const WAIT: Duration = Duration::from_secs(10);
/// How often somebody who waits looks whether a grace is over.
const LOOK: Duration = Duration::from_millis(500);
/// An address has one in so many places at most.
const SHARES: usize = 8;

/// Places for handshakes.
#[derive(Debug)]
pub struct Handshakes {
    all: usize,
    each: usize,
    taken: Mutex<Taken>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    next: u64,
    /// By address, the oldest first.
    by: HashMap<IpAddr, Vec<Running>>,
}

#[derive(Debug)]
struct Running {
    id: u64,
    since: Instant,
    given_up: CancellationToken,
}

/// A handshake's place; free again when dropped.
#[derive(Debug)]
pub struct Place {
    handshakes: Arc<Handshakes>,
    address: IpAddr,
    id: u64,
    given_up: CancellationToken,
}

impl Handshakes {
    /// `all` at a time; one address has an eighth of them at most, and never as many as it may have `sessions`.
    pub fn new(all: usize, sessions: usize) -> Self {
        let each = (all / SHARES).min(sessions.saturating_sub(1)).max(1);
        Self { all, each, taken: Mutex::default(), freed: Notify::new() }
    }

    /// A place, or none if none was to be had in time.
    pub async fn place(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let address = household(address);
        let waiting = async {
            loop {
                if let Some(place) = self.take(address) {
                    return place;
                }
                // Whoever is woken in vain, or not at all, looks again soon.
                let _ = timeout(LOOK, self.freed.notified()).await;
            }
        };
        timeout(WAIT, waiting).await.ok()
    }

    fn take(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let mut taken = self.taken();
        if taken.by.get(&address).is_some_and(|own| own.len() >= self.each) {
            taken.give_up(address)?;
        } else if taken.all >= self.all {
            let overdue = |running: &[Running]| running[0].since.elapsed() >= GRACE;
            let most = taken
                .by
                .iter()
                .filter(|(_, running)| overdue(running))
                .max_by_key(|(_, running)| (running.len(), running[0].since.elapsed()));
            let most = most.map(|(address, _)| *address)?;
            taken.give_up(most)?;
        }
        let (id, given_up) = (taken.next, CancellationToken::new());
        taken.next += 1;
        taken.all += 1;
        let running = Running { id, since: Instant::now(), given_up: given_up.clone() };
        taken.by.entry(address).or_default().push(running);
        Some(Place { handshakes: Arc::clone(self), address, id, given_up })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// The oldest of an address gives its place up, if its grace is over.
    fn give_up(&mut self, address: IpAddr) -> Option<()> {
        let oldest = self.by.get(&address)?.first()?;
        (oldest.since.elapsed() >= GRACE).then_some(())?;
        oldest.given_up.cancel();
        let id = oldest.id;
        self.remove(address, id);
        Some(())
    }

    fn remove(&mut self, address: IpAddr, id: u64) {
        let Some(own) = self.by.get_mut(&address) else { return };
        if let Some(at) = own.iter().position(|running| running.id == id) {
            own.remove(at);
            self.all -= 1;
        }
        if own.is_empty() {
            self.by.remove(&address);
        }
    }
}

impl Place {
    /// Waits until it is given up to somebody else.
    pub async fn given_up(&self) {
        self.given_up.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.handshakes.taken().remove(self.address, self.id);
        self.handshakes.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, number])
    }

    async fn places(handshakes: &Arc<Handshakes>, of: u8, count: usize) -> Vec<Place> {
        let mut places = Vec::new();
        for _ in 0..count {
            places.push(handshakes.place(address(of)).await.unwrap());
        }
        places
    }

    #[tokio::test(start_paused = true)]
    async fn one_address_has_a_share_and_waits_for_more() {
        let handshakes = Arc::new(Handshakes::new(16, 50));
        let mut own = places(&handshakes, 1, 2).await;
        let began = Instant::now();
        let (third, other) =
            tokio::join!(handshakes.place(address(1)), handshakes.place(address(2)));
        assert!(third.is_some() && other.is_some());
        assert!(own[0].given_up.is_cancelled() && !own[1].given_up.is_cancelled());
        assert!(began.elapsed() >= GRACE && began.elapsed() < GRACE + 2 * LOOK);
        drop(own.remove(0));
        assert_eq!(handshakes.taken().all, 3, "what was given up is not freed again");
        drop((own, third, other));
        let taken = handshakes.taken();
        assert_eq!((taken.all, taken.by.len()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_are_taken_the_one_with_most_gives_up_its_oldest() {
        let handshakes = Arc::new(Handshakes::new(24, 50));
        let few = places(&handshakes, 1, 1).await;
        let mut many = Vec::new();
        for of in 2..=8 {
            many.push(places(&handshakes, of, 3).await);
        }
        many.push(places(&handshakes, 9, 2).await);
        assert_eq!(handshakes.taken().all, 24);
        let place = handshakes.place(address(100)).await.unwrap();
        assert!(!few[0].given_up.is_cancelled());
        let given_up = many.iter().flatten().filter(|it| it.given_up.is_cancelled()).count();
        assert_eq!(given_up, 1);
        drop(place);
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_is_freed_is_had_at_once_and_none_is_waited_for_for_ever() {
        let handshakes = Arc::new(Handshakes::new(1, 1));
        let first = handshakes.place(address(1)).await.unwrap();
        let began = Instant::now();
        let (second, ()) = tokio::join!(handshakes.place(address(2)), async {
            tokio::time::sleep(Duration::from_millis(1_200)).await;
            drop(first);
        });
        assert!(second.is_some() && began.elapsed() < Duration::from_millis(1_300));
        // Whoever holds the place gives it back and takes it again, so that its grace is never over.
        let stubborn = async {
            let mut held = second;
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                drop(held.take());
                held = handshakes.take(address(2));
            }
        };
        let began = Instant::now();
        let waited = tokio::select! {
            () = stubborn => unreachable!(),
            place = handshakes.place(address(3)) => place,
        };
        assert!(waited.is_none() && began.elapsed() == WAIT, "{:?}", began.elapsed());
    }
}
