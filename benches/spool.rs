//! What keeping messages costs: `cargo bench --bench spool [accept|cpu|large]`. The figures to hold:
//!
//! * `accept`: 50 devices, 4 kB, mode `spool`: at most 0.15 syncs a message; at least 1,000 messages a second when each
//!   sync takes 5 ms more (a library of a few lines, made by cc); at least twice what Postfix takes in the same run, if it is installed
//!   and this is root;
//! * `cpu`: `stream-then-spool` costs at most 5 % more CPU a message than `stream`, and 25 MB beyond `replay_memory`
//!   at most 15 ms more;
//! * `large`: with 100,000 messages queued a start takes less than 2 s, the first page of `queue list` less than 200 ms,
//!   and the relay less than 100 MiB.

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
mod postfix;

use std::{fs, net::SocketAddr, path::Path, process::Command, time::Duration};

use bytes::Bytes;
use common::Relay;
use house::{KEEP, SPOOL, STREAM};
use smtp_uplift::{
    sandbox::device::Device,
    spool::{
        queue::{Body, NewMessage, Queue as _, Recipient, RecipientState, Standing, State},
        store::Store,
    },
    telemetry::metrics::Metrics,
};
use tempfile::TempDir;
use tokio::{task::JoinSet, time::Instant};

const DEVICES: usize = 50;
/// They all come from this machine.
const CROWD: &str = "[limits]\nsessions_per_device = 5000";

#[tokio::main]
async fn main() {
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let only = std::env::args().skip(1).find(|word| !word.starts_with("--"));
    let wanted = |name: &str| only.as_deref().is_none_or(|only| only == name);
    if wanted("accept") {
        accept().await;
    }
    if wanted("cpu") {
        cpu().await;
    }
    if wanted("large") {
        large().await;
    }
}

/// How fast messages are taken over, and how many share a sync.
async fn accept() {
    let fast = "max_connections = 20";
    for round in 1..=3 {
        let relay = Relay::build(CROWD, &[], SPOOL, fast).await;
        let rate = load(relay.address, 6_000).await;
        let syncs = relay.metric("smtp_uplift_spool_commits_total") / 6_000.0;
        println!(
            "round {round}: spool mode {rate:.0} messages/s, {syncs:.3} commits a message, deliveries included"
        );
        drop(relay);
        if let Some(postfix) = postfix::start() {
            let theirs = load(postfix.address, 2_000).await;
            println!(
                "round {round}: Postfix {theirs:.0} messages/s: ours is {:.1} times that",
                rate / theirs
            );
        } else {
            println!("round {round}: Postfix is not installed, or this is not root: not compared");
        }
        let Some(slow) = slow_syncs() else {
            println!("round {round}: there is no C compiler: no figure for slow syncs");
            continue;
        };
        let counted = slow.path().join("count");
        let relay = Relay::build(CROWD, &slow_runner(slow.path()), SPOOL, fast).await;
        let before = fs::metadata(&counted).unwrap().len();
        let rate = load(relay.address, 6_000).await;
        let syncs = (fs::metadata(&counted).unwrap().len() - before) as f64 / 6_000.0;
        println!(
            "round {round}: each sync 5 ms longer: {rate:.0} messages/s, {syncs:.3} syncs a message, all counted"
        );
    }
}

/// A folder with what makes syncs slow.
fn slow_syncs() -> Option<TempDir> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("count"), "").unwrap();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/spool/slow_sync.c");
    let made = Command::new("cc")
        .args(["-shared", "-fPIC", "-O2", source, "-ldl", "-o"])
        .arg(folder.path().join("slow_sync.so"))
        .status();
    made.is_ok_and(|status| status.success()).then_some(folder)
}

fn slow_runner(folder: &Path) -> Vec<String> {
    let folder = folder.display();
    let library = format!("LD_PRELOAD={folder}/slow_sync.so");
    vec!["env".to_owned(), library, format!("SYNCS={folder}/count")]
}

/// Many devices at once, a connection for each message; returns messages a second.
async fn load(address: SocketAddr, messages: usize) -> f64 {
    let began = Instant::now();
    let mut devices = JoinSet::new();
    for device in 0..DEVICES {
        devices.spawn(async move {
            for number in 0..messages / DEVICES {
                let body =
                    Bytes::from(format!("Subject: {device}.{number}\r\n\r\n{}", text(4_000)));
                let mut device = Device::connect(address).await.unwrap();
                device.say("EHLO bench").await.unwrap();
                let reply = device.send("a@example.com", &["b@example.com"], body).await.unwrap();
                assert!(reply.code.is_positive(), "{reply}");
                device.say("QUIT").await.unwrap();
            }
        });
    }
    while let Some(ended) = devices.join_next().await {
        ended.unwrap();
    }
    messages as f64 / began.elapsed().as_secs_f64()
}

/// What the processor has to do for a message, beside `stream`; taken in turns, since machines are noisy.
async fn cpu() {
    for (name, size, count) in
        [("4 kB", 4_000, 1_500), ("200 kB", 200_000, 400), ("25 MB", 25_000_000, 6)]
    {
        let mut costs = [Vec::new(), Vec::new()];
        for _ in 0..7 {
            for (mode, costs) in [STREAM, KEEP].into_iter().zip(&mut costs) {
                let relay = Relay::build("", &[], mode, "").await;
                let body = Bytes::from(text(size));
                one_by_one(&relay, &body, count / 10 + 1).await;
                let before = relay.cpu();
                one_by_one(&relay, &body, count).await;
                costs.push((relay.cpu() - before).as_secs_f64() / count as f64);
            }
        }
        let [stream, keep] = costs.map(median);
        println!(
            "{name}: stream {:.1} us, stream-then-spool {:.1} us of CPU a message: {:+.1} %",
            stream * 1e6,
            keep * 1e6,
            (keep / stream - 1.0) * 100.0
        );
    }
    let beyond = format!("{KEEP}\nreplay_memory = \"1MiB\"");
    let (mut times, mut costs) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for _ in 0..7 {
        for (at, mode) in [STREAM, &beyond].into_iter().enumerate() {
            let relay = Relay::build("", &[], mode, "").await;
            let body = Bytes::from(text(25_000_000));
            one_by_one(&relay, &body, 1).await;
            let (before, began) = (relay.cpu(), Instant::now());
            one_by_one(&relay, &body, 6).await;
            times[at].push(began.elapsed().as_secs_f64() / 6.0);
            costs[at].push((relay.cpu() - before).as_secs_f64() / 6.0);
        }
    }
    let ([stream, keep], [stream_cpu, keep_cpu]) = (times.map(median), costs.map(median));
    println!(
        "25 MB, replay_memory 1 MiB: {:+.1} ms, of CPU {:+.1} ms, beside stream's {:.1} ms and {:.1} ms",
        (keep - stream) * 1e3,
        (keep_cpu - stream_cpu) * 1e3,
        stream * 1e3,
        stream_cpu * 1e3
    );
}

async fn one_by_one(relay: &Relay, body: &Bytes, count: usize) {
    for _ in 0..count {
        let mut device = Device::connect(relay.address).await.unwrap();
        device.say("EHLO bench").await.unwrap();
        let reply = device.send("a@example.com", &["b@example.com"], body.clone()).await.unwrap();
        assert!(reply.to_string().starts_with("250 2.0.0 ok"), "{reply}");
    }
}

/// A spool that many devices have filled.
async fn large() {
    const MESSAGES: usize = 100_000;
    let relay = Relay::build("", &[], "mode = \"stream\"", "").await;
    let directory = relay.folder().join("state/spool");
    fs::create_dir_all(directory.parent().unwrap()).unwrap();
    let store = Store::open(&directory, u64::MAX, Metrics::new("none")).unwrap();
    let began = Instant::now();
    let mut takers = JoinSet::new();
    for taker in 0..200 {
        let store = store.clone();
        takers.spawn(async move {
            for number in 0..MESSAGES / 200 {
                store.take(message(taker, number)).await.unwrap();
            }
        });
    }
    while let Some(taken) = takers.join_next().await {
        taken.unwrap();
    }
    println!("{MESSAGES} messages were queued in {:.1} s", began.elapsed().as_secs_f64());
    drop(store);
    for _ in 0..3 {
        let relay = relay.again(SPOOL).await;
        let begun = relay.start;
        let file = relay.folder().join("relay.toml");
        let began = Instant::now();
        let listed = Command::new(env!("CARGO_BIN_EXE_smtp-uplift"))
            .args(["queue", "list", "--config"])
            .arg(file)
            .output()
            .unwrap();
        let took = began.elapsed();
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
        let lines = String::from_utf8_lossy(&listed.stdout).lines().count();
        println!(
            "{MESSAGES} queued: start to READY {} ms, queue list {} ms ({lines} lines), peak RSS {} MiB",
            begun.as_millis(),
            took.as_millis(),
            relay.memory("VmHWM") / 1024
        );
    }
}

fn message(taker: usize, number: usize) -> NewMessage {
    let now = jiff::Timestamp::now();
    let day = Duration::from_secs(24 * 3_600);
    NewMessage {
        id: format!("t{taker}n{number}.1"),
        mailbox: house::MAILBOX.to_owned(),
        bound: false,
        device: format!("192.0.2.{}", taker % 250),
        listener: "lan".to_owned(),
        reverse_path: smtp_uplift::proto::path::ReversePath::Null,
        eight_bit: false,
        smtputf8: false,
        received: now,
        head: "Received: by relay.example\r\n".to_owned(),
        body: Body::Chunks(vec![Bytes::from(text(4_000))]),
        is_notice: false,
        recipients: vec![Recipient {
            path: smtp_uplift::proto::path::ForwardPath::Address(
                smtp_uplift::proto::path::Address::parse("office@example.com").unwrap(),
            ),
            state: RecipientState::Pending,
            reply: String::new(),
        }],
        standing: Standing {
            state: State::Ready,
            due: Some(now + day),
            hold: None,
            reason: "no connection to the smarthost".to_owned(),
            rule: String::new(),
            attempts: 1,
            maybe_sent: false,
            transcript: String::new(),
        },
        notice: None,
    }
}

fn text(size: usize) -> String {
    "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ0123\r\n"
        .repeat(size / 78)
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
