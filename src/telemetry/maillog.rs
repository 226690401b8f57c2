//! One line a transaction, with everything that an operator asks for first.

use std::time::Duration;

use crate::proto::{envelope::Envelope, path::ForwardPath, reply::Reply};

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// The smarthost has taken it.
    Relayed,
    /// The spool has it.
    Queued,
    /// It was refused, for good or for now.
    Refused,
    /// The device gave it up or vanished.
    Aborted,
    /// The dot was sent and no answer came.
    Unknown,
}

/// The facts of one transaction.
#[derive(Debug)]
pub struct Record<'a> {
    /// The transaction's id, also in the reply and in the Received field.
    pub id: &'a str,
    /// The device's address or name.
    pub device: &'a str,
    /// The listener's name.
    pub listener: &'a str,
    /// `version/cipher`, or `plain`.
    pub tls: &'a str,
    /// The mailbox that it went through.
    pub mailbox: &'a str,
    /// The reverse-path as sent.
    pub sender: &'a str,
    /// The envelope as received.
    pub envelope: &'a Envelope,
    /// Recipients that were refused, with the smarthost's replies.
    pub refused: &'a [(ForwardPath, Reply)],
    /// Octets of mail data.
    pub bytes: u64,
    /// What became of it.
    pub disposition: Disposition,
    /// The smarthost's last reply, or ours where it had no say.
    pub reply: Option<&'a Reply>,
    /// What the device heard in the end.
    pub answer: Option<&'a Reply>,
    /// The rule that knew it; empty if it is ours.
    pub rule: &'a str,
    /// Why the spool has it; empty if it has not.
    pub reason: &'a str,
    /// `host message-id` of the smarthost.
    pub upstream: &'a str,
    /// How long a lease was waited for.
    pub wait: Duration,
    /// From MAIL to the last answer.
    pub relay: Duration,
    /// How often the smarthost was asked for this message.
    pub attempts: u32,
    /// What was mended in the data.
    pub faults: &'a str,
}

impl Disposition {
    /// The name in logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Relayed => "relayed",
            Self::Queued => "queued",
            Self::Refused => "refused",
            Self::Aborted => "aborted",
            Self::Unknown => "unknown",
        }
    }
}

impl Record<'_> {
    /// Writes the line.
    pub fn write(&self) {
        let recipients: Vec<&str> =
            self.envelope.recipients.iter().map(ForwardPath::as_str).collect();
        let refused: Vec<String> = self
            .refused
            .iter()
            .map(|(path, reply)| format!("{}: {reply}", path.as_str()))
            .collect();
        tracing::info!(
            id = self.id,
            device = self.device,
            listener = self.listener,
            tls = self.tls,
            mailbox = self.mailbox,
            from = self.envelope.reverse_path.as_str(),
            sender = self.sender,
            recipients = recipients.join(","),
            refused = refused.join(", "),
            bytes = self.bytes,
            result = self.disposition.as_str(),
            reply = self.reply.map(Reply::to_string).unwrap_or_default(),
            answer = self.answer.map(Reply::to_string).unwrap_or_default(),
            rule = self.rule,
            reason = self.reason,
            upstream = self.upstream,
            wait_ms = self.wait.as_millis() as u64,
            relay_ms = self.relay.as_millis() as u64,
            attempts = self.attempts,
            faults = self.faults,
            "message"
        );
    }
}
