//! Everything at once that somebody on the network could do to the relay, while printers print: the program as a
//! child, the attackers from addresses of their own on a runtime of their own.
//!
//! The printers' messages all arrive, their 99th percentile stays below 10 s, and the memory stays bounded. `cargo test`
//! has 200 attackers for a few seconds; 2,000 for a minute are
//!
//! ```text
//! cargo test --release --test hostile -- --ignored --nocapture
//! ```
//!
//! With `UPLIFT_ATTACK=HalfHandshake`, or another of the ways in `attack`, all attack in that way.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]
#![allow(clippy::print_stdout, reason = "the figures are there to be read")]

#[path = "hostile/attack.rs"]
mod attack;
mod common;
#[path = "interop/needs.rs"]
mod needs;
#[path = "hostile/printers.rs"]
mod printers;
#[path = "durability/relay.rs"]
#[allow(dead_code, reason = "each test file uses its part")]
mod relay;

use std::{fs, process::Stdio, time::Duration};

use attack::Attack;
use common::{KEEP, Plan, hash};
use needs::Need;
use printers::{Latencies, print};
use relay::{House, Relay};
use tokio::{io::AsyncWriteExt as _, runtime::Builder, time::sleep};

/// What a printer waits for at most, all but one in a hundred times.
const PATIENCE: Duration = Duration::from_secs(10);
const PRINTERS: usize = 20;

/// A relay that offers whatever can be attacked.
async fn house() -> House {
    let listener = "tls = \"starttls\"\nauth = \"offer\"\nauth_without_tls = true";
    let more = "[auth]\nusers_file = \"users.txt\"\n";
    let house = House::build(Plan { delivery: KEEP, listener, more, ..Plan::default() }).await;
    let users = format!("scan:{}\n", hash("geheim"));
    fs::write(house.config.with_file_name("users.txt"), users).unwrap();
    house
}

/// A line of the relay's status in MiB, such as `VmHWM`.
fn memory(relay: &Relay, line: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", relay.pid())).unwrap();
    let value = status.lines().find_map(|text| text.strip_prefix(line)).unwrap();
    let kib: u64 = value.trim_matches([':', '\t', ' ']).trim_end_matches(" kB").parse().unwrap();
    kib / 1024
}

/// The printers' messages alone, then under attack. `most` is the memory that the relay may take, in MiB: more than half
/// of it is `replay_memory_total`, which whoever floods with mail data may have, the rest is logins and sessions.
async fn under_attack(attackers: usize, messages: usize, lasts: Duration, most: u64) {
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let house = house().await;
    let relay = house.start().ready().await;
    let quiet = print(house.address, PRINTERS, messages, Duration::ZERO).await;
    let before = memory(&relay, "VmHWM");
    let attack = Attack::begin(house.address, attackers);
    sleep(lasts / 4).await;
    let loud = print(house.address, PRINTERS, messages, lasts / 2).await;
    let sessions = common::metric_of(relay.admin(), "sessions_open{listener=\"lan\"}").await;
    let (peak, struck) = (memory(&relay, "VmHWM"), attack.end());
    let sent = (quiet.count() + loud.count()) as u64;
    let arriving = house.sandbox.delivered(sent);
    tokio::time::timeout(relay::PATIENCE, arriving).await.expect("all that was printed arrives");
    let after = print(house.address, PRINTERS, 1, Duration::ZERO).await;
    println!(
        "{attackers} attackers, {sessions} sessions open, {struck:#?}\n\
         quiet: {quiet}\nunder attack: {loud}\nafterwards: {after}\n\
         memory: {before} MiB before, {peak} MiB at most"
    );
    assert!(loud.percentile(99) < PATIENCE, "under attack: {loud}");
    assert!(peak <= most, "{peak} MiB");
    relay.stop().await;
}

fn run(attackers: usize, messages: usize, lasts: Duration, most: u64) {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(under_attack(attackers, messages, lasts, most));
}

#[test]
fn printers_print_while_a_few_do_their_worst() {
    run(200, 3, Duration::from_secs(4), 450);
}

#[test]
#[ignore = "takes minutes: cargo test --release --test hostile -- --ignored --nocapture"]
fn printers_print_while_two_thousand_do_their_worst() {
    run(2_000, 30, Duration::from_secs(60), 600);
}

/// Renegotiation lets a client make the server work for nothing; TLS 1.3 has none of it.
#[tokio::test(flavor = "multi_thread")]
async fn renegotiation_is_refused() {
    let openssl = Need {
        probe: "openssl version".to_owned(),
        otherwise: "openssl (apt-get install openssl)",
    };
    if !needs::met(&[openssl], "renegotiation") {
        return;
    }
    let house = house().await;
    let relay = house.start().ready().await;
    let mut client = tokio::process::Command::new("openssl");
    client.args([
        "s_client",
        "-tls1_2",
        "-starttls",
        "smtp",
        "-connect",
        &house.address.to_string(),
    ]);
    let streams = client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut client = streams.kill_on_drop(true).spawn().unwrap();
    let mut mouth = client.stdin.take().unwrap();
    // The letter stands for renegotiation where it begins a line; the rest of the line is not sent.
    mouth.write_all(b"R\n").await.unwrap();
    let ended = tokio::time::timeout(relay::PATIENCE, client.wait_with_output()).await;
    let output = ended.expect("it ends").unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("RENEGOTIATING") && said.contains("no renegotiation"), "{said}");
    let printed = print(house.address, 2, 1, Duration::ZERO).await;
    assert_eq!(Latencies::count(&printed), 2);
    relay.stop().await;
}
