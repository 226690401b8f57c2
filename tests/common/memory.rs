//! A relay and its smarthost without a socket: under a paused clock whatever waits takes no time.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
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
    transport::stream::BoxIo,
};
use tempfile::TempDir;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::{MESSAGE, Plan, configuration};

const DEVICE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A relay with its smarthost, reached over streams in memory.
pub struct InMemory {
    pub sandbox: Sandbox,
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
        let sandbox = Sandbox::in_memory(plan.scenario.clone()).unwrap();
        Self::with(sandbox, tempfile::tempdir().unwrap(), plan).await
    }

    /// A relay before a smarthost that is there already, in a folder that may be another relay's.
    pub async fn with(sandbox: Sandbox, folder: TempDir, plan: Plan<'_>) -> Self {
        let config = configured(&sandbox, &folder, &plan);
        let metrics = Metrics::new("none");
        let door = doors(&config, &metrics).await.unwrap().remove(0);
        let target = |mailbox| Target::with_dialler(&config, mailbox, sandbox.dialler()).unwrap();
        let targets = config.mailboxes.iter().map(target).collect();
        // The time of day goes with tokio's clock, which tests stop.
        let clock = Clock::Since(jiff::Timestamp::now(), Instant::now());
        let Wired { relay, background } = wire(&config, targets, &metrics, clock).await.unwrap();
        if plan.settled {
            relay.mailboxes.first().pool.warm_up().await;
        }
        let (door, sessions) = (Arc::new(door), TaskTracker::new());
        Self { sandbox, relay, door, background, sessions, folder }
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
