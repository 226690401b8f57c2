//! The way to the smarthost: a name, its addresses, a connection.
//!
//! All addresses of both families are tried, each a moment after the last (RFC 8305): one that does not answer costs
//! little. One that has failed comes last for a while. One that has failed again is left alone, longer each time, so
//! that a smarthost that comes back is not overrun.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use thiserror::Error;
use tokio::{
    net::{TcpStream, lookup_host},
    time::{Instant, sleep, sleep_until, timeout},
};

use super::stream::BoxIo;

/// How long a name look-up may take.
const LOOKUP: Duration = Duration::from_secs(5);
/// How long one address may take to answer.
const CONNECT: Duration = Duration::from_secs(10);
/// How long an address has before the next one is tried as well (RFC 8305 section 5).
const HEAD_START: Duration = Duration::from_millis(250);
/// The longest that an address is left alone after its second failure in a row; it doubles with each, up to
/// [`LONGEST`]. One failure is nothing: both may just have been started.
const SECOND: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(16);
/// For so long the end of that is waited for.
const SOON: Duration = Duration::from_secs(1);
/// Addresses that are tried: a name that has more has enough of them.
const MOST: usize = 16;

/// Why no connection came about.
#[derive(Debug, Error)]
pub enum DialError {
    /// The name has no addresses, or nobody says which.
    #[error("cannot find the address of {host}: {reason}")]
    Name {
        /// The name.
        host: String,
        /// What the resolver said.
        reason: String,
    },
    /// None of the addresses takes a connection.
    #[error("no address of {host} takes a connection: {}", tried.join("; "))]
    Connect {
        /// The name.
        host: String,
        /// Each address with what it said.
        tried: Vec<String>,
    },
}

/// A connection and the address on its other end, or why there is none.
pub type Dialled = Result<(BoxIo, SocketAddr), DialError>;

/// Something that connects.
pub type DialFn = dyn Fn() -> Pin<Box<dyn Future<Output = Dialled> + Send>> + Send + Sync;

/// How to get to the smarthost.
#[derive(Clone)]
pub enum Dialler {
    /// By TCP.
    Tcp(Arc<Way>),
    /// By other means: a stream in memory, with which time can be stopped in tests.
    Fn(Arc<DialFn>),
}

/// A name and a port, and what is known of the addresses behind it.
pub struct Way {
    host: String,
    port: u16,
    known: Mutex<Known>,
}

/// What is known of addresses. The time is an argument.
#[derive(Debug, Default)]
struct Known {
    /// Those that the name had last: used while nobody says what it has.
    addresses: Vec<SocketAddr>,
    failures: HashMap<SocketAddr, Failures>,
}

/// What is to be tried.
struct Order {
    /// The best first.
    order: Vec<SocketAddr>,
    /// What is said of those that are left alone.
    left_alone: Vec<String>,
    /// The first of these to be tried again, and when.
    soonest: Option<(Instant, SocketAddr)>,
}

#[derive(Debug)]
struct Failures {
    count: u32,
    /// What it said last.
    said: String,
    until: Instant,
}

impl Dialler {
    /// The way by TCP.
    pub fn tcp(host: &str, port: u16) -> Self {
        Self::Tcp(Arc::new(Way { host: host.to_owned(), port, known: Mutex::default() }))
    }

    /// Connects.
    pub async fn dial(&self) -> Dialled {
        match self {
            Self::Tcp(way) => way.dial().await,
            Self::Fn(connect) => connect().await,
        }
    }

    /// An operator's word: addresses that have failed are tried at once.
    pub fn try_again(&self) {
        if let Self::Tcp(way) = self {
            way.known().failures.clear();
        }
    }
}

impl Way {
    /// Connects to the first address that answers.
    async fn dial(&self) -> Dialled {
        self.dial_to(addresses(&self.host, self.port).await).await
    }

    async fn dial_to(&self, found: Result<Vec<SocketAddr>, DialError>) -> Dialled {
        let Order { mut order, left_alone: mut tried, soonest } =
            self.known().order(found, Instant::now())?;
        if let Some((until, address)) = soonest
            && order.is_empty()
            && until - Instant::now() <= SOON
        {
            sleep_until(until).await;
            (order, tried) = (vec![address], Vec::new());
        }
        let mut waiting = order.into_iter();
        let mut running = FuturesUnordered::new();
        loop {
            if let Some(address) = waiting.next() {
                running.push(async move { (address, connect(address, CONNECT).await) });
            }
            let more = waiting.len() > 0;
            tokio::select! {
                biased;
                Some((address, connected)) = running.next(), if !running.is_empty() => match connected {
                    Ok(io) => {
                        self.known().failures.remove(&address);
                        return Ok((io, address));
                    }
                    Err(error) => {
                        let said = error.to_string();
                        tried.push(format!("{address}: {said}"));
                        self.known().failed(address, said, Instant::now(), fastrand::f64());
                    }
                },
                () = sleep(HEAD_START), if more => {}
                else => return Err(DialError::Connect { host: self.host.clone(), tried }),
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// The addresses to try, if they are those that were found.
    fn order(
        &mut self,
        found: Result<Vec<SocketAddr>, DialError>,
        now: Instant,
    ) -> Result<Order, DialError> {
        match found {
            Ok(addresses) => self.addresses = in_turns(addresses),
            Err(error) if self.addresses.is_empty() => return Err(error),
            Err(error) => tracing::warn!(%error, "the addresses that the name had before are used"),
        }
        let addresses = &self.addresses;
        self.failures.retain(|address, _| addresses.contains(address));
        let (mut order, mut left_alone, mut soonest) = (Vec::new(), Vec::new(), None);
        for address in addresses {
            match self.failures.get(address) {
                Some(Failures { until, said, .. }) if *until > now => {
                    let left = (*until - now).as_secs_f32();
                    left_alone.push(format!("{address}: {said} (not tried again for {left:.1} s)"));
                    let this = Some((*until, *address));
                    soonest = if soonest.is_some_and(|(best, _)| best <= *until) {
                        soonest
                    } else {
                        this
                    };
                }
                _ => order.push(*address),
            }
        }
        // Those that have failed before come last, those of the fewest failures first.
        order.sort_by_key(|address| self.failures.get(address).map_or(0, |known| known.count));
        Ok(Order { order, left_alone, soonest })
    }

    /// An address has failed; `chance` is from 0 to 1.
    fn failed(&mut self, address: SocketAddr, said: String, now: Instant, chance: f64) {
        let count = self.failures.get(&address).map_or(0, |known| known.count) + 1;
        let doubled = |times: u32| SECOND.saturating_mul(1 << times.min(16)).min(LONGEST);
        let longest = count.checked_sub(2).map_or(Duration::ZERO, doubled);
        // Anything up to the longest, so that those who failed together do not come back together.
        let until = now + longest.mul_f64(chance.clamp(0.0, 1.0));
        self.failures.insert(address, Failures { count, said, until });
    }
}

/// The families in turns, the resolver's first choice first (RFC 8305 section 4).
fn in_turns(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (mut one, mut other): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    one.reverse();
    other.reverse();
    let mut turns = Vec::new();
    while turns.len() < MOST && !(one.is_empty() && other.is_empty()) {
        turns.extend(one.pop());
        turns.extend(other.pop());
    }
    turns
}

/// The addresses of `host`, at least one.
pub async fn addresses(host: &str, port: u16) -> Result<Vec<SocketAddr>, DialError> {
    let unknown = |reason: String| DialError::Name { host: host.to_owned(), reason };
    let addresses: Vec<SocketAddr> = match timeout(LOOKUP, lookup_host((host, port))).await {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(error)) => return Err(unknown(error.to_string())),
        Err(_) => return Err(unknown(format!("no answer within {} s", LOOKUP.as_secs()))),
    };
    if addresses.is_empty() {
        return Err(unknown("the name has none".to_owned()));
    }
    Ok(addresses)
}

/// Connects to one address, or says why not after `wait` at the latest.
pub async fn connect(address: SocketAddr, wait: Duration) -> io::Result<BoxIo> {
    let stream = timeout(wait, TcpStream::connect(address)).await.map_err(|_| {
        io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", wait.as_secs()))
    })??;
    // Commands are small and waited for.
    stream.set_nodelay(true)?;
    Ok(Box::new(stream))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(host: &str, port: u16) -> Way {
        Way { host: host.to_owned(), port, known: Mutex::default() }
    }

    fn here(host: &str) -> std::net::TcpListener {
        let listener = std::net::TcpListener::bind((host, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        listener
    }

    fn unknown() -> DialError {
        DialError::Name { host: "two.example".into(), reason: "no answer".into() }
    }

    #[tokio::test]
    async fn what_was_tried_is_told() {
        // A port that was free a moment ago.
        let listener = here("127.0.0.1");
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let way = self::way("localhost", port);
        let said = way.dial().await.map(|_| ()).unwrap_err().to_string();
        assert!(said.contains(&format!("127.0.0.1:{port}: Connection refused")), "{said}");
        let said = self::way("", port).dial().await.map(|_| ()).unwrap_err().to_string();
        assert!(said.starts_with("cannot find the address of "), "{said}");
    }

    #[tokio::test]
    async fn every_address_of_a_name_is_tried_and_the_one_that_answers_comes_first_then() {
        let (closed, open) = (here("127.0.0.1"), here("127.0.0.2"));
        let addresses = vec![closed.local_addr().unwrap(), open.local_addr().unwrap()];
        drop(closed);
        let way = way("two.example", 25);
        let (_, peer) = way.dial_to(Ok(addresses.clone())).await.unwrap();
        assert_eq!(peer, addresses[1]);
        let Order { order, left_alone, .. } =
            way.known().order(Ok(addresses.clone()), Instant::now() + LONGEST).unwrap();
        assert_eq!((order, left_alone.len()), (vec![addresses[1], addresses[0]], 0));
    }

    #[tokio::test]
    async fn an_address_that_says_nothing_costs_a_moment_only() {
        // Its queue is full: who connects there waits.
        let silent = here("127.0.0.3");
        let address = silent.local_addr().unwrap();
        let mut crowd = Vec::new();
        while let Ok(Ok(one)) = timeout(HEAD_START, TcpStream::connect(address)).await {
            crowd.push(one);
            assert!(crowd.len() < 10_000, "it takes everybody");
        }
        let open = here("127.0.0.2");
        let addresses = vec![address, open.local_addr().unwrap()];
        let began = Instant::now();
        let (_, peer) = way("two.example", 25).dial_to(Ok(addresses.clone())).await.unwrap();
        assert_eq!(peer, addresses[1]);
        assert!(began.elapsed() < CONNECT / 2, "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn a_name_that_cannot_be_looked_up_has_the_addresses_that_it_had() {
        let open = here("127.0.0.1");
        let way = way("two.example", 25);
        assert!(matches!(way.dial_to(Err(unknown())).await, Err(DialError::Name { .. })));
        way.dial_to(Ok(vec![open.local_addr().unwrap()])).await.map(|_| ()).unwrap();
        let (_, peer) = way.dial_to(Err(unknown())).await.unwrap();
        assert_eq!(peer, open.local_addr().unwrap());
    }

    #[test]
    fn an_address_that_fails_is_left_alone_longer_each_time_up_to_a_limit() {
        let (address, now) = (SocketAddr::from(([127, 0, 0, 1], 25)), Instant::now());
        let mut known = Known::default();
        let alone = |known: &mut Known, after: f32| {
            let at = now + Duration::from_secs_f32(after);
            known.order(Ok(vec![address]), at).unwrap().order.is_empty()
        };
        known.failed(address, "refused".into(), now, 1.0);
        assert!(!alone(&mut known, 0.0), "once is nothing");
        for longest in [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 16.0] {
            known.failed(address, "refused".into(), now, 1.0);
            assert!(alone(&mut known, longest - 0.1) && !alone(&mut known, longest + 0.1));
        }
        known.failed(address, "refused".into(), now, 0.25);
        assert!(alone(&mut known, 3.9) && !alone(&mut known, 4.1), "its share of the longest");
        let Order { left_alone, soonest, .. } = known.order(Ok(vec![address]), now).unwrap();
        assert_eq!(left_alone, ["127.0.0.1:25: refused (not tried again for 4.0 s)"]);
        assert_eq!(soonest, Some((now + Duration::from_secs(4), address)));
    }

    #[tokio::test]
    async fn who_is_to_be_tried_again_in_a_moment_is_waited_for() {
        let open = here("127.0.0.1");
        let address = open.local_addr().unwrap();
        let way = way("one.example", 25);
        let ago = Instant::now();
        for chance in [0.0, 0.4] {
            way.known().failed(address, "refused".into(), ago, chance);
        }
        let (_, peer) = way.dial_to(Ok(vec![address])).await.unwrap();
        assert_eq!(peer, address);
        assert!(ago.elapsed() >= SECOND.mul_f64(0.4), "{:?}", ago.elapsed());
        for _ in 0..9 {
            way.known().failed(address, "refused".into(), Instant::now(), 1.0);
        }
        let said = way.dial_to(Ok(vec![address])).await.map(|_| ()).unwrap_err().to_string();
        assert!(said.contains("not tried again for 1"), "{said}");
    }

    #[test]
    fn families_take_turns() {
        let list = |addresses: &[&str]| {
            addresses.iter().map(|a| a.parse().unwrap()).collect::<Vec<SocketAddr>>()
        };
        let (a, b, c, d) = ("[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1");
        assert_eq!(in_turns(list(&[a, b, c, d])), list(&[a, d, b, c]));
        assert_eq!(in_turns(list(&[d, a, b])), list(&[d, a, b]));
        assert_eq!(in_turns(list(&[a; 40])).len(), MOST);
    }
}
