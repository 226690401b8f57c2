//! What fuzzing drives: one function a target, each takes any octets and panics where a promise is broken.
//! `tests/fuzz.rs` runs them over the seeds in `tests/data/fuzz/`, the package in `fuzz/` over whatever
//! libFuzzer makes of those.

#![allow(unreachable_pub, reason = "a library's root for the package in fuzz/")]
#![allow(clippy::unwrap_used, reason = "what is unwrapped is a promise")]

mod command;
mod config;
mod data;
mod header;
mod operations;
mod proxy;
mod relay;
mod reply;
mod session;
mod spool;

#[path = "../data/oracle.rs"]
mod oracle;

pub use command::command;
pub use config::config;
pub use data::data;
pub use header::header;
pub use operations::operations;
pub use proxy::proxy;
pub use relay::relay;
pub use reply::reply;
pub use session::session;
pub use spool::spool;

use bytes::BytesMut;
use smtp_uplift::proto::reply::{Reply, ReplyLines};

/// The input as packets could bring it: whole, octet by octet (by a few where it is long), and in pieces as
/// long as it says itself.
fn splits(input: &[u8]) -> [Vec<&[u8]>; 3] {
    let mut pieces = Vec::new();
    let mut rest = input;
    while let Some(first) = rest.first() {
        let (piece, behind) = rest.split_at(rest.len().min(1 + usize::from(*first) % 23));
        pieces.push(piece);
        rest = behind;
    }
    [vec![input], input.chunks(1 + input.len() / 1_024).collect(), pieces]
}

/// A reply as a device may be told it: visible ASCII, in lines as long as RFC 5321 section 4.5.3.1.5 allows,
/// with codes that agree (RFC 2034 section 4), read back as what was written.
#[track_caller]
fn well_formed(reply: &Reply) {
    let mut wire = BytesMut::new();
    reply.encode(&mut wire);
    let text = std::str::from_utf8(&wire).expect("ASCII");
    let lines: Vec<&str> = text.strip_suffix("\r\n").expect("a line end").split("\r\n").collect();
    assert_eq!(lines.len(), reply.lines.len(), "{text:?}");
    for line in &lines {
        assert!(line.bytes().all(|octet| (b' '..=b'~').contains(&octet)), "{line:?}");
        assert!(line.len() + 2 <= 512, "{} octets: {line:?}", line.len());
    }
    let mut reader = ReplyLines::default();
    let read = lines.iter().map(|line| reader.push(line.as_bytes())).last();
    assert_eq!(read, Some(Ok(Some(reply.clone()))), "{text:?}");
    if let Some(enhanced) = reply.enhanced {
        assert_eq!(u16::from(enhanced.0), reply.code.get() / 100, "codes disagree: {text:?}");
    }
}
