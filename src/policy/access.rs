//! Who may connect, by address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The networks whose devices are served; everybody else is refused.
///
/// An IPv4 address that arrives on an IPv6 socket (`::ffff:10.1.2.3`) is judged as the IPv4 address
/// that it is. For the same reason `::/0` lets in no IPv4 address: `0.0.0.0/0` does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessList(Vec<IpNet>);

impl AccessList {
    /// Whether a device at this address is served.
    pub fn allows(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// The networks, in the order in which they were given.
    pub fn networks(&self) -> &[IpNet] {
        &self.0
    }
}

/// Loopback, private, link-local and unique local addresses.
impl Default for AccessList {
    fn default() -> Self {
        const V4: [Ipv4Net; 5] = [
            Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8),
            Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8),
            Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12),
            Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16),
            Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16),
        ];
        const V6: [Ipv6Net; 3] = [
            Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128),
            Ipv6Net::new_assert(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7),
            Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
        ];
        V4.into_iter().map(IpNet::V4).chain(V6.into_iter().map(IpNet::V6)).collect()
    }
}

impl FromIterator<IpNet> for AccessList {
    fn from_iter<I: IntoIterator<Item = IpNet>>(networks: I) -> Self {
        Self(networks.into_iter().map(canonical).collect())
    }
}

/// A network of IPv4 addresses in IPv6 form as one of IPv4: `::ffff:10.0.0.0/104` would never match, since addresses
/// are made canonical first.
pub fn canonical(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else {
        return network;
    };
    let prefix = v6.prefix_len().checked_sub(96);
    match (v6.addr().to_ipv4_mapped(), prefix) {
        (Some(address), Some(prefix)) => Ipv4Net::new(address, prefix).map_or(network, IpNet::V4),
        _ => network,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(list: &AccessList, address: &str) -> bool {
        list.allows(address.parse().unwrap())
    }

    #[test]
    fn default_is_the_house_and_nobody_else() {
        let list = AccessList::default();
        for inside in [
            "127.0.0.1",
            "127.255.0.1",
            "::1",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.7.7",
            "fc00::1",
            "fdff::1",
            "fe80::1",
            "::ffff:10.1.2.3",
            "::ffff:127.0.0.1",
        ] {
            assert!(allows(&list, inside), "{inside}");
        }
        for outside in [
            "8.8.8.8",
            "172.15.0.1",
            "172.32.0.1",
            "11.0.0.1",
            "192.169.0.1",
            "::",
            "::2",
            "2001:db8::1",
            "fec0::1",
            "::ffff:8.8.8.8",
            "0.0.0.0",
        ] {
            assert!(!allows(&list, outside), "{outside}");
        }
    }

    #[test]
    fn mapped_networks_are_made_canonical_too() {
        let list: AccessList = ["::ffff:10.0.0.0/104".parse().unwrap()].into_iter().collect();
        assert!(allows(&list, "10.9.9.9"));
        assert!(allows(&list, "::ffff:10.9.9.9"));
        assert!(!allows(&list, "11.0.0.1"));
    }

    #[test]
    fn empty_list_serves_nobody() {
        assert!(!allows(&AccessList::from_iter([]), "127.0.0.1"));
    }
}
