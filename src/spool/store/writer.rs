//! The one connection to the database, and who works on it: group commit.
//!
//! Whoever wants something puts a job into the line and then waits for the connection. Who gets it takes the
//! whole line, runs it in one transaction and answers everybody after one sync; the others find their answer
//! there. So a sync is shared by as many as came while the last one went on.
//!
//! There is no thread of its own: tokio's paused clock of tests stands still only while `spawn_blocking` works.

use std::{
    collections::VecDeque,
    mem,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use rusqlite::{Connection, TransactionBehavior};
use tokio::{
    sync::{Mutex as Turn, OwnedMutexGuard, oneshot},
    task::spawn_blocking,
    time::sleep,
};

use super::{error::Fault, room::Room};
use crate::{
    spool::{place::Lock, queue::QueueError},
    telemetry::metrics::Metrics,
};

/// How long the line is left open for more where there is a crowd, as PostgreSQL's `commit_delay`: a sync costs
/// more than that. Without a crowd nobody waits.
const GATHER: Duration = Duration::from_millis(2);

/// What a job is to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It writes nothing.
    Read,
    /// It writes, for somebody who has to know: left undone if nobody waits for it any more.
    Offer,
    /// It writes what has happened, whether somebody waits or not.
    Note,
}

/// The connection, and the lock of its place: other relays stay out until the last job is done, even one that
/// outlives the store.
pub(super) struct Database {
    connection: Connection,
    _lock: Option<Lock>,
}

impl Database {
    pub(super) fn new(connection: Connection, lock: Option<Lock>) -> Self {
        Self { connection, _lock: lock }
    }
}

pub(super) struct Writer {
    line: Mutex<VecDeque<Box<dyn Job>>>,
    /// `None` once it is closed.
    database: Arc<Turn<Option<Database>>>,
    shared: Arc<Shared>,
}

struct Shared {
    room: Arc<Room>,
    metrics: Option<Metrics>,
    /// Jobs that the last commit was for.
    crowd: AtomicUsize,
}

/// Runs once or, if something else in its transaction fails, twice; then answers.
trait Job: Send {
    fn kind(&self) -> Kind;
    fn is_wanted(&self) -> bool;
    fn run(&mut self, connection: &Connection) -> Result<(), Fault>;
    fn answer(self: Box<Self>, outcome: Result<(), Fault>);
}

struct Task<T, U, W, C> {
    kind: Kind,
    work: W,
    committed: C,
    value: Option<T>,
    reply: oneshot::Sender<Result<U, QueueError>>,
}

impl<T, U, W, C> Job for Task<T, U, W, C>
where
    T: Send,
    U: Send,
    W: FnMut(&Connection) -> Result<T, Fault> + Send,
    C: FnOnce(T) -> U + Send,
{
    fn kind(&self) -> Kind {
        self.kind
    }

    fn is_wanted(&self) -> bool {
        self.kind == Kind::Note || !self.reply.is_closed()
    }

    fn run(&mut self, connection: &Connection) -> Result<(), Fault> {
        self.value = Some((self.work)(connection)?);
        Ok(())
    }

    fn answer(self: Box<Self>, outcome: Result<(), Fault>) {
        let Self { work, committed, value, reply, .. } = *self;
        let answer = match (outcome, value) {
            (Ok(()), Some(value)) => Ok(committed(value)),
            (Ok(()), None) => Err(broken_off()),
            (Err(fault), _) => Err(fault.error),
        };
        // What the work has kept, as a file of a message that was not written, goes before anybody is told.
        drop(work);
        // Nobody may be waiting any more; a value that says it was not fetched does so when it is dropped.
        let _ = reply.send(answer);
    }
}

impl Writer {
    pub(super) fn new(database: Database, room: Arc<Room>, metrics: Option<Metrics>) -> Self {
        Self {
            line: Mutex::default(),
            database: Arc::new(Turn::new(Some(database))),
            shared: Arc::new(Shared { room, metrics, crowd: AtomicUsize::new(0) }),
        }
    }

    /// Runs a job. `committed` is called with its value once that is on disk, and never if it does not get there.
    ///
    /// Whoever stops waiting leaves the job in the line for the next one's turn.
    pub(super) async fn submit<T, U>(
        &self,
        kind: Kind,
        work: impl FnMut(&Connection) -> Result<T, Fault> + Send + 'static,
        committed: impl FnOnce(T) -> U + Send + 'static,
    ) -> Result<U, QueueError>
    where
        T: Send + 'static,
        U: Send + 'static,
    {
        let (reply, mut answer) = oneshot::channel();
        self.line().push_back(Box::new(Task { kind, work, committed, value: None, reply }));
        tokio::select! {
            biased;
            answer = &mut answer => return answer.unwrap_or_else(|_| Err(broken_off())),
            turn = Arc::clone(&self.database).lock_owned() => {
                // The turn may have come with the answer.
                if let Ok(answer) = answer.try_recv() {
                    return answer;
                }
                if kind != Kind::Read && self.shared.crowd.load(Ordering::Relaxed) > 1 {
                    sleep(GATHER).await;
                }
                self.work_off(turn);
            }
        }
        answer.await.unwrap_or_else(|_| Err(broken_off()))
    }

    /// Closes the database after a last piece of work, once the job that may still run is over. What takes longer
    /// than a second closes it itself.
    pub(super) fn close(&self, last: impl FnOnce(&Connection) -> Result<(), Fault>) {
        for _ in 0..1000 {
            if let Ok(mut turn) = self.database.try_lock() {
                let outcome = turn.take().map(|database| last(&database.connection));
                if let Some(Err(fault)) = outcome {
                    tracing::warn!(error = %fault.error, "the spool's last work is left to the next start");
                }
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Takes the whole line on. The work goes on if nobody waits for it, and then lets the next one at it.
    fn work_off(&self, mut turn: OwnedMutexGuard<Option<Database>>) {
        let jobs = mem::take(&mut *self.line());
        let shared = Arc::clone(&self.shared);
        if !jobs.is_empty() {
            spawn_blocking(move || {
                if let Some(database) = turn.as_mut() {
                    shared.run(&mut database.connection, jobs.into());
                }
            });
        }
    }

    fn line(&self) -> std::sync::MutexGuard<'_, VecDeque<Box<dyn Job>>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn run(&self, connection: &mut Connection, mut jobs: Vec<Box<dyn Job>>) {
        jobs.retain(|job| job.is_wanted());
        let outcome = self.attempt(connection, &mut jobs);
        let writers = jobs.iter().filter(|job| job.kind() != Kind::Read).count();
        if writers > 0 {
            self.crowd.store(writers, Ordering::Relaxed);
        }
        match outcome {
            Err(Trouble { fault, of_all: false }) if jobs.len() > 1 => {
                tracing::warn!(error = %fault.error, jobs = jobs.len(), "each job of the spool gets its own commit");
                self.run_each(connection, jobs);
            }
            outcome => {
                let outcome = outcome.map_err(|trouble| trouble.fault);
                jobs.into_iter().for_each(|job| job.answer(outcome.clone()));
            }
        }
    }

    /// One bad job must not hurt the others: each for itself.
    fn run_each(&self, connection: &mut Connection, jobs: Vec<Box<dyn Job>>) {
        let mut stopped = None;
        for mut job in jobs {
            let outcome = match &stopped {
                Some(fault) => Err(Fault::clone(fault)),
                None => {
                    self.attempt(connection, std::slice::from_mut(&mut job)).map_err(|trouble| {
                        if trouble.of_all {
                            stopped = Some(trouble.fault.clone());
                        }
                        trouble.fault
                    })
                }
            };
            job.answer(outcome);
        }
    }

    fn attempt(
        &self,
        connection: &mut Connection,
        jobs: &mut [Box<dyn Job>],
    ) -> Result<(), Trouble> {
        let reads_only = jobs.iter().all(|job| job.kind() == Kind::Read);
        let before = connection.total_changes();
        let outcome = transact(connection, jobs, reads_only);
        match &outcome {
            Err(trouble) => self.room.failed(&trouble.fault),
            // Where nothing has changed SQLite does not sync, and nothing is known about the disk.
            Ok(()) if connection.total_changes() == before => {}
            Ok(()) => {
                self.room.worked();
                if let Some(metrics) = &self.metrics {
                    metrics.spool_committed();
                }
            }
        }
        outcome
    }
}

struct Trouble {
    fault: Fault,
    /// No transaction can be begun: another program writes for seconds on end.
    of_all: bool,
}

fn transact(
    connection: &mut Connection,
    jobs: &mut [Box<dyn Job>],
    reads_only: bool,
) -> Result<(), Trouble> {
    let behavior =
        if reads_only { TransactionBehavior::Deferred } else { TransactionBehavior::Immediate };
    let transaction = connection
        .transaction_with_behavior(behavior)
        .map_err(|error| Trouble { fault: error.into(), of_all: true })?;
    let own = |fault| Trouble { fault, of_all: false };
    for job in jobs {
        job.run(&transaction).map_err(own)?;
    }
    transaction.commit().map_err(|error| own(error.into()))
}

fn broken_off() -> QueueError {
    QueueError::Broken("its work was broken off".to_owned())
}
