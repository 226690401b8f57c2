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

    /// Whether the list admits more public addresses than any one house has: more of IPv4 than a /8, or more of IPv6
    /// than a /16. Then whoever is on the Internet may connect, however the list is written: `0.0.0.0/0`, two halves of
    /// it, or many smaller parts.
    pub fn is_open(&self) -> bool {
        let public = self.public();
        public.v4 > 1 << 24 || public.v6 > 1 << 112
    }

    /// Whether any public address is on the list.
    pub fn admits_public(&self) -> bool {
        let public = self.public();
        public.v4 > 0 || public.v6 > 0
    }

    fn public(&self) -> Public {
        let embedded = self.0.iter().flat_map(|network| embedded(*network)).map(IpNet::V4);
        let all: Vec<_> = self.0.iter().copied().chain(embedded).collect();
        let mut public = Public { v4: 0, v6: 0 };
        for network in IpNet::aggregate(&all) {
            match network {
                IpNet::V4(network) => {
                    let own = PRIVATE_V4.iter().map(|(octets, prefix)| {
                        v4_overlap(network, Ipv4Net::new_assert(Ipv4Addr::from(*octets), *prefix))
                    });
                    public.v4 += size_v4(network) - own.sum::<u64>();
                }
                // All that is public so far (RFC 4291 section 2.4, and what IANA has given out of it).
                IpNet::V6(network) => {
                    let global = Ipv6Net::new_assert(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
                    let narrower = if network.contains(&global) {
                        Some(global)
                    } else {
                        global.contains(&network).then_some(network)
                    };
                    public.v6 += narrower.map_or(0, |it| 1 << (128 - u32::from(it.prefix_len())));
                }
            }
        }
        public
    }

    /// The networks, in the order in which they were given.
    pub fn networks(&self) -> &[IpNet] {
        &self.0
    }
}

/// How many public addresses there are.
struct Public {
    v4: u64,
    v6: u128,
}

/// What nobody on the Internet has: this network, private, shared, loopback, link-local, documentation, benchmarks,
/// multicast and reserved (RFC 6890). None is within another.
const PRIVATE_V4: [([u8; 4], u8); 12] = [
    ([0, 0, 0, 0], 8),
    ([10, 0, 0, 0], 8),
    ([100, 64, 0, 0], 10),
    ([127, 0, 0, 0], 8),
    ([169, 254, 0, 0], 16),
    ([172, 16, 0, 0], 12),
    ([192, 0, 2, 0], 24),
    ([192, 168, 0, 0], 16),
    ([198, 18, 0, 0], 15),
    ([198, 51, 100, 0], 24),
    ([203, 0, 113, 0], 24),
    ([224, 0, 0, 0], 3),
];

fn size_v4(network: Ipv4Net) -> u64 {
    1 << (32 - u32::from(network.prefix_len()))
}

fn v4_overlap(one: Ipv4Net, other: Ipv4Net) -> u64 {
    if one.contains(&other) {
        size_v4(other)
    } else if other.contains(&one) {
        size_v4(one)
    } else {
        0
    }
}

/// The IPv4 addresses that an IPv6 network stands for: translated (64:ff9b::/96, RFC 6052; 64:ff9b:1::/48, RFC 8215,
/// where any part may carry them all) or tunnelled (2002::/16, RFC 3056; 2001::/32, RFC 4380, which inverts them).
fn embedded(network: IpNet) -> Option<Ipv4Net> {
    let IpNet::V6(network) = network else { return None };
    let form = |words: [u16; 3], prefix, at, inverted| {
        let [first, second, third] = words;
        let start = Ipv6Addr::new(first, second, third, 0, 0, 0, 0, 0);
        (Ipv6Net::new_assert(start, prefix), at, inverted)
    };
    let forms = [
        form([0x64, 0xff9b, 0], 96, 96, 0),
        form([0x64, 0xff9b, 1], 48, 96, 0),
        form([0x2002, 0, 0], 16, 16, 0),
        form([0x2001, 0, 0], 32, 96, u32::MAX),
    ];
    forms.into_iter().find_map(|(form, at, inverted)| {
        if network.contains(&form) {
            return Some(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0));
        }
        form.contains(&network).then_some(())?;
        let address = (network.network().to_bits() << at >> 96) as u32 ^ inverted;
        let prefix = network.prefix_len().saturating_sub(at).min(32);
        Some(Ipv4Net::new_assert(Ipv4Addr::from_bits(address), prefix).trunc())
    })
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

/// Whose address this is, as far as limits go: whoever has one address of an IPv6 /64 has them all.
pub fn household(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
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
    fn a_household_is_an_ipv4_address_or_a_64() {
        for (address, house) in [
            ("10.1.2.3", "10.1.2.3"),
            ("::ffff:10.1.2.3", "10.1.2.3"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("::1", "::"),
        ] {
            assert_eq!(household(address.parse().unwrap()).to_string(), house, "{address}");
        }
    }

    #[test]
    fn a_list_is_open_however_it_is_written() {
        let parts = |prefix: u8, count: u32| {
            let part = move |number: u32| {
                format!("{}/{prefix}", Ipv4Addr::from_bits(number << (32 - prefix)))
            };
            (0..count).map(part).collect::<Vec<_>>().join(" ")
        };
        let house = "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 127.0.0.0/8 100.64.0.0/10 169.254.0.0/16 \
                     fc00::/7 fe80::/10 ::1 224.0.0.0/3";
        for (networks, open, public) in [
            ("", false, false),
            (house, false, false),
            ("0.0.0.0/0", true, true),
            ("::ffff:0:0/96", true, true),
            ("0.0.0.0/1 128.0.0.0/1", true, true),
            ("128.0.0.0/1", true, true),
            (&parts(9, 200), true, true),
            ("20.0.0.0/8", false, true),
            ("20.0.0.0/8 20.0.0.0/9 20.1.2.3", false, true),
            ("20.0.0.0/8 21.0.0.1", true, true),
            ("20.0.0.0/7", true, true),
            ("10.0.0.0/7", false, true),
            ("8.0.0.0/6", true, true),
            ("198.51.100.0/24 203.0.113.7", false, false),
            ("193.99.144.0/24", false, true),
            ("::/0", true, true),
            ("2000::/3", true, true),
            ("2000::/15", true, true),
            ("2000::/16", false, true),
            ("2600::/16 2a00::/16", true, true),
            ("2001:db8::/32", false, true),
            ("4000::/2", false, false),
            ("64:ff9b::/96", true, true),
            ("64:ff9b::a00:0/104", false, false),
            ("64:ff9b::1400:0/104", false, true),
            ("2002::/16", true, true),
            ("2002:1400::/24", false, true),
            ("64::/16", true, true),
            ("64:ff9b:1::/48", true, true),
            ("64:ff9b:1:7::/64", true, true),
            ("64:ff9b:1:7::a00:0/104", false, false),
            ("64:ff9b:1:7::1400:0/104", false, true),
            ("64:ff9b:2::/48", false, false),
            ("2001::/32", true, true),
            ("2001:0:1400::/40", true, true),
            // 20.0.0.0/7 and 20.0.0.0/8, inverted.
            ("2001::ebff:0/96 2001::1", true, true),
            ("2001::ea00:0/103", true, true),
            ("2001::eb00:0/104", false, true),
        ] {
            let parsed = networks.split_whitespace().map(|it| {
                it.parse().unwrap_or_else(|_| IpNet::from(it.parse::<IpAddr>().unwrap()))
            });
            let list: AccessList = parsed.collect();
            assert_eq!((list.is_open(), list.admits_public()), (open, public), "{networks}");
        }
        assert!(!AccessList::default().admits_public());
    }

    #[test]
    fn empty_list_serves_nobody() {
        assert!(!allows(&AccessList::from_iter([]), "127.0.0.1"));
    }
}
