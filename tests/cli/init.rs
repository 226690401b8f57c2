//! The first five minutes.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use smtp_uplift::config;

use super::{effective, filters, run, smtp_uplift, told};

/// What a newcomer does, in an empty folder.
#[test]
fn from_nothing_to_a_good_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let here = |args: &[&str]| told(smtp_uplift().args(args).current_dir(&folder));
    let _filters = filters(folder.path());
    insta::assert_snapshot!("init", here(&["init", "--hostname", "relay.office.test"]));
    insta::assert_snapshot!("init-then-check", here(&["check"]));

    let file = folder.path().join("smtp-uplift.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("\"scanner@example.com\"", "\"scanner@office.test\"")).unwrap();
    fs::write(folder.path().join("mailbox-password"), "geheim\n").unwrap();
    insta::assert_snapshot!(here(&["check"]), @r"
    exit code 0
    --- stdout
    warning: smtp-uplift.toml:54: mailbox.password: Exchange Online switches passwords off by default at the end of December 2026; log in with [mailbox.oauth]: docs/howto/oauth.md
    smtp-uplift.toml: ok
    ");
    insta::assert_snapshot!("init-then-effective", here(&["check", "--effective"]));
}

#[test]
fn what_it_writes() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("etc/smtp-uplift");
    let _filters = filters(folder.path());
    let mut init = smtp_uplift();
    init.args([
        "init",
        "--mailbox",
        "scan@office.test",
        "--hostname",
        "relay.office.test",
        "--dir",
    ])
    .arg(&dir);
    let said = told(&mut init);
    insta::assert_snapshot!("init-elsewhere", said);

    let mode = |name: &str| fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o777;
    for (name, private) in [
        ("relay.key", true),
        ("mailbox-password", true),
        ("relay.crt", false),
        ("smtp-uplift.toml", false),
    ] {
        assert_eq!(mode(name) & 0o077 == 0, private, "{name}");
    }
    // It is the example but for what is known by now.
    let example = include_str!("../../config/exchange-online.toml");
    let text = fs::read_to_string(dir.join("smtp-uplift.toml")).unwrap();
    let changed = example.lines().zip(text.lines()).filter(|(old, new)| old != new);
    let changed: Vec<_> = changed.map(|(_, new)| new).collect();
    insta::assert_snapshot!(changed.join("\n"), @r#"
    # Change what is marked with <--, then: smtp-uplift check --config smtp-uplift.toml
    hostname = "relay.office.test"            # <-- this machine's name; goes into Received and EHLO
    state_dir = "state"                       # the spool, and the self-made certificate if [tls] names none
    [tls]
    certificate = "relay.crt"
    private_key = "relay.key"
    #   Set-CASMailbox scan@office.test -SmtpClientAuthenticationDisabled $false
    address = "scan@office.test"              # <--
    password = { file = "mailbox-password" }
    "#);
    assert_eq!(example.lines().count(), text.lines().count());

    fs::write(dir.join("mailbox-password"), "geheim").unwrap();
    let loaded = config::load(&dir.join("smtp-uplift.toml")).unwrap();
    let [warning] = &loaded.warnings[..] else { panic!("{:?}", loaded.warnings) };
    assert!(warning.reason.contains("passwords off"), "{warning}");
    for listener in &loaded.config.listeners {
        let port = format!("port {} ", listener.address.port());
        assert!(said.contains(&port), "{port} in {said}");
    }
    effective(&dir.join("smtp-uplift.toml"));
}

#[test]
fn nothing_is_overwritten() {
    for name in ["smtp-uplift.toml", "relay.crt", "relay.key", "mailbox-password"] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(name), "mine").unwrap();
        let (code, out, err) =
            run(smtp_uplift().args(["init", "--hostname", "relay"]).current_dir(&folder));
        assert_eq!((code, out.as_str()), (1, ""));
        assert_eq!(
            err,
            format!(
                "smtp-uplift: . has {name} already, and nothing is overwritten; name another folder with --dir, or move them away\n"
            )
        );
        assert_eq!(fs::read_to_string(folder.path().join(name)).unwrap(), "mine");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

#[test]
fn what_cannot_be_is_said_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("new");
    fs::write(folder.path().join("file"), "").unwrap();
    let init = |args: &[&str], dir: &Path| {
        let mut command = smtp_uplift();
        let (code, out, err) = run(command.arg("init").args(args).arg("--dir").arg(dir));
        assert_eq!(out, "");
        (code, err.replace(&folder.path().display().to_string(), "FOLDER"))
    };
    for (args, code, wanted) in [
        (
            ["--mailbox", "scanner"],
            64,
            "\"scanner\" is not an address; give another with --mailbox",
        ),
        (["--mailbox", "a@b\nx = 1"], 64, "it has control characters; give another with --mailbox"),
        (
            ["--hostname", "my relay"],
            64,
            "\"my relay\" is not a domain name; give another with --hostname",
        ),
    ] {
        assert_eq!(init(&args, &dir), (code, format!("smtp-uplift: {wanted}\n")));
    }
    assert!(!dir.exists());
    let (code, err) = init(&["--hostname", "relay"], &folder.path().join("file/new"));
    assert_eq!(
        (code, err.as_str()),
        (
            1,
            "smtp-uplift: FOLDER/file/new: Not a directory (os error 20); name another folder with --dir\n"
        )
    );
}

/// An address may hold what TOML gives a meaning, or the placeholder itself.
#[test]
fn odd_addresses_stay_as_they_are() {
    for odd in ["o'brien\"#\\@office.test", "myscanner@example.com.test"] {
        let folder = tempfile::tempdir().unwrap();
        let args = ["init", "--hostname", "relay", "--mailbox", odd];
        let (code, _, err) = run(smtp_uplift().args(args).current_dir(&folder));
        assert_eq!(code, 0, "{err}");
        fs::write(folder.path().join("mailbox-password"), "geheim").unwrap();
        let config = config::load(&folder.path().join("smtp-uplift.toml")).unwrap().config;
        assert_eq!(config.mailboxes[0].address, odd);
    }
}

#[test]
fn the_systems_name_will_do() {
    let folder = tempfile::tempdir().unwrap();
    let system = gethostname::gethostname().into_string().unwrap();
    let (code, _, err) =
        run(smtp_uplift().args(["init", "--mailbox", "a@b.test"]).current_dir(&folder));
    if !config::is_domain(&system) {
        assert!(code == 64 && err.contains("give another with --hostname"), "{err}");
        return;
    }
    fs::write(folder.path().join("mailbox-password"), "geheim").unwrap();
    let config = config::load(&folder.path().join("smtp-uplift.toml")).unwrap().config;
    assert_eq!(config.hostname, system);
    assert!(
        told(smtp_uplift().args(["cert", "show"]).current_dir(&folder))
            .contains(&format!("names        {system}\n"))
    );
}
