//! PROXY headers, versions 1 and 2: a load balancer tells in front of each connection whose it is.

use std::{net::IpAddr, time::Duration};

use proxy_header::{Error, ParseConfig, Protocol, ProxyHeader};
use thiserror::Error;

use super::{
    peek::{Peeked, peek},
    stream::BoxIo,
};

/// Octets that a header may have: those of version 1 have 107 at most, those of version 2 are as long as what
/// balancers tell besides, as of TLS.
const MOST: usize = 4 * 1024;
/// How long a balancer may take for it: it is the first that it sends.
const PATIENCE: Duration = Duration::from_secs(5);
/// Version and command of a version 2 header that stands in front of the balancer's own connection.
const LOCAL: u8 = 0x20;

/// Why a connection is closed whose balancer should have told of it.
#[derive(Debug, Error)]
pub enum ProxyFault {
    /// It is no header, or one that nobody could act on.
    #[error(
        "it begins with no PROXY header that makes sense: send-proxy or send-proxy-v2 is missing at the balancer, or somebody else sits at its address"
    )]
    Malformed,
    /// The balancer says that it does not know whose connection it is.
    #[error("its PROXY header does not tell an address, so nobody can say whether it is allowed")]
    Unknown,
    /// Too many others wait to be told of.
    #[error("too many others have not told yet whose they are")]
    TooMany,
    /// It took too long.
    #[error("no PROXY header came within {} s", PATIENCE.as_secs())]
    Late,
    /// It was closed, or lost, before its header was there.
    #[error("it ended before its PROXY header did")]
    Closed,
}

/// Takes the header off a balancer's connection. Returns the address of the device, `None` where the balancer speaks
/// for itself, as to find out whether we are there.
pub async fn take(mut io: BoxIo) -> Result<(BoxIo, Option<IpAddr>), ProxyFault> {
    let front = peek(&mut io, MOST, PATIENCE, |octets| parse(octets).is_some()).await;
    let Header { device, length } = parse(&front.octets).unwrap_or_else(|| {
        Err(match (front.closed, front.octets.len() < MOST) {
            (true, _) => ProxyFault::Closed,
            (false, true) => ProxyFault::Late,
            (false, false) => ProxyFault::Malformed,
        })
    })?;
    // What came behind it is the device's.
    Ok((Peeked::put_back(io, front.octets.slice(length..)), device))
}

/// A header, whole.
#[derive(Debug, PartialEq, Eq)]
struct Header {
    device: Option<IpAddr>,
    /// Its octets.
    length: usize,
}

/// Reads a header; `None` if more octets are needed.
fn parse(octets: &[u8]) -> Option<Result<Header, ProxyFault>> {
    // The crate takes any octet for the blank.
    if octets.starts_with(b"PROXY") && octets.get(5).is_some_and(|octet| *octet != b' ') {
        return Some(Err(ProxyFault::Malformed));
    }
    let settings = ParseConfig { include_tlvs: false, ..ParseConfig::default() };
    let (header, length) = match ProxyHeader::parse(octets, settings) {
        Ok(parsed) => parsed,
        Err(Error::BufferTooShort) => return None,
        Err(_) => return Some(Err(ProxyFault::Malformed)),
    };
    Some(match header.proxied_address() {
        Some(address) if address.protocol == Protocol::Stream => {
            Ok(Header { device: Some(address.source.ip()), length })
        }
        Some(_) => Err(ProxyFault::Malformed),
        None if octets.get(12) == Some(&LOCAL) && octets[0] == b'\r' => {
            Ok(Header { device: None, length })
        }
        None => Err(ProxyFault::Unknown),
    })
}
