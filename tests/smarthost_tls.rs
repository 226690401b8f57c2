//! Smarthosts of all kinds behind both TLS libraries: which of them are reached, and what the operator hears
//! of the others.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use std::{fs, net::SocketAddr};

use common::{House, Plan};
use smtp_uplift::{
    config,
    sandbox::{
        Sandbox,
        scenario::{Scenario, Tls},
    },
    smarthost::{Target, connection::Connection, journal::Journal},
    telemetry::{metrics::Metrics, transcript::Transcript},
    transport::certificate::Identity,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
};

const LOOPBACK: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
const BOTH: [&str; 2] = ["rustls", "native"];

/// What comes of connecting: the TLS that was agreed on, or why there is none.
async fn connect(port: u16, certificate: Option<&[u8]>, lines: &str) -> Result<String, String> {
    let folder = tempfile::tempdir().unwrap();
    let mut smarthost = format!("host = \"localhost\"\nport = {port}\n{lines}\n");
    if let Some(certificate) = certificate {
        fs::write(folder.path().join("ca.crt"), certificate).unwrap();
        smarthost += "ca_file = \"ca.crt\"\n";
    }
    let text = format!(
        "hostname = \"relay.example\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n[smarthost]\n{smarthost}\
         [[mailbox]]\naddress = \"scanner@example.com\"\nauth = \"none\"\n[delivery]\nmode = \"stream\"\n"
    );
    let config = config::parse(&text, &folder.path().join("relay.toml")).unwrap().config;
    let target = Target::new(&config, &config.mailboxes[0]).unwrap();
    let (login, _) = target.login().await.unwrap();
    let journal = Journal::new(&target, Metrics::new("test"));
    match Connection::open(&target, login, &journal, &Transcript::default()).await {
        Ok(connection) => Ok(connection.tls().unwrap().to_string()),
        Err(error) => Err(error.to_string()),
    }
}

async fn sandbox(tls: Tls, names: &[&str]) -> Sandbox {
    let scenario = Scenario { tls, ..Scenario::default() };
    Sandbox::start_as(LOOPBACK, scenario, &Identity::make(names).unwrap()).await.unwrap()
}

#[tokio::test]
async fn both_libraries_reach_what_exchange_online_offers() {
    let sandbox = sandbox(Tls::ExchangeOnline, &["localhost"]).await;
    let (port, ca) = (sandbox.address().port(), Some(sandbox.certificate()));
    assert_eq!(connect(port, ca, "").await.unwrap(), "TLSv1.3/TLS13_AES_256_GCM_SHA384");
    let native = "tls_backend = \"native\"";
    assert_eq!(connect(port, ca, native).await.unwrap(), "TLSv1.2+/unreported");
    let newest = "tls_backend = \"native\"\ntls_min = \"1.3\"";
    assert_eq!(connect(port, ca, newest).await.unwrap(), "TLSv1.3/unreported");
}

#[tokio::test]
async fn an_old_server_on_premises_is_reached_by_native_only_and_rustls_says_so() {
    let plan = |smarthost| Plan {
        scenario: Scenario {
            tls: Tls::OnPremises,
            password: Some(common::PASSWORD.into()),
            ..Scenario::default()
        },
        smarthost,
        ..Plan::default()
    };
    let house = House::build(plan("tls_backend = \"native\"")).await;
    assert!(house.send("a@example.com", &["b@example.com"]).await.starts_with("250 2.0.0 "));
    assert!(house.sandbox.deliveries()[0].data.ends_with(b"\r\n\r\nline\r\n..stuffed\r\n"));

    let house = House::build(plan("")).await;
    let heard = house.send("a@example.com", &["b@example.com"]).await;
    assert!(heard.starts_with("503 5.5.1 ") || heard.starts_with("451 4.4.1 "), "{heard}");

    let sandbox = sandbox(Tls::OnPremises, &["localhost"]).await;
    let (port, ca) = (sandbox.address().port(), Some(sandbox.certificate()));
    let said = connect(port, ca, "").await.unwrap_err();
    assert!(said.contains("the server shares no key exchange and cipher with rustls"), "{said}");
    assert!(said.contains("; write tls_backend = \"native\" in [smarthost]"), "{said}");
}

#[tokio::test]
async fn what_is_older_than_tls_1_2_is_refused_by_both() {
    let too_old = sandbox(Tls::TooOld, &["localhost"]).await;
    let on_premises = sandbox(Tls::OnPremises, &["localhost"]).await;
    for backend in BOTH {
        for (sandbox, min) in [(&too_old, "1.2"), (&on_premises, "1.3")] {
            let (port, ca) = (sandbox.address().port(), Some(sandbox.certificate()));
            let lines = format!("tls_backend = \"{backend}\"\ntls_min = \"{min}\"");
            let said = connect(port, ca, &lines).await.unwrap_err();
            assert!(
                said.contains("does not take a TLS version as new as tls_min"),
                "{backend}: {said}"
            );
            let remedy =
                if min == "1.2" { "the server has to be updated" } else { "tls_min = \"1.2\"" };
            assert!(said.contains(remedy), "{backend}: {said}");
        }
    }
}

#[tokio::test]
async fn certificates_are_checked_by_both() {
    let ours = sandbox(Tls::ExchangeOnline, &["localhost"]).await;
    let other = sandbox(Tls::ExchangeOnline, &["other.example"]).await;
    let said = connect(other.address().port(), None, "").await.unwrap_err();
    assert!(
        said.contains(
            "its certificate, that of other.example, issued by other.example, was issued by nobody"
        ),
        "{said}"
    );
    for backend in BOTH {
        let backend = format!("tls_backend = \"{backend}\"");
        let said = connect(ours.address().port(), None, &backend).await.unwrap_err();
        assert!(
            said.contains(
                "was issued by nobody that this machine trusts; if the server is your own"
            ),
            "{said}"
        );
        let wrong = Some(other.certificate());
        let said = connect(ours.address().port(), wrong, &backend).await.unwrap_err();
        assert!(said.contains("issued by nobody that this machine trusts"), "{said}");
        let said = connect(other.address().port(), wrong, &backend).await.unwrap_err();
        assert!(said.contains("is not for the name localhost; write the name"), "{said}");
    }
}

#[tokio::test]
async fn what_answers_something_else_is_told_from_what_ends_the_handshake() {
    for (greeting, reason, remedy) in [
        (
            "220 mail.example ESMTP\r\n",
            "what the server says is not TLS",
            "587 takes starttls, 465 takes implicit",
        ),
        // Windows servers that share no cipher with us close like this.
        ("", "the server ended it", "tls_backend = \"native\""),
    ] {
        let socket = TcpListener::bind(LOOPBACK).await.unwrap();
        let port = socket.local_addr().unwrap().port();
        let mut server = JoinSet::new();
        server.spawn(async move {
            loop {
                let (mut stream, _) = socket.accept().await.unwrap();
                let mut hello = [0; 4096];
                let _ = stream.read(&mut hello).await;
                stream.write_all(greeting.as_bytes()).await.unwrap();
            }
        });
        for backend in BOTH {
            let lines = format!("tls = \"implicit\"\ntls_backend = \"{backend}\"");
            let said = connect(port, None, &lines).await.unwrap_err();
            let hopeless = backend == "native" && greeting.is_empty();
            assert!(
                said.contains(reason) && (hopeless || said.contains(remedy)),
                "{backend}: {said}"
            );
        }
    }
}
