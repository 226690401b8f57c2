//! A relay and its smarthost without a socket: under a paused clock whatever waits takes no time.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, LazyLock},
    time::Duration,
};

use smtp_uplift::{
    config::{self, Config},
    relay::{
        Door, Relay,
        keeper::{Clock, Keeper},
        session,
    },
    sandbox::{Sandbox, device::Device, scenario::Scenario},
    service::wire::{Wired, doors, wire},
    smarthost::{
        Target,
        ledger::Ledger,
        pool::{Allowance, Lifetime, Pool},
    },
    telemetry::{
        metrics::Metrics,
        transcript::{Keep, Transcripts},
    },
    transport::{certificate::Identity, stream::BoxIo},
};
use tempfile::TempDir;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::{MESSAGE, Plan, configuration};

const DEVICE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// The certificate of all sandboxes: making one takes longer than most tests.
static IDENTITY: LazyLock<Identity> =
    LazyLock::new(|| Identity::make(&["localhost", "127.0.0.1", "::1"]).unwrap());

/// A relay with its smarthost, reached over streams in memory.
pub struct InMemory {
    pub sandbox: Sandbox,
    /// The smarthosts of the second mailbox and so on; those without one of their own share the first.
    pub more: Vec<Sandbox>,
    pub relay: Arc<Relay>,
    pub door: Arc<Door>,
    /// What the relay does beside its sessions.
    pub background: TaskTracker,
    /// The sessions of its devices.
    pub sessions: TaskTracker,
    pub folder: TempDir,
}

impl InMemory {
    pub async fn new() -> Self {
        Self::build(Plan::default()).await
    }

    pub async fn build(plan: Plan<'_>) -> Self {
        let sandbox = Sandbox::in_memory_as(plan.scenario.clone(), &IDENTITY).unwrap();
        Self::with(sandbox, tempfile::tempdir().unwrap(), plan).await
    }

    /// A relay before a smarthost that is there already, in a folder that may be another relay's.
    pub async fn with(sandbox: Sandbox, folder: TempDir, plan: Plan<'_>) -> Self {
        Self::with_more(sandbox, Vec::new(), folder, plan).await
    }

    /// A relay of which each mailbox has a smarthost of its own, by their scenarios; the first is the plan's.
    pub async fn several(plan: Plan<'_>, more: Vec<Scenario>) -> Self {
        let sandbox = |scenario| Sandbox::in_memory_as(scenario, &IDENTITY).unwrap();
        let (first, more) = (sandbox(plan.scenario.clone()), more.into_iter().map(sandbox));
        Self::with_more(first, more.collect(), tempfile::tempdir().unwrap(), plan).await
    }

    pub async fn with_more(
        sandbox: Sandbox,
        more: Vec<Sandbox>,
        folder: TempDir,
        plan: Plan<'_>,
    ) -> Self {
        let text = configuration(&plan, 25, sandbox.certificate(), folder.path());
        Self::of(&text, sandbox, more, folder, plan.settled).await
    }

    /// A relay with this configuration.
    pub async fn of(
        text: &str,
        sandbox: Sandbox,
        more: Vec<Sandbox>,
        folder: TempDir,
        settled: bool,
    ) -> Self {
        let file = folder.path().join("smtp-uplift.toml");
        let config = config::parse(text, &file).unwrap().config;
        let metrics = Metrics::new("none");
        let door = doors(&config, &metrics).await.unwrap().remove(0);
        let target = |(place, mailbox): (usize, _)| {
            let own = place.checked_sub(1).and_then(|place| more.get(place));
            Target::with_dialler(&config, mailbox, own.unwrap_or(&sandbox).dialler()).unwrap()
        };
        let targets = config.mailboxes.iter().enumerate().map(target).collect();
        // The time of day goes with tokio's clock, which tests stop.
        let clock = Clock::Since(jiff::Timestamp::now(), Instant::now());
        let Wired { relay, background } = wire(&config, targets, &metrics, clock).await.unwrap();
        if settled {
            relay.mailboxes.first().pool.warm_up().await;
        }
        let (door, sessions) = (Arc::new(door), TaskTracker::new());
        Self { sandbox, more, relay, door, background, sessions, folder }
    }

    /// The device's end of a session that has just begun.
    pub fn connect(&self) -> BoxIo {
        self.connect_from(DEVICE)
    }

    /// The same for a device with an address of its own.
    pub fn connect_from(&self, peer: IpAddr) -> BoxIo {
        let (theirs, ours) = tokio::io::duplex(64 * 1024);
        let (door, relay) = (Arc::clone(&self.door), Arc::clone(&self.relay));
        let id = fastrand::u32(..).to_string();
        self.sessions.spawn(session::serve(Box::new(ours), peer, id, door, relay));
        Box::new(theirs)
    }

    /// A device that has said EHLO.
    pub async fn device(&self) -> Device {
        let mut device = Device::over(self.connect()).await.unwrap();
        device.say("EHLO copier").await.unwrap();
        device
    }

    /// Sends the usual message; returns what the device hears.
    pub async fn send(&self, from: &str, to: &[&str]) -> String {
        let mut device = self.device().await;
        let heard = device.send(from, to, MESSAGE).await.unwrap().to_string();
        device.say("QUIT").await.unwrap();
        heard
    }

    /// The same, from a device at that address.
    pub async fn send_from(&self, peer: &str, from: &str, to: &[&str]) -> String {
        let mut device = Device::over(self.connect_from(peer.parse().unwrap())).await.unwrap();
        device.say("EHLO copier").await.unwrap();
        let heard = device.send(from, to, MESSAGE).await.unwrap().to_string();
        device.say("QUIT").await.unwrap();
        heard
    }

    /// Stops the relay as the service does; returns what outlives it, for [`InMemory::with`].
    pub async fn stop(self) -> (Sandbox, TempDir) {
        self.relay.drain.cancel();
        self.sessions.close();
        self.sessions.wait().await;
        if let Some(keeper) = &self.relay.keeper {
            keeper.abort.cancel();
            keeper.finish().await;
        }
        self.relay.mailboxes.all().iter().for_each(|mailbox| mailbox.pool.stop());
        self.background.close();
        self.background.wait().await;
        (self.sandbox, self.folder)
    }

    /// The connections of the first mailbox.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.relay.mailboxes.first().pool
    }

    /// What keeps messages.
    pub fn keeper(&self) -> &Arc<Keeper> {
        self.relay.keeper.as_ref().unwrap()
    }

    /// The value of a metric, by the whole of its name and labels.
    pub fn metric(&self, name: &str) -> f64 {
        super::metric(&self.relay.metrics, name)
    }
}

/// A pool alone, before a smarthost in memory that takes any password or the scenario's.
pub fn pool(
    scenario: Scenario,
    max_connections: usize,
    lifetime: Lifetime,
) -> (Sandbox, Arc<Pool>, TempDir) {
    let (sandbox, folder) = (Sandbox::in_memory(scenario).unwrap(), tempfile::tempdir().unwrap());
    let pool = pool_to(&sandbox, &folder, Allowance::unlimited(max_connections), None, lifetime);
    (sandbox, pool, folder)
}

/// A pool alone, with limits.
pub fn limited_pool(
    sandbox: &Sandbox,
    folder: &TempDir,
    allowance: Allowance,
    ledger: Option<Ledger>,
) -> Arc<Pool> {
    pool_to(sandbox, folder, allowance, ledger, Lifetime::default())
}

fn pool_to(
    sandbox: &Sandbox,
    folder: &TempDir,
    allowance: Allowance,
    ledger: Option<Ledger>,
    lifetime: Lifetime,
) -> Arc<Pool> {
    let config = configured(sandbox, folder, &Plan::default());
    let target = Target::with_dialler(&config, &config.mailboxes[0], sandbox.dialler()).unwrap();
    let (metrics, transcripts) = (Metrics::new("none"), Transcripts::new(Keep::Failed));
    let tracker = TaskTracker::new();
    Pool::new(target, allowance, ledger, lifetime, metrics, transcripts, tracker)
}

/// Runs something with the clock stopped; returns what came of it and how long that took by that clock.
pub async fn timed<T>(doing: impl Future<Output = T>) -> (T, Duration) {
    let began = tokio::time::Instant::now();
    (doing.await, began.elapsed())
}

fn configured(sandbox: &Sandbox, folder: &TempDir, plan: &Plan<'_>) -> Config {
    let text = configuration(plan, 25, sandbox.certificate(), folder.path());
    config::parse(&text, &folder.path().join("smtp-uplift.toml")).unwrap().config
}
