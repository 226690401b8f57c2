//! The configuration written back as it acts.
//!
//! Every section is taken apart field by field, without `..`: a setting that is forgotten here does not
//! compile.

use std::{
    fmt::Display,
    path::{self, Path},
    time::Duration,
};

use toml::Value;

use super::{
    Admin, CertificateFiles, ClientProof, Config, Delivery, Device, DeviceMatch, Limits, Listener,
    Log, Mailbox, MailboxAuth, NoticeWay, Notices, OAuth, Smarthost, Spool, TokenSource,
    word::Word,
};
use crate::policy::{Overrides, Profile};

impl Config {
    /// TOML that reads back with the same meaning, here and in later versions: every default is spelled
    /// out, paths are absolute. A secret that stands in the configuration itself is left out, and the
    /// place where it was is refused when read.
    pub fn effective(&self) -> String {
        let Self {
            hostname,
            state_dir,
            drain_timeout,
            received,
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
        } = self;
        let mut page = Page::default();
        page.text("hostname", hostname);
        page.path("state_dir", state_dir);
        page.duration("drain_timeout", *drain_timeout);
        page.text("received", received.word());
        for each in listeners {
            listener(&mut page, each);
        }
        match certificate {
            None => page.remark("[tls] is absent: the certificate is self-made, in state_dir"),
            Some(CertificateFiles { certificate, private_key }) => {
                page.section("[tls]");
                page.path("certificate", certificate);
                page.path("private_key", private_key);
            }
        }
        self::limits(&mut page, limits);
        if let Some(path) = users_file {
            page.section("[auth]");
            page.path("users_file", path);
        }
        self::smarthost(&mut page, "[smarthost]", smarthost);
        for each in mailboxes {
            mailbox(&mut page, each);
            if each.smarthost != *smarthost {
                self::smarthost(&mut page, "[mailbox.smarthost]", &each.smarthost);
            }
        }
        for each in devices {
            device(&mut page, each);
        }
        page.section("[sender]");
        page.text("rewrite", rewrite.word());
        self::delivery(&mut page, delivery);
        self::spool(&mut page, spool);
        match notices {
            None => page.remark("[notices] is absent: only log and metrics tell"),
            Some(notices) => self::notices(&mut page, notices),
        }
        page.section("[admin]");
        match admin {
            None => page.text("address", ""),
            Some(Admin { address, token }) => {
                page.text("address", &address.to_string());
                if let Some(token) = token {
                    page.bare("token", token.to_toml());
                }
            }
        }
        let Log { format, level, transcripts } = log;
        page.section("[log]");
        page.text("format", format.word());
        page.text("level", level);
        page.text("transcripts", transcripts.word());
        page.text("addresses", "full");
        page.0
    }
}

fn listener(page: &mut Page, listener: &Listener) {
    let Listener {
        name,
        address,
        profile:
            Profile {
                tls,
                tls_profile,
                auto_wait,
                starttls_fallback,
                auth,
                auth_without_tls,
                accept_any_credentials,
                line_endings,
                hide,
            },
        allow,
        open_relay,
        proxy_protocol_from,
        mailbox,
    } = listener;
    page.section("[[listener]]");
    page.text("name", name);
    page.text("address", &address.to_string());
    page.text("tls", tls.word());
    page.text("tls_profile", tls_profile.word());
    page.duration("auto_wait", *auto_wait);
    page.duration("starttls_fallback", *starttls_fallback);
    page.text("auth", auth.word());
    page.bare("auth_without_tls", auth_without_tls);
    page.bare("accept_any_credentials", accept_any_credentials);
    page.text("line_endings", line_endings.word());
    page.list("hide", hide);
    page.list("proxy_protocol_from", proxy_protocol_from.networks());
    page.list("allow", allow.networks());
    page.bare("open_relay", open_relay);
    page.some_text("mailbox", mailbox.as_deref());
}

fn device(page: &mut Page, device: &Device) {
    let Device { name, who, profile, mailbox, delivery, senders, recipients } = device;
    let Overrides {
        tls,
        tls_profile,
        auto_wait,
        starttls_fallback,
        auth,
        auth_without_tls,
        accept_any_credentials,
        line_endings,
        hide,
    } = profile;
    page.section("[[device]]");
    page.text("name", name);
    match who {
        DeviceMatch::Network(network) => page.text("address", &network.to_string()),
        DeviceMatch::Login(login) => page.text("login", login),
    }
    page.some_text("tls", tls.map(Word::word));
    page.some_text("tls_profile", tls_profile.map(Word::word));
    for (key, duration) in [("auto_wait", auto_wait), ("starttls_fallback", starttls_fallback)] {
        if let Some(duration) = duration {
            page.duration(key, *duration);
        }
    }
    page.some_text("auth", auth.map(Word::word));
    let flags = [
        ("auth_without_tls", auth_without_tls),
        ("accept_any_credentials", accept_any_credentials),
    ];
    for (key, flag) in flags {
        if let Some(flag) = flag {
            page.bare(key, flag);
        }
    }
    page.some_text("line_endings", line_endings.map(Word::word));
    if let Some(hide) = hide {
        page.list("hide", hide);
    }
    page.some_text("mailbox", mailbox.as_deref());
    page.some_text("delivery", delivery.map(Word::word));
    for (key, patterns) in [("senders", senders), ("recipients", recipients)] {
        if let Some(patterns) = patterns {
            page.list(key, patterns.as_slice());
        }
    }
}

fn limits(page: &mut Page, limits: &Limits) {
    let Limits {
        message_size,
        recipients,
        sessions,
        sessions_per_device,
        handshakes,
        commands,
        command_timeout,
        idle_timeout,
        transaction_timeout,
        data_min_rate,
        messages_per_device,
        recipients_per_device,
    } = limits;
    page.section("[limits]");
    page.text("message_size", &size(*message_size));
    page.bare("recipients", recipients);
    page.bare("sessions", sessions);
    page.bare("sessions_per_device", sessions_per_device);
    page.bare("handshakes", handshakes);
    page.bare("commands", commands);
    page.duration("command_timeout", *command_timeout);
    page.duration("idle_timeout", *idle_timeout);
    page.duration("transaction_timeout", *transaction_timeout);
    page.text("data_min_rate", &format!("{}/s", size(*data_min_rate)));
    page.text("messages_per_device", &messages_per_device.to_string());
    page.text("recipients_per_device", &recipients_per_device.to_string());
}

fn smarthost(page: &mut Page, section: &str, smarthost: &Smarthost) {
    let Smarthost {
        host,
        port,
        tls,
        tls_min,
        tls_backend,
        ca_file,
        replies_file,
        lease_wait,
        client,
    } = smarthost;
    page.section(section);
    page.text("host", host);
    page.bare("port", port);
    page.text("tls", tls.word());
    page.text("tls_min", tls_min.word());
    page.text("tls_backend", tls_backend.word());
    if let Some(path) = ca_file {
        page.path("ca_file", path);
    }
    if let Some(path) = replies_file {
        page.path("replies_file", path);
    }
    page.duration("lease_wait", *lease_wait);
    if let Some(CertificateFiles { certificate, private_key }) = client {
        page.path("client_certificate", certificate);
        page.path("client_key", private_key);
    }
}

fn mailbox(page: &mut Page, mailbox: &Mailbox) {
    let Mailbox {
        address,
        username,
        auth,
        max_connections,
        messages_per_minute,
        recipients_per_day,
        message_size,
        send_as,
        // Written behind it, where it differs.
        smarthost: _,
    } = mailbox;
    page.section("[[mailbox]]");
    page.text("address", address);
    page.text("username", username);
    page.text(
        "auth",
        match auth {
            MailboxAuth::XOAuth2 { .. } => "xoauth2",
            MailboxAuth::Login { .. } => "login",
            MailboxAuth::Plain { .. } => "plain",
            MailboxAuth::None => "none",
        },
    );
    if let MailboxAuth::Login { password } | MailboxAuth::Plain { password } = auth {
        page.bare("password", password.to_toml());
    }
    page.bare("max_connections", max_connections);
    page.bare("messages_per_minute", messages_per_minute);
    page.bare("recipients_per_day", recipients_per_day);
    page.some_text("message_size", message_size.map(size).as_deref());
    page.list("send_as", send_as.as_slice());
    if let MailboxAuth::XOAuth2 { token } = auth {
        page.section("[mailbox.oauth]");
        match token {
            TokenSource::Ready(token) => page.bare("token", token.to_toml()),
            TokenSource::OAuth(each) => oauth(page, each),
        }
    }
}

/// Without the cloud, which is all in the address and the scope.
fn oauth(page: &mut Page, oauth: &OAuth) {
    let OAuth {
        flow,
        tenant,
        client_id,
        client,
        token_url,
        scope,
        refresh_token,
        client_secret_expires,
    } = oauth;
    page.text("flow", flow.word());
    page.some_text("tenant", Some(tenant.as_str()).filter(|tenant| !tenant.is_empty()));
    page.text("client_id", client_id);
    match client {
        None => {}
        Some(ClientProof::Secret(secret)) => page.bare("client_secret", secret.to_toml()),
        Some(ClientProof::Certificate { certificate, private_key }) => {
            page.path("certificate", certificate);
            page.bare("private_key", private_key.to_toml());
        }
    }
    if let Some(date) = client_secret_expires {
        page.bare("client_secret_expires", date);
    }
    if let Some(secret) = refresh_token {
        page.bare("refresh_token", secret.to_toml());
    }
    page.text("token_url", token_url);
    page.text("scope", scope);
}

fn delivery(page: &mut Page, delivery: &Delivery) {
    let Delivery { mode, device_patience, replay_memory, replay_memory_total } = delivery;
    page.section("[delivery]");
    page.text("mode", mode.word());
    page.duration("device_patience", *device_patience);
    page.text("replay_memory", &size(*replay_memory));
    page.text("replay_memory_total", &size(*replay_memory_total));
}

fn spool(page: &mut Page, spool: &Spool) {
    let Spool { directory, max_size, expire, held_expire, retry, keep_failed } = spool;
    page.section("[spool]");
    page.path("directory", directory);
    page.text("max_size", &size(*max_size));
    page.duration("expire", *expire);
    page.duration("held_expire", *held_expire);
    let retry: Vec<_> =
        retry.iter().map(|wait| humantime::format_duration(*wait).to_string()).collect();
    page.text("retry", &retry.join(", "));
    page.duration("keep_failed", *keep_failed);
}

fn notices(page: &mut Page, notices: &Notices) {
    let Notices { to, way } = notices;
    page.section("[notices]");
    page.text("to", to);
    match way {
        NoticeWay::Mailbox => {}
        // An IPv6 address has colons of its own.
        NoticeWay::Smtp { host, port } if host.contains(':') => {
            page.text("smtp", &format!("[{host}]:{port}"));
        }
        NoticeWay::Smtp { host, port } => page.text("smtp", &format!("{host}:{port}")),
        NoticeWay::Command(command) => page.list("command", &command_line(command)),
    }
}

/// A program that is not searched for in `$PATH` is a path, and paths are absolute.
fn command_line(command: &[String]) -> Vec<String> {
    let mut command = command.to_vec();
    if let Some(program) = command.first_mut().filter(|program| program.contains('/'))
        && let Ok(absolute) = path::absolute(&*program)
    {
        *program = absolute.to_string_lossy().into_owned();
    }
    command
}

/// The text as it grows.
#[derive(Default)]
struct Page(String);

impl Page {
    fn section(&mut self, head: &str) {
        self.0.push_str(&format!("\n{head}\n"));
    }

    fn remark(&mut self, remark: &str) {
        self.0.push_str(&format!("\n# {remark}\n"));
    }

    /// A value that needs no quotes.
    fn bare(&mut self, key: &str, value: impl Display) {
        self.0.push_str(&format!("{key} = {value}\n"));
    }

    fn text(&mut self, key: &str, text: &str) {
        self.bare(key, quoted(text));
    }

    fn some_text(&mut self, key: &str, text: Option<&str>) {
        if let Some(text) = text {
            self.text(key, text);
        }
    }

    fn path(&mut self, key: &str, path: &Path) {
        self.bare(key, quoted_path(path));
    }

    fn duration(&mut self, key: &str, duration: Duration) {
        self.text(key, &humantime::format_duration(duration).to_string());
    }

    fn list(&mut self, key: &str, items: &[impl ToString]) {
        let items: Vec<_> = items.iter().map(|item| quoted(&item.to_string())).collect();
        self.bare(key, format!("[{}]", items.join(", ")));
    }
}

pub(super) fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// A configuration may be read again from another folder.
pub(super) fn quoted_path(path: &Path) -> String {
    let absolute = path::absolute(path).unwrap_or_else(|_| path.to_owned());
    quoted(&absolute.to_string_lossy())
}

/// In the largest unit that says it exactly.
fn size(octets: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let exact = units.iter().find(|(bits, _)| octets != 0 && octets.trailing_zeros() >= *bits);
    match exact {
        Some((bits, unit)) => format!("{}{unit}", octets >> bits),
        None => format!("{octets}B"),
    }
}
