//! A transaction on a leased connection. The compiler keeps the order:
//!
//! ```text
//! Lease ──mail()──► MailTransaction ──data()──► DataTransfer ──end()──► verdict
//!   ▲ └──────────────────── begin() ───────────────▲                       │
//!   │                    │ cancel()                                        │
//!   └────────────────────┴──────────────── parked ◄────────────────────────┘
//! ```
//!
//! [`Lease::mail`] is for a device that names its recipients one by one, [`Lease::begin`] for an envelope that
//! is known as a whole.
//!
//! Dropping any of them closes the connection, without a dot.

use std::time::Duration;

use bytes::Bytes;

use super::{
    connection::{Lost, LostCause, is_taken},
    pool::Lease,
};
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

/// What came of an envelope.
pub struct Begun {
    /// Data may flow; `None` if no recipient was taken.
    pub transfer: Option<DataTransfer>,
    /// The replies to the recipients, in their order. Each is a yes (250 or 251) or a refusal.
    pub replies: Vec<Reply>,
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
        self,
        envelope: &Envelope,
        first: &ForwardPath,
        added: u64,
        wait: Duration,
    ) -> Result<(MailTransaction, Reply), StepError> {
        let offered = self.connection().capabilities();
        let Some(mail) = mail_command(envelope, first.is_ascii(), offered, added) else {
            return Err(self.refused(Stage::Mail, outside_ascii()));
        };
        let smtputf8 = says_smtputf8(&mail);
        let rcpt = rcpt_command(first, smtputf8);
        let (lease, replies) = self.flight(mail, rcpt, true, wait).await?;
        let reply = replies.into_iter().next().unwrap_or_else(outside_ascii);
        Ok((MailTransaction { lease, smtputf8 }, reply))
    }

    /// Begins a transaction with all recipients of an envelope and asks to send the data: MAIL, every RCPT and
    /// DATA in one flight where `pipelined` and the smarthost allow that, else one by one; RSET in front from the
    /// connection's second transaction on. `added` octets will come on top of the size that the device declared;
    /// `wait` is for each reply. What the smarthost cannot be asked, since it needs an SMTPUTF8 that is not
    /// offered, is refused here.
    pub async fn begin(
        self,
        envelope: &Envelope,
        added: u64,
        wait: Duration,
        pipelined: bool,
    ) -> Result<Begun, StepError> {
        let recipients = &envelope.recipients;
        let offered = self.connection().capabilities();
        let ascii = recipients.iter().all(ForwardPath::is_ascii);
        let Some(mail) = mail_command(envelope, ascii, offered, added) else {
            return Err(self.refused(Stage::Mail, outside_ascii()));
        };
        let smtputf8 = says_smtputf8(&mail);
        let asked: Vec<_> =
            recipients.iter().map(|recipient| rcpt_command(recipient, smtputf8)).collect();
        let commands: Vec<_> = asked.iter().flatten().cloned().collect();
        if commands.is_empty() {
            self.park();
            let replies = recipients.iter().map(|_| outside_ascii()).collect();
            return Ok(Begun { transfer: None, replies });
        }
        let commands = commands.into_iter().chain([Command::Data]);
        let (lease, replies) = self.flight(mail, commands, pipelined, wait).await?;
        let mut answers = replies.into_iter();
        let mut replies = Vec::with_capacity(recipients.len());
        for rcpt in &asked {
            let reply = match rcpt {
                Some(_) => answers.next().unwrap_or_else(closing),
                None => outside_ascii(),
            };
            match reply.code.get() {
                // The others have no answer.
                421 => return Err(lease.refused(Stage::Rcpt, reply)),
                400.. => {}
                _ if is_taken(&reply) => {}
                // A yes that answers nothing.
                _ => return Err(Lost { stage: Stage::Rcpt, cause: LostCause::OutOfStep }.into()),
            }
            replies.push(reply);
        }
        let data = answers.next();
        if !replies.iter().any(is_taken) {
            // A 354 is possible all the same (RFC 2920 section 3.1). It wants a dot, which is not ours to send:
            // a smarthost that takes a message for nobody might take it for somebody. Such a connection is closed.
            match data {
                Some(reply) => lease.park_after(&reply),
                None => lease.park(),
            }
            return Ok(Begun { transfer: None, replies });
        }
        match data.unwrap_or_else(closing) {
            reply if reply.code.get() == 354 => {
                Ok(Begun { transfer: Some(DataTransfer { lease }), replies })
            }
            reply => Err(lease.refused(Stage::Data, reply)),
        }
    }

    /// Sends MAIL and what follows it, with RSET in front if there was a transaction before. Returns the replies
    /// to what follows once MAIL was accepted.
    async fn flight(
        mut self,
        mail: Command,
        following: impl IntoIterator<Item = Command>,
        pipelined: bool,
        wait: Duration,
    ) -> Result<(Self, Vec<Reply>), StepError> {
        let Command::Mail(path, _) = &mail else {
            return Err(self.refused(Stage::Mail, closing()));
        };
        let bare = Command::Mail(path.clone(), Default::default());
        let may_be_bare = mail != bare;
        self.spend();
        let connection = self.connection_mut();
        let reset = connection.is_used();
        connection.count_transaction();
        let mut commands: Vec<_> = reset.then_some(Command::Rset).into_iter().collect();
        commands.push(mail);
        commands.extend(following);
        let mut replies = connection.exchange(&commands, pipelined, wait).await?;
        if reset {
            let reply = replies.remove(0);
            if !reply.code.is_positive() {
                // Not parked: a connection that cannot forget is of no use.
                return Err(StepError::Refused(Stage::Rset, reply));
            }
            commands.remove(0);
        }
        let has = |replies: &[Reply], code| replies.iter().any(|reply| reply.code.get() == code);
        // Some of Exchange Online's back ends do not know the parameters that its front end offers.
        if replies.first().is_some_and(|reply| reply.code.get() == 502)
            && may_be_bare
            && !has(&replies, 421)
            && !has(&replies, 354)
        {
            commands[0] = bare;
            replies = connection.exchange(&commands, pipelined, wait).await?;
        }
        let waits_for_data = has(&replies, 354);
        let mut replies = replies.into_iter();
        match replies.next() {
            Some(mail) if mail.code.get() == 250 => Ok((self, replies.collect())),
            // Not parked: it waits for data that nobody is to send.
            Some(mail) if waits_for_data => Err(StepError::Refused(Stage::Mail, mail)),
            mail => Err(self.refused(Stage::Mail, mail.unwrap_or_else(closing))),
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

fn says_smtputf8(mail: &Command) -> bool {
    matches!(mail, Command::Mail(_, params) if params.smtputf8)
}

/// What is heard of a smarthost that closes.
fn closing() -> Reply {
    Reply::new(421, None, "closing")
}

/// The answer for one recipient more than the mailbox may send to (RFC 5321 section 4.5.3.1.10): the others go.
fn day_is_full() -> Reply {
    Reply::new(
        452,
        Enhanced(4, 5, 3),
        "the mailbox has sent to as many recipients as it may in a day; try again later",
    )
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
        if self.lease.add_recipient().is_err() {
            return Ok(day_is_full());
        }
        let replies = self.lease.connection_mut().exchange(&[rcpt], true, wait).await?;
        Ok(replies.into_iter().next().unwrap_or_else(closing))
    }

    /// Asks to send the data.
    pub async fn data(mut self, wait: Duration) -> Result<DataTransfer, StepError> {
        let replies = self.lease.connection_mut().exchange(&[Command::Data], true, wait).await?;
        match replies.into_iter().next() {
            Some(reply) if reply.code.get() == 354 => Ok(DataTransfer { lease: self.lease }),
            reply => Err(self.lease.refused(Stage::Data, reply.unwrap_or_else(closing))),
        }
    }

    /// Gives the transaction up; the next one on this connection begins with RSET.
    pub fn cancel(self) {
        self.lease.park();
    }
}

impl DataTransfer {
    /// Sends data in wire form; `wait` is how long the smarthost may refuse to take them.
    pub async fn write(&mut self, chunk: Bytes, wait: Duration) -> Result<(), Lost> {
        self.lease.connection_mut().write_data(chunk, wait).await
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
