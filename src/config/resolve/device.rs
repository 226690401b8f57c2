//! `[[device]]`.

use ipnet::IpNet;

use super::{
    listener::network,
    mailbox::{Addresses, mail_address},
    profile,
};
use crate::{
    config::{Device, DeviceMatch, Listener, raw::Table},
    policy::{AccessList, DeviceAuth, Patterns, Profile, canonical},
};

pub(super) fn devices<'a>(
    root: &mut Table<'a>,
    listeners: &[Listener],
    known: &Addresses,
) -> Vec<Device> {
    let read = |mut table: Table<'a>| {
        let device = device(&mut table, known);
        (table, device)
    };
    let read: Vec<_> = root.sections("device").into_iter().map(read).collect();
    // Where devices meet a login: at the listeners, and at addresses whose own entry says otherwise.
    let mut doors: Vec<_> = listeners.iter().map(|listener| listener.profile.clone()).collect();
    for (_, device) in &read {
        let own = device.iter().filter(|device| matches!(device.who, DeviceMatch::Network(_)));
        doors.extend(own.flat_map(|device| {
            listeners.iter().map(|listener| listener.profile.with(&device.profile))
        }));
    }
    let mut devices = Vec::new();
    for (table, device) in read {
        if let Some(device) = &device {
            same_name(&table, device, &devices);
            without_effect(&table, device, &devices, &doors);
            open_relay(&table, device, &devices, listeners);
        }
        table.finish();
        devices.extend(device);
    }
    devices
}

fn device(table: &mut Table<'_>, known: &Addresses) -> Option<Device> {
    let name = table.text("name", "copier-3rd-floor");
    let address = table.read("address", network).map(|network| canonical(network).trunc());
    let login = table.text("login", "copier3");
    let profile = profile::overrides(table);
    let mailbox = known.named(table);
    let delivery = table.one_of("delivery", &[]);
    let senders = patterns(table, "senders", "for example senders = [\"copier3@example.com\"]");
    let recipients = patterns(table, "recipients", "for example recipients = [\"*@example.com\"]");
    match (table.has("address"), table.has("login")) {
        (true, true) => {
            table.problem(
                "login",
                "a device is told by its address or its login",
                "remove one of the two",
            );
        }
        (false, false) => {
            table.require("address", "address = \"10.1.2.3\", or login = \"copier3\"")
        }
        (false, true) => {
            for key in profile::BEFORE_LOGIN.into_iter().filter(|key| table.has(key)) {
                table.problem(
                    key,
                    "it acts before the device has logged in",
                    "tell the device by its address",
                );
            }
        }
        (true, false) => {}
    }
    let (text, who) = match (address, login) {
        (Some(network), _) => (shown(network), DeviceMatch::Network(network)),
        (None, Some(login)) => (login.clone(), DeviceMatch::Login(login)),
        (None, None) => return None,
    };
    Some(Device {
        name: name.unwrap_or(text),
        who,
        profile,
        mailbox,
        delivery,
        senders,
        recipients,
    })
}

fn patterns(table: &mut Table<'_>, key: &'static str, example: &str) -> Option<Patterns> {
    let list = table.list(key, |value| mail_address(value, example))?;
    if list.is_empty() {
        table.problem(key, "an empty list refuses everything", format!("{example}, or remove it"));
    }
    Some(Patterns::new(list))
}

/// Kept messages are judged by the name of their device's entry.
fn same_name(table: &Table<'_>, device: &Device, earlier: &[Device]) {
    let is_named = table.has("name");
    let is_same =
        |other: &&Device| other.name == device.name && (is_named || other.who != device.who);
    if earlier.iter().any(|other| is_same(&other)) {
        let reason = format!("another [[device]] above is called {:?}", device.name);
        table.problem("name", reason, "give each device a name of its own");
    }
}

/// A single address without its `/32`.
fn shown(network: IpNet) -> String {
    match network.prefix_len() == network.max_prefix_len() {
        true => network.addr().to_string(),
        false => network.to_string(),
    }
}

/// A listener that everybody reaches takes mail after a login only, and no device's own entry changes that for
/// everybody, nor do several together.
fn open_relay(table: &Table<'_>, device: &Device, earlier: &[Device], listeners: &[Listener]) {
    let hint = "give the devices' own addresses, or let them log in";
    for listener in listeners {
        let Listener { profile, allow, .. } = listener;
        if profile.takes_anybody() || !allow.is_open() {
            continue;
        }
        let waived = |device: &Device| match device.who {
            DeviceMatch::Network(network) if profile.with(&device.profile).takes_anybody() => {
                Some(network)
            }
            _ => None,
        };
        let Some(own) = waived(device) else { continue };
        let all: AccessList = earlier.iter().filter_map(waived).chain([own]).collect();
        if all.is_open() {
            let reason = format!(
                "an open relay: without a login everybody who reaches the listener {:?} could send as your mailbox",
                listener.name
            );
            let hint = format!(
                "{hint}. Who wants an open relay indeed writes open_relay = true there, and no auth"
            );
            return table.problem("address", reason, hint);
        }
        let is_public = AccessList::from_iter([own]).admits_public();
        if is_public && own.prefix_len() < own.max_prefix_len() {
            let reason = format!(
                "public addresses are in it, and need no login at the listener {:?}",
                listener.name
            );
            return table.warning("address", reason, hint);
        }
    }
}

/// The first match wins, so what comes behind a wider one never counts.
fn without_effect(table: &Table<'_>, device: &Device, earlier: &[Device], doors: &[Profile]) {
    let covers = |other: &&Device| match (&other.who, &device.who) {
        (DeviceMatch::Network(wide), DeviceMatch::Network(narrow)) => wide.contains(narrow),
        (wide, narrow) => wide == narrow,
    };
    let key = match device.who {
        DeviceMatch::Network(_) => "address",
        DeviceMatch::Login(_) => "login",
    };
    if let Some(other) = earlier.iter().find(covers) {
        let reason =
            format!("the device {:?} above has it, and the first that matches counts", other.name);
        table.warning(key, reason, "put the narrower one first, or remove one of the two");
    } else if key == "login" {
        let mut logins = doors.iter().filter(|door| door.auth != DeviceAuth::None).peekable();
        if logins.peek().is_none() {
            let hint = "write auth = \"offer\" at its listener, or tell it by its address";
            table.warning(key, "no listener offers AUTH, so nobody logs in with it", hint);
        } else if logins.all(|door| door.accept_any_credentials) {
            let reason = "accept_any_credentials takes any name, which proves nothing: the entry never counts";
            let hint = "remove accept_any_credentials at its listener, or tell it by its address";
            table.warning(key, reason, hint);
        }
    }
}
