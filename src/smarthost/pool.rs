//! The connections of one mailbox: lent one by one, kept between messages.
//!
//! ```text
//!            lease()                     park()
//! (waiting) ─────────► Lease ──────────────────────► shelf ──► lent again, youngest first
//!     ▲                  │ dropped                     │ too old, too idle, or it has news
//!     │                  ▼                             ▼
//!     └── slot free ◄── closing, until the smarthost has closed too or a second has passed
//! ```
//!
//! Every connection owns a slot from its first SYN until it is closed, so that there are never more than
//! `max_connections`; those who wait are served in order. A connection that comes too late for whoever
//! asked goes to the shelf for the next one.
//!
//! The smarthost's own limits may be lower than `max_connections`: [`Pool::lower`] takes one connection out of use
//! for a while, [`Pool::pause`] all of them.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde::Serialize;
use thiserror::Error;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use super::{
    Credential, Target,
    breaker::{Breaker, State},
    connection::{Connection, OpenError},
    journal::Journal,
};
use crate::{
    proto::{
        client::{Refusal, Stage},
        reply::Reply,
        session::SmarthostOffer,
    },
    telemetry::{
        metrics::Metrics,
        transcript::{Transcript, Transcripts, Voice},
    },
};

/// How often the shelf is looked through while a connection lies there for as long as it may.
const SWEEPS: u32 = 12;
/// How long the smarthost may still count a connection that failed on our side.
const COUNTED: Duration = Duration::from_secs(1);
/// How long the smarthost is taken at its word that there are too many connections.
const LOWERED: Duration = Duration::from_secs(300);

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
    target: Target,
    lifetime: Lifetime,
    metrics: Metrics,
    journal: Arc<Journal>,
    transcripts: Arc<Transcripts>,
    tracker: TaskTracker,
    stopping: CancellationToken,
    /// One permit for each lease that may be out: who waits here waits in order.
    leases: Arc<Semaphore>,
    /// One permit for each connection, whatever it does.
    slots: Arc<Semaphore>,
    shelf: Mutex<Vec<Shelved>>,
    /// Something was put on the shelf.
    shelved: Notify,
    breaker: Mutex<Breaker>,
    /// What the smarthost said to the last login that it refused.
    refusal: Mutex<Option<Box<Reply>>>,
    /// The breaker's time begins here.
    born: Instant,
    /// Held by the one login that may run while none has succeeded yet.
    unproven: Semaphore,
    max_connections: usize,
    /// By how many connections that is lowered.
    lowered: AtomicUsize,
    /// No lease is handed out until then.
    paused: watch::Sender<Option<Instant>>,
    waiting: AtomicUsize,
    leased: AtomicUsize,
    offer: Mutex<SmarthostOffer>,
}

/// A connection that is lent. Dropping it closes the connection; [`Lease::park`] keeps it.
pub struct Lease {
    /// Taken out only when the lease ends.
    lent: Option<Lent>,
    pool: Arc<Pool>,
    _turn: OwnedSemaphorePermit,
}

/// Who asks for a lease: devices take turns, and the spool has its share.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// A device that is there now, by its name or address.
    Device(Arc<str>),
    /// The spool.
    Spool,
    /// The relay itself, which sends no message with it.
    Relay,
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

/// A limit that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spent {
    /// How many there may be.
    pub count: u32,
    /// Of what.
    pub what: Budget,
    /// When there is room again.
    pub left: Duration,
}

/// What a mailbox may send so many of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// Messages in any minute.
    Messages,
    /// Recipients in any 24 hours.
    Recipients,
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Messages => "messages a minute",
            Self::Recipients => "recipients a day",
        })
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
    /// A pool without connections. What it does in the background runs on `tracker`.
    pub fn new(
        target: Target,
        max_connections: usize,
        lifetime: Lifetime,
        metrics: Metrics,
        transcripts: Arc<Transcripts>,
        tracker: TaskTracker,
    ) -> Arc<Self> {
        let pool = Arc::new(Self {
            journal: Journal::new(&target, metrics.clone()),
            target,
            lifetime,
            metrics,
            transcripts,
            tracker,
            stopping: CancellationToken::new(),
            leases: Arc::new(Semaphore::new(max_connections)),
            slots: Arc::new(Semaphore::new(max_connections)),
            shelf: Mutex::default(),
            shelved: Notify::new(),
            breaker: Mutex::default(),
            refusal: Mutex::default(),
            born: Instant::now(),
            unproven: Semaphore::new(1),
            max_connections,
            lowered: AtomicUsize::new(0),
            paused: watch::Sender::default(),
            waiting: AtomicUsize::new(0),
            leased: AtomicUsize::new(0),
            offer: Mutex::default(),
        });
        pool.tracker.spawn(Arc::clone(&pool).sweep());
        pool
    }

    /// The mailbox's address.
    pub fn mailbox(&self) -> &str {
        &self.target.mailbox
    }

    /// The smarthost's name.
    pub fn host(&self) -> &str {
        &self.target.smarthost.host
    }

    /// How long a transaction waits for a connection.
    pub fn lease_wait(&self) -> Duration {
        self.target.smarthost.lease_wait
    }

    /// The most connections that there may be.
    pub fn max_connections(&self) -> usize {
        self.max_connections
    }

    /// What the smarthost offered when it was last seen.
    pub fn offer(&self) -> SmarthostOffer {
        *self.offer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the mailbox fares.
    pub fn state(&self) -> State {
        self.breaker().state()
    }

    /// An operator's word: the next login is tried, whatever the last one met with.
    pub fn try_again(&self) {
        self.breaker().try_again();
    }

    /// Whether a login would be tried now.
    pub fn admits_login(&self) -> bool {
        self.breaker().admits(self.born.elapsed()).is_ok()
    }

    /// The smarthost counts too many connections: for five minutes there is one less. Said again it is one less
    /// still, down to the last.
    pub fn lower(self: &Arc<Self>) {
        let most = self.max_connections.saturating_sub(1);
        let lower = |lowered: usize| (lowered < most).then_some(lowered + 1);
        let Ok(before) = self.lowered.fetch_update(Ordering::Relaxed, Ordering::Relaxed, lower)
        else {
            return;
        };
        let connections = self.max_connections - before - 1;
        tracing::warn!(mailbox = self.mailbox(), connections, "fewer connections for a while");
        let (pool, until) = (Arc::clone(self), Instant::now() + LOWERED);
        self.tracker.spawn(async move {
            let lowering = async {
                let _out_of_use = pool.withdraw().await;
                sleep_until(until).await;
            };
            tokio::select! {
                () = pool.stopping.cancelled() => {}
                // One that is lent all the while was not to be had.
                () = sleep_until(until) => {}
                () = lowering => {}
            }
            pool.lowered.fetch_sub(1, Ordering::Relaxed);
        });
    }

    /// The smarthost was sent too much: no lease is handed out for so long. Of several pauses the last to end
    /// counts.
    pub fn pause(&self, wait: Duration) {
        let until = Some(Instant::now() + wait);
        let longer = self.paused.send_if_modified(|paused| {
            let longer = *paused < until;
            *paused = until.max(*paused);
            longer
        });
        if longer {
            tracing::warn!(mailbox = self.mailbox(), seconds = wait.as_secs(), "sending pauses");
        }
    }

    /// What the smarthost says, and what it means.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The connections that there are.
    pub fn connections(&self) -> Connections {
        Connections { leased: self.leased.load(Ordering::Relaxed), shelved: self.shelf().len() }
    }

    /// How many wait for a lease.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Whether somebody waits for a lease.
    pub fn is_waited_for(&self) -> bool {
        self.waiting() > 0
    }

    /// Lends a connection, within `wait`: waiting for one, dialling, TLS and login included. Fails at once when
    /// there is a pause that lasts longer.
    pub async fn lease(
        self: &Arc<Self>,
        _who: &Who,
        _recipients: usize,
        wait: Duration,
    ) -> Result<Lease, LeaseError> {
        let began = Instant::now();
        let lease = tokio::select! {
            biased;
            left = self.paused_beyond(began + wait) => Err(LeaseError::Paused(left)),
            lease = timeout(wait, self.lend()) => lease.unwrap_or(Err(LeaseError::Busy(wait))),
        };
        self.metrics.lease_waited(self.mailbox(), began.elapsed());
        lease
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
        self.leases.close();
        self.slots.close();
        self.clear(|_| true);
    }

    async fn lend(self: &Arc<Self>) -> Result<Lease, LeaseError> {
        let turn = {
            let _waiter = Waiter::new(&self.waiting);
            self.leases.clone().acquire_owned().await.map_err(|_| LeaseError::Stopping)?
        };
        let lent = loop {
            self.resumed().await;
            let lent = self.lent().await?;
            if self.pause_left().is_none() {
                break lent;
            }
            // The pause began while it was dialled.
            self.shelve(lent);
        };
        self.leased.fetch_add(1, Ordering::Relaxed);
        let lease = Lease { lent: Some(lent), pool: Arc::clone(self), _turn: turn };
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

    /// How much of a pause is left, if there is one.
    fn pause_left(&self) -> Option<Duration> {
        let left = (*self.paused.borrow())?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// Waits until there is no pause.
    async fn resumed(&self) {
        while let Some(left) = self.pause_left() {
            tokio::time::sleep(left).await;
        }
    }

    /// Waits for a pause that lasts beyond some time; returns how much of it is left.
    async fn paused_beyond(&self, deadline: Instant) -> Duration {
        let mut paused = self.paused.subscribe();
        // Fails only without a sender, and that is ours.
        let _ = paused.wait_for(|until| until.is_some_and(|until| until > deadline)).await;
        self.pause_left().unwrap_or_default()
    }

    /// Takes a connection out of use, as soon as one is not lent: what whoever holds these has, nobody else has.
    async fn withdraw(self: &Arc<Self>) -> Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)> {
        let turn = self.leases.clone().acquire_owned().await.ok()?;
        loop {
            let shelved = self.shelved.notified();
            tokio::pin!(shelved);
            shelved.as_mut().enable();
            if let Ok(slot) = self.slots.clone().try_acquire_owned() {
                return Some((turn, slot));
            }
            let oldest = {
                let mut shelf = self.shelf();
                (!shelf.is_empty()).then(|| shelf.remove(0))
            };
            if let Some(Shelved { lent, .. }) = oldest {
                self.report();
                lent.connection.close(true).await;
                return Some((turn, lent.slot));
            }
            tokio::select! {
                () = &mut shelved => {}
                slot = self.slots.clone().acquire_owned() => return Some((turn, slot.ok()?)),
            }
        }
    }

    /// Opens a connection in the background: when whoever asked has gone, it is shelved.
    async fn dial(self: &Arc<Self>, slot: OwnedSemaphorePermit) -> Result<Lent, LeaseError> {
        let (done, opened) = oneshot::channel();
        let pool = Arc::clone(self);
        let opening = async move {
            match pool.open().await {
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
                        let _ =
                            pool.stopping.run_until_cancelled(tokio::time::sleep(COUNTED)).await;
                    }
                    drop(slot);
                }
            }
        };
        self.tracker.spawn(opening.in_current_span());
        opened.await.unwrap_or(Err(LeaseError::Stopping))
    }

    /// Connects and logs in; one at a time while no login has succeeded, and not again right after a refusal.
    async fn open(self: &Arc<Self>) -> Result<(Connection, Credential), LeaseError> {
        let failed = |error: OpenError| LeaseError::Open(Box::new(error));
        let load = async || {
            let login = self.target.login().await;
            let (login, credential) = login.map_err(|error| failed(error.into()))?;
            self.notice(credential);
            Ok((login, credential))
        };
        let mut secret = load().await?;
        let proven = self.breaker().is_proven();
        let _alone = if proven { None } else { self.unproven.acquire().await.ok() };
        if !proven {
            // Whoever had the turn before may have learnt something, and the secret may have changed.
            secret = load().await?;
        }
        let (login, credential) = secret;
        let admitted = self.breaker().admits(self.born.elapsed());
        admitted.map_err(|left| LeaseError::LoginRefused(left, self.refusal().clone()))?;
        let transcript = self.transcripts.begin();
        let opening = Connection::open(&self.target, login, &self.journal, &transcript);
        let Some(result) = self.stopping.run_until_cancelled(opening).await else {
            return Err(LeaseError::Stopping);
        };
        let outcome = result.as_ref().map_or_else(|error| error.stage().as_str(), |_| "ok");
        match &result {
            Ok(connection) => {
                self.learn(connection);
                self.breaker().accepted(credential);
            }
            Err(OpenError::Refused(Refusal::Reply(Stage::Auth, reply))) => {
                let verdict = self.journal.judge(Stage::Auth, reply);
                *self.refusal() = Some(Box::new(reply.clone()));
                self.breaker().refused(credential, &verdict, self.born.elapsed());
            }
            Err(_) => {}
        }
        self.metrics.upstream_connect(self.mailbox(), outcome);
        if let Err(error) = &result {
            transcript.say(Voice::Note, error);
            if !matches!(error, OpenError::Refused(Refusal::Reply(..))) {
                self.journal.failed(error);
            }
        }
        self.transcripts.keep(self.mailbox(), &transcript, result.is_err());
        result.map(|connection| (connection, credential)).map_err(failed)
    }

    /// A secret that has changed is unproven, and connections with the former one are not lent again.
    fn notice(self: &Arc<Self>, credential: Credential) {
        let changed = self.breaker().present(credential);
        if changed {
            tracing::info!(mailbox = self.mailbox(), "the mailbox's secret has changed");
            self.clear(|_| true);
        }
    }

    fn refusal(&self) -> MutexGuard<'_, Option<Box<Reply>>> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
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
            || !self.breaker().is_of(lent.credential);
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
        while self.stopping.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
            // One that cannot be read just now shows at the next login.
            if let Ok(credential) = self.target.credential() {
                self.notice(credential);
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

    fn learn(&self, connection: &Connection) {
        let capabilities = connection.capabilities();
        *self.offer.lock().unwrap_or_else(PoisonError::into_inner) =
            SmarthostOffer { size: capabilities.size, smtputf8: capabilities.smtputf8 };
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

/// Counts one who waits, for as long as it lives.
struct Waiter<'a>(&'a AtomicUsize);

impl<'a> Waiter<'a> {
    fn new(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
