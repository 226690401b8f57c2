//! The TLS handshake with a device.

use std::time::Duration;

use tokio::time::timeout;

use super::{Driver, framed};
use crate::{
    telemetry::{
        metrics::{DeviceFault, Limit, SessionOutcome},
        transcript::Voice,
    },
    transport::handshakes::Place,
};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(30);

impl Driver {
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

    /// A handshake. It ends when somebody else needs its place more.
    pub(super) async fn secure(&mut self, place: Place) -> Result<(), SessionOutcome> {
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
        let tls = self.door.tls.get(&self.profile.tls_profile);
        let Some(tls) = tls.map(|tls| tls.borrow().clone()) else {
            return Err(SessionOutcome::TlsFailed);
        };
        let failed = |fault: String| {
            self.transcript.say(Voice::Note, format_args!("TLS handshake failed: {fault}"));
            tracing::warn!(device = %self.peer, listener, %fault, "TLS handshake failed");
            self.relay.metrics.handshake(listener, None);
            self.relay.metrics.device_fault(listener, DeviceFault::TlsFailed);
            SessionOutcome::TlsFailed
        };
        let accepted = tokio::select! {
            biased;
            accepted = timeout(HANDSHAKE, tls.accept(parts.io)) => accepted,
            () = place.given_up() => {
                self.limited(Limit::Handshakes);
                return Err(failed("too slow while others wait".to_owned()));
            }
        };
        drop(place);
        let (io, info) = match accepted {
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
}
