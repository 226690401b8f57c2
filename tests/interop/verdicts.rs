//! What a real smarthost says, and what a device hears of it.

use std::time::Duration;

use openssl::ssl::SslVersion;
use smtp_uplift::{sandbox::device::Device, transport::device_tls::DeviceTls};

use crate::{
    common::{MAILBOX, MESSAGE},
    group, needs,
    office::{FROM, Relay, Smarthost},
    postfix::Postfix,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_hear_what_postfix_says() {
    if !needs::met(&Postfix::needs(), "what devices hear of Postfix") {
        return;
    }
    let postfix = Postfix::start();
    let group = postfix.group.id.clone();
    let here = ([127, 0, 0, 1], postfix.port).into();
    let old = DeviceTls::new(SslVersion::TLS1, None).unwrap();
    let new = DeviceTls::new(SslVersion::TLS1_2, None).unwrap();

    // Why it takes a relay: an old device does not get in here by itself, nor does anybody without a login.
    let mut device = Device::connect(here).await.unwrap();
    device.say("EHLO copier").await.unwrap();
    let fault = device.starttls(&old).await.err().unwrap().to_string();
    assert!(fault.contains("alert protocol version"), "{fault}");
    let mut stranger = Device::connect(here).await.unwrap().starttls(&new).await.unwrap();
    stranger.say("EHLO copier").await.unwrap();
    let said =
        stranger.send(FROM, &["copier-9@office.example"], MESSAGE).await.unwrap().to_string();
    assert!(said.starts_with("554 5.7.1 "), "{said}");

    let smarthost = Smarthost::Postfix(postfix);
    for (number, mechanism) in ["login", "plain"].into_iter().enumerate() {
        let mailbox = format!("auth = \"{mechanism}\"\npassword = {{ file = \"password\" }}");
        let relay = Relay::start(smarthost.port(), smarthost.certificate(), &mailbox).await;
        let mut device = Device::connect_tls(relay.address("lan-tls"), &old).await.unwrap();
        device.say("EHLO copier").await.unwrap();
        device.say(&format!("MAIL FROM:<{FROM}>")).await.unwrap();
        // One recipient of two does not exist; the other gets the message all the same.
        let said = device.say("RCPT TO:<nobody@office.example>").await.unwrap().to_string();
        assert!(
            said.starts_with("550 5.1.1 <nobody@office.example>: Recipient address rejected"),
            "{said}"
        );
        let known = format!("copier-{number}@office.example");
        let said = device.say(&format!("RCPT TO:<{known}>")).await.unwrap().to_string();
        assert_eq!(said, "250 2.1.5 recipient ok");
        assert_eq!(device.say("DATA").await.unwrap().code.get(), 354);
        device.write(MESSAGE).await.unwrap();
        let said = device.say(".").await.unwrap().to_string();
        assert!(said.starts_with("250 2.0.0 ok, id ") && said.contains("queued as"), "{said}");
        let arrived = smarthost.arrived(&known).await.unwrap();
        let unstuffed = MESSAGE.replace("\r\n..", "\r\n.");
        assert!(arrived.ends_with(unstuffed.as_bytes()), "{arrived:?}");
        logged(
            &smarthost,
            &format!("sasl_method={}, sasl_username={MAILBOX}", mechanism.to_uppercase()),
        )
        .await;
    }

    let relay =
        Relay::start(smarthost.port(), smarthost.certificate(), "password = \"wrong\"").await;
    let mut device = Device::connect(relay.address("lan")).await.unwrap();
    device.say("EHLO copier").await.unwrap();
    let said = device.send(FROM, &["copier-9@office.example"], MESSAGE).await.unwrap().to_string();
    assert_eq!(said, "451 4.7.0 waiting for the relay's operator: the mailbox cannot log in");

    assert!(group::alive(&group) > 1);
    drop(smarthost);
    assert_eq!(group::alive(&group), 0, "Postfix leaves processes behind");
}

/// Waits for a line of Postfix' log, which is written by a process of its own.
async fn logged(smarthost: &Smarthost, text: &str) {
    let Smarthost::Postfix(postfix) = smarthost else { return };
    let waiting = async {
        while !postfix.log().contains(text) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), waiting).await;
    assert!(waited.is_ok(), "no {text:?} in {}", postfix.log());
}
