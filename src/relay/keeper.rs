//! What live sessions and the courier share to keep messages: the queue, what is stopped, and the one way to draw
//! the conclusion from an attempt.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    sync::{Notify, Semaphore},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    aftermath::{self, End, Fate, Plan, Tries},
    attempt::Outcome,
    course::Course,
    notice::{self, Case, Happened},
    replay::Budget,
    stops::Stops,
};
use crate::{
    config,
    proto::path::ForwardPath,
    smarthost::{
        connection::OpenError,
        pool::{LeaseError, Pool},
    },
    spool::{
        queue::{Hold, NewNotice, Queue as _, RecipientState, State},
        schedule::{self, Trouble},
        store::Store,
    },
    telemetry::metrics::Metrics,
};

/// How long a mailbox pauses that has sent too fast.
const TOO_FAST: Duration = Duration::from_secs(60);

/// What keeps messages.
pub struct Keeper {
    /// Where they are.
    pub queue: Arc<Store>,
    /// The memory of all replays.
    pub budget: Arc<Budget>,
    /// When messages are tried again, and how long they are kept.
    pub settings: config::Spool,
    /// Who is told of what becomes of them.
    pub notices: Option<config::Notices>,
    /// The time of day.
    pub clock: Clock,
    /// What goes on when a device has its answer.
    pub tasks: TaskTracker,
    /// Cancelled when that is dropped wherever it is.
    pub abort: CancellationToken,
    /// Something may be due.
    pub wake: Notify,
    /// Whether the smarthost can be reached.
    pub away: Mutex<Away>,
    /// What is stopped.
    pub stopped: Mutex<Stops>,
    /// Devices that may be kept waiting for another attempt at the same time. That is for the odd hiccup: when
    /// many messages meet with one, the spool answers sooner, and the courier makes the same attempts.
    pub patient: Semaphore,
    /// What is counted.
    pub metrics: Metrics,
}

/// The time of day; in tests it goes with tokio's clock.
#[derive(Clone, Copy, Debug)]
pub enum Clock {
    /// The system's.
    Wall,
    /// So late it was at that instant.
    Since(Timestamp, Instant),
}

/// A smarthost that cannot be reached.
#[derive(Debug, Default)]
pub struct Away {
    failures: u32,
    /// It is asked again then; `None`: it is there.
    pub until: Option<Timestamp>,
}

/// What a message had met with before.
#[derive(Clone, Debug, Default)]
pub struct Before {
    /// The rule that knew the last reply; may be empty.
    pub rule: String,
    /// What it was held by.
    pub hold: Option<Hold>,
}

/// What follows from an attempt, with its effects on others already made.
pub struct Conclusion {
    /// What becomes of the message.
    pub plan: Plan,
    /// At each recipient of the letter.
    pub fates: Vec<Fate>,
    /// What somebody is to be told.
    pub happened: Vec<Happened>,
}

impl Clock {
    /// Now.
    pub fn now(self) -> Timestamp {
        match self {
            Self::Wall => Timestamp::now(),
            Self::Since(then, at) => then.saturating_add(at.elapsed()).unwrap_or(then),
        }
    }
}

impl Away {
    /// No connection came about at `now`. What fails at the same time counts once.
    fn failed(&mut self, now: Timestamp, waits: &[Duration]) {
        if self.until.is_none_or(|until| until <= now) {
            self.failures += 1;
            let wait = schedule::wait(Trouble::Passing, self.failures, waits, fastrand::f64());
            self.until = Some(now.saturating_add(wait).unwrap_or(now));
        }
    }

    /// It is asked now.
    pub fn try_again(&mut self, now: Timestamp) {
        self.until = self.until.map(|_| now);
    }
}

impl Keeper {
    /// What is stopped.
    pub fn stops(&self) -> MutexGuard<'_, Stops> {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An operator's word: whatever is stopped or away is tried now.
    pub fn try_again(&self) {
        let now = self.clock.now();
        self.stops().try_again(None, now);
        self.away().try_again(now);
        self.wake.notify_one();
    }

    /// Waits until what is under way is done. Nothing begins any more: sessions are over, and the courier rests.
    pub async fn finish(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Whether the smarthost can be reached.
    pub fn away(&self) -> MutexGuard<'_, Away> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a message with this reverse-path is held by before it is tried: the hold, the reply and the rule.
    pub fn bars(&self, reverse_path: &str) -> Option<(Hold, String, String)> {
        let stops = self.stops();
        let (hold, stopped) = stops.bars(reverse_path)?;
        Some((hold.clone(), stopped.reason.clone(), stopped.rule.clone()))
    }

    /// Draws the conclusion from an attempt: what becomes of the message, and what it means for others, which is
    /// done here. `before` is what the message had met with before.
    pub fn conclude(
        &self,
        pool: &Arc<Pool>,
        outcome: &Outcome,
        recipients: usize,
        sender: &str,
        count: u32,
        before: &Before,
    ) -> Conclusion {
        let journal = pool.journal();
        let fates = aftermath::fates(outcome, recipients, sender, |stage, reply| {
            journal.judge(stage, reply)
        });
        let now = self.clock.now();
        let passes = |fate: &Fate| matches!(fate.end, End::Not(Course::Wait(_)));
        match outcome {
            Outcome::NoLease(LeaseError::Open(_)) if fates.iter().any(passes) => {
                self.away().failed(now, &self.settings.retry);
            }
            Outcome::Answered(..) | Outcome::Refused(..) | Outcome::Nobody(_) => {
                *self.away() = Away::default();
            }
            _ => {}
        }
        if fates.iter().any(|fate| fate.end == End::Delivered) {
            let over = self.stops().passed(sender);
            if !over.is_empty() {
                self.release(over, pool);
            }
        }
        for fate in &fates {
            match fate.end {
                End::Not(Course::Wait(Trouble::Concurrency)) => pool.lower(),
                End::Not(Course::Wait(Trouble::Rate)) => pool.pause(TOO_FAST),
                _ => continue,
            }
            break;
        }
        let tries = Tries { count, waits: &self.settings.retry, now, chance: fastrand::f64() };
        let mut opened = Vec::new();
        let plan = aftermath::plan(&fates, tries, |wanted, fate| {
            let mut stops = self.stops();
            // It opened this before, and others have passed since: so it is about this message.
            if !before.rule.is_empty() && before.rule == fate.rule() && !stops.has(wanted) {
                return Hold::Message;
            }
            let (hold, news) = stops.stop(wanted.clone(), &fate.said, fate.rule(), now);
            if matches!(outcome, Outcome::NoLease(LeaseError::Open(error)) if matches!(&**error, OpenError::Login(error) if error.is_local()))
            {
                // A file may be mended any time, and looking at it harms nobody.
                stops.soon(&hold, now);
            }
            if news && hold != Hold::Message {
                opened.push((hold.clone(), fate.clone()));
            }
            hold
        });
        let mut happened = Vec::new();
        for (hold, fate) in opened {
            self.stop(&hold, &fate, pool);
            happened.push(Happened::Stopped { hold, fate });
        }
        if plan.standing.hold == Some(Hold::Message) && before.hold != Some(Hold::Message) {
            happened.push(Happened::Held { fate: fates[plan.decisive].clone() });
        }
        Conclusion { plan, fates, happened }
    }

    /// Something is stopped from now on: what waits and falls under it is held.
    fn stop(&self, hold: &Hold, fate: &Fate, pool: &Arc<Pool>) {
        self.metrics.breaker(pool.mailbox(), true);
        tracing::error!(
            mailbox = pool.mailbox(),
            stopped = hold.name(),
            reply = fate.said,
            rule = fate.rule(),
            "mail is held until a setting is changed"
        );
        let queue = Arc::clone(&self.queue);
        let (hold, reason, rule) = (hold.clone(), fate.said.clone(), fate.rule().to_owned());
        self.tasks.spawn(async move {
            if let Err(error) = queue.hold_all(hold, reason, rule).await {
                tracing::error!(%error, "what is stopped could not be held: it is tried and held one by one");
            }
        });
    }

    /// This does not hold any more: what it held is ready.
    fn release(&self, over: Vec<Hold>, pool: &Arc<Pool>) {
        self.metrics.breaker(pool.mailbox(), !self.stops().is_empty());
        let (queue, now) = (Arc::clone(&self.queue), self.clock.now());
        for hold in over {
            tracing::info!(
                mailbox = pool.mailbox(),
                released = hold.name(),
                "a message was accepted: held mail goes on"
            );
            let queue = Arc::clone(&queue);
            self.tasks.spawn(async move {
                if let Err(error) = queue.release_all(hold, now).await {
                    tracing::error!(%error, "held mail could not be released: smtp-uplift queue release does it");
                }
            });
        }
        self.wake.notify_one();
    }

    /// The notice of what happened to a message, if anybody is to be told.
    pub fn notice(
        &self,
        case: &Case<'_>,
        happened: &[Happened],
        header: &str,
    ) -> Option<NewNotice> {
        self.notices.as_ref()?;
        notice::compose(case, happened, header, self.clock.now())
    }
}

impl Conclusion {
    /// Whether the message is to be tried once more at once, and how.
    pub fn once_more(&self) -> Option<bool> {
        let pending = self.fates.iter().filter(|fate| matches!(fate.end, End::Not(_)));
        let mut one_by_one = false;
        for fate in pending {
            match fate.end {
                End::Not(Course::Reconnect) => {}
                End::Not(Course::OneByOne) => one_by_one = true,
                _ => return None,
            }
        }
        let none_taken = self.fates.iter().all(|fate| matches!(fate.end, End::Not(_)));
        none_taken.then_some(one_by_one)
    }

    /// Whether every recipient is refused for good.
    pub fn is_refused(&self) -> bool {
        self.plan.recipients.iter().all(|(state, _)| *state == RecipientState::Failed)
    }

    /// Who has refused it for good, if others have not.
    pub fn refused<'a>(
        &self,
        recipients: impl Iterator<Item = &'a ForwardPath>,
    ) -> Option<Happened> {
        let failed =
            |(_, (state, _)): &(_, &(RecipientState, String))| *state == RecipientState::Failed;
        let refused: Vec<(&ForwardPath, _)> =
            recipients.zip(&self.plan.recipients).filter(failed).collect();
        let place =
            self.plan.recipients.iter().position(|(state, _)| *state == RecipientState::Failed)?;
        Some(Happened::Refused {
            recipients: refused.iter().map(|(path, _)| path.as_str().to_owned()).collect(),
            fate: self.fates[place].clone(),
        })
    }

    /// Whether nothing is left to do.
    pub fn is_done(&self) -> bool {
        self.plan.standing.state == State::Done
    }
}
