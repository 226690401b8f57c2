//! A mailbox with OAuth: doctor names each mistake that people make on the way to a token and with it.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
};

use common::{MAILBOX, Plan};
use serde_json::Value;
use smtp_uplift::{
    sandbox::{
        Sandbox,
        identity::{Authority, Mistake, Tenant},
        scenario::Scenario,
    },
    transport::certificate::Identity,
};
use tokio::process::Command;

use crate::{LOOPBACK, Practice, common};

/// What the sandbox' application is made with.
const SECRET: &str = "rehearsal";
const BY_SECRET: &str =
    "client_secret = { file = \"client-secret\" }\nclient_secret_expires = 2099-12-31";
const BY_CERTIFICATE: &str = "certificate = \"app.crt\"\nprivate_key = { file = \"app.key\" }";

/// The lines of a mailbox that gets its tokens there.
fn oauth(authority: &Authority, proof: &str) -> String {
    let Tenant { tenant, client_id, .. } = authority.tenant();
    let url = authority.token_url();
    format!(
        "[mailbox.oauth]\nflow = \"client-credentials\"\ntenant = {tenant:?}\nclient_id = {client_id:?}\n\
         token_url = {url:?}\n{proof}"
    )
}

fn write(file: &Path, text: impl AsRef<[u8]>) {
    fs::write(file, text).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
}

/// A relay that gets its tokens from a tenant, with what it proves itself with.
async fn practice(tenant: Tenant, proof: &str) -> Practice {
    with_certificate(tenant, proof, &Identity::make(&["relay"]).unwrap()).await
}

async fn with_certificate(tenant: Tenant, proof: &str, app: &Identity) -> Practice {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("client-secret"), SECRET);
    let certificate = folder.path().join("app.crt");
    write(&certificate, app.certificate.to_pem().unwrap());
    write(&folder.path().join("app.key"), app.key.private_key_to_pem_pkcs8().unwrap());
    let tenant = Tenant { certificate: Some(certificate), ..tenant };
    let scenario = Scenario { identity: Some(tenant), ..Scenario::default() };
    let sandbox = Sandbox::start(LOOPBACK, scenario).await.unwrap();
    let practice = Practice { folder, _sandbox: sandbox };
    let mailbox = oauth(practice._sandbox.authority().unwrap(), proof);
    let plan = Plan { mailbox: &mailbox, ..Plan::default() };
    practice.write(&plan, practice._sandbox.address().port(), practice._sandbox.certificate());
    practice
}

impl Practice {
    /// Exit code and output, in which no secret is.
    async fn examined(&self) -> (i32, String) {
        let (code, said) = self.doctor(&[]).await;
        assert!(!said.contains(&format!("\"{SECRET}\"")) && !said.contains("eyJ"), "{said}");
        (code, said)
    }

    /// What stands in the line of a step that fails, and its remedies.
    async fn failure(&self, step: &str) -> (String, Vec<String>) {
        let (code, said) = self.examined().await;
        assert_eq!(code, 1, "{said}");
        line(&said, &format!("FAILED   {step}: "))
    }
}

/// The rest of a line that begins so, and the remedies below it.
#[track_caller]
fn line(said: &str, start: &str) -> (String, Vec<String>) {
    let mut lines = said.lines().skip_while(|line| !line.starts_with(start));
    let found = lines.next().unwrap_or_else(|| panic!("{start:?} is not in\n{said}"));
    let remedies = lines.map_while(|line| line.strip_prefix("         -> ")).map(str::to_owned);
    (found[start.len()..].to_owned(), remedies.collect())
}

#[track_caller]
fn says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text}");
    }
}

fn planted(mistake: Mistake) -> Tenant {
    Tenant { mistake: Some(mistake), ..Tenant::default() }
}

#[tokio::test]
async fn a_set_up_in_order_is_walked_to_its_end() {
    for proof in [BY_SECRET, BY_CERTIFICATE] {
        let practice = practice(Tenant::default(), proof).await;
        let (code, said) = practice.examined().await;
        assert_eq!(code, 0, "{said}");
        says(&line(&said, "ok       credential: the c").0, &[" is good until ", " more days"]);
        says(
            &line(&said, "ok       token request: http://127.0.0.1:").0,
            &[" gave a token within "],
        );
        says(
            &line(&said, "ok       token: made out to https://outlook.office365.com").0,
            &["allows SMTP.SendAsApp", "good for 59 more minutes"],
        );
        line(&said, "ok       auth: logged in as scanner@example.com");
        line(&said, "ok       mail from scanner@example.com: 250 2.1.0");
        assert!(said.contains("All steps are in order."), "{said}");
        let requests = practice._sandbox.authority().unwrap().requests();
        assert_eq!(requests, 1, "one token is enough for the whole walk");
    }
}

#[tokio::test]
async fn a_wrong_secret_is_named() {
    let practice = practice(Tenant::default(), BY_SECRET).await;
    write(&practice.folder.path().join("client-secret"), "b7f0c1d2-the-id-of-the-secret");
    let (found, remedies) = practice.failure("token request").await;
    says(&found, &["the client secret is wrong", "AADSTS7000215"]);
    says(&remedies[0], &["the secret's value, not its id"]);
    assert!(!found.contains("b7f0c1d2"), "{found}");
}

#[tokio::test]
async fn a_secret_that_has_ended_is_named() {
    let practice = practice(planted(Mistake::ExpiredSecret), BY_SECRET).await;
    let (found, remedies) = practice.failure("token request").await;
    says(&found, &["the client secret has expired", "AADSTS7000222"]);
    says(&remedies[0], &["Make a new client secret"]);
}

#[tokio::test]
async fn the_object_id_of_the_app_registration_is_suspected_when_a_good_token_is_refused() {
    let practice = practice(planted(Mistake::ObjectId), BY_SECRET).await;
    let (found, remedies) = practice.failure("auth").await;
    says(&found, &["535 5.7.3", "The token is good", "made with the wrong object id"]);
    let client_id = &practice._sandbox.authority().unwrap().tenant().client_id;
    let principal = format!("New-ServicePrincipal -AppId {client_id} -ObjectId ");
    assert!(remedies[0].starts_with(&principal), "{remedies:?}");
    says(
        &remedies[0],
        &[
            "0b7ec75e-0000-4000-8000-e57e2b51e1d5",
            "Enterprise applications",
            "not that of App registrations",
        ],
    );
    says(&remedies[1], &["Add-MailboxPermission scanner@example.com", "FullAccess"]);
    says(&remedies[2], &["SmtpClientAuthenticationDisabled $false"]);
}

#[tokio::test]
async fn a_missing_role_is_named_before_the_login_and_after_it() {
    let practice = practice(planted(Mistake::MissingRole), BY_SECRET).await;
    let (found, remedies) = practice.failure("auth").await;
    says(&found, &["535 5.7.3", "The token does not allow to send mail"]);
    says(&remedies[0], &["application permission SMTP.SendAsApp", "admin consent"]);
    let (_, said) = practice.examined().await;
    let (found, remedies) = line(&said, "warning  token: ");
    says(&found, &["allows nothing"]);
    says(&remedies[0], &["SMTP.SendAsApp"]);
}

#[tokio::test]
async fn a_certificate_that_has_ended_is_named() {
    let ended = Identity::make_for(&["relay"], 0).unwrap();
    let practice = with_certificate(Tenant::default(), BY_CERTIFICATE, &ended).await;
    let (_, said) = practice.examined().await;
    let (found, remedies) = line(&said, "FAILED   credential: ");
    says(&found, &["the certificate has ended on "]);
    says(&remedies[0], &["Make a new certificate", "upload it to the app registration"]);
    let (found, remedies) = practice.failure("token request").await;
    says(&found, &["app.crt has expired on "]);
    says(&remedies[0], &["to the app registration"]);
}

#[tokio::test]
async fn a_certificate_that_the_registration_counts_as_ended_is_named() {
    let practice = practice(planted(Mistake::ExpiredCertificate), BY_CERTIFICATE).await;
    let (found, remedies) = practice.failure("token request").await;
    says(&found, &["AADSTS700027", "The key used is expired"]);
    says(&remedies[0], &["Make a new certificate", "upload it to the app registration"]);
}

#[tokio::test]
async fn a_certificate_that_the_registration_does_not_know_is_named() {
    let practice = practice(Tenant::default(), BY_CERTIFICATE).await;
    let other = Identity::make(&["relay"]).unwrap();
    write(&practice.folder.path().join("app.crt"), other.certificate.to_pem().unwrap());
    write(&practice.folder.path().join("app.key"), other.key.private_key_to_pem_pkcs8().unwrap());
    let (found, remedies) = practice.failure("token request").await;
    says(&found, &["AADSTS700027"]);
    says(&remedies[0], &["Upload the file that certificate names"]);
}

#[tokio::test]
async fn a_wrong_tenant_is_named() {
    let practice = practice(planted(Mistake::WrongTenant), BY_SECRET).await;
    let (found, remedies) = practice.failure("token request").await;
    says(&found, &["there is no such tenant", "AADSTS90002"]);
    says(&remedies[0], &["Correct tenant"]);
}

#[tokio::test]
async fn a_clock_that_is_wrong_is_named() {
    let behind = || Tenant { clock: 3_600, ..Tenant::default() };
    let signing = practice(behind(), BY_CERTIFICATE).await;
    let (found, remedies) = signing.failure("token request").await;
    says(&found, &["AADSTS700024", "not valid at the endpoint's time"]);
    says(&remedies[0], &["Set this machine's clock", "minutes behind"]);

    let telling = practice(behind(), BY_SECRET).await;
    let (code, said) = telling.examined().await;
    assert_eq!(code, 0, "{said}");
    let (_, remedies) = line(&said, "warning  token request: ");
    says(&remedies[0], &["Set this machine's clock", "minutes behind"]);
}

#[tokio::test]
async fn a_key_that_cannot_be_read_is_named() {
    let practice = practice(Tenant::default(), BY_CERTIFICATE).await;
    // Read by somebody else: root may read everything.
    let others = practice.folder.path();
    fs::set_permissions(others, fs::Permissions::from_mode(0o755)).unwrap();
    let root = chown(others.join("app.key"), Some(0), None).is_ok();
    let mut command = Command::new(env!("CARGO_BIN_EXE_smtp-uplift"));
    if root {
        command.uid(65_534);
    } else {
        fs::set_permissions(others.join("app.key"), fs::Permissions::from_mode(0o000)).unwrap();
    }
    let doctor = command.args(["doctor", "--config"]).arg(others.join("relay.toml"));
    let output = doctor.output().await.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{stderr}");
    says(
        &stderr,
        &["private_key", "app.key cannot be read", "the relay's user must be able to read it"],
    );
}

#[tokio::test]
async fn the_end_of_a_secret_is_told_in_time() {
    let file = "client_secret = { file = \"client-secret\" }";
    let soon = jiff::Zoned::now().date().saturating_add(jiff::ToSpan::days(20));
    let soon =
        practice(Tenant::default(), &format!("{file}\nclient_secret_expires = {soon}")).await;
    let (code, said) = soon.examined().await;
    assert_eq!(code, 0, "{said}");
    let (found, remedies) = line(&said, "warning  credential: the client secret ends on ");
    says(&found, &[", in "]);
    says(&remedies[0], &["Make a new one", "client_secret_expires"]);

    let over =
        practice(Tenant::default(), &format!("{file}\nclient_secret_expires = 2026-01-31")).await;
    let (found, _) = over.failure("credential").await;
    says(&found, &["the client secret has ended on 2026-"]);

    let unknown = practice(Tenant::default(), file).await;
    let (code, said) = unknown.examined().await;
    assert_eq!(code, 0, "{said}");
    let (found, remedies) = line(&said, "warning  credential: ");
    says(&found, &["nobody can see when the client secret ends"]);
    says(&remedies[0], &["client_secret_expires = "]);
}

#[tokio::test]
async fn every_mailbox_is_walked_by_its_own_way() {
    let first = practice(Tenant::default(), BY_SECRET).await;
    let open = Scenario { auth: Vec::new(), starttls: false, ..Scenario::default() };
    let open = Sandbox::start(LOOPBACK, open).await.unwrap();
    let file = first.folder.path().join("relay.toml");
    let text = fs::read_to_string(&file).unwrap();
    let (before, behind) = text.split_once("[delivery]").unwrap();
    let second = format!(
        "[[mailbox]]\naddress = \"connector@example.com\"\nauth = \"none\"\n\
         [mailbox.smarthost]\nhost = \"127.0.0.1\"\nport = {}\ntls = \"none\"\n",
        open.address().port()
    );
    fs::write(&file, format!("{before}{second}[delivery]{behind}")).unwrap();
    let (code, said) = first.doctor(&["--send-test", "it@example.com"]).await;
    assert_eq!(code, 0, "{said}");
    for start in [
        "ok       scanner@example.com: token request: ",
        "ok       scanner@example.com: auth: logged in as scanner@example.com",
        "ok       scanner@example.com: message to it@example.com: taken: 250 ",
        "ok       connector@example.com: names: 127.0.0.1",
        "ok       connector@example.com: auth: no login, as auth = \"none\" asks for",
        "ok       connector@example.com: message to it@example.com: taken: 250 ",
    ] {
        line(&said, start);
    }
    assert_eq!(open.deliveries()[0].from, "connector@example.com");
    drop(open);
    let (code, said) = first.doctor(&["--json"]).await;
    let document: Value = serde_json::from_str(&said).unwrap();
    let last = document["steps"].as_array().unwrap().last().unwrap();
    assert_eq!(
        (code, &last["mailbox"], &last["step"]),
        (1, &"connector@example.com".into(), &"tcp".into())
    );
    assert_eq!(document["complete"], false);
    assert!(said.contains(&format!("\"mailbox\": \"{MAILBOX}\"")), "{said}");
}
