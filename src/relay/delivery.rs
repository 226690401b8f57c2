//! The courier: delivers what the spool holds, finds out whether what is stopped still is, and gives up what has
//! waited long enough.
//!
//! While the smarthost cannot be reached one message at a time asks for it; the others wait untouched.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{
    Relay,
    attempt::{self, Letter, Manner, Outcome},
    keeper::{Conclusion, Keeper},
    notice::{Case, HEADER, Happened, header_of},
    notifier::Notifier,
    replay::{Cursor, Replay},
};
use crate::{
    proto::{envelope::Envelope, param::MailParams, path::ForwardPath},
    smarthost::pool::LeaseError,
    spool::{
        queue::{
            Hold, Leased, NewNotice, Queue as _, QueueError, RecipientState, Settlement, Standing,
            State,
        },
        store::point,
    },
    telemetry::transcript::{Transcript, Voice},
};

/// How often the courier looks at what is due.
const TICK: Duration = Duration::from_secs(1);
/// How often what there is is counted.
const COUNT: Duration = Duration::from_secs(2);
/// How often what has waited long enough is looked for.
const TIDY: Duration = Duration::from_secs(60);
/// How long what was delivered is remembered.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);
/// Messages that are given up in one step.
const AT_ONCE: usize = 100;
/// How long a delivery waits for a connection.
const LEASE: Duration = Duration::from_secs(60);
/// How long each reply of the smarthost may take (RFC 5321 section 4.5.3.2).
const STEP: Duration = Duration::from_secs(300);

/// Delivers what the spool holds.
pub struct Courier {
    relay: Arc<Relay>,
    keeper: Arc<Keeper>,
    notifier: Notifier,
    /// One permit for each delivery that may be under way.
    hands: Arc<Semaphore>,
    capacity: usize,
    could_log_in: bool,
    counted: Option<Instant>,
    tidied: Option<Instant>,
}

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
    /// The rule that it had met with before.
    pub rule: String,
    /// It is a notice of ours.
    pub is_notice: bool,
}

impl Courier {
    /// A courier for what the keeper keeps.
    pub fn new(relay: Arc<Relay>, keeper: Arc<Keeper>, notifier: Notifier) -> Self {
        // Twice as many as can be sent at once, so that they are taken from the queue several at a time.
        let capacity = 2 * relay.pool.max_connections();
        Self {
            relay,
            keeper,
            notifier,
            hands: Arc::new(Semaphore::new(capacity)),
            capacity,
            could_log_in: true,
            counted: None,
            tidied: None,
        }
    }

    /// Works until the relay drains; what is under way then goes on on the keeper's tasks.
    pub async fn run(mut self, drain: CancellationToken) {
        self.resume().await;
        loop {
            if let Err(error) = self.round().await {
                tracing::error!(%error, "the spool cannot be worked on");
            }
            tokio::select! {
                biased;
                () = drain.cancelled() => break,
                () = self.keeper.wake.notified() => {}
                () = sleep(TICK) => {}
            }
        }
        self.notifier.stop();
    }

    /// Takes up what an earlier relay had stopped.
    async fn resume(&self) {
        match self.keeper.queue.holds().await {
            Ok(holds) => {
                let now = self.keeper.clock.now();
                let mut stops = self.keeper.stops();
                for hold in holds {
                    stops.resume(hold, now);
                }
                self.keeper.metrics.breaker(self.relay.pool.mailbox(), !stops.is_empty());
            }
            Err(error) => tracing::error!(%error, "the spool cannot say what it holds"),
        }
    }

    async fn round(&mut self) -> Result<(), QueueError> {
        let now = self.keeper.clock.now();
        self.look_at_the_login(now);
        self.probe(now).await?;
        self.take(now).await?;
        if is_due(&mut self.counted, COUNT) {
            self.keeper.queue.heal().await;
            self.count(now).await?;
        }
        if is_due(&mut self.tidied, TIDY) {
            self.tidy(now).await?;
            self.resume().await;
        }
        self.notifier.round(&self.keeper, now).await
    }

    /// A secret that has changed, an operator's word, or time may let the mailbox log in again.
    fn look_at_the_login(&mut self, now: Timestamp) {
        let can = self.relay.pool.admits_login();
        if can && !std::mem::replace(&mut self.could_log_in, can) {
            self.keeper.stops().try_again(Some(&Hold::Credential), now);
        }
        self.could_log_in = can;
    }

    /// One message for each thing that is stopped and to be found out about.
    async fn probe(&mut self, now: Timestamp) -> Result<(), QueueError> {
        let due = self.keeper.stops().due(now);
        for hold in due {
            match self.keeper.queue.lease_held(hold.clone()).await {
                Ok(Some(leased)) => {
                    self.keeper.tasks.spawn(self.delivery(leased, Some(hold), None));
                }
                Ok(None) => {
                    // Nothing is held by it: the next message finds out.
                    let mut stops = self.keeper.stops();
                    stops.forget(&hold);
                    self.keeper.metrics.breaker(self.relay.pool.mailbox(), !stops.is_empty());
                }
                Err(error) => {
                    self.keeper.stops().put_off(&hold, now);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Takes what is due, as much as there are hands for.
    async fn take(&mut self, now: Timestamp) -> Result<(), QueueError> {
        let free = self.hands.available_permits();
        let away = self.keeper.away().until;
        let room = match away {
            Some(until) if now < until => 0,
            // It asks whether the smarthost is back.
            Some(_) => usize::from(free == self.capacity),
            // Several at a time, so that they share a sync.
            None if free < self.capacity.div_ceil(4) => 0,
            None => free,
        };
        if room == 0 {
            return Ok(());
        }
        for leased in self.keeper.queue.lease_due(now, room).await? {
            let hand = Arc::clone(&self.hands).acquire_owned().await.ok();
            self.keeper.tasks.spawn(self.delivery(leased, None, hand));
        }
        Ok(())
    }

    fn delivery(
        &self,
        leased: Leased,
        probe: Option<Hold>,
        hand: Option<OwnedSemaphorePermit>,
    ) -> impl Future<Output = ()> + use<> {
        let (relay, keeper) = (Arc::clone(&self.relay), Arc::clone(&self.keeper));
        async move {
            let _hand = hand;
            deliver(&relay, &keeper, leased, probe).await;
            keeper.wake.notify_one();
        }
    }

    async fn count(&mut self, now: Timestamp) -> Result<(), QueueError> {
        let totals = self.keeper.queue.totals().await?;
        let of = |state: State| {
            totals.messages.iter().find(|(found, _)| *found == state).map_or(0, |(_, count)| *count)
        };
        let messages: Vec<_> = State::ALL.map(|state| (state.as_str(), of(state))).to_vec();
        let age = totals.oldest.map_or(0, |oldest| now.duration_since(oldest).as_secs().max(0));
        self.keeper.metrics.spool_holds(&messages, totals.bytes, age as u64);
        if let Some(free) = self.keeper.queue.disk_free() {
            self.keeper.metrics.spool_disk_free(free);
        }
        self.notifier.waiting(totals.notices, &self.keeper);
        Ok(())
    }

    async fn tidy(&mut self, now: Timestamp) -> Result<(), QueueError> {
        let settings = &self.keeper.settings;
        let before = |age: Duration| now.saturating_sub(age).unwrap_or(now);
        let (waiting, held) = (before(settings.expire), before(settings.held_expire));
        loop {
            let overdue = self.keeper.queue.lease_overdue(waiting, held, AT_ONCE).await?;
            let count = overdue.len();
            for leased in overdue {
                self.give_up(leased, now).await;
            }
            if count < AT_ONCE {
                break;
            }
        }
        self.keeper.queue.purge(before(REMEMBERED), before(settings.keep_failed)).await?;
        Ok(())
    }

    /// It has waited long enough.
    async fn give_up(&self, leased: Leased, now: Timestamp) {
        let reason = format!("expired; the last that happened: {}", leased.reason);
        let matter = Matter::of(&leased, "", leased.attempts);
        let happened = Happened::Expired {
            recipients: leased
                .recipients
                .iter()
                .map(|(_, path)| path.as_str().to_owned())
                .collect(),
            reason: leased.reason.clone(),
        };
        tracing::warn!(id = leased.id, device = leased.device, reason, "a message has expired");
        self.keeper.metrics.spool_delivery(&leased.mailbox, "expired");
        let notice = matter.notice(&self.keeper, &[happened]).await;
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
        write_down(&self.relay, &self.keeper, settlement).await;
    }
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
            rule: leased.rule.clone(),
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

/// Draws the conclusion from an attempt with a message that the queue has, and tells the queue.
pub async fn settle(
    relay: &Relay,
    keeper: &Keeper,
    matter: &Matter,
    outcome: &Outcome,
    transcript: &Transcript,
) -> Conclusion {
    let Matter { id, sender, recipients, attempts, rule, .. } = matter;
    let mut conclusion =
        keeper.conclude(&relay.pool, outcome, recipients.len(), sender, *attempts, rule);
    let standing = &mut conclusion.plan.standing;
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

async fn deliver(relay: &Arc<Relay>, keeper: &Arc<Keeper>, leased: Leased, probe: Option<Hold>) {
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
    settle(relay, keeper, &matter, &outcome, &transcript).await;
    if let Some(hold) = probe {
        keeper.stops().put_off(&hold, keeper.clock.now());
    }
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
        due: (dot_sent || hold.is_none()).then_some(now),
        hold: hold.filter(|_| !dot_sent),
        reason: "the relay was stopped".to_owned(),
        rule: matter.rule.clone(),
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

fn is_due(last: &mut Option<Instant>, every: Duration) -> bool {
    let due = last.is_none_or(|last| last.elapsed() >= every);
    if due {
        *last = Some(Instant::now());
    }
    due
}
