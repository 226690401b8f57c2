//! What this machine has to have for a test, and what happens without it.

#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    env,
    io::Write as _,
    process::{Command, Stdio},
};

/// Something that a test needs.
pub(crate) struct Need {
    /// A line for the shell that succeeds where it is there.
    pub(crate) probe: String,
    /// What is said where it is not, with the next step.
    pub(crate) otherwise: &'static str,
}

/// Whether all of it is there. If not, `what` is skipped visibly; where nothing may be skipped it fails.
pub(crate) fn met(needs: &[Need], what: &str) -> bool {
    let missing: Vec<&str> =
        needs.iter().filter(|need| !is_there(need)).map(|need| need.otherwise).collect();
    if missing.is_empty() {
        return true;
    }
    let line = format!("skipped: {what}: {}\n", missing.join("; "));
    let required = env::var("UPLIFT_INTEROP").is_ok_and(|value| value == "require");
    assert!(!required, "UPLIFT_INTEROP=require, but {line}");
    say(&line);
    false
}

/// Whether something may be done that no package brings about. If not, `what` is skipped visibly, everywhere.
pub(crate) fn allowed(need: &Need, what: &str) -> bool {
    let there = is_there(need);
    if !there {
        say(&format!("skipped: {what}: it takes {}\n", need.otherwise));
    }
    there
}

fn say(line: &str) {
    // Written past the macros, whose output the test harness keeps to itself.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// A command that is also looked for where Debian keeps what is root's.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    let path = env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

fn is_there(need: &Need) -> bool {
    let mut probe = command("sh");
    probe.args(["-c", &need.probe]);
    probe
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap()
        .success()
}
