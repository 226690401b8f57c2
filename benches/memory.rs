//! Memory and start of the relay: `cargo bench --bench memory`. The figures to hold are a growth below 1 MiB for
//! a message of 25 MB against one of 25 kB, since data stream through; 10 KiB for each of 10,000 idle sessions in
//! plaintext and 60 KiB for each of 2,000 over TLS 1.0; and a start below 300 ms. The relay raises its own limit of
//! open files, to the hard limit: 10,000 sessions need one above that (`ulimit -Hn`).

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench may panic, prints its figures, and uses its part of what is shared"
)]

mod common;
#[path = "../tests/common/mod.rs"]
mod house;

use bytes::Bytes;
use common::Relay;
use openssl::ssl::SslVersion;
use smtp_uplift::{sandbox::device::Device, transport::device_tls::DeviceTls};

#[tokio::main]
async fn main() {
    // Each session has two ends, and this process holds one of them.
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let relay = Relay::start("").await;
    println!("start to READY, certificate made: {} ms", relay.start.as_millis());
    // The first messages pay for the pool's connection and the allocator's arenas.
    peak(&relay, 25_000, 50).await;
    let small = peak(&relay, 25_000, 20).await;
    let large = peak(&relay, 25_000_000, 5).await;
    println!("peak RSS, messages of 25 kB: {small} KiB");
    println!(
        "peak RSS, messages of 25 MB: {large} KiB, growth {} KiB",
        large.saturating_sub(small)
    );
    drop(relay);
    idle("plaintext", 10_000, None).await;
    idle("TLS 1.0", 2_000, Some(DeviceTls::new(SslVersion::TLS1, None).unwrap())).await;
}

/// Sends messages one after the other; returns the highest memory in between, in KiB.
async fn peak(relay: &Relay, size: usize, count: usize) -> u64 {
    let message = Bytes::from(
        b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ0123\r\n"
            .repeat(size / 78),
    );
    relay.forget_peak();
    for _ in 0..count {
        let mut device = Device::connect(relay.address).await.unwrap();
        device.say("EHLO bench").await.unwrap();
        let reply = device.send("a@x", &["b@x"], message.clone()).await.unwrap();
        assert!(reply.code.is_positive(), "{reply}");
    }
    relay.memory("VmHWM")
}

/// Holds many sessions that have said EHLO and prints what each of them costs.
async fn idle(name: &str, count: usize, tls: Option<DeviceTls>) {
    let relay = Relay::start("[limits]\nsessions = 12000\nsessions_per_device = 12000").await;
    let mut sessions = Vec::with_capacity(count);
    // The first ones pay for what all of them share.
    let mut before = 0;
    for number in 0..count + 50 {
        if number == 50 {
            before = relay.memory("VmRSS");
        }
        let mut device = Device::connect(relay.address).await.unwrap();
        device.say("EHLO bench").await.unwrap();
        if let Some(tls) = &tls {
            device = device.starttls(tls).await.unwrap();
            device.say("EHLO bench").await.unwrap();
        }
        sessions.push(device);
    }
    let grown = relay.memory("VmRSS").saturating_sub(before);
    println!(
        "{count} idle sessions, {name}: {grown} KiB, {:.1} KiB each",
        grown as f64 / count as f64
    );
}
