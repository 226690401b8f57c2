//! Drives one device's session: reads what it sends, asks [`proto::session`](crate::proto::session) what it
//! means, does it, and answers. `secure` has what comes before the greeting and the handshake, `login` who the device
//! is, `envelope` what MAIL and RCPT begin, `data` and `keep` what begins with DATA.

mod data;
mod envelope;
mod keep;
mod login;
mod secure;

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use tokio::time::{Instant, error::Elapsed, timeout};
use tokio_util::codec::Framed;

use super::{
    Door, Relay, answer, devices::Terms, mailboxes::Mailbox, pace, transaction::Transaction,
};
use crate::{
    codec::server::{ServerCodec, ServerItem},
    policy::{DeviceAuth, ListenerTls, Profile, sender::Rewrite},
    proto::{
        reply::{Enhanced, Reply},
        session::{Features, Offer, Session, Step},
    },
    telemetry::{
        maillog::Disposition,
        metrics::{DeviceFault, Limit, SessionOutcome},
        transcript::{Transcript, Voice},
    },
    transport::stream::{BoxIo, TlsInfo},
};

/// Room for commands and replies of an idle session.
const BUFFER: usize = 1024;
/// Replies that are written at once at the latest.
const FLUSH_AT: usize = 8 * 1024;
/// Refusals of one session that the log tells of.
const TOLD: u32 = 20;
/// Items that are served in a row. Whoever has more of them ready lets the others have their turn: a few hundred
/// devices that pipeline without end would keep each of the others waiting for seconds at every command.
const TURN: u32 = 16;
/// How long a device may refuse to take a reply.
const WRITE: Duration = Duration::from_secs(60);
/// A session that hands in no message ends after so many idle time-outs, whatever it says meanwhile.
const QUIET: u32 = 6;

/// Serves a device from its first octet to its last. `id` names the session in the log.
pub async fn serve(
    io: BoxIo,
    peer: IpAddr,
    id: String,
    door: Arc<Door>,
    relay: Arc<Relay>,
) -> SessionOutcome {
    let peer = peer.to_canonical();
    let profile = relay.devices.profile(peer, &door.listener.profile);
    let without = profile.without_starttls();
    let without =
        without.filter(|_| relay.roster.withholds_starttls(peer, profile.starttls_fallback));
    let (withheld, profile) = (without.is_some(), without.unwrap_or(profile));
    let implicit = profile.tls == ListenerTls::Implicit;
    let mut driver = Driver {
        framed: framed(io, ServerCodec::in_plaintext()),
        session: Session::new(features(&profile, &relay), implicit),
        tls: None,
        transaction: None,
        count: 0,
        commands: 0,
        quiet: Instant::now(),
        refusals: 0,
        served: 0,
        wary: false,
        device: peer.to_string().into(),
        counted_as: Arc::default(),
        bound: None,
        terms: Terms::default(),
        profile,
        peer,
        transcript: relay.transcripts.begin(),
        id,
        door,
        relay,
    };
    driver.bind(None);
    if !driver.door.listener.allow.allows(peer) {
        tracing::warn!(device = %driver.peer, listener = driver.door.listener.name, "address not allowed");
        if !implicit {
            let _ = driver.farewell(&answer::not_allowed()).await;
        }
        return SessionOutcome::Refused;
    }
    if withheld {
        driver.fault(DeviceFault::StartTlsWithheld);
        tracing::info!(
            device = %driver.device, listener = driver.door.listener.name,
            "STARTTLS is not offered: a handshake with this device has failed within starttls_fallback, and none has \
             come about before; to make that lasting, write [[device]] with its address and hide = [\"STARTTLS\"]"
        );
    }
    let outcome = match Box::pin(driver.open()).await {
        Ok(()) => match driver.run().await {
            Ok(never) => match never {},
            Err(outcome) => outcome,
        },
        Err(outcome) => outcome,
    };
    // Transactions have kept theirs.
    if matches!(outcome, SessionOutcome::Faulty | SessionOutcome::TlsFailed) {
        driver.relay.transcripts.keep(&driver.id, &driver.transcript, true);
    }
    outcome
}

enum Never {}

struct Driver {
    framed: Framed<BoxIo, ServerCodec>,
    session: Session,
    tls: Option<TlsInfo>,
    transaction: Option<Transaction>,
    /// Transactions so far.
    count: u32,
    /// Lines since the last message.
    commands: usize,
    /// When the last message was handed in, or the session began.
    quiet: Instant,
    /// What was refused so far.
    refusals: u32,
    /// Items in a row that did not have to be waited for.
    served: u32,
    /// DATA was refused just now: whatever is no command may be mail data.
    wary: bool,
    /// How the device is served.
    profile: Profile,
    peer: IpAddr,
    /// Its name, or its address.
    device: Arc<str>,
    /// Whose quota its messages count in.
    counted_as: Arc<str>,
    /// What its mail goes through, and nothing else.
    bound: Option<Arc<Mailbox>>,
    /// What its own entries say.
    terms: Terms,
    /// Where what is said is written down.
    transcript: Transcript,
    id: String,
    door: Arc<Door>,
    relay: Arc<Relay>,
}

impl Driver {
    async fn run(&mut self) -> Result<Never, SessionOutcome> {
        let greeting = self.session.greeting();
        self.say(&greeting).await?;
        loop {
            self.session.set_smarthost(self.relay.mailboxes.offer(self.bound.as_ref()));
            let step = match self.command().await? {
                ServerItem::Line(line) => {
                    // What follows a refused DATA may be mail data.
                    let secret = self.wary || self.session.awaits_secret();
                    self.transcript.device_line(&line, secret);
                    let step = self.session.line(&line);
                    if matches!(step, Step::Mail(..)) {
                        self.tell_ignored(&line);
                    }
                    step
                }
                ServerItem::LineTooLong => {
                    self.transcript.say(Voice::Device, "(a line that is too long)");
                    self.session.line_too_long()
                }
                ServerItem::ClientHello => return Err(self.tls_at_once()),
                // Outside DATA the codec cuts lines only.
                ServerItem::Data(_) | ServerItem::DataFault(_) | ServerItem::DataEnd { .. } => {
                    continue;
                }
            };
            self.commands += 1;
            if self.commands > self.relay.limits.commands {
                self.limited(Limit::Commands);
                self.abort();
                self.farewell(&answer::too_many_commands()).await?;
                return Err(SessionOutcome::Faulty);
            }
            // Boxed, so that an idle session has no room for the work of a busy one.
            Box::pin(self.act(step)).await?;
            // RSET, EHLO and the like end a transaction behind our back.
            if self.session.envelope().is_none() {
                self.abort();
            }
        }
    }

    async fn act(&mut self, step: Step) -> Result<(), SessionOutcome> {
        let wary = std::mem::take(&mut self.wary);
        match step {
            Step::Reply(reply) => {
                if reply.code.is_permanent() {
                    self.fault(DeviceFault::BadCommand);
                }
                if let Some(limit) = limit_of(&reply) {
                    self.limited(limit);
                }
                if wary && reply.code.get() == 500 {
                    self.fault(DeviceFault::EarlyTalk);
                    self.farewell(&reply).await?;
                    return Err(SessionOutcome::Faulty);
                }
                // Rubbish is no wish that was refused (devices.md row 18).
                if reply.code.get() > 400 && reply.code.get() != 500 {
                    self.tell("refused", &reply);
                }
                self.say(&reply).await?;
            }
            Step::DataRefused(reply) => self.data_refused(reply).await?,
            Step::Close(reply) => {
                let quit = reply.code.is_positive();
                if !quit {
                    self.limited(Limit::Errors);
                }
                self.abort();
                self.farewell(&reply).await?;
                return Err(if quit { SessionOutcome::Quit } else { SessionOutcome::Faulty });
            }
            Step::StartTls(reply) => {
                self.abort();
                let Some(place) = self.relay.handshakes.place(self.peer).await else {
                    self.limited(Limit::Handshakes);
                    return self.say(&answer::too_many_handshakes()).await;
                };
                self.say(&reply).await?;
                return self.secure(place).await;
            }
            Step::Login(credentials) => self.login(credentials).await?,
            Step::Mail(path, params) => self.mail(path, params).await?,
            Step::Rcpt(path) => self.rcpt(path).await?,
            Step::Data => self.data().await?,
        }
        Ok(())
    }

    /// The next command. A connection to the smarthost is not held for a device that says nothing.
    async fn command(&mut self) -> Result<ServerItem, SessionOutcome> {
        if let Some(held) = self.transaction.as_ref().and_then(Transaction::holds_lease_since) {
            match (self.next(pace::SILENCE.saturating_sub(held)).await, &mut self.transaction) {
                (Err(SessionOutcome::TimedOut), Some(transaction)) => transaction.take_back(),
                (read, Some(transaction)) if held >= pace::SILENCE => {
                    // It talks, but does not move.
                    transaction.take_back();
                    return read;
                }
                (read, _) => return read,
            }
        }
        let (wait, limit) = self.patience();
        let read = self.next(wait).await;
        match read {
            Err(SessionOutcome::TimedOut) => {
                self.limited(limit);
                self.abort();
                self.farewell(&answer::timed_out()).await?;
            }
            Err(SessionOutcome::Drained) => self.farewell(&answer::stopping()).await?,
            Err(_) => self.abort(),
            Ok(_) => {}
        }
        read
    }

    /// How long the next command is waited for, and what it has exceeded that comes later.
    fn patience(&self) -> (Duration, Limit) {
        let limits = &self.relay.limits;
        let Some(transaction) = &self.transaction else {
            let left = (limits.idle_timeout * QUIET).saturating_sub(self.quiet.elapsed());
            return (left.min(limits.idle_timeout), Limit::Idle);
        };
        let left = limits.transaction_timeout.saturating_sub(transaction.began.elapsed());
        if left < limits.command_timeout {
            (left, Limit::Transaction)
        } else {
            (limits.command_timeout, Limit::Command)
        }
    }

    /// A message was accepted: the session is of use.
    fn accepted(&mut self) {
        self.commands = 0;
        self.quiet = Instant::now();
    }

    /// What the device sends next. Replies are written when there is nothing left to read: a pipelining
    /// device gets them in one packet.
    async fn next(&mut self, wait: Duration) -> Result<ServerItem, SessionOutcome> {
        self.served += 1;
        if self.served >= TURN {
            self.served = 0;
            tokio::task::yield_now().await;
        }
        let read = match self.framed.next().now_or_never() {
            Some(read) => read,
            None => {
                self.served = 0;
                self.flush().await?;
                tokio::select! {
                    biased;
                    read = self.framed.next() => read,
                    () = self.relay.drain.cancelled(), if self.transaction.is_none() => {
                        return Err(SessionOutcome::Drained);
                    }
                    () = tokio::time::sleep(wait) => return Err(SessionOutcome::TimedOut),
                }
            }
        };
        match read {
            Some(Ok(item)) => Ok(item),
            Some(Err(_)) | None => Err(SessionOutcome::Closed),
        }
    }

    /// Says in the log what a device is refused and why, so that an operator finds what the help desk asks about.
    fn tell(&mut self, what: &'static str, reply: &Reply) {
        self.refusals += 1;
        if self.refusals <= TOLD {
            let listener = &self.door.listener.name;
            tracing::warn!(device = %self.device, address = %self.peer, listener, %reply, "{what}");
        }
    }

    async fn say(&mut self, reply: &Reply) -> Result<(), SessionOutcome> {
        self.transcript.say(Voice::ToDevice, reply);
        self.feed(reply).await
    }

    async fn feed(&mut self, reply: &Reply) -> Result<(), SessionOutcome> {
        tracing::trace!(%reply, "to the device");
        let fed = timeout(WRITE, self.framed.feed(reply)).await;
        self.written(fed)
    }

    async fn flush(&mut self) -> Result<(), SessionOutcome> {
        let flushed = timeout(WRITE, self.framed.flush()).await;
        self.written(flushed)
    }

    /// A device that does not take replies any more is given up.
    fn written(&mut self, written: Result<io::Result<()>, Elapsed>) -> Result<(), SessionOutcome> {
        if written.is_err() {
            self.limited(Limit::Reply);
        }
        if let Ok(Ok(())) = written {
            return Ok(());
        }
        self.abort();
        Err(SessionOutcome::Closed)
    }

    /// The last reply of a session.
    async fn farewell(&mut self, reply: &Reply) -> Result<(), SessionOutcome> {
        self.say(reply).await?;
        let _ = timeout(WRITE, self.framed.close()).await;
        Ok(())
    }

    /// Ends a transaction that came to no data.
    fn abort(&mut self) {
        let Some(mut transaction) = self.transaction.take() else { return };
        transaction.cancel();
        let refusal = transaction.reply.clone().filter(|reply| !reply.code.is_positive());
        let disposition =
            if refusal.is_some() { Disposition::Refused } else { Disposition::Aborted };
        transaction.record(disposition, refusal.as_ref(), "");
    }

    /// Counts that the device met a limit.
    fn limited(&self, limit: Limit) {
        self.relay.metrics.limited(&self.door.listener.name, limit);
    }

    /// Counts what the device did wrong; returns its name.
    fn fault(&self, fault: DeviceFault) -> &'static str {
        self.relay.metrics.device_fault(&self.door.listener.name, fault);
        self.relay.roster.fault(self.peer, &self.device, fault);
        fault.as_str()
    }
}

fn framed(io: BoxIo, codec: ServerCodec) -> Framed<BoxIo, ServerCodec> {
    let mut framed = Framed::with_capacity(io, codec, BUFFER);
    framed.set_backpressure_boundary(FLUSH_AT);
    framed
}

/// The limit that a reply of the session tells of.
fn limit_of(reply: &Reply) -> Option<Limit> {
    match (reply.code.get(), reply.enhanced) {
        (452, Some(Enhanced(4, 5, 3))) => Some(Limit::Recipients),
        (500, Some(Enhanced(5, 5, 6))) => Some(Limit::Line),
        _ => None,
    }
}

fn features(profile: &Profile, relay: &Relay) -> Features {
    Features {
        hostname: relay.hostname.clone(),
        message_size: relay.limits.message_size,
        recipients: relay.limits.recipients,
        starttls: match profile.tls {
            ListenerTls::None | ListenerTls::Implicit => Offer::No,
            ListenerTls::StartTls | ListenerTls::Auto => Offer::Yes,
            ListenerTls::RequireStartTls => Offer::Required,
        },
        auth: match profile.auth {
            DeviceAuth::None => Offer::No,
            DeviceAuth::Offer => Offer::Yes,
            DeviceAuth::Require => Offer::Required,
        },
        auth_without_tls: profile.auth_without_tls,
        any_sender: relay.mailboxes.rewrite() == Rewrite::Mailbox,
        hide: profile.hide.clone(),
    }
}
