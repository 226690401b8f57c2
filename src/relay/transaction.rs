//! A device's transaction. In `stream` mode a connection is leased at the first recipient, and every verdict is
//! the smarthost's own; where the relay keeps messages, recipients are taken at once and the data decide.

use std::{net::IpAddr, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout};

use super::{
    Door, Relay, answer, attempt, course, devices::Terms, mailboxes::Mailbox, quotas::Used,
};
use crate::{
    config::DeliveryMode,
    policy::sender::Rule,
    proto::{
        client::Stage,
        envelope::Envelope,
        path::{ForwardPath, ReversePath},
        reply::Reply,
    },
    smarthost::{
        connection::{Lost, OpenError},
        pool::{Lease, LeaseError, Who},
        transaction::{DataTransfer, MailTransaction, StepError},
    },
    spool::queue::Standing,
    telemetry::{
        maillog::{Disposition, Record},
        transcript::{Transcript, Voice},
    },
    transport::stream::TlsInfo,
};

/// Octets by which fields of ours may lengthen a message whose header section is still to come.
const ADDED: u64 = 4_096;

/// A transaction that a device has begun.
pub struct Transaction {
    /// As received; the recipients are those that were accepted.
    pub envelope: Envelope,
    /// In the reply, the log line and the Received field.
    pub id: String,
    /// When MAIL came.
    pub began: Instant,
    /// How long a lease was waited for.
    pub waited: Duration,
    /// The recipients that the smarthost refused, with its replies.
    pub refused: Vec<(ForwardPath, Reply)>,
    /// The last reply of the smarthost, or ours where it had no say.
    pub reply: Option<Reply>,
    /// The rule that knew the smarthost's last reply.
    rule: String,
    /// Why the spool has it.
    kept: String,
    /// Octets of mail data that were passed on.
    pub bytes: u64,
    /// The dot was sent.
    pub dot_sent: bool,
    /// How often the smarthost was asked.
    pub attempts: u32,
    /// What its 250 means.
    pub mode: DeliveryMode,
    /// What it uses of the device's quotas.
    pub used: Option<Used>,
    /// What it goes through, once that is known.
    mailbox: Option<Arc<Mailbox>>,
    /// The last progress: MAIL, or a recipient that was taken.
    moved: Instant,
    upstream: Upstream,
    origin: Origin,
    recorded: bool,
}

/// Where a transaction comes from.
#[derive(Clone)]
pub struct Origin {
    /// What all sessions share.
    pub relay: Arc<Relay>,
    /// The listener.
    pub door: Arc<Door>,
    /// The device's address.
    pub peer: IpAddr,
    /// The device's name or address, as logs have it.
    pub device: Arc<str>,
    /// The mailbox that its mail goes through, and no other.
    pub bound: Option<Arc<Mailbox>>,
    /// What the device's own entries say.
    pub terms: Terms,
    /// Version and cipher, if there is TLS.
    pub tls: Option<TlsInfo>,
    /// Where what is said is written down.
    pub transcript: Transcript,
}

enum Upstream {
    /// Nobody was asked yet.
    Unasked,
    /// The smarthost has taken MAIL.
    Open(MailTransaction),
    /// There is no more to be had: what devices hear from here on.
    Closed(Reply),
}

impl Transaction {
    /// A transaction that MAIL begins; an error is what the device hears instead.
    pub fn new(id: String, envelope: Envelope, origin: Origin) -> Result<Self, Reply> {
        let mut mode = origin.terms.delivery().unwrap_or(origin.relay.delivery.mode);
        if let Some(keeper) = &origin.relay.keeper
            && mode != DeliveryMode::Stream
            && let Err(error) = keeper.queue.room(envelope.params.size.unwrap_or(0))
        {
            if mode == DeliveryMode::Spool {
                tracing::error!(id, %error, "no message can be kept");
                return Err(answer::no_room(&error));
            }
            tracing::warn!(id, %error, "no message can be kept: this one goes through or is refused");
            mode = DeliveryMode::Stream;
        }
        Ok(Self {
            envelope,
            id,
            began: Instant::now(),
            waited: Duration::ZERO,
            refused: Vec::new(),
            reply: None,
            rule: String::new(),
            kept: String::new(),
            bytes: 0,
            dot_sent: false,
            attempts: 0,
            mode,
            used: None,
            mailbox: origin.bound.as_ref().or(origin.relay.mailboxes.only()).cloned(),
            moved: Instant::now(),
            upstream: Upstream::Unasked,
            origin,
            recorded: false,
        })
    }

    /// Where what is said is written down.
    pub fn transcript(&self) -> &Transcript {
        &self.origin.transcript
    }

    /// The device, as logs name it.
    pub fn device(&self) -> &str {
        &self.origin.device
    }

    /// Under whose name it is kept: that of the entry that says what it may be sent as, or else the device's.
    pub fn kept_as(&self) -> &str {
        self.origin.terms.judge().unwrap_or(&self.origin.device)
    }

    /// As whom it asks for a lease: several devices may have one name.
    pub fn who(&self) -> Who {
        Who::Device(self.origin.peer.to_string().into())
    }

    /// Whether it goes through no other mailbox than its own.
    pub fn is_bound(&self) -> bool {
        self.origin.bound.is_some()
    }

    /// What it goes through, chosen now if that was not known yet.
    pub fn mailbox(&mut self) -> Arc<Mailbox> {
        let Self { mailbox, envelope, origin, .. } = self;
        let choose = || {
            let Envelope { reverse_path, params, recipients } = envelope;
            let (bound, count) = (origin.bound.as_ref(), recipients.len().max(1));
            let asks_as = origin.relay.asks_as(reverse_path.as_str(), origin.terms.senders());
            let mailboxes = &origin.relay.mailboxes;
            Arc::clone(mailboxes.choose(bound, asks_as, params.size, count))
        };
        Arc::clone(mailbox.get_or_insert_with(choose))
    }

    /// As whom it asks for a mailbox.
    pub fn asks_as(&self) -> &str {
        let Origin { relay, terms, .. } = &self.origin;
        relay.asks_as(self.envelope.reverse_path.as_str(), terms.senders())
    }

    /// What it may call itself at the mailbox that it goes through.
    pub fn rule(&mut self) -> Arc<Rule> {
        let mailbox = self.mailbox();
        self.rule_at(&mailbox)
    }

    /// What it may call itself at that mailbox.
    pub fn rule_at(&self, mailbox: &Mailbox) -> Arc<Rule> {
        self.origin.relay.rule(mailbox, self.origin.terms.senders())
    }

    /// The reverse-path as it is sent.
    fn sender(&mut self) -> ReversePath {
        self.rule().reverse_path(&self.envelope.reverse_path)
    }

    /// It goes through another one from now on.
    pub fn go_through(&mut self, mailbox: Arc<Mailbox>) {
        tracing::info!(id = self.id, mailbox = mailbox.address(), "another mailbox sends it");
        self.mailbox = Some(mailbox);
    }

    /// The listener's name.
    pub fn listener(&self) -> &str {
        &self.origin.door.listener.name
    }

    /// The spool has it, for this reason.
    pub fn kept(&mut self, standing: &Standing) {
        let hold = standing.hold.as_ref().map(|hold| format!("held ({}): ", hold.name()));
        self.kept = format!("{}{}", hold.unwrap_or_default(), standing.reason);
        self.rule = standing.rule.clone();
    }

    /// The smarthost has said this, and a rule knew it.
    pub fn heard(&mut self, reply: Reply, rule: &str) {
        self.reply = Some(reply);
        self.rule = rule.to_owned();
    }

    /// How long ago it moved, if a connection is held for it.
    pub fn holds_lease_since(&self) -> Option<Duration> {
        matches!(self.upstream, Upstream::Open(_)).then(|| self.moved.elapsed())
    }

    /// Gives the connection back: the device does not move.
    pub fn take_back(&mut self) {
        self.close(answer::stalled());
    }

    /// Takes a recipient, or asks the smarthost about it; returns what the device hears, positive if it was taken.
    pub async fn rcpt(&mut self, recipient: ForwardPath) -> Reply {
        if self.mode != DeliveryMode::Stream {
            self.envelope.recipients.push(recipient);
            return answer::recipient_accepted();
        }
        let patience = self.origin.relay.delivery.device_patience;
        let asked = match std::mem::replace(&mut self.upstream, Upstream::Unasked) {
            Upstream::Closed(reply) => return self.close(reply),
            Upstream::Unasked => timeout(patience, self.begin(&recipient)).await,
            Upstream::Open(mut open) => {
                match timeout(patience, open.rcpt(&recipient, patience)).await {
                    Ok(Ok(reply)) => Ok(Ok((open, reply))),
                    Ok(Err(lost)) => Ok(Err(self.step(lost.into()))),
                    Err(elapsed) => Err(elapsed),
                }
            }
        };
        let (open, reply) = match asked {
            Ok(Ok(answered)) => answered,
            Ok(Err(heard)) => return self.close(heard),
            Err(_) => return self.close(answer::no_answer()),
        };
        let heard = self.hear(Stage::Rcpt, reply.clone());
        match reply.code.get() {
            421 => self.close(heard),
            250 | 251 => {
                self.upstream = Upstream::Open(open);
                self.envelope.recipients.push(recipient);
                self.moved = Instant::now();
                answer::recipient_accepted()
            }
            400.. => {
                self.upstream = Upstream::Open(open);
                self.refused.push((recipient, reply));
                heard
            }
            // A yes that answers nothing: the step is lost, and the connection with it.
            _ => self.close(heard),
        }
    }

    /// Asks to send the data; an error is what the device hears.
    pub async fn data(&mut self, patience: Duration) -> Result<DataTransfer, Reply> {
        match std::mem::replace(&mut self.upstream, Upstream::Unasked) {
            Upstream::Open(open) => match timeout(patience, open.data(patience)).await {
                Ok(Ok(transfer)) => Ok(transfer),
                Ok(Err(error)) => Err(self.step(error)),
                Err(_) => Err(answer::no_answer()),
            },
            Upstream::Closed(reply) => Err(reply),
            Upstream::Unasked => Err(answer::no_answer()),
        }
    }

    /// The device gives up before its data; a connection without faults is kept.
    pub fn cancel(&mut self) {
        if let Upstream::Open(open) = std::mem::replace(&mut self.upstream, Upstream::Unasked) {
            open.cancel();
        }
    }

    /// Counts and logs the transaction, once; `ours` is what the device hears.
    pub fn record(&mut self, disposition: Disposition, ours: Option<&Reply>, faults: &str) {
        if std::mem::replace(&mut self.recorded, true) {
            return;
        }
        // What was refused or given up does not count.
        if let Some(used) = self.used.take()
            && !matches!(disposition, Disposition::Refused | Disposition::Aborted)
        {
            used.keep();
        }
        // Without a mailbox nothing was to be sent.
        let sender = self.mailbox.is_some().then(|| self.sender());
        let sender = sender.as_ref().unwrap_or(&self.envelope.reverse_path).as_str();
        let Origin { relay, door, tls, transcript, device, .. } = &self.origin;
        let mailbox = self.mailbox.as_ref().map_or("", |mailbox| mailbox.address());
        transcript.say(Voice::Note, format_args!("message {}: {}", self.id, disposition.as_str()));
        // Who gives up before the data has not failed.
        let failed = disposition != Disposition::Relayed
            && (disposition != Disposition::Aborted || self.bytes > 0);
        relay.transcripts.keep(&self.id, transcript, failed);
        let took = self.began.elapsed();
        relay.metrics.message_done(mailbox, disposition, self.bytes, took);
        let relayed = disposition == Disposition::Relayed;
        // A refusal of ours says more than the smarthost's last yes.
        let theirs = self.reply.as_ref();
        let reply = theirs.filter(|reply| !reply.code.is_positive() || relayed).or(ours);
        let asked = self.mailbox.as_ref().filter(|_| self.attempts > 0);
        let host = asked.map_or("", |mailbox| mailbox.pool.host());
        let message_id = theirs.filter(|_| relayed).and_then(answer::message_id);
        relay.roster.message(self.origin.peer, device, tls.as_ref(), disposition, reply);
        Record {
            id: &self.id,
            device,
            listener: &door.listener.name,
            tls: &tls.as_ref().map_or_else(|| "plain".to_owned(), ToString::to_string),
            mailbox,
            sender,
            envelope: &self.envelope,
            refused: &self.refused,
            bytes: self.bytes,
            disposition,
            reply,
            answer: ours,
            rule: if theirs.is_some() || !self.kept.is_empty() { &self.rule } else { "" },
            reason: &self.kept,
            upstream: &message_id.map_or_else(|| host.to_owned(), |id| format!("{host} {id}")),
            wait: self.waited,
            relay: took,
            attempts: self.attempts,
            faults,
        }
        .write();
    }

    async fn begin(&mut self, recipient: &ForwardPath) -> Result<(MailTransaction, Reply), Reply> {
        let relay = Arc::clone(&self.origin.relay);
        loop {
            let lease = self.lease(&relay).await?;
            let kept = lease.connection().is_used();
            let envelope = Envelope { reverse_path: self.sender(), ..self.envelope.clone() };
            match lease.mail(&envelope, recipient, ADDED, relay.delivery.device_patience).await {
                Ok(begun) => return Ok(begun),
                // The smarthost ended a connection that was kept from an earlier message just when it was
                // taken up again. Nothing was sent yet, so the next one may try.
                Err(error) if kept && attempt::is_over(&error) => {
                    tracing::debug!(?error, "a kept connection was over");
                }
                Err(error) => return Err(self.step(error)),
            }
        }
    }

    async fn lease(&mut self, relay: &Relay) -> Result<Lease, Reply> {
        self.attempts = 0;
        loop {
            let (began, mailbox) = (Instant::now(), self.mailbox());
            self.attempts += 1;
            let lease = mailbox.pool.lease(&self.who(), 1, mailbox.pool.lease_wait()).await;
            self.waited += began.elapsed();
            let error = match lease {
                Ok(mut lease) => {
                    mailbox.reached();
                    lease.write_down(&self.origin.transcript);
                    return Ok(lease);
                }
                Err(error) => error,
            };
            tracing::warn!(id = self.id, %error, "no connection to the smarthost");
            self.origin.transcript.say(Voice::Note, &error);
            // Without a token nobody has gone there.
            let gone = |cause: &OpenError| !matches!(cause, OpenError::Login(_));
            if matches!(&error, LeaseError::Open(cause) if gone(cause)) && error.reply().is_none() {
                relay.mailboxes.failed(&mailbox);
            }
            let cannot = matches!(&error, LeaseError::Open(_) | LeaseError::LoginRefused(..));
            let size = self.envelope.params.size.unwrap_or(0);
            match relay.mailboxes.instead_of(&mailbox, self.asks_as(), size) {
                Some(other)
                    if cannot
                        && !self.is_bound()
                        && self.attempts < relay.mailboxes.all().len() as u32 =>
                {
                    self.go_through(Arc::clone(other));
                }
                _ => {
                    let judge = |(stage, reply)| mailbox.pool.journal().judge(stage, reply);
                    let verdict = error.reply().map(judge);
                    return Err(answer::no_lease(&error, verdict.as_ref()));
                }
            }
        }
    }

    /// The smarthost's reply; returns what the device hears if that is a refusal.
    pub fn hear(&mut self, stage: Stage, reply: Reply) -> Reply {
        let mailbox = self.mailbox();
        let verdict = mailbox.pool.journal().judge(stage, &reply);
        let sender = self.sender();
        mailbox.heed(&course::of_reply(stage, &reply, &verdict, sender.as_str()));
        let heard = answer::refused(stage, &reply, &verdict);
        self.rule = verdict.rule.as_str().to_owned();
        self.reply = Some(reply);
        heard
    }

    /// Notes what went wrong; returns what the device hears.
    fn step(&mut self, error: StepError) -> Reply {
        match error {
            StepError::Refused(stage, reply) => self.hear(stage, reply),
            StepError::Lost(lost) => {
                self.note_loss(&lost);
                answer::lost(&lost)
            }
        }
    }

    /// The connection to the smarthost broke: for the log and the transcript.
    pub fn note_loss(&self, lost: &Lost) {
        tracing::warn!(id = self.id, error = %lost, "the smarthost was lost");
        self.origin.transcript.say(Voice::Note, lost);
    }

    fn close(&mut self, reply: Reply) -> Reply {
        self.reply.get_or_insert_with(|| reply.clone());
        self.upstream = Upstream::Closed(reply.clone());
        reply
    }
}

/// No transaction ends without its line, not even one that is dropped with its session.
impl Drop for Transaction {
    fn drop(&mut self) {
        let disposition = if self.dot_sent { Disposition::Unknown } else { Disposition::Aborted };
        self.record(disposition, None, "");
    }
}
