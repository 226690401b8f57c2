//! What live sessions and the courier share to keep messages: the queue, what is stopped, and the one way to draw
//! the conclusion from an attempt.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::{sync::Notify, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    aftermath::{self, End, Fate, Plan, Tries},
    attempt::Outcome,
    course::Course,
    mailboxes::{Mailbox, Mailboxes},
    notice::{self, Case, Happened},
    replay::Budget,
};
use crate::{
    config,
    proto::path::ForwardPath,
    smarthost::{connection::OpenError, pool::LeaseError},
    spool::{
        queue::{Hold, NewNotice, Queue as _, RecipientState, Standing, State, Stop},
        schedule::Trouble,
        store::Store,
    },
    telemetry::metrics::Metrics,
};

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
    /// What messages go through.
    pub mailboxes: Arc<Mailboxes>,
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

/// What a message had met with before.
#[derive(Clone, Debug, Default)]
pub struct Before {
    /// The rule that knew the last reply; may be empty.
    pub rule: String,
    /// What it was held by.
    pub hold: Option<Hold>,
    /// An operator wanted it to be tried, whatever held it.
    pub forced: bool,
}

/// An attempt that a conclusion is to be drawn from.
#[derive(Clone, Copy)]
pub struct Tried<'a> {
    /// What it went through.
    pub mailbox: &'a Arc<Mailbox>,
    /// The message goes through no other.
    pub bound: bool,
    /// As whom it asks for a mailbox.
    pub asks_as: &'a str,
    /// The reverse-path as sent.
    pub sender: &'a str,
    /// Octets of mail data.
    pub size: u64,
    /// To so many recipients.
    pub recipients: usize,
    /// Attempts so far, this one included.
    pub count: u32,
    /// What the message had met with before.
    pub before: &'a Before,
}

/// What follows from an attempt, with its effects on others already made.
pub struct Conclusion {
    /// What becomes of the message.
    pub plan: Plan,
    /// At each recipient of the letter.
    pub fates: Vec<Fate>,
    /// What somebody is to be told.
    pub happened: Vec<Happened>,
    /// Another mailbox can send it now, and is to be tried at once.
    pub other: Option<Arc<Mailbox>>,
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

impl Keeper {
    /// Waits until what is under way is done. Nothing begins any more: sessions are over, and the courier rests.
    pub async fn finish(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Draws the conclusion from an attempt: what becomes of the message, and what it means for others, which is
    /// done here.
    pub fn conclude(&self, tried: Tried<'_>, outcome: &Outcome) -> Conclusion {
        let Tried { mailbox, sender, recipients, count, before, .. } = tried;
        let journal = mailbox.pool.journal();
        let fates = aftermath::fates(outcome, recipients, sender, |stage, reply| {
            journal.judge(stage, reply)
        });
        let now = self.clock.now();
        let passes = |fate: &Fate| matches!(fate.end, End::Not(Course::Wait(_)));
        match outcome {
            Outcome::NoLease(LeaseError::Open(_)) if fates.iter().any(passes) => {
                self.mailboxes.failed(mailbox);
            }
            Outcome::Answered(..) | Outcome::Refused(..) | Outcome::Nobody(_) => mailbox.reached(),
            _ => {}
        }
        if fates.iter().any(|fate| fate.end == End::Delivered) {
            let over = mailbox.stops().passed(sender);
            if !over.is_empty() {
                self.release(over, mailbox);
            }
        }
        let is_heeded =
            |course: &&Course| matches!(course, Course::Wait(Trouble::Concurrency | Trouble::Rate));
        // Said of several recipients it is said once.
        if let Some(course) = fates.iter().filter_map(Fate::course).find(is_heeded) {
            mailbox.heed(course);
        }
        let tries = Tries { count, waits: &self.settings.retry, now, chance: fastrand::f64() };
        let mut opened = Vec::new();
        let mut plan = aftermath::plan(&fates, tries, |wanted, fate| {
            let again = !before.rule.is_empty() && before.rule == fate.rule();
            // It has just opened the same at another mailbox, where nothing has passed since.
            let stands = |other: &Arc<Mailbox>| other.stops().has_by(wanted, fate.rule());
            let elsewhere = again && !before.forced && self.mailboxes.others(mailbox).any(stands);
            let mut stops = mailbox.stops();
            // It opened this before, and others have passed since: so it is about this message.
            if again && !elsewhere && !stops.has(wanted) {
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
            self.stop(&hold, &fate, mailbox);
            happened.push(Happened::Stopped {
                hold,
                mailbox: mailbox.address().to_owned(),
                others: self.mailboxes.only().is_none(),
                fate,
            });
        }
        if plan.standing.hold == Some(Hold::Message) && before.hold != Some(Hold::Message) {
            happened.push(Happened::Held { fate: fates[plan.decisive].clone() });
        }
        let other = self.another(tried, outcome, &plan.standing).cloned();
        if other.is_some() {
            let standing = &mut plan.standing;
            (standing.state, standing.due, standing.hold) = (State::Ready, Some(now), None);
        }
        Conclusion { plan, fates, happened, other }
    }

    /// Another mailbox that can send now what this one cannot. What was held before stays with its mailbox, or it
    /// could stop one after the other again and again.
    fn another(
        &self,
        tried: Tried<'_>,
        outcome: &Outcome,
        standing: &Standing,
    ) -> Option<&Arc<Mailbox>> {
        let stopped = matches!(
            standing.hold,
            Some(Hold::Sender(_) | Hold::Mailbox | Hold::Credential | Hold::Smarthost)
        );
        let away = matches!(outcome, Outcome::NoLease(LeaseError::Open(_)))
            && standing.state == State::Ready;
        let moves = (stopped || away) && !tried.bound && tried.before.hold.is_none();
        moves.then(|| self.mailboxes.instead_of(tried.mailbox, tried.asks_as, tried.size))?
    }

    /// Something is stopped from now on: what waits and falls under it is held.
    fn stop(&self, hold: &Hold, fate: &Fate, mailbox: &Mailbox) {
        self.meter(mailbox);
        tracing::error!(
            mailbox = mailbox.address(),
            stopped = hold.name(),
            reply = fate.said,
            rule = fate.rule(),
            "mail is held until a setting is changed"
        );
        let queue = Arc::clone(&self.queue);
        let stop = Stop {
            mailbox: mailbox.address().to_owned(),
            hold: hold.clone(),
            reason: fate.said.clone(),
            rule: fate.rule().to_owned(),
            // Each of the others is met by its delivery, which knows who else may send it.
            bound: self.mailboxes.only().is_none(),
        };
        self.tasks.spawn(async move {
            if let Err(error) = queue.hold_all(stop).await {
                tracing::error!(%error, "what is stopped could not be held: it is tried and held one by one");
            }
        });
    }

    /// This does not hold any more: what it held is ready.
    fn release(&self, over: Vec<Hold>, mailbox: &Mailbox) {
        self.meter(mailbox);
        let (queue, now) = (Arc::clone(&self.queue), self.clock.now());
        for hold in over {
            let address = mailbox.address().to_owned();
            tracing::info!(
                mailbox = address,
                released = hold.name(),
                "a message was accepted: held mail goes on"
            );
            let queue = Arc::clone(&queue);
            self.tasks.spawn(async move {
                if let Err(error) = queue.release_all(address, hold, now).await {
                    tracing::error!(%error, "held mail could not be released: smtp-uplift queue release does it");
                }
            });
        }
        self.wake.notify_one();
    }

    /// Says in the metrics whether something is stopped at a mailbox.
    pub fn meter(&self, mailbox: &Mailbox) {
        mailbox.meter(&self.metrics);
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
