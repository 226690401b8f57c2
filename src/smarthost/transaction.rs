//! A transaction on a leased connection. The compiler keeps the order:
//!
//! ```text
//! Lease ──mail()──► MailTransaction ──data()──► DataTransfer ──end()──► verdict
//!   ▲                    │ cancel()                                        │
//!   └────────────────────┴──────────────── parked ◄────────────────────────┘
//! ```
//!
//! Dropping any of them closes the connection, without a dot.

use std::time::Duration;

use bytes::Bytes;

use super::{connection::Lost, pool::Lease};
use crate::proto::{
    client::{Stage, mail_command, rcpt_command},
    command::Command,
    envelope::Envelope,
    path::ForwardPath,
    reply::{Enhanced, Reply},
};

/// MAIL was accepted.
pub struct MailTransaction {
    lease: Lease,
    /// It said SMTPUTF8.
    smtputf8: bool,
}

/// 354 was said: data may flow.
pub struct DataTransfer {
    lease: Lease,
}

/// Why a step was not made.
#[derive(Debug)]
pub enum StepError {
    /// The smarthost said no; the connection is kept if it still is of use.
    Refused(Stage, Reply),
    /// The connection broke and is closed.
    Lost(Lost),
}

impl From<Lost> for StepError {
    fn from(lost: Lost) -> Self {
        Self::Lost(lost)
    }
}

impl Lease {
    /// Begins a transaction: MAIL and the first RCPT in one flight, RSET in front from the connection's
    /// second transaction on. Returns the reply to that RCPT. `added` octets will come on top of the
    /// size that the device declared; `wait` is for each reply. What the smarthost cannot be asked, since it
    /// needs an SMTPUTF8 that is not offered, is refused here.
    pub async fn mail(
        mut self,
        envelope: &Envelope,
        first: &ForwardPath,
        added: u64,
        wait: Duration,
    ) -> Result<(MailTransaction, Reply), StepError> {
        let connection = self.connection_mut();
        let mail = mail_command(envelope, first.is_ascii(), connection.capabilities(), added);
        let Some(mail) = mail else {
            return Err(self.refused(Stage::Mail, outside_ascii()));
        };
        let smtputf8 = matches!(&mail, Command::Mail(_, params) if params.smtputf8);
        let rcpt = rcpt_command(first, smtputf8);
        let flight = |mail: &Command| [Some(mail.clone()), rcpt.clone()].into_iter().flatten();
        let unasked = || rcpt.is_none().then(outside_ascii);
        let reset = connection.is_used();
        connection.count_transaction();
        let bare = Command::Mail(envelope.reverse_path.clone(), Default::default());
        let commands: Vec<_> =
            reset.then_some(Command::Rset).into_iter().chain(flight(&mail)).collect();
        let mut replies = connection.exchange(&commands, wait).await?.into_iter();
        if reset && let Some(reply) = replies.next().filter(|reply| !reply.code.is_positive()) {
            // Not parked: a connection that cannot forget is of no use.
            return Err(StepError::Refused(Stage::Rset, reply));
        }
        let mut answers = (replies.next(), replies.next().or_else(unasked));
        // Some of Exchange Online's back ends do not know the parameters that its front end offers.
        if let (Some(reply), Some(_)) = &answers
            && reply.code.get() == 502
            && mail != bare
        {
            let commands: Vec<_> = flight(&bare).collect();
            let mut replies = self.connection_mut().exchange(&commands, wait).await?.into_iter();
            answers = (replies.next(), replies.next().or_else(unasked));
        }
        match answers {
            (Some(mail), Some(rcpt)) if mail.code.get() == 250 => {
                Ok((MailTransaction { lease: self, smtputf8 }, rcpt))
            }
            (Some(mail), _) => Err(self.refused(Stage::Mail, mail)),
            (None, _) => Err(self.refused(Stage::Mail, Reply::new(421, None, "closing"))),
        }
    }

    fn refused(self, stage: Stage, reply: Reply) -> StepError {
        self.park_after(&reply);
        StepError::Refused(stage, reply)
    }

    /// Keeps the connection after a refusal; after a yes that answers nothing the step is lost.
    fn park_after(self, reply: &Reply) {
        if reply.code.is_transient() || reply.code.is_permanent() {
            self.park();
        }
    }
}

/// The refusal of an address that the smarthost may not be asked about (RFC 6531 section 3.5).
fn outside_ascii() -> Reply {
    Reply::new(
        553,
        Enhanced(5, 6, 7),
        "the smarthost takes no address outside ASCII here: use another, or name it as the first recipient",
    )
}

impl MailTransaction {
    /// Names one more recipient.
    pub async fn rcpt(&mut self, recipient: &ForwardPath, wait: Duration) -> Result<Reply, Lost> {
        let Some(rcpt) = rcpt_command(recipient, self.smtputf8) else { return Ok(outside_ascii()) };
        let replies = self.lease.connection_mut().exchange(&[rcpt], wait).await?;
        Ok(replies.into_iter().next().unwrap_or_else(|| Reply::new(421, None, "closing")))
    }

    /// Asks to send the data.
    pub async fn data(mut self, wait: Duration) -> Result<DataTransfer, StepError> {
        let replies = self.lease.connection_mut().exchange(&[Command::Data], wait).await?;
        match replies.into_iter().next() {
            Some(reply) if reply.code.get() == 354 => Ok(DataTransfer { lease: self.lease }),
            Some(reply) => Err(self.lease.refused(Stage::Data, reply)),
            None => Err(self.lease.refused(Stage::Data, Reply::new(421, None, "closing"))),
        }
    }

    /// Gives the transaction up; the next one on this connection begins with RSET.
    pub fn cancel(self) {
        self.lease.park();
    }
}

impl DataTransfer {
    /// Sends data in wire form.
    pub async fn write(&mut self, chunk: Bytes) -> Result<(), Lost> {
        self.lease.connection_mut().write_data(chunk).await
    }

    /// Sends the final dot and waits for the verdict, which is any reply. An error means that nobody knows.
    pub async fn end(mut self, wait: Duration) -> Result<Reply, Lost> {
        let verdict = self.lease.connection_mut().end_data(wait).await?;
        if verdict.code.get() == 250 {
            self.lease.park();
        } else {
            self.lease.park_after(&verdict);
        }
        Ok(verdict)
    }
}
