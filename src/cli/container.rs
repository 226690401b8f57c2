//! Whether a container's NAT may give every device one address.

use std::{
    env, fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use crate::{
    config::{Config, Listener},
    policy::crowd,
};

/// A warning for each listener whose list may admit everybody behind the container's gateway.
pub(super) fn warnings(config: &Config) -> Vec<String> {
    let gateway = fs::read_to_string("/proc/net/route").ok().and_then(|routes| gateway(&routes));
    warn(&config.listeners, is_container(), gateway)
}

fn warn(listeners: &[Listener], in_container: bool, gateway: Option<IpAddr>) -> Vec<String> {
    let listeners = listeners.iter().filter(|listener| {
        let reached = !listener.address.ip().to_canonical().is_loopback();
        let balanced = !listener.proxy_protocol_from.networks().is_empty();
        reached && !balanced && listener.profile.takes_anybody()
    });
    listeners
        .filter_map(|listener| {
            let gateway = crowd::admitted_gateway(&listener.allow, in_container, gateway)?;
            Some(format!(
                "listener {}: this is a container, and allow admits its gateway {gateway}: behind the container's NAT every \
                 device may have that address, so that the list admits everybody; give the container the host's \
                 network, put a balancer with the PROXY protocol in front, or write auth = \"require\": docs/howto/access.md",
                listener.name
            ))
        })
        .collect()
}

/// Docker, Podman, and whatever else tells as systemd asks for.
fn is_container() -> bool {
    ["/.dockerenv", "/run/.containerenv"].into_iter().any(|file| Path::new(file).exists())
        || env::var_os("container").is_some_and(|kind| !kind.is_empty())
}

/// The default gateway in the kernel's table of IPv4 routes, where addresses are hexadecimal in the machine's order of octets.
fn gateway(routes: &str) -> Option<IpAddr> {
    routes.lines().skip(1).find_map(|route| {
        let mut fields = route.split_whitespace().skip(1);
        let (destination, gateway) = (fields.next()?, fields.next()?);
        let octets = u32::from_str_radix(gateway, 16).ok()?.to_ne_bytes();
        let is_default = destination == "00000000" && octets != [0; 4];
        is_default.then(|| IpAddr::V4(Ipv4Addr::from(octets)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn the_default_gateway_is_read_from_the_table_of_routes() {
        let hex = |octets: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(octets));
        let routes = format!(
            "Iface\tDestination\tGateway\tFlags\neth0\t{}\t00000000\t0001\neth1\t00000000\t00000000\t0001\n\
             eth0\t00000000\t{}\t0003\n",
            hex([172, 17, 0, 0]),
            hex([172, 17, 0, 1])
        );
        assert_eq!(gateway(&routes), Some(IpAddr::from([172, 17, 0, 1])));
        for routes in ["", "Iface\n", "Iface\neth0\n", "Iface\neth0 00000000 nonsense\n"] {
            assert_eq!(gateway(routes), None);
        }
    }

    #[test]
    fn a_listener_is_warned_of_unless_something_else_tells_devices_apart() {
        let gateway = Some(IpAddr::from([172, 17, 0, 1]));
        for (address, lines, warned) in [
            ("0.0.0.0:2525", "", true),
            (
                "[::]:2525",
                "accept_any_credentials = true\nauth = \"require\"\nauth_without_tls = true",
                true,
            ),
            ("127.0.0.1:2525", "", false),
            ("0.0.0.0:2525", "proxy_protocol_from = [\"10.0.0.1\"]", false),
            ("0.0.0.0:2525", "allow = [\"10.0.0.0/8\"]", false),
            ("0.0.0.0:2525", "auth = \"require\"", false),
        ] {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("users.txt"), "scan:x\n").unwrap();
            let text = format!(
                "hostname = \"relay.example\"\n[[listener]]\naddress = \"{address}\"\n{lines}\n[[mailbox]]\n\
                 address = \"a@office.test\"\nauth = \"none\"\n[auth]\nusers_file = \"users.txt\"\n"
            );
            let config = config::parse(&text, &folder.path().join("relay.toml")).unwrap().config;
            let warnings = warn(&config.listeners, true, gateway);
            assert_eq!(warnings.len(), usize::from(warned), "{address} {lines}: {warnings:?}");
            assert!(warn(&config.listeners, false, gateway).is_empty());
        }
    }
}
