//! `smtp-uplift cert`

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use openssl::{
    asn1::Asn1Time,
    ec::{EcGroup, EcKey},
    hash::MessageDigest,
    nid::Nid,
    pkey::{PKey, Private},
    rsa::Rsa,
    x509::{X509Builder, X509NameBuilder},
};
use smtp_uplift::transport::certificate::Identity;

use super::{filters, smtp_uplift, told};

#[test]
fn made_shown_and_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let _filters = filters(folder.path());
    let cert = |args: &[&str]| told(smtp_uplift().arg("cert").args(args).current_dir(&folder));
    let names = [
        "--name",
        "relay.office.test",
        "--name",
        "*.office.test",
        "--name",
        "10.1.2.3",
        "--name",
        "fd00::1",
    ];
    let new = [&["new", "--dir", "certs"][..], &names].concat();
    let show = ["show", "certs/relay.crt"];
    let mut story = vec![cert(&new), cert(&show)];
    let key = || fs::read(folder.path().join("certs/relay.key")).unwrap();
    let first = key();
    story.push(cert(&["new", "--dir", "certs"]));
    assert_eq!(key(), first);
    story.push(cert(&["new", "--dir", "certs", "--force", "--days", "3", "--name", "relay"]));
    story.push(cert(&show));
    insta::assert_snapshot!("cert", story.join("\n"));
    assert_ne!(key(), first);
    let mode = |name: &str| {
        fs::metadata(folder.path().join("certs").join(name)).unwrap().permissions().mode() & 0o777
    };
    assert_eq!((mode("relay.key"), mode("relay.crt") & 0o400), (0o600, 0o400));
    let days = cert(&["new", "--dir", "other", "--days", "3", "--name", "relay"]);
    assert!(days.contains("good until"), "{days}");
    let pem = fs::read(folder.path().join("other/relay.crt")).unwrap();
    let made = openssl::x509::X509::from_pem(&pem).unwrap();
    assert_eq!(made.not_before().diff(made.not_after()).unwrap().days, 3);
}

#[test]
fn what_cannot_be_made() {
    let folder = tempfile::tempdir().unwrap();
    let _filters = filters(folder.path());
    fs::write(folder.path().join("file"), "").unwrap();
    let said = [
        &["--name", "two words"][..],
        &["--name", ""],
        &["--days", "0"],
        &["--name", "relay", "--dir", "file/below"],
    ]
    .map(|args| told(smtp_uplift().args(["cert", "new"]).args(args).current_dir(&folder)));
    insta::assert_snapshot!("cert-new-refused", said.join("\n"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn the_certificate_of_a_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let _filters = filters(folder.path());
    let file = folder.path().join("smtp-uplift.toml");
    let show = || told(smtp_uplift().args(["cert", "show"]).current_dir(&folder));
    fs::write(&file, "state_dir = \"state\"\n").unwrap();
    insta::assert_snapshot!(show(), @r"
    exit code 1
    --- stderr
    smtp-uplift: state/self-made.crt is not there yet: the relay makes it at its first start, as [tls] names no other
    ");
    Identity::read_or_make(&folder.path().join("state"), &["relay.office.test"]).unwrap();
    insta::assert_snapshot!("cert-self-made", show());
    fs::write(
        &file,
        "state_dir = \"state\"\n[tls]\ncertificate = \"none.crt\"\nprivate_key = \"none.key\"\n",
    )
    .unwrap();
    insta::assert_snapshot!(show(), @r"
    exit code 1
    --- stderr
    smtp-uplift: none.crt: No such file or directory (os error 2); name the PEM file of a certificate
    ");
}

/// Writes a certificate that is valid from one day to another, counted from now.
fn write(path: &Path, name: &str, key: &PKey<Private>, from: i64, to: i64) {
    let mut subject = X509NameBuilder::new().unwrap();
    subject.append_entry_by_text("O", "Office\u{1b}[31m").unwrap();
    subject.append_entry_by_text("CN", name).unwrap();
    let subject = subject.build();
    let day = |days: i64| {
        Asn1Time::from_unix(jiff::Timestamp::now().as_second() + days * 86_400 + 60).unwrap()
    };
    let mut builder = X509Builder::new().unwrap();
    builder.set_version(2).unwrap();
    builder.set_subject_name(&subject).unwrap();
    builder.set_issuer_name(&subject).unwrap();
    builder.set_pubkey(key).unwrap();
    builder.set_not_before(&day(from)).unwrap();
    builder.set_not_after(&day(to)).unwrap();
    builder.sign(key, MessageDigest::sha256()).unwrap();
    let pem = builder.build().to_pem().unwrap();
    fs::write(path, [fs::read(path).unwrap_or_default(), pem].concat()).unwrap();
}

#[test]
fn what_is_wrong_with_a_certificate_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let _filters = filters(folder.path());
    let path = |name: &str| folder.path().join(name);
    let rsa = |bits| PKey::from_rsa(Rsa::generate(bits).unwrap()).unwrap();
    let key = rsa(2048);
    let pem = |key: &PKey<Private>| key.private_key_to_pem_pkcs8().unwrap();
    write(&path("ended.crt"), "ended", &key, -20, -10);
    fs::write(path("ended.key"), pem(&key)).unwrap();
    write(&path("soon.crt"), "soon", &key, -20, 29);
    fs::write(path("soon.key"), pem(&rsa(2048))).unwrap();
    write(&path("later.crt"), "later", &rsa(3072), 5, 31);
    fs::write(path("later.key"), "no key").unwrap();
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let curve = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
    write(&path("curve.crt"), "curve", &curve, -1, 365);
    write(&path("chain.crt"), "own", &key, -1, 365);
    write(&path("chain.crt"), "above", &key, -30, -1);
    fs::write(path("no.crt"), pem(&key)).unwrap();
    let said = [
        &["ended.crt"][..],
        &["soon.crt"],
        &["soon.crt", "--key", "ended.key"],
        &["later.crt"],
        &["curve.crt"],
        &["chain.crt", "--key", "ended.key"],
        &["chain.crt", "--key", "none.key"],
        &["no.crt"],
        &["none.crt"],
    ]
    .map(|args| told(smtp_uplift().args(["cert", "show"]).args(args).current_dir(&folder)));
    for (index, left) in
        [(0, "(ended)"), (1, "(29 days left)"), (3, "(31 days left)"), (4, "(365 days left)")]
    {
        assert!(said[index].contains(left), "{left} in {}", said[index]);
    }
    assert!(!said.join("").contains('\u{1b}'));
    insta::assert_snapshot!("cert-show-faults", said.join("\n"));
}
