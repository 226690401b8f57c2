//! What is known of each device, by its address: for operators, and for whether STARTTLS is offered to it.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    policy::{Finding, household},
    proto::reply::Reply,
    telemetry::{maillog::Disposition, metrics::DeviceFault},
    transport::stream::TlsInfo,
};

/// Devices that are remembered.
const DEVICES: usize = 2_000;
/// Devices of one household: whoever has a whole /64 of IPv6 drives out nobody but its own.
const HOUSEHOLD: usize = 64;
/// Longest reply that is remembered, in characters.
const REPLY: usize = 200;

/// The devices that have done something: a probe that only looks whether somebody is there is none.
#[derive(Debug, Default)]
pub struct Roster(Mutex<Book>);

#[derive(Debug, Default)]
struct Book {
    devices: HashMap<IpAddr, Known>,
    /// Who goes first when there is no room: those that have proven nothing, then those that were seen longest ago.
    /// Nobody with many addresses drives out a device that works.
    order: BTreeMap<Place, IpAddr>,
    /// Events so far.
    events: u64,
}

/// Whether a device has proven itself, and its last event.
type Place = (bool, u64);

/// What is known of a device.
#[derive(Clone, Debug, Default)]
struct Known {
    place: Place,
    name: Box<str>,
    tls: Option<TlsInfo>,
    messages: u64,
    last: Option<Last>,
    faults: BTreeMap<&'static str, u64>,
    finding: Option<Finding>,
    /// A handshake has come about, some time.
    secured: bool,
    /// It has logged in, some time.
    logged_in: bool,
    /// When its last handshake by STARTTLS failed, if none has come about since.
    failed: Option<Instant>,
    /// STARTTLS was not offered to it in its last session.
    withheld: bool,
}

/// A device, for operators.
#[derive(Clone, Debug, Serialize)]
pub struct Device {
    /// Its name, or its address.
    pub name: Box<str>,
    /// Its address.
    pub address: IpAddr,
    /// Version and cipher of its last handshake or message; `None`: plaintext.
    pub tls: Option<Tls>,
    /// Messages that were taken from it.
    pub messages: u64,
    /// Its last transaction.
    pub last: Option<Last>,
    /// What it did wrong, and how often.
    pub faults: BTreeMap<&'static str, u64>,
    /// What could be written for it.
    pub advice: Vec<String>,
}

/// See [`TlsInfo`].
#[derive(Clone, Debug, Serialize)]
pub struct Tls {
    /// The version.
    pub version: &'static str,
    /// The cipher suite.
    pub cipher: String,
}

/// A device's last transaction.
#[derive(Clone, Debug, Serialize)]
pub struct Last {
    /// When it was over.
    pub time: String,
    /// What became of it.
    pub result: &'static str,
    /// The reply that decided.
    pub reply: String,
}

impl Roster {
    /// A device did something wrong.
    pub fn fault(&self, address: IpAddr, name: &str, fault: DeviceFault) {
        self.note(address, name, |known| *known.faults.entry(fault.as_str()).or_default() += 1);
    }

    /// TLS was spoken, or was not.
    pub fn found(&self, address: IpAddr, name: &str, finding: Finding, tls: Option<&TlsInfo>) {
        self.note(address, name, |known| {
            if matches!(finding, Finding::Secured(..)) {
                (known.secured, known.withheld, known.failed) = (true, false, None);
            }
            known.tls = tls.cloned();
            known.finding = Some(finding);
        });
    }

    /// A device has begun TLS by STARTTLS, and has shown that it cannot finish it.
    pub fn starttls_failed(&self, address: IpAddr, name: &str) {
        self.note(address, name, |known| known.failed = Some(Instant::now()));
    }

    /// A device has logged in.
    pub fn logged_in(&self, address: IpAddr, name: &str) {
        self.note(address, name, |known| known.logged_in = true);
    }

    /// A transaction is over.
    pub fn message(
        &self,
        address: IpAddr,
        name: &str,
        tls: Option<&TlsInfo>,
        disposition: Disposition,
        reply: Option<&Reply>,
    ) {
        self.note(address, name, |known| {
            if matches!(disposition, Disposition::Relayed | Disposition::Queued) {
                known.messages += 1;
            }
            known.tls = tls.cloned();
            let reply = reply.map(Reply::to_string).unwrap_or_default();
            known.last = Some(Last {
                time: Timestamp::now().to_string(),
                result: disposition.as_str(),
                reply: reply.chars().take(REPLY).collect(),
            });
        });
    }

    /// Whether STARTTLS of this address has failed within that time, and none has ever come about. A device that
    /// has logged in keeps STARTTLS too: without it there may be no login. Remembered for the advice.
    pub fn withholds_starttls(&self, address: IpAddr, within: Duration) -> bool {
        let mut book = self.book();
        let Some(known) = book.devices.get_mut(&address) else { return false };
        let failed = known.failed.is_some_and(|at| at.elapsed() < within);
        known.withheld = failed && !known.secured && !known.logged_in;
        known.withheld
    }

    /// Everybody, those that were seen last first.
    pub fn devices(&self) -> Vec<Device> {
        let mut known: Vec<_> =
            self.book().devices.iter().map(|(address, known)| (*address, known.clone())).collect();
        known.sort_by_key(|(_, known)| std::cmp::Reverse(known.place.1));
        known.into_iter().map(|(address, known)| known.shown(address)).collect()
    }

    fn note(&self, address: IpAddr, name: &str, change: impl FnOnce(&mut Known)) {
        let book = &mut *self.book();
        let mut known = match book.devices.remove(&address) {
            Some(known) => {
                book.order.remove(&known.place);
                known
            }
            None => {
                book.make_room(household(address));
                Known::default()
            }
        };
        if *known.name != *name {
            known.name = name.into();
        }
        change(&mut known);
        book.events += 1;
        known.place = (known.secured || known.messages > 0, book.events);
        book.order.insert(known.place, address);
        book.devices.insert(address, known);
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    /// Forgets whoever goes first where one more of a household has no room.
    fn make_room(&mut self, house: IpAddr) {
        let mut own = self.order.iter().filter(|(_, address)| household(**address) == house);
        let first_of_own = own.next().map(|(place, _)| *place);
        let place = match own.count() + 1 >= HOUSEHOLD {
            true => first_of_own,
            false if self.devices.len() >= DEVICES => self.order.keys().next().copied(),
            false => None,
        };
        if let Some(forgotten) = place.and_then(|place| self.order.remove(&place)) {
            self.devices.remove(&forgotten);
        }
    }
}

impl Known {
    fn shown(self, address: IpAddr) -> Device {
        // Without an entry its address is its name.
        let entry = Some(&*self.name).filter(|name| *name != address.to_string());
        let mut advice: Vec<_> =
            self.finding.and_then(|finding| finding.advice(address, entry)).into_iter().collect();
        if self.withheld {
            advice.push(format!(
                "STARTTLS is not offered to it for a while after a failed handshake; for good: [[device]] with \
                 address = \"{address}\" and hide = [\"STARTTLS\"]"
            ));
        }
        Device {
            name: self.name,
            address,
            tls: self.tls.map(|TlsInfo { version, cipher }| Tls { version, cipher }),
            messages: self.messages,
            last: self.last,
            faults: self.faults,
            advice,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::policy::TlsProfile;

    const WITHIN: Duration = Duration::from_secs(600);

    fn address(number: usize) -> IpAddr {
        Ipv4Addr::from_bits(0x0a00_0000 + number as u32).into()
    }

    fn failed(roster: &Roster, number: usize) {
        roster.found(address(number), "x", Finding::Failed(None, TlsProfile::Legacy), None);
        roster.starttls_failed(address(number), "x");
    }

    fn secured(roster: &Roster, number: usize) {
        roster.found(address(number), "x", Finding::Secured(None, TlsProfile::Legacy), None);
    }

    #[test]
    fn who_has_many_addresses_drives_out_nobody_that_works() {
        let roster = Roster::default();
        secured(&roster, 0);
        roster.message(address(1), "copier", None, Disposition::Queued, None);
        roster.fault(address(2), "x", DeviceFault::BadCommand);
        for number in 10..10 + 2 * DEVICES {
            roster.fault(address(number), "x", DeviceFault::BadCommand);
            roster.message(address(number), "x", None, Disposition::Refused, None);
        }
        let devices = roster.devices();
        assert_eq!(devices.len(), DEVICES);
        assert_eq!(roster.book().order.len(), DEVICES);
        assert_eq!(devices[0].address, address(9 + 2 * DEVICES), "the last is the first");
        let known = |number| devices.iter().any(|device| device.address == address(number));
        assert!(known(0) && known(1) && !known(2));
        assert_eq!((&*devices[DEVICES - 2].name, devices[DEVICES - 2].messages), ("copier", 1));
        // Where all have proven something the oldest goes.
        for number in 10_000..10_000 + DEVICES {
            secured(&roster, number);
        }
        assert!(!roster.devices().iter().any(|device| device.address == address(0)));
    }

    #[test]
    fn a_household_drives_out_nobody_but_its_own() {
        let roster = Roster::default();
        let inside = |number: u64| {
            IpAddr::from(Ipv6Addr::from_bits((0x2001_0db8 << 96) + u128::from(number)))
        };
        for number in 0..DEVICES - HOUSEHOLD {
            roster.fault(address(number), "x", DeviceFault::BadCommand);
        }
        roster.fault(inside(0), "x", DeviceFault::BadCommand);
        for number in 1..=2 * DEVICES as u64 {
            roster.message(inside(number), "x", None, Disposition::Queued, None);
        }
        let (v6, v4): (Vec<_>, Vec<_>) =
            roster.devices().into_iter().map(|device| device.address).partition(IpAddr::is_ipv6);
        assert_eq!(v4.len(), DEVICES - HOUSEHOLD, "nobody else went");
        let last = (0..HOUSEHOLD as u64).map(|ago| inside(2 * DEVICES as u64 - ago));
        assert_eq!(v6, last.collect::<Vec<_>>(), "the oldest of its own went");
    }

    #[tokio::test(start_paused = true)]
    async fn starttls_is_withheld_from_those_that_have_only_ever_failed() {
        let roster = Roster::default();
        let withheld = |number| roster.withholds_starttls(address(number), WITHIN);
        assert!(!withheld(1), "nothing is known");
        failed(&roster, 1);
        assert!(withheld(1) && !withheld(2));
        assert!(!roster.withholds_starttls(address(1), Duration::ZERO));
        assert_eq!(roster.devices()[0].advice.len(), 1);
        assert!(withheld(1));
        let advice = roster.devices()[0].advice.clone();
        assert!(advice[1].starts_with("STARTTLS is not offered to it for a while"), "{advice:?}");
        tokio::time::advance(WITHIN).await;
        assert!(!withheld(1), "a while is over");

        secured(&roster, 2);
        failed(&roster, 2);
        assert!(!withheld(2), "it can do better");
        failed(&roster, 3);
        secured(&roster, 3);
        assert!(!withheld(3), "it has done better since");
        failed(&roster, 4);
        roster.logged_in(address(4), "x");
        assert!(!withheld(4), "it logs in");
    }

    #[test]
    fn replies_are_bounded() {
        let roster = Roster::default();
        let reply = Reply::new(451, None, "é".repeat(5_000));
        roster.message(address(1), "x", None, Disposition::Refused, Some(&reply));
        let last = roster.devices()[0].last.clone().unwrap();
        assert_eq!((last.result, last.reply.chars().count()), ("refused", REPLY));
    }
}
