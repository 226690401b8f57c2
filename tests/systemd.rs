//! The program as systemd sees it: what it says on the socket of `Type=notify`.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::{
    fs,
    os::unix::net::UnixDatagram,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

/// A relay without a smarthost that is killed if the test fails.
struct Relay(Child);

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn ready_alive_stopping() {
    let folder = tempfile::tempdir().unwrap();
    let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let hear = || {
        let mut octets = [0; 256];
        let count = socket.recv(&mut octets).unwrap();
        String::from_utf8(octets[..count].to_vec()).unwrap()
    };
    let configuration = folder.path().join("relay.toml");
    fs::write(
        &configuration,
        "hostname = \"relay.example\"\nstate_dir = \"state\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
         [smarthost]\nhost = \"127.0.0.1\"\nport = 9\n[[mailbox]]\naddress = \"a@example.com\"\nauth = \"none\"\n\
         [delivery]\nmode = \"stream\"\n[admin]\naddress = \"\"\n",
    )
    .unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_smtp-uplift"))
        .args(["run", "--config"])
        .arg(&configuration)
        .env("NOTIFY_SOCKET", folder.path().join("notify"))
        .env("WATCHDOG_USEC", "200000")
        .env_remove("WATCHDOG_PID")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut relay = Relay(child);
    assert_eq!(hear(), "READY=1\n");
    for _ in 0..3 {
        assert_eq!(hear(), "WATCHDOG=1\n");
    }
    let pid = Pid::from_child(&relay.0);
    kill_process(pid, Signal::TERM).unwrap();
    while hear() != "STOPPING=1\n" {}
    assert!(relay.0.wait().unwrap().success());
}
