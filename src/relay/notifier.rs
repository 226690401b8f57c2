//! Sends the notices that wait: each by itself, and what comes beyond 20 an hour together in a digest. They go
//! through the mailbox as mail of the spool's, or to another server, or to a program, since the mailbox may be what
//! is broken.

use std::{collections::VecDeque, process::Stdio, sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::{
    io::AsyncWriteExt as _,
    process::Command,
    time::{sleep, timeout},
};

use tokio_util::sync::CancellationToken;

use super::{
    acceptance::untried,
    attempt::{self, Letter, Manner, Outcome},
    keeper::Keeper,
    mailboxes::Mailbox,
    replay::Replay,
};
use crate::{
    config::NoticeWay,
    policy::sender::Rule,
    proto::{
        client::Refusal,
        envelope::Envelope,
        param::MailParams,
        path::{Address, ForwardPath, ReversePath},
    },
    smarthost::{
        connection::OpenError,
        pool::{LeaseError, Pool, Who},
    },
    spool::queue::{Body, NewMessage, Notice, Queue as _, QueueError, Recipient, RecipientState},
    telemetry::transcript::Transcript,
};

/// Notices that go out one by one in an hour.
const SINGLE: usize = 20;
const HOUR: Duration = Duration::from_secs(3_600);
/// How long notices beyond those are gathered.
const GATHER: Duration = Duration::from_secs(600);
/// Notices whose text stands in a digest; of the others only the subject does.
const IN_FULL: usize = 20;
/// How often waiting notices are looked for.
const LOOK: Duration = Duration::from_secs(2);
/// How long to wait after a way that did not take a notice.
const AGAIN: Duration = Duration::from_secs(300);
/// How long another server may take.
const SERVER: Duration = Duration::from_secs(120);
/// How long a program may take.
const PROGRAM: Duration = Duration::from_secs(60);

/// Sends notices.
pub struct Notifier {
    from: String,
    hostname: String,
    /// The other servers to try in turn, for that way.
    servers: Vec<Arc<Pool>>,
    sent: VecDeque<Timestamp>,
    next: Option<Timestamp>,
    waiting: u64,
}

impl Notifier {
    /// A notifier that writes as `from`; `servers` are the ways to the server of `[notices] smtp`.
    pub fn new(from: String, hostname: String, servers: Vec<Arc<Pool>>) -> Self {
        Self { from, hostname, servers, sent: VecDeque::new(), next: None, waiting: 0 }
    }

    /// Works until the relay drains. Beside the courier: another server or a program may take its time.
    pub async fn run(mut self, keeper: Arc<Keeper>, drain: CancellationToken) {
        while drain.run_until_cancelled(sleep(LOOK)).await.is_some() {
            let now = keeper.clock.now();
            let round = async {
                self.waiting(keeper.queue.totals().await?.notices, &keeper);
                self.round(&keeper, now).await
            };
            match drain.run_until_cancelled(round).await {
                Some(Err(error)) => tracing::error!(%error, "notices cannot be looked for"),
                Some(Ok(())) => {}
                None => break,
            }
        }
        self.servers.iter().for_each(Pool::stop);
    }

    /// Sends what may be sent now.
    async fn round(&mut self, keeper: &Keeper, now: Timestamp) -> Result<(), QueueError> {
        let Some(settings) = &keeper.notices else { return Ok(()) };
        if self.next.is_some_and(|next| now < next) {
            return Ok(());
        }
        let notices = keeper.queue.notices().await?;
        if notices.is_empty() {
            return Ok(());
        }
        while self.sent.front().is_some_and(|sent| now.duration_since(*sent).unsigned_abs() >= HOUR)
        {
            self.sent.pop_front();
        }
        let (single, rest) =
            notices.split_at(notices.len().min(SINGLE.saturating_sub(self.sent.len())));
        for notice in single {
            let (subject, text) = (notice.notice.subject.clone(), notice.notice.text.clone());
            if !self.send(keeper, settings, &[notice.number], &subject, &text, now).await? {
                return Ok(());
            }
            self.sent.push_back(now);
            keeper.metrics.notice("sent");
        }
        if let Some(oldest) = rest.first()
            && now.duration_since(oldest.notice.time).unsigned_abs() >= GATHER
        {
            let (subject, text) = digest(rest);
            let numbers: Vec<i64> = rest.iter().map(|notice| notice.number).collect();
            if self.send(keeper, settings, &numbers, &subject, &text, now).await? {
                keeper.metrics.notice("digest");
            }
        }
        Ok(())
    }

    /// So many notices wait, behind whatever it is: news for the log and the metric.
    fn waiting(&mut self, waiting: u64, keeper: &Keeper) {
        let by_mailbox = keeper.notices.as_ref().is_some_and(|to| to.way == NoticeWay::Mailbox);
        if waiting > self.waiting && by_mailbox && self.is_stopped(keeper) {
            tracing::warn!(
                waiting,
                "notices wait behind what is stopped: [notices] smtp or command are another way out"
            );
            keeper.metrics.notice("waiting");
        }
        self.waiting = waiting;
    }

    fn is_stopped(&self, keeper: &Keeper) -> bool {
        keeper.mailboxes.all().iter().any(|mailbox| !mailbox.stops().is_empty())
    }

    /// Sends one message; false if nobody takes it for now.
    async fn send(
        &mut self,
        keeper: &Keeper,
        settings: &crate::config::Notices,
        numbers: &[i64],
        subject: &str,
        text: &str,
        now: Timestamp,
    ) -> Result<bool, QueueError> {
        let id = format!("n{:08x}", fastrand::u32(..));
        // One that can send: the first may be what is broken.
        let mailbox = Arc::clone(keeper.mailboxes.choose(None, "", None, 1));
        let from = match settings.way {
            NoticeWay::Mailbox => mailbox.address(),
            NoticeWay::Smtp { .. } | NoticeWay::Command(_) => &self.from,
        };
        let message = compose(from, &settings.to, &self.hostname, &id, subject, text, now);
        let sent = match &settings.way {
            NoticeWay::Mailbox => {
                let carrier = carrier(&mailbox, &settings.to, id, message, now);
                let Some(carrier) = carrier else { return Ok(false) };
                keeper.queue.notified(numbers.to_vec(), Some(carrier)).await?;
                keeper.wake.notify_one();
                return Ok(true);
            }
            NoticeWay::Smtp { host, port } => {
                let sent = self.by_smtp(&settings.to, message).await;
                sent.map_err(|reason| format!("{host}:{port}: {reason}"))
            }
            NoticeWay::Command(command) => {
                let sent = by_command(command, message).await;
                sent.map_err(|reason| {
                    format!("{}: {reason}", command.first().map_or("", |program| program))
                })
            }
        };
        match sent {
            Ok(()) => keeper.queue.notified(numbers.to_vec(), None).await.map(|()| true),
            Err(reason) => {
                tracing::error!(
                    reason,
                    "a notice was not taken: tried again in {} s",
                    AGAIN.as_secs()
                );
                keeper.metrics.notice("failed");
                self.next = keeper.clock.now().saturating_add(AGAIN).ok();
                Ok(false)
            }
        }
    }

    async fn by_smtp(&self, to: &str, message: String) -> Result<(), String> {
        let parse = |address: &str| Address::parse(address).map_err(|fault| fault.to_string());
        let envelope = Envelope {
            reverse_path: ReversePath::Address(parse(&self.from)?),
            params: MailParams {
                size: Some(message.len() as u64),
                eight_bit: true,
                smtputf8: false,
            },
            recipients: vec![ForwardPath::Address(parse(to)?)],
        };
        let letter = Letter::new(envelope, Bytes::new(), None, &Rule::keep(&self.from));
        let body = Body::Chunks(vec![Bytes::from(message)]);
        let mut replay = Replay::stored(body).map_err(|error| error.to_string())?;
        let manner = Manner {
            who: Who::Spool,
            lease: PROGRAM,
            step: PROGRAM,
            one_by_one: false,
            transcript: Transcript::default(),
        };
        let mut said = "no way there".to_owned();
        for server in &self.servers {
            let attempt = attempt::whole(server, &letter, &mut replay, &manner, Arc::default());
            let Ok(outcome) = timeout(SERVER, attempt).await else {
                return Err(format!("no answer within {} s", SERVER.as_secs()));
            };
            match outcome {
                Outcome::Answered(_, reply) if reply.code.is_positive() => return Ok(()),
                Outcome::Answered(_, reply) | Outcome::Refused(_, reply) => {
                    return Err(reply.to_string());
                }
                Outcome::Nobody(replies) => {
                    return Err(replies.first().map(ToString::to_string).unwrap_or_default());
                }
                // It may have gone out: better one too few than one again and again.
                Outcome::Unknown(_, lost) => {
                    tracing::warn!(%lost, "a notice may have been sent");
                    return Ok(());
                }
                Outcome::NoLease(error) => {
                    said = error.to_string();
                    // In plaintext only where there is no other way.
                    if !offers_no_tls(&error) {
                        break;
                    }
                }
                Outcome::Lost(lost) => return Err(lost.to_string()),
                Outcome::Unreadable(error) => return Err(error.to_string()),
            }
        }
        Err(said)
    }
}

/// A notice as a message of the spool.
fn carrier(
    mailbox: &Mailbox,
    to: &str,
    id: String,
    message: String,
    now: Timestamp,
) -> Option<NewMessage> {
    let (from, path) = (Address::parse(mailbox.address()).ok()?, Address::parse(to).ok()?);
    Some(NewMessage {
        id,
        mailbox: mailbox.address().to_owned(),
        bound: false,
        device: "relay".to_owned(),
        listener: String::new(),
        reverse_path: ReversePath::Address(from),
        eight_bit: true,
        smtputf8: false,
        received: now,
        head: String::new(),
        body: Body::Chunks(vec![Bytes::from(message)]),
        is_notice: true,
        recipients: vec![Recipient {
            path: ForwardPath::Address(path),
            state: RecipientState::Pending,
            reply: String::new(),
        }],
        standing: untried(mailbox.bars(mailbox.address()), now),
        notice: None,
    })
}

fn offers_no_tls(error: &LeaseError) -> bool {
    matches!(error, LeaseError::Open(error) if matches!(**error, OpenError::Refused(Refusal::NoStartTls)))
}

/// Hands a message to a program on its standard input.
async fn by_command(command: &[String], message: String) -> Result<(), String> {
    let [program, arguments @ ..] = command else { return Err("no program".to_owned()) };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("cannot be started: {error}"))?;
    let feeding = async {
        if let Some(mut stdin) = child.stdin.take() {
            // A program that does not read is judged by how it ends.
            let _ = stdin.write_all(message.replace("\r\n", "\n").as_bytes()).await;
        }
        child.wait().await
    };
    match timeout(PROGRAM, feeding).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(format!("ended with {status}")),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("not done within {} s", PROGRAM.as_secs())),
    }
}

/// Many notices in one.
fn digest(notices: &[Notice]) -> (String, String) {
    let mut text = format!("{} notices came up together:\n\n", notices.len());
    for notice in notices {
        text.push_str(&format!("  * {}\n", notice.notice.subject));
    }
    for notice in notices.iter().take(IN_FULL) {
        let Notice { notice, .. } = notice;
        text.push_str(&format!("\n{}\n{}\n\n{}", "=".repeat(72), notice.subject, notice.text));
    }
    if notices.len() > IN_FULL {
        text.push_str(
            "\n\nThe others are in smtp-uplift queue list --state failed --state held.\n",
        );
    }
    (format!("{} things need a look", notices.len()), text)
}

/// A message with a notice, in wire form: CR LF, dots stuffed.
fn compose(
    from: &str,
    to: &str,
    hostname: &str,
    id: &str,
    subject: &str,
    text: &str,
    now: Timestamp,
) -> String {
    let date =
        jiff::fmt::rfc2822::to_string(&now.to_zoned(jiff::tz::TimeZone::UTC)).unwrap_or_default();
    let mut message = format!(
        "From: smtp-uplift <{from}>\r\nTo: <{to}>\r\nSubject: {}\r\nDate: {date}\r\nMessage-ID: <{id}@{hostname}>\r\n\
         Auto-Submitted: auto-generated\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\
         Content-Transfer-Encoding: 8bit\r\n\r\n",
        ascii(subject)
    );
    for line in text.lines() {
        if line.starts_with('.') {
            message.push('.');
        }
        let line: String = line.chars().filter(|c| !c.is_control() || *c == '\t').collect();
        message.push_str(&line);
        message.push_str("\r\n");
    }
    message
}

/// A header field's text (RFC 5322 section 2.2): addresses outside ASCII are in the text below.
fn ascii(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).take(200).collect()
}
