//! Where devices connect, and how many may.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::net::{TcpListener, TcpStream};

use crate::policy::household;

/// How long to wait after the system has refused a connection: it is out of files or memory, and asking
/// again at once would only burn time.
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// A bound socket.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
}

/// Seats for sessions: so many in all, so many for one address.
#[derive(Debug)]
pub struct Seats {
    all: usize,
    each: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    each: HashMap<IpAddr, usize>,
}

/// There is no seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// For nobody.
    All,
    /// For this address.
    Each,
}

/// A session's seat; free again when dropped.
#[derive(Debug)]
pub struct Seat {
    seats: Arc<Seats>,
    address: IpAddr,
}

impl Listener {
    /// Binds the address; port 0 takes a free one.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = TcpListener::bind(address).await?;
        Ok(Self { address: socket.local_addr()?, socket })
    }

    /// The address that it is bound to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next device. The system's refusals are logged and waited out.
    pub async fn accept(&self) -> (TcpStream, SocketAddr) {
        loop {
            match self.socket.accept().await {
                Ok((stream, peer)) => {
                    // Replies are small and waited for; a socket that does not take this still works.
                    let _ = stream.set_nodelay(true);
                    return (stream, peer);
                }
                Err(error) => {
                    tracing::warn!(address = %self.address, %error, "cannot accept a connection");
                    tokio::time::sleep(AFTER_ERROR).await;
                }
            }
        }
    }
}

impl Seats {
    /// `all` sessions at a time, `each` of one address.
    pub fn new(all: usize, each: usize) -> Self {
        Self { all, each, taken: Mutex::default() }
    }

    /// A seat for a session of an address. An IPv6 /64 counts as one: whoever has one address of it has them all.
    pub fn take(self: &Arc<Self>, address: IpAddr) -> Result<Seat, Full> {
        let address = household(address);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.each.get(&address).copied().unwrap_or(0);
        if own >= self.each {
            return Err(Full::Each);
        }
        if taken.all >= self.all {
            return Err(Full::All);
        }
        taken.all += 1;
        taken.each.insert(address, own + 1);
        Ok(Seat { seats: Arc::clone(self), address })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        if let Some(own) = taken.each.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                taken.each.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_are_bounded_in_all_and_for_each_address() {
        let seats = Arc::new(Seats::new(3, 2));
        let (a, b) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let first = seats.take(a).unwrap();
        let _second = seats.take("::ffff:10.0.0.1".parse().unwrap()).unwrap();
        assert_eq!(seats.take(a).unwrap_err(), Full::Each);
        let _third = seats.take(b).unwrap();
        assert_eq!(seats.take(b).unwrap_err(), Full::All);
        drop(first);
        assert!(seats.take(a).is_ok());
        assert_eq!(
            seats.taken.lock().unwrap().each.len(),
            2,
            "an address without sessions is forgotten"
        );
    }

    #[test]
    fn an_ipv6_64_has_the_seats_of_one_address() {
        let seats = Arc::new(Seats::new(10, 2));
        let take = |address: &str| seats.take(address.parse().unwrap());
        let _seats = (take("2001:db8::1").unwrap(), take("2001:db8::2:0:0:1").unwrap());
        assert_eq!(take("2001:db8:0:0:ffff::9").unwrap_err(), Full::Each);
        take("2001:db8:0:1::1").unwrap();
    }
}
