//! `smtp-uplift healthcheck`, against relays and against what is none.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    path::Path,
    thread,
};

use smtp_uplift::sandbox::device::Device;
use tempfile::TempDir;
use tokio::net::TcpSocket;

use super::{
    common::{House, MESSAGE, Plan},
    filters, smtp_uplift, told,
};

/// Asks with a configuration that holds nothing but the admin address: no secret has to be there.
fn ask(folder: &TempDir, admin: &str) -> String {
    let file = folder.path().join("relay.toml");
    fs::write(
        &file,
        format!("[admin]\naddress = \"{admin}\"\n[[mailbox]]\npassword = {{ file = \"none\" }}\n"),
    )
    .unwrap();
    told(smtp_uplift().args(["healthcheck", "--config"]).arg(&file))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_whose_mailboxes_cannot_send_is_not_ready() {
    let folder = tempfile::tempdir().unwrap();
    let house = House::build(Plan { mailbox: "password = \"wrong\"", ..Plan::default() }).await;
    assert_eq!(
        ask(&folder, &house.service.admin().unwrap().to_string()),
        "exit code 1\n--- stderr\nsmtp-uplift: not ready: no mailbox can send: scanner@example.com: \
         its login was refused\n"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_is_ready_until_it_drains() {
    let folder = tempfile::tempdir().unwrap();
    let House { service, sandbox, folder: home } = House::new().await;
    let admin = service.admin().unwrap();
    let ready = "exit code 0\n--- stdout\nready\n";
    assert_eq!(ask(&folder, &admin.to_string()), ready);
    // Anywhere means here, too.
    assert_eq!(ask(&folder, &format!("0.0.0.0:{}", admin.port())), ready);
    assert_eq!(ask(&folder, &format!("[::]:{}", admin.port())), ready);

    let mut busy = Device::connect(service.address("lan").unwrap()).await.unwrap();
    busy.say("EHLO x").await.unwrap();
    for line in ["MAIL FROM:<a@x>", "RCPT TO:<b@x>", "DATA"] {
        busy.say(line).await.unwrap();
    }
    let mut idle = Device::connect(service.address("lan").unwrap()).await.unwrap();
    let asked = async {
        // The relay says goodbye to those who do nothing as soon as it drains.
        assert_eq!(idle.read().await.unwrap().code.get(), 421);
        let said = tokio::task::block_in_place(|| ask(&folder, &admin.to_string()));
        busy.write(MESSAGE).await.unwrap();
        busy.say(".").await.unwrap();
        said
    };
    let ((), said) = tokio::join!(service.stop(std::future::pending()), asked);
    assert_eq!(said, "exit code 1\n--- stderr\nsmtp-uplift: not ready: draining\n");
    drop((sandbox, home));
}

/// A server that gives everybody the same answer; with none it is silent.
fn answering(answer: &'static str) -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut stream = socket.accept().unwrap().0;
        let _ = stream.read(&mut [0; 1024]);
        let _ = stream.write_all(answer.as_bytes());
        // Until the other side has had enough.
        while answer.is_empty() && stream.read(&mut [0; 1024]).is_ok_and(|read| read > 0) {}
    });
    address
}

#[test]
fn each_way_not_to_be_ready_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let _filters = filters(folder.path());
    let said = [
        "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 21\r\n\r\nspool\nis\u{1b}[31m broken\n",
        "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 900\r\n\r\nmore than a sentence",
        "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        "220 relay.example ESMTP\r\n",
        "HTTP/1.1 200 O",
        "",
    ]
    .map(|answer| ask(&folder, &answering(answer).to_string()));
    insta::assert_snapshot!("healthcheck-not-ready", said.join("\n"));
}

#[tokio::test]
async fn where_nobody_listens_there_is_no_relay() {
    let folder = tempfile::tempdir().unwrap();
    let _filters = filters(folder.path());
    // Bound, so that nobody else comes to listen there.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let address = socket.local_addr().unwrap();
    insta::assert_snapshot!(ask(&folder, &address.to_string()), @r"
    exit code 1
    --- stderr
    smtp-uplift: not ready: nothing listens on 127.0.0.1:PORT (Connection refused (os error 111)); is the relay running?
    ");
}

#[test]
fn without_an_address_there_is_nobody_to_ask() {
    let folder = tempfile::tempdir().unwrap();
    let _filters = filters(folder.path());
    let off = ask(&folder, "");
    insta::assert_snapshot!(off, @r#"
    exit code 1
    --- stderr
    smtp-uplift: FOLDER/relay.toml: [admin] has no fixed address to ask; write address = "127.0.0.1:PORT" there
    "#);
    assert_eq!(ask(&folder, "127.0.0.1:0"), off);
    insta::assert_snapshot!(ask(&folder, "localhost"), @r#"
    exit code 1
    --- stderr
    smtp-uplift: FOLDER/relay.toml:2: admin.address: "localhost" is not an address with a port; for example address = "127.0.0.1:PORT", or "" for none
    "#);
    let none = Path::new("/nowhere/smtp-uplift.toml");
    insta::assert_snapshot!(told(smtp_uplift().args(["healthcheck", "--config"]).arg(none)), @r"
    exit code 1
    --- stderr
    smtp-uplift: /nowhere/smtp-uplift.toml: the configuration cannot be read: No such file or directory (os error 2); name another with --config, or let smtp-uplift init write one
    ");
}
