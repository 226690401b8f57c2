//! Mail data read naively, to hold the scanner against; the fuzz target reads with it too.

use bytes::BytesMut;
use smtp_uplift::{
    codec::data::{DataFault, DataScanner, Scanned},
    proto::limits::LineEndings,
};

/// What a device's octets come to.
#[derive(Debug, Default, PartialEq, Eq, Clone)]
pub(super) struct Outcome {
    pub(super) output: Vec<u8>,
    pub(super) fault: Option<DataFault>,
    pub(super) mended: Option<DataFault>,
    pub(super) ended: bool,
    pub(super) size: u64,
    /// Octets taken before the end marker.
    pub(super) seen: u64,
    /// What stands behind the end marker.
    pub(super) left: Vec<u8>,
}

/// What the scanner makes of chunks, as far as they go.
pub(super) fn scan<'a>(
    chunks: impl Iterator<Item = &'a [u8]>,
    line_endings: LineEndings,
) -> Outcome {
    let mut scanner = DataScanner::new(line_endings);
    let (mut src, mut outcome) = (BytesMut::new(), Outcome::default());
    for chunk in chunks {
        src.extend_from_slice(chunk);
        while !outcome.ended {
            match scanner.scan(&mut src) {
                Some(Scanned::Data(data)) => {
                    assert!(outcome.fault.is_none(), "nothing is passed on after a fault");
                    outcome.output.extend_from_slice(&data);
                }
                Some(Scanned::Fault(fault)) => assert_eq!(outcome.fault.replace(fault), None),
                Some(Scanned::End) => outcome.ended = true,
                None => break,
            }
        }
        assert!(outcome.ended || src.len() <= 2, "{} octets held back", src.len());
    }
    (outcome.size, outcome.seen, outcome.mended) =
        (scanner.size(), scanner.seen(), scanner.mended());
    outcome.left = src.to_vec();
    outcome
}

/// The scanner's rules read one octet at a time from the whole input, which has to hold an end marker.
pub(super) fn oracle(input: &[u8], line_endings: LineEndings) -> Outcome {
    let mut outcome = Outcome::default();
    // What the next octet follows: 'l' the start or an input CR LF, 'm' a mended LF, 'i' anything else.
    let (mut i, mut at) = (0, 'l');
    while !(at == 'l' && input[i..].starts_with(b".\r\n")) {
        let here = &input[i..];
        let (taken, put, fault, after): (usize, &[u8], _, _) = match here[0] {
            b'\r' if here.get(1) == Some(&b'\n') => (2, b"\r\n", None, 'l'),
            b'\r' => (1, b" ", Some(DataFault::BareCr), 'i'),
            0 => (1, b" ", Some(DataFault::Nul), 'i'),
            b'\n' => (1, b"\r\n", Some(DataFault::BareLf), 'm'),
            b'.' if at == 'l' && here.get(1) == Some(&b'\n') => {
                (2, b"..\r\n", Some(DataFault::BareLf), 'm')
            }
            b'.' if at == 'm' && here.get(1) == Some(&b'.') => (2, b"..", None, 'i'),
            b'.' if at == 'm' => (1, b"..", None, 'i'),
            _ => (1, &here[..1], None, 'i'),
        };
        outcome.size += put.len() as u64 - u64::from(here[0] == b'.' && at != 'i');
        outcome.output.extend_from_slice(put);
        if line_endings == LineEndings::Strict && fault.is_some() && outcome.fault.is_none() {
            let kept = outcome.output.len() - put.len();
            outcome.output.truncate(kept);
            outcome.size -= put.len() as u64 - u64::from(here[0] == b'.' && at != 'i');
            outcome.fault = fault;
            let ignored = oracle_end(input);
            outcome.left = input[ignored..].to_vec();
            outcome.seen = ignored as u64 - 3;
            outcome.ended = true;
            return outcome;
        }
        outcome.mended = outcome.mended.or(fault);
        (i, at) = (i + taken, after);
    }
    outcome.left = input[i + 3..].to_vec();
    outcome.seen = i as u64;
    outcome.ended = true;
    outcome
}

/// Where the data end, whatever is in them: behind the first CR LF . CR LF, the start counting as CR LF.
fn oracle_end(input: &[u8]) -> usize {
    let whole = [b"\r\n", input].concat();
    whole.windows(5).position(|w| w == b"\r\n.\r\n").expect("an end marker") + 3
}

/// Whether every server behind us sees the same lines, and no end among them.
pub(super) fn receivers_agree(output: &[u8]) {
    let whole = [b"\r\n", output].concat();
    assert!(!whole.windows(5).any(|w| w == b"\r\n.\r\n"), "an end marker was made: {output:?}");
    for (i, octet) in whole.iter().enumerate() {
        match octet {
            b'\r' => assert_eq!(whole.get(i + 1), Some(&b'\n'), "bare CR: {output:?}"),
            b'\n' => assert_eq!(whole[i - 1], b'\r', "bare LF: {output:?}"),
            0 => panic!("NUL: {output:?}"),
            _ => {}
        }
    }
}
