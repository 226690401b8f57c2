//! What a device's own entry says acts from its first octet: a test for each key that a listener has too.

use openssl::ssl::SslVersion;
use smtp_uplift::sandbox::device::Device;
use tokio::{io::AsyncReadExt as _, net::TcpStream};

use crate::{
    common::{House, MESSAGE, Plan},
    rows::{OWN, connect, delivers, greeted, house, keywords, tls as tls_of},
};

const OTHER: &str = "10.9.9.9";

#[tokio::test(start_paused = true)]
async fn tls() {
    let house = house("", "tls = \"implicit\"").await;
    let old = tls_1_0();
    let (io, _) = old.connect(connect(&house, OWN)).await.unwrap();
    assert_eq!(Device::over(io).await.unwrap().greeting.code.get(), 220);
    assert_eq!(greeted(&house, OTHER).await.greeting.code.get(), 220, "in plaintext");

    let house = self::house("tls = \"implicit\"", "tls = \"none\"").await;
    let mut device = greeted(&house, OWN).await;
    assert!(!keywords(&mut device).await.contains(&"STARTTLS".to_owned()));
    assert!(old.connect(connect(&house, OTHER)).await.is_ok());

    let house = self::house("", "tls = \"require-starttls\"").await;
    for (peer, code) in [(OWN, 530), (OTHER, 250)] {
        let mut device = greeted(&house, peer).await;
        device.say("EHLO copier").await.unwrap();
        let heard = device.say("MAIL FROM:<a@x>").await.unwrap();
        assert_eq!(heard.code.get(), code, "{peer}");
    }
}

#[tokio::test(start_paused = true)]
async fn tls_profile_stricter_than_its_listener() {
    let house = house("", "tls_profile = \"modern\"\nstarttls_fallback = \"0s\"").await;
    assert!(!delivers(&house, OWN, &tls_1_0()).await);
    assert!(delivers(&house, OTHER, &tls_1_0()).await);
}

#[tokio::test]
async fn tls_where_there_is_no_seat_for_it() {
    for (own, said) in [("implicit", ""), ("auto", "421 ")] {
        let more = format!(
            "[limits]\nsessions_per_device = 1\n[[device]]\naddress = \"127.0.0.0/8\"\ntls = {own:?}\n"
        );
        let house = House::build(Plan { more: &more, ..Plan::default() }).await;
        let seated = TcpStream::connect(house.address()).await.unwrap();
        let mut next = TcpStream::connect(house.address()).await.unwrap();
        let mut heard = String::new();
        next.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard.get(..4).unwrap_or_default(), said, "{own}: {heard}");
        drop(seated);
    }
}

#[tokio::test(start_paused = true)]
async fn auth_and_what_belongs_to_it() {
    let own = "auth = \"require\"\naccept_any_credentials = true\nauth_without_tls = true";
    let house = house("", own).await;
    let mut device = greeted(&house, OWN).await;
    assert!(keywords(&mut device).await.contains(&"AUTH LOGIN PLAIN".to_owned()));
    assert_eq!(device.say("MAIL FROM:<a@x>").await.unwrap().code.get(), 530);
    assert_eq!(device.say("AUTH PLAIN AHNjYW4AZ2VoZWlt").await.unwrap().code.get(), 235);
    assert!(device.send("a@x", &["b@x"], MESSAGE).await.unwrap().code.is_positive());
    let mut device = greeted(&house, OTHER).await;
    assert!(!keywords(&mut device).await.iter().any(|line| line.starts_with("AUTH")));
    assert!(device.send("a@x", &["b@x"], MESSAGE).await.unwrap().code.is_positive());
}

#[tokio::test(start_paused = true)]
async fn line_endings() {
    let house = house("", "line_endings = \"strict\"").await;
    for (peer, taken) in [(OWN, false), (OTHER, true)] {
        let mut device = greeted(&house, peer).await;
        device.say("EHLO copier").await.unwrap();
        let heard = device.send("a@x", &["b@x"], "Subject: x\r\n\r\nbare\nline\r\n").await.unwrap();
        assert_eq!(heard.code.is_positive(), taken, "{peer}: {heard}");
    }
}

#[tokio::test(start_paused = true)]
async fn hide() {
    let house = house("hide = [\"SIZE\"]", "hide = [\"PIPELINING\", \"STARTTLS\"]").await;
    let own = keywords(&mut greeted(&house, OWN).await).await.join(",");
    assert!(
        own.contains("SIZE") && !own.contains("PIPELINING") && !own.contains("STARTTLS"),
        "{own}"
    );
    let other = keywords(&mut greeted(&house, OTHER).await).await.join(",");
    assert!(!other.contains("SIZE") && other.contains("PIPELINING") && other.contains("STARTTLS"));
}

fn tls_1_0() -> smtp_uplift::transport::device_tls::DeviceTls {
    tls_of(SslVersion::TLS1, "AES128-SHA")
}
