//! Drives one device's session: reads what it sends, asks [`proto::session`](crate::proto::session) what it
//! means, does it, and answers. `data` and `keep` have what begins with DATA.

mod data;
mod keep;

use std::{net::IpAddr, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use tokio::time::timeout;
use tokio_util::codec::Framed;

use super::{
    Door, Relay, answer,
    devices::LoggedIn,
    mailboxes::Mailbox,
    pace,
    transaction::{Origin, Transaction},
};
use crate::{
    auth::accounts::{Account, Accounts},
    codec::server::{ServerCodec, ServerItem},
    policy::{DeviceAuth, ListenerTls},
    proto::{
        envelope::Envelope,
        param::MailParams,
        path::{ForwardPath, ReversePath},
        reply::Reply,
        sasl::Credentials,
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
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(30);
/// How long a device may refuse to take a reply.
const WRITE: Duration = Duration::from_secs(60);
/// How long a refused login is kept waiting: guessing is slow.
const REFUSED_LOGIN: Duration = Duration::from_secs(1);

/// Serves a device from its first octet to its last. `id` names the session in the log.
pub async fn serve(
    io: BoxIo,
    peer: IpAddr,
    id: String,
    door: Arc<Door>,
    relay: Arc<Relay>,
) -> SessionOutcome {
    let implicit = door.listener.tls == ListenerTls::Implicit;
    let peer = peer.to_canonical();
    let mut driver = Driver {
        framed: framed(io),
        session: Session::new(features(&door, &relay), implicit),
        tls: None,
        transaction: None,
        count: 0,
        wary: false,
        device: match relay.devices.at(peer) {
            Some(device) => device.name.as_str().into(),
            None => peer.to_string().into(),
        },
        bound: None,
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
    /// DATA was refused just now: whatever is no command may be mail data.
    wary: bool,
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
                    self.session.line(&line)
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

    async fn mail(&mut self, path: ReversePath, params: MailParams) -> Result<(), SessionOutcome> {
        self.count += 1;
        let envelope = Envelope { reverse_path: path.clone(), params, recipients: Vec::new() };
        let origin = Origin {
            relay: Arc::clone(&self.relay),
            door: Arc::clone(&self.door),
            peer: self.peer,
            device: Arc::clone(&self.device),
            bound: self.bound.clone(),
            tls: self.tls.clone(),
            transcript: self.transcript.clone(),
        };
        let id = format!("{}.{}", self.id, self.count);
        match Transaction::new(id, envelope, origin) {
            Ok(transaction) => {
                self.transaction = Some(transaction);
                let reply = self.session.mail_accepted(path, params);
                self.say(&reply).await
            }
            Err(reply) => self.say(&reply).await,
        }
    }

    async fn rcpt(&mut self, path: ForwardPath) -> Result<(), SessionOutcome> {
        let Some(transaction) = &mut self.transaction else { return Ok(()) };
        let reply = transaction.rcpt(path.clone()).await;
        if reply.code.is_positive() {
            self.session.rcpt_accepted(path);
        }
        self.say(&reply).await
    }

    async fn login(&mut self, credentials: Credentials) -> Result<(), SessionOutcome> {
        let (accounts, given) = (self.relay.accounts.clone(), credentials.clone());
        let any = self.door.listener.accept_any_credentials;
        // Argon2 takes its time and memory: not the event loop's, and not for everybody at once.
        let verifying = self.relay.logins.acquire().await;
        let judged = tokio::task::spawn_blocking(move || {
            if any { Some(Account::default()) } else { accept_login(&accounts, &given) }
        });
        let account = judged.await.ok().flatten();
        drop(verifying);
        let accepted = account.is_some();
        if let Some(account) = account {
            self.bind(Some((&credentials.user, account)));
        } else {
            let listener = &self.door.listener.name;
            tracing::warn!(device = %self.peer, listener, user = credentials.user, "login refused");
            tokio::time::sleep(REFUSED_LOGIN).await;
        }
        match self.session.login(credentials, accepted) {
            Step::Close(reply) => {
                self.farewell(&reply).await?;
                Err(SessionOutcome::Faulty)
            }
            Step::Reply(reply) => self.say(&reply).await,
            _ => Ok(()),
        }
    }

    /// Finds out which mailbox the device's mail goes through. A login that names one that is not there any more
    /// binds to none of its own.
    fn bind(&mut self, login: Option<(&str, Account)>) {
        let Relay { mailboxes, devices, .. } = &*self.relay;
        let mailbox = login.as_ref().and_then(|(user, account)| {
            let named = account.mailbox.as_deref()?;
            if mailboxes.find(named).is_none() {
                tracing::warn!(
                    user, mailbox = named,
                    "users_file names a mailbox that is not configured: add [[mailbox]], or correct the line"
                );
            }
            mailboxes.find(named).map(|mailbox| mailbox.address())
        });
        let login = login.as_ref().map(|(user, _)| LoggedIn { user, mailbox });
        if let (None, Some(device)) =
            (devices.at(self.peer), login.and_then(|login| devices.logged_in(login.user)))
        {
            self.device = device.name.as_str().into();
        }
        let bound = devices.mailbox(self.peer, login, self.door.listener.mailbox.as_deref());
        self.bound = bound.and_then(|address| mailboxes.find(address)).cloned();
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
        let read = match self.framed.next().now_or_never() {
            Some(read) => read,
            None => {
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

    async fn secure(&mut self) -> Result<(), SessionOutcome> {
        self.flush().await?;
        let nothing = framed(Box::new(tokio::io::empty()));
        let parts = std::mem::replace(&mut self.framed, nothing).into_parts();
        let listener = &self.door.listener.name;
        if !parts.read_buf.is_empty() {
            // Sent before the handshake, it would count as said after it (RFC 3207 section 6).
            tracing::warn!(device = %self.peer, listener, "bytes before the TLS handshake: closed");
            self.relay.metrics.device_fault(listener, DeviceFault::EarlyTalk);
            return Err(SessionOutcome::Faulty);
        }
        let Some(tls) = self.door.tls.as_ref().map(|tls| tls.borrow().clone()) else {
            return Err(SessionOutcome::TlsFailed);
        };
        let failed = |fault: String| {
            self.transcript.say(Voice::Note, format_args!("TLS handshake failed: {fault}"));
            tracing::warn!(device = %self.peer, listener, %fault, "TLS handshake failed");
            self.relay.metrics.handshake(listener, None);
            self.relay.metrics.device_fault(listener, DeviceFault::TlsFailed);
            SessionOutcome::TlsFailed
        };
        let (io, info) = match timeout(HANDSHAKE, tls.accept(parts.io)).await {
            Ok(Ok(accepted)) => accepted,
            Ok(Err(fault)) if fault.silent => return Err(SessionOutcome::Closed),
            Ok(Err(fault)) => return Err(failed(fault.to_string())),
            Err(_) => return Err(failed(format!("not done within {} s", HANDSHAKE.as_secs()))),
        };
        tracing::debug!(device = %self.peer, tls = %info, "TLS handshake");
        self.transcript.say(Voice::Note, format_args!("TLS with the device: {info}"));
        self.relay.metrics.handshake(listener, Some((info.version, &info.cipher)));
        self.session.secured();
        self.bind(None);
        self.framed = framed(io);
        self.tls = Some(info);
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

fn features(door: &Door, relay: &Relay) -> Features {
    let listener = &door.listener;
    Features {
        hostname: relay.hostname.clone(),
        message_size: relay.limits.message_size,
        recipients: relay.limits.recipients,
        starttls: match listener.tls {
            ListenerTls::None | ListenerTls::Implicit => Offer::No,
            ListenerTls::StartTls => Offer::Yes,
            ListenerTls::RequireStartTls => Offer::Required,
        },
        auth: match listener.auth {
            DeviceAuth::None => Offer::No,
            DeviceAuth::Offer => Offer::Yes,
            DeviceAuth::Require => Offer::Required,
        },
        auth_without_tls: listener.auth_without_tls,
        hide: listener.hide.clone(),
    }
}

/// A users file that went bad refuses everybody, and says so.
fn accept_login(accounts: &Accounts, credentials: &Credentials) -> Option<Account> {
    accounts.accept(credentials).unwrap_or_else(|error| {
        tracing::error!(%error, "nobody can log in");
        None
    })
}
