//! `[[listener]]`.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use ipnet::IpNet;
use toml::de::DeValue;

use super::{mailbox::Addresses, profile};
use crate::{
    config::{
        Listener,
        raw::{Complaint, LATER, Table, mismatch},
    },
    policy::{AccessList, DeviceAuth, ListenerTls, Profile},
};

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
    let profile = Profile::default().with(&profile::overrides(&mut table));
    let allow = table.list("allow", network);
    let open_relay = table.flag("open_relay");
    let mailbox = known.named(&mut table);
    let balancers = table.list("proxy_protocol_from", network).unwrap_or_default();
    if table.take("systemd").is_some() {
        table.problem("systemd", LATER, "write address = \"0.0.0.0:2525\" in its place");
    }
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
        profile,
        allow,
        open_relay,
        proxy_protocol_from: balancers.into_iter().collect(),
        mailbox,
    };
    contradictions(&table, &listener, users_given);
    table.finish();
    listener
}

/// Settings that are fine by themselves and make no sense together.
fn contradictions(table: &Table<'_>, listener: &Listener, users_given: bool) {
    let profile = &listener.profile;
    let logs_in = profile.auth != DeviceAuth::None;
    if logs_in && !users_given && !profile.accept_any_credentials {
        let hint = "name the logins in [auth] users_file, or write accept_any_credentials = true";
        table.problem("auth", "there are no logins that a device could use", hint);
    }
    if logs_in && profile.tls == ListenerTls::None && !profile.auth_without_tls {
        let hint = "write auth_without_tls = true, or tls = \"starttls\"";
        table.problem("auth", "AUTH is offered under TLS only and this listener has none", hint);
    }
    if profile.accept_any_credentials && !logs_in {
        let hint = "write auth = \"offer\" too, or remove it";
        table.warning("accept_any_credentials", "AUTH is not offered, so nobody logs in", hint);
    }
    let hides = |wanted: &str| profile.hide.iter().any(|keyword| keyword == wanted);
    if profile.tls == ListenerTls::RequireStartTls && hides("STARTTLS") {
        table.warning(
            "hide",
            "STARTTLS is required and hidden",
            "few devices ask for what is not offered",
        );
    }
    if profile.auth == DeviceAuth::Require && hides("AUTH") {
        table.warning(
            "hide",
            "AUTH is required and hidden",
            "few devices ask for what is not offered",
        );
    }
    open_relay(table, listener);
    balancers(table, listener);
}

/// Whether everybody could send. Nobody gets an open relay by mistake: it has a name of its own.
fn open_relay(table: &Table<'_>, listener: &Listener) {
    let Listener { allow, profile, .. } = listener;
    let hint =
        "list the networks of your devices, or write auth = \"require\" with [auth] users_file";
    let is_open = allow.is_open();
    if listener.open_relay && !profile.takes_anybody() {
        let reason = "mail is taken after a login only, so it has no effect";
        table.warning("open_relay", reason, "remove it");
    } else if is_open && listener.open_relay {
        let reason =
            "THIS IS AN OPEN RELAY: everybody who reaches this port can send as your mailbox";
        table.warning("open_relay", reason, format!("remove it, and {hint}"));
    } else if is_open && profile.takes_anybody() {
        let reason = "an open relay: everybody who reaches this port could send as your mailbox";
        let hint = format!(
            "{hint}; accept_any_credentials is no login. Who wants an open relay indeed writes open_relay = true"
        );
        table.problem("allow", reason, hint);
    } else if allow.admits_public() && profile.takes_anybody() {
        let reason = "public addresses are on it, and need no login to send as your mailbox";
        table.warning("allow", reason, hint);
    } else if listener.open_relay {
        table.warning("open_relay", "allow is not open, so it changes nothing", "remove it");
    }
}

/// Whose PROXY headers are believed: that is as good as an address of one's own choice.
fn balancers(table: &Table<'_>, listener: &Listener) {
    const KEY: &str = "proxy_protocol_from";
    let hint = "list your balancers' own addresses";
    let networks = listener.proxy_protocol_from.networks();
    let wider =
        |bits: u8| move |network: &&IpNet| network.max_prefix_len() - network.prefix_len() > bits;
    let public = |network: &&IpNet| AccessList::from_iter([**network]).admits_public();
    let reason = |network| format!("whoever is in {network} may claim any address");
    if listener.proxy_protocol_from.is_open() {
        let reason =
            "whoever may send a PROXY header may claim any address, and here that is everybody";
        table.problem(KEY, reason, hint);
    } else if listener.profile.takes_anybody()
        && let Some(network) = networks.iter().filter(wider(0)).find(public)
    {
        let hint = format!("{hint}, or write auth = \"require\" with [auth] users_file");
        table.problem(KEY, format!("{}, and it is public", reason(network)), hint);
    } else if let Some(network) = networks.iter().find(wider(8)) {
        table.warning(KEY, reason(network), hint);
    }
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
