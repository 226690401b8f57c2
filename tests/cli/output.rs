//! What every command has in common: help, versions, and that nobody has to listen.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Read as _},
    path::Path,
    process::{Command, Stdio},
};

use smtp_uplift::sandbox::device::Device;

use super::{
    common::{self, Plan},
    filters, run, smtp_uplift, told,
};

/// Every command, with its subcommands.
const COMMANDS: [&str; 24] = [
    "init",
    "check",
    "run",
    "demo",
    "doctor",
    "login",
    "explain",
    "queue",
    "queue list",
    "queue show",
    "queue retry",
    "queue hold",
    "queue release",
    "queue drop",
    "queue export",
    "sandbox",
    "passwd",
    "cert new",
    "cert show",
    "healthcheck",
    "version",
    "completions",
    "man",
    "cert",
];

#[test]
fn help() {
    let _filters = filters(Path::new("nowhere"));
    insta::assert_snapshot!("help", told(smtp_uplift().arg("--help")));
    let pages = COMMANDS.map(|command| {
        let help = told(smtp_uplift().args(command.split(' ')).arg("--help"));
        format!("$ smtp-uplift {command} --help\n{help}")
    });
    insta::assert_snapshot!("help-of-commands", pages.join("\n"));
}

#[test]
fn versions() {
    let _filters = filters(Path::new("nowhere"));
    insta::assert_snapshot!(told(smtp_uplift().arg("version")), @r"
    exit code 0
    --- stdout
    smtp-uplift VERSION
    devices: OpenSSL 3
    smarthost: rustls 0
    ");
    insta::assert_snapshot!(told(smtp_uplift().arg("--version")), @r"
    exit code 0
    --- stdout
    smtp-uplift VERSION
    ");
}

#[test]
fn completions_know_every_command() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let (code, script, err) = run(smtp_uplift().args(["completions", shell]));
        assert_eq!((code, err.as_str()), (0, ""));
        for command in COMMANDS.iter().flat_map(|command| command.split(' ')) {
            assert!(script.contains(command), "{command} in {script}");
        }
    }
    let (code, _, err) = run(smtp_uplift().args(["completions", "tcsh"]));
    assert!(
        code == 64 && err.contains("[possible values: bash, elvish, fish, powershell, zsh]"),
        "{err}"
    );
}

#[test]
fn the_manual_has_a_page_a_command() {
    let folder = tempfile::tempdir().unwrap();
    let _filters = filters(folder.path());
    let dir = folder.path().join("share/man1");
    insta::assert_snapshot!(told(smtp_uplift().arg("man").arg(&dir)), @r"
    exit code 0
    --- stdout
    Written to FOLDER/share/man1; to read them: man -l FOLDER/share/man1/smtp-uplift.1
    ");
    for command in COMMANDS {
        let page = dir.join(format!("smtp-uplift-{}.1", command.replace(' ', "-")));
        let text = fs::read_to_string(page).unwrap();
        assert!(text.contains(&format!("\\fBsmtp\\-uplift {command}\\fR")), "{text}");
    }
    assert_eq!(fs::read_dir(&dir).unwrap().count(), COMMANDS.len() + 1);
    insta::assert_snapshot!(
        "manual-of-passwd",
        fs::read_to_string(dir.join("smtp-uplift-passwd.1")).unwrap()
    );
    fs::write(folder.path().join("file"), "").unwrap();
    insta::assert_snapshot!(told(smtp_uplift().arg("man").arg(folder.path().join("file/man1"))), @r"
    exit code 1
    --- stderr
    smtp-uplift: FOLDER/file/man1: Not a directory (os error 20); name another folder
    ");
}

/// The program with one of its outputs in a pipe that nobody reads.
fn unheard(args: &[&str], folder: &Path) -> [(i32, String); 2] {
    [false, true].map(|is_stderr| {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let (mut heard, other) = io::pipe().unwrap();
        let (out, err) = if is_stderr { (other, writer) } else { (writer, other) };
        let mut child = Command::new(env!("CARGO_BIN_EXE_smtp-uplift"))
            .args(args)
            .current_dir(folder)
            .env_remove("SMTP_UPLIFT_CONFIG")
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .unwrap();
        let mut text = String::new();
        heard.read_to_string(&mut text).unwrap();
        (child.wait().unwrap().code().unwrap(), text)
    })
}

#[test]
fn nobody_has_to_listen() {
    let folder = tempfile::tempdir().unwrap();
    let (code, _, err) = run(smtp_uplift()
        .args(["init", "--hostname", "relay", "--mailbox", "a@b.test"])
        .current_dir(&folder));
    assert_eq!(code, 0, "{err}");
    fs::write(folder.path().join("mailbox-password"), "geheim").unwrap();
    for (args, wanted) in [
        (&["version"][..], 0),
        (&["--help"], 0),
        (&["check"], 0),
        (&["check", "--effective"], 0),
        (&["completions", "zsh"], 0),
        (&["cert", "show"], 0),
        (&["cert", "new", "--name", "relay"], 1),
        (&["demo", "--once"], 0),
        (&["check", "--config", "none.toml"], 78),
        (&["run", "--config", "none.toml"], 78),
        (&["passwd", "a:b"], 64),
        (&["nonsense"], 64),
    ] {
        for (code, heard) in unheard(args, folder.path()) {
            assert_eq!(code, wanted, "{args:?}: {heard}");
            assert!(!heard.contains("panicked"), "{args:?}: {heard}");
        }
    }
}

/// The log is not what a relay lives for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_whose_log_nobody_reads_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let text = common::configuration(&Plan::default(), 1, b"", folder.path())
        .replace("ca_file = \"sandbox.crt\"\n", "");
    fs::write(folder.path().join("smtp-uplift.toml"), text).unwrap();
    let mut relay = Command::new(env!("CARGO_BIN_EXE_smtp-uplift"))
        .arg("run")
        .current_dir(&folder)
        .env_remove("SMTP_UPLIFT_CONFIG")
        .env("SMTP_UPLIFT_LOG", "debug")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(relay.stderr.take().unwrap()).lines().map_while(Result::ok);
    let listening = log.find(|line| line.contains("listening")).unwrap();
    let address = listening.split("address=").nth(1).unwrap().split(' ').next().unwrap();
    log.find(|line| line.contains("ready")).unwrap();
    drop(log);
    for _ in 0..3 {
        let mut device = Device::connect(address.parse().unwrap()).await.unwrap();
        assert_eq!(device.say("NONSENSE").await.unwrap().code.get(), 500);
        assert_eq!(device.say("QUIT").await.unwrap().code.get(), 221);
    }
    let pid = relay.id().to_string();
    assert!(Command::new("kill").arg(&pid).status().unwrap().success());
    assert_eq!(relay.wait().unwrap().code(), Some(0), "it drains as if nothing were");
}

/// A full disk is not somebody who wants no more.
#[cfg(target_os = "linux")]
#[test]
fn output_that_is_lost_is_a_failure() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_smtp-uplift"))
        .arg("version")
        .stdout(full)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(75));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "smtp-uplift: cannot write to stdout: No space left on device (os error 28)\n"
    );
}
