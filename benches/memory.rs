//! Peak memory of the relay by size of message: `cargo bench --bench memory`. The figure to hold is a growth
//! below 1 MiB for a message of 25 MB against one of 25 kB, since data stream through.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench may panic, and prints its figures"
)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

use bytes::Bytes;
use common::{PASSWORD, Plan};
use smtp_uplift::sandbox::{Sandbox, device::Device, scenario::Scenario};

#[tokio::main]
async fn main() {
    let folder = tempfile::tempdir().unwrap();
    let scenario = Scenario { password: Some(PASSWORD.into()), ..Scenario::default() };
    let sandbox = Sandbox::start(([127, 0, 0, 1], 0).into(), scenario).await.unwrap();
    let text = common::configuration(
        &Plan::default(),
        sandbox.address().port(),
        sandbox.certificate(),
        folder.path(),
    );
    let file = folder.path().join("relay.toml");
    fs::write(&file, text).unwrap();
    let mut relay = Command::new(env!("CARGO_BIN_EXE_smtp-uplift"))
        .args(["run", "--config"])
        .arg(&file)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let address = address(&mut relay);
    // The first messages pay for the pool's connection and the allocator's arenas.
    peak(&relay, address, 25_000, 50).await;
    let small = peak(&relay, address, 25_000, 20).await;
    let large = peak(&relay, address, 25_000_000, 5).await;
    println!("peak RSS, messages of 25 kB: {small} KiB");
    println!(
        "peak RSS, messages of 25 MB: {large} KiB, growth {} KiB",
        large.saturating_sub(small)
    );
    relay.kill().unwrap();
    relay.wait().unwrap();
}

/// Sends messages one after the other; returns the highest memory in between, in KiB.
async fn peak(relay: &Child, address: SocketAddr, size: usize, count: usize) -> u64 {
    let message = Bytes::from(
        b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ0123\r\n"
            .repeat(size / 78),
    );
    // Linux: the highest mark starts anew.
    fs::write(format!("/proc/{}/clear_refs", relay.id()), "5").unwrap();
    for _ in 0..count {
        let mut device = Device::connect(address).await.unwrap();
        device.say("EHLO bench").await.unwrap();
        let reply = device.send("a@x", &["b@x"], message.clone()).await.unwrap();
        assert!(reply.code.is_positive(), "{reply}");
    }
    let status = fs::read_to_string(format!("/proc/{}/status", relay.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn address(relay: &mut Child) -> SocketAddr {
    let mut lines = BufReader::new(relay.stderr.take().unwrap()).lines();
    let line = lines
        .find(|line| line.as_ref().is_ok_and(|line| line.contains("listening")))
        .unwrap()
        .unwrap();
    // Somebody has to read the rest of the log.
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
    line.split("address=").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
}
