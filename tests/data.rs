//! Mail data: every short string over the octets that matter, whole, octet by octet and at every split,
//! against a naive reading of the same rules.

#[path = "data/oracle.rs"]
mod oracle;

use bytes::{Bytes, BytesMut};
use oracle::{oracle, receivers_agree, scan};
use proptest::prelude::*;
use smtp_uplift::{
    codec::data::{DataFault, DataScanner, Scanned},
    proto::limits::LineEndings,
};

fn check_every_split(input: &[u8]) {
    for line_endings in [LineEndings::Strict, LineEndings::Normalise] {
        let expected = oracle(input, line_endings);
        receivers_agree(&expected.output);
        assert_eq!(scan(input.chunks(1), line_endings), expected, "{input:?} octet by octet");
        for at in 0..input.len() {
            let outcome = scan([&input[..at], &input[at..]].into_iter(), line_endings);
            assert_eq!(outcome, expected, "{input:?} at {at}, {line_endings:?}");
        }
    }
}

#[test]
fn every_short_string_at_every_split() {
    const ALPHABET: [u8; 5] = *b"\r\n.a\0";
    for length in 0..=7u32 {
        for number in 0..5usize.pow(length) {
            let mut input: Vec<u8> =
                (0..length).map(|place| ALPHABET[number / 5usize.pow(place) % 5]).collect();
            // An end marker that nothing before it can take part in, and a command behind it.
            input.extend_from_slice(b"\r\n.\r\nQ");
            check_every_split(&input);
        }
    }
}

#[test]
fn the_table() {
    let normalised = |input: &[u8]| scan(std::iter::once(input), LineEndings::Normalise);
    for (input, output) in [
        (&b".\r\n"[..], &b""[..]),
        (b"a\r\n.\r\n", b"a\r\n"),
        (b"..a\r\n.b\r\n.\r\n", b"..a\r\n.b\r\n"),
        (b".\na\r\n.\r\n", b"..\r\na\r\n"),
        (b"a\n.\n.\r\nb\r\n.\r\n", b"a\r\n..\r\n..\r\nb\r\n"),
        (b"a\n..b\r\n.\r\n", b"a\r\n..b\r\n"),
        (b"a\rb\0c\r\n.\r\n", b"a b c\r\n"),
        (b"a\r\n\0.\r\nb\r\n.\r\n", b"a\r\n .\r\nb\r\n"),
        (b"a\r\n.\r\r\n\r\n.\r\n", b"a\r\n. \r\n\r\n"),
    ] {
        let outcome = normalised(input);
        assert_eq!((outcome.ended, &outcome.output[..]), (true, output), "{input:?}");
    }
    for (input, fault) in [
        (&b"a\nb\r\n.\r\n"[..], DataFault::BareLf),
        (b".\nb\r\n.\r\n", DataFault::BareLf),
        (b"a\rb\r\n.\r\n", DataFault::BareCr),
        (b"a\0b\r\n.\r\n", DataFault::Nul),
    ] {
        let outcome = scan(std::iter::once(input), LineEndings::Strict);
        assert_eq!(
            (outcome.fault, outcome.ended, outcome.left.len()),
            (Some(fault), true, 0),
            "{input:?}"
        );
    }
}

#[test]
fn octets_after_a_fault_are_dropped_but_seen() {
    let mut scanner = DataScanner::new(LineEndings::Strict);
    let mut src = BytesMut::from(&b"a\nb"[..]);
    assert_eq!(scanner.scan(&mut src), Some(Scanned::Data(Bytes::from_static(b"a"))));
    assert_eq!(scanner.scan(&mut src), Some(Scanned::Fault(DataFault::BareLf)));
    for seen in [3u64, 1_003, 2_003] {
        assert_eq!(scanner.scan(&mut src), None);
        assert_eq!(scanner.seen(), seen);
        src.extend_from_slice(&[b'x'; 1_000]);
    }
}

#[test]
fn well_formed_input_leaves_as_the_memory_that_came() {
    let wire = Bytes::from(
        b"A line of a scan in base64, as long as such lines are, dots .. and all\r\n".repeat(800),
    );
    let mut src = BytesMut::from(&wire[..]);
    let memory = src.as_ptr();
    let mut scanner = DataScanner::new(LineEndings::Normalise);
    let Some(Scanned::Data(data)) = scanner.scan(&mut src) else { panic!("no data") };
    assert_eq!((data.as_ptr(), &data), (memory, &wire));
    assert!(src.is_empty() && scanner.scan(&mut src).is_none());
}

const WORDS: &[&[u8]] = &[
    b"\r\n",
    b"\r",
    b"\n",
    b".",
    b"..",
    b"\0",
    b"word",
    b"\r\n.",
    b"\r\n.\n",
    b"\n.\r\n",
    b"\r.\r",
    b"\xff\xfe",
];

proptest! {
    #[test]
    fn random_data_at_random_splits(
        words in prop::collection::vec(prop::sample::select(WORDS), 0..60),
        sizes in prop::collection::vec(1usize..9, 1..20),
    ) {
        let mut input = words.concat();
        input.extend_from_slice(b"\r\n.\r\nQUIT\r\n");
        for line_endings in [LineEndings::Strict, LineEndings::Normalise] {
            let (mut rest, mut chunks, mut sizes) = (&input[..], Vec::new(), sizes.iter().cycle());
            while !rest.is_empty() {
                let (chunk, behind) = rest.split_at(rest.len().min(*sizes.next().unwrap()));
                chunks.push(chunk);
                rest = behind;
            }
            prop_assert_eq!(scan(chunks.into_iter(), line_endings), oracle(&input, line_endings));
        }
    }
}
