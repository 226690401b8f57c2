//! From MAIL to the last RCPT.

use std::sync::Arc;

use super::Driver;
use crate::{
    proto::{
        command::Command,
        envelope::Envelope,
        param::MailParams,
        path::{ForwardPath, ReversePath},
    },
    relay::transaction::{Origin, Transaction},
    telemetry::metrics::SessionOutcome,
};

impl Driver {
    pub(super) async fn mail(
        &mut self,
        path: ReversePath,
        params: MailParams,
    ) -> Result<(), SessionOutcome> {
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

    /// What MAIL says besides and nobody understands harms nobody; an operator may wonder (devices.md row 15).
    pub(super) fn tell_ignored(&self, line: &[u8]) {
        let ignored = Command::ignored(line);
        if !ignored.is_empty() && self.relay.ignored.is_first(self.peer) {
            let listener = &self.door.listener.name;
            tracing::info!(
                device = %self.device, listener, parameters = ?ignored,
                "parameters of MAIL are ignored; this is told once of each device"
            );
        }
    }

    pub(super) async fn rcpt(&mut self, path: ForwardPath) -> Result<(), SessionOutcome> {
        let Some(transaction) = &mut self.transaction else { return Ok(()) };
        let reply = transaction.rcpt(path.clone()).await;
        if reply.code.is_positive() {
            self.session.rcpt_accepted(path);
        }
        self.say(&reply).await
    }
}
