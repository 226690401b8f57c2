//! Mail data against the oracle of `tests/data.rs`, in both ways to take line ends.

use bytes::{Bytes, BytesMut};
use smtp_uplift::{
    codec::server::{ServerCodec, ServerItem},
    proto::limits::LineEndings,
};
use tokio_util::codec::Decoder;

use super::{
    oracle::{Outcome, oracle, receivers_agree, scan},
    splits,
};

/// * Any split gives the oracle's output, fault, size and rest, with two octets held back at most.
/// * No server behind us sees another end, a bare CR, a bare LF or a NUL in what goes up.
/// * Well-formed data leave as the one chunk of memory that came, whatever was mended needs no second mending.
/// * What stands behind the end is read as commands.
pub fn data(input: &[u8]) {
    // Where the input has no end of its own this one is found.
    let wire = [input, b"\r\n.\r\nQUIT\r\n"].concat();
    for line_endings in [LineEndings::Strict, LineEndings::Normalise] {
        let expected = oracle(&wire, line_endings);
        receivers_agree(&expected.output);
        for chunks in splits(&wire) {
            assert_eq!(scan(chunks.into_iter(), line_endings), expected, "{line_endings:?}");
        }
        framed(&wire, line_endings, &expected);
        if expected.fault.is_none() {
            mended_once(&expected);
        }
    }
}

/// The whole input as one socket read, through the codec.
fn framed(wire: &[u8], line_endings: LineEndings, expected: &Outcome) {
    let (mut codec, mut src) = (ServerCodec::new(), BytesMut::from(wire));
    let memory = src.as_ptr();
    codec.start_data(line_endings);
    let mut decode = || codec.decode(&mut src).unwrap();
    let mut item = decode();
    if !expected.output.is_empty() {
        let Some(ServerItem::Data(data)) = item else { panic!("no data but {item:?}") };
        assert_eq!(data, expected.output, "one chunk a read");
        let mended = expected.mended.is_some();
        assert_eq!(data.as_ptr() == memory, !mended, "copied where it is mended, and only there");
        item = decode();
    }
    if let Some(fault) = expected.fault {
        assert_eq!(item, Some(ServerItem::DataFault(fault)));
        item = decode();
    }
    let end = ServerItem::DataEnd { size: expected.size, mended: expected.mended };
    assert_eq!(item, Some(end));
    let first_line = expected.left.split(|octet| *octet == b'\n').next().unwrap_or_default();
    let command = first_line.strip_suffix(b"\r").unwrap_or(first_line);
    assert_eq!(decode(), Some(ServerItem::Line(Bytes::copy_from_slice(command))));
}

/// A strict relay behind this one finds nothing to refuse or to change.
fn mended_once(expected: &Outcome) {
    // The last line's end need not have been there.
    let complete = expected.output.is_empty() || expected.output.ends_with(b"\r\n");
    let again = [&expected.output[..], if complete { b".\r\n" } else { b"\r\n.\r\n" }].concat();
    let outcome = scan([&again[..]].into_iter(), LineEndings::Strict);
    assert_eq!((outcome.fault, outcome.left.len()), (None, 0), "{again:?}");
    assert_eq!(outcome.output, expected.output);
    assert_eq!(outcome.size, expected.size);
}
