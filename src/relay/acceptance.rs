//! From the final dot of a device to its answer, where the relay keeps messages: up to three attempts within the
//! device's patience, and what the smarthost does not take in that time is the spool's.
//!
//! ```text
//!  dot ──► attempt ──► taken ───────────────────────────────► 250
//!           ▲  │ │└──► refused for good ────────────────────► 5xx
//!           │  │ └───► no answer when the patience ends ─┐
//!           └──┤ the connection's fault                  ▼
//!              └──► later, held, maybe sent ────► commit ────► 250 queued
//!                                                   └────────► 4xx, the spool cannot
//! ```

use std::sync::{Arc, atomic::AtomicBool};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    Relay,
    aftermath::{AGAIN, End, Fate},
    answer,
    attempt::{self, Dotted, Letter, Manner, Opened, Outcome},
    course::Course,
    delivery::{self, Matter},
    keeper::{Before, Conclusion, Keeper, Tried},
    mailboxes::Mailbox,
    notice::{Case, Happened},
    replay::Replay,
    transaction::Transaction,
};
use crate::{
    proto::{client::Stage, reply::Reply},
    smarthost::connection::{Lost, LostCause},
    spool::queue::{
        Hold, NewMessage, Queue as _, QueueError, Recipient, RecipientState, Standing, State,
    },
    telemetry::{maillog::Disposition, transcript::Voice},
};

/// How far a message has gone up while its data came in.
pub enum Upload {
    /// Nobody was asked yet.
    NotYet,
    /// A lease is waited for.
    Opening(BoxFuture<'static, Result<Opened, Outcome>>),
    /// All data so far went up.
    Open(Opened),
    /// Nothing more goes up before the dot. What came of it; nothing if the lease was given back.
    Over(Option<Outcome>),
}

/// A message whose dot has come.
pub struct Acceptance<'a> {
    /// What all sessions share.
    pub relay: &'a Arc<Relay>,
    /// What keeps messages.
    pub keeper: &'a Arc<Keeper>,
    /// The device's transaction.
    pub transaction: &'a mut Transaction,
    /// What goes up in front of the data.
    pub letter: Letter,
    /// The data; `None` if they could not be kept.
    pub replay: Option<Replay>,
    /// When the device's patience ends.
    pub deadline: Instant,
}

/// What became of an attempt by the time that the patience ends.
enum Ended {
    Outcome(Outcome),
    /// The dot was sent, and the answer may come yet.
    Late(Dotted),
}

impl Acceptance<'_> {
    /// Tries, keeps, answers.
    pub async fn run(mut self, upload: Upload) -> (Disposition, Reply) {
        // What was asked for while the data came is asked for once more now that they are there.
        let mut may_ask_again = matches!(upload, Upload::Opening(_) | Upload::Over(Some(_)));
        let mut faults = 0;
        let mut one_by_one = false;
        let mut happened = Vec::new();
        let mut moves = 1;
        let mut ended = self.first(upload).await;
        loop {
            let outcome = match ended {
                Ended::Outcome(outcome) => outcome,
                Ended::Late(dotted) => return self.late(dotted).await,
            };
            self.note(&outcome);
            let mut conclusion = self.conclude(&outcome);
            happened.append(&mut conclusion.happened);
            if let Some(other) = conclusion.other.take() {
                self.go_through(other);
                let none_taken = conclusion.fates.iter().all(Fate::is_pending);
                if none_taken
                    && moves < self.relay.mailboxes.all().len()
                    && self.replay.is_some()
                    && Instant::now() < self.deadline
                {
                    moves += 1;
                    ended = self.attempt(one_by_one).await;
                    continue;
                }
            }
            let passes = conclusion.plan.standing.state != State::Held;
            let asks = matches!(outcome, Outcome::NoLease(_)) && passes;
            if asks && std::mem::take(&mut may_ask_again) && self.replay.is_some() {
                ended = self.attempt(one_by_one).await;
                continue;
            }
            let mailbox = self.mailbox();
            if let Some(separately) = conclusion.once_more()
                && let Ok(_chair) = mailbox.patient.try_acquire()
                && faults < if separately { 1 } else { AGAIN.len() }
                && self.replay.is_some()
                && Instant::now() + AGAIN[faults] < self.deadline
            {
                one_by_one |= separately;
                sleep(AGAIN[faults]).await;
                faults += 1;
                ended = self.attempt(one_by_one).await;
                continue;
            }
            return self.answer(&outcome, Conclusion { happened, ..conclusion }).await;
        }
    }

    /// The message goes to the spool without an attempt.
    pub async fn keep(mut self, standing: Standing) -> (Disposition, Reply) {
        let pending = (RecipientState::Pending, standing.reason.clone());
        let recipients = vec![pending; self.letter.envelope.recipients.len()];
        match self.commit(recipients, standing, &[]).await {
            Ok(()) => (Disposition::Queued, answer::queued(&self.transaction.id)),
            Err(error) => (Disposition::Refused, answer::no_room(&error)),
        }
    }

    /// Carries on with what was begun while the data came.
    async fn first(&mut self, upload: Upload) -> Ended {
        match upload {
            Upload::Open(opened) => self.dot(opened).await,
            Upload::Over(Some(outcome)) => Ended::Outcome(outcome),
            Upload::NotYet | Upload::Over(None) => self.attempt(false).await,
            Upload::Opening(opening) => self.opened(opening).await,
        }
    }

    async fn attempt(&mut self, one_by_one: bool) -> Ended {
        self.transaction.attempts += 1;
        let pool = Arc::clone(&self.mailbox().pool);
        let left = self.deadline.saturating_duration_since(Instant::now());
        let manner = Manner {
            who: self.transaction.who(),
            lease: pool.lease_wait().min(left),
            step: left,
            one_by_one,
            transcript: self.transaction.transcript().clone(),
        };
        let opening = attempt::open(pool, self.letter.clone(), manner);
        self.opened(Box::pin(opening)).await
    }

    async fn opened(&mut self, opening: BoxFuture<'static, Result<Opened, Outcome>>) -> Ended {
        match timeout_at(self.deadline, opening).await {
            Ok(Ok(opened)) => self.send(opened).await,
            Ok(Err(outcome)) => Ended::Outcome(outcome),
            Err(_) => self.out_of_time(),
        }
    }

    async fn send(&mut self, mut opened: Opened) -> Ended {
        let Some(replay) = &mut self.replay else { return self.out_of_time() };
        let left = self.deadline.saturating_duration_since(Instant::now());
        let sending = opened.send(&self.letter, replay, left);
        match timeout_at(self.deadline, Box::pin(sending)).await {
            Ok(Ok(())) => self.dot(opened).await,
            Ok(Err(outcome)) => Ended::Outcome(outcome),
            Err(_) => self.out_of_time(),
        }
    }

    async fn dot(&mut self, opened: Opened) -> Ended {
        self.transaction.dot_sent = true;
        let Dotted { mut verdict, replies } = opened.dot(Arc::new(AtomicBool::new(false)));
        match timeout_at(self.deadline, &mut verdict).await {
            Ok(verdict) => Ended::Outcome(Dotted::outcome(replies, verdict)),
            Err(_) => Ended::Late(Dotted { verdict, replies }),
        }
    }

    /// The patience has ended before the dot was sent: the connection was closed without one.
    fn out_of_time(&self) -> Ended {
        let cause = LostCause::Timeout(self.relay.delivery.device_patience);
        Ended::Outcome(Outcome::Lost(Lost { stage: Stage::Data, cause }))
    }

    fn sender(&self) -> &str {
        self.letter.envelope.reverse_path.as_str()
    }

    fn mailbox(&mut self) -> Arc<Mailbox> {
        self.transaction.mailbox()
    }

    /// Another mailbox sends it from now on.
    fn go_through(&mut self, other: Arc<Mailbox>) {
        let rule = self.transaction.rule_at(&other);
        self.letter = self.letter.clone().by(&rule);
        self.transaction.go_through(other);
    }

    fn conclude(&mut self, outcome: &Outcome) -> Conclusion {
        let mailbox = self.mailbox();
        let tried = Tried {
            mailbox: &mailbox,
            bound: self.transaction.is_bound(),
            asks_as: self.transaction.asks_as(),
            sender: self.sender(),
            size: self.letter.envelope.params.size.unwrap_or(0),
            recipients: self.letter.envelope.recipients.len(),
            count: self.transaction.attempts,
            before: &Before::default(),
        };
        self.keeper.conclude(tried, outcome)
    }

    /// Writes down what went wrong, where the smarthost's replies do not say it.
    fn note(&mut self, outcome: &Outcome) {
        let what: &dyn std::fmt::Display = match outcome {
            Outcome::NoLease(error) => error,
            Outcome::Lost(lost) | Outcome::Unknown(_, lost) => lost,
            Outcome::Unreadable(error) => error,
            Outcome::Answered(..) | Outcome::Refused(..) | Outcome::Nobody(_) => return,
        };
        tracing::warn!(id = self.transaction.id, error = %what, "an attempt has failed");
        self.transaction.transcript().say(Voice::Note, what);
    }

    /// Keeps what is still to be delivered, and says what became of the message.
    async fn answer(mut self, outcome: &Outcome, conclusion: Conclusion) -> (Disposition, Reply) {
        let decisive = conclusion.fates[conclusion.plan.decisive].clone();
        self.remember(&conclusion);
        if let Outcome::Answered(_, verdict) = outcome
            && conclusion.is_done()
        {
            // Another mailbox was stopped on the way.
            self.tell(&conclusion.happened);
            return (Disposition::Relayed, answer::accepted(&self.transaction.id, verdict));
        }
        if conclusion.is_refused() {
            return (Disposition::Refused, self.refusal(outcome, &decisive));
        }
        let paths = self.letter.envelope.recipients.iter();
        let happened: Vec<Happened> =
            conclusion.refused(paths).into_iter().chain(conclusion.happened).collect();
        let plan = conclusion.plan;
        let is_taken = plan.standing.state == State::Failed;
        let committed = self.commit(plan.recipients, plan.standing, &happened).await;
        if let (Err(error), true) = (&committed, is_taken) {
            tracing::error!(id = self.transaction.id, %error, "a recipient was refused, and that could not be kept for a notice");
        }
        match (committed, outcome) {
            // Whom the message could be delivered to has it; of the others there is a notice, or should be.
            (_, Outcome::Answered(_, verdict)) if is_taken => {
                (Disposition::Relayed, answer::accepted(&self.transaction.id, verdict))
            }
            (Ok(()), _) => (Disposition::Queued, answer::queued(&self.transaction.id)),
            (Err(error), _) => {
                tracing::error!(id = self.transaction.id, %error, "the message could not be kept: the device is told to try again");
                let unknown = decisive.end == End::MaybeSent;
                let disposition = if unknown { Disposition::Unknown } else { Disposition::Refused };
                (disposition, self.refusal(outcome, &decisive))
            }
        }
    }

    /// Has somebody told of what happened, where no message is kept that could bear it.
    fn tell(&mut self, happened: &[Happened]) {
        let matter = self.matter();
        let Matter { id, device, mailbox, from, received, .. } = &matter;
        let case = Case { id, device, mailbox, from, received: *received };
        let Some(notice) = self.keeper.notice(&case, happened, "") else { return };
        let queue = Arc::clone(&self.keeper.queue);
        self.keeper.tasks.spawn(async move {
            if let Err(error) = queue.notice(notice).await {
                tracing::error!(%error, "a notice could not be kept: the log and /status have what happened");
            }
        });
    }

    /// The patience has ended after the dot: the spool takes the message, and the answer is waited for all the
    /// same. No other attempt starts meanwhile.
    async fn late(mut self, dotted: Dotted) -> (Disposition, Reply) {
        let Dotted { verdict, replies } = dotted;
        let pending = (RecipientState::Pending, "the smarthost has not answered yet".to_owned());
        let recipients = vec![pending; self.letter.envelope.recipients.len()];
        let standing =
            self.standing(State::Awaiting, "the smarthost has not answered the final dot yet");
        if let Err(error) = self.commit(recipients, standing, &[]).await {
            tracing::error!(id = self.transaction.id, %error, "the message could not be kept: the device waits on");
            let outcome = Dotted::outcome(replies, verdict.await);
            self.replay = None;
            self.note(&outcome);
            let conclusion = self.conclude(&outcome);
            let decisive = conclusion.fates[conclusion.plan.decisive].clone();
            self.remember(&conclusion);
            return match &outcome {
                Outcome::Answered(_, verdict) if decisive.end == End::Delivered => {
                    (Disposition::Relayed, answer::accepted(&self.transaction.id, verdict))
                }
                _ if decisive.end == End::MaybeSent => {
                    (Disposition::Unknown, self.refusal(&outcome, &decisive))
                }
                _ => (Disposition::Refused, self.refusal(&outcome, &decisive)),
            };
        }
        let (relay, keeper) = (Arc::clone(self.relay), Arc::clone(self.keeper));
        let (mailbox, matter) = (self.mailbox(), self.matter());
        let transcript = self.transaction.transcript().clone();
        let waiting = async move {
            let outcome = Dotted::outcome(replies, verdict.await);
            delivery::settle(&relay, &keeper, &mailbox, &matter, &outcome, &transcript, None).await;
            keeper.wake.notify_one();
        };
        let abort = self.keeper.abort.clone();
        // Dropped with the relay it stays *awaiting*, and is *maybe sent* after the next start.
        self.keeper.tasks.spawn(async move { abort.run_until_cancelled(waiting).await });
        (Disposition::Queued, answer::queued(&self.transaction.id))
    }

    /// What a device hears that gets no promise: as without a spool.
    fn refusal(&self, outcome: &Outcome, decisive: &Fate) -> Reply {
        match (outcome, &decisive.reply, &decisive.verdict) {
            (Outcome::NoLease(error), _, verdict) => answer::no_lease(error, verdict.as_ref()),
            (_, Some((stage, reply)), Some(verdict)) => answer::refused(*stage, reply, verdict),
            (Outcome::Lost(lost) | Outcome::Unknown(_, lost), ..) => answer::lost(lost),
            _ => answer::no_answer(),
        }
    }

    /// The smarthost's last word, for the log line.
    fn remember(&mut self, conclusion: &Conclusion) {
        let decisive = &conclusion.fates[conclusion.plan.decisive];
        if let Some((_, reply)) = &decisive.reply {
            self.transaction.heard(reply.clone(), decisive.rule());
        }
        let refused = |fate: &Fate| {
            matches!(fate.end, End::Not(Course::Refuse | Course::Wait(_) | Course::Hold(_)))
        };
        let paths = self.letter.envelope.recipients.iter();
        let one_of_several = paths.zip(&conclusion.fates).filter(|(_, fate)| refused(fate));
        self.transaction.refused = one_of_several
            .filter_map(|(path, fate)| {
                let (stage, reply) = fate.reply.as_ref()?;
                (*stage == Stage::Rcpt).then(|| (path.clone(), reply.clone()))
            })
            .collect();
    }

    fn standing(&self, state: State, reason: &str) -> Standing {
        Standing {
            state,
            due: None,
            hold: None,
            reason: reason.to_owned(),
            rule: String::new(),
            attempts: self.transaction.attempts,
            maybe_sent: false,
            transcript: String::new(),
        }
    }

    fn matter(&mut self) -> Matter {
        let mailbox = self.mailbox();
        let recipients = self.letter.envelope.recipients.iter().cloned();
        Matter {
            id: self.transaction.id.clone(),
            device: self.transaction.kept_as().to_owned(),
            mailbox: mailbox.address().to_owned(),
            bound: self.transaction.is_bound(),
            size: self.letter.envelope.params.size.unwrap_or(0),
            from: self.transaction.envelope.reverse_path.as_str().to_owned(),
            sender: self.sender().to_owned(),
            received: self.keeper.clock.now(),
            recipients: recipients.enumerate().collect(),
            attempts: self.transaction.attempts,
            before: Before::default(),
            is_notice: false,
        }
    }

    /// Hands the message over to the spool. When this returns, it is on disk.
    async fn commit(
        &mut self,
        recipients: Vec<(RecipientState, String)>,
        mut standing: Standing,
        happened: &[Happened],
    ) -> Result<(), QueueError> {
        let broken = |error: std::io::Error| QueueError::Broken(error.to_string());
        let Some(mut replay) = self.replay.take() else {
            return Err(QueueError::Broken("the mail data could not be written".to_owned()));
        };
        let Matter { id, device, mailbox, from, received, .. } = &self.matter();
        let notice = if happened.is_empty() || self.keeper.notices.is_none() {
            None
        } else {
            let case = Case { id, device, mailbox, from, received: *received };
            let header = delivery::header(&mut replay).await;
            self.keeper.notice(&case, happened, &header)
        };
        if standing.state == State::Held {
            standing.transcript = self.transaction.transcript().text();
        }
        let paths = self.letter.envelope.recipients.iter().cloned();
        self.transaction.kept(&standing);
        let envelope = &self.transaction.envelope;
        let due_now = standing.due.is_some_and(|due: Timestamp| due <= *received);
        let message = NewMessage {
            id: id.clone(),
            mailbox: mailbox.clone(),
            bound: self.transaction.is_bound(),
            device: device.clone(),
            listener: self.transaction.listener().to_owned(),
            reverse_path: envelope.reverse_path.clone(),
            eight_bit: envelope.params.eight_bit,
            smtputf8: envelope.params.smtputf8,
            received: *received,
            head: String::from_utf8_lossy(&self.letter.head).into_owned(),
            body: replay.into_body().await.map_err(broken)?,
            is_notice: false,
            recipients: paths
                .zip(recipients)
                .map(|(path, (state, reply))| Recipient { path, state, reply })
                .collect(),
            standing,
            notice,
        };
        self.keeper.queue.take(message).await?;
        if due_now {
            self.keeper.wake.notify_one();
        }
        Ok(())
    }
}

/// Where a message stands that nobody has tried to deliver yet.
pub fn untried(held: Option<(Hold, String, String)>, now: Timestamp) -> Standing {
    let (state, due, hold, reason, rule) = match held {
        None => (State::Ready, Some(now), None, String::new(), String::new()),
        Some((hold, reason, rule)) => (State::Held, None, Some(hold), reason, rule),
    };
    Standing {
        state,
        due,
        hold,
        reason,
        rule,
        attempts: 0,
        maybe_sent: false,
        transcript: String::new(),
    }
}
