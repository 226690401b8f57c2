//! The queue: messages that the relay has answered 250 for and still has to deliver, and those that it keeps to be
//! looked at. [`Queue`] says what a queue promises; [`store`](super::store) keeps it in SQLite.
//!
//! ```text
//!             take()                     due            settle()
//! (device) ──────────► Ready ◄────────────────── Leased ─────────► Done, Failed
//!             │          ▲   lease_due()           │ ▲
//!             │          │ release, retry          │ │ due again
//!             ├────────► Held ◄────────────────────┤ │
//!             ├────────► MaybeSent ◄───────────────┼─┘ the dot was sent and no answer came
//!             └────────► Awaiting ─────────────────┘   the dot was sent, the answer is still waited for
//! ```
//!
//! A relay that starts finds what an earlier one left in the middle: *leased* and *awaiting* become *maybe sent*,
//! for nobody knows whether their dot was answered.
//!
//! The time is an argument everywhere: no implementation asks a clock.

use std::path::PathBuf;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::Serialize;
use thiserror::Error;

use crate::proto::path::{ForwardPath, ReversePath};

/// What a queue answers, in time.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, QueueError>>;

/// A place where messages outlive the relay. Each method that changes something returns when the change is on
/// disk, not before.
pub trait Queue: Send + Sync {
    /// Takes a message over: from now on it is the queue's to keep. The id must be new.
    fn take(&self, message: NewMessage) -> Answer<'_, ()>;

    /// Leases messages of a mailbox that are due: devices take turns, and of each device the longest due goes first.
    fn lease_due(&self, due: Due) -> Answer<'_, Vec<Leased>>;

    /// Leases a message of a mailbox that is held by this, one of the least tried, to find out whether it still is.
    fn lease_held(&self, mailbox: String, hold: Hold) -> Answer<'_, Option<Leased>>;

    /// Leases up to `most` messages that have been kept long enough: *ready* and *maybe sent* ones received before
    /// `waiting`, *held* ones received before `held`.
    fn lease_overdue(
        &self,
        waiting: Timestamp,
        held: Timestamp,
        most: usize,
    ) -> Answer<'_, Vec<Leased>>;

    /// Says what became of a message that is *leased* or *awaiting*. False if it is no longer: somebody has
    /// dropped it.
    fn settle(&self, settlement: Settlement) -> Answer<'_, bool>;

    /// Holds what is *ready* or *maybe sent* and what this reaches ([`Hold::reaches`]), except what an operator
    /// has `forced`. Returns how many.
    fn hold_all(&self, stop: Stop) -> Answer<'_, u64>;

    /// Makes *ready* at `now` what is held by exactly this at a mailbox. Returns how many.
    fn release_all(&self, mailbox: String, hold: Hold, now: Timestamp) -> Answer<'_, u64>;

    /// What holds messages just now at which mailbox, each once.
    fn holds(&self) -> Answer<'_, Vec<(String, Hold)>>;

    /// Deletes *done* messages settled before `done` and *failed* ones settled before `failed`.
    fn purge(&self, done: Timestamp, failed: Timestamp) -> Answer<'_, u64>;

    /// What there is, by state.
    fn totals(&self) -> Answer<'_, Totals>;

    /// Messages in the order in which they were received; the bodies stay where they are.
    fn list(&self, filter: Filter) -> Answer<'_, Vec<Summary>>;

    /// Everything about one message but its body.
    fn show(&self, id: String) -> Answer<'_, Option<Detail>>;

    /// The mail data of a message; `None` if there is no such message, or it is *done*.
    fn body(&self, id: String) -> Answer<'_, Option<Body>>;

    /// An operator's word about one message.
    fn change(&self, id: String, change: Change, now: Timestamp) -> Answer<'_, Changed>;

    /// Somebody has to be told this.
    fn notice(&self, notice: NewNotice) -> Answer<'_, ()>;

    /// Notices that nobody was sent yet, oldest first; at most 1,000.
    fn notices(&self) -> Answer<'_, Vec<Notice>>;

    /// These notices are on their way: they are forgotten, and what carries them is taken over in the same step
    /// if it goes through this queue.
    fn notified(&self, notices: Vec<i64>, carrier: Option<NewMessage>) -> Answer<'_, ()>;
}

/// Why a queue did not do what it was asked to.
#[derive(Clone, Debug, Error)]
pub enum QueueError {
    /// There is no room: `max_size`, or the disk.
    #[error("the spool is full: {0}")]
    Full(String),
    /// The store failed.
    #[error("the spool failed: {0}")]
    Broken(String),
}

/// A message that is handed to a queue.
#[derive(Clone, Debug)]
pub struct NewMessage {
    /// The transaction's id, as in the log, the reply and the Received field.
    pub id: String,
    /// The mailbox that it goes through.
    pub mailbox: String,
    /// It goes through no other mailbox.
    pub bound: bool,
    /// The device's name or address.
    pub device: String,
    /// The listener's name.
    pub listener: String,
    /// As the device gave it.
    pub reverse_path: ReversePath,
    /// `BODY=8BITMIME` was said.
    pub eight_bit: bool,
    /// `SMTPUTF8` was said.
    pub smtputf8: bool,
    /// When it was received.
    pub received: Timestamp,
    /// Header fields that go up in front of the data, with their CR LF: Received.
    pub head: String,
    /// The mail data.
    pub body: Body,
    /// It is a notice of ours: of what becomes of it nobody is told.
    pub is_notice: bool,
    /// Everybody whom the device named and who was not refused to it, in order.
    pub recipients: Vec<Recipient>,
    /// Where it stands.
    pub standing: Standing,
    /// What somebody is to be told of it.
    pub notice: Option<NewNotice>,
}

/// Mail data in wire form (still dot-stuffed), without the final dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// In memory, in pieces.
    Chunks(Vec<Bytes>),
    /// In a file of the spool. One that is handed to [`Queue::take`] lies in its folder `incoming` and is synced
    /// and moved to its place by it.
    File {
        /// Where.
        path: PathBuf,
        /// Octets.
        size: u64,
    },
}

/// One recipient of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipient {
    /// Who.
    pub path: ForwardPath,
    /// What became of it there.
    pub state: RecipientState,
    /// The smarthost's last reply about it; may be empty.
    pub reply: String,
}

/// What became of a message at one recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecipientState {
    /// It is still to be delivered.
    Pending,
    /// The smarthost has taken it.
    Delivered,
    /// Never: refused for good, or expired.
    Failed,
}

/// The state of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It waits for its time.
    Ready,
    /// It is being delivered.
    Leased,
    /// Its dot was sent, and the answer is waited for.
    Awaiting,
    /// Its dot was sent, and the connection was lost: it waits to be sent again.
    MaybeSent,
    /// It waits for somebody to change something.
    Held,
    /// It will not be delivered, to some recipient at least.
    Failed,
    /// It was delivered.
    Done,
}

/// Where a message stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its state; never [`State::Leased`].
    pub state: State,
    /// When it is due; `None`: not by itself. *Held* messages with a time are due like *ready* ones.
    pub due: Option<Timestamp>,
    /// What holds it; for *held* only.
    pub hold: Option<Hold>,
    /// The smarthost's last reply, or what happened, in one line.
    pub reason: String,
    /// The rule that knew the reply; may be empty.
    pub rule: String,
    /// Attempts so far.
    pub attempts: u32,
    /// Whether the last attempt may have delivered it.
    pub maybe_sent: bool,
    /// What was said, where somebody has to look at it; else empty.
    pub transcript: String,
}

/// Why a message is held.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Hold {
    /// An operator said so.
    Operator,
    /// Something about this message.
    Message,
    /// The mailbox may not send as this address, in lower case. Mail with the null reverse-path is sent as the
    /// mailbox, and is held with the mailbox's own address; empty: the null reverse-path alone.
    Sender(String),
    /// The mailbox may not send.
    Mailbox,
    /// The mailbox cannot log in.
    Credential,
    /// Nothing goes to the smarthost.
    Smarthost,
    /// Its mailbox is not in the configuration any more.
    MailboxGone,
}

/// Which messages are to be leased because they are due.
#[derive(Clone, Debug)]
pub struct Due {
    /// Of this mailbox.
    pub mailbox: String,
    /// Only those that may go through another mailbox too.
    pub unbound: bool,
    /// Due by then.
    pub now: Timestamp,
    /// So many at most.
    pub most: usize,
}

/// What is stopped at a mailbox.
#[derive(Clone, Debug)]
pub struct Stop {
    /// The mailbox.
    pub mailbox: String,
    /// What.
    pub hold: Hold,
    /// The reply that did it.
    pub reason: String,
    /// The rule that knew it.
    pub rule: String,
    /// Only mail that goes through no other mailbox is held: who else may send the rest is found out one by one.
    pub bound: bool,
}

/// A message that is being delivered.
#[derive(Clone, Debug)]
pub struct Leased {
    /// Its id.
    pub id: String,
    /// The mailbox that it goes through; empty: that was taken out of the configuration, and any will do.
    pub mailbox: String,
    /// It goes through no other mailbox.
    pub bound: bool,
    /// An operator wants it to be tried, whatever is stopped.
    pub forced: bool,
    /// The device's name or address.
    pub device: String,
    /// As the device gave it.
    pub reverse_path: ReversePath,
    /// `BODY=8BITMIME` was said.
    pub eight_bit: bool,
    /// `SMTPUTF8` was said.
    pub smtputf8: bool,
    /// When it was received.
    pub received: Timestamp,
    /// Header fields that go up in front of the data.
    pub head: String,
    /// The mail data; a file that is gone is found when it is opened.
    pub body: Body,
    /// It is a notice of ours.
    pub is_notice: bool,
    /// Those that are pending, each with its place among all recipients.
    pub recipients: Vec<(usize, ForwardPath)>,
    /// The state that it was in.
    pub state: State,
    /// What held it.
    pub hold: Option<Hold>,
    /// What happened last.
    pub reason: String,
    /// The rule that knew it.
    pub rule: String,
    /// Attempts so far.
    pub attempts: u32,
    /// How often it may have been sent.
    pub maybe_sent: u32,
}

/// What became of a message that was leased or awaited.
#[derive(Clone, Debug)]
pub struct Settlement {
    /// Its id.
    pub id: String,
    /// The mailbox that it goes through from now on; `None`: as before.
    pub mailbox: Option<String>,
    /// Where it stands now.
    pub standing: Standing,
    /// What an operator has wanted is still to be done.
    pub forced: bool,
    /// What became of it at recipients, by their place among all.
    pub recipients: Vec<(usize, RecipientState, String)>,
    /// What somebody is to be told.
    pub notice: Option<NewNotice>,
    /// When.
    pub now: Timestamp,
}

impl Settlement {
    /// That it stands so from now on, and nothing else.
    pub fn new(id: &str, standing: Standing, now: Timestamp) -> Self {
        Self {
            id: id.to_owned(),
            mailbox: None,
            standing,
            forced: false,
            recipients: Vec::new(),
            notice: None,
            now,
        }
    }
}

/// Something that somebody has to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewNotice {
    /// In one line.
    pub subject: String,
    /// In plain words.
    pub text: String,
    /// When it came up.
    pub time: Timestamp,
}

/// A notice that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Its number.
    pub number: i64,
    /// What it says.
    pub notice: NewNotice,
}

/// What an operator wants of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// To be tried now, whatever holds it.
    Retry,
    /// To be held until it is released.
    Hold,
    /// To be ready now if it is held.
    Release,
    /// To be deleted, whatever its state.
    Drop,
}

/// What came of that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// It is done.
    Done,
    /// There is no such message.
    NotFound,
    /// Not in this state: it is being delivered, or was, or has nobody left to be delivered to.
    NotNow(State),
}

/// Which messages are meant.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// In one of these states; empty: in any.
    pub states: Vec<State>,
    /// From this device.
    pub device: Option<String>,
    /// Received before.
    pub before: Option<Timestamp>,
    /// Received after this one, in the order of the list.
    pub after: Option<String>,
    /// So many at most; 0: all.
    pub most: usize,
}

/// A message in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Its id.
    pub id: String,
    /// Its state.
    pub state: State,
    /// The device's name or address.
    pub device: String,
    /// The mailbox that it goes through.
    pub mailbox: String,
    /// The reverse-path, empty for the null path.
    pub from: String,
    /// The first recipient.
    pub to: String,
    /// Recipients in all.
    pub recipients: usize,
    /// Octets of mail data.
    pub size: u64,
    /// When it was received.
    pub received: Timestamp,
    /// When it is due.
    pub due: Option<Timestamp>,
    /// What holds it.
    pub hold: Option<Hold>,
    /// What happened last.
    pub reason: String,
    /// The rule that knew it.
    pub rule: String,
    /// Attempts so far.
    pub attempts: u32,
    /// How often it may have been sent.
    pub maybe_sent: u32,
}

/// Everything about one message but its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detail {
    /// As in a list.
    pub summary: Summary,
    /// The listener's name.
    pub listener: String,
    /// Header fields that go up in front of the data.
    pub head: String,
    /// Everybody.
    pub recipients: Vec<Recipient>,
    /// What was said, where somebody has to look at it.
    pub transcript: String,
    /// When it was last settled.
    pub settled: Option<Timestamp>,
}

/// What a queue holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Messages by state; what is missing is none.
    pub messages: Vec<(State, u64)>,
    /// Octets of mail data of all that still have theirs.
    pub bytes: u64,
    /// When the oldest that is neither *done* nor *failed* was received.
    pub oldest: Option<Timestamp>,
    /// Notices that nobody was sent yet, and messages that carry notices and wait.
    pub notices: u64,
}

impl State {
    /// Every state, in the order of a list.
    pub const ALL: [Self; 7] = [
        Self::Ready,
        Self::Leased,
        Self::Awaiting,
        Self::MaybeSent,
        Self::Held,
        Self::Failed,
        Self::Done,
    ];

    /// The name on the command line, in metrics and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Leased => "leased",
            Self::Awaiting => "awaiting",
            Self::MaybeSent => "maybe-sent",
            Self::Held => "held",
            Self::Failed => "failed",
            Self::Done => "done",
        }
    }

    /// The state of a name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }
}

impl Hold {
    /// The name in the database and in `--json`: a word, for a sender with the address behind a colon.
    pub fn name(&self) -> String {
        match self {
            Self::Operator => "operator".to_owned(),
            Self::Message => "message".to_owned(),
            Self::Sender(address) => format!("sender:{address}"),
            Self::Mailbox => "mailbox".to_owned(),
            Self::Credential => "credential".to_owned(),
            Self::Smarthost => "smarthost".to_owned(),
            Self::MailboxGone => "mailbox-gone".to_owned(),
        }
    }

    /// What has this name.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "operator" => Self::Operator,
            "message" => Self::Message,
            "mailbox" => Self::Mailbox,
            "credential" => Self::Credential,
            "smarthost" => Self::Smarthost,
            "mailbox-gone" => Self::MailboxGone,
            _ => Self::Sender(name.strip_prefix("sender:")?.to_owned()),
        })
    }

    /// Whether mail with this reverse-path falls under it. What is about one message reaches no other. Where mail
    /// with the null reverse-path waits, [`Queue::hold_all`] takes it as its mailbox's; here the caller does.
    pub fn reaches(&self, reverse_path: &str) -> bool {
        match self {
            Self::Operator | Self::Message | Self::MailboxGone => false,
            Self::Sender(address) => reverse_path.eq_ignore_ascii_case(address),
            Self::Mailbox | Self::Credential | Self::Smarthost => true,
        }
    }
}

impl Body {
    /// Octets.
    pub fn size(&self) -> u64 {
        match self {
            Self::Chunks(chunks) => chunks.iter().map(|chunk| chunk.len() as u64).sum(),
            Self::File { size, .. } => *size,
        }
    }
}
