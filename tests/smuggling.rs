//! SMTP smuggling: an end of data that one server sees and the next one does not, with commands behind it
//! (CVE-2023-51764 Postfix, CVE-2023-51765 Sendmail, CVE-2023-51766 Exim, and Cisco's rewriting of bare CR).
//!
//! `receivers` holds what is known of servers that end data elsewhere; here every sequence that could make them goes
//! through the scanner, and the published ones through a whole relay. What talks before it may is played by
//! `tests/dialogues/`: `row-23-refused-*.smtp` for mail data behind a refused DATA, `starttls-injection.smtp` for
//! commands in the packet of STARTTLS.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;
#[path = "data/oracle.rs"]
mod oracle;
#[path = "smuggling/receivers.rs"]
mod receivers;

use common::{KEEP, MESSAGE, Plan, SPOOL, STREAM, memory::InMemory};
use oracle::{Outcome, oracle, receivers_agree, scan};
use receivers::RECEIVERS;
use smtp_uplift::{codec::data::DataFault, proto::limits::LineEndings, sandbox::device::Device};

/// The octets that ends of data are made of, and NUL, which some servers drop.
const ALPHABET: [u8; 4] = *b"\r\n.\0";
/// Long enough for any two line ends around a dot with one octet too many: CR CR LF . CR CR LF.
const LONGEST: u32 = 7;
const FIRST: &[u8] = b"Subject: one\r\n\r\nfirst";
/// What an attacker wants to be taken for commands, and the true end.
const SMUGGLED: &[u8] =
    b"MAIL FROM:<evil@x>\r\nRCPT TO:<evil@x>\r\nDATA\r\nSubject: two\r\n\r\nsecond\r\n.\r\n";
const BEHIND: &[u8] = b"QUIT\r\n";

/// The sequences that were published: SEC Consult's article and scanner, and the tests of those who mended theirs.
const PUBLISHED: &[&[u8]] = &[
    b"\n.\n",
    b"\n.\r\n",
    b"\n.\r",
    b"\r.\r",
    b"\r.\n",
    b"\r.\r\n",
    b"\r\n.\r",
    b"\r\n.\n",
    b"\r\n.\r\r\n",
    b"\r\r\n.\r\r\n",
    b"\r\r\n.\r\n",
    b"\n\n.\r\r\n",
    b"\n\n.\r\n",
    b"\r\n\0.\r\n",
    b"\r\n.\0\r\n",
    b"\r\n.\r\0\n",
    b"\r\0\n.\r\n",
    b"\r\n\0.\r",
    b"\r\n\0.\n",
    b"\0\r\n\0.\0\r\0\n",
    b"\r\n..\r\n",
    b"\r\n..\n",
    b"\n..\n",
    b"\n..\r\n",
    b"\r\n. \r\n",
    b"\r\n .\r\n",
    b"\r\n.\t\r\n",
];

/// What the wire to the smarthost holds from its 354 on, the start counting as a line's.
fn wire(outcome: &Outcome) -> Vec<u8> {
    [b"\r\n", &outcome.output[..], b".\r\n"].concat()
}

/// Whether the scanner, and every server behind it, finds the one end that there is.
fn holds(sequence: &[u8], line_endings: LineEndings) {
    let input = [FIRST, sequence, SMUGGLED, BEHIND].concat();
    let outcome = scan(std::iter::once(&input[..]), line_endings);
    assert_eq!(outcome, oracle(&input, line_endings), "{sequence:?}");
    let end = input.windows(5).position(|octets| octets == b"\r\n.\r\n").unwrap() + 5;
    assert!(outcome.ended, "{sequence:?}");
    assert_eq!(outcome.left, input[end..], "another end than CR LF . CR LF: {sequence:?}");
    let bad = |window: &[u8]| {
        (window[0] == b'\r' && window[1] != b'\n') || (window[0] != b'\r' && window[1] == b'\n')
    };
    let data = &input[..end];
    let is_bad = data.windows(2).any(bad) || data.contains(&0);
    let refused = line_endings == LineEndings::Strict && is_bad;
    assert_eq!(outcome.fault.is_some(), refused, "{sequence:?}: {:?}", outcome.fault);
    receivers_agree(&outcome.output);
    if !refused {
        let wire = wire(&outcome);
        for receiver in RECEIVERS {
            let first = (receiver.end)(&wire);
            assert_eq!(first, Some(wire.len()), "{} ends {sequence:?} elsewhere", receiver.name);
        }
        if end == input.len() - BEHIND.len() {
            let inside = outcome.output.windows(18).any(|octets| octets == b"MAIL FROM:<evil@x>");
            assert!(inside, "data are lost: {sequence:?}");
        }
    }
    // Wherever packets begin and end, that is what comes of it.
    let near = FIRST.len() - 1..=FIRST.len() + sequence.len() + 1;
    for at in near.chain([input.len() - BEHIND.len() - 3, input.len() - BEHIND.len() - 1]) {
        let split = scan([&input[..at], &input[at..]].into_iter(), line_endings);
        assert_eq!(split, outcome, "{sequence:?} split at {at}");
    }
    assert_eq!(scan(input.chunks(1), line_endings), outcome, "{sequence:?} octet by octet");
}

#[test]
fn no_sequence_ends_the_data_for_anybody_behind_us() {
    for length in 0..=LONGEST {
        for number in 0..4usize.pow(length) {
            let digits = (0..length).map(|place| ALPHABET[number / 4usize.pow(place) % 4]);
            let sequence: Vec<u8> = digits.collect();
            if sequence.contains(&b'.') {
                holds(&sequence, LineEndings::Normalise);
                holds(&sequence, LineEndings::Strict);
            }
        }
    }
}

#[test]
fn no_published_sequence_does_wherever_the_packets_are_cut() {
    for sequence in PUBLISHED {
        for line_endings in [LineEndings::Normalise, LineEndings::Strict] {
            holds(sequence, line_endings);
            let input = [FIRST, sequence, SMUGGLED, BEHIND].concat();
            let whole = scan(std::iter::once(&input[..]), line_endings);
            for first in 0..input.len() {
                for second in first..(first + 8).min(input.len()) {
                    let pieces = [&input[..first], &input[first..second], &input[second..]];
                    assert_eq!(scan(pieces.into_iter(), line_endings), whole, "{sequence:?}");
                }
            }
        }
    }
}

/// Every receiver is one that is smuggled past where nobody mends anything, so that the others are worth something.
#[test]
fn each_receiver_is_fooled_by_what_it_was_published_for() {
    for receiver in RECEIVERS {
        let wire = [b"\r\n", FIRST, receiver.fooled_by, SMUGGLED].concat();
        let found = (receiver.end)(&wire);
        let expected = 2 + FIRST.len() + receiver.fooled_by.len();
        assert_eq!(found, Some(expected), "{}", receiver.name);
    }
}

#[test]
fn what_is_refused_in_strict_is_named() {
    for (sequence, fault) in [
        (&b"\n.\n"[..], DataFault::BareLf),
        (b"\r.\r\n", DataFault::BareCr),
        (b"\r\n\0.", DataFault::Nul),
    ] {
        let input = [FIRST, sequence, SMUGGLED].concat();
        let outcome = scan(std::iter::once(&input[..]), LineEndings::Strict);
        assert_eq!(outcome.fault, Some(fault));
    }
}

/// Sends the sequence with what is smuggled behind it; returns the answers to the dot and to what follows.
async fn smuggle(house: &InMemory, sequence: &[u8], by_octet: bool) -> (u16, u16) {
    let mut device: Device = house.device().await;
    for line in ["MAIL FROM:<a@x>", "RCPT TO:<office@x>", "DATA"] {
        device.say(line).await.unwrap();
    }
    let input = [FIRST, sequence, SMUGGLED].concat();
    let packets = if by_octet { 1 } else { input.len() };
    for packet in input.chunks(packets) {
        device.write(packet.to_vec()).await.unwrap();
        if by_octet {
            tokio::task::yield_now().await;
        }
    }
    let dot = device.read().await.unwrap();
    let next = device.say("NOOP").await.unwrap();
    device.say("QUIT").await.unwrap();
    (dot.code.get(), next.code.get())
}

#[tokio::test(start_paused = true)]
async fn the_smarthost_sees_one_message_and_no_command_of_it() {
    for delivery in [STREAM, KEEP, SPOOL] {
        for listener in ["line_endings = \"normalise\"", "line_endings = \"strict\""] {
            let listener = format!("tls = \"none\"\n{listener}");
            let house =
                InMemory::build(Plan { delivery, listener: &listener, ..Plan::default() }).await;
            let mut arrived = 0;
            // One is the true end behind a bare CR, and what follows that are commands indeed.
            let is_end = |sequence: &[u8]| sequence.ends_with(b"\r\n.\r\n");
            let sequences = PUBLISHED.iter().filter(|sequence| !is_end(sequence));
            for (sequence, by_octet) in
                sequences.flat_map(|sequence| [(sequence, false), (sequence, true)])
            {
                let at = format!("{sequence:?} in {delivery}, {listener}");
                let (dot, next) = smuggle(&house, sequence, by_octet).await;
                assert_eq!(next, 250, "no answer too many: {at}");
                let bare = [FIRST, sequence, SMUGGLED].concat();
                let is_bare = scan(std::iter::once(&bare[..]), LineEndings::Strict).fault.is_some();
                if is_bare && listener.contains("strict") {
                    assert_eq!(dot, 554, "{at}");
                    continue;
                }
                assert_eq!(dot, 250, "{at}");
                arrived += 1;
                house.sandbox.delivered(arrived).await;
                let deliveries = house.sandbox.deliveries();
                assert_eq!(deliveries.len() as u64, arrived, "one message each: {at}");
                let last = deliveries.last().unwrap();
                assert_eq!(last.recipients, ["office@x"], "{at}");
                let wire = [b"\r\n", &last.data[..], b".\r\n"].concat();
                for receiver in RECEIVERS {
                    assert_eq!((receiver.end)(&wire), Some(wire.len()), "{} {at}", receiver.name);
                }
                let inside = last.data.windows(18).any(|octets| octets == b"MAIL FROM:<evil@x>");
                assert!(inside, "{at}");
            }
            assert!(arrived >= 4, "some are harmless in any setting");
            // The connection is of use still.
            assert!(house.send("a@x", &["office@x"]).await.starts_with("250 "));
            house.sandbox.delivered(arrived + 1).await;
            let data = house.sandbox.deliveries().pop().unwrap().data;
            assert!(data.ends_with(MESSAGE.as_bytes()));
        }
    }
}
