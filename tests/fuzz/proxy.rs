//! What a load balancer sends in front of a connection.

use std::net::IpAddr;

use smtp_uplift::transport::{proxy_header, stream::BoxIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::splits;

/// * Any split gives the same address, or none, and a connection that is closed.
/// * An address is told by a header that says so, and is one of its own octets.
/// * What stands behind the header is the device's, to the last octet.
pub fn proxy(input: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let taken: Vec<_> =
        splits(input).into_iter().map(|pieces| runtime.block_on(take(&pieces))).collect();
    assert!(taken.iter().all(|each| *each == taken[0]), "{taken:?}");
    let Some((address, rest)) = &taken[0] else { return };
    let header = input.strip_suffix(&rest[..]).expect("the end of what came");
    match (header.strip_prefix(b"PROXY "), address) {
        (Some(line), Some(address)) => {
            let line = std::str::from_utf8(line).unwrap().strip_suffix("\r\n").unwrap();
            let source: IpAddr = line.split(' ').nth(1).unwrap().parse().unwrap();
            assert_eq!(source, *address);
            assert!(header.len() <= 107, "{} octets", header.len());
        }
        (None, Some(IpAddr::V4(address))) => assert_eq!(header[16..20], address.octets()),
        (None, Some(IpAddr::V6(address))) => assert_eq!(header[16..32], address.octets()),
        (_, None) => assert_eq!(header[12], 0x20, "only LOCAL tells of nobody"),
    }
}

/// The address that is told, and what a reader finds behind the header; `None` if the connection is closed.
async fn take(pieces: &[&[u8]]) -> Option<(Option<IpAddr>, Vec<u8>)> {
    let (ours, mut theirs) = tokio::io::duplex(8);
    let sending = async move {
        for piece in pieces {
            if theirs.write_all(piece).await.is_err() {
                return;
            }
        }
    };
    let taking = async {
        let ours: BoxIo = Box::new(ours);
        let (mut io, address) = proxy_header::take(ours).await.ok()?;
        let mut rest = Vec::new();
        io.read_to_end(&mut rest).await.unwrap();
        Some((address, rest))
    };
    tokio::join!(taking, sending).0
}
