//! The way to the smarthost: a name, its addresses, a connection.

use std::{io, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use thiserror::Error;
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};

use super::stream::BoxIo;

/// How long a name look-up may take.
const LOOKUP: Duration = Duration::from_secs(5);
/// How long one address may take to answer.
const CONNECT: Duration = Duration::from_secs(10);

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
    Tcp {
        /// Its name.
        host: String,
        /// Its port.
        port: u16,
    },
    /// By other means: a stream in memory, with which time can be stopped in tests.
    Fn(Arc<DialFn>),
}

impl Dialler {
    /// Connects.
    pub async fn dial(&self) -> Dialled {
        match self {
            Self::Tcp { host, port } => dial(host, *port).await,
            Self::Fn(connect) => connect().await,
        }
    }
}

/// Connects to the first address of `host` that answers.
async fn dial(host: &str, port: u16) -> Result<(BoxIo, SocketAddr), DialError> {
    first_that_answers(host, addresses(host, port).await?).await
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

async fn first_that_answers(
    host: &str,
    addresses: Vec<SocketAddr>,
) -> Result<(BoxIo, SocketAddr), DialError> {
    let mut tried = Vec::new();
    for address in addresses {
        match connect(address, CONNECT).await {
            Ok(io) => return Ok((io, address)),
            Err(error) => tried.push(format!("{address}: {error}")),
        }
    }
    Err(DialError::Connect { host: host.to_owned(), tried })
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

    #[tokio::test]
    async fn what_was_tried_is_told() {
        // A port that was free a moment ago.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let said = dial("localhost", port).await.map(|_| ()).unwrap_err().to_string();
        assert!(said.contains(&format!("127.0.0.1:{port}: Connection refused")), "{said}");
        let said = dial("", port).await.map(|_| ()).unwrap_err().to_string();
        assert!(said.starts_with("cannot find the address of "), "{said}");
    }

    #[tokio::test]
    async fn every_address_of_a_name_is_tried() {
        let here = |host: &str| std::net::TcpListener::bind((host, 0)).unwrap();
        let (closed, open) = (here("127.0.0.1"), here("127.0.0.2"));
        let addresses = vec![closed.local_addr().unwrap(), open.local_addr().unwrap()];
        drop(closed);
        let (_, peer) = first_that_answers("two.example", addresses.clone()).await.unwrap();
        assert_eq!(peer, addresses[1]);
    }
}
