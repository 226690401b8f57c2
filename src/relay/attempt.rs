//! One attempt to hand a kept message to the smarthost: a lease, MAIL, RCPT and DATA in one flight, the data from
//! the replay, the dot. Live sessions and the spool's deliveries go the same way.
//!
//! ```text
//! open() ──► Opened ──send()──► Opened ──dot()──► Dotted ──► Outcome
//!    │                  │                            │
//!    └── Outcome ◄──────┘ no dot was sent            └── the answer may come late
//! ```

use std::{
    future::poll_fn,
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::replay::{Cursor, Replay};
use crate::{
    policy::sender::{Rewrite, Rule},
    proto::{
        client::Stage,
        envelope::Envelope,
        header::Section,
        path::{ForwardPath, ReversePath},
        reply::Reply,
    },
    smarthost::{
        connection::Lost,
        pool::{Lease, LeaseError, Pool, Who},
        transaction::{Begun, DataTransfer, StepError},
    },
    spool::store::point,
    telemetry::transcript::Transcript,
};

/// How long the smarthost may think about the final dot (RFC 5321 section 4.5.3.2.6).
pub const VERDICT: Duration = Duration::from_secs(600);

/// A message as one mailbox sends it, but for the data behind its header section.
#[derive(Clone, Debug)]
pub struct Letter {
    /// As it is sent.
    pub envelope: Envelope,
    /// Header fields of ours, the same in each attempt.
    pub head: Bytes,
    /// The reverse-path as it was received.
    from: ReversePath,
    /// The header section as it was received; `None`: the data are not edited, as nothing is with [`Rewrite::Keep`].
    section: Option<Section>,
    /// What goes up in its place.
    front: Bytes,
}

/// How an attempt is made.
#[derive(Clone)]
pub struct Manner {
    /// Who asks for it.
    pub who: Who,
    /// How long a lease is waited for.
    pub lease: Duration,
    /// How long each reply before the dot, and each step of the data, may take.
    pub step: Duration,
    /// Command by command, for a smarthost that seems to lose count.
    pub one_by_one: bool,
    /// Where what is said is written down.
    pub transcript: Transcript,
}

/// An attempt whose data may flow.
pub struct Opened {
    transfer: DataTransfer,
    /// The header section is sent.
    headed: bool,
    cursor: Cursor,
    /// One reply for each recipient of the letter, in order.
    replies: Vec<Reply>,
}

/// An attempt whose dot was sent. Whoever drops it will never know what became of the message.
pub struct Dotted {
    /// The smarthost's answer, within [`VERDICT`].
    pub verdict: BoxFuture<'static, Result<Reply, Lost>>,
    /// One reply for each recipient of the letter, in order.
    pub replies: Vec<Reply>,
}

/// What an attempt came to.
#[derive(Debug)]
pub enum Outcome {
    /// The smarthost has answered the dot. One reply for each recipient, then that answer.
    Answered(Vec<Reply>, Reply),
    /// The smarthost refused the message as a whole, before its data.
    Refused(Stage, Reply),
    /// It refused every recipient.
    Nobody(Vec<Reply>),
    /// No connection was to be had.
    NoLease(LeaseError),
    /// The connection was lost before the dot.
    Lost(Lost),
    /// The connection was lost after the dot. One reply for each recipient.
    Unknown(Vec<Reply>, Lost),
    /// The data that were kept cannot be read.
    Unreadable(io::Error),
}

impl Letter {
    /// A letter by a mailbox's rule. `envelope` and `section` as they were received.
    pub fn new(
        mut envelope: Envelope,
        head: impl Into<Bytes>,
        section: Option<Section>,
        rule: &Rule,
    ) -> Self {
        let (from, head) = (envelope.reverse_path, head.into());
        envelope.reverse_path = rule.reverse_path(&from);
        // A section that is too long is refused at its dot. Should it be here all the same it is text: nothing goes up
        // as somebody else because nobody could edit it.
        let text = || Section { is_missing: true, ..Section::default() };
        let section = section.or_else(|| (rule.rewrite == Rewrite::Mailbox).then(text));
        let front = match &section {
            Some(section) => rule.front(&from, &head, section),
            None => head.clone(),
        };
        Self { envelope, head, from, section, front }
    }

    /// The same by the rule of another mailbox.
    pub fn by(self, rule: &Rule) -> Self {
        let envelope = Envelope { reverse_path: self.from, ..self.envelope };
        Self::new(envelope, self.head, self.section, rule)
    }

    /// Octets of the data that something else goes up for.
    fn replaced(&self) -> usize {
        self.section.as_ref().map_or(0, |section| section.front + section.fields.len())
    }

    fn recipients(&self) -> &[ForwardPath] {
        &self.envelope.recipients
    }
}

/// Asks for a lease and begins a transaction on it.
pub async fn open(pool: Arc<Pool>, letter: Letter, manner: Manner) -> Result<Opened, Outcome> {
    debug_assert!(!letter.recipients().is_empty(), "nobody to send to");
    loop {
        let mut lease = {
            let recipients = letter.recipients().len();
            let leased = pool.lease(&manner.who, recipients, manner.lease).await;
            leased.map_err(Outcome::NoLease)?
        };
        lease.write_down(&manner.transcript);
        let kept = lease.connection().is_used();
        match begin(lease, &letter, &manner).await {
            // The smarthost ended a connection that was kept from an earlier message just when it was taken up
            // again. Nothing was sent yet, so the next one may try.
            Err(error) if kept && is_over(&error) => {
                tracing::debug!(?error, "a kept connection was over");
            }
            Err(StepError::Refused(stage, reply)) => return Err(Outcome::Refused(stage, reply)),
            Err(StepError::Lost(lost)) => return Err(Outcome::Lost(lost)),
            Ok(Begun { transfer: None, replies }) => return Err(Outcome::Nobody(replies)),
            Ok(Begun { transfer: Some(transfer), replies }) => {
                let cursor = Cursor::behind(letter.replaced());
                return Ok(Opened { transfer, headed: false, cursor, replies });
            }
        }
    }
}

async fn begin(lease: Lease, letter: &Letter, manner: &Manner) -> Result<Begun, StepError> {
    let added = letter.front.len().saturating_sub(letter.replaced()) as u64;
    lease.begin(&letter.envelope, added, manner.step, !manner.one_by_one).await
}

/// Whether a connection that was kept from an earlier message is no good any more.
pub fn is_over(error: &StepError) -> bool {
    match error {
        StepError::Lost(_) | StepError::Refused(Stage::Rset, _) => true,
        StepError::Refused(_, reply) => reply.code.get() == 421,
    }
}

impl Opened {
    /// Sends the header section and what the replay holds behind it so far.
    pub async fn send(
        &mut self,
        letter: &Letter,
        replay: &mut Replay,
        step: Duration,
    ) -> Result<(), Outcome> {
        if !std::mem::replace(&mut self.headed, true) {
            self.transfer.write(letter.front.clone(), step).await.map_err(Outcome::Lost)?;
        }
        while let Some(chunk) = replay.next(&mut self.cursor).await.map_err(Outcome::Unreadable)? {
            self.transfer.write(chunk, step).await.map_err(Outcome::Lost)?;
        }
        Ok(())
    }

    /// Passes on a chunk that the replay has just been given, after it has sent all before.
    pub async fn stream(&mut self, chunk: Bytes, step: Duration) -> Result<(), Outcome> {
        self.transfer.write(chunk, step).await.map_err(Outcome::Lost)
    }

    /// Sends the final dot; `sent` is set before the first octet of it may leave.
    pub fn dot(self, sent: Arc<AtomicBool>) -> Dotted {
        let Self { transfer, replies, .. } = self;
        let verdict = Box::pin(async move {
            sent.store(true, Ordering::SeqCst);
            let mut ending = pin!(transfer.end(VERDICT));
            let mut waits = false;
            let verdict = poll_fn(|context| {
                let verdict = ending.as_mut().poll(context);
                if verdict.is_pending() && !std::mem::replace(&mut waits, true) {
                    point("dot-sent");
                }
                verdict
            })
            .await;
            point("dot-answered");
            verdict
        });
        Dotted { verdict, replies }
    }
}

impl Dotted {
    /// The outcome, once the answer is there.
    pub fn outcome(replies: Vec<Reply>, verdict: Result<Reply, Lost>) -> Outcome {
        match verdict {
            Ok(reply) => Outcome::Answered(replies, reply),
            Err(lost) if lost.stage == Stage::Eod => Outcome::Unknown(replies, lost),
            Err(lost) => Outcome::Lost(lost),
        }
    }
}

/// A whole attempt with data that are all there.
pub async fn whole(
    pool: &Arc<Pool>,
    letter: &Letter,
    replay: &mut Replay,
    manner: &Manner,
    sent: Arc<AtomicBool>,
) -> Outcome {
    let mut opened = match open(Arc::clone(pool), letter.clone(), manner.clone()).await {
        Ok(opened) => opened,
        Err(outcome) => return outcome,
    };
    if let Err(outcome) = opened.send(letter, replay, manner.step).await {
        return outcome;
    }
    let Dotted { verdict, replies } = opened.dot(sent);
    Dotted::outcome(replies, verdict.await)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::param::MailParams;

    #[test]
    fn what_is_too_long_to_edit_is_text_unless_nothing_is_edited() {
        let keep = Rule::keep("scanner@example.com");
        let rewrite = Rewrite::Mailbox;
        let rule = Rule { rewrite, ..keep.clone() };
        let (reverse_path, params) = (ReversePath::Null, MailParams::default());
        let envelope = Envelope { reverse_path, params, recipients: Vec::new() };
        let letter = Letter::new(envelope, "Date: x\r\n", None, &rule);
        assert_eq!(letter.front, "Date: x\r\nFrom: <scanner@example.com>\r\n\r\n");
        assert_eq!(letter.replaced(), 0);
        let letter = letter.by(&rule);
        assert_eq!(letter.front, "Date: x\r\nFrom: <scanner@example.com>\r\n\r\n");
        let envelope = letter.envelope;
        assert_eq!(Letter::new(envelope, "Date: x\r\n", None, &keep).front, "Date: x\r\n");
    }
}
