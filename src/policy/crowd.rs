//! Whether many devices come from one address, as they do behind a container's NAT: then a list of addresses admits
//! whoever reaches the port. Pure.

use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::IpAddr,
};

use super::{AccessList, household};

/// So many names from one address are no single device.
const MANY: usize = 8;
/// Names that are remembered of an address.
const NAMES: usize = 32;

/// What devices call themselves, by the address that they come from.
#[derive(Debug, Default)]
pub struct Crowd {
    /// Elsewhere, until it is clear that there are several.
    outside: Vec<(IpAddr, HashSet<u64>)>,
    /// On this machine: a proxy, perhaps.
    inside: HashSet<u64>,
}

impl Crowd {
    /// A device that calls itself so sends from this address.
    pub fn note(&mut self, address: IpAddr, name: &str) {
        let address = household(address);
        let names = if address.is_loopback() {
            &mut self.inside
        } else if let Some(at) = self.outside.iter().position(|(known, _)| *known == address) {
            &mut self.outside[at].1
        } else if self.outside.len() < 2 {
            self.outside.push((address, HashSet::new()));
            let last = self.outside.len() - 1;
            &mut self.outside[last].1
        } else {
            return;
        };
        if names.len() < NAMES {
            let mut hasher = DefaultHasher::new();
            name.to_ascii_lowercase().hash(&mut hasher);
            names.insert(hasher.finish());
        }
    }

    /// The address that all devices seem to share, and how many names it has, if they do.
    pub fn shared(&self) -> Option<(Option<IpAddr>, usize)> {
        let (address, names) = match &self.outside[..] {
            [] => (None, &self.inside),
            [(address, names)] => (Some(*address), names),
            _ => return None,
        };
        (names.len() >= MANY).then_some((address, names.len()))
    }
}

/// The gateway whose address a container's NAT may give to every device, if a list admits it.
pub fn admitted_gateway(
    allow: &AccessList,
    in_container: bool,
    gateway: Option<IpAddr>,
) -> Option<IpAddr> {
    gateway.filter(|gateway| in_container && allow.allows(*gateway))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn crowd(seen: &[(&str, usize)]) -> Crowd {
        let mut crowd = Crowd::default();
        for (from, names) in seen {
            for name in 0..*names {
                crowd.note(address(from), &format!("copier{name}"));
                crowd.note(address(from), &format!("COPIER{name}"));
            }
        }
        crowd
    }

    #[test]
    fn many_names_from_one_address_and_no_other_are_a_crowd() {
        let gateway = Some(address("172.17.0.1"));
        for (seen, shared) in [
            (&[][..], None),
            (&[("172.17.0.1", 7)], None),
            (&[("172.17.0.1", 8)], Some((gateway, 8))),
            (&[("::ffff:172.17.0.1", 1000)], Some((gateway, NAMES))),
            (&[("172.17.0.1", 8), ("127.0.0.1", 1)], Some((gateway, 8))),
            (&[("127.0.0.1", 8)], Some((None, 8))),
            (&[("172.17.0.1", 8), ("10.0.0.1", 1)], None),
            (&[("172.17.0.1", 8), ("10.0.0.1", 1), ("10.0.0.2", 9)], None),
        ] {
            assert_eq!(crowd(seen).shared(), shared, "{seen:?}");
        }
    }

    #[test]
    fn a_gateway_counts_in_a_container_whose_list_admits_it() {
        let allow = AccessList::default();
        let gateway = Some(address("172.17.0.1"));
        assert_eq!(admitted_gateway(&allow, true, gateway), gateway);
        assert_eq!(admitted_gateway(&allow, false, gateway), None);
        assert_eq!(admitted_gateway(&allow, true, None), None);
        assert_eq!(admitted_gateway(&allow, true, Some(address("192.0.2.1"))), None);
    }
}
