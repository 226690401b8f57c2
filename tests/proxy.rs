//! Load balancers tell in a PROXY header whose connection it is. Nobody else may.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use std::time::Duration;

use common::{House, Plan};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpSocket,
    time::timeout,
};

/// Far longer than any answer takes; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(20);
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// A relay behind a balancer at 127.0.0.2, for the devices of 10.0.0.0/8 and 2001:db8::/32.
async fn house() -> House {
    let listener = "proxy_protocol_from = [\"127.0.0.2\"]\nallow = [\"10.0.0.0/8\", \"2001:db8::/32\", \"127.0.0.3\"]";
    House::build(Plan { listener, ..Plan::default() }).await
}

/// What somebody at an address hears who sends these octets, and no more once there was an answer.
async fn heard(house: &House, from: [u8; 4], pieces: &[&[u8]]) -> String {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    let mut stream = socket.connect(house.address()).await.unwrap();
    stream.set_nodelay(true).unwrap();
    for piece in pieces {
        // Who is closed on early has nobody to write to.
        let _ = stream.write_all(piece).await;
    }
    let mut heard = Vec::new();
    let listening = async {
        let _ = stream.read_buf(&mut heard).await;
        let _ = stream.shutdown().await;
        let _ = stream.read_to_end(&mut heard).await;
    };
    timeout(PATIENCE, listening).await.expect("an end");
    String::from_utf8(heard).unwrap()
}

fn version_2(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
    let length = u16::try_from(addresses.len()).unwrap().to_be_bytes();
    [SIGNATURE, &[command, family], &length, addresses].concat()
}

fn v4(address: [u8; 4]) -> Vec<u8> {
    version_2(0x21, 0x11, &[&address[..], &[127, 0, 0, 1], &[1, 2, 3, 4]].concat())
}

const BALANCER: [u8; 4] = [127, 0, 0, 2];

#[tokio::test]
async fn a_device_is_judged_by_the_address_that_its_balancer_tells() {
    let house = house().await;
    let mut v6 = [0; 36];
    v6[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
    let with_tls_facts = {
        let addresses = [&[10, 9, 9, 9][..], &[127, 0, 0, 1], &[1, 2, 3, 4]].concat();
        let facts = [&[0x30, 0x01, 0x2c][..], &[b'x'; 300]].concat();
        version_2(0x21, 0x11, &[addresses, facts].concat())
    };
    for (header, greeting) in [
        (b"PROXY TCP4 10.1.2.3 127.0.0.1 4711 25\r\n".to_vec(), "220 "),
        (b"PROXY TCP6 2001:db8::7 ::1 4711 25\r\n".to_vec(), "220 "),
        (b"PROXY TCP6 ::ffff:10.1.2.3 ::1 4711 25\r\n".to_vec(), "220 "),
        (b"PROXY TCP4 192.0.2.1 127.0.0.1 4711 25\r\n".to_vec(), "554 5.7.1 "),
        // A balancer's own address is no device's.
        (b"PROXY TCP4 127.0.0.2 127.0.0.1 4711 25\r\n".to_vec(), "554 5.7.1 "),
        (v4([10, 1, 2, 3]), "220 "),
        (v4([192, 0, 2, 1]), "554 5.7.1 "),
        (version_2(0x21, 0x21, &v6), "220 "),
        (with_tls_facts, "220 "),
        // The balancer speaks for itself, and may not send.
        (version_2(0x20, 0x00, &[]), ""),
    ] {
        for split in [0, 1, header.len() / 2, header.len()] {
            let (first, second) = header.split_at(split);
            let said = heard(&house, BALANCER, &[first, second]).await;
            assert!(said.starts_with(greeting), "{} at {split}: {said:?}", header.escape_ascii());
        }
    }
}

#[tokio::test]
async fn without_a_header_that_makes_sense_the_connection_is_closed_and_nothing_said() {
    let house = house().await;
    let endless = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 8_000]].concat();
    let large = version_2(0x21, 0x11, &[1; 6_000]);
    let cases: [&[u8]; 13] = [
        b"EHLO copier\r\n",
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN 10.1.2.3 127.0.0.1 4711 25\r\n",
        b"PROXY TCP4 10.1.2.3 127.0.0.1 4711\r\n",
        b"PROXY TCP4 10.1.2.300 127.0.0.1 4711 25\r\n",
        b"PROXY TCP5 10.1.2.3 127.0.0.1 4711 25\r\n",
        b"PROXY TCP4 10.1.2.3 127.0.0.1 4711 25\nEHLO copier\r\n",
        b"\x16\x03\x01\x00\x05hello",
        &endless,
        &large,
        &version_2(0x22, 0x11, &[0; 12]),
        &version_2(0x21, 0x12, &[10; 12]),
        &version_2(0x21, 0x00, &[]),
    ];
    for case in cases {
        assert_eq!(heard(&house, BALANCER, &[case]).await, "", "{}", case.escape_ascii());
    }
    let closed = "device_faults_total{kind=\"proxy_header\",listener=\"lan\"}";
    assert_eq!(house.metric(closed), cases.len() as f64);
}

#[tokio::test]
async fn nobody_but_a_listed_balancer_is_believed() {
    let house = house().await;
    let header = b"PROXY TCP4 10.1.2.3 127.0.0.1 4711 25\r\n";
    // A device of its own right: the header is no command.
    let said = heard(&house, [127, 0, 0, 3], &[header, b"QUIT\r\n"]).await;
    assert!(!said.contains("250 "), "{said:?}");
    // Somebody who is not allowed stays out.
    let said = heard(&house, [127, 0, 0, 4], &[header, b"EHLO copier\r\n"]).await;
    assert!(said.starts_with("554 5.7.1 ") && !said.contains("250"), "{said:?}");
}
