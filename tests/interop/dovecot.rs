//! A Dovecot as the smarthost, which asks the identity platform's stand-in about each token. What it takes it hands
//! on to the stand-in for Exchange Online.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
};

use smtp_uplift::{
    sandbox::{
        Sandbox,
        device::Device,
        identity::{Mistake, Tenant, TokenIssuer},
        scenario::Scenario,
    },
    transport::certificate::Identity,
};
use tempfile::TempDir;

use crate::{
    common::{MAILBOX, MESSAGE},
    group::{self, Group, OFFICE},
    needs::{self, Need, command},
    office::{FROM, Relay},
};

/// Debian's user `nobody`, to whom the mailboxes belong that nobody reads.
const NOBODY: u32 = 65_534;
const LOOPBACK: [u8; 4] = [127, 0, 0, 1];

/// A running Dovecot. Dropping it ends all of its processes.
struct Dovecot {
    /// It ends before its folder goes.
    group: Group,
    folder: TempDir,
    port: u16,
    certificate: Vec<u8>,
}

impl Dovecot {
    fn needs() -> [Need; 2] {
        [
            (
                "command -v dovecot && test -e /usr/lib/dovecot/submission-login",
                "Dovecot is not installed: apt-get install dovecot-core dovecot-submissiond",
            ),
            ("test $(id -u) = 0", "only root can start Dovecot: run the tests as root"),
        ]
        .map(|(probe, otherwise)| Need { probe: probe.to_owned(), otherwise })
    }

    /// Starts one that asks `issuer` about tokens, and hands mail on to `office`.
    fn start(issuer: &TokenIssuer, office: SocketAddr) -> Self {
        // A port that is free now may be taken in a moment.
        let started = (0..5).find_map(|_| Self::start_on_a_free_port(issuer, office));
        started.expect("every port was taken meanwhile")
    }

    fn start_on_a_free_port(issuer: &TokenIssuer, office: SocketAddr) -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = tempfile::tempdir().unwrap();
        let certificate = configure(folder.path(), port, &issuer.introspection_url(), office);
        let config = folder.path().join("dovecot.conf");
        let group = Group::start(command("dovecot").args(["-F", "-c"]).arg(config));
        let dovecot = Self { folder, group, port, certificate };
        group::greets("Dovecot", port, OFFICE, || dovecot.log()).then_some(dovecot)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

/// Writes all that Dovecot reads; returns its certificate.
fn configure(folder: &Path, port: u16, introspection: &str, office: SocketAddr) -> Vec<u8> {
    // Dovecot's processes run as several users, who all have to get in.
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(folder.join("mail")).unwrap();
    chown(folder.join("mail"), Some(NOBODY), Some(NOBODY)).unwrap();
    let identity = Identity::make(&["localhost"]).unwrap();
    let certificate = identity.certificate.to_pem().unwrap();
    let write = |name: &str, text: &[u8]| fs::write(folder.join(name), text).unwrap();
    write("own.crt", &certificate);
    write("own.key", &identity.key.private_key_to_pem_pkcs8().unwrap());
    let config = DOVECOT
        .replace("ROOT", folder.to_str().unwrap())
        .replace("OFFICE", &office.port().to_string())
        .replace("PORT", &port.to_string());
    write("dovecot.conf", config.as_bytes());
    write("oauth2.conf", OAUTH2.replace("URL", introspection).as_bytes());
    certificate
}

const DOVECOT: &str = "\
base_dir = ROOT/run
state_dir = ROOT/state
log_path = ROOT/log
auth_verbose = yes
auth_failure_delay = 0
auth_mechanisms = xoauth2
protocols = submission
listen = 127.0.0.1
hostname = office.example
ssl = required
ssl_cert = <ROOT/own.crt
ssl_key = <ROOT/own.key
ssl_min_protocol = TLSv1.2
mail_location = maildir:ROOT/mail/%u
mail_uid = 65534
mail_gid = 65534
submission_relay_host = 127.0.0.1
submission_relay_port = OFFICE
passdb {
  driver = oauth2
  mechanisms = xoauth2
  args = ROOT/oauth2.conf
}
userdb {
  driver = static
  args = home=ROOT/mail/%u allow_all_users=yes
}
service submission-login {
  inet_listener submission {
    port = PORT
  }
}
";

const OAUTH2: &str = "\
introspection_url = URL
introspection_mode = post
username_attribute = username
active_attribute = active
active_value = true
scope = SMTP.SendAsApp
";

/// The relay, with Dovecot between it and the stand-in.
struct Way {
    issuer: TokenIssuer,
    office: Sandbox,
    dovecot: Dovecot,
    relay: Relay,
}

impl Way {
    async fn new(mistake: Option<Mistake>) -> Self {
        let issuer = TokenIssuer::start(Tenant { mistake, ..Tenant::default() }).await.unwrap();
        // What Dovecot hands on needs no login; it would use extensions that the stand-in only offers.
        let scenario = Scenario {
            auth: Vec::new(),
            starttls: false,
            hide: ["CHUNKING", "BINARYMIME"].map(str::to_owned).to_vec(),
            ..Scenario::default()
        };
        let office = Sandbox::start((LOOPBACK, 0).into(), scenario).await.unwrap();
        let dovecot = Dovecot::start(&issuer, office.address());
        let mailbox = format!(
            "[mailbox.oauth]\nflow = \"client-credentials\"\ntenant = {:?}\nclient_id = {:?}\n\
             client_secret = \"rehearsal\"\ntoken_url = {:?}",
            issuer.tenant().tenant,
            issuer.tenant().client_id,
            issuer.token_url(),
        );
        let relay = Relay::start(dovecot.port, &dovecot.certificate, &mailbox).await;
        Self { issuer, office, dovecot, relay }
    }

    async fn send(&self) -> String {
        let mut device = Device::connect(self.relay.address("lan")).await.unwrap();
        device.say("EHLO copier").await.unwrap();
        device.send(FROM, &["copier-1@office.example"], MESSAGE).await.unwrap().to_string()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dovecot_takes_the_token_that_the_relay_asked_for() {
    if !needs::met(&Dovecot::needs(), "XOAUTH2 with Dovecot as the smarthost") {
        return;
    }
    let way = Way::new(None).await;
    let said = way.send().await;
    assert!(said.starts_with("250 2.0.0 "), "{said}: {}", way.dovecot.log());
    let arrived = way.office.deliveries().pop().unwrap();
    assert_eq!(arrived.recipients, ["copier-1@office.example"]);
    let text = String::from_utf8(arrived.data.to_vec()).unwrap();
    assert!(text.ends_with("\r\n\r\nline\r\n..stuffed\r\n"), "{text}");
    let log = way.dovecot.log();
    assert!(log.contains(&format!("Login: user=<{MAILBOX}>, method=XOAUTH2")), "{log}");
    assert_eq!(way.issuer.requests(), 1);

    let group = way.dovecot.group.id.clone();
    assert!(group::alive(&group) > 1);
    drop(way);
    assert_eq!(group::alive(&group), 0, "Dovecot leaves processes behind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_dovecot_refuses_is_asked_for_anew_once() {
    if !needs::met(&Dovecot::needs(), "a token that Dovecot refuses") {
        return;
    }
    let way = Way::new(Some(Mistake::MissingRole)).await;
    // Dovecot says so in a challenge (base64 of JSON), and its 535 only after an empty line.
    for _ in 0..2 {
        let said = way.send().await;
        assert_eq!(said, "451 4.7.0 waiting for the relay's operator: the mailbox cannot log in");
    }
    let refused = way.dovecot.log().matches("oauth2 failed").count();
    assert_eq!((way.issuer.requests(), refused), (2, 2), "{}", way.dovecot.log());
    let seen = way.relay.metric(
        "upstream_replies_total{class=\"auth-config\",code=\"535\",enhanced=\"5.7.8\",mailbox=\"scanner@example.com\",\
         rule=\"credentials-invalid\",stage=\"auth\"}",
    );
    assert!(seen > 0.0, "{}", way.relay.service.metrics().render());
}
