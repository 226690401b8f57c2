//! From MAIL to the last RCPT.

use std::sync::{Arc, PoisonError};

use super::Driver;
use crate::{
    policy::household,
    proto::{
        command::Command,
        envelope::Envelope,
        param::MailParams,
        path::{ForwardPath, ReversePath},
    },
    relay::{
        answer,
        transaction::{Origin, Transaction},
    },
    telemetry::metrics::{Limit, SessionOutcome},
};

impl Driver {
    pub(super) async fn mail(
        &mut self,
        path: ReversePath,
        params: MailParams,
    ) -> Result<(), SessionOutcome> {
        // Reports of what became of messages have no sender, and go from everywhere (RFC 5321 section 4.5.5).
        if let Some(senders) = self.terms.senders()
            && path != ReversePath::Null
            && !senders.hold(path.as_str())
        {
            let reply = answer::sender_not_allowed(&self.device, path.as_str());
            self.tell("sender not allowed", &reply);
            return self.say(&reply).await;
        }
        let used = match self.relay.quotas.message(&self.counted_as) {
            Ok(used) => used,
            Err(exceeded) => {
                let reply = answer::messages_spent(&exceeded);
                self.tell("too many messages", &reply);
                self.limited(Limit::MessagesPerDevice);
                return self.say(&reply).await;
            }
        };
        if let Some(hello) = self.session.hello() {
            let mut crowd = self.relay.crowd.lock().unwrap_or_else(PoisonError::into_inner);
            crowd.note(self.peer, &hello.name);
        }
        self.count += 1;
        let envelope = Envelope { reverse_path: path.clone(), params, recipients: Vec::new() };
        let origin = Origin {
            relay: Arc::clone(&self.relay),
            door: Arc::clone(&self.door),
            peer: self.peer,
            device: Arc::clone(&self.device),
            bound: self.bound.clone(),
            terms: self.terms.clone(),
            tls: self.tls.clone(),
            transcript: self.transcript.clone(),
        };
        let id = format!("{}.{}", self.id, self.count);
        match Transaction::new(id, envelope, origin) {
            Ok(mut transaction) => {
                transaction.used = Some(used);
                self.transaction = Some(transaction);
                let reply = self.session.mail_accepted(path, params);
                self.say(&reply).await
            }
            Err(reply) => {
                self.tell("refused", &reply);
                self.say(&reply).await
            }
        }
    }

    /// What MAIL says besides and nobody understands harms nobody; an operator may wonder (devices.md row 15).
    pub(super) fn tell_ignored(&self, line: &[u8]) {
        let ignored = Command::ignored(line);
        if !ignored.is_empty() && self.relay.ignored.is_first(household(self.peer)) {
            let listener = &self.door.listener.name;
            tracing::info!(
                device = %self.device, listener, parameters = ?ignored,
                "parameters of MAIL are ignored; this is told once of each device"
            );
        }
    }

    pub(super) async fn rcpt(&mut self, path: ForwardPath) -> Result<(), SessionOutcome> {
        let Some(transaction) = &mut self.transaction else { return Ok(()) };
        if let Some(recipients) = self.terms.recipients()
            && !recipients.hold(path.as_str())
        {
            let reply = answer::recipient_not_allowed(&self.device, path.as_str());
            transaction.refused.push((path, reply.clone()));
            self.tell("recipient not allowed", &reply);
            return self.say(&reply).await;
        }
        if let Some(used) = &mut transaction.used
            && let Err(exceeded) = used.recipient()
        {
            let reply = answer::recipients_spent(&exceeded);
            transaction.refused.push((path, reply.clone()));
            self.tell("too many recipients", &reply);
            self.limited(Limit::RecipientsPerDevice);
            return self.say(&reply).await;
        }
        let reply = transaction.rcpt(path.clone()).await;
        if reply.code.is_positive() {
            self.session.rcpt_accepted(path);
        } else if let Some(used) = &mut transaction.used {
            used.recipient_refused();
        }
        self.say(&reply).await
    }
}
