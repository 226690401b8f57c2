//! What a device waits for a smarthost that is 20 ms away: `cargo bench --bench latency`. The figure to hold: with a
//! connection that is there already, a message of 4 kB in plaintext takes at most two round trips and 3 ms in
//! `stream-then-spool`, that is 43 ms.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench may panic, prints its figures, and uses its part of what is shared"
)]

mod common;
#[path = "latency/distance.rs"]
mod distance;
#[path = "../tests/common/mod.rs"]
mod house;

use std::time::Duration;

use bytes::Bytes;
use common::Relay;
use house::KEEP;
use smtp_uplift::sandbox::device::Device;
use tokio::time::Instant;

/// From here to the smarthost, one way.
const AWAY: Duration = Duration::from_millis(10);
/// What may come on top of two round trips.
const OURS: Duration = Duration::from_millis(3);
const MESSAGES: usize = 300;

#[tokio::main]
async fn main() {
    let mut smarthost = None;
    let way = |address| *smarthost.insert(distance::put(address, AWAY));
    let relay = Relay::over(way, KEEP).await;
    let round_trips = round_trips(smarthost.unwrap()).await;
    println!("a round trip to the smarthost: {}", figures(round_trips));
    let body = Bytes::from(format!("Subject: scan\r\n\r\n{}", "0123456789abcde\r\n".repeat(235)));
    let mut device = Device::connect(relay.address).await.unwrap();
    device.say("EHLO bench").await.unwrap();
    let (mut whole, mut dots) = (Vec::new(), Vec::new());
    for number in 0..MESSAGES + 10 {
        let began = Instant::now();
        for (line, code) in
            [("MAIL FROM:<a@example.com>", 250), ("RCPT TO:<b@example.com>", 250), ("DATA", 354)]
        {
            let reply = device.say(line).await.unwrap();
            assert_eq!(reply.code.get(), code, "{reply}");
        }
        device.write(body.clone()).await.unwrap();
        let dot = Instant::now();
        let reply = device.say(".").await.unwrap();
        assert!(reply.to_string().starts_with("250 2.0.0 ok"), "{reply}");
        // The first ones wait for the connection.
        if number >= 10 {
            dots.push(dot.elapsed());
            whole.push(began.elapsed());
        }
    }
    println!("from the dot to its answer: {}", figures(dots));
    println!("the whole transaction: {}", figures(whole));
    println!("asked: at most {:.1?}, for round trips of {:.1?}", 4 * AWAY + OURS, 2 * AWAY);
}

/// How far away it is indeed.
async fn round_trips(smarthost: std::net::SocketAddr) -> Vec<Duration> {
    let mut device = Device::connect(smarthost).await.unwrap();
    let mut times = Vec::new();
    for _ in 0..50 {
        let began = Instant::now();
        device.say("NOOP").await.unwrap();
        times.push(began.elapsed());
    }
    times
}

fn figures(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let of = |share: usize| times[(times.len() - 1) * share / 100];
    format!("median {:.2?}, 99 of 100 below {:.2?}", of(50), of(99))
}
