//! What the smarthost sends, and what devices are told of it.

use std::time::Duration;

use bytes::BytesMut;
use smtp_uplift::{
    codec::client::ClientCodec,
    proto::{
        capabilities::Capabilities,
        client::{Refusal, Stage},
        limits,
        reply::{Enhanced, Reply, ReplyFault, ReplyLines},
    },
    relay::answer,
    smarthost::{
        classify::{self, catalogue::Catalogue},
        connection::{Lost, LostCause, OpenError},
        pool::LeaseError,
    },
};
use tokio_util::codec::Decoder;

use super::{splits, well_formed};

/// * Any split gives the same replies and faults, none larger than the limits, nothing hoarded.
/// * A reply is written as lines that are read as the same reply, and logged as one line of text.
/// * No refusal, of whatever code, is a yes to the device; every answer is well formed, short and without
///   the smarthost's host names.
pub fn reply(input: &[u8]) {
    // Whatever somebody pastes is judged.
    classify::pasted(Catalogue::built_in(), None, &String::from_utf8_lossy(input));
    let [whole, octets, pieces] = splits(input).map(|chunks| replies(&chunks));
    assert_eq!(whole, octets);
    assert_eq!(whole, pieces);
    one_code(input, &whole);
    for item in whole {
        match item {
            Ok(reply) => {
                reads_back(&reply);
                devices_hear(&reply);
            }
            Err(fault) => {
                assert!(one_line(&fault.to_string()), "{fault}");
                let cause = LostCause::Garbage(fault);
                well_formed(&answer::lost(&Lost { stage: Stage::Eod, cause }));
            }
        }
    }
}

fn replies(chunks: &[&[u8]]) -> Vec<Result<Reply, ReplyFault>> {
    let (mut codec, mut src, mut found) = (ClientCodec::new(), BytesMut::new(), Vec::new());
    for chunk in chunks {
        src.extend_from_slice(chunk);
        while let Some(item) = codec.decode(&mut src).unwrap() {
            found.push(item);
        }
        assert!(src.len() <= limits::REPLY_LINE, "{} octets kept", src.len());
    }
    assert_eq!(codec.decode_eof(&mut src).unwrap(), None, "half a line is no reply");
    found
}

/// An input that is one reply says one code, in each line.
fn one_code(input: &[u8], found: &[Result<Reply, ReplyFault>]) {
    let [Ok(reply)] = found else { return };
    let mut lines: Vec<&[u8]> = input.split(|octet| *octet == b'\n').collect();
    lines.pop();
    let half = lines.last().and_then(|line| line.get(3)) == Some(&b'-');
    if !half {
        assert_eq!(lines.len(), reply.lines.len());
        let code = reply.code.to_string();
        assert!(lines.iter().all(|line| line.starts_with(code.as_bytes())), "{reply}");
    }
}

fn reads_back(reply: &Reply) {
    assert!((200..600).contains(&reply.code.get()));
    assert!((1..=limits::REPLY_LINES).contains(&reply.lines.len()));
    // An octet that is no UTF-8 becomes a character of three.
    assert!(reply.lines.iter().all(|line| line.len() <= 3 * limits::REPLY_LINE));
    assert!(one_line(&reply.to_string()), "{reply}");
    let mut wire = BytesMut::new();
    reply.encode(&mut wire);
    let mut reader = ReplyLines::default();
    let wire = wire.strip_suffix(b"\r\n").unwrap();
    let read = wire.split(|octet| *octet == b'\n').map(|line| {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        reader.push(line).expect("what we write is a reply")
    });
    assert_eq!(read.last(), Some(Some(reply.clone())));
    assert_ne!(Capabilities::parse(reply).size, Some(0), "no limit is none");
}

/// Everything that the relay makes of a reply for a device.
fn devices_hear(reply: &Reply) {
    let said = answer::accepted("k3v9.1", reply);
    assert_eq!((said.code.get(), said.enhanced), (250, Some(Enhanced(2, 0, 0))));
    presentable(&said);
    if let Some(id) = answer::message_id(reply) {
        assert!(id.len() <= 202 && id.bytes().all(|octet| octet.is_ascii_graphic()), "{id:?}");
    }
    // Any stage will do: the text's length chooses one.
    let stage = Stage::ALL[reply.text().len() % Stage::ALL.len()];
    let verdict = classify::reply(Catalogue::built_in(), Some(stage), reply);
    assert!(one_line(verdict.rule.as_str()) && !verdict.meaning.is_empty());
    let open = OpenError::Refused(Refusal::Reply(stage, reply.clone()));
    assert!(one_line(&open.to_string()), "{open}");
    for said in [
        answer::refused(stage, reply, &verdict),
        answer::no_lease(&LeaseError::Open(Box::new(open)), Some(&verdict)),
        answer::lost(&Lost { stage, cause: LostCause::Timeout(Duration::from_secs(1)) }),
    ] {
        assert!(said.code.is_transient() || said.code.is_permanent(), "{reply} became {said}");
        presentable(&said);
    }
}

fn presentable(said: &Reply) {
    well_formed(said);
    assert_eq!(said.lines.len(), 1, "{said}");
    for word in said.text().split_whitespace().filter(|word| !word.contains("://")) {
        let named = word.to_ascii_lowercase().contains(".prod.outlook.com");
        assert!(!named, "a host of the smarthost: {said}");
    }
}

/// Whether a log shows it as what it is.
fn one_line(text: &str) -> bool {
    !text.contains(char::is_control)
}
