//! From DATA to the answer to the final dot, where every verdict is the smarthost's own; `keep` is the other way.

use std::time::Duration;

use bytes::Bytes;
use tokio::{
    io::AsyncReadExt as _,
    time::{Instant, timeout},
};

use super::Driver;
use crate::{
    codec::{data::DataFault, server::ServerItem},
    config::{DeliveryMode, ReceivedDetail},
    policy::sender::{self, Rewrite},
    proto::{
        client::Stage,
        header::{Gathered, Gatherer, Section},
        path::ForwardPath,
        reply::Reply,
        session::too_large,
        trace::{Received, Trace},
    },
    relay::{
        answer,
        attempt::VERDICT,
        pace::{self, Pace, Progress},
        transaction::Transaction,
    },
    smarthost::{
        connection::{DATA_BLOCK, Lost},
        transaction::DataTransfer,
    },
    spool::store::point,
    telemetry::{
        maillog::Disposition,
        metrics::{DeviceFault, Limit, SessionOutcome},
        transcript::Voice,
    },
};

/// Of a device that goes away or is given up in its data (devices.md row 21).
const STRAY_END: &str = "its data hold a lone dot between line ends that are not CR LF, which ends nothing (RFC 5321 \
                         section 4.1.1.4): set the device to end its lines with CR LF";

/// How long the refusal of DATA is kept back, to see whether the device sends its mail data without an answer.
const IMPATIENCE: Duration = Duration::from_millis(200);

/// Octets that are read of refused data beyond twice what a message may have.
const DREGS: u64 = 16 << 20;

/// Mail data that were read up to their dot.
struct Streamed {
    /// What went up and waits for its dot, or what the device hears instead.
    upload: Result<DataTransfer, Reply>,
    ended: Ended,
}

/// Mail data that have come to their dot.
pub(super) struct Ended {
    /// Octets, stuffed dots not counted.
    pub(super) size: u64,
    /// What was mended first.
    pub(super) mended: Option<DataFault>,
}

impl Driver {
    pub(super) async fn data(&mut self) -> Result<(), SessionOutcome> {
        let Some(transaction) = &mut self.transaction else { return Ok(()) };
        if transaction.mode != DeliveryMode::Stream
            && let Some(keeper) = self.relay.keeper.clone()
        {
            return self.keep(keeper).await;
        }
        let transfer = match transaction.data(self.relay.delivery.device_patience).await {
            Ok(transfer) => transfer,
            Err(reply) => {
                self.session.data_done();
                let transaction = self.transaction.take();
                let said = self.data_refused(reply.clone()).await;
                if let Some(mut transaction) = transaction {
                    transaction.record(Disposition::Refused, Some(&reply), "");
                }
                return said;
            }
        };
        self.begin_data().await?;
        let Streamed { upload, ended } = self.stream(transfer).await?;
        let mended = self.data_ended(&ended);
        let (disposition, reply) = match upload {
            Ok(transfer) => self.verdict(transfer).await,
            Err(reply) => (Disposition::Refused, reply),
        };
        self.data_answered(disposition, reply, ended.size, mended).await
    }

    /// Asks the device for its data.
    pub(super) async fn begin_data(&mut self) -> Result<(), SessionOutcome> {
        let line_endings = self.terms.line_endings().unwrap_or(self.profile.line_endings);
        self.framed.codec_mut().start_data(line_endings);
        self.say(&Reply::new(354, None, "start mail input; end with <CRLF>.<CRLF>")).await
    }

    /// The dot has come. Returns the name of what was mended.
    pub(super) fn data_ended(&mut self, ended: &Ended) -> &'static str {
        self.session.data_done();
        self.transcript.say(Voice::Device, format_args!("(mail data, {} octets)", ended.size));
        let version = self.tls.as_ref().map_or("plain", |tls| tls.version);
        self.relay.metrics.message_received(&self.door.listener.name, version);
        ended.mended.map_or("", |fault| self.fault(device_fault(fault)))
    }

    /// Ends the transaction, and answers the dot.
    pub(super) async fn data_answered(
        &mut self,
        disposition: Disposition,
        reply: Reply,
        size: u64,
        mended: &'static str,
    ) -> Result<(), SessionOutcome> {
        // Recorded before it is sent: whatever becomes of the device, this became of the message.
        self.transcript.say(Voice::ToDevice, &reply);
        if let Some(mut transaction) = self.transaction.take() {
            transaction.bytes = size;
            transaction.record(disposition, Some(&reply), mended);
        }
        if reply.code.is_positive() {
            self.accepted();
        }
        point("reply-due");
        self.feed(&reply).await
    }

    /// Refuses DATA. A device may have sent its mail data without waiting: they are never read as commands.
    pub(super) async fn data_refused(&mut self, reply: Reply) -> Result<(), SessionOutcome> {
        // DATA ends a flight (RFC 2920 section 3.1): whatever comes before its answer is no command.
        let mut octet = [0; 1];
        let early = !self.framed.read_buffer().is_empty()
            || timeout(IMPATIENCE, self.framed.get_mut().read(&mut octet)).await.is_ok();
        if early {
            self.fault(DeviceFault::EarlyTalk);
            self.farewell(&reply).await?;
            return Err(SessionOutcome::Faulty);
        }
        self.wary = true;
        self.say(&reply).await
    }

    /// Ends the data; returns what became of the message and what the device hears.
    async fn verdict(&mut self, transfer: DataTransfer) -> (Disposition, Reply) {
        if let Some(transaction) = &mut self.transaction {
            transaction.dot_sent = true;
        }
        let ended = transfer.end(VERDICT).await;
        let Some(transaction) = &mut self.transaction else {
            return (Disposition::Unknown, answer::no_answer());
        };
        match ended {
            Ok(verdict) => {
                let accepted = answer::accepted(&transaction.id, &verdict);
                let relayed = verdict.code.get() == 250;
                let refused = transaction.hear(Stage::Eod, verdict);
                if relayed {
                    (Disposition::Relayed, accepted)
                } else {
                    (Disposition::Refused, refused)
                }
            }
            Err(lost) => {
                transaction.note_loss(&lost);
                // At any other stage the dot was not sent.
                let unknown = lost.stage == Stage::Eod;
                (
                    if unknown { Disposition::Unknown } else { Disposition::Refused },
                    answer::lost(&lost),
                )
            }
        }
    }

    /// Passes the data on, up to the dot. When nothing can go up any more the device's data are still read
    /// to their end, so that the refusal is not taken for an answer to something else.
    async fn stream(&mut self, transfer: DataTransfer) -> Result<Streamed, SessionOutcome> {
        let limit = self.message_size();
        let mut pace = Pace::new(self.relay.limits.data_min_rate);
        let mut upload = Ok(transfer);
        // The header section is held until it is known how it goes up.
        let mut header = Some(Gatherer::default());
        loop {
            let (began, seen) = (Instant::now(), self.framed.codec().data_seen());
            let item = self.next(pace::SILENCE).await;
            // After a fault octets come without items: they are progress all the same.
            let octets = self.framed.codec().data_seen().saturating_sub(seen);
            pace.waited(began.elapsed(), octets);
            match item {
                Ok(ServerItem::Data(chunk)) => {
                    if self.framed.codec().data_size() > limit && upload.is_ok() {
                        self.limited(Limit::Size);
                        upload = Err(too_large(limit));
                    }
                    match &mut header {
                        None => self.pass(&mut upload, chunk).await,
                        Some(gatherer) => {
                            if let Some(gathered) = gatherer.push(chunk) {
                                self.pass_header(&mut upload, gathered).await;
                                header = None;
                            }
                        }
                    }
                }
                Ok(ServerItem::DataFault(fault)) => {
                    self.fault(device_fault(fault));
                    upload = Err(answer::data_fault(fault));
                }
                Ok(ServerItem::DataEnd { size, mended }) => {
                    if let Some(mut gatherer) = header {
                        self.pass_header(&mut upload, gatherer.end()).await;
                    }
                    return Ok(Streamed { upload, ended: Ended { size, mended } });
                }
                // Inside DATA the codec cuts no lines.
                Ok(ServerItem::Line(_) | ServerItem::LineTooLong | ServerItem::ClientHello)
                | Err(SessionOutcome::TimedOut) => {}
                Err(outcome) => {
                    self.vanished();
                    return Err(outcome);
                }
            }
            match pace.progress(self.is_waited_for()) {
                Progress::Moving => {}
                Progress::Stalled if upload.is_ok() => upload = Err(answer::stalled()),
                Progress::Stalled => {}
                Progress::Dead => {
                    self.limited(Limit::Rate);
                    self.vanished();
                    self.farewell(&answer::timed_out()).await?;
                    return Err(SessionOutcome::TimedOut);
                }
            }
            // Nobody needs it any more.
            header = header.filter(|_| upload.is_ok());
            if let Err(refusal) = &upload {
                let refusal = refusal.clone();
                self.ends_refused_data(&refusal).await?;
            }
        }
    }

    /// Refused data are read to their dot, so that the refusal is not taken for an answer to something else, but not
    /// for ever.
    pub(super) async fn ends_refused_data(
        &mut self,
        refusal: &Reply,
    ) -> Result<(), SessionOutcome> {
        if self.framed.codec().data_seen() <= 2 * self.relay.limits.message_size + DREGS {
            return Ok(());
        }
        self.limited(Limit::Size);
        self.vanished();
        self.farewell(refusal).await?;
        Err(SessionOutcome::Faulty)
    }

    /// Passes the header section on, and what has come behind it, if anybody takes it.
    async fn pass_header(&mut self, upload: &mut Result<DataTransfer, Reply>, gathered: Gathered) {
        if upload.is_err() {
            return;
        }
        let front = match gathered {
            Gathered::TooLong => {
                self.limited(Limit::Header);
                Err(answer::header_too_long())
            }
            Gathered::Whole(section, rest) => self.front(&section).map(|front| [front, rest]),
        };
        match front {
            Err(reply) => *upload = Err(reply),
            Ok(chunks) => {
                for chunk in chunks.into_iter().filter(|chunk| !chunk.is_empty()) {
                    self.pass(upload, chunk).await;
                }
            }
        }
    }

    async fn pass(&mut self, upload: &mut Result<DataTransfer, Reply>, chunk: Bytes) {
        if let Ok(transfer) = upload
            && let Err(lost) = transfer.write(chunk, DATA_BLOCK).await
        {
            *upload = Err(self.lost(&lost));
        }
    }

    /// The largest message that the mailbox of the transaction sends.
    pub(super) fn message_size(&mut self) -> u64 {
        let limit = self.session.message_size();
        let mailbox = self.transaction.as_mut().map(Transaction::mailbox);
        limit.min(mailbox.and_then(|mailbox| mailbox.pool.offer().size).unwrap_or(limit))
    }

    /// Whether somebody waits for a lease of the transaction's mailbox.
    pub(super) fn is_waited_for(&mut self) -> bool {
        let mailbox = self.transaction.as_mut().map(Transaction::mailbox);
        mailbox.is_some_and(|mailbox| mailbox.pool.is_waited_for())
    }

    /// The smarthost was lost in the data; returns what the device hears at its dot.
    fn lost(&self, lost: &Lost) -> Reply {
        if let Some(transaction) = &self.transaction {
            transaction.note_loss(lost);
        }
        answer::lost(lost)
    }

    /// The device went away in the middle of its data: without a dot nothing is sent.
    pub(super) fn vanished(&mut self) {
        let Some(mut transaction) = self.transaction.take() else { return };
        transaction.bytes = self.framed.codec().data_size();
        let after = format_args!("the device vanished after {} octets of data", transaction.bytes);
        self.transcript.say(Voice::Note, after);
        if self.framed.codec().stray_end() {
            self.transcript.say(Voice::Note, STRAY_END);
            let (listener, id) = (&self.door.listener.name, &transaction.id);
            tracing::warn!(device = %self.device, listener, id, "{STRAY_END}");
            self.fault(DeviceFault::Smuggling);
        }
        transaction.record(Disposition::Aborted, None, "");
    }

    /// What goes up in place of a header section; an error is what the device hears instead.
    fn front(&mut self, section: &Section) -> Result<Bytes, Reply> {
        let head = self.head(section)?;
        let Some(transaction) = &mut self.transaction else { return Err(answer::no_answer()) };
        let rule = transaction.rule();
        Ok(rule.front(&transaction.envelope.reverse_path, head.as_bytes(), section))
    }

    /// Header fields of ours: how the message came, and what each has to have (RFC 5322 section 3.6, RFC 6409
    /// section 8). An error is what the device hears instead.
    pub(super) fn head(&mut self, section: &Section) -> Result<String, Reply> {
        let Some(transaction) = &self.transaction else { return Err(answer::no_answer()) };
        let hostname = &self.relay.hostname;
        let trace = Trace::of(section, hostname);
        if let Some(circle) = trace.circle {
            self.fault(DeviceFault::Loop);
            return Err(answer::circle(circle));
        }
        if let Some(senders) = self.terms.senders()
            && self.relay.mailboxes.rewrite() == Rewrite::Keep
            && let Some(from) = sender::outside(senders, section)
        {
            return Err(answer::sender_not_allowed(&self.device, &from));
        }
        let mut head = self.received();
        if !trace.has_date {
            head.push_str(&format!("Date: {}\r\n", now()));
        }
        if !trace.has_message_id {
            head.push_str(&format!("Message-ID: <{}@{hostname}>\r\n", transaction.id));
        }
        Ok(head)
    }

    fn received(&self) -> String {
        let hello = self.session.hello();
        let Some(transaction) = &self.transaction else { return String::new() };
        let envelope = &transaction.envelope;
        let client = hello.map(|hello| (hello.name.as_str(), self.peer));
        Received {
            client: client.filter(|_| self.relay.received == ReceivedDetail::Full),
            tls: self.tls.as_ref().map(|tls| (tls.version, tls.cipher.as_str())),
            by: &self.relay.hostname,
            extended: hello.is_some_and(|hello| hello.extended),
            authenticated: self.session.user().is_some(),
            utf8: !envelope.reverse_path.is_ascii()
                || !envelope.recipients.iter().all(ForwardPath::is_ascii),
            id: &transaction.id,
            date: &now(),
        }
        .header()
    }
}

pub(super) fn device_fault(fault: DataFault) -> DeviceFault {
    match fault {
        DataFault::BareLf => DeviceFault::BareLf,
        DataFault::BareCr => DeviceFault::BareCr,
        DataFault::Nul => DeviceFault::Nul,
    }
}

/// The time as a header field tells it (RFC 5322 section 3.3).
fn now() -> String {
    jiff::fmt::rfc2822::to_string(&jiff::Zoned::now()).unwrap_or_default()
}
