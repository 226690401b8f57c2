//! `smtp-uplift doctor` against a stand-in in which one thing is wrong: it names the step, what is wrong, and
//! the remedy.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;
#[path = "doctor/oauth.rs"]
mod oauth;

use std::{fs, net::SocketAddr, process::Output};

use common::{MAILBOX, PASSWORD, Plan};
use serde_json::Value;
use smtp_uplift::{
    config,
    sandbox::{
        Sandbox,
        scenario::{Scenario, Tls},
    },
    smarthost::{
        Target,
        examination::{self, Outcome},
    },
};
use tempfile::TempDir;
use tokio::{net::TcpSocket, process::Command};

const LOOPBACK: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// A smarthost with its fault, and the relay's configuration in a folder.
struct Practice {
    _sandbox: Sandbox,
    folder: TempDir,
}

impl Practice {
    async fn new(scenario: Scenario, plan: Plan<'_>) -> Self {
        let sandbox = Sandbox::start(LOOPBACK, scenario).await.unwrap();
        let practice = Self { folder: tempfile::tempdir().unwrap(), _sandbox: sandbox };
        let port = practice._sandbox.address().port();
        practice.write(&plan, port, practice._sandbox.certificate());
        practice
    }

    fn write(&self, plan: &Plan<'_>, port: u16, certificate: &[u8]) {
        let text = common::configuration(plan, port, certificate, self.folder.path());
        fs::write(self.folder.path().join("relay.toml"), text).unwrap();
    }

    /// Exit code and output.
    async fn doctor(&self, arguments: &[&str]) -> (i32, String) {
        let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_smtp-uplift"))
            .args(["doctor", "--config"])
            .arg(self.folder.path().join("relay.toml"))
            .args(arguments)
            .output()
            .await
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&stderr), "");
        let said = String::from_utf8(stdout).unwrap();
        assert!(!said.contains(PASSWORD), "{said}");
        (status.code().unwrap(), said)
    }
}

fn fault(lines: &str) -> Scenario {
    Scenario::parse(lines).unwrap()
}

#[tokio::test]
async fn a_running_relay_is_asked_for_its_warnings() {
    let listener = "allow = [\"0.0.0.0/0\"]\nopen_relay = true";
    let house = common::House::build(Plan { listener, ..Plan::default() }).await;
    let admin = house.service.admin().unwrap().to_string();
    let practice =
        Practice::new(Scenario::default(), Plan { admin: &admin, ..Plan::default() }).await;
    let (code, said) = practice.doctor(&[]).await;
    assert_eq!(code, 0, "{said}");
    let warned = "warning  running relay: it answers at its admin address\n         -> listener lan is an OPEN RELAY: ";
    assert!(said.contains(warned), "{said}");
    house.service.stop(std::future::ready(())).await;
    // Where nothing runs there is nothing to tell.
    let (_, said) = practice.doctor(&[]).await;
    assert!(!said.contains("running relay"), "{said}");
}

#[tokio::test]
async fn a_healthy_way_is_in_order_and_the_end_of_passwords_is_told() {
    let practice = Practice::new(Scenario::default(), Plan::default()).await;
    let (code, said) = practice.doctor(&[]).await;
    assert_eq!(code, 0, "{said}");
    for line in [
        "ok       names: localhost: ",
        "ok       tcp: 127.0.0.1:",
        "ok       tls: TLSv1.3/TLS13_AES_256_GCM_SHA384 after STARTTLS",
        "ok       certificate: that of localhost, issued by localhost, good for 36",
        "ok       ehlo: offers AUTH LOGIN XOAUTH2, SIZE 157286400, PIPELINING, 8BITMIME, SMTPUTF8",
        "warning  basic authentication: the mailbox logs in with a password",
        "off by default at the end of December 2026",
        "ok       auth: logged in as scanner@example.com",
        "ok       mail from scanner@example.com: 250 2.1.0",
        "All steps are in order. 1 warning. Whether senders are allowed shows only with a real message",
    ] {
        assert!(said.contains(line), "{line:?} is not in\n{said}");
    }
    let (code, said) = practice.doctor(&["--send-test", "it@example.com"]).await;
    assert!(
        code == 0 && said.contains("ok       message to it@example.com: taken: 250 "),
        "{said}"
    );
    let message = practice._sandbox.deliveries().pop().unwrap();
    let text = String::from_utf8(message.data.to_vec()).unwrap();
    assert!(text.starts_with("From: <scanner@example.com>\r\nTo: <it@example.com>\r\n"), "{text}");
}

#[tokio::test]
async fn each_planted_fault_is_named_with_its_remedy() {
    let login = |reply: &str| fault(&format!("[[fault]]\nstage = \"auth\"\nreply = {reply:?}"));
    let scenario = Scenario::default;
    let plan = Plan::default;
    let token = "[mailbox.oauth]\ntoken = \"e30.eyJhdWQiOiJodHRwczovL291dGxvb2sub2ZmaWNlMzY1LmNvbSIsImV4cCI6MTAwMH0.x\"";
    for (scenario, plan, arguments, step, found, remedy) in [
        (
            fault("starttls = false"),
            plan(),
            &[][..],
            "starttls",
            "offers no STARTTLS",
            "SMTP inspection",
        ),
        (
            Scenario { tls: Tls::TooOld, ..scenario() },
            plan(),
            &[],
            "tls",
            "a TLS version as new as",
            "has to be updated",
        ),
        (
            Scenario { tls: Tls::OnPremises, ..scenario() },
            plan(),
            &[],
            "tls",
            "shares no key exchange",
            "tls_backend = \"native\"",
        ),
        (
            fault("auth = []"),
            plan(),
            &[],
            "auth",
            "offers no login that this mailbox may use",
            "an MX name",
        ),
        (
            fault(
                "[[fault]]\nstage = \"connect\"\nreply = \"421 4.7.500 Server busy. Please try again later from [1.2.3.4].\"",
            ),
            plan(),
            &[],
            "greeting",
            "421 4.7.500",
            "",
        ),
        (
            fault("[[fault]]\nstage = \"connect\"\nclose = true"),
            plan(),
            &[],
            "greeting",
            "closed by the smarthost",
            "firewall",
        ),
        (
            login(
                "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant. Visit https://aka.ms/smtp_auth_disabled for more information.",
            ),
            plan(),
            &[],
            "auth",
            "whole organisation",
            "-SmtpClientAuthenticationDisabled $false",
        ),
        (
            login(
                "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox. Visit https://aka.ms/smtp_auth_disabled for more information.",
            ),
            plan(),
            &[],
            "auth",
            "535 5.7.139",
            "-SmtpClientAuthenticationDisabled $false",
        ),
        (
            login("535 5.7.139 Authentication unsuccessful, the user credentials were incorrect."),
            plan(),
            &[],
            "auth",
            "535 5.7.139",
            "password",
        ),
        (
            login(
                "535 5.7.139 Authentication unsuccessful, user is locked by your organization's security defaults policy. Contact your administrator.",
            ),
            plan(),
            &[],
            "auth",
            "535 5.7.139",
            "security defaults",
        ),
        (
            login("550 5.7.30 Basic authentication is not supported for Client Submission."),
            plan(),
            &[],
            "auth",
            "550 5.7.30",
            "xoauth2",
        ),
        (login("535 5.7.3 Authentication unsuccessful"), plan(), &[], "auth", "535 5.7.3", ""),
        (scenario(), Plan { mailbox: token, ..plan() }, &[], "token", "ended ", "renews the token"),
        (
            scenario(),
            Plan {
                mailbox: "password = { file = \"password\" }\nsend_as = [\"reply-550-5.7.60@example.com\"]",
                ..plan()
            },
            &[],
            "mail from reply-550-5.7.60@example.com",
            "From address that this mailbox may not use",
            "Add-RecipientPermission",
        ),
        (
            scenario(),
            plan(),
            &["--send-test", "reply-554-5.2.252-dot@example.com"][..],
            "message to reply-554-5.2.252-dot@example.com",
            "554 5.2.252",
            "Add-RecipientPermission",
        ),
        (
            fault(
                "[[fault]]\nstage = \"dot\"\nreply = \"430 4.2.0 STOREDRV; mailbox logon failure; Mailbox server is offline\"",
            ),
            plan(),
            &["--send-test", "it@example.com"],
            "message to it@example.com",
            "430 4.2.0",
            "",
        ),
        (
            scenario(),
            Plan { smarthost: "tls = \"implicit\"", ..plan() },
            &[],
            "tls",
            "is not TLS",
            "587 takes starttls",
        ),
    ] {
        let practice = Practice::new(scenario, plan).await;
        let (code, said) = practice.doctor(arguments).await;
        let failed = said.lines().position(|line| line.starts_with(&format!("FAILED   {step}: ")));
        let lines: Vec<&str> = said.lines().collect();
        let at = failed.unwrap_or_else(|| panic!("{step} did not fail in\n{said}"));
        assert!(lines[at].contains(found), "{found:?} is not in {}", lines[at]);
        let steps = lines[at + 1..].iter().take_while(|line| line.starts_with("         -> "));
        let remedies = steps.copied().collect::<Vec<_>>().join("\n");
        assert!(!remedies.is_empty() && remedies.contains(remedy), "{remedy:?} is not in\n{said}");
        assert_eq!(code, 1, "{said}");
    }
}

#[tokio::test]
async fn whose_certificate_it_was_is_told_where_somebody_opens_the_connection() {
    let practice = Practice::new(Scenario::default(), Plan::default()).await;
    let port = practice._sandbox.address().port();
    let file = practice.folder.path().join("relay.toml");
    let text = fs::read_to_string(&file).unwrap().replace("ca_file", "# ca_file");
    fs::write(&file, text).unwrap();
    let (code, said) = practice.doctor(&["--json"]).await;
    let document: Value = serde_json::from_str(&said).unwrap();
    let last = document["steps"].as_array().unwrap().last().unwrap();
    assert_eq!(
        (code, &last["step"], &last["outcome"]),
        (1, &"certificate".into(), &"failed".into())
    );
    let found = last["found"].as_str().unwrap();
    assert!(
        found.contains("that of localhost, issued by localhost, was issued by nobody"),
        "{found}"
    );
    assert!(last["remedy"][0].as_str().unwrap().contains("TLS inspection"), "{last}");
    assert_eq!(document["complete"], false);
    assert!(port > 0);
}

#[tokio::test]
async fn a_port_that_refuses_is_told_from_one_that_is_filtered() {
    let practice = Practice::new(Scenario::default(), Plan::default()).await;
    // Nobody accepts: once the queue is full the kernel drops what comes, as a firewall does.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(LOOPBACK).unwrap();
    let address = socket.local_addr().unwrap();
    practice.write(&Plan::default(), address.port(), practice._sandbox.certificate());
    let (code, said) = practice.doctor(&[]).await;
    assert!(
        code == 1 && said.contains("FAILED   tcp: ") && said.contains("-> Refused: "),
        "{said}"
    );

    let listener = socket.listen(1).unwrap();
    let mut waiting = Vec::new();
    loop {
        let next = TcpSocket::new_v4().unwrap().connect(address);
        match tokio::time::timeout(std::time::Duration::from_millis(300), next).await {
            Ok(connected) => waiting.push(connected.unwrap()),
            Err(_) => break,
        }
    }
    let (code, said) = practice.doctor(&[]).await;
    assert!(code == 1 && said.contains("no answer within 5 s"), "{said}");
    assert!(
        said.contains("-> Nothing answers, not even with a refusal: a firewall drops it."),
        "{said}"
    );
    drop((listener, waiting));
}

#[tokio::test]
async fn a_name_without_addresses_is_told() {
    let practice = Practice::new(Scenario::default(), Plan::default()).await;
    let mut config = config::load(&practice.folder.path().join("relay.toml")).unwrap().config;
    let mut target = Target::new(&config, &config.mailboxes[0]).unwrap();
    // Looking a name up would ask somebody outside; the empty one asks nobody.
    config.smarthost.host.clear();
    target.smarthost = config.smarthost;
    let mut findings = Vec::new();
    let senders = [MAILBOX.to_owned()];
    let complete =
        examination::examine(&mut target, &senders, None, &mut |finding| findings.push(finding))
            .await;
    assert!(!complete && findings.len() == 2, "{findings:?}");
    assert_eq!((findings[1].step.as_str(), findings[1].outcome), ("names", Outcome::Failed));
    assert!(findings[1].remedy[0].contains("DNS"), "{findings:?}");
}

#[tokio::test]
async fn what_cannot_be_asked_is_said_at_once() {
    let practice = Practice::new(Scenario::default(), Plan::default()).await;
    for (arguments, code, said) in [
        (&["--send-test", "nobody"][..], 64, "--send-test \"nobody\" is not an address"),
        (&["--config", "nowhere.toml"], 78, "nowhere.toml: the configuration cannot be read"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_smtp-uplift"));
        command.arg("doctor");
        if arguments[0] != "--config" {
            command.arg("--config").arg(practice.folder.path().join("relay.toml"));
        }
        let output = command.args(arguments).output().await.unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert!(stderr.contains(said), "{stderr}");
    }
}
