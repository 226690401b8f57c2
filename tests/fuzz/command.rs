//! What devices say: lines, and the commands in them.

use std::net::{IpAddr, Ipv6Addr};

use bytes::{Bytes, BytesMut};
use smtp_uplift::{
    codec::{
        client::ClientCodec,
        server::{ServerCodec, ServerItem},
    },
    proto::{
        capabilities::Capabilities,
        client::{mail_command, rcpt_command},
        command::Command,
        envelope::Envelope,
        limits,
        param::MailParams,
        path::{ForwardPath, ReversePath},
        trace::Received,
    },
};
use tokio_util::codec::{Decoder, Encoder};

use super::splits;

/// * Any split gives the lines that a naive reading gives, and no more than one is kept.
/// * Every command is written as one line that is read as the same command.
/// * What goes up of it is visible, within 512 octets, and ASCII unless SMTPUTF8 is said and was offered.
/// * A device's name fits into a header field.
/// * A fault is told in one line.
pub fn command(input: &[u8]) {
    let expected = naive(input);
    for chunks in splits(input) {
        assert_eq!(items(&chunks), expected);
    }
    for item in expected {
        let ServerItem::Line(line) = item else { continue };
        match Command::parse(&line) {
            Ok(command) => {
                reads_back(&command);
                goes_up(command);
            }
            Err(fault) => {
                assert!(fault.to_string().bytes().all(|octet| (b' '..=b'~').contains(&octet)));
            }
        }
    }
}

fn naive(input: &[u8]) -> Vec<ServerItem> {
    let mut lines: Vec<&[u8]> = input.split(|octet| *octet == b'\n').collect();
    lines.pop();
    let item = |line: &[u8]| match line.strip_suffix(b"\r").unwrap_or(line) {
        _ if line.len() > limits::AUTH_LINE => ServerItem::LineTooLong,
        line => ServerItem::Line(Bytes::copy_from_slice(line)),
    };
    lines.into_iter().map(item).collect()
}

fn items(chunks: &[&[u8]]) -> Vec<ServerItem> {
    let (mut codec, mut src, mut found) = (ServerCodec::new(), BytesMut::new(), Vec::new());
    for chunk in chunks {
        src.extend_from_slice(chunk);
        while let Some(item) = codec.decode(&mut src).unwrap() {
            found.push(item);
        }
        assert!(src.len() <= limits::AUTH_LINE, "{} octets kept", src.len());
        let room = 4 * limits::AUTH_LINE.max(chunk.len());
        assert!(src.capacity() <= room, "room for {} octets", src.capacity());
    }
    assert_eq!(codec.decode_eof(&mut src).unwrap(), None, "half a line is no command");
    found
}

/// The line of a command, without its end.
fn written(command: &Command) -> Vec<u8> {
    let mut out = BytesMut::new();
    ClientCodec::new().encode(command, &mut out).unwrap();
    let line = out.strip_suffix(b"\r\n").expect("CR LF");
    assert!(!line.iter().any(|octet| b"\r\n".contains(octet)), "two lines: {command:?}");
    line.to_vec()
}

fn reads_back(command: &Command) {
    assert_eq!(Command::parse(&written(command)).as_ref(), Ok(command));
}

fn goes_up(command: Command) {
    match command {
        Command::Ehlo(name) | Command::Helo(name) => fits_a_header_field(&name),
        Command::Mail(reverse_path, params) => {
            if let ReversePath::Address(address) = &reverse_path {
                parts(address.as_str(), address.local_part(), address.domain());
            }
            for bits in 0..16 {
                sender_goes_up(&reverse_path, params, bits);
            }
        }
        Command::Rcpt(path) => {
            if let ForwardPath::Address(address) = &path {
                parts(address.as_str(), address.local_part(), address.domain());
            }
            for smtputf8 in [false, true] {
                match rcpt_command(&path, smtputf8) {
                    Some(command) => visible(&command, smtputf8),
                    None => assert!(!smtputf8 && !path.is_ascii()),
                }
            }
        }
        _ => {}
    }
}

/// MAIL to a smarthost that offers what `bits` say.
fn sender_goes_up(reverse_path: &ReversePath, params: MailParams, bits: u8) {
    let offered = Capabilities {
        size: (bits & 1 != 0).then_some(1_000),
        eight_bit_mime: bits & 2 != 0,
        smtputf8: bits & 4 != 0,
        ..Capabilities::default()
    };
    let envelope = Envelope { reverse_path: reverse_path.clone(), params, recipients: Vec::new() };
    let Some(command) = mail_command(&envelope, bits & 8 != 0, &offered, 1_024) else {
        return assert!(!offered.smtputf8 && !reverse_path.is_ascii());
    };
    let Command::Mail(path, said) = &command else { panic!("{command:?} is no MAIL") };
    assert_eq!(path, reverse_path);
    assert!(said.size.is_none() || offered.size.is_some());
    assert!(!said.eight_bit || offered.eight_bit_mime);
    assert!(!said.smtputf8 || offered.smtputf8);
    visible(&command, said.smtputf8);
    reads_back(&command);
}

fn parts(whole: &str, local_part: &str, domain: &str) {
    assert_eq!(whole, format!("{local_part}@{domain}"));
    assert!(!local_part.is_empty() && !domain.is_empty() && !domain.contains('@'), "{whole}");
    // RFC 5321 section 4.5.3.1.3 counts the brackets.
    assert!(whole.len() + 2 <= 256, "{} octets: {whole}", whole.len());
}

/// RFC 5321 section 4.5.3.1.4: 512 octets with CR LF.
fn visible(command: &Command, utf8: bool) {
    let line = String::from_utf8(written(command)).expect("UTF-8");
    assert!(line.len() + 2 <= 512, "{} octets: {line}", line.len());
    assert!(!line.contains(char::is_control), "{line:?}");
    assert!(utf8 || line.is_ascii(), "{line} without SMTPUTF8");
}

/// The name stands in our Received field, which keeps to RFC 5322 section 2.1.1.
fn fits_a_header_field(name: &str) {
    let field = Received {
        client: Some((name, IpAddr::V6(Ipv6Addr::from_bits(u128::MAX)))),
        tls: Some(("TLSv1.3", "TLS_AES_256_GCM_SHA384")),
        by: "relay.example",
        extended: true,
        authenticated: true,
        utf8: true,
        id: "k3v9.1",
        date: "Sun, 22 Nov 2026 10:00:00 +0000",
    }
    .header();
    assert!(field.len() <= 1_024, "SIZE= is told of no more");
    let lines: Vec<&str> = field.strip_suffix("\r\n").expect("CR LF").split("\r\n").collect();
    for line in &lines {
        assert!(line.len() <= 998 && line.bytes().all(|octet| (b' '..=b'~').contains(&octet)));
        assert!(!line.trim().is_empty(), "a blank line ends the header section: {field:?}");
    }
    assert!(lines[1..].iter().all(|line| line.starts_with(' ')), "{field:?}");
    let comments = field.matches(['(', ')']).count();
    assert_eq!(comments, 6, "a name opens no comment: {field:?}");
}
