//! The commands as a user runs them.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use assert_cmd::Command;
use smtp_uplift::{sandbox::scenario::Scenario, transport::certificate::Identity};

fn smtp_uplift() -> Command {
    let mut command = Command::cargo_bin("smtp-uplift").unwrap();
    command.env_remove("SMTP_UPLIFT_CONFIG").env_remove("SMTP_UPLIFT_LOG");
    command
}

/// Exit code, stdout, stderr.
fn run(command: &mut Command) -> (i32, String, String) {
    let output = command.output().unwrap();
    let text = |octets| String::from_utf8(octets).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
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
fn usage_is_64_and_help_is_0() {
    let (code, _, err) = run(smtp_uplift().arg("relay"));
    assert!(code == 64 && err.contains("unrecognized subcommand"), "{err}");
    let (code, _, err) = run(&mut smtp_uplift());
    assert!(code == 64 && err.contains("Usage: smtp-uplift <COMMAND>"), "{err}");
    let (code, out, _) = run(smtp_uplift().arg("--help"));
    assert!(code == 0 && out.contains("Run the relay"), "{out}");
    let (code, out, _) = run(smtp_uplift().arg("version"));
    assert!(
        code == 0 && out.contains("devices: OpenSSL 3") && out.contains("smarthost: rustls 0."),
        "{out}"
    );
}

#[test]
fn check_says_every_problem_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("relay.toml");
    fs::write(
        &file,
        "[[listener]]\nname = \"lan\"\naddress = \"0.0.0.0:2525\"\ntsl = \"none\"\n[[mailbox]]\naddress = \"a@b.example\"\n\
         password = \"x\"\n[delivery]\nmode = \"spool\"\n",
    )
    .unwrap();
    let (code, out, err) = run(smtp_uplift().args(["check", "--config"]).arg(&file));
    assert_eq!((code, out.as_str()), (78, ""));
    let lines: Vec<&str> =
        err.lines().map(|line| line.trim_start_matches(&format!("{}:", file.display()))).collect();
    assert!(lines[0] == "4: listener.tsl: unknown key; did you mean tls?", "{err}");
    assert!(
        lines[1].starts_with("9: delivery.mode: ") && lines[1].contains("needs the spool"),
        "{err}"
    );
    assert_eq!(lines[2], "smtp-uplift: 2 problems in the configuration");

    let (code, _, err) = run(smtp_uplift().args(["run", "--config"]).arg(&file));
    assert!(code == 78 && err.contains("needs the spool"), "{err}");
    let (code, _, err) = run(smtp_uplift().args(["check", "--config", "nowhere.toml"]));
    assert!(code == 78 && err.contains("nowhere.toml: the configuration cannot be read"), "{err}");
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
        // One has its password in the open, on purpose.
        let warnings = usize::from(path.ends_with("lab.toml"));
        assert_eq!(out.lines().count(), warnings + 1, "{out}");
    }
}

/// `ca_file` or `{ file`, but neither a remark nor `tls_profile`.
fn names_a_file(key: &str) -> bool {
    !key.starts_with('#') && (key.ends_with("ca_") || key.ends_with("{ "))
}
