//! Drives one device's session: reads what it sends, asks [`proto::session`](crate::proto::session) what it
//! means, does it, and answers. `secure` has the handshake, `login` who the device is, `envelope` what MAIL and RCPT
//! begin, `data` and `keep` what begins with DATA.

mod data;
mod envelope;
mod keep;
mod login;
mod secure;

use std::{net::IpAddr, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use tokio::time::timeout;
use tokio_util::codec::Framed;

use super::{Door, Relay, answer, mailboxes::Mailbox, pace, transaction::Transaction};
use crate::{
    codec::server::{ServerCodec, ServerItem},
    policy::{DeviceAuth, ListenerTls, Profile},
    proto::{
        reply::Reply,
        session::{Features, Offer, Session, Step},
    },
    telemetry::{
        maillog::Disposition,
        metrics::{DeviceFault, SessionOutcome},
        transcript::{Transcript, Voice},
    },
    transport::stream::{BoxIo, TlsInfo},
};

/// Room for commands and replies of an idle session.
const BUFFER: usize = 1024;
/// Replies that are written at once at the latest.
const FLUSH_AT: usize = 8 * 1024;
/// Items that are served in a row. Whoever has more of them ready lets the others have their turn: a few hundred
/// devices that pipeline without end would keep each of the others waiting for seconds at every command.
const TURN: u32 = 16;
/// How long a device may refuse to take a reply.
const WRITE: Duration = Duration::from_secs(60);

/// Serves a device from its first octet to its last. `id` names the session in the log.
pub async fn serve(
    io: BoxIo,
    peer: IpAddr,
    id: String,
    door: Arc<Door>,
    relay: Arc<Relay>,
) -> SessionOutcome {
    let peer = peer.to_canonical();
    let device = relay.devices.at(peer);
    let profile = device.map_or_else(
        || door.listener.profile.clone(),
        |device| door.listener.profile.with(&device.profile),
    );
    let implicit = profile.tls == ListenerTls::Implicit;
    let mut driver = Driver {
        framed: framed(io),
        session: Session::new(features(&profile, &relay), implicit),
        tls: None,
        transaction: None,
        count: 0,
        served: 0,
        wary: false,
        device: match device {
            Some(device) => device.name.as_str().into(),
            None => peer.to_string().into(),
        },
        bound: None,
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
    let served = if implicit { Box::pin(driver.secure()).await } else { Ok(()) };
    let outcome = match served {
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
    /// Items in a row that did not have to be waited for.
    served: u32,
    /// DATA was refused just now: whatever is no command may be mail data.
    wary: bool,
    /// How the device is served.
    profile: Profile,
    peer: IpAddr,
    /// Its name, or its address.
    device: Arc<str>,
    /// What its mail goes through, and nothing else.
    bound: Option<Arc<Mailbox>>,
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
                // Outside DATA the codec cuts lines only.
                ServerItem::Data(_) | ServerItem::DataFault(_) | ServerItem::DataEnd { .. } => {
                    continue;
                }
            };
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
                if wary && reply.code.get() == 500 {
                    self.fault(DeviceFault::EarlyTalk);
                    self.farewell(&reply).await?;
                    return Err(SessionOutcome::Faulty);
                }
                self.say(&reply).await?;
            }
            Step::DataRefused(reply) => self.data_refused(reply).await?,
            Step::Close(reply) => {
                let quit = reply.code.is_positive();
                self.abort();
                self.farewell(&reply).await?;
                return Err(if quit { SessionOutcome::Quit } else { SessionOutcome::Faulty });
            }
            Step::StartTls(reply) => {
                self.abort();
                self.say(&reply).await?;
                return self.secure().await;
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
        let limits = &self.relay.limits;
        let wait =
            if self.transaction.is_some() { limits.command_timeout } else { limits.idle_timeout };
        let read = self.next(wait).await;
        match read {
            Err(SessionOutcome::TimedOut) => {
                self.abort();
                self.farewell(&answer::timed_out()).await?;
            }
            Err(SessionOutcome::Drained) => self.farewell(&answer::stopping()).await?,
            Err(_) => self.abort(),
            Ok(_) => {}
        }
        read
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

    async fn say(&mut self, reply: &Reply) -> Result<(), SessionOutcome> {
        self.transcript.say(Voice::ToDevice, reply);
        self.feed(reply).await
    }

    async fn feed(&mut self, reply: &Reply) -> Result<(), SessionOutcome> {
        tracing::trace!(%reply, "to the device");
        match timeout(WRITE, self.framed.feed(reply)).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(self.gone()),
        }
    }

    async fn flush(&mut self) -> Result<(), SessionOutcome> {
        match timeout(WRITE, self.framed.flush()).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(self.gone()),
        }
    }

    /// The last reply of a session.
    async fn farewell(&mut self, reply: &Reply) -> Result<(), SessionOutcome> {
        self.say(reply).await?;
        let _ = timeout(WRITE, self.framed.close()).await;
        Ok(())
    }

    /// The device does not take replies any more.
    fn gone(&mut self) -> SessionOutcome {
        self.abort();
        SessionOutcome::Closed
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

    /// Counts what the device did wrong; returns its name.
    fn fault(&self, fault: DeviceFault) -> &'static str {
        self.relay.metrics.device_fault(&self.door.listener.name, fault);
        fault.as_str()
    }
}

fn framed(io: BoxIo) -> Framed<BoxIo, ServerCodec> {
    let mut framed = Framed::with_capacity(io, ServerCodec::new(), BUFFER);
    framed.set_backpressure_boundary(FLUSH_AT);
    framed
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
        hide: profile.hide.clone(),
    }
}
