//! A thousand devices that wait for three connections: `cargo bench --bench waiting`. The figures to hold: below 20 MiB
//! more than with none of them waiting, and below 100 us from the moment that a connection is parked until the next
//! one has it.

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

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use common::Relay;
use house::{KEEP, PASSWORD, own_device};
use smtp_uplift::{
    sandbox::scenario::Scenario,
    smarthost::pool::{Lease, Lifetime, Who},
};
use tokio::{task::JoinSet, time::Instant};

const DEVICES: usize = 1_000;
const CONNECTIONS: usize = 3;
/// Longer than anybody waits here.
const LONG: Duration = Duration::from_secs(600);

#[tokio::main]
async fn main() {
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    hand_over().await;
    memory().await;
}

/// How long a connection is nobody's between one who waits and the next.
async fn hand_over() {
    let (_sandbox, pool, _folder) =
        house::memory::pool(Scenario::default(), CONNECTIONS, Lifetime::default());
    let mut leases = Vec::new();
    for _ in 0..CONNECTIONS {
        leases.push(pool.lease(&Who::Relay, 1, LONG).await.unwrap());
    }
    // One of them goes round, the others stay out: who gets it gets the one that was parked just then.
    let going_round = leases.pop().unwrap();
    let (parked, times) = (Arc::new(Mutex::new(Instant::now())), Arc::<Mutex<Vec<_>>>::default());
    let park = |parked: &Mutex<Instant>, lease: Lease| {
        *parked.lock().unwrap() = Instant::now();
        lease.park();
    };
    let mut devices = JoinSet::new();
    for device in 0..DEVICES {
        let (pool, parked, times) = (Arc::clone(&pool), Arc::clone(&parked), Arc::clone(&times));
        devices.spawn(async move {
            let who = Who::Device(format!("copier {device}").into());
            let lease = pool.lease(&who, 1, LONG).await.unwrap();
            let took = parked.lock().unwrap().elapsed();
            times.lock().unwrap().push(took);
            park(&parked, lease);
        });
    }
    while pool.waiting() < DEVICES {
        tokio::task::yield_now().await;
    }
    park(&parked, going_round);
    devices.join_all().await;
    let mut times = times.lock().unwrap().clone();
    times.sort_unstable();
    println!(
        "a connection handed over, {DEVICES} waiting: median {:.1?}, 99 of 100 below {:.1?}, at most {:.1?}; asked: below 100 us",
        times[times.len() / 2],
        times[times.len() * 99 / 100],
        times[times.len() - 1]
    );
}

/// What those who wait cost, each with a message of 4 kB.
async fn memory() {
    // The smarthost takes long over each message, so that the others wait.
    let text = format!("password = \"{PASSWORD}\"\n[[fault]]\nstage = \"dot\"\ndelay = 15.0");
    let relay = Relay::before(Scenario::parse(&text).unwrap(), KEEP).await;
    let mut devices = Vec::new();
    let mut idle = 0;
    // The first ones pay for what all of them share, and get the connections.
    for number in 0..CONNECTIONS + DEVICES {
        if number == CONNECTIONS {
            idle = relay.memory("VmRSS");
        }
        devices.push(own_device(relay.address, number).await);
    }
    let sessions = relay.memory("VmRSS");
    let body = format!("Subject: scan\r\n\r\n{}", "0123456789abcde\r\n".repeat(235));
    for device in &mut devices {
        for line in ["MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>", "DATA"] {
            let reply = device.say(line).await.unwrap();
            assert!(reply.code.get() < 400, "{reply}");
        }
        device.write(body.clone()).await.unwrap();
    }
    let in_data = relay.memory("VmRSS");
    for device in &mut devices {
        device.write(".\r\n").await.unwrap();
    }
    while relay.status("waiting") < DEVICES as u64 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let all = relay.memory("VmRSS");
    let mib = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1024.0;
    println!(
        "{DEVICES} devices that wait for {CONNECTIONS} connections, each with 4 kB: {:.1} MiB more than idle ones; asked: below 20 MiB",
        mib(sessions, all)
    );
    println!(
        "of that the data {:.1} MiB; the idle sessions themselves are {:.1} MiB",
        mib(sessions, in_data),
        mib(idle, sessions)
    );
}
