//! Places for TLS handshakes with devices: so many at a time, and a fair share of them for each address.
//!
//! A handshake takes milliseconds, or a few seconds with an old device. When all places are taken, an address that has
//! fewer than another gets one of the other's: its oldest is given up. An only place is left to its address for a few
//! seconds. So whoever opens hundreds and finishes none keeps nobody out, from however many addresses.

use std::{
    collections::{HashMap, VecDeque},
    future::pending,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    select,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::policy::household;

/// How long an address keeps a place that others do not have more of.
const GRACE: Duration = Duration::from_secs(5);
/// How long a place is waited for.
const WAIT: Duration = Duration::from_secs(10);
/// An address has one in so many places at most.
const SHARES: usize = 8;

/// Places for handshakes.
#[derive(Debug)]
pub struct Handshakes {
    all: usize,
    each: usize,
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    /// Handshakes that run.
    running: usize,
    next: u64,
    by: HashMap<IpAddr, Own>,
}

/// Handshakes of one address, the oldest first.
#[derive(Debug, Default)]
struct Own {
    running: VecDeque<Handshake>,
    waiting: VecDeque<Handshake>,
    /// The next number when one of them last ended: who waits since before has had its turn.
    ended: u64,
}

#[derive(Debug)]
struct Handshake {
    id: u64,
    /// Since when it runs.
    since: Instant,
    served: CancellationToken,
    given_up: CancellationToken,
}

/// Where the place of somebody who waits comes from.
#[derive(Clone, Copy, Debug)]
enum Room {
    Free,
    Of(IpAddr),
}

/// A handshake's place, or place in the queue; free again when dropped.
#[derive(Debug)]
pub struct Place {
    handshakes: Arc<Handshakes>,
    address: IpAddr,
    id: u64,
    served: CancellationToken,
    given_up: CancellationToken,
}

impl Handshakes {
    /// `all` at a time; one address has an eighth of them at most, and never as many as it may have `sessions`.
    pub fn new(all: usize, sessions: usize) -> Self {
        let each = (all / SHARES).min(sessions.saturating_sub(1)).max(1);
        Self { all, each, book: Mutex::default() }
    }

    /// A place, or none if none was to be had in time.
    pub async fn place(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let place = self.queue(household(address));
        if timeout(GRACE, place.served.cancelled()).await.is_err() {
            // Whoever ran when we came has had its grace.
            self.serve();
            timeout(WAIT - GRACE, place.served.cancelled()).await.ok()?;
        }
        Some(place)
    }

    fn queue(self: &Arc<Self>, address: IpAddr) -> Place {
        let (served, given_up) = (CancellationToken::new(), CancellationToken::new());
        let id = {
            let mut book = self.book();
            let id = book.next;
            book.next += 1;
            let since = Instant::now();
            let (served, given_up) = (served.clone(), given_up.clone());
            let handshake = Handshake { id, since, served, given_up };
            book.by.entry(address).or_default().waiting.push_back(handshake);
            id
        };
        self.serve();
        Place { handshakes: Arc::clone(self), address, id, served, given_up }
    }

    fn serve(&self) {
        self.book().serve(self.all, self.each);
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    /// Gives places to those that wait: to the addresses that have fewest first, then to those that wait longest.
    fn serve(&mut self, all: usize, each: usize) {
        while let Some((address, room)) = self.turn(all, each) {
            if let Room::Of(other) = room
                && let Some(oldest) =
                    self.by.get_mut(&other).and_then(|own| own.running.pop_front())
            {
                oldest.given_up.cancel();
                self.ended(other);
            }
            let own = self.by.entry(address).or_default();
            let Some(mut first) = own.waiting.pop_front() else { return };
            first.since = Instant::now();
            first.served.cancel();
            own.running.push_back(first);
            self.running += 1;
        }
    }

    /// Whose turn it is, and where there is room for it.
    fn turn(&self, all: usize, each: usize) -> Option<(IpAddr, Room)> {
        let busiest = |late: bool| {
            let running = self
                .by
                .iter()
                .filter(|(_, own)| own.age().is_some_and(|age| !late || age >= GRACE));
            running.max_by_key(|(_, own)| (own.running.len(), own.age()))
        };
        let (most, late) = (busiest(false), busiest(true));
        // Who has `few` takes from who has at least so many more.
        let of = |busiest: Option<(&IpAddr, &Own)>, few: usize, more: usize| {
            let (address, _) = busiest.filter(|(_, own)| own.running.len() >= few + more)?;
            Some(Room::Of(*address))
        };
        let room = |address: &IpAddr, own: &Own| {
            let few = own.running.len();
            let another = match few < each {
                true if self.running < all => Some(Room::Free),
                true => of(most, few, 2).or_else(|| of(late, few, 1)),
                false => None,
            };
            another.or_else(|| own.age().filter(|age| *age >= GRACE).map(|_| Room::Of(*address)))
        };
        let waiting = self.by.iter().filter_map(|(address, own)| {
            let first = own.waiting.front()?;
            let order = (own.running.len(), first.id.max(own.ended));
            Some((order, *address, room(address, own)?))
        });
        let (_, address, room) = waiting.min_by_key(|(order, ..)| *order)?;
        Some((address, room))
    }

    fn remove(&mut self, address: IpAddr, id: u64) {
        let Some(own) = self.by.get_mut(&address) else { return };
        own.waiting.retain(|handshake| handshake.id != id);
        match own.running.iter().position(|handshake| handshake.id == id) {
            Some(at) => {
                own.running.remove(at);
                self.ended(address);
            }
            None => self.forget(address),
        }
    }

    fn ended(&mut self, address: IpAddr) {
        self.running -= 1;
        if let Some(own) = self.by.get_mut(&address) {
            own.ended = self.next;
            self.next += 1;
        }
        self.forget(address);
    }

    /// Who has nothing is not kept.
    fn forget(&mut self, address: IpAddr) {
        let nothing = |own: &Own| own.running.is_empty() && own.waiting.is_empty();
        if self.by.get(&address).is_some_and(nothing) {
            self.by.remove(&address);
        }
    }
}

impl Own {
    /// How long the oldest runs.
    fn age(&self) -> Option<Duration> {
        self.running.front().map(|oldest| oldest.since.elapsed())
    }
}

impl Place {
    /// Waits until it is given up to somebody else.
    pub async fn given_up(&self) {
        let late = async {
            sleep(GRACE).await;
            self.handshakes.serve();
            pending::<()>().await;
        };
        select! {
            () = self.given_up.cancelled() => {}
            () = late => {}
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut book = self.handshakes.book();
        book.remove(self.address, self.id);
        book.serve(self.handshakes.all, self.handshakes.each);
    }
}

#[cfg(test)]
mod tests {
    use std::ops::RangeInclusive;

    use tokio_util::task::TaskTracker;

    use super::*;

    /// What an honest handshake takes.
    const QUICK: Duration = Duration::from_millis(100);

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

    /// Each address holds what it gets until it is taken away, and comes back at once, so many times over.
    fn attack(handshakes: &Arc<Handshakes>, addresses: RangeInclusive<u8>, each: usize) {
        let tasks = TaskTracker::new();
        for of in addresses {
            for _ in 0..each {
                let handshakes = Arc::clone(handshakes);
                tasks.spawn(async move {
                    loop {
                        if let Some(place) = handshakes.place(address(of)).await {
                            place.given_up().await;
                        }
                    }
                });
            }
        }
    }

    /// The longest that any of twenty printers waits for its place.
    async fn longest_wait(handshakes: &Arc<Handshakes>) -> Duration {
        let tasks = TaskTracker::new();
        let printers = (201..=220).map(|of| {
            let handshakes = Arc::clone(handshakes);
            tasks.spawn(async move {
                let began = Instant::now();
                let place = handshakes.place(address(of)).await.expect("a place");
                let waited = began.elapsed();
                select! {
                    () = sleep(QUICK) => {}
                    () = place.given_up() => panic!("taken away from {of}"),
                }
                waited
            })
        });
        let mut longest = Duration::ZERO;
        for printer in printers.collect::<Vec<_>>() {
            longest = longest.max(printer.await.unwrap());
        }
        longest
    }

    #[tokio::test(start_paused = true)]
    async fn half_open_handshakes_keep_nobody_out_from_however_many_addresses() {
        for attackers in [1, 10, 50, 150] {
            let handshakes = Arc::new(Handshakes::new(200, 50));
            attack(&handshakes, 1..=attackers, 20);
            for _ in 0..30 {
                sleep(Duration::from_millis(700)).await;
                let longest = longest_wait(&handshakes).await;
                assert!(longest < Duration::from_secs(1), "{attackers}: {longest:?}");
                assert!(handshakes.book().running <= 200);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn where_each_has_one_a_grace_is_waited_for_in_turn() {
        let handshakes = Arc::new(Handshakes::new(100, 50));
        attack(&handshakes, 1..=200, 20);
        sleep(Duration::from_secs(1)).await;
        // A hundred others came before.
        let longest = longest_wait(&handshakes).await;
        assert!(longest > Duration::from_secs(1) && longest < WAIT, "{longest:?}");
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
        assert_eq!(began.elapsed(), GRACE);
        drop(own.remove(0));
        assert_eq!(handshakes.book().running, 3, "what was given up is not freed again");
        drop((own, third, other));
        let book = handshakes.book();
        assert_eq!((book.running, book.by.len()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_are_taken_the_one_with_most_gives_up_its_oldest_at_once() {
        let handshakes = Arc::new(Handshakes::new(24, 50));
        let few = places(&handshakes, 1, 1).await;
        let mut many = Vec::new();
        for of in 2..=8 {
            many.push(places(&handshakes, of, 3).await);
        }
        many.push(places(&handshakes, 9, 2).await);
        assert_eq!(handshakes.book().running, 24);
        let began = Instant::now();
        let place = handshakes.place(address(1)).await.unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert!(!few[0].given_up.is_cancelled());
        let given_up = |many: &[Vec<Place>]| {
            many.iter().flatten().filter(|it| it.given_up.is_cancelled()).count()
        };
        assert_eq!(given_up(&many), 1);
        // Two have two now, the others three: one more would only change places.
        let third = handshakes.place(address(1)).await.unwrap();
        assert_eq!(began.elapsed(), GRACE);
        assert_eq!(given_up(&many), 2);
        drop((place, third));
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_is_freed_is_had_at_once_by_who_has_fewest() {
        let handshakes = Arc::new(Handshakes::new(16, 50));
        let mut held = Vec::new();
        for of in 1..=16 {
            held.extend(places(&handshakes, of, 1).await);
        }
        let began = Instant::now();
        let second = handshakes.place(address(2));
        let other = async {
            sleep(QUICK).await;
            handshakes.place(address(100)).await
        };
        let freed = async {
            sleep(2 * QUICK).await;
            drop(held.remove(0));
            sleep(QUICK).await;
            let served: Vec<_> =
                [2, 100].map(|of| handshakes.book().by[&address(of)].running.len()).into();
            assert_eq!(served, [1, 1]);
            drop(held.remove(5));
        };
        let (second, other, ()) = tokio::join!(second, other, freed);
        assert!(second.is_some() && other.is_some());
        assert_eq!(began.elapsed(), 3 * QUICK);
    }

    #[tokio::test(start_paused = true)]
    async fn none_is_waited_for_for_ever_and_who_leaves_is_forgotten() {
        let handshakes = Arc::new(Handshakes::new(1, 1));
        let mut held = handshakes.place(address(1)).await;
        // Whoever holds the place gives it back and takes it again, so that its grace is never over.
        let began = Instant::now();
        let stubborn = async {
            loop {
                sleep(Duration::from_secs(1)).await;
                let mut book = handshakes.book();
                let own = book.by.get_mut(&address(1)).unwrap();
                own.running[0].since = Instant::now();
            }
        };
        let waited = select! {
            () = stubborn => unreachable!(),
            place = handshakes.place(address(3)) => place,
        };
        assert!(waited.is_none() && began.elapsed() == WAIT, "{:?}", began.elapsed());
        assert_eq!(handshakes.book().by.len(), 1);
        held.take();
        assert!(handshakes.book().by.is_empty());
    }
}
