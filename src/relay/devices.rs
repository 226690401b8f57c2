//! Which device talks: what it is called, what it may do, and which mailbox its mail is bound to. Pure.

use std::{net::IpAddr, sync::Arc};

use crate::{
    config::{DeliveryMode, Device, DeviceMatch},
    policy::{Patterns, Profile, household},
    proto::limits::LineEndings,
};

/// What is known of single devices; the first that matches counts.
#[derive(Clone, Debug, Default)]
pub struct Devices(Vec<Arc<Device>>);

/// What the configuration says of the device that talks. The first entry in the file that matches its address counts,
/// and after a login the first with that name too. Where both have a setting that of the address counts, as for its
/// mailbox: an address cannot be chosen by whoever knows a password.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    address: Option<Arc<Device>>,
    login: Option<Arc<Device>>,
}

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
        Self(devices.into_iter().map(Arc::new).collect())
    }

    /// What counts for a device at that address, with the name that it has logged in with.
    pub fn terms(&self, peer: IpAddr, user: Option<&str>) -> Terms {
        let login = user.and_then(|user| self.logged_in(user));
        Terms { address: self.at(peer).cloned(), login: login.cloned() }
    }

    /// The device that connects from there.
    pub fn at(&self, peer: IpAddr) -> Option<&Arc<Device>> {
        self.0.iter().find(
            |device| matches!(&device.who, DeviceMatch::Network(network) if network.contains(&peer)),
        )
    }

    /// The device that logs call this.
    pub fn named(&self, name: &str) -> Option<&Device> {
        self.0.iter().map(Arc::as_ref).find(|device| device.name == name)
    }

    /// How whoever connects from there is served, where a listener says this.
    pub fn profile(&self, peer: IpAddr, listener: &Profile) -> Profile {
        self.at(peer).map_or_else(|| listener.clone(), |device| listener.with(&device.profile))
    }

    /// Whose messages are counted together: those of a device with an entry of its own, of a login that was `proven`,
    /// else of an address. An entry for a whole network is no device.
    pub fn counted_as(&self, peer: IpAddr, proven: Option<&str>) -> String {
        let single = |device: &&Arc<Device>| matches!(&device.who, DeviceMatch::Network(it) if it.prefix_len() == it.max_prefix_len());
        match (self.at(peer).filter(single), proven) {
            (Some(device), _) => format!("device {}", device.name),
            (None, Some(name)) => format!("login {name}"),
            (None, None) => household(peer).to_string(),
        }
    }

    /// The mailbox that mail is bound to, by the first of these that names one: the device's address, its line of the
    /// users file, the name that it has logged in with, the listener.
    pub fn mailbox<'a>(
        &'a self,
        peer: IpAddr,
        login: Option<LoggedIn<'a>>,
        listener: Option<&'a str>,
    ) -> Option<&'a str> {
        let of = |device: &'a Arc<Device>| device.mailbox.as_deref();
        let by_address = || self.at(peer).and_then(of);
        let by_line = || login?.mailbox;
        let by_name = || self.logged_in(login?.user).and_then(of);
        by_address().or_else(by_line).or_else(by_name).or(listener)
    }

    /// The device with this login. Some devices make an address of whatever name they are given (devices.md row 12).
    pub fn logged_in(&self, user: &str) -> Option<&Arc<Device>> {
        let name = user.split('@').next().unwrap_or_default();
        let is = |known: &str| known == user || known == name;
        self.0.iter().find(|device| matches!(&device.who, DeviceMatch::Login(login) if is(login)))
    }
}

impl Terms {
    /// The device's name, if it has an entry.
    pub fn name(&self) -> Option<&str> {
        self.first(|device| Some(device.name.as_str()))
    }

    /// What its 250 means; `None`: as for all.
    pub fn delivery(&self) -> Option<DeliveryMode> {
        self.first(|device| device.delivery)
    }

    /// The entry that says what it may send as.
    pub fn judge(&self) -> Option<&str> {
        self.first(|device| device.senders.as_ref().map(|_| device.name.as_str()))
    }

    /// What it may send as; `None`: anything.
    pub fn senders(&self) -> Option<&Patterns> {
        self.first(|device| device.senders.as_ref())
    }

    /// Where it may send; `None`: anywhere.
    pub fn recipients(&self) -> Option<&Patterns> {
        self.first(|device| device.recipients.as_ref())
    }

    /// What happens to its line ends; `None`: as at its listener.
    pub fn line_endings(&self) -> Option<LineEndings> {
        self.first(|device| device.profile.line_endings)
    }

    fn first<'a, T>(&'a self, of: impl Fn(&'a Device) -> Option<T>) -> Option<T> {
        [&self.address, &self.login].into_iter().flatten().find_map(|device| of(device))
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

    #[test]
    fn each_setting_is_that_of_the_address_or_else_of_the_login() {
        let patterns = |text: &str| Some(Patterns::new(vec![text.to_owned()]));
        let devices = Devices::new(vec![
            Device {
                senders: patterns("login@x"),
                recipients: patterns("*@x"),
                delivery: Some(DeliveryMode::Spool),
                profile: Overrides {
                    line_endings: Some(LineEndings::Strict),
                    ..Overrides::default()
                },
                ..device("login", DeviceMatch::Login("copier3".to_owned()), None)
            },
            Device {
                senders: patterns("address@x"),
                ..device("floor", network("10.0.0.0/24"), None)
            },
            Device {
                recipients: patterns("never@x"),
                ..device("late", network("10.0.0.1/32"), None)
            },
        ]);
        let terms = |peer: &str, user| devices.terms(peer.parse().unwrap(), user);
        let both = terms("10.0.0.1", Some("copier3@any"));
        assert_eq!((both.name(), both.delivery()), (Some("floor"), Some(DeliveryMode::Spool)));
        assert!(both.senders().unwrap().hold("address@x"), "its address says so");
        assert!(!both.senders().unwrap().hold("login@x"));
        assert_eq!(both.judge(), Some("floor"));
        assert_eq!(terms("192.0.2.1", Some("copier3")).judge(), Some("login"));
        assert_eq!(terms("192.0.2.1", None).judge(), None);
        assert!(both.recipients().unwrap().hold("b@x"), "its address says nothing of them");
        assert_eq!(both.line_endings(), Some(LineEndings::Strict));
        assert!(terms("10.0.0.1", None).recipients().is_none(), "the first of its address counts");
        assert_eq!(terms("192.0.2.1", Some("copier3")).name(), Some("login"));
        assert_eq!(terms("192.0.2.1", Some("other")).name(), None);
    }
}
