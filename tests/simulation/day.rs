//! What fifty devices do to one mailbox. Virtual time, streams in memory.

use std::{
    collections::BTreeMap,
    env,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use smtp_uplift::{
    sandbox::scenario::Scenario,
    spool::queue::{Filter, Queue as _, State},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    common::{KEEP, MAILBOX, PASSWORD, Plan, memory::InMemory},
    job::{Job, Kind, Printer},
    ledger::{Delays, Ledger, most_in_a_minute},
};

/// Devices; the first one has the row of jobs, the next three scan besides.
const DEVICES: usize = 50;
/// Jobs in a row.
const ROW: usize = 1_000;
/// Octets a second of the slow scans. The last one is slower than a lease is kept for while somebody waits.
const RATES: [usize; 3] = [1_000_000, 500_000, 100_000];
/// Octets of a slow scan: the largest that Exchange Online takes. None of them is in memory as a whole.
const SCAN: usize = 150_000_000;
/// Messages that come alone while the row is under way.
const LATER: usize = 20;
/// What the smarthost allows.
const CONNECTIONS: usize = 3;
const RATE: usize = 30;
/// How long a device waits for any answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// No simulation takes longer by its clock.
const END: Duration = Duration::from_secs(6 * 3_600);

const fn minutes(count: u64) -> Duration {
    Duration::from_secs(60 * count)
}

/// A minute until there is room in the rate again, one in which the mailbox pauses after a random 421, two and a half
/// for a large scan on the only connection that 432s have left, and the waits of a message that meets with such a
/// reply itself. Behind the row it would be more than half an hour.
const FAIR: Duration = minutes(10);

async fn simulate(seed: u64) {
    eprintln!("UPLIFT_SEED={seed}");
    // What the relay leaves to chance, too.
    fastrand::seed(seed);
    let mailbox = format!(
        "password = {{ file = \"password\" }}\nmax_connections = {CONNECTIONS}\nmessages_per_minute = {RATE}"
    );
    let plan = Plan { scenario: moody(seed), delivery: KEEP, mailbox: &mailbox, ..Plan::default() };
    let house = Arc::new(InMemory::build(plan).await);
    let began = Instant::now();
    let ledger = timeout(END, run(&house, seed)).await.expect("devices have to end some time");
    let sent = began.elapsed();
    let count = ledger.promises.len();
    let all = timeout(END, house.sandbox.delivered(count as u64)).await;
    let accepted = house.sandbox.counts().accepted.load(Ordering::SeqCst);
    all.unwrap_or_else(|_| panic!("{accepted} of {count} messages have arrived"));
    let took = began.elapsed();
    nothing_is_left(&house).await;

    let delays = ledger.settle(&house.sandbox);
    report(seed, sent, took, &delays);
    the_limits_held(&house);
    for kind in [Kind::Burst, Kind::Later, Kind::Scan] {
        let Delays { longest, .. } = delays[&kind];
        assert!(longest <= FAIR, "{kind:?}: somebody had to wait for {longest:?}");
    }
    let last = |kind| delays[&kind].last;
    assert!(last(Kind::Later) < last(Kind::Row), "nothing is learnt once the row is through");
    // Twice as long as they would take if nothing went wrong.
    let whole = minutes((2 * count / RATE) as u64);
    let Delays { longest, .. } = delays[&Kind::Row];
    assert!(longest <= whole, "{longest:?} is too long for {count} messages");
}

/// The limits, and replies that come now and then although none of them is reached.
fn moody(seed: u64) -> Scenario {
    let text = format!(
        r#"
        password = "{PASSWORD}"
        max_connections = {CONNECTIONS}
        messages_per_minute = {RATE}
        keep = 1000
        seed = {seed}
        [[fault]]
        stage = "auth"
        delay = 1.0
        [[fault]]
        stage = "mail"
        reply = "421 4.4.2 Message submission rate for this client has exceeded the configured limit"
        close = true
        chance = 0.002
        [[fault]]
        stage = "rcpt"
        reply = "421 4.3.2 Service not available, closing transmission channel"
        close = true
        chance = 0.005
        [[fault]]
        stage = "dot"
        reply = "432 4.3.2 Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending"
        chance = 0.005
        [[fault]]
        stage = "dot"
        delay = 1.0
        [[fault]]
        stage = "idle"
        reply = "421 4.4.2 Connection dropped"
        close = true
        chance = 0.005
        "#
    );
    Scenario::parse(&text).unwrap()
}

/// Lets the devices do what they do; returns what they were promised.
async fn run(house: &Arc<InMemory>, seed: u64) -> Ledger {
    let (ledger, began) = (Arc::new(Mutex::new(Ledger::default())), Instant::now());
    let mut chance = fastrand::Rng::with_seed(seed);
    let mut devices = JoinSet::new();
    let mut number = 0;
    let mut jobs = |kind, count: usize, size, rate| {
        let first = number;
        number += count;
        let jobs = first..number;
        jobs.map(move |number| Job { kind, number, size, rate }).collect::<Vec<_>>()
    };
    let mut plan = Vec::new();
    // The first one is busy with its row.
    for device in 1..DEVICES {
        for at in [Duration::ZERO, minutes(10)] {
            plan.push((device, at, jobs(Kind::Burst, 1, 4_000, None)));
        }
    }
    plan.push((0, Duration::ZERO, jobs(Kind::Row, ROW, 2_000, None)));
    for (scanner, rate) in RATES.into_iter().enumerate() {
        plan.push((1 + scanner, Duration::ZERO, jobs(Kind::Scan, 1, SCAN, Some(rate))));
    }
    for _ in 0..LATER {
        // Between the bursts, and behind them while most of the row is still to be sent.
        let at = Duration::from_secs(chance.u64(120..1_500));
        plan.push((chance.usize(10..DEVICES), at, jobs(Kind::Later, 1, 4_000, None)));
    }
    for (device, at, jobs) in plan {
        let (house, ledger) = (Arc::clone(house), Arc::clone(&ledger));
        devices.spawn(async move {
            sleep_until(began + at).await;
            let mut printer = Printer::connect(&house, address(device)).await;
            for job in jobs {
                let promise = printer.send(job).await;
                ledger.lock().unwrap().promises.insert(job.number, promise);
            }
            printer.quit().await;
            let (longest, what) = printer.longest_wait;
            assert!(longest <= PATIENCE, "device {device} waited {longest:?} for {what}");
        });
    }
    while let Some(ended) = devices.join_next().await {
        ended.unwrap();
    }
    Arc::into_inner(ledger).unwrap().into_inner().unwrap()
}

fn address(device: usize) -> IpAddr {
    Ipv4Addr::new(10, 1, 0, u8::try_from(1 + device).unwrap()).into()
}

/// Nothing waits in the spool, is held or has failed, and nothing was sent that may have been sent before.
async fn nothing_is_left(house: &InMemory) {
    // What has just arrived is written down a moment later.
    sleep(Duration::from_secs(5)).await;
    let kept = house.keeper().queue.list(Filter::default()).await.unwrap();
    for message in kept {
        assert_eq!((message.state, message.maybe_sent), (State::Done, 0), "{message:?}");
    }
}

fn the_limits_held(house: &InMemory) {
    let sandbox = &house.sandbox;
    let open = (sandbox.most_open(MAILBOX), sandbox.counts().most_open.load(Ordering::SeqCst));
    assert!(open <= (CONNECTIONS, CONNECTIONS), "{open:?} connections at once");
    let seen = sandbox.submissions();
    let mails = most_in_a_minute(seen.iter().map(|seen| seen.mail).collect());
    assert!(mails <= RATE, "{mails} MAILs in a minute");
    let dots = seen.iter().filter_map(|seen| seen.dot.map(|(at, _)| at)).collect();
    let dots = most_in_a_minute(dots);
    assert!(dots <= RATE, "{dots} dots in a minute");
    assert!(seen.iter().all(|seen| seen.user == MAILBOX && !seen.is_too_fast));
}

fn report(seed: u64, sent: Duration, took: Duration, delays: &BTreeMap<Kind, Delays>) {
    eprintln!(
        "seed {seed}: the devices were done after {sent:.0?}, all had arrived after {took:.0?}"
    );
    for (kind, Delays { count, queued, median, longest, .. }) in delays {
        eprintln!(
            "{kind:?}: {count} messages, {queued} by the spool; from dot to arrival {median:.1?}, at most {longest:.1?}"
        );
    }
}

/// The seed of the caller's, or one of the usual ones.
async fn by_seed(usual: u64) {
    let given = env::var("UPLIFT_SEED").ok();
    simulate(given.map_or(usual, |text| text.parse().expect("UPLIFT_SEED is a number"))).await;
}

#[tokio::test(start_paused = true)]
async fn fifty_devices_share_a_mailbox_within_its_limits() {
    by_seed(1).await;
}

#[tokio::test(start_paused = true)]
async fn fifty_devices_share_a_mailbox_within_its_limits_another_day() {
    if env::var_os("UPLIFT_SEED").is_none() {
        by_seed(2).await;
    }
}
