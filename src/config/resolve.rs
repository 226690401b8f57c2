//! From the TOML tree to the typed configuration, section by section.
//!
//! Each function reads one section to its end and goes on after a problem with the default, so that
//! every problem is found in one pass. A configuration comes out only if none was.

mod device;
mod listener;
mod mailbox;
mod oauth;
mod profile;
mod smarthost;
mod spool;

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use bytesize::ByteSize;

use super::{
    Admin, CertificateFiles, Config, Limits, Listener, Log, Places, Smarthost,
    file::open_mode,
    raw::{Complaint, LATER, Table},
    secrets::secret,
    value,
};
use crate::policy::{DeviceAuth, Quota, Span, sender::Rewrite};

/// Nothing that is waited for takes longer; far from what a clock can add.
const DAY: Duration = Duration::from_secs(24 * 3600);
const TICK: Duration = Duration::from_millis(1);

// Examples for messages.
const CERTIFICATE: &str = "certs/relay.crt";
const KEY: &str = "certs/relay.key";
const USERS: &str = "users.txt";
const REPLIES: &str = "replies.toml";

pub(super) fn config(mut root: Table<'_>) -> Option<Config> {
    let hostname = hostname(&mut root);
    let state_dir = state_dir(&mut root);
    let drain_timeout =
        root.duration("drain_timeout", Duration::from_secs(30), Duration::ZERO..=DAY);
    let received = root.one_of("received", &[]);
    let certificate = root.section("tls").and_then(certificate);
    let mut auth = root.section_or_empty("auth");
    let users_file = auth.file("users_file", USERS);
    // A file that cannot be read has its own problem; the listeners need not repeat it.
    let users_given = auth.has("users_file");
    let admin = admin(root.section_or_empty("admin"));
    let limits = limits(root.section_or_empty("limits"));
    let mut table = root.section_or_empty("smarthost");
    let smarthost = smarthost::smarthost(&mut table, &smarthost::default());
    let (mailboxes, known) = mailbox::mailboxes(&mut root, &smarthost, table.has("host"));
    table.finish();
    let listeners = listener::listeners(
        &mut root,
        users_given,
        admin.as_ref().map(|admin| admin.address),
        &known,
    );
    for mailbox in &mailboxes {
        let Smarthost { host, port, .. } = &mailbox.smarthost;
        let is_here = |listener: &&Listener| {
            let address = listener.address.ip();
            let named = host.eq_ignore_ascii_case("localhost")
                || hostname.as_ref().is_some_and(|own| own.eq_ignore_ascii_case(host));
            let literal = host.trim_matches(['[', ']']).parse::<IpAddr>();
            let same = named || literal.is_ok_and(|host| host == address || host.is_loopback());
            listener.address.port() == *port && same && *port != 0
        };
        if let Some(listener) = listeners.iter().find(is_here) {
            let reason = format!(
                "the smarthost of {} is {host}:{port}, where the listener {:?} is: mail would go in circles",
                mailbox.address, listener.name
            );
            root.problem("smarthost", reason, "name the server that takes your mail");
        }
    }
    let require = |listener: &Listener| {
        listener.profile.auth == DeviceAuth::Require && !listener.profile.takes_anybody()
    };
    if listeners.iter().any(require)
        && let Some(path) = &users_file
        && fs::read_to_string(path).is_ok_and(|text| {
            !text.lines().any(|line| !line.starts_with('#') && line.contains(':'))
        })
    {
        let reason = "it has no login yet, so no device can send where auth = \"require\"";
        auth.warning("users_file", reason, "smtp-uplift passwd NAME writes one");
    }
    auth.finish();
    let devices = device::devices(&mut root, &listeners, &known);
    let rewrite = sender(root.section_or_empty("sender"));
    let delivery = spool::delivery(root.section_or_empty("delivery"));
    let spool = spool::spool(root.section_or_empty("spool"), &state_dir);
    let notices = root.section("notices").and_then(spool::notices);
    let log = log(root.section_or_empty("log"));
    root.finish();
    Some(Config {
        hostname: hostname?,
        state_dir,
        drain_timeout,
        received: received.unwrap_or_default(),
        listeners,
        certificate,
        limits,
        users_file,
        smarthost,
        mailboxes,
        devices,
        rewrite,
        delivery,
        spool,
        notices,
        admin,
        log,
    })
}

/// Only where things are. No section is read to its end, so that other faults do not count.
pub(super) fn places(mut root: Table<'_>) -> Places {
    let certificate = root.section("tls").and_then(|mut tls| {
        let certificate = tls.path("certificate", CERTIFICATE)?;
        Some(CertificateFiles { certificate, private_key: tls.path("private_key", KEY)? })
    });
    let state_dir = state_dir(&mut root);
    Places {
        spool: spool::directory(&mut root.section_or_empty("spool"), &state_dir),
        state_dir,
        certificate,
        users_file: root.section_or_empty("auth").path("users_file", USERS),
        replies_file: root.section_or_empty("smarthost").path("replies_file", REPLIES),
        admin: admin_address(&mut root.section_or_empty("admin")),
    }
}

fn state_dir(root: &mut Table<'_>) -> PathBuf {
    const DEFAULT: &str = "/var/lib/smtp-uplift";
    root.path("state_dir", DEFAULT).unwrap_or_else(|| DEFAULT.into())
}

fn hostname(root: &mut Table<'_>) -> Option<String> {
    const EXAMPLE: &str = "relay.example.lan";
    let given = root.text("hostname", EXAMPLE);
    let (name, whose) = match given {
        Some(name) => (name, ""),
        None if root.has("hostname") => return None,
        None => (gethostname::gethostname().to_string_lossy().into_owned(), "the system's name "),
    };
    if is_domain(&name) {
        return Some(name);
    }
    root.problem(
        "hostname",
        format!("{whose}{name:?} is not a domain name"),
        format!("for example hostname = {EXAMPLE:?}"),
    );
    None
}

/// Whether this is a `Domain` (RFC 5321, section 4.1.2), which is also all that goes unescaped into a
/// Received field.
pub fn is_domain(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|octet| octet.is_ascii_alphanumeric() || octet == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

fn certificate(mut tls: Table<'_>) -> Option<CertificateFiles> {
    let certificate = tls.file("certificate", CERTIFICATE);
    let private_key = tls.file("private_key", KEY);
    tls.require(
        "certificate",
        "certificate = \"certs/relay.crt\", or leave [tls] out for a self-made one",
    );
    tls.require("private_key", "private_key = \"certs/relay.key\"");
    if let Some(path) = &private_key
        && let Some(mode) = open_mode(path, 0o007)
    {
        let reason = format!("{} has mode {mode:04o}: every user can get at it", path.display());
        tls.warning("private_key", reason, format!("chmod 600 {}", path.display()));
    }
    tls.finish();
    Some(CertificateFiles { certificate: certificate?, private_key: private_key? })
}

fn limits(mut table: Table<'_>) -> Limits {
    let mut limits = Limits {
        message_size: table.size(
            "message_size",
            ByteSize::mib(150),
            ByteSize::b(1)..=ByteSize::gib(16),
        ),
        recipients: table.number("recipients", 500, 1..=100_000),
        sessions: table.number("sessions", 5_000, 1..=1_000_000),
        sessions_per_device: table.number("sessions_per_device", 50, 1..=1_000_000),
        handshakes: table.number("handshakes", 200, 1..=100_000),
        commands: table.number("commands", 1_000, 10..=1_000_000),
        command_timeout: table.duration("command_timeout", Duration::from_secs(300), TICK..=DAY),
        idle_timeout: table.duration("idle_timeout", Duration::from_secs(600), TICK..=DAY),
        transaction_timeout: table.duration(
            "transaction_timeout",
            Duration::from_secs(1_800),
            TICK..=DAY,
        ),
        data_min_rate: table.rate("data_min_rate", ByteSize::b(256)),
        messages_per_device: table.quota("messages_per_device", Quota::unlimited(Span::Hour)),
        recipients_per_device: table.quota("recipients_per_device", Quota::unlimited(Span::Day)),
    };
    // Each recipient takes a command.
    let needed = limits.recipients.saturating_mul(2);
    if !table.has("commands") {
        limits.commands = limits.commands.max(needed);
    } else if limits.commands < needed {
        let (commands, recipients) = (limits.commands, limits.recipients);
        let reason = format!("{commands} are too few for a message to {recipients} recipients");
        table.problem("commands", reason, format!("for example commands = {needed}"));
    }
    table.finish();
    limits
}

fn sender(mut table: Table<'_>) -> Rewrite {
    let rewrite = table.one_of("rewrite", &[]);
    table.finish();
    rewrite.unwrap_or_default()
}

fn admin(mut table: Table<'_>) -> Option<Admin> {
    let address = admin_address(&mut table);
    let token = secret(&mut table, "token");
    table.finish();
    Some(Admin { address: address?, token })
}

fn admin_address(table: &mut Table<'_>) -> Option<SocketAddr> {
    let default = SocketAddr::from((Ipv4Addr::LOCALHOST, 9525));
    let address = table.read("address", |value| match value.as_str() {
        Some("") => Ok(None),
        _ => value::socket_address(
            value,
            "for example address = \"127.0.0.1:9525\", or \"\" for none",
        )
        .map(Some),
    });
    address.unwrap_or(Some(default))
}

fn log(mut table: Table<'_>) -> Log {
    let format = table.one_of("format", &[]);
    let level = table.read("level", |value| {
        let hint = "for example level = \"info\", or \"info,smtp_uplift=debug\"";
        let level = value::text(value, hint)?;
        let known = level.split(',').all(|part| is_log_filter(part.trim()));
        known
            .then(|| level.clone())
            .ok_or_else(|| Complaint::new(format!("{level:?} is not a level"), hint))
    });
    let transcripts = table.one_of("transcripts", &[]);
    table.word("addresses", &[("full", Ok(())), ("domain", Err(LATER)), ("hash", Err(LATER))]);
    table.finish();
    Log {
        format: format.unwrap_or_default(),
        level: level.unwrap_or_else(|| "info".into()),
        transcripts: transcripts.unwrap_or_default(),
    }
}

/// A level, or a module with the level that it logs at; spans and their fields are no business of a configuration.
fn is_log_filter(part: &str) -> bool {
    let (target, level) = part.split_once('=').unwrap_or(("any", part));
    let is_module =
        |octet: u8| octet.is_ascii_alphanumeric() || matches!(octet, b'_' | b'-' | b':');
    !target.is_empty()
        && target.bytes().all(is_module)
        && matches!(
            level.to_ascii_lowercase().as_str(),
            "off" | "error" | "warn" | "info" | "debug" | "trace"
        )
}
