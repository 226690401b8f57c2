//! A relay in a process of its own, so that its memory can be told from that of devices and smarthost.

use std::{
    fs,
    net::SocketAddr,
    os::unix::net::UnixDatagram,
    process::{Child, Command, Stdio},
    time::Duration,
};

use smtp_uplift::sandbox::{Sandbox, scenario::Scenario};
use tempfile::TempDir;
use tokio::time::Instant;

use super::house::{self, PASSWORD, Plan};

/// A running relay; killed when dropped.
pub struct Relay {
    pub address: SocketAddr,
    /// From the start of the process until it has told systemd that it is ready.
    pub start: Duration,
    process: Child,
    _sandbox: Sandbox,
    _folder: TempDir,
}

impl Relay {
    /// Starts one before a stand-in for the smarthost; `more` is appended to its configuration.
    pub async fn start(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let scenario = Scenario { password: Some(PASSWORD.into()), ..Scenario::default() };
        let sandbox = Sandbox::start(([127, 0, 0, 1], 0).into(), scenario).await.unwrap();
        let port = sandbox.address().port();
        // The relay is not asked where it listens: a port that was free a moment ago will do.
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let plan = Plan { more, ..Plan::default() };
        let text = house::configuration(&plan, port, sandbox.certificate(), folder.path())
            .replacen("127.0.0.1:0", &address.to_string(), 1);
        let file = folder.path().join("relay.toml");
        fs::write(&file, text).unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        let began = Instant::now();
        let process = Command::new(env!("CARGO_BIN_EXE_smtp-uplift"))
            .args(["run", "--config"])
            .arg(&file)
            .env("NOTIFY_SOCKET", folder.path().join("notify"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        socket.recv(&mut [0; 64]).unwrap();
        let start = began.elapsed();
        Self { address, start, process, _sandbox: sandbox, _folder: folder }
    }

    /// A line of the process' status in KiB, such as `VmRSS`.
    pub fn memory(&self, line: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let value = status.lines().find_map(|text| text.strip_prefix(line)).unwrap();
        value.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Linux: the highest mark of memory starts anew.
    pub fn forget_peak(&self) {
        fs::write(format!("/proc/{}/clear_refs", self.process.id()), "5").unwrap();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
