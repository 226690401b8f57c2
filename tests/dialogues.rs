//! Conversations of devices with a listener, as a support engineer would note them down.
//!
//! Each file under `tests/dialogues/` is one: `->` is sent with CR LF, `=>` is sent as it is (with \r \n \0
//! \t and \\), `<-` is the exact line that comes, `<~` its beginning, `tls VERSION` shakes hands, `close` says
//! that the relay closes, `# …` is a remark, and `listener: …` is a line for the listener's configuration.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use std::{fs, path::Path, time::Duration};

use common::{House, Plan};
use openssl::ssl::SslVersion;
use smtp_uplift::transport::{device_tls::DeviceTls, stream::BoxIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// Far longer than any answer takes; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn every_dialogue_goes_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dialogues");
    let mut files: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() > 10);
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        play(&text, &file.file_name().unwrap().to_string_lossy()).await;
    }
}

async fn play(text: &str, name: &str) {
    let listener: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("listener: ")).collect();
    let more: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("more: ")).collect();
    let house = House::build(Plan {
        listener: &listener.join("\n"),
        more: &more.join("\n"),
        ..Plan::default()
    })
    .await;
    let mut io: BoxIo = Box::new(TcpStream::connect(house.address()).await.unwrap());
    for (index, line) in text.lines().enumerate() {
        let at = format!("{name}:{}", index + 1);
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        match verb {
            "->" => io.write_all(format!("{rest}\r\n").as_bytes()).await.unwrap(),
            "=>" => io.write_all(&unescape(rest)).await.unwrap(),
            "<-" => assert_eq!(read_line(&mut io).await, rest, "{at}"),
            "<~" => {
                let said = read_line(&mut io).await;
                assert!(said.starts_with(rest), "{at}: {said:?} does not begin with {rest:?}");
            }
            "tls" => io = handshake(io, rest).await,
            "close" => assert_eq!(read_line(&mut io).await, "", "{at}: not closed"),
            "" | "#" | "listener:" | "more:" => {}
            _ => panic!("{at}: what is {verb:?}?"),
        }
    }
}

async fn handshake(io: BoxIo, version: &str) -> BoxIo {
    let version = match version {
        "1.0" => SslVersion::TLS1,
        "1.1" => SslVersion::TLS1_1,
        "1.2" => SslVersion::TLS1_2,
        _ => SslVersion::TLS1_3,
    };
    DeviceTls::new(version, None).unwrap().connect(io).await.unwrap().0
}

/// A line without its CR LF, empty at the end.
async fn read_line(io: &mut BoxIo) -> String {
    let mut line = Vec::new();
    let reading = async {
        while let Ok(octet) = io.read_u8().await {
            line.push(octet);
            if octet == b'\n' {
                break;
            }
        }
    };
    timeout(PATIENCE, reading).await.expect("an answer");
    let line = String::from_utf8(line).unwrap();
    assert!(line.is_empty() || line.ends_with("\r\n"), "{line:?} does not end with CR LF");
    line.trim_end_matches("\r\n").to_owned()
}

fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, c == '\\') {
            (_, true) => out.push(match chars.next() {
                Some('r') => b'\r',
                Some('n') => b'\n',
                Some('t') => b'\t',
                Some('0') => 0,
                _ => b'\\',
            }),
            _ => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out
}
