//! An HAProxy in front of the relay, which tells of each device in a PROXY header.

use std::{collections::HashMap, fmt::Write as _, fs, net::TcpListener};

use tempfile::TempDir;

use crate::{
    group::{self, Group},
    needs::{Need, command},
    office::Relay,
};

/// Where it connects to the relay from: devices have another address.
pub(crate) const ADDRESS: &str = "127.0.0.2";

/// A running HAProxy. Dropping it ends all of its processes.
pub(crate) struct HaProxy {
    /// It ends before its folder goes.
    _group: Group,
    _folder: TempDir,
    /// Its port for each listener of the relay.
    ports: HashMap<String, u16>,
}

impl HaProxy {
    pub(crate) fn need() -> Need {
        Need {
            probe: "command -v haproxy".to_owned(),
            otherwise: "HAProxy is not installed: apt-get install haproxy",
        }
    }

    /// Starts one in front of a relay's listeners.
    pub(crate) fn start(relay: &Relay, listeners: &[&str]) -> Self {
        // A port that is free now may be taken in a moment.
        let started = (0..5).find_map(|_| Self::start_on_free_ports(relay, listeners));
        started.expect("every port was taken meanwhile")
    }

    pub(crate) fn port(&self, listener: &str) -> u16 {
        self.ports[listener]
    }

    fn start_on_free_ports(relay: &Relay, listeners: &[&str]) -> Option<Self> {
        let sockets: Vec<_> =
            listeners.iter().map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let mut config = "defaults\n mode tcp\n timeout connect 10s\n timeout client 60s\n \
                          timeout server 60s\n"
            .to_owned();
        let mut ports = HashMap::new();
        for (listener, socket) in listeners.iter().zip(&sockets) {
            let port = socket.local_addr().unwrap().port();
            let behind = relay.address(listener);
            writeln!(
                config,
                "listen {listener}\n bind 127.0.0.1:{port}\n \
                 server relay {behind} send-proxy-v2 source {ADDRESS}"
            )
            .unwrap();
            ports.insert((*listener).to_owned(), port);
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("haproxy.cfg");
        fs::write(&path, config).unwrap();
        let log = folder.path().join("log");
        drop(sockets);
        // It says on stderr why it does not start.
        let script = format!("exec haproxy -db -f '{}' 2>'{}'", path.display(), log.display());
        let group = Group::start(command("sh").args(["-c", &script]));
        let read = || fs::read_to_string(&log).unwrap_or_default();
        let first = ports[listeners[0]];
        let greets = group::greets("HAProxy", first, "220 relay.example ", read);
        greets.then_some(Self { _group: group, _folder: folder, ports })
    }
}
