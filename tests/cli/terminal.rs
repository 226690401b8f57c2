//! What is different on a terminal: passwords without echo, colours for those who want them.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Write as _},
    path::Path,
    process::{Child, Command},
    time::Duration,
};

use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, tcgetattr},
};
use tokio::time::Instant;

use super::{passwd::accepts, queue};

/// How long anything may take here.
const DEADLINE: Duration = Duration::from_secs(60);

/// A program on a terminal of its own.
struct Terminal {
    /// Our end of it.
    end: File,
    program: Child,
    shown: String,
}

impl Terminal {
    fn start(args: &[&str], folder: &Path, variables: &[(&str, &str)]) -> Self {
        let end = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&end).unwrap();
        unlockpt(&end).unwrap();
        let name = ptsname(&end, Vec::new()).unwrap().into_string().unwrap();
        let other = || OpenOptions::new().read(true).write(true).open(&name).unwrap();
        // From util-linux: makes the terminal the one that /dev/tty means.
        let program = Command::new("setsid")
            .args(["--ctty", "--wait", env!("CARGO_BIN_EXE_smtp-uplift")])
            .args(args)
            .current_dir(folder)
            .env("TERM", "xterm")
            .env_remove("NO_COLOR")
            .env_remove("SMTP_UPLIFT_CONFIG")
            .envs(variables.iter().copied())
            .stdin(other())
            .stdout(other())
            .stderr(other())
            .spawn()
            .unwrap();
        Self { end: end.into(), program, shown: String::new() }
    }

    fn echoes(&self) -> bool {
        tcgetattr(&self.end).unwrap().local_modes.contains(LocalModes::ECHO)
    }

    /// Reads on until this is shown.
    fn wait_for(&mut self, wanted: &str) {
        while !self.shown.contains(wanted) {
            assert!(self.read(), "{wanted:?} in {:?}", self.shown);
        }
        self.shown.clear();
    }

    /// Types a line when nobody can see it any more.
    fn type_unseen(&mut self, line: &str) {
        let begun = Instant::now();
        while self.echoes() {
            assert!(begun.elapsed() < DEADLINE, "the terminal echoes");
            std::thread::yield_now();
        }
        self.end.write_all(line.as_bytes()).unwrap();
    }

    /// All that is shown to the end; the exit code.
    fn end(mut self) -> (i32, String) {
        while self.read() {}
        assert!(self.echoes(), "the terminal is left as it was");
        (self.program.wait().unwrap().code().unwrap(), self.shown)
    }

    /// Reads once; false when the program has gone.
    fn read(&mut self) -> bool {
        let mut buffer = [0; 1024];
        let read = self.end.read(&mut buffer).unwrap_or_default();
        self.shown.push_str(&String::from_utf8_lossy(&buffer[..read]));
        read > 0
    }
}

#[test]
fn a_password_is_asked_for_twice_and_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let users = folder.path().join("users.txt");
    let ask = |first: &str, second: &str| {
        let args = ["passwd", "scan", "--file", "users.txt"];
        let mut terminal = Terminal::start(&args, folder.path(), &[]);
        terminal.wait_for("Password of scan: ");
        terminal.type_unseen(first);
        terminal.wait_for("Once more: ");
        terminal.type_unseen(second);
        terminal.end()
    };
    let (code, shown) = ask("geheim\r", "anders\r");
    assert_eq!(
        (code, shown.trim()),
        (1, "smtp-uplift: the two passwords differ; nothing was changed")
    );
    assert!(!users.exists());
    let (code, shown) = ask("geheim\r", "geheim\r");
    assert!(code == 0 && shown.trim().starts_with("users.txt: made, with scan in it;"), "{shown}");
    assert!(accepts(&users, "scan", "geheim"));
}

#[test]
fn who_thinks_better_of_it_gets_the_terminal_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut terminal =
        Terminal::start(&["passwd", "scan", "--file", "users.txt"], folder.path(), &[]);
    terminal.wait_for("Password of scan: ");
    terminal.type_unseen("gehe\u{3}");
    let (code, shown) = terminal.end();
    assert_eq!(
        (code, shown.trim()),
        (1, "smtp-uplift: no password came: interrupted; nothing was changed")
    );
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn colours_are_for_who_wants_them() {
    let folder = tempfile::tempdir().unwrap();
    // A configuration with which the log begins and the relay ends at once: the address is nobody's here.
    fs::write(folder.path().join("pw"), "geheim").unwrap();
    fs::write(
        folder.path().join("smtp-uplift.toml"),
        "hostname = \"relay\"\nstate_dir = \"state\"\n[[listener]]\naddress = \"192.0.2.1:25\"\n\
         [[mailbox]]\naddress = \"a@b.test\"\npassword = { file = \"pw\" }\n",
    )
    .unwrap();
    for (variables, coloured) in
        [(&[][..], true), (&[("NO_COLOR", "1")], false), (&[("NO_COLOR", "")], true)]
    {
        for (args, code) in [(["run"], 75), (["nonsense"], 64)] {
            let (ended, shown) = Terminal::start(&args, folder.path(), variables).end();
            assert_eq!(
                (ended, shown.contains('\u{1b}')),
                (code, coloured),
                "{variables:?}: {shown:?}"
            );
        }
    }
}

#[test]
fn what_is_deleted_from_the_queue_is_asked_for() {
    let folder = queue::folder();
    queue::keep(&folder, queue::messages());
    for (answer, code, left) in [("no", 1, 4), ("", 1, 4), ("yes", 0, 3)] {
        let args = ["queue", "drop", "1tyjb7hc.1"];
        let mut terminal = Terminal::start(&args, folder.path(), &[]);
        terminal
            .wait_for("Delete 1 message? What is deleted cannot be had back. Write yes to go on: ");
        writeln!(terminal.end, "{answer}").unwrap();
        assert_eq!(terminal.end().0, code, "{answer:?}");
        assert_eq!(queue::ids(&folder, &[]).len(), left, "{answer:?}");
    }
}
