//! Rows 1 to 9 of what real devices do: each delivers, out of the box or after one line for it.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use openssl::ssl::{Ssl, SslContext, SslMethod, SslSessionCacheMode, SslVersion};
use smtp_uplift::{
    relay::roster,
    sandbox::device::Device,
    transport::{device_tls::DeviceTls, stream::BoxIo},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::common::{MESSAGE, Plan, hash, memory::InMemory};

/// Where the device with an entry of its own is.
pub(crate) const OWN: &str = "10.1.2.3";

pub(crate) fn tls(version: SslVersion, suite: &str) -> DeviceTls {
    DeviceTls::new(version, Some(suite)).unwrap()
}

/// A device that insists on ECDSA, which no profile promises: every library can play it.
pub(crate) fn hopeless() -> DeviceTls {
    tls(SslVersion::TLS1_2, "ECDHE-ECDSA-AES128-SHA")
}

/// A house with these lines for its listener, and these for the device at [`OWN`].
pub(crate) async fn house(listener: &str, own: &str) -> InMemory {
    let more = format!("[[device]]\naddress = \"{OWN}\"\n{own}\n");
    InMemory::build(Plan { listener, more: &more, ..Plan::default() }).await
}

pub(crate) fn connect(house: &InMemory, peer: &str) -> BoxIo {
    house.connect_from(peer.parse().unwrap())
}

/// A device that has read its greeting.
pub(crate) async fn greeted(house: &InMemory, peer: &str) -> Device {
    Device::over(connect(house, peer)).await.unwrap()
}

/// What a device is offered.
pub(crate) async fn keywords(device: &mut Device) -> Vec<String> {
    device.say("EHLO copier").await.unwrap().lines.split_off(1)
}

/// Whether STARTTLS is offered to an address.
async fn offers_starttls(house: &InMemory, peer: &str) -> bool {
    keywords(&mut greeted(house, peer).await).await.contains(&"STARTTLS".to_owned())
}

/// Whether a handshake comes about after STARTTLS, and a message is taken then.
pub(crate) async fn delivers(house: &InMemory, peer: &str, tls: &DeviceTls) -> bool {
    let Ok(mut device) = greeted(house, peer).await.starttls(tls).await else { return false };
    device.say("EHLO copier").await.unwrap();
    device.send("a@x", &["b@x"], MESSAGE).await.unwrap().code.is_positive()
}

/// What is known of an address.
pub(crate) fn known(house: &InMemory, peer: &str) -> Option<roster::Device> {
    let peer: IpAddr = peer.parse().unwrap();
    house.relay.roster.devices().into_iter().find(|device| device.address == peer)
}

/// The device's end of a session in which TLS is to begin.
async fn after_starttls(house: &InMemory) -> BoxIo {
    let mut io = connect(house, OWN);
    while io.read_u8().await.unwrap() != b'\n' {}
    io.write_all(b"STARTTLS\r\n").await.unwrap();
    while io.read_u8().await.unwrap() != b'\n' {}
    io
}

/// Sends a ClientHello and expects the beginning of a ServerHello of TLS 1.0 (RFC 2246 section 7.4.1.3).
async fn is_answered(mut io: BoxIo, hello: &[u8]) {
    io.write_all(hello).await.unwrap();
    let mut answer = [0; 11];
    io.read_exact(&mut answer).await.unwrap();
    let [record, major, minor, _, _, message, _, _, _, server_major, server_minor] = answer;
    assert_eq!((record, major, minor), (22, 3, 1), "{answer:x?}");
    assert_eq!((message, server_major, server_minor), (2, 3, 1), "{answer:x?}");
}

#[tokio::test(start_paused = true)]
async fn row_01_tls_1_0_or_1_1_only() {
    let house = InMemory::new().await;
    for version in [SslVersion::TLS1, SslVersion::TLS1_1] {
        assert!(delivers(&house, OWN, &DeviceTls::new(version, None).unwrap()).await);
    }
}

#[tokio::test(start_paused = true)]
async fn row_02_rsa_key_exchange_only() {
    let house = InMemory::new().await;
    for suite in ["AES128-SHA", "AES256-SHA", "AES128-SHA256", "AES256-GCM-SHA384"] {
        assert!(delivers(&house, OWN, &tls(SslVersion::TLS1_2, suite)).await, "{suite}");
    }
    let advice = known(&house, OWN).unwrap().advice;
    assert_eq!(advice, Vec::<String>::new(), "it could do no better");
}

#[cfg(feature = "vendored")]
#[tokio::test(start_paused = true)]
async fn row_03_sslv3_only() {
    let house = house("", "tls_profile = \"ancient\"").await;
    let device = tls(SslVersion::SSL3, "AES128-SHA");
    assert!(!delivers(&house, "10.9.9.9", &device).await, "never by default");
    assert_eq!(
        known(&house, "10.9.9.9").unwrap().advice,
        ["offered SSLv3 only: tls_profile = \"ancient\" would let it in; \
             write [[device]] with address = \"10.9.9.9\" and tls_profile = \"ancient\""]
    );
    assert!(delivers(&house, OWN, &device).await);
}

#[cfg(feature = "vendored")]
#[tokio::test(start_paused = true)]
async fn row_04_rc4_or_3des_only() {
    let house = house("starttls_fallback = \"0s\"", "tls_profile = \"ancient\"").await;
    for suite in ["RC4-SHA", "RC4-MD5", "DES-CBC3-SHA"] {
        let device = tls(SslVersion::TLS1, suite);
        assert!(!delivers(&house, "10.9.9.9", &device).await, "{suite}");
        let advice = known(&house, "10.9.9.9").unwrap().advice;
        assert!(advice[0].contains("3DES or RC4 only: tls_profile = \"ancient\""), "{advice:?}");
        assert!(delivers(&house, OWN, &device).await, "{suite}");
    }
}

#[tokio::test(start_paused = true)]
async fn row_05_hello_of_sslv2_that_offers_tls_1_0() {
    // RFC 5246 appendix E.2: length, message 1, TLS 1.0, lengths of suites, session and challenge.
    let mut hello = b"\x80\x1c\x01\x03\x01\x00\x03\x00\x00\x00\x10\x00\x00\x2f".to_vec();
    hello.extend([7; 16]);
    is_answered(after_starttls(&InMemory::new().await).await, &hello).await;
    for tls in ["implicit", "auto"] {
        let house = house("", &format!("tls = \"{tls}\"")).await;
        is_answered(connect(&house, OWN), &hello).await;
    }
}

#[tokio::test(start_paused = true)]
async fn row_06_hello_without_any_extension() {
    let mut hello = b"\x16\x03\x01\x00\x2d\x01\x00\x00\x29\x03\x01".to_vec();
    hello.extend([7; 32]);
    // No session, one suite, no compression, and nothing behind.
    hello.extend(b"\x00\x00\x02\x00\x2f\x01\x00");
    is_answered(after_starttls(&InMemory::new().await).await, &hello).await;
    for tls in ["implicit", "auto"] {
        let house = house("", &format!("tls = \"{tls}\"")).await;
        is_answered(connect(&house, OWN), &hello).await;
    }
}

#[tokio::test(start_paused = true)]
async fn row_07_starttls_that_cannot_be_finished_nor_switched_off() {
    let house = house("", "").await;
    assert!(offers_starttls(&house, OWN).await);
    assert!(!delivers(&house, OWN, &hopeless()).await);
    let withheld = "device_faults_total{kind=\"starttls_withheld\",listener=\"lan\"}";
    assert_eq!(house.metric(withheld), 0.0);

    let mut device = greeted(&house, OWN).await;
    assert!(!keywords(&mut device).await.contains(&"STARTTLS".to_owned()));
    assert_eq!(device.say("STARTTLS").await.unwrap().code.get(), 502);
    assert!(device.send("a@x", &["b@x"], MESSAGE).await.unwrap().code.is_positive());
    assert_eq!(house.metric(withheld), 1.0);
    let known = known(&house, OWN).unwrap();
    assert_eq!((known.messages, known.faults["starttls_withheld"]), (1, 1));
    assert!(known.advice.iter().any(|said| said.contains("hide = [\"STARTTLS\"]")));
    assert!(offers_starttls(&house, "10.9.9.9").await, "nobody else is concerned");

    tokio::time::advance(Duration::from_secs(599)).await;
    assert!(!offers_starttls(&house, OWN).await);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(offers_starttls(&house, OWN).await, "it may have learnt it by now");
}

#[tokio::test(start_paused = true)]
async fn row_07_is_no_downgrade_for_whoever_can_do_better() {
    // Where TLS or a login is asked for, where the first octet decides, or where the operator says never.
    let users = "auth = \"require\"\naccept_any_credentials = true";
    for own in ["tls = \"auto\"", "tls = \"require-starttls\"", "starttls_fallback = \"0s\"", users]
    {
        let house = house("", own).await;
        assert!(!delivers(&house, OWN, &hopeless()).await);
        assert!(offers_starttls(&house, OWN).await, "{own}");
    }

    let house = house("", "auth = \"offer\"\naccept_any_credentials = true").await;
    assert!(delivers(&house, "10.0.0.1", &tls(SslVersion::TLS1, "AES128-SHA")).await);
    assert!(!delivers(&house, "10.0.0.1", &hopeless()).await);
    assert!(offers_starttls(&house, "10.0.0.1").await, "it has completed one");

    let device = greeted(&house, "10.0.0.2").await;
    drop(device.starttls(&DeviceTls::new(SslVersion::TLS1, None).unwrap()).await.unwrap());
    assert!(!delivers(&house, "10.0.0.2", &hopeless()).await);
    assert!(offers_starttls(&house, "10.0.0.2").await, "without a message, too");

    // A probe, and a device that is lost on the way.
    for closes in [true, false] {
        let mut device = greeted(&house, "10.0.0.3").await;
        device.say("STARTTLS").await.unwrap();
        if closes {
            drop(device);
        } else {
            assert!(device.is_closed().await, "30 s are over");
        }
        assert!(offers_starttls(&house, "10.0.0.3").await, "{closes}");
    }
    assert!(known(&house, "10.0.0.3").unwrap().advice[0].starts_with("fell silent"));
}

#[tokio::test(start_paused = true)]
async fn row_07_a_password_is_not_asked_for_in_plaintext_because_of_it() {
    let login = "auth = \"offer\"\naccept_any_credentials = true\nauth_without_tls = true";
    let house = house("", login).await;
    assert!(!delivers(&house, OWN, &hopeless()).await);
    let offered = keywords(&mut greeted(&house, OWN).await).await;
    assert!(!offered.iter().any(|line| line.starts_with("STARTTLS") || line.starts_with("AUTH")));

    // One that has logged in before gets what it had.
    let mut device = greeted(&house, "10.1.2.4").await;
    device.say("EHLO copier").await.unwrap();
    assert_eq!(device.say("AUTH LOGIN").await.unwrap().code.get(), 502, "the listener has none");
    drop(device);
    let folder = tempfile::tempdir().unwrap();
    let users_file = folder.path().join("users.txt");
    std::fs::write(&users_file, format!("scan:{}\n", hash("geheim"))).unwrap();
    // A login that proves nothing is none.
    for (any, kept) in [(false, true), (true, false)] {
        let more = format!(
            "[auth]\nusers_file = {users_file:?}\n[[device]]\naddress = \"10.0.0.0/8\"\nauth = \"offer\"\n\
             auth_without_tls = true\naccept_any_credentials = {any}\n"
        );
        let house = InMemory::build(Plan { more: &more, ..Plan::default() }).await;
        let mut device = greeted(&house, OWN).await;
        device.say("EHLO copier").await.unwrap();
        assert_eq!(device.say("AUTH PLAIN AHNjYW4AZ2VoZWlt").await.unwrap().code.get(), 235);
        assert!(!delivers(&house, OWN, &hopeless()).await);
        let offered = keywords(&mut greeted(&house, OWN).await).await;
        assert_eq!(offered.contains(&"STARTTLS".to_owned()), kept, "{any} {offered:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn row_08_implicit_tls_on_a_port_for_starttls_and_the_reverse() {
    let old = tls(SslVersion::TLS1, "AES128-SHA");
    // One port serves them all.
    let auto = house("tls = \"auto\"", "").await;
    assert!(auto.send("a@x", &["b@x"]).await.starts_with("250 "));
    assert!(delivers(&auto, OWN, &old).await);
    let (io, info) = old.connect(connect(&auto, OWN)).await.unwrap();
    let mut device = Device::over(io).await.unwrap();
    assert_eq!(info.version, "TLSv1");
    assert!(!keywords(&mut device).await.contains(&"STARTTLS".to_owned()));
    assert!(device.send("a@x", &["b@x"], MESSAGE).await.unwrap().code.is_positive());
    assert_eq!(known(&auto, OWN).unwrap().messages, 2);

    // On the wrong port somebody is told.
    for listener in ["tls = \"starttls\"", "tls = \"require-starttls\"", "tls = \"none\""] {
        let house = house(listener, "").await;
        assert!(old.connect(connect(&house, OWN)).await.is_err());
        let mut io = connect(&house, OWN);
        while io.read_u8().await.unwrap() != b'\n' {}
        assert!(old.connect(io).await.is_err(), "after the greeting, too");
        let known = known(&house, OWN).unwrap();
        assert_eq!(known.faults["tls_failed"], 2, "{listener}");
        assert!(known.advice[0].contains("tls = \"auto\""), "{:?}", known.advice);
        let failed = "device_faults_total{kind=\"tls_failed\",listener=\"lan\"}";
        assert_eq!(house.metric(failed), 2.0);
        assert_eq!(house.metric("device_faults_total{kind=\"bad_command\",listener=\"lan\"}"), 0.0);
    }
    let house = house("tls = \"implicit\"", "").await;
    for sends in [&b"EHLO copier\r\n"[..], b""] {
        let mut io = connect(&house, OWN);
        io.write_all(sends).await.unwrap();
        let mut rest = Vec::new();
        io.read_to_end(&mut rest).await.unwrap();
        let advice = known(&house, OWN).unwrap().advice;
        assert!(advice[0].contains("tls = \"auto\""), "{advice:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn row_09_no_session_tickets() {
    let house = house("tls = \"auto\"", "").await;
    for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        let mut builder = SslContext::builder(SslMethod::tls_client()).unwrap();
        builder.set_max_proto_version(Some(version)).unwrap();
        builder.set_session_cache_mode(SslSessionCacheMode::CLIENT);
        let tickets = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&tickets);
        builder.set_new_session_callback(move |_, _| {
            counted.fetch_add(1, Ordering::SeqCst);
        });
        let ssl = Ssl::new(&builder.build()).unwrap();
        let mut io = tokio_openssl::SslStream::new(ssl, connect(&house, OWN)).unwrap();
        std::pin::Pin::new(&mut io).connect().await.unwrap();
        // A ticket would come before the greeting.
        let mut device = Device::over(Box::new(io)).await.unwrap();
        assert!(device.say("EHLO copier").await.unwrap().code.is_positive());
        assert_eq!(tickets.load(Ordering::SeqCst), 0, "{version:?}");
    }
}
