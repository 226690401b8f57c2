//! A relay and its smarthost for one cell, and a device that looks at its watch.

use std::{sync::LazyLock, time::Duration};

use smtp_uplift::{
    proto::reply::Reply,
    sandbox::{Delivery, Sandbox, scenario::Scenario},
    spool::queue::{Filter, Queue as _, State, Summary},
    transport::certificate::Identity,
};
use tokio::time::{Instant, sleep};

use super::common::{
    PASSWORD, Plan,
    memory::{InMemory, timed},
};

pub(super) const COPIER: &str = "copier@example.com";
pub(super) const OFFICE: &str = "office@example.com";
/// How long a device is kept waiting, as it is configured unless said otherwise.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Made once: a key takes longer than all the rest of a cell.
static IDENTITY: LazyLock<Identity> =
    LazyLock::new(|| Identity::make(&["localhost", "127.0.0.1", "::1"]).unwrap());

/// Runs something in a time of its own. Whatever it leaves behind ends with it.
pub(super) fn in_its_own_time<T>(doing: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().start_paused(true).build().unwrap().block_on(doing)
}

/// A smarthost at which this goes wrong: lines of a scenario file.
pub(super) fn smarthost(lines: &str) -> Sandbox {
    let scenario = Scenario::parse(&format!("password = \"{PASSWORD}\"\n{lines}")).unwrap();
    Sandbox::in_memory_as(scenario, &IDENTITY).unwrap()
}

/// A house in a mode that has never seen its smarthost. Without TLS for devices, which would take its time.
pub(super) fn plan<'a>(delivery: &'a str) -> Plan<'a> {
    Plan { delivery, listener: "tls = \"none\"", settled: false, ..Plan::default() }
}

pub(super) async fn house(smarthost: Sandbox, delivery: &str) -> InMemory {
    InMemory::with(smarthost, tempfile::tempdir().unwrap(), plan(delivery)).await
}

/// What a device heard in the end, and how that was.
pub(super) struct Heard {
    /// The command that this answers.
    pub at: &'static str,
    pub reply: Reply,
    /// The longest that it waited for an answer.
    pub waited: Duration,
    /// How long the relay took no data.
    pub stalled: Duration,
    /// The answers to its recipients.
    pub recipients: Vec<Reply>,
    /// What had arrived by then.
    pub arrived: Vec<Delivery>,
}

impl Heard {
    pub(super) fn is_yes(&self) -> bool {
        self.reply.code.is_positive()
    }

    /// Code, enhanced code and the words up to the first detail.
    pub(super) fn told(&self) -> String {
        let text = self.reply.to_string();
        let told = text.split([',', ';', ':']).next().unwrap_or_default();
        if self.at == "dot" { told.to_owned() } else { format!("{told} ({})", self.at) }
    }
}

/// A device sends a message. It gives up when nobody or not even MAIL is accepted.
pub(super) async fn send(house: &InMemory, from: &str, to: &[&str], data: &str) -> Heard {
    let mut device = house.device().await;
    let (mut recipients, mut waited, mut stalled) = (Vec::new(), Duration::ZERO, Duration::ZERO);
    let mut lines = vec![("MAIL", format!("MAIL FROM:<{from}>"))];
    lines.extend(to.iter().map(|to| ("RCPT", format!("RCPT TO:<{to}>"))));
    lines.push(("DATA", "DATA".to_owned()));
    let mut last = None;
    for (at, line) in lines {
        if at == "DATA" && !recipients.iter().any(|reply: &Reply| reply.code.is_positive()) {
            break;
        }
        let (reply, took) = timed(device.say(&line)).await;
        let reply = reply.unwrap();
        waited = waited.max(took);
        if at == "RCPT" {
            recipients.push(reply.clone());
        }
        let refused = reply.code.get() >= 400;
        last = Some((at, reply));
        if refused && at != "RCPT" {
            break;
        }
    }
    if let Some(("DATA", reply)) = &last
        && reply.code.get() == 354
    {
        let (written, took) = timed(device.write(data.to_owned())).await;
        written.unwrap();
        stalled = took;
        device.write(&b".\r\n"[..]).await.unwrap();
        let (reply, took) = timed(device.read()).await;
        waited = waited.max(took);
        last = Some(("dot", reply.unwrap()));
    }
    let (at, reply) = last.unwrap();
    // At this very moment: the relay may go on with it at once.
    let arrived = house.sandbox.deliveries();
    device.say("QUIT").await.unwrap();
    Heard { at, reply, waited, stalled, recipients, arrived }
}

/// A message of some 40 octets, or of 200 KiB.
pub(super) fn message(large: bool) -> String {
    let line = "All work and no play makes the copier a dull machine, which it knows.\r\n";
    let lines = if large { 200 * 1024 / line.len() } else { 1 };
    format!("From: {COPIER}\r\nSubject: scan\r\n\r\n{}", line.repeat(lines))
}

/// How often somebody has got something.
pub(super) fn count(deliveries: &[Delivery], recipient: &str) -> usize {
    deliveries
        .iter()
        .flat_map(|delivery| &delivery.recipients)
        .filter(|to| *to == recipient)
        .count()
}

/// How often somebody has got something by now.
pub(super) fn copies(house: &InMemory, recipient: &str) -> usize {
    count(&house.sandbox.deliveries(), recipient)
}

/// The state as a table shows it. Whether what is due at once is on its way already is a matter of the moment.
pub(super) fn shown(state: State) -> &'static str {
    if state == State::Leased { State::Ready.as_str() } else { state.as_str() }
}

/// What the relay keeps, oldest first.
pub(super) async fn rows(house: &InMemory) -> Vec<Summary> {
    match &house.relay.keeper {
        Some(keeper) => keeper.queue.list(Filter::default()).await.unwrap(),
        None => Vec::new(),
    }
}

/// Waits until all that is kept is as wanted; whether it came to that within so long.
pub(super) async fn until(
    house: &InMemory,
    most: Duration,
    wanted: impl Fn(&Summary) -> bool,
) -> bool {
    // Often at first: attempts follow each other within seconds, later within minutes.
    const OFTEN: Duration = Duration::from_secs(30);
    let look = |waited| if waited < OFTEN { 1 } else { 5 };
    let began = Instant::now();
    while began.elapsed() <= most {
        if rows(house).await.iter().all(&wanted) {
            return true;
        }
        sleep(Duration::from_secs(look(began.elapsed()))).await;
    }
    false
}

pub(super) fn is_over(row: &Summary) -> bool {
    matches!(row.state, State::Done | State::Failed)
}

/// Somebody has mended it and says so.
pub(super) fn say_so(house: &InMemory) {
    house.relay.try_again();
}
