//! `[[listener]]`.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;
use toml::de::DeValue;

use super::{DAY, mailbox::Addresses};
use crate::{
    config::{
        Listener,
        raw::{Complaint, LATER, Table, mismatch},
        value,
    },
    policy::{AccessList, DeviceAuth, ListenerTls},
};

/// The EHLO keywords that we offer, and so the ones that can be hidden.
const KEYWORDS: [&str; 7] =
    ["SIZE", "PIPELINING", "8BITMIME", "ENHANCEDSTATUSCODES", "SMTPUTF8", "STARTTLS", "AUTH"];

pub(super) fn listeners(
    root: &mut Table<'_>,
    users_given: bool,
    admin: Option<SocketAddr>,
    known: &Addresses,
) -> Vec<Listener> {
    let tables = root.sections("listener");
    if tables.is_empty() && !root.has("listener") {
        root.problem(
            "listener",
            "there is none, so no device could connect",
            "add [[listener]] with an address",
        );
    }
    let mut names = HashSet::new();
    let mut addresses: HashSet<_> =
        admin.into_iter().filter(|address| address.port() != 0).collect();
    tables
        .into_iter()
        .map(|table| listener(table, users_given, &mut names, &mut addresses, known))
        .collect()
}

fn listener(
    mut table: Table<'_>,
    users_given: bool,
    names: &mut HashSet<String>,
    addresses: &mut HashSet<SocketAddr>,
    known: &Addresses,
) -> Listener {
    const EXAMPLE: &str = "0.0.0.0:2525";
    let address = table.socket_address("address", EXAMPLE);
    let name = table.text("name", "lan");
    let tls = table.one_of("tls", &[("auto", LATER)]);
    let tls_profile = table.one_of("tls_profile", &[]);
    let auth = table.one_of("auth", &[]);
    let auth_without_tls = table.flag("auth_without_tls");
    let accept_any_credentials = table.flag("accept_any_credentials");
    let line_endings = table.one_of("line_endings", &[]);
    let hide = table.list("hide", keyword);
    let allow = table.list("allow", network);
    let mailbox = known.named(&mut table);
    unsupported(&mut table);
    if !table.has("systemd") {
        table.require("address", &format!("address = {EXAMPLE:?}"));
    }

    if let Some(address) = address
        && address.port() != 0
        && !addresses.insert(address)
    {
        table.problem(
            "address",
            format!("{address} is taken already"),
            "give each listener and [admin] its own",
        );
    }
    let name = name.or(address.map(|address| address.to_string()));
    if let Some(name) = &name
        && !names.insert(name.clone())
    {
        table.problem(
            "name",
            format!("another listener is called {name:?}"),
            "give each its own name",
        );
    }
    if allow.as_ref().is_some_and(Vec::is_empty) {
        table.problem(
            "allow",
            "an empty list refuses everybody",
            "remove it for the private networks",
        );
    }
    let allow = allow.map_or_else(AccessList::default, AccessList::from_iter);
    let listener = Listener {
        name: name.unwrap_or_default(),
        address: address.unwrap_or(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))),
        tls: tls.unwrap_or_default(),
        tls_profile: tls_profile.unwrap_or_default(),
        auth: auth.unwrap_or_default(),
        auth_without_tls,
        accept_any_credentials,
        line_endings: line_endings.unwrap_or_default(),
        hide: hide.unwrap_or_default(),
        allow,
        mailbox,
    };
    contradictions(&table, &listener, users_given);
    table.finish();
    listener
}

/// What only later versions act on, at any value that would change something.
fn unsupported(table: &mut Table<'_>) {
    let fallback = table.duration("starttls_fallback", Duration::ZERO, Duration::ZERO..=DAY);
    if !fallback.is_zero() {
        table.problem("starttls_fallback", LATER, "write starttls_fallback = \"0s\"");
    }
    let balancers = table.list("proxy_protocol_from", network);
    if balancers.is_some_and(|balancers| !balancers.is_empty()) {
        table.problem("proxy_protocol_from", LATER, "write proxy_protocol_from = []");
    }
    table.not_yet("auto_wait");
    if table.take("systemd").is_some() {
        table.problem("systemd", LATER, "write address = \"0.0.0.0:2525\" in its place");
    }
}

/// Settings that are fine by themselves and make no sense together.
fn contradictions(table: &Table<'_>, listener: &Listener, users_given: bool) {
    let logs_in = listener.auth != DeviceAuth::None;
    if logs_in && !users_given && !listener.accept_any_credentials {
        let hint = "name the logins in [auth] users_file, or write accept_any_credentials = true";
        table.problem("auth", "there are no logins that a device could use", hint);
    }
    if logs_in && listener.tls == ListenerTls::None && !listener.auth_without_tls {
        let hint = "write auth_without_tls = true, or tls = \"starttls\"";
        table.problem("auth", "AUTH is offered under TLS only and this listener has none", hint);
    }
    if listener.accept_any_credentials && !logs_in {
        let hint = "write auth = \"offer\" too, or remove it";
        table.warning("accept_any_credentials", "AUTH is not offered, so nobody logs in", hint);
    }
    let hides = |wanted: &str| listener.hide.iter().any(|keyword| keyword == wanted);
    if listener.tls == ListenerTls::RequireStartTls && hides("STARTTLS") {
        table.warning(
            "hide",
            "STARTTLS is required and hidden",
            "few devices ask for what is not offered",
        );
    }
    if listener.auth == DeviceAuth::Require && hides("AUTH") {
        table.warning(
            "hide",
            "AUTH is required and hidden",
            "few devices ask for what is not offered",
        );
    }
    let open = listener.allow.networks().iter().any(|network| network.prefix_len() == 0);
    if open && (listener.auth != DeviceAuth::Require || listener.accept_any_credentials) {
        let hint =
            "list the networks of your devices, or write auth = \"require\" with [auth] users_file";
        table.warning("allow", "everybody who reaches this port can send as your mailbox", hint);
    }
}

fn keyword(value: &DeValue<'_>) -> Result<String, Complaint> {
    let hint = format!("known are {}", KEYWORDS.join(", "));
    let keyword = value::text(value, &hint)?.to_ascii_uppercase();
    if KEYWORDS.contains(&keyword.as_str()) {
        return Ok(keyword);
    }
    Err(Complaint::new(format!("{keyword:?} is not an EHLO keyword that we offer"), hint))
}

pub(super) fn network(value: &DeValue<'_>) -> Result<IpNet, Complaint> {
    let hint = "for example \"10.0.0.0/8\" or \"10.1.2.3\"";
    let text = value.as_str().ok_or_else(|| mismatch("a network in quotes", value, hint))?;
    let address = || text.parse::<IpAddr>().ok().map(IpNet::from);
    text.parse()
        .ok()
        .or_else(address)
        .ok_or_else(|| Complaint::new(format!("{text:?} is not a network"), hint))
}
