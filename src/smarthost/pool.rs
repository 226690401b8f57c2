//! The connections of one mailbox: lent one by one, kept between messages.
//!
//! ```text
//!          lease()                         park()
//! [`desk`] ───────► Turn ─► Lease ──────────────────────► shelf ──► lent again, youngest first
//!    ▲                        │ dropped                     │ too old, too idle, or it has news
//!    │                        ▼                             ▼
//!    └───── slot free ◄── closing, until the smarthost has closed too or a second has passed
//! ```
//!
//! The desk says who is next; [`gate`](super::gate) lets connections come about. Every connection owns a slot from its
//! first SYN until it is closed, so that there are never more than the mailbox may have. A connection that comes too
//! late for whoever asked goes to the shelf for the next one.
//!
//! [`desk`]: super::desk

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde::Serialize;
use thiserror::Error;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use super::{
    Credential, Target,
    breaker::State,
    connection::{Connection, OpenError},
    desk::{Desk, Left, Refused, Turn},
    gate::Gate,
    journal::Journal,
    ledger::Ledger,
    limits::{Bar, LOWERED},
};
pub use super::{
    limits::{Allowance, Budget, Spent},
    turns::Who,
};
use crate::{
    proto::{
        client::{Refusal, Stage},
        reply::Reply,
        session::SmarthostOffer,
    },
    telemetry::{
        metrics::Metrics,
        transcript::{Transcript, Transcripts},
    },
};

/// How often the shelf is looked through while a connection lies there for as long as it may.
const SWEEPS: u32 = 12;
/// How long the smarthost may still count a connection that failed on our side.
const COUNTED: Duration = Duration::from_secs(1);

/// How long connections are kept. By age, never by count: a count draws all traffic to the slowest server.
#[derive(Clone, Copy, Debug)]
pub struct Lifetime {
    /// A shelved connection is closed after this long: Exchange Online closes idle ones itself.
    pub idle: Duration,
    /// A connection is not lent any more at this age.
    pub age: Duration,
}

impl Default for Lifetime {
    fn default() -> Self {
        Self { idle: Duration::from_secs(60), age: Duration::from_secs(600) }
    }
}

/// The connections of one mailbox.
pub struct Pool {
    gate: Gate,
    desk: Arc<Desk>,
    lifetime: Lifetime,
    metrics: Metrics,
    tracker: TaskTracker,
    stopping: CancellationToken,
    /// One permit for each connection, whatever it does.
    slots: Arc<Semaphore>,
    shelf: Mutex<Vec<Shelved>>,
    /// Something was put on the shelf.
    shelved: Notify,
    max_connections: usize,
    leased: AtomicUsize,
}

/// A connection that is lent. Dropping it closes the connection; [`Lease::park`] keeps it.
pub struct Lease {
    /// Taken out only when the lease ends.
    lent: Option<Lent>,
    pool: Arc<Pool>,
    turn: Turn,
}

/// The connections of a mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Connections {
    /// Lent just now.
    pub leased: usize,
    /// Kept for the next message.
    pub shelved: usize,
}

/// A connection with its slot.
struct Lent {
    connection: Box<Connection>,
    /// What it has logged in with.
    credential: Credential,
    slot: OwnedSemaphorePermit,
}

struct Shelved {
    lent: Lent,
    since: Instant,
}

/// Why no connection was lent.
#[derive(Debug, Error)]
pub enum LeaseError {
    /// All connections are busy, or the smarthost is slow to let us in.
    #[error("no connection to the smarthost became free within {} s", .0.as_secs_f32())]
    Busy(Duration),
    /// The connection did not come about.
    #[error(transparent)]
    Open(Box<OpenError>),
    /// The smarthost has refused the login; repeating it could lock the account. How long it is not repeated,
    /// `None`: until the secret changes; and what it had said.
    #[error("the smarthost has refused the login: it is not tried again {}", .0.map_or_else(
        || "with this secret; write the right one, or send SIGHUP to have it tried".to_owned(),
        |left| format!("for another {} s; SIGHUP has it tried at once", left.as_secs())
    ))]
    LoginRefused(Option<Duration>, Option<Box<Reply>>),
    /// The smarthost was sent too much, and the pause after that lasts longer than whoever asked would wait.
    #[error("the smarthost has refused to take more for now: nothing is sent for another {} s", .0.as_secs())]
    Paused(Duration),
    /// All that the mailbox may send for now has been sent, and that lasts longer than whoever asked would wait.
    #[error("{} {} are used up: nothing is sent for another {} s", .0.count, .0.what, .0.left.as_secs())]
    Spent(Spent),
    /// The relay stops.
    #[error("the relay is stopping")]
    Stopping,
}

impl From<Refused> for LeaseError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Barred(Bar::Paused(left)) => Self::Paused(left),
            Refused::Barred(Bar::Spent(spent)) => Self::Spent(spent),
            Refused::Closed => Self::Stopping,
        }
    }
}

impl LeaseError {
    /// What the smarthost said, if that was the reason.
    pub fn reply(&self) -> Option<(Stage, &Reply)> {
        match self {
            Self::Open(error) => match &**error {
                OpenError::Refused(Refusal::Reply(stage, reply)) => Some((*stage, reply)),
                _ => None,
            },
            Self::LoginRefused(_, said) => said.as_deref().map(|reply| (Stage::Auth, reply)),
            _ => None,
        }
    }
}

impl Pool {
    /// A pool without connections. What an earlier relay has sent is in `ledger`; what the pool does in the background
    /// runs on `tracker`.
    pub fn new(
        target: Target,
        allowance: Allowance,
        ledger: Option<Ledger>,
        lifetime: Lifetime,
        metrics: Metrics,
        transcripts: Arc<Transcripts>,
        tracker: TaskTracker,
    ) -> Arc<Self> {
        let desk = Desk::new(&target.mailbox, allowance, ledger, metrics.clone());
        let pool = Arc::new(Self {
            gate: Gate::new(target, metrics.clone(), transcripts),
            desk,
            lifetime,
            metrics,
            tracker,
            stopping: CancellationToken::new(),
            slots: Arc::new(Semaphore::new(allowance.connections)),
            shelf: Mutex::default(),
            shelved: Notify::new(),
            max_connections: allowance.connections,
            leased: AtomicUsize::new(0),
        });
        pool.tracker.spawn(Arc::clone(&pool).sweep());
        pool.tracker.spawn(Arc::clone(&pool.desk).run(pool.stopping.clone()));
        pool
    }

    /// The mailbox's address.
    pub fn mailbox(&self) -> &str {
        &self.gate.target.mailbox
    }

    /// The smarthost's name.
    pub fn host(&self) -> &str {
        &self.gate.target.smarthost.host
    }

    /// How long a transaction waits for a connection.
    pub fn lease_wait(&self) -> Duration {
        self.gate.target.smarthost.lease_wait
    }

    /// The most connections that there may be.
    pub fn max_connections(&self) -> usize {
        self.max_connections
    }

    /// Where it sends to, and as whom.
    pub fn target(&self) -> &Target {
        &self.gate.target
    }

    /// What the smarthost offered when it was last seen, as far as the mailbox may use it.
    pub fn offer(&self) -> SmarthostOffer {
        self.gate.offer()
    }

    /// How the mailbox's login fares.
    pub fn state(&self) -> State {
        self.gate.state()
    }

    /// Why nobody can log in until somebody has acted, in words.
    pub fn trouble(&self) -> Option<String> {
        self.gate.trouble()
    }

    /// The secret that was seen last: it is looked at every few seconds.
    pub fn credential(&self) -> Credential {
        self.gate.credential()
    }

    /// An operator's word: the next login is tried, whatever the last one met with.
    pub fn try_again(&self) {
        self.gate.try_again();
    }

    /// Whether a login would be tried now.
    pub fn admits_login(&self) -> bool {
        self.gate.admits()
    }

    /// The smarthost counts too many connections: for five minutes there is one less. Said again it is one less
    /// still, down to the last.
    pub fn lower(self: &Arc<Self>) {
        let Some(connections) = self.desk.lower() else { return };
        tracing::warn!(mailbox = self.mailbox(), connections, "fewer connections for a while");
        let (pool, until) = (Arc::clone(self), Instant::now() + LOWERED);
        self.tracker.spawn(async move {
            let lowering = async {
                let _out_of_use = pool.withdraw().await;
                tokio::time::sleep_until(until).await;
            };
            tokio::select! {
                () = pool.stopping.cancelled() => {}
                // One that is lent all the while was not to be had.
                () = tokio::time::sleep_until(until) => {}
                () = lowering => {}
            }
        });
    }

    /// The smarthost was sent too much: no lease is handed out for so long. Of several pauses the last to end
    /// counts.
    pub fn pause(&self, wait: Duration) {
        if self.desk.pause(wait) {
            tracing::warn!(mailbox = self.mailbox(), seconds = wait.as_secs(), "sending pauses");
        }
    }

    /// What the smarthost says, and what it means.
    pub fn journal(&self) -> &Journal {
        &self.gate.journal
    }

    /// The connections that there are.
    pub fn connections(&self) -> Connections {
        Connections { leased: self.leased.load(Ordering::Relaxed), shelved: self.shelf().len() }
    }

    /// How many wait for a lease.
    pub fn waiting(&self) -> usize {
        self.desk.waiting()
    }

    /// Whether somebody waits for a lease.
    pub fn is_waited_for(&self) -> bool {
        self.desk.is_waited_for()
    }

    /// What the mailbox may still send.
    pub fn left(&self) -> Left {
        self.desk.left()
    }

    /// About how long a message to so many recipients would wait for its turn: of two mailboxes the one with less
    /// takes it.
    pub fn load(&self, recipients: usize) -> (Duration, usize) {
        self.desk.load(recipients)
    }

    /// Lends a connection for a message to so many recipients, within `wait`: waiting for a turn, dialling, TLS and
    /// login included. Fails at once when the mailbox may not send for longer than that.
    pub async fn lease(
        self: &Arc<Self>,
        who: &Who,
        recipients: usize,
        wait: Duration,
    ) -> Result<Lease, LeaseError> {
        let began = Instant::now();
        let lease = timeout(wait, self.lend(who, recipients, began + wait)).await;
        if *who != Who::Relay {
            self.metrics.lease_waited(self.mailbox(), began.elapsed());
        }
        lease.unwrap_or(Err(LeaseError::Busy(wait)))
    }

    /// Opens a connection ahead of the first message, so that the operator hears at once what is wrong and
    /// devices are offered what the smarthost takes.
    pub async fn warm_up(self: &Arc<Self>) {
        match self.lease(&Who::Relay, 0, Duration::from_secs(60)).await {
            Ok(lease) => {
                let connection = lease.connection();
                let tls = connection.tls().map_or_else(|| "no TLS".to_owned(), ToString::to_string);
                tracing::info!(
                    mailbox = self.mailbox(), smarthost = self.host(), address = %connection.peer(), %tls,
                    "logged in to the smarthost"
                );
                lease.park();
            }
            Err(LeaseError::Stopping) => {}
            Err(error) => {
                tracing::error!(mailbox = self.mailbox(), smarthost = self.host(), %error, "cannot log in to the smarthost");
            }
        }
    }

    /// Says QUIT on every shelved connection and lends no more.
    pub fn stop(self: &Arc<Self>) {
        self.stopping.cancel();
        self.desk.close();
        self.slots.close();
        self.clear(|_| true);
    }

    async fn lend(
        self: &Arc<Self>,
        who: &Who,
        recipients: usize,
        deadline: Instant,
    ) -> Result<Lease, LeaseError> {
        let (turn, lent) = loop {
            let turn = self.desk.turn(who, recipients, deadline).await?;
            let lent = self.lent().await?;
            if *who == Who::Relay || !self.desk.is_paused() {
                break (turn, lent);
            }
            // The pause began while it was dialled.
            self.shelve(lent);
        };
        self.leased.fetch_add(1, Ordering::Relaxed);
        let lease = Lease { lent: Some(lent), pool: Arc::clone(self), turn };
        self.report();
        Ok(lease)
    }

    async fn lent(self: &Arc<Self>) -> Result<Lent, LeaseError> {
        loop {
            // Registered before the look at the shelf, so that nothing shelved in between is missed.
            let shelved = self.shelved.notified();
            tokio::pin!(shelved);
            shelved.as_mut().enable();
            if let Some(lent) = self.take() {
                return Ok(lent);
            }
            tokio::select! {
                biased;
                () = &mut shelved => {}
                slot = self.slots.clone().acquire_owned() => {
                    return self.dial(slot.map_err(|_| LeaseError::Stopping)?).await;
                }
            }
        }
    }

    /// Takes a connection out of use, as soon as one is not lent: what whoever holds this has, nobody else has.
    async fn withdraw(self: &Arc<Self>) -> Option<OwnedSemaphorePermit> {
        loop {
            let shelved = self.shelved.notified();
            tokio::pin!(shelved);
            shelved.as_mut().enable();
            if let Ok(slot) = self.slots.clone().try_acquire_owned() {
                return Some(slot);
            }
            let oldest = {
                let mut shelf = self.shelf();
                (!shelf.is_empty()).then(|| shelf.remove(0))
            };
            if let Some(Shelved { lent, .. }) = oldest {
                self.report();
                lent.connection.close(true).await;
                return Some(lent.slot);
            }
            tokio::select! {
                () = &mut shelved => {}
                slot = self.slots.clone().acquire_owned() => return slot.ok(),
            }
        }
    }

    /// Opens a connection in the background: when whoever asked has gone, it is shelved.
    async fn dial(self: &Arc<Self>, slot: OwnedSemaphorePermit) -> Result<Lent, LeaseError> {
        let (done, opened) = oneshot::channel();
        let pool = Arc::clone(self);
        let opening = async move {
            match pool.gate.open(&pool.stopping, || pool.clear(|_| true)).await {
                Ok((connection, credential)) => {
                    let lent = Lent { connection: Box::new(connection), credential, slot };
                    if let Err(Ok(lent)) = done.send(Ok(lent)) {
                        pool.shelve(lent);
                    }
                }
                Err(error) => {
                    let connected = matches!(&error, LeaseError::Open(cause) if !matches!(**cause, OpenError::Dial(_)));
                    if let Err(Err(error)) = done.send(Err(error)) {
                        tracing::warn!(mailbox = pool.mailbox(), %error, "cannot log in to the smarthost");
                    }
                    if connected {
                        let _ = pool.stopping.run_until_cancelled(sleep(COUNTED)).await;
                    }
                    drop(slot);
                }
            }
        };
        self.tracker.spawn(opening.in_current_span());
        opened.await.unwrap_or(Err(LeaseError::Stopping))
    }

    /// The youngest shelved connection that is still good.
    fn take(self: &Arc<Self>) -> Option<Lent> {
        loop {
            let mut shelved = self.shelf().pop()?;
            let connection = &mut shelved.lent.connection;
            let stale = shelved.since.elapsed() > self.lifetime.idle
                || connection.age() > self.lifetime.age;
            let news = connection.has_news();
            if !stale && !news {
                return Some(shelved.lent);
            }
            self.close(shelved.lent, !news);
        }
    }

    fn shelve(self: &Arc<Self>, lent: Lent) {
        let spent = !lent.connection.is_usable()
            || lent.connection.age() > self.lifetime.age
            || !self.gate.knows(lent.credential);
        if spent || self.stopping.is_cancelled() {
            return self.close(lent, true);
        }
        self.shelf().push(Shelved { lent, since: Instant::now() });
        self.report();
        self.shelved.notify_one();
    }

    /// Closes what nobody has asked for in a while, since the mailbox's connections are few, and what has
    /// logged in with a secret that is no longer the mailbox's.
    async fn sweep(self: Arc<Self>) {
        let pause = self.lifetime.idle / SWEEPS;
        while self.stopping.run_until_cancelled(sleep(pause)).await.is_some() {
            if self.gate.look() {
                self.clear(|_| true);
            }
            self.clear(|shelved| shelved.since.elapsed() > self.lifetime.idle);
        }
    }

    /// Closes those that are meant of the shelved ones.
    fn clear(self: &Arc<Self>, is_meant: impl Fn(&Shelved) -> bool) {
        let meant: Vec<Shelved> =
            self.shelf().extract_if(.., |shelved| is_meant(shelved)).collect();
        for shelved in meant {
            self.close(shelved.lent, true);
        }
    }

    fn close(self: &Arc<Self>, Lent { connection, slot, .. }: Lent, polite: bool) {
        self.tracker.spawn(async move {
            connection.close(polite).await;
            drop(slot);
        });
        self.report();
    }

    fn shelf(&self) -> MutexGuard<'_, Vec<Shelved>> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self) {
        let Connections { leased, shelved } = self.connections();
        self.metrics.upstream_connections(self.mailbox(), leased, shelved);
    }
}

impl Lease {
    /// Keeps the connection for the next one, if it can still be used.
    pub fn park(mut self) {
        if let Some(mut lent) = self.lent.take() {
            lent.connection.write_down(Transcript::default());
            self.pool.shelve(lent);
        }
    }

    /// Writes down there what is said from now on, until it is parked.
    pub fn write_down(&mut self, transcript: &Transcript) {
        self.connection_mut().write_down(transcript.clone());
    }

    /// The connection.
    pub fn connection(&self) -> &Connection {
        &self.lent.as_ref().expect("only the end of a lease takes it out").connection
    }

    /// The smarthost hears of a transaction now: it counts.
    pub(super) fn spend(&mut self) {
        self.turn.spend();
    }

    /// One recipient more than the lease was asked for.
    pub(super) fn add_recipient(&mut self) -> Result<(), Bar> {
        self.turn.add_recipient()
    }

    pub(super) fn connection_mut(&mut self) -> &mut Connection {
        &mut self.lent.as_mut().expect("only the end of a lease takes it out").connection
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.leased.fetch_sub(1, Ordering::Relaxed);
        match self.lent.take() {
            // Not polite: in the middle of mail data a QUIT would be data.
            Some(lent) => self.pool.close(lent, false),
            None => self.pool.report(),
        }
    }
}
