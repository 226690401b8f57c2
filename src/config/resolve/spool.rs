//! `[delivery]`, `[spool]` and `[notices]`: how a message goes, what is kept of it, and who is told.

use std::{
    fs,
    net::Ipv6Addr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use bytesize::ByteSize;
use toml::de::DeValue;

use super::{DAY, TICK, is_domain};
use crate::{
    config::{
        Delivery, NoticeWay, Notices, Spool,
        raw::{Complaint, Table, mismatch},
        value,
    },
    proto::path::Address,
};

/// Nothing is kept for longer; far from what a clock can add.
const YEAR: Duration = Duration::from_secs(366 * 24 * 3600);
const SECOND: Duration = Duration::from_secs(1);

/// The waits between attempts, unless others are written.
const RETRY: &str = "1m, 2m, 5m, 10m, 15m, 30m";

pub(super) fn delivery(mut table: Table<'_>) -> Delivery {
    let mode = table.one_of("mode", &[]);
    let device_patience =
        table.duration("device_patience", Duration::from_secs(20), TICK..=Duration::from_secs(600));
    let most = ByteSize::tib(1);
    let replay_memory = table.size("replay_memory", ByteSize::mib(32), ByteSize::b(0)..=most);
    let replay_memory_total =
        table.size("replay_memory_total", ByteSize::mib(256), ByteSize::b(0)..=most);
    if replay_memory_total < replay_memory {
        let key = ["replay_memory_total", "replay_memory"];
        let key = key.into_iter().find(|key| table.has(key)).unwrap_or("replay_memory_total");
        table.warning(
            key,
            "all messages together have less memory than a single one may have",
            "write a replay_memory_total of several times replay_memory",
        );
    }
    table.finish();
    Delivery { mode: mode.unwrap_or_default(), device_patience, replay_memory, replay_memory_total }
}

pub(super) fn spool(mut table: Table<'_>, state_dir: &Path) -> Spool {
    let directory = directory(&mut table, state_dir);
    if directory.exists() && !directory.is_dir() {
        let reason = format!("{} is no folder", directory.display());
        table.problem("directory", reason, "name a folder; the relay makes it if it is not there");
    }
    let spool = Spool {
        directory,
        max_size: table.size("max_size", ByteSize::gib(10), ByteSize::b(1)..=ByteSize::tib(1024)),
        expire: table.duration("expire", 2 * DAY, SECOND..=YEAR),
        held_expire: table.duration("held_expire", 14 * DAY, SECOND..=YEAR),
        retry: table.read("retry", retry).unwrap_or_else(|| waits(RETRY).unwrap_or_default()),
        keep_failed: table.duration("keep_failed", 14 * DAY, Duration::ZERO..=YEAR),
    };
    table.finish();
    spool
}

/// Where the spool is. Unlike other paths it starts at `state_dir`, for it is nobody's but the relay's.
pub(super) fn directory(table: &mut Table<'_>, state_dir: &Path) -> PathBuf {
    let name = table.text("directory", "spool");
    state_dir.join(name.as_deref().unwrap_or("spool"))
}

fn retry(value: &DeValue<'_>) -> Result<Vec<Duration>, Complaint> {
    let hint = format!("for example retry = {RETRY:?}");
    let text = value.as_str().ok_or_else(|| mismatch("durations in quotes", value, &hint))?;
    waits(text).map_err(|reason| Complaint::new(reason, hint))
}

fn waits(text: &str) -> Result<Vec<Duration>, String> {
    if text.trim().is_empty() {
        return Err("there is no wait in it".to_owned());
    }
    text.split(',').map(wait).collect()
}

fn wait(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let wait =
        humantime::parse_duration(text).map_err(|_| format!("{text:?} is not a duration"))?;
    let range = SECOND..=DAY;
    range
        .contains(&wait)
        .then_some(wait)
        .ok_or_else(|| format!("{text:?} is not between 1s and 1day"))
}

pub(super) fn notices(mut table: Table<'_>) -> Option<Notices> {
    const TO: &str = "to = \"it-helpdesk@example.com\"";
    let to = table.read("to", |value| address(value, &format!("for example {TO}")));
    let smtp = table.read("smtp", server);
    let command = table.list("command", argument);
    table.require("to", TO);
    if table.has("smtp") && table.has("command") {
        table.problem("command", "notices go by smtp already", "remove one of the two");
    }
    let command = command.map(|command| program(&table, command));
    table.finish();
    let way = match command {
        Some(command) => NoticeWay::Command(command),
        None => smtp.unwrap_or(NoticeWay::Mailbox),
    };
    Some(Notices { to: to?, way })
}

/// An address as RCPT takes it: nobody is to learn at the first notice that it is none.
fn address(value: &DeValue<'_>, hint: &str) -> Result<String, Complaint> {
    let text = value::text(value, hint)?;
    match Address::parse(&text) {
        Ok(_) => Ok(text),
        Err(fault) => Err(Complaint::new(format!("{text:?} is not an address: {fault}"), hint)),
    }
}

fn server(value: &DeValue<'_>) -> Result<NoticeWay, Complaint> {
    let hint = "for example smtp = \"mx.example.com:25\"";
    let text = value::text(value, hint)?;
    let known = text.rsplit_once(':').and_then(|(host, port)| {
        let host = match host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')) {
            Some(inner) => inner.parse::<Ipv6Addr>().ok()?.to_string(),
            // Without brackets nobody knows where an IPv6 address ends.
            None => is_domain(host).then(|| host.to_owned())?,
        };
        let port = port.parse().ok().filter(|port| *port != 0)?;
        Some(NoticeWay::Smtp { host, port })
    });
    known.ok_or_else(|| Complaint::new(format!("{text:?} is not a server with a port"), hint))
}

const COMMAND: &str = "for example command = [\"/usr/local/bin/notify\", \"--from\", \"relay\"]";

/// Arguments may be empty, or hold anything that a program can be given.
fn argument(value: &DeValue<'_>) -> Result<String, Complaint> {
    let text = value.as_str().ok_or_else(|| mismatch("a string", value, COMMAND))?;
    if text.contains('\0') {
        return Err(Complaint::new("it has a NUL, which no program can be given", COMMAND));
    }
    Ok(text.to_owned())
}

/// The command, its program as a whole path unless it is searched for in `$PATH`.
fn program(table: &Table<'_>, mut command: Vec<String>) -> Vec<String> {
    let Some(program) = command.first_mut().filter(|program| !program.trim().is_empty()) else {
        table.problem("command", "it names no program", COMMAND);
        return command;
    };
    if !program.contains('/') {
        return command;
    }
    let path = table.folder().join(&*program);
    let fault = match fs::metadata(&path) {
        Err(error) => Some(error.to_string()),
        Ok(file) if !file.is_file() => Some("it is not a file".to_owned()),
        Ok(file) if file.permissions().mode() & 0o111 == 0 => {
            Some("nobody may execute it".to_owned())
        }
        Ok(_) => None,
    };
    if let Some(fault) = fault {
        table.problem(
            "command",
            format!("{} cannot be run: {fault}", path.display()),
            "relative paths start at this file's folder; chmod +x makes a file executable",
        );
    }
    *program = path.to_string_lossy().into_owned();
    command
}
