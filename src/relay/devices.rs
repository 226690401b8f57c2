//! Which device talks: what it is called, and which mailbox its mail is bound to. Pure.

use std::net::IpAddr;

use crate::{
    config::{Device, DeviceMatch},
    policy::Profile,
};

/// What is known of single devices; the first that matches counts.
#[derive(Clone, Debug, Default)]
pub struct Devices(Vec<Device>);

/// What a device has logged in with.
#[derive(Clone, Copy, Debug)]
pub struct LoggedIn<'a> {
    /// The name.
    pub user: &'a str,
    /// The mailbox in its line of the users file.
    pub mailbox: Option<&'a str>,
}

impl Devices {
    /// Those of a configuration.
    pub fn new(devices: Vec<Device>) -> Self {
        Self(devices)
    }

    /// The device that connects from there.
    pub fn at(&self, peer: IpAddr) -> Option<&Device> {
        self.0.iter().find(
            |device| matches!(&device.who, DeviceMatch::Network(network) if network.contains(&peer)),
        )
    }

    /// The device that logs call this.
    pub fn named(&self, name: &str) -> Option<&Device> {
        self.0.iter().find(|device| device.name == name)
    }

    /// How whoever connects from there is served, where a listener says this.
    pub fn profile(&self, peer: IpAddr, listener: &Profile) -> Profile {
        self.at(peer).map_or_else(|| listener.clone(), |device| listener.with(&device.profile))
    }

    /// The mailbox that mail is bound to, by the first of these that names one: the device's address, its line of the
    /// users file, the name that it has logged in with, the listener.
    pub fn mailbox<'a>(
        &'a self,
        peer: IpAddr,
        login: Option<LoggedIn<'a>>,
        listener: Option<&'a str>,
    ) -> Option<&'a str> {
        let of = |device: &'a Device| device.mailbox.as_deref();
        let by_address = || self.at(peer).and_then(of);
        let by_line = || login?.mailbox;
        let by_name = || self.logged_in(login?.user).and_then(of);
        by_address().or_else(by_line).or_else(by_name).or(listener)
    }

    /// The device with this login. Some devices make an address of whatever name they are given (devices.md row 12).
    pub fn logged_in(&self, user: &str) -> Option<&Device> {
        let name = user.split('@').next().unwrap_or_default();
        let is = |known: &str| known == user || known == name;
        self.0.iter().find(|device| matches!(&device.who, DeviceMatch::Login(login) if is(login)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Overrides;

    fn device(name: &str, who: DeviceMatch, mailbox: Option<&str>) -> Device {
        Device {
            name: name.to_owned(),
            who,
            profile: Overrides::default(),
            mailbox: mailbox.map(str::to_owned),
            delivery: None,
            senders: None,
            recipients: None,
        }
    }

    fn network(text: &str) -> DeviceMatch {
        DeviceMatch::Network(text.parse().unwrap())
    }

    #[test]
    fn the_first_that_names_a_mailbox_binds() {
        let devices = Devices::new(vec![
            device("one", network("10.0.0.1/32"), Some("address@x")),
            device("floor", network("10.0.0.0/24"), None),
            device("late", network("10.0.0.0/8"), Some("never@x")),
            device("login", DeviceMatch::Login("copier3".to_owned()), Some("name@x")),
        ]);
        let login = |user, mailbox| Some(LoggedIn { user, mailbox });
        for (peer, login, listener, bound) in [
            ("10.0.0.1", login("copier3", Some("line@x")), Some("door@x"), Some("address@x")),
            ("10.0.0.2", login("copier3", Some("line@x")), Some("door@x"), Some("line@x")),
            ("10.0.0.2", login("copier3", None), Some("door@x"), Some("name@x")),
            ("10.0.0.2", login("copier3@some.lan", None), None, Some("name@x")),
            ("10.0.0.2", login("other", None), Some("door@x"), Some("door@x")),
            ("10.0.0.2", None, None, None),
            ("192.0.2.1", None, Some("door@x"), Some("door@x")),
        ] {
            let found = devices.mailbox(peer.parse().unwrap(), login, listener);
            assert_eq!(found, bound, "{peer} {login:?} {listener:?}");
        }
        assert_eq!(devices.at("10.0.0.9".parse().unwrap()).unwrap().name, "floor");
        assert!(devices.at("192.0.2.1".parse().unwrap()).is_none());
    }
}
