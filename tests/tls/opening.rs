//! What comes before the greeting.

use std::time::Duration;

use openssl::ssl::SslVersion;
use smtp_uplift::{sandbox::device::Device, transport::stream::BoxIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    common::memory::timed,
    rows::{OWN, connect, greeted, house, known, tls},
};

const EARLY: &str = "device_faults_total{kind=\"early_talk\",listener=\"lan\"}";

async fn rest(io: &mut BoxIo) -> String {
    let mut rest = String::new();
    io.read_to_string(&mut rest).await.unwrap();
    rest
}

#[tokio::test(start_paused = true)]
async fn auto_greets_whoever_waits_and_keeps_nobody_else_waiting() {
    let house = house("tls = \"auto\"", "auto_wait = \"2s\"").await;
    let (mut device, took) = timed(greeted(&house, "10.0.0.1")).await;
    assert!(device.greeting.to_string().starts_with("220 relay.example"));
    assert!((500..510).contains(&took.as_millis()), "{took:?}");
    assert!(device.say("QUIT").await.is_ok());
    let (_, took) = timed(greeted(&house, OWN)).await;
    assert!((2_000..2_010).contains(&took.as_millis()), "its own entry says so: {took:?}");

    let device = tls(SslVersion::TLS1_2, "AES128-SHA");
    let (_, took) = timed(async {
        let (io, _) = device.connect(connect(&house, OWN)).await.unwrap();
        Device::over(io).await.unwrap()
    })
    .await;
    assert!(took < Duration::from_millis(10), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_hello_in_pieces_is_one_all_the_same() {
    let house = house("tls = \"auto\"", "").await;
    // With the longer pause there is but one octet when `auto_wait` is over.
    for pause in [100, 600] {
        let (ours, mut theirs) = tokio::io::duplex(1);
        let mut io = connect(&house, OWN);
        let slowly = async move {
            let mut octet = [0];
            for _ in 0..4 {
                theirs.read_exact(&mut octet).await.unwrap();
                io.write_all(&octet).await.unwrap();
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            let _ = tokio::io::copy_bidirectional(&mut theirs, &mut io).await;
        };
        let shaking = async {
            let device = tls(SslVersion::TLS1, "AES128-SHA");
            let (io, _) = device.connect(Box::new(ours)).await.unwrap();
            Device::over(io).await.unwrap()
        };
        tokio::select! {
            device = shaking => assert_eq!(device.greeting.code.get(), 220),
            () = slowly => panic!("{pause}: closed"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_talks_before_the_greeting_is_refused() {
    for listener in ["tls = \"auto\"", "tls = \"starttls\"", "tls = \"none\""] {
        let house = house(listener, "").await;
        for early in [&b"EHLO copier\r\nMAIL FROM:<a@x>\r\n"[..], b"EH", b"\0\xff\r\n", b"\x16"] {
            let mut io = connect(&house, OWN);
            io.write_all(early).await.unwrap();
            let before = house.metric(EARLY);
            let said = if early == b"\x16" && listener.contains("auto") {
                // No command begins like that: it is left to the handshake, which ends in nothing.
                io.shutdown().await.unwrap();
                assert_eq!(rest(&mut io).await, "");
                continue;
            } else {
                rest(&mut io).await
            };
            let early = early.escape_ascii();
            assert_eq!(
                said, "554 5.5.1 wait for the greeting before you talk\r\n",
                "{listener} {early}"
            );
            assert_eq!(house.metric(EARLY), before + 1.0);
        }
        assert!(known(&house, OWN).unwrap().faults["early_talk"] >= 3);
    }
}

#[tokio::test(start_paused = true)]
async fn who_talks_before_the_greeting_is_refused_under_tls_too() {
    let house = house("tls = \"auto\"", "tls = \"implicit\"").await;
    for peer in [OWN, "10.0.0.1"] {
        // One that sends its EHLO with the last packet of the handshake is early by any clock.
        let device = tls(SslVersion::TLS1_3, "TLS_AES_128_GCM_SHA256");
        let (mut io, _) = device.connect(connect(&house, peer)).await.unwrap();
        io.write_all(b"EHLO copier\r\n").await.unwrap();
        io.flush().await.unwrap();
        assert!(rest(&mut io).await.starts_with("554 5.5.1 "), "{peer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_probe_is_no_fault_whatever_the_port() {
    for listener in ["tls = \"auto\"", "tls = \"starttls\"", "tls = \"implicit\""] {
        let house = house(listener, "").await;
        drop(connect(&house, OWN));
        house.sessions.close();
        house.sessions.wait().await;
        let metrics = house.relay.metrics.render();
        assert!(!metrics.contains("device_faults_total{"), "{listener}: {metrics}");
        assert!(!metrics.contains("tls_handshakes_total{"), "{listener}: {metrics}");
        assert!(known(&house, OWN).is_none(), "{listener}");
    }
}

#[tokio::test(start_paused = true)]
async fn rubbish_after_the_greeting_is_answered_and_the_session_goes_on() {
    let house = house("tls = \"auto\"", "").await;
    for rubbish in [&b"\0\xffbinary\r\n"[..], b"\x80\r\n", b"\x16\r\n"] {
        let mut device = greeted(&house, OWN).await;
        device.write(rubbish).await.unwrap();
        assert_eq!(device.read().await.unwrap().code.get(), 500, "{}", rubbish.escape_ascii());
        assert!(device.say("EHLO copier").await.unwrap().code.is_positive());
    }
}
