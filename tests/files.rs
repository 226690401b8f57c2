//! Files of the relay that change while it runs, and files that it may not read.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use std::{
    fs,
    io::Write as _,
    net::{SocketAddr, TcpStream},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    process::Command,
    time::Duration,
};

use common::{House, MESSAGE, Plan};
use openssl::{
    ssl::{SslConnector, SslMethod, SslVerifyMode},
    x509::X509,
};
use smtp_uplift::transport::certificate::Identity;
use tokio::time::Instant;

/// The certificate that a listener with implicit TLS shows.
async fn shown(address: SocketAddr) -> X509 {
    let handshake = move || {
        let mut connector = SslConnector::builder(SslMethod::tls()).unwrap();
        connector.set_verify(SslVerifyMode::NONE);
        let stream = TcpStream::connect(address).unwrap();
        let mut session = connector.build().connect("relay", stream).unwrap();
        let certificate = session.ssl().peer_certificate().unwrap();
        let _ = session.shutdown();
        certificate
    };
    tokio::task::spawn_blocking(handshake).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_certificate_is_shown_and_a_bad_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("relay.crt"), folder.path().join("relay.key"));
    let put_certificate = |of: &Identity| {
        fs::write(&certificate, of.certificate.to_pem().unwrap()).unwrap();
    };
    let put_key = |of: &Identity| {
        fs::write(&key, of.key.private_key_to_pem_pkcs8().unwrap()).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    };
    let (first, second) = (Identity::make(&["one"]).unwrap(), Identity::make(&["two"]).unwrap());
    put_certificate(&first);
    put_key(&first);
    let house = House::build(Plan {
        listener: "tls = \"implicit\"",
        more: &format!("[tls]\ncertificate = {certificate:?}\nprivate_key = {key:?}"),
        ..Plan::default()
    })
    .await;
    assert_eq!(shown(house.address()).await, first.certificate);

    // Two files cannot be replaced at once: in between they are no pair.
    put_certificate(&second);
    while house.metric("config_reloads_total{outcome=\"failed\"}") == 0.0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(shown(house.address()).await, first.certificate);
    put_key(&second);
    let began = Instant::now();
    while shown(house.address()).await != second.certificate {
        assert!(began.elapsed() < Duration::from_secs(20), "the new certificate is not shown");
    }
    assert_eq!(house.metric("config_reloads_total{outcome=\"ok\"}"), 1.0);
}

#[tokio::test]
async fn a_login_that_was_added_counts_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let users = folder.path().join("users.txt");
    fs::write(&users, "# nobody yet\n").unwrap();
    let house = House::build(Plan {
        listener: "auth = \"offer\"\nauth_without_tls = true",
        more: &format!("[auth]\nusers_file = {users:?}"),
        ..Plan::default()
    })
    .await;
    let mut device = house.device().await;
    // NUL scan NUL geheim
    let login = "AUTH PLAIN AHNjYW4AZ2VoZWlt";
    assert_eq!(device.say(login).await.unwrap().code.get(), 535);
    let mut file = fs::OpenOptions::new().append(true).open(&users).unwrap();
    writeln!(file, "scan:{}", common::hash("geheim")).unwrap();
    assert_eq!(device.say(login).await.unwrap().code.get(), 235);
    assert!(device.send("a@x", &["b@x"], MESSAGE).await.unwrap().code.is_positive());
}

#[test]
fn a_file_that_may_not_be_read_is_named_with_what_is_in_the_way() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can become somebody else");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    open(folder.path(), 0o755);
    let program = folder.path().join("smtp-uplift");
    fs::copy(env!("CARGO_BIN_EXE_smtp-uplift"), &program).unwrap();
    let closed = folder.path().join("closed");
    fs::create_dir(&closed).unwrap();
    open(&closed, 0o700);
    for file in ["password", "closed/users.txt"] {
        fs::write(folder.path().join(file), "x").unwrap();
        open(&folder.path().join(file), 0o640);
    }
    let configuration = folder.path().join("relay.toml");
    fs::write(
        &configuration,
        "hostname = \"relay.example\"\n[auth]\nusers_file = \"closed/users.txt\"\n\
         [[listener]]\nname = \"lan\"\naddress = \"127.0.0.1:0\"\n\
         [[mailbox]]\naddress = \"a@example.com\"\npassword = { file = \"password\" }\n[delivery]\nmode = \"stream\"\n",
    )
    .unwrap();
    let checked = Command::new(&program)
        .args(["check", "--config"])
        .arg(&configuration)
        .uid(65_534)
        .gid(65_534)
        .output()
        .unwrap();
    let said = String::from_utf8(checked.stderr).unwrap();
    let here = folder.path().display();
    assert_eq!(checked.status.code(), Some(78), "{said}");
    for line in [
        format!(
            "relay.toml:3: auth.users_file: {here}/closed/users.txt cannot be read: permission denied: {here}/closed has \
             mode 0700 and belongs to user 0 and group 0, the relay runs as user 65534 and group 65534; "
        ),
        format!(
            "relay.toml:9: mailbox.password: {here}/password cannot be read: permission denied: it has mode 0640 and \
             belongs to user 0 and group 0, the relay runs as user 65534 and group 65534; "
        ),
    ] {
        assert!(said.contains(&line), "{line}\nis not in\n{said}");
    }
}
