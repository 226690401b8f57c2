//! One message of the spool: an attempt to deliver it, and what the queue is told of that.

use std::{
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
    keeper::{Before, Conclusion, Keeper},
    notice::{Case, HEADER, Happened, header_of},
    replay::{Cursor, Replay},
};
use crate::{
    proto::{envelope::Envelope, param::MailParams, path::ForwardPath},
    smarthost::pool::{LeaseError, Who},
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
/// How long each reply of the smarthost may take (RFC 5321 section 4.5.3.2).
const STEP: Duration = Duration::from_secs(300);

/// A message in the queue, as far as a conclusion needs it.
#[derive(Clone, Debug)]
pub struct Matter {
    /// Its id.
    pub id: String,
    /// The device's name or address.
    pub device: String,
    /// The mailbox that it goes through.
    pub mailbox: String,
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
    /// What the queue has leased, sent as `sender`.
    pub fn of(leased: &Leased, sender: &str, attempts: u32) -> Self {
        Self {
            id: leased.id.clone(),
            device: leased.device.clone(),
            mailbox: leased.mailbox.clone(),
            from: leased.reverse_path.as_str().to_owned(),
            sender: sender.to_owned(),
            received: leased.received,
            recipients: leased.recipients.clone(),
            attempts,
            before: Before { rule: leased.rule.clone(), hold: leased.hold.clone() },
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
    matter: &Matter,
    outcome: &Outcome,
    transcript: &Transcript,
    probe: Option<&Hold>,
) -> Conclusion {
    let Matter { id, sender, recipients, attempts, before, .. } = matter;
    let mut conclusion =
        keeper.conclude(&relay.pool, outcome, recipients.len(), sender, *attempts, before);
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
        upstream = relay.pool.host(),
        "delivery"
    );
    transcript.say(Voice::Note, format_args!("delivery of {id}: {result}"));
    relay.transcripts.keep(id, transcript, !conclusion.is_done());
    keeper.metrics.spool_delivery(&matter.mailbox, outcome_label(plan.standing.state));
    let places = recipients.iter().map(|(place, _)| *place);
    let told = plan.recipients.iter().cloned();
    let settlement = Settlement {
        id: id.clone(),
        standing: plan.standing.clone(),
        recipients: places.zip(told).map(|(place, (state, said))| (place, state, said)).collect(),
        notice,
        now: keeper.clock.now(),
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
    let envelope = Envelope {
        reverse_path: leased.reverse_path.clone(),
        params: MailParams {
            size: Some(leased.body.size()),
            eight_bit: leased.eight_bit,
            smtputf8: leased.smtputf8,
        },
        recipients: leased.recipients.iter().map(|(_, path)| path.clone()).collect(),
    };
    let letter = Letter::new(envelope, leased.head.clone(), relay.pool.mailbox());
    let sender = letter.envelope.reverse_path.as_str().to_owned();
    let matter = Matter::of(&leased, &sender, leased.attempts + 1);
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
        match Replay::stored(leased.body) {
            Ok(mut replay) => {
                attempt::whole(&relay.pool, &letter, &mut replay, &manner, Arc::clone(&sent)).await
            }
            Err(error) => Outcome::Unreadable(error),
        }
    };
    let Some(outcome) = keeper.abort.run_until_cancelled(Box::pin(attempt)).await else {
        return put_back(keeper, &matter, (leased.state, leased.hold), sent.load(Ordering::SeqCst))
            .await;
    };
    if let Outcome::NoLease(LeaseError::Stopping) = outcome {
        return put_back(keeper, &matter, (leased.state, leased.hold), false).await;
    }
    settle(relay, keeper, &matter, &outcome, &transcript, probe.as_ref()).await;
    if let Some(hold) = probe {
        keeper.stops().put_off(&hold, keeper.clock.now());
    }
}

/// It has waited long enough.
pub async fn give_up(relay: &Relay, keeper: &Keeper, leased: Leased, now: Timestamp) {
    let reason = format!("expired; the last that happened: {}", leased.reason);
    let matter = Matter::of(&leased, "", leased.attempts);
    let happened = Happened::Expired {
        recipients: leased.recipients.iter().map(|(_, path)| path.as_str().to_owned()).collect(),
        reason: leased.reason.clone(),
    };
    tracing::warn!(id = leased.id, device = leased.device, reason, "a message has expired");
    keeper.metrics.spool_delivery(&leased.mailbox, "expired");
    let notice = matter.notice(keeper, &[happened]).await;
    let failed =
        |(place, _): &(usize, ForwardPath)| (*place, RecipientState::Failed, reason.clone());
    let settlement = Settlement {
        id: leased.id.clone(),
        recipients: leased.recipients.iter().map(failed).collect(),
        standing: Standing {
            state: State::Failed,
            due: None,
            hold: None,
            reason: reason.clone(),
            rule: leased.rule.clone(),
            attempts: leased.attempts,
            maybe_sent: false,
            transcript: String::new(),
        },
        notice,
        now,
    };
    write_down(relay, keeper, settlement).await;
}

/// The relay stops: the message is as it was, or its dot was sent and nobody knows.
async fn put_back(
    keeper: &Keeper,
    matter: &Matter,
    (state, hold): (State, Option<Hold>),
    dot_sent: bool,
) {
    let now = keeper.clock.now();
    let standing = Standing {
        state: if dot_sent { State::MaybeSent } else { state },
        // What is stopped as a whole is probed as a whole; everything else has a time of its own.
        due: (dot_sent || matches!(hold, None | Some(Hold::Message))).then_some(now),
        hold: hold.filter(|_| !dot_sent),
        reason: "the relay was stopped".to_owned(),
        rule: matter.before.rule.clone(),
        attempts: matter.attempts - u32::from(!dot_sent),
        maybe_sent: dot_sent,
        transcript: String::new(),
    };
    let settlement =
        Settlement { id: matter.id.clone(), standing, recipients: Vec::new(), notice: None, now };
    if let Err(error) = keeper.queue.settle(settlement).await {
        tracing::error!(id = matter.id, %error, "the message could not be put back: it is sent again");
    }
}
