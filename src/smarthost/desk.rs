//! Where whoever wants to send through a mailbox waits for a turn: at most so many at a time, within the mailbox's
//! limits, in the order of [`turns`](super::turns). A turn is what a lease is handed out for.
//!
//! ```text
//! turn() ──► waiting ──► Turn ──► dropped: the next one has it
//!               │
//!               └── what keeps it from going outlasts its patience: told so at once
//! ```

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Serialize;
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{
    ledger::Ledger,
    limits::{Allowance, Bar, Cost, Ended, Limits, NEARLY},
    turns::{Turns, Who},
};
use crate::telemetry::metrics::Metrics;

/// What the desk calls zero; what an earlier relay has counted lies before it.
const BEGINNING: Duration = Duration::from_secs(2 * 24 * 3600);

/// Who waits, and what the mailbox may still do.
pub struct Desk {
    mailbox: String,
    metrics: Metrics,
    ledger: Option<Ledger>,
    born: Instant,
    state: Mutex<State>,
    /// Somebody waits, and when the next one may go may have changed.
    changed: Notify,
}

struct State {
    limits: Limits,
    turns: Turns<Ticket>,
    /// Turns that are taken.
    taken: usize,
    /// Tickets so far.
    number: u64,
    closed: bool,
}

/// One who waits.
struct Ticket {
    number: u64,
    cost: Cost,
    /// When it gives up.
    deadline: Duration,
    answer: oneshot::Sender<Result<Turn, Refused>>,
}

/// Why there is no turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Nothing may be sent for longer than whoever asked would wait.
    Barred(Bar),
    /// The relay stops.
    Closed,
}

/// The right to use one connection for one transaction, until it is dropped.
pub struct Turn {
    desk: Arc<Desk>,
    cost: Cost,
    used: bool,
}

/// What a mailbox may still send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Left {
    /// Messages now; absent: any number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<u32>,
    /// Recipients now; absent: any number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipients: Option<u32>,
    /// Seconds until one more message may begin; 0: now.
    pub wait_seconds: u64,
}

impl Desk {
    /// A desk at which nobody waits. `ledger` holds what an earlier relay has sent.
    pub fn new(
        mailbox: &str,
        allowance: Allowance,
        ledger: Option<Ledger>,
        metrics: Metrics,
    ) -> Arc<Self> {
        let mut limits = Limits::new(allowance);
        if let Some(ledger) = &ledger {
            limits.resume(BEGINNING, ledger.read(BEGINNING));
        }
        let state = State { limits, turns: Turns::default(), taken: 0, number: 0, closed: false };
        Arc::new(Self {
            mailbox: mailbox.to_owned(),
            metrics,
            ledger,
            born: Instant::now(),
            state: Mutex::new(state),
            changed: Notify::new(),
        })
    }

    /// Waits for a turn, until `deadline` at the latest: whoever cannot have one by then is told at once.
    pub async fn turn(
        self: &Arc<Self>,
        who: &Who,
        recipients: usize,
        deadline: Instant,
    ) -> Result<Turn, Refused> {
        let cost = match who {
            Who::Relay => Cost::default(),
            _ => Cost::of(recipients),
        };
        let (answer, answered) = oneshot::channel();
        let deadline = BEGINNING + deadline.saturating_duration_since(self.born);
        let number = {
            let mut state = self.state();
            if state.closed {
                return Err(Refused::Closed);
            }
            state.number += 1;
            let number = state.number;
            state.turns.push(who, Ticket { number, cost, deadline, answer });
            number
        };
        let _waiting = Waiting { desk: self, who, number };
        self.serve();
        answered.await.unwrap_or(Err(Refused::Closed))
    }

    /// Whether anybody waits.
    pub fn is_waited_for(&self) -> bool {
        !self.state().turns.is_empty()
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.state().turns.len()
    }

    /// What may still be sent.
    pub fn left(&self) -> Left {
        let (now, state) = (self.now(), self.state());
        let (messages, recipients) = state.limits.left(now);
        let bar = state.limits.bar(now, Cost::of(1));
        // Rounded up: after so many seconds it may.
        let wait_seconds = bar.map_or(0, |bar| (bar.left().as_millis().div_ceil(1_000)) as u64);
        Left { messages, recipients, wait_seconds }
    }

    /// About how long one more would wait: the wait that is sure, and how many are before it for each connection.
    pub fn load(&self, recipients: usize) -> (Duration, usize) {
        let (now, state) = (self.now(), self.state());
        let bar = state.limits.bar(now, Cost::of(recipients));
        let before = state.turns.len() + state.taken;
        // In hundredths, so that one in three and two in three differ.
        let crowd = 100 * before / state.limits.connections(now);
        (bar.map_or(Duration::ZERO, Bar::left), crowd)
    }

    /// Whether nothing is sent just now because the smarthost has asked for that.
    pub fn is_paused(&self) -> bool {
        let one = Cost { messages: 1, recipients: 0 };
        matches!(self.state().limits.bar(self.now(), one), Some(Bar::Paused(_)))
    }

    /// The smarthost counts too many connections. Returns how many there may be for a while, if that is news.
    pub fn lower(self: &Arc<Self>) -> Option<usize> {
        let now = self.now();
        let left = self.state().limits.lower(now);
        self.serve();
        left
    }

    /// The smarthost was sent too much: nothing is sent for so long. Returns whether no other pause lasts longer.
    pub fn pause(self: &Arc<Self>, wait: Duration) -> bool {
        let now = self.now();
        let longer = self.state().limits.pause(now, wait);
        self.serve();
        longer
    }

    /// Nobody has a turn any more.
    pub fn close(&self) {
        let gone = {
            let mut state = self.state();
            state.closed = true;
            state.turns.take_out(|_| true)
        };
        for ticket in gone {
            let _ = ticket.answer.send(Err(Refused::Closed));
        }
    }

    /// Looks after those who wait for time to pass, and writes down what was sent, until the relay stops.
    pub async fn run(self: Arc<Self>, stopping: CancellationToken) {
        let time = async {
            loop {
                let wait = self.next_change();
                tokio::select! {
                    () = sleep(wait.unwrap_or_default()), if wait.is_some() => self.serve(),
                    () = self.changed.notified() => {}
                }
            }
        };
        let book = async {
            let Some(ledger) = &self.ledger else { return std::future::pending().await };
            loop {
                ledger.news().await;
                ledger.write(|| self.counts()).await;
            }
        };
        tokio::select! {
            () = stopping.cancelled() => {}
            () = time => {}
            () = book => {}
        }
        if let Some(ledger) = &self.ledger {
            ledger.write(|| self.counts()).await;
        }
    }

    fn counts(&self) -> (Duration, (Ended, Ended)) {
        let now = self.now();
        (now, self.state().limits.counts(now))
    }

    /// Gives turns to those who may have one now, and their answer to those who wait in vain.
    fn serve(self: &Arc<Self>) {
        let now = self.now();
        let (mut next, mut barred) = (Vec::new(), Vec::new());
        {
            let mut state = self.state();
            let State { limits, turns, taken, .. } = &mut *state;
            loop {
                while *taken < limits.connections(now)
                    && let Some(ticket) =
                        turns.next(|ticket| limits.bar(now, ticket.cost).is_none())
                {
                    limits.begin(ticket.cost);
                    *taken += 1;
                    next.push(ticket);
                }
                // Whatever bars one message bars many: seldom worth a look at each.
                let one_is_barred = limits.bar(now, Cost::of(1)).is_some();
                if turns.is_empty() || !one_is_barred && *taken >= limits.connections(now) {
                    break;
                }
                let outlasts = |ticket: &Ticket| {
                    let bar = limits.bar(now, ticket.cost);
                    bar.filter(|bar| now + bar.left() > ticket.deadline)
                };
                let in_vain = turns.take_out(|ticket| outlasts(ticket).is_some());
                if in_vain.is_empty() {
                    break;
                }
                for ticket in in_vain {
                    barred.extend(outlasts(&ticket).map(|bar| (ticket.answer, bar)));
                }
                // Those behind them may go.
            }
            self.tell(&mut state, now);
            if !state.turns.is_empty() {
                self.changed.notify_one();
            }
        }
        if !next.is_empty() {
            self.write_down();
        }
        for Ticket { cost, answer, .. } in next {
            // Whoever has just gone drops it, and the next one is served.
            let _ = answer.send(Ok(Turn { desk: Arc::clone(self), cost, used: false }));
        }
        for (answer, bar) in barred {
            let _ = answer.send(Err(Refused::Barred(bar)));
        }
    }

    /// How long until somebody may go who may not now, if time alone brings that about.
    fn next_change(&self) -> Option<Duration> {
        let (now, state) = (self.now(), self.state());
        let State { limits, turns, taken, .. } = &*state;
        if turns.is_empty() {
            return None;
        }
        if *taken >= limits.connections(now) {
            return limits.raised_at(now).map(|at| at - now);
        }
        turns.iter().filter_map(|ticket| limits.bar(now, ticket.cost)).map(Bar::left).min()
    }

    /// Tells in the metrics how things are, and somebody in time that the day's recipients are running out.
    fn tell(&self, state: &mut State, now: Duration) {
        let (messages, recipients) = state.limits.left(now);
        self.metrics.mailbox_waiting(&self.mailbox, state.turns.len());
        self.metrics.mailbox_left(&self.mailbox, messages, recipients);
        if let Some((recipients_per_day, left)) = state.limits.runs_out(now) {
            tracing::warn!(
                mailbox = self.mailbox,
                recipients_per_day,
                left,
                "{NEARLY} % of the recipients that the mailbox may send to in 24 hours are used up: what goes beyond \
                 waits in the spool; a second [[mailbox]] takes its share"
            );
        }
    }

    /// What was sent has changed: for the next relay.
    fn write_down(&self) {
        if let Some(ledger) = &self.ledger {
            ledger.note();
        }
    }

    fn give_back(self: &Arc<Self>, cost: Cost, used: bool) {
        let now = self.now();
        {
            let mut state = self.state();
            state.taken = state.taken.saturating_sub(1);
            state.limits.end(now, cost, used);
        }
        self.write_down();
        self.serve();
    }

    fn now(&self) -> Duration {
        BEGINNING + self.born.elapsed()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    /// The smarthost hears of the transaction now: from here on it counts.
    pub fn spend(&mut self) {
        self.used = true;
    }

    /// One recipient more than was asked for, if the day has room for it.
    pub fn add_recipient(&mut self) -> Result<(), Bar> {
        let (now, one) = (self.desk.now(), Cost { messages: 0, recipients: 1 });
        let mut state = self.desk.state();
        // A pause says nothing of what has begun.
        if let Some(bar @ Bar::Spent(_)) = state.limits.bar(now, one) {
            return Err(bar);
        }
        state.limits.begin(one);
        drop(state);
        self.cost.recipients += 1;
        Ok(())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.desk.give_back(self.cost, self.used);
    }
}

/// One who waits does not any more when this is dropped.
struct Waiting<'a> {
    desk: &'a Arc<Desk>,
    who: &'a Who,
    number: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let is_meant = |ticket: &Ticket| ticket.number == self.number;
        let gone = self.desk.state().turns.leave(self.who, is_meant);
        if gone.is_some() {
            // Whoever stood behind it may go.
            self.desk.serve();
        }
    }
}
