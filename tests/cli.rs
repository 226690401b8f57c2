//! The commands as a user runs them.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

#[path = "cli/cert.rs"]
mod cert;
#[path = "cli/explain.rs"]
mod explain;
#[path = "cli/healthcheck.rs"]
mod healthcheck;
#[path = "cli/init.rs"]
mod init;
#[path = "cli/output.rs"]
mod output;
#[path = "cli/passwd.rs"]
mod passwd;
#[path = "cli/queue.rs"]
mod queue;
#[cfg(target_os = "linux")]
#[path = "cli/terminal.rs"]
mod terminal;

mod common;

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use assert_cmd::Command;
use smtp_uplift::{config, sandbox::scenario::Scenario, transport::certificate::Identity};

fn smtp_uplift() -> Command {
    let mut command = Command::cargo_bin("smtp-uplift").unwrap();
    for variable in ["SMTP_UPLIFT_CONFIG", "SMTP_UPLIFT_LOG", "COLUMNS"] {
        command.env_remove(variable);
    }
    command
}

/// Exit code, stdout, stderr.
fn run(command: &mut Command) -> (i32, String, String) {
    let output = command.output().unwrap();
    let text = |octets| String::from_utf8(octets).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// All that a command tells, for a snapshot.
fn told(command: &mut Command) -> String {
    let (code, out, err) = run(command);
    let mut told = format!("exit code {code}\n");
    for (name, text) in [("stdout", out), ("stderr", err)] {
        if !text.is_empty() {
            told.push_str(&format!("--- {name}\n{text}"));
        }
    }
    told
}

/// What snapshots leave out: the folder, and what is another one tomorrow.
fn filters(folder: &Path) -> insta::internals::SettingsBindDropGuard {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.add_filter(&regex_escaped(&folder.display().to_string()), "FOLDER");
    settings.add_filter(&regex_escaped(env!("CARGO_PKG_VERSION")), "VERSION");
    for (pattern, shown) in [
        (r"\d{4}-\d\d-\d\d", "DATE"),
        (r"\d+ days? left", "DAYS left"),
        (r"([0-9A-F]{2}:){31}[0-9A-F]{2}", "32 OCTETS"),
        (r"([0-9A-F]{2}:){19}[0-9A-F]{2}", "20 OCTETS"),
        (r"\$argon2id\$[^\s:]+", "HASH"),
        (r"127\.0\.0\.1:\d+", "127.0.0.1:PORT"),
        (r"OpenSSL 3\.\S+ .*", "OpenSSL 3"),
        (r"rustls 0\.\S+", "rustls 0"),
        // Where the tests run does not matter.
        (r"(?m)^warning: listener \S+: this is a container, .*\n", ""),
    ] {
        settings.add_filter(pattern, shown);
    }
    settings.bind_to_scope()
}

fn regex_escaped(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_ascii_punctuation() { format!("\\{c}") } else { c.into() })
        .collect()
}

#[test]
fn the_demo_tells_its_story() {
    let (code, out, err) = run(smtp_uplift().args(["demo", "--once"]));
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    for line in [
        "To the relay it speaks TLSv1 with ",
        "the 312000 octets behind the header section are the same, every header field is there,",
        " with ESMTPS id ",
        " with SMTP id ",
        "Both arrived unaltered.",
    ] {
        assert!(out.contains(line), "{line:?} in {out}");
    }
}

#[test]
fn usage_is_64() {
    let (code, _, err) = run(smtp_uplift().arg("relay"));
    assert!(code == 64 && err.contains("unrecognized subcommand"), "{err}");
    let (code, _, err) = run(&mut smtp_uplift());
    assert!(code == 64 && err.contains("Usage: smtp-uplift <COMMAND>"), "{err}");
}

#[test]
fn check_says_every_problem_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("relay.toml");
    fs::write(
        &file,
        "[[listener]]\nname = \"lan\"\naddress = \"0.0.0.0:2525\"\ntsl = \"none\"\n[[mailbox]]\naddress = \"a@b.example\"\n\
         password = \"x\"\n[log]\naddresses = \"hash\"\n",
    )
    .unwrap();
    let _filters = filters(folder.path());
    insta::assert_snapshot!(told(smtp_uplift().args(["check", "--config"]).arg(&file)), @r#"
    exit code 78
    --- stderr
    FOLDER/relay.toml:4: listener.tsl: unknown key; did you mean tls?
    FOLDER/relay.toml:9: log.addresses: not in this version yet; write addresses = "full"
    warning: FOLDER/relay.toml:6: mailbox.address: a@b.example is a placeholder; write the address of the mailbox that sends
    warning: FOLDER/relay.toml:7: mailbox.password: the secret stands in the configuration itself; write password = { file = "/run/secrets/name" }, { env = "NAME" } or { credential = "name" }
    warning: FOLDER/relay.toml:7: mailbox.password: Exchange Online switches passwords off by default at the end of December 2026; log in with [mailbox.oauth]: docs/howto/oauth.md
    smtp-uplift: 2 problems in the configuration
    "#);
    let plain = told(smtp_uplift().args(["check", "--config"]).arg(&file));
    let effective = told(smtp_uplift().args(["check", "--effective", "--config"]).arg(&file));
    assert_eq!(effective, plain, "what does not act is not printed");

    let (code, _, err) = run(smtp_uplift().args(["run", "--config"]).arg(&file));
    assert!(code == 78 && err.contains("not in this version yet"), "{err}");
    let (code, _, err) = run(smtp_uplift().args(["check", "--config", "nowhere.toml"]));
    assert!(code == 78 && err.contains("nowhere.toml: the configuration cannot be read"), "{err}");
}

/// What it is can be told, whether or not it would start.
#[test]
fn a_configuration_that_does_not_start_is_shown_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("empty"), "").unwrap();
    let file = folder.path().join("relay.toml");
    fs::write(
        &file,
        "hostname = \"relay\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n[[mailbox]]\naddress = \"a@b.test\"\nauth = \"none\"\n\
         [tls]\ncertificate = \"empty\"\nprivate_key = \"empty\"\n",
    )
    .unwrap();
    let (code, out, err) = run(smtp_uplift().args(["check", "--effective", "--config"]).arg(&file));
    assert!(code == 78 && err.contains("empty: no certificate in PEM form"), "{err}");
    assert!(config::parse(&out, &file).is_ok(), "{out}");
}

#[test]
fn check_reads_the_operators_rules() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("relay.toml");
    fs::write(
        &file,
        "hostname = \"relay.example\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n[smarthost]\nreplies_file = \"rules.toml\"\n\
         [[mailbox]]\naddress = \"a@office.test\"\nauth = \"none\"\n[delivery]\nmode = \"stream\"\n",
    )
    .unwrap();
    let rules = folder.path().join("rules.toml");
    fs::write(&rules, "").unwrap();
    let (code, out, err) = run(smtp_uplift().args(["check", "--config"]).arg(&file));
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    fs::write(&rules, "[[rule]]\nid = \"x\"\nclass = \"polcy\"\n").unwrap();
    let (code, _, err) = run(smtp_uplift().args(["check", "--config"]).arg(&file));
    assert!(code == 78 && err.contains("rules.toml:") && err.contains("policy"), "{err}");
}

#[test]
fn the_configurations_that_come_along_are_good() {
    let folder = tempfile::tempdir().unwrap();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    for entry in fs::read_dir(config).unwrap() {
        let path = entry.unwrap().path();
        if path.ends_with("scenario.toml") {
            Scenario::parse(&fs::read_to_string(&path).unwrap()).unwrap();
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        // The files that they name are somebody else's to make.
        let secret = folder.path().join("secret");
        fs::write(&secret, "secret").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        let made = Identity::make(&["localhost"]).unwrap();
        fs::write(folder.path().join("ca.pem"), made.certificate.to_pem().unwrap()).unwrap();
        let text: String = text
            .lines()
            .map(|line| match line.split_once("file = \"").filter(|(key, _)| names_a_file(key)) {
                Some((key, rest)) => {
                    let named = if key.ends_with("ca_") { "ca.pem" } else { "secret" };
                    format!("{key}file = \"{named}\"{}\n", rest.split_once('"').unwrap().1)
                }
                None => format!("{line}\n"),
            })
            .collect();
        let file = folder.path().join(path.file_name().unwrap());
        fs::write(&file, text).unwrap();
        let (code, out, err) = run(smtp_uplift().args(["check", "--config"]).arg(&file));
        assert_eq!((code, err.as_str()), (0, ""), "{}", path.display());
        // One has its password in the open, on purpose, one a password that Microsoft is about to refuse; all have an
        // address that is to be replaced.
        let odd = ["lab.toml", "exchange-online.toml"];
        let warnings = usize::from(odd.iter().any(|name| path.ends_with(name)));
        let unexpected = |line: &&str| !line.contains(" is a placeholder; ");
        assert_eq!(out.lines().filter(unexpected).count(), warnings + 1, "{out}");
        let effective = effective(&file);
        let again = folder.path().join("again.toml");
        fs::write(&again, effective.replace("{ redacted = true }", "\"rehearsal\"")).unwrap();
        let parsed = |file: &Path| format!("{:#?}", config::load(file).unwrap().config);
        assert_eq!(parsed(&file), parsed(&again));
    }
}

/// The configuration as it acts, warnings aside.
fn effective(file: &Path) -> String {
    let (code, out, err) = run(smtp_uplift().args(["check", "--effective", "--config"]).arg(file));
    assert_eq!(code, 0, "{err}");
    assert!(err.lines().all(|line| line.starts_with("warning: ")), "{err}");
    out
}

/// `ca_file` or `{ file`, but neither a remark nor `tls_profile`.
fn names_a_file(key: &str) -> bool {
    !key.starts_with('#') && (key.ends_with("ca_") || key.ends_with("{ "))
}
