//! `[smarthost]` and `[mailbox.smarthost]`: what a mailbox has of its own, and what it has from all.

use std::time::Duration;

use smtp_uplift::config::{Smarthost, SmarthostTls, TlsBackend, TlsMin};

use super::{accepted, effective::written_back, folder, odd, parse_in, refused, with};

/// Every key in the first section, and lines for a mailbox's own.
fn overridden(own: &str) -> String {
    let mailbox = format!("[mailbox.smarthost]\n{own}");
    with(
        "",
        "",
        &mailbox,
        "[smarthost]\nhost = \"mx.office.test\"\nport = 25\ntls = \"implicit\"\ntls_min = \"1.3\"\n\
         tls_backend = \"native\"\nca_file = \"ca.pem\"\nreplies_file = \"replies.toml\"\nlease_wait = \"2s\"\n\
         client_certificate = \"client.crt\"\nclient_key = \"client.key\"",
    )
}

#[test]
fn each_key_stands_for_itself() {
    let folder = folder();
    let read = |own: &str| {
        let mailboxes = parse_in(&folder, &overridden(own)).unwrap_or_else(|it| panic!("{it}"));
        mailboxes.config.mailboxes[0].smarthost.clone()
    };
    let base = read("");
    assert_eq!((base.host.as_str(), base.port), ("mx.office.test", 25));
    let client = base.client.clone().unwrap();
    assert!(
        client.certificate.ends_with("client.crt") && client.private_key.ends_with("client.key")
    );
    let but = |change: fn(&mut Smarthost)| {
        let mut smarthost = base.clone();
        change(&mut smarthost);
        smarthost
    };
    for (own, wanted) in [
        ("host = \"other.test\"", but(|it| it.host = "other.test".into())),
        ("port = 587", but(|it| it.port = 587)),
        ("tls = \"starttls\"", but(|it| it.tls = SmarthostTls::StartTls)),
        (
            "host = \"::1\"\ntls = \"none\"",
            but(|it| (it.host, it.tls) = ("::1".into(), SmarthostTls::None)),
        ),
        ("tls_min = \"1.2\"", but(|it| it.tls_min = TlsMin::V1_2)),
        ("tls_backend = \"rustls\"", but(|it| it.tls_backend = TlsBackend::Rustls)),
        (
            "ca_file = \"pw\"",
            but(|it| {
                it.ca_file.as_mut().unwrap().set_file_name("pw");
            }),
        ),
        (
            "replies_file = \"pw\"",
            but(|it| {
                it.replies_file.as_mut().unwrap().set_file_name("pw");
            }),
        ),
        ("lease_wait = \"9s\"", but(|it| it.lease_wait = Duration::from_secs(9))),
        (
            "client_certificate = \"app.crt\"\nclient_key = \"client.key\"",
            but(|it| {
                it.client.as_mut().unwrap().certificate.set_file_name("app.crt");
            }),
        ),
    ] {
        std::fs::copy(folder.path().join("client.crt"), folder.path().join("app.crt")).unwrap();
        assert_eq!(read(own), wanted, "{own}");
        let effective = written_back(&folder, &overridden(own));
        assert!(effective.contains("\n[mailbox.smarthost]\n"), "{effective}");
    }
    let effective = written_back(&folder, &overridden(""));
    assert!(!effective.contains("[mailbox.smarthost]"), "{effective}");
}

/// Microsoft's connector relay and Direct Send: the MX name on port 25, no login, no limits.
#[test]
fn a_mailbox_may_go_out_by_the_connector_beside_one_that_logs_in() {
    let loaded = accepted(&with(
        "",
        "",
        "",
        "[[mailbox]]\naddress = \"devices@office.test\"\nauth = \"none\"\n[mailbox.smarthost]\n\
         host = \"office-test.mail.protection.outlook.com\"\nport = 25",
    ));
    assert!(odd(&loaded).is_empty(), "{:?}", loaded.warnings);
    let [first, second] = &loaded.config.mailboxes[..] else { panic!("two") };
    assert_eq!(
        (first.smarthost.host.as_str(), first.messages_per_minute),
        ("smtp.office365.com", 28)
    );
    assert_eq!((second.smarthost.port, second.messages_per_minute), (25, 0));
    assert_eq!(second.smarthost.tls, SmarthostTls::StartTls);
    assert!(!second.smarthost.is_exchange_online());
}

#[test]
#[rustfmt::skip] // a table, a row a line
fn what_does_not_fit_is_refused() {
    for (own, wanted) in [
        ("host = \"127.0.0.1\"\nport = 0", "11: mailbox.smarthost.port: 0 is not between 1 and 65535; for example port = 25"),
        ("tls = \"none\"", "10: mailbox.smarthost.tls: mail and password would go to mx.office.test in the clear: none is for loopback addresses only; "),
        ("host = \"no host\"", "10: mailbox.smarthost.host: \"no host\" is not a name or an address; "),
        ("tls_min = \"1.1\"", "10: mailbox.smarthost.tls_min: the way to the smarthost takes nothing older than TLS 1.2; "),
        ("client_certificate = \"client.crt\"", "9: mailbox.smarthost.client_key: missing; for example client_key = \"certs/client.key\""),
        ("client_key = \"client.key\"", "9: mailbox.smarthost.client_certificate: missing; for example client_certificate = "),
        ("client_certificate = \"client.crt\"\nclient_key = \"pw\"", "11: mailbox.smarthost.client_key: no private key without a passphrase in PEM form; "),
        ("client_certificate = \"ca.pem\"\nclient_key = \"client.key\"", "10: mailbox.smarthost.client_certificate: "),
        ("prt = 25", "10: mailbox.smarthost.prt: unknown key; did you mean port?"),
    ] {
        let problems = refused(&overridden(own));
        assert_eq!(problems.len(), 1, "{problems:#?}");
        assert!(problems[0].contains(wanted), "{wanted} in {}", problems[0]);
    }
    // The rule holds too where the host alone is the mailbox's own.
    let problems = refused(&with("", "", "[mailbox.smarthost]\nhost = \"mx.office.test\"", "[smarthost]\nhost = \"localhost\"\ntls = \"none\""));
    assert_eq!(problems.len(), 1, "{problems:#?}");
    assert!(problems[0].starts_with("10: mailbox.smarthost.host: mail and password would go to mx.office.test in the clear"), "{problems:?}");
}

#[test]
fn exchange_online_is_known_by_its_names() {
    let host = |host: &str| {
        let text = with("", "", "", &format!("[smarthost]\nhost = \"{host}\""));
        accepted(&text).config.smarthost.is_exchange_online()
    };
    for name in [
        "smtp.office365.com",
        "SMTP.Office365.com",
        "smtp-legacy.office365.com",
        "smtp.office365.us",
    ] {
        assert!(host(name), "{name}");
    }
    for name in [
        "smtp-hve.office365.com",
        "smtp.hve.mx.microsoft",
        "office-test.mail.protection.outlook.com",
        "notoffice365.com",
        "127.0.0.1",
    ] {
        assert!(!host(name), "{name}");
    }
}

#[test]
fn a_login_is_one_mailbox_at_each_smarthost() {
    let second = |lines: &str| {
        let username = "username = \"SCANNER@office.test\"";
        with(
            "",
            "",
            "",
            &format!("[[mailbox]]\naddress = \"second@office.test\"\n{username}\n{lines}"),
        )
    };
    let password = "password = { file = \"pw\" }";
    let problems = refused(&second(password));
    assert_eq!(problems.len(), 1, "{problems:#?}");
    assert!(problems[0].starts_with("12: mailbox.username: another mailbox logs in as "));
    accepted(&second("auth = \"none\""));
    accepted(&second(&format!("{password}\n[mailbox.smarthost]\nhost = \"smtp.office.test\"")));
}
