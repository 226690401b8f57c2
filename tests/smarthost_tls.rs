//! Smarthosts of all kinds behind both TLS libraries: which of them are reached, and what the operator hears
//! of the others.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use std::{
    fs, io,
    net::SocketAddr,
    path::Path,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use common::{House, Plan};
use openssl::{
    hash::MessageDigest,
    ssl::{Ssl, SslAcceptor, SslMethod, SslVerifyMode, SslVersion},
    x509::X509VerifyResult,
};
use smtp_uplift::{
    config::{self, Config},
    sandbox::{
        Sandbox,
        device::Device,
        scenario::{Scenario, Tls},
    },
    service::Service,
    smarthost::{Target, connection::Connection, journal::Journal},
    telemetry::{metrics::Metrics, transcript::Transcript},
    transport::{certificate::Identity, client_tls},
};
use tokio::{
    io::{
        AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _,
        BufReader,
    },
    net::TcpListener,
    task::JoinSet,
};
use tokio_openssl::SslStream;

const LOOPBACK: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
const BOTH: [&str; 2] = ["rustls", "native"];

/// What comes of connecting: the TLS that was agreed on, or why there is none.
async fn connect(port: u16, certificate: Option<&[u8]>, lines: &str) -> Result<String, String> {
    let folder = tempfile::tempdir().unwrap();
    let config = configuration(folder.path(), port, certificate, lines);
    open(&Target::new(&config, &config.mailboxes[0]).unwrap()).await
}

/// The configuration of a folder, with a smarthost whose roots are this certificate.
fn configuration(folder: &Path, port: u16, certificate: Option<&[u8]>, lines: &str) -> Config {
    let mut smarthost = format!("host = \"localhost\"\nport = {port}\n{lines}\n");
    if let Some(certificate) = certificate {
        fs::write(folder.join("ca.crt"), certificate).unwrap();
        smarthost += "ca_file = \"ca.crt\"\n";
    }
    let text = format!(
        "hostname = \"relay.example\"\n[[listener]]\nname = \"lan\"\naddress = \"127.0.0.1:0\"\n[smarthost]\n{smarthost}\
         [[mailbox]]\naddress = \"scanner@example.com\"\nauth = \"none\"\n[delivery]\nmode = \"stream\"\n"
    );
    config::parse(&text, &folder.join("relay.toml")).unwrap().config
}

async fn open(target: &Target) -> Result<String, String> {
    let (login, _) = target.login().await.unwrap();
    let journal = Journal::new(target, Metrics::new("test"));
    match Connection::open(target, login, &journal, &Transcript::default()).await {
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

const SHOWN: &str =
    "tls = \"implicit\"\nclient_certificate = \"client.crt\"\nclient_key = \"client.key\"\n";

/// A smarthost that lets nobody in who does not prove that one certificate is theirs.
async fn demanding(
    taken: &Arc<AtomicUsize>,
    door: &Identity,
    known: &Identity,
    newest: SslVersion,
) -> (u16, JoinSet<()>) {
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).unwrap();
    acceptor.set_certificate(&door.certificate).unwrap();
    acceptor.set_private_key(&door.key).unwrap();
    acceptor.set_max_proto_version(Some(newest)).unwrap();
    acceptor.set_session_id_context(b"demanding").unwrap();
    let digest =
        |shown: &openssl::x509::X509Ref| shown.digest(MessageDigest::sha256()).unwrap().to_vec();
    let wanted = digest(&known.certificate);
    acceptor.set_verify_callback(
        SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT,
        move |_, context| {
            let is_known = context.current_cert().is_some_and(|shown| digest(shown) == wanted);
            if is_known {
                context.set_error(X509VerifyResult::OK);
            }
            is_known
        },
    );
    let acceptor = acceptor.build();
    let socket = TcpListener::bind(LOOPBACK).await.unwrap();
    let port = socket.local_addr().unwrap().port();
    let mut server = JoinSet::new();
    let taken = Arc::clone(taken);
    server.spawn(async move {
        let mut guests = JoinSet::new();
        loop {
            let (stream, _) = socket.accept().await.unwrap();
            let mut stream = SslStream::new(Ssl::new(acceptor.context()).unwrap(), stream).unwrap();
            let taken = Arc::clone(&taken);
            guests.spawn(async move {
                if Pin::new(&mut stream).accept().await.is_ok() {
                    let _ = take_mail(stream, &taken).await;
                }
            });
        }
    });
    (port, server)
}

fn lay_down(folder: &Path, identity: &Identity) {
    fs::write(folder.join("client.crt"), identity.certificate.to_pem().unwrap()).unwrap();
    fs::write(folder.join("client.key"), identity.key.private_key_to_pem_pkcs8().unwrap()).unwrap();
}

/// The least that a smarthost says, until the relay has gone.
async fn take_mail(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    taken: &AtomicUsize,
) -> io::Result<()> {
    let (mut lines, mut line, mut data) = (BufReader::new(stream), String::new(), false);
    lines.write_all(b"220 door.example ESMTP\r\n").await?;
    while lines.read_line(&mut line).await? > 0 {
        let reply = match line.trim_end() {
            "." => {
                data = false;
                taken.fetch_add(1, Ordering::SeqCst);
                "250 2.0.0 taken\r\n"
            }
            _ if data => "",
            "DATA" => {
                data = true;
                "354 go on\r\n"
            }
            _ => "250 2.0.0 ok\r\n",
        };
        lines.write_all(reply.as_bytes()).await?;
        line.clear();
    }
    Ok(())
}

#[tokio::test]
async fn a_smarthost_that_asks_for_a_certificate_gets_ours_and_a_changed_one_without_a_restart() {
    let door = Identity::make(&["localhost"]).unwrap();
    let (known, other) = (Identity::make(&["relay"]).unwrap(), Identity::make(&["other"]).unwrap());
    let ca = door.certificate.to_pem().unwrap();
    for newest in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        for backend in BOTH {
            let case = format!("{backend} {newest:?}");
            let (port, _server) = demanding(&Arc::default(), &door, &known, newest).await;
            let backend = format!("tls_backend = \"{backend}\"\n");
            let said = connect(port, Some(&ca), &format!("tls = \"implicit\"\n{backend}")).await;
            let said = said.unwrap_err();
            assert!(said.contains("name one"), "{case}: {said}");
            assert!(said.contains("client_certificate"), "{case}: {said}");
            assert!(
                newest == SslVersion::TLS1_2 || said.contains("asks for a certificate of ours"),
                "{case}: {said}"
            );

            let folder = tempfile::tempdir().unwrap();
            lay_down(folder.path(), &other);
            let lines = format!("{SHOWN}{backend}");
            let config = configuration(folder.path(), port, Some(&ca), &lines);
            let target = Target::new(&config, &config.mailboxes[0]).unwrap();
            let said = open(&target).await.unwrap_err();
            assert!(
                said.contains("does not accept the certificate of client_certificate"),
                "{case}: {said}"
            );
            lay_down(folder.path(), &known);
            open(&target).await.unwrap_or_else(|said| panic!("{case}: {said}"));
            fs::write(folder.path().join("client.key"), "half a file").unwrap();
            open(&target).await.unwrap_or_else(|said| panic!("the former one, {case}: {said}"));
        }
    }
}

#[tokio::test]
async fn mail_goes_through_where_our_certificate_is_known() {
    let door = Identity::make(&["localhost"]).unwrap();
    let known = Identity::make(&["relay"]).unwrap();
    let ca = door.certificate.to_pem().unwrap();
    for backend in BOTH {
        let taken = Arc::default();
        let (port, _server) = demanding(&taken, &door, &known, SslVersion::TLS1_3).await;
        let folder = tempfile::tempdir().unwrap();
        lay_down(folder.path(), &known);
        let lines = format!("{SHOWN}tls_backend = \"{backend}\"");
        let mut config = configuration(folder.path(), port, Some(&ca), &lines);
        config.state_dir = folder.path().join("state");
        config.spool.directory = folder.path().join("spool");
        config.admin = None;
        let service = Service::start(config).await.unwrap();
        let listener = service.address("lan").unwrap();
        let mut device = Device::connect(listener).await.unwrap();
        device.say("EHLO copier").await.unwrap();
        let heard = device.send("a@example.com", &["b@example.com"], common::MESSAGE).await;
        let heard = heard.unwrap().to_string();
        assert!(heard.starts_with("250 2.0.0 "), "{backend}: {heard}");
        assert_eq!(taken.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn a_certificate_that_cannot_be_used_is_told_with_its_key_file_and_the_next_step() {
    let folder = tempfile::tempdir().unwrap();
    let [one, two] = [(); 2].map(|()| Identity::make(&["relay"]).unwrap());
    for backend in BOTH {
        lay_down(folder.path(), &one);
        let lines = format!("{SHOWN}tls_backend = \"{backend}\"");
        let config = configuration(folder.path(), 465, None, &lines);
        let refused = |wanted: [&str; 3]| {
            let said =
                Target::new(&config, &config.mailboxes[0]).map(|_| ()).unwrap_err().to_string();
            assert!(wanted.iter().all(|part| said.contains(part)), "{wanted:?}: {said}");
        };
        let path = |name: &str| folder.path().join(name);
        fs::write(path("client.key"), two.key.private_key_to_pem_pkcs8().unwrap()).unwrap();
        refused(["client_key /", "client.key: the key does not belong to", "; name the key that"]);
        fs::write(path("client.key"), "secret").unwrap();
        refused(["client_key /", "client.key: no private key", "; openssl "]);
        fs::write(path("client.crt"), "").unwrap();
        refused(["client_certificate /", "client.crt: no certificate in PEM form", "; openssl "]);
        fs::remove_file(path("client.crt")).unwrap();
        refused(["client_certificate /", "No such file", "the relay's user must"]);
    }
}

#[test]
fn the_token_endpoint_is_shown_no_certificate() {
    let folder = tempfile::tempdir().unwrap();
    lay_down(folder.path(), &Identity::make(&["relay"]).unwrap());
    let config = configuration(folder.path(), 465, None, SHOWN);
    let smarthost = &config.mailboxes[0].smarthost;
    assert!(smarthost.client.is_some());
    assert!(!client_tls::for_web(smarthost).unwrap().client_auth_cert_resolver.has_certs());
}
