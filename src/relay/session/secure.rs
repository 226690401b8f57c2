//! How a session opens, and the TLS handshake with a device.

use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::time::timeout;

use super::{Driver, framed};
use crate::{
    codec::server::{ServerCodec, ServerItem},
    policy::{ClientHello, Finding, ListenerTls},
    proto::first_octets::FirstOctets,
    relay::answer,
    telemetry::{
        metrics::{DeviceFault, Limit, SessionOutcome},
        transcript::Voice,
    },
    transport::{
        handshakes::Place,
        peek::{Peeked, peek},
        server_tls::Accepted,
        stream::BoxIo,
    },
};

/// How long the greeting is kept back: what is sent without waiting for it comes with the connection, or right behind
/// it. Too short for anybody to notice.
const MOMENT: Duration = Duration::from_millis(5);
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(30);

impl Driver {
    /// What comes before the greeting.
    pub(super) async fn open(&mut self) -> Result<(), SessionOutcome> {
        match self.profile.tls {
            ListenerTls::Implicit => self.secure_at_once().await?,
            ListenerTls::Auto => self.wait_for_hello().await?,
            ListenerTls::None | ListenerTls::StartTls | ListenerTls::RequireStartTls => {}
        }
        self.nothing_came_yet().await
    }

    /// A device that means implicit TLS speaks first; one that waits is greeted.
    async fn wait_for_hello(&mut self) -> Result<(), SessionOutcome> {
        let mut io = self.take_io();
        let is_clear = |octets: &[u8]| FirstOctets::of(octets) != FirstOctets::Unclear;
        let front = peek(&mut io, FirstOctets::ENOUGH, self.profile.auto_wait, is_clear).await;
        let first = FirstOctets::of(&front.octets);
        let silent = front.octets.is_empty();
        let io = Peeked::put_back(io, front.octets);
        match first {
            FirstOctets::Unclear if silent && front.closed => Err(SessionOutcome::Closed),
            FirstOctets::Unclear if silent => {
                self.framed = framed(io, ServerCodec::in_plaintext());
                Ok(())
            }
            // No command begins with such an octet.
            FirstOctets::ClientHello | FirstOctets::Unclear => {
                self.framed = framed(io, ServerCodec::new());
                self.secure_at_once().await
            }
            FirstOctets::Other => {
                self.framed = framed(io, ServerCodec::new());
                Err(self.early_talk().await)
            }
        }
    }

    /// A handshake on a connection that begins with one.
    pub(super) async fn secure_at_once(&mut self) -> Result<(), SessionOutcome> {
        match self.relay.handshakes.place(self.peer).await {
            Some(place) => self.secure(place).await,
            None => {
                self.limited(Limit::Handshakes);
                Err(SessionOutcome::Busy)
            }
        }
    }

    /// Whoever talks before the greeting does not listen: what follows may be meant for somebody else (RFC 5321
    /// section 4.3.1).
    async fn nothing_came_yet(&mut self) -> Result<(), SessionOutcome> {
        match timeout(MOMENT, self.framed.next()).await {
            Err(_) if self.framed.read_buffer().is_empty() => Ok(()),
            Ok(None | Some(Err(_))) => Err(SessionOutcome::Closed),
            Ok(Some(Ok(ServerItem::ClientHello))) => Err(self.tls_at_once()),
            Ok(Some(Ok(ServerItem::Line(line)))) if self.is_proxy_header(&line) => {
                let listener = &self.door.listener.name;
                tracing::warn!(
                    device = %self.device, listener,
                    "begins with a PROXY header: if a load balancer has this address, write it into proxy_protocol_from of \
                     this listener (docs/howto/load-balancer.md)"
                );
                Err(self.early_talk().await)
            }
            Err(_) | Ok(Some(Ok(_))) => Err(self.early_talk().await),
        }
    }

    /// Whether a load balancer tells whose connection this is, to somebody who has not listed it.
    fn is_proxy_header(&self, line: &[u8]) -> bool {
        line.starts_with(b"PROXY ")
            || line.is_empty() && self.framed.read_buffer().starts_with(b"\r\n\0\r\nQUIT\n")
    }

    async fn early_talk(&mut self) -> SessionOutcome {
        let listener = &self.door.listener.name;
        tracing::warn!(device = %self.device, listener, "talks before the greeting: refused");
        self.fault(DeviceFault::EarlyTalk);
        match self.farewell(&answer::early_talk()).await {
            Ok(()) => SessionOutcome::Faulty,
            Err(outcome) => outcome,
        }
    }

    /// A ClientHello where a command is expected: nothing that we could say would be understood.
    pub(super) fn tls_at_once(&mut self) -> SessionOutcome {
        self.failed("the device begins TLS where a command is expected", Finding::TlsAtOnce)
    }

    /// A handshake. It ends when somebody else needs its place more.
    pub(super) async fn secure(&mut self, place: Place) -> Result<(), SessionOutcome> {
        self.flush().await?;
        let early = !self.framed.read_buffer().is_empty();
        let io = self.take_io();
        if early {
            // Sent before the handshake, it would count as said after it (RFC 3207 section 6).
            let listener = &self.door.listener.name;
            tracing::warn!(device = %self.device, listener, "bytes before the TLS handshake: closed");
            self.fault(DeviceFault::EarlyTalk);
            return Err(SessionOutcome::Faulty);
        }
        let profile = self.profile.tls_profile;
        let tls = self.door.tls.get(&profile).map(|tls| tls.borrow().clone());
        let Some(tls) = tls else { return Err(SessionOutcome::TlsFailed) };
        let implicit = self.profile.tls == ListenerTls::Implicit;
        let accepted = tokio::select! {
            biased;
            accepted = timeout(HANDSHAKE, tls.accept(io)) => accepted,
            () = place.given_up() => {
                self.limited(Limit::Handshakes);
                return Err(self.failed("too slow while others wait", Finding::Unfinished));
            }
        };
        drop(place);
        let Accepted { io, info, offered } = match accepted {
            Ok(Ok(accepted)) => accepted,
            Ok(Err(fault)) if fault.silent => return Err(SessionOutcome::Closed),
            Ok(Err(fault)) => {
                let offer = fault.offered.as_ref().map(ClientHello::offer);
                let finding = match offer {
                    None if implicit => Finding::NoTls,
                    offer => Finding::Failed(offer, profile),
                };
                if self.profile.tls == ListenerTls::StartTls {
                    self.relay.roster.starttls_failed(self.peer, &self.device);
                }
                return Err(self.failed(&fault.to_string(), finding));
            }
            // That counts against nobody: a cable, a power switch or the path's packet size look the same.
            Err(_) => {
                let fault = format!("not done within {} s", HANDSHAKE.as_secs());
                let finding = if implicit { Finding::NoTls } else { Finding::Unfinished };
                return Err(self.failed(&fault, finding));
            }
        };
        tracing::debug!(device = %self.device, tls = %info, "TLS handshake");
        self.transcript.say(Voice::Note, format_args!("TLS with the device: {info}"));
        self.relay.metrics.handshake(&self.door.listener.name, Some((info.version, &info.cipher)));
        let finding = Finding::Secured(offered.as_ref().map(ClientHello::offer), profile);
        self.relay.roster.found(self.peer, &self.device, finding, Some(&info));
        self.session.secured();
        self.bind(None);
        self.framed = framed(io, ServerCodec::new());
        self.tls = Some(info);
        Ok(())
    }

    /// There is no TLS with this device; what could be done about it goes to the log and the roster.
    fn failed(&self, fault: &str, finding: Finding) -> SessionOutcome {
        let listener = &self.door.listener.name;
        let remedy = finding.advice(self.peer, self.terms.name()).unwrap_or_default();
        self.transcript.say(Voice::Note, format_args!("TLS handshake failed: {fault}"));
        tracing::warn!(device = %self.device, listener, fault, remedy, "TLS handshake failed");
        self.relay.metrics.handshake(listener, None);
        self.fault(DeviceFault::TlsFailed);
        self.relay.roster.found(self.peer, &self.device, finding, None);
        SessionOutcome::TlsFailed
    }

    /// The connection itself, to be framed anew.
    fn take_io(&mut self) -> BoxIo {
        let nothing = framed(Box::new(tokio::io::empty()), ServerCodec::new());
        std::mem::replace(&mut self.framed, nothing).into_parts().io
    }
}
