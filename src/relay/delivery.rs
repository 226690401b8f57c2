//! One message of the spool: an attempt to deliver it, and what the queue is told of that.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::sleep;

use super::{
    Relay,
    attempt::{self, Letter, Manner, Outcome},
    keeper::{Before, Conclusion, Keeper, Tried},
    mailboxes::Mailbox,
    notice::{Case, HEADER, Happened, header_of},
    replay::{Cursor, Replay},
};
use crate::{
    policy::sender::Rule,
    proto::{envelope::Envelope, param::MailParams, path::ForwardPath},
    smarthost::pool::{self, LeaseError, Spent, Who},
    spool::{
        queue::{Hold, Leased, NewNotice, Queue as _, RecipientState, Settlement, Standing, State},
        store::point,
    },
    telemetry::transcript::{Transcript, Voice},
};

/// How often it is tried to write down what became of a message.
const TICK: Duration = Duration::from_secs(1);
/// How long a delivery waits for a connection.
const LEASE: Duration = Duration::from_secs(60);
/// How long at most no more is asked of a mailbox that may send nothing for now.
const REST: Duration = Duration::from_secs(60);
/// How long each reply of the smarthost may take (RFC 5321 section 4.5.3.2).
const STEP: Duration = Duration::from_secs(300);

/// A message in the queue, as far as a conclusion needs it.
#[derive(Clone, Debug)]
pub struct Matter {
    /// Its id.
    pub id: String,
    /// The device's name or address, as [`super::transaction::Transaction::kept_as`] has it.
    pub device: String,
    /// The mailbox that it goes through.
    pub mailbox: String,
    /// It goes through no other.
    pub bound: bool,
    /// Octets of mail data.
    pub size: u64,
    /// The reverse-path as received.
    pub from: String,
    /// The reverse-path as sent.
    pub sender: String,
    /// When it was received.
    pub received: Timestamp,
    /// Whom the attempt was for, each with its place among all recipients.
    pub recipients: Vec<(usize, ForwardPath)>,
    /// Attempts so far, that one included.
    pub attempts: u32,
    /// What it had met with before.
    pub before: Before,
    /// It is a notice of ours.
    pub is_notice: bool,
}

impl Matter {
    /// What the queue has leased, sent through `mailbox` as `sender`.
    pub fn of(leased: &Leased, mailbox: &str, sender: &str, attempts: u32) -> Self {
        Self {
            id: leased.id.clone(),
            device: leased.device.clone(),
            mailbox: mailbox.to_owned(),
            bound: leased.bound,
            size: leased.body.size(),
            from: leased.reverse_path.as_str().to_owned(),
            sender: sender.to_owned(),
            received: leased.received,
            recipients: leased.recipients.clone(),
            attempts,
            before: Before {
                rule: leased.rule.clone(),
                hold: leased.hold.clone(),
                forced: leased.forced,
            },
            is_notice: leased.is_notice,
        }
    }

    /// The notice of what happened to it, if anybody is to be told.
    async fn notice(&self, keeper: &Keeper, happened: &[Happened]) -> Option<NewNotice> {
        if happened.is_empty() || keeper.notices.is_none() {
            return None;
        }
        if self.is_notice {
            // Never a notice about a notice.
            keeper.metrics.notice("failed");
            tracing::error!(
                id = self.id,
                "a notice cannot be delivered: smtp-uplift queue show says why"
            );
            return None;
        }
        let header = match keeper.queue.body(self.id.clone()).await {
            Ok(Some(body)) => match Replay::stored(body) {
                Ok(mut replay) => header(&mut replay).await,
                Err(_) => String::new(),
            },
            _ => String::new(),
        };
        let case = Case {
            id: &self.id,
            device: &self.device,
            mailbox: &self.mailbox,
            from: &self.from,
            received: self.received,
        };
        keeper.notice(&case, happened, &header)
    }
}

/// The header section of kept data, as far as a notice shows it.
pub async fn header(replay: &mut Replay) -> String {
    let (mut cursor, mut start) = (Cursor::default(), Vec::new());
    while start.len() < HEADER {
        match replay.next(&mut cursor).await {
            Ok(Some(chunk)) => start.extend_from_slice(&chunk[..chunk.len().min(HEADER)]),
            _ => break,
        }
    }
    header_of(&start)
}

/// Draws the conclusion from an attempt with a message that the queue has, and tells the queue. `probe` is what it
/// was to find out about.
pub async fn settle(
    relay: &Relay,
    keeper: &Keeper,
    mailbox: &Arc<Mailbox>,
    matter: &Matter,
    outcome: &Outcome,
    transcript: &Transcript,
    probe: Option<&Hold>,
) -> Conclusion {
    let Matter { id, sender, recipients, attempts, .. } = matter;
    let tried = Tried {
        mailbox,
        bound: matter.bound,
        asks_as: relay.asks_as(&matter.from, relay.senders(&matter.device)),
        sender,
        size: matter.size,
        recipients: recipients.len(),
        count: *attempts,
        before: &matter.before,
    };
    let mut conclusion = keeper.conclude(tried, outcome);
    let standing = &mut conclusion.plan.standing;
    if let (Some(hold), State::Ready) = (probe, standing.state) {
        // It has found out nothing: what is held stays held, and another one is tried.
        (standing.state, standing.due, standing.hold) = (State::Held, None, Some(hold.clone()));
    }
    if standing.state == State::Held {
        standing.transcript = transcript.text();
    }
    let refused = conclusion.refused(recipients.iter().map(|(_, path)| path));
    conclusion.happened.extend(refused);
    let notice = matter.notice(keeper, &conclusion.happened).await;
    let plan = &conclusion.plan;
    let decisive = &conclusion.fates[plan.decisive];
    let result = plan.standing.state.as_str();
    tracing::info!(
        id,
        device = matter.device,
        mailbox = matter.mailbox,
        from = matter.from,
        sender,
        recipients = recipients.iter().map(|(_, path)| path.as_str()).collect::<Vec<_>>().join(","),
        result,
        reply = decisive.said,
        rule = decisive.rule(),
        attempts,
        upstream = mailbox.pool.host(),
        "delivery"
    );
    transcript.say(Voice::Note, format_args!("delivery of {id}: {result}"));
    relay.transcripts.keep(id, transcript, !conclusion.is_done());
    keeper.metrics.spool_delivery(&matter.mailbox, outcome_label(plan.standing.state));
    let places = recipients.iter().map(|(place, _)| *place);
    let told = plan.recipients.iter().cloned();
    let goes_through = conclusion.other.as_ref().unwrap_or(mailbox);
    let settlement = Settlement {
        mailbox: Some(goes_through.address().to_owned()),
        recipients: places.zip(told).map(|(place, (state, said))| (place, state, said)).collect(),
        notice,
        ..Settlement::new(id, plan.standing.clone(), keeper.clock.now())
    };
    point("settling");
    write_down(relay, keeper, settlement).await;
    conclusion
}

/// Tells the queue what became of a message, again and again while it cannot take it in: else the message would
/// stay leased until the next start, which could only send it again.
async fn write_down(relay: &Relay, keeper: &Keeper, settlement: Settlement) {
    let id = &settlement.id;
    let mut complained = false;
    loop {
        let error = match keeper.queue.settle(settlement.clone()).await {
            Ok(true) => return,
            Ok(false) => {
                tracing::warn!(id, "the message was dropped from the queue while it was delivered");
                return;
            }
            Err(error) => error,
        };
        if !std::mem::replace(&mut complained, true) {
            tracing::error!(id, %error, "what became of a message cannot be written down yet: that is tried again");
        }
        if relay.drain.run_until_cancelled(sleep(TICK)).await.is_none() {
            tracing::error!(id, %error, "what became of a message was not written down: it is sent again after the next start");
            return;
        }
    }
}

/// Whether the last refusal was one that our own well-formed commands cannot explain (RFC 5321 section 4.2.2).
fn was_misunderstood(reason: &str) -> bool {
    matches!(reason.get(..3), Some("500" | "501" | "502" | "503" | "504"))
}

fn outcome_label(state: State) -> &'static str {
    match state {
        State::Done => "delivered",
        State::Ready | State::Leased | State::Awaiting => "deferred",
        State::MaybeSent => "maybe-sent",
        State::Held => "held",
        State::Failed => "failed",
    }
}

/// Tries to deliver a message. `probe` is what this is to find out about.
pub async fn deliver(
    relay: &Arc<Relay>,
    keeper: &Arc<Keeper>,
    leased: Leased,
    probe: Option<Hold>,
) {
    let own = keeper.mailboxes.find(&leased.mailbox);
    // What is to be found out about a mailbox is found out there.
    let own = own.filter(|_| leased.bound || probe.is_some());
    let senders = relay.senders(&leased.device);
    let from = relay.asks_as(leased.reverse_path.as_str(), senders);
    let mailbox = Arc::clone(keeper.mailboxes.choose(
        own,
        from,
        Some(leased.body.size()),
        leased.recipients.len(),
    ));
    let rule = relay.rule(&mailbox, senders);
    let sender = rule.reverse_path(&leased.reverse_path).as_str().to_owned();
    let matter = Matter::of(&leased, mailbox.address(), &sender, leased.attempts + 1);
    if probe.is_none()
        && let Some(instead) = untried(keeper, &mailbox, &leased, &sender)
    {
        return write_down(relay, keeper, instead).await;
    }
    let transcript = relay.transcripts.begin();
    let manner = Manner {
        who: Who::Spool,
        lease: LEASE,
        step: STEP,
        one_by_one: was_misunderstood(&leased.reason),
        transcript: transcript.clone(),
    };
    let sent = Arc::new(AtomicBool::new(false));
    let attempt = async {
        match letter(&leased, &rule).await {
            Ok((letter, mut replay)) => {
                let sent = Arc::clone(&sent);
                attempt::whole(&mailbox.pool, &letter, &mut replay, &manner, sent).await
            }
            Err(error) => Outcome::Unreadable(error),
        }
    };
    let now = || keeper.clock.now();
    let outcome = keeper.abort.run_until_cancelled(Box::pin(attempt)).await;
    match outcome {
        None if sent.load(Ordering::SeqCst) => {
            let standing = Standing {
                state: State::MaybeSent,
                due: Some(now()),
                hold: None,
                reason: "the relay was stopped".to_owned(),
                attempts: leased.attempts + 1,
                maybe_sent: true,
                ..as_it_was(&leased)
            };
            put_back(keeper, Settlement::new(&leased.id, standing, now())).await;
        }
        None | Some(Outcome::NoLease(LeaseError::Stopping)) => {
            put_back(keeper, back(&leased, now(), now())).await;
        }
        Some(outcome) => match no_attempt(&outcome) {
            Some(wait) => {
                let due = now().saturating_add(wait).unwrap_or(now());
                if !is_of_this_message(&outcome) && !wait.is_zero() {
                    // The others of this mailbox would hear the same.
                    *mailbox.rests() = now().saturating_add(wait.min(REST)).ok();
                }
                let (id, mailbox) = (&leased.id, mailbox.address());
                tracing::debug!(id, mailbox, ?wait, "not tried yet");
                write_down(relay, keeper, back(&leased, due, now())).await;
            }
            None => {
                let probe = probe.as_ref();
                settle(relay, keeper, &mailbox, &matter, &outcome, &transcript, probe).await;
            }
        },
    }
    if let Some(hold) = probe {
        mailbox.stops().put_off(&hold, now());
    }
}

/// A message of the queue as a mailbox sends it, and its data.
async fn letter(leased: &Leased, rule: &Rule) -> io::Result<(Letter, Replay)> {
    let mut replay = Replay::stored(leased.body.clone())?;
    let section = replay.section().await?;
    let envelope = Envelope {
        reverse_path: leased.reverse_path.clone(),
        params: MailParams {
            size: Some(leased.body.size()),
            eight_bit: leased.eight_bit,
            smtputf8: leased.smtputf8,
        },
        recipients: leased.recipients.iter().map(|(_, path)| path.clone()).collect(),
    };
    Ok((Letter::new(envelope, leased.head.clone(), section, rule), replay))
}

/// How long there is no lease for a message that nothing is wrong with: that was no attempt.
fn no_attempt(outcome: &Outcome) -> Option<Duration> {
    match outcome {
        Outcome::NoLease(LeaseError::Busy(_)) => Some(Duration::ZERO),
        Outcome::NoLease(LeaseError::Paused(left) | LeaseError::Spent(Spent { left, .. })) => {
            Some(*left)
        }
        _ => None,
    }
}

/// Whether it is to too many for what is left of the day: others may be to fewer.
fn is_of_this_message(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::NoLease(LeaseError::Spent(spent)) if spent.what == pool::Budget::Recipients)
}

/// What becomes of a message that is not to be tried, if it is not: its mailbox is stopped, or its smarthost left
/// alone, and no other may send it. What is held by itself, or wanted by an operator, is tried all the same.
fn untried(
    keeper: &Keeper,
    mailbox: &Mailbox,
    leased: &Leased,
    sender: &str,
) -> Option<Settlement> {
    let now = keeper.clock.now();
    if leased.hold.is_none()
        && !leased.forced
        && let Some((hold, reason, rule)) = mailbox.bars(sender)
    {
        let (state, hold) = (State::Held, Some(hold));
        let standing = Standing { state, due: None, hold, reason, rule, ..as_it_was(leased) };
        let mailbox = Some(mailbox.address().to_owned());
        return Some(Settlement { mailbox, ..Settlement::new(&leased.id, standing, now) });
    }
    let until = mailbox.away().left_alone(now)?;
    Some(back(leased, until, now))
}

/// It has waited long enough.
pub async fn give_up(relay: &Relay, keeper: &Keeper, leased: Leased, now: Timestamp) {
    let reason = format!("expired; the last that happened: {}", leased.reason);
    let matter = Matter::of(&leased, &leased.mailbox, "", leased.attempts);
    let happened = Happened::Expired {
        recipients: leased.recipients.iter().map(|(_, path)| path.as_str().to_owned()).collect(),
        reason: leased.reason.clone(),
    };
    tracing::warn!(id = leased.id, device = leased.device, reason, "a message has expired");
    keeper.metrics.spool_delivery(&leased.mailbox, "expired");
    let notice = matter.notice(keeper, &[happened]).await;
    let failed =
        |(place, _): &(usize, ForwardPath)| (*place, RecipientState::Failed, reason.clone());
    let recipients = leased.recipients.iter().map(failed).collect();
    let standing =
        Standing { state: State::Failed, due: None, hold: None, reason, ..as_it_was(&leased) };
    let settlement =
        Settlement { recipients, notice, ..Settlement::new(&leased.id, standing, now) };
    write_down(relay, keeper, settlement).await;
}

fn as_it_was(leased: &Leased) -> Standing {
    Standing {
        state: leased.state,
        due: None,
        hold: leased.hold.clone(),
        reason: leased.reason.clone(),
        rule: leased.rule.clone(),
        attempts: leased.attempts,
        maybe_sent: false,
        transcript: String::new(),
    }
}

/// The message as it was before it was leased, but due then.
fn back(leased: &Leased, due: Timestamp, now: Timestamp) -> Settlement {
    // What is stopped as a whole is probed as a whole; everything else has a time of its own.
    let due = matches!(leased.hold, None | Some(Hold::Message)).then_some(due);
    let standing = Standing { due, ..as_it_was(leased) };
    Settlement { forced: leased.forced, ..Settlement::new(&leased.id, standing, now) }
}

/// The relay stops: what became of a message is written down if that can be done at once.
async fn put_back(keeper: &Keeper, settlement: Settlement) {
    let id = settlement.id.clone();
    if let Err(error) = keeper.queue.settle(settlement).await {
        tracing::error!(id, %error, "the message could not be put back: it is sent again");
    }
}
