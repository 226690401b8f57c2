//! The TLS handshake with a device.

use std::time::Duration;

use tokio::time::timeout;

use super::{Driver, framed};
use crate::telemetry::{
    metrics::{DeviceFault, SessionOutcome},
    transcript::Voice,
};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(30);

impl Driver {
    pub(super) async fn secure(&mut self) -> Result<(), SessionOutcome> {
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
}
