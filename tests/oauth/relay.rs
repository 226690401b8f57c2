//! The relay as a whole with a mailbox that gets its tokens itself.

use std::{fs, net::SocketAddr};

use serde_json::Value;
use smtp_uplift::{
    config::{self, MailboxAuth, TokenSource},
    sandbox::{Sandbox, device::Device, scenario::Scenario},
    service::Service,
};
use tempfile::TempDir;

use super::{
    SECRET, TOKEN, application,
    common::{self, MESSAGE, Plan, configuration},
    endpoint::{Answer, Endpoint},
};

struct Relay {
    endpoint: Endpoint,
    service: Service,
    sandbox: Sandbox,
    folder: TempDir,
}

async fn relay(answers: impl IntoIterator<Item = Answer>, delivery: &str) -> Relay {
    let folder = tempfile::tempdir().unwrap();
    let scenario = Scenario { token: Some(format!("{TOKEN}-1")), ..Scenario::default() };
    let sandbox = Sandbox::start(([127, 0, 0, 1], 0).into(), scenario).await.unwrap();
    let plan = Plan { mailbox: "password = \"x\"", delivery, ..Plan::default() };
    let text = configuration(&plan, sandbox.address().port(), sandbox.certificate(), folder.path());
    let mut config = config::parse(&text, &folder.path().join("relay.toml")).unwrap().config;
    let endpoint = Endpoint::start().await;
    endpoint.answers(answers);
    let mut oauth = application(&endpoint, folder.path());
    oauth.client_secret_expires = Some(jiff::civil::date(2027, 5, 31));
    config.mailboxes[0].auth = MailboxAuth::XOAuth2 { token: TokenSource::OAuth(oauth) };
    Relay { endpoint, service: Service::start(config).await.unwrap(), sandbox, folder }
}

impl Relay {
    async fn send(&self) -> String {
        let address: SocketAddr = self.service.address("lan").unwrap();
        let mut device = Device::connect(address).await.unwrap();
        device.say("EHLO copier").await.unwrap();
        device.send("a@x", &["b@x"], MESSAGE).await.unwrap().to_string()
    }

    async fn mailbox(&self) -> Value {
        let answer = common::get(self.service.admin().unwrap(), "/status", "").await;
        let status: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
        status["mailboxes"][0].clone()
    }
}

#[tokio::test]
async fn a_message_goes_with_a_token_that_the_relay_has_got_itself() {
    let relay = relay([Answer::token(1, 3600)], common::STREAM).await;
    assert!(relay.send().await.starts_with("250 "));
    assert_eq!(relay.endpoint.asked().len(), 1, "once for the start and the message");
    let mailbox = relay.mailbox().await;
    assert_eq!(mailbox["credential_expires"], "2027-05-31T00:00:00Z");
    let expires: jiff::Timestamp = mailbox["token_expires"].as_str().unwrap().parse().unwrap();
    assert!(expires > jiff::Timestamp::now());
    let metrics = relay.service.metrics().render();
    let gauge = |name: &str, at: jiff::Timestamp| {
        format!(
            "smtp_uplift_{name}_expiry_timestamp_seconds{{mailbox=\"{}\"}} {}\n",
            super::MAILBOX,
            at.as_second()
        )
    };
    let credential = "2027-05-31T00:00:00Z".parse().unwrap();
    for line in [gauge("token", expires), gauge("credential", credential)] {
        assert!(metrics.contains(&line), "{line} in {metrics}");
    }
    for text in [mailbox.to_string(), metrics] {
        assert!(!text.contains(SECRET) && !text.contains(TOKEN));
    }
    drop(relay.sandbox);
}

#[tokio::test]
async fn without_a_token_the_device_hears_whether_it_passes() {
    let down = relay([Answer::new(503, "")], common::STREAM).await;
    assert_eq!(down.send().await, "451 4.3.2 no access token for now; try again");
    let wrong = Answer::error("invalid_client", "AADSTS7000215: Invalid client secret");
    let wrong = relay([wrong], common::STREAM).await;
    assert!(wrong.send().await.starts_with("451 4.7.0 waiting for the relay's operator: "));
    assert_eq!(wrong.endpoint.asked().len(), 1, "the start has asked already");
    let error = wrong.mailbox().await["last_error"].clone();
    assert_eq!(error["rule"], "token");
    assert!(error["meaning"].as_str().unwrap().contains("AADSTS7000215"), "{error}");
    assert!(error["remedy"][0].as_str().unwrap().contains("not its id"), "{error}");
}

#[tokio::test]
async fn a_token_that_the_smarthost_refuses_is_replaced_once() {
    let heals = relay([Answer::token(9, 3600), Answer::token(1, 3600)], common::STREAM).await;
    assert!(heals.send().await.starts_with("250 "));
    assert_eq!(heals.endpoint.asked().len(), 2);
    let stays = relay([7, 8, 9].map(|number| Answer::token(number, 3600)), common::STREAM).await;
    assert!(stays.send().await.starts_with("451 4.7.0 "));
    assert!(stays.send().await.starts_with("451 4.7.0 "));
    assert_eq!(stays.endpoint.asked().len(), 2);
}

#[tokio::test]
async fn without_a_token_mail_waits_or_is_held_until_there_is_one() {
    let down = relay([Answer::new(503, "")], common::KEEP).await;
    assert!(down.send().await.starts_with("250 2.0.0 queued, id "));
    assert_eq!(down.mailbox().await["stopped"], serde_json::json!([]), "it passes");
    let wrong = Answer::error("invalid_client", "AADSTS7000215: Invalid client secret");
    let wrong = relay([wrong], common::KEEP).await;
    assert!(wrong.send().await.starts_with("250 2.0.0 queued, id "));
    let mailbox = wrong.mailbox().await;
    assert_eq!(mailbox["stopped"], serde_json::json!(["credential"]));
    let ready = common::get(wrong.service.admin().unwrap(), "/readyz", "").await;
    assert!(ready.starts_with("HTTP/1.1 503 ") && ready.contains("AADSTS7000215"), "{ready}");
    // The right secret is all that it takes.
    wrong.endpoint.answers([Answer::token(1, 3600)]);
    fs::write(wrong.folder.path().join("client-secret"), "the right one").unwrap();
    wrong.sandbox.delivered(1).await;
}

#[tokio::test]
async fn without_a_token_nobody_is_called_ready_in_stream_mode_either() {
    let wrong = Answer::error("invalid_client", "AADSTS7000215: Invalid client secret");
    let relay = relay([wrong.clone(), wrong], common::STREAM).await;
    assert!(relay.send().await.starts_with("451 4.7.0 waiting for the relay's operator"));
    let mailbox = relay.mailbox().await;
    assert_eq!(mailbox["state"], "no-login", "{mailbox}");
    let ready = common::get(relay.service.admin().unwrap(), "/readyz", "").await;
    assert!(ready.starts_with("HTTP/1.1 503 "), "{ready}");
}

/// The token stands in a file that somebody else writes.
#[tokio::test]
async fn a_ready_token_tells_its_end_too() {
    use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
    let folder = tempfile::tempdir().unwrap();
    let claims = BASE64_URL_SAFE_NO_PAD.encode("{\"exp\": 1900000000}");
    fs::write(folder.path().join("token"), format!("x.{claims}.y")).unwrap();
    let text = "hostname = \"relay.example\"\n[[listener]]\nname = \"lan\"\naddress = \"127.0.0.1:0\"\n\
                [[mailbox]]\naddress = \"a@example.com\"\n[mailbox.oauth]\ntoken = { file = \"token\" }\n";
    let config = config::parse(text, &folder.path().join("relay.toml")).unwrap().config;
    let target = smtp_uplift::smarthost::Target::new(&config, &config.mailboxes[0]).unwrap();
    target.credential().unwrap();
    assert_eq!(target.token_expires().unwrap().as_second(), 1_900_000_000);
    assert_eq!(target.credential_expires(), None);
}
