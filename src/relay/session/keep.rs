//! From DATA to the answer to the final dot, where the relay keeps messages: the data go to the replay, and from
//! 64 KiB on to the smarthost as well, if a connection is to be had.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::{Instant, timeout};

use super::{
    Driver,
    data::{Ended, device_fault},
};
use crate::{
    codec::server::ServerItem,
    config::DeliveryMode,
    proto::{client::Stage, header::Finder, reply::Reply, session::too_large},
    relay::{
        acceptance::{Acceptance, Upload, untried},
        answer,
        attempt::{self, Letter, Manner, Outcome},
        keeper::Keeper,
        pace::{self, Pace, Progress},
        replay::{LARGE, Replay, Room},
    },
    smarthost::connection::{Lost, LostCause},
    spool::queue::QueueError,
    telemetry::{
        maillog::Disposition,
        metrics::{Limit, SessionOutcome},
    },
};

/// Octets after which a connection is asked for before the dot. Three connections a mailbox must not wait for slow
/// devices, and most messages are smaller.
const EARLY: u64 = 64 * 1024;
/// A smarthost that takes no data for so long stalls: the device is not read meanwhile.
const STALL: Duration = Duration::from_secs(1);

/// Who has to be waited for so long has sent nothing that lies unread.
const WAITED: Duration = Duration::from_millis(1);

/// How long a device that still sends keeps a connection while somebody waits for one. Whoever has the whole of its
/// message goes first: else a few who send on and on would have all connections, and all others their patience's end.
const TURN: Duration = Duration::from_secs(2);

/// Octets for a header section that every session may have: most are smaller.
const USUAL: u64 = 16 * 1024;

/// The part of a device's patience that is kept for writing its message to disk.
const COMMIT: Duration = Duration::from_secs(1);

/// A message on its way in.
struct Incoming {
    /// The data; `None` once they could not be kept.
    replay: Option<Replay>,
    upload: Upload,
    /// Since when it has a connection, or had one.
    lent: Option<Instant>,
    /// What the device hears at its dot, whatever becomes of the rest.
    refusal: Option<Reply>,
    finder: Finder,
    /// Known once the header section is there.
    letter: Option<Letter>,
    /// Whether the smarthost is asked at all before the spool is.
    asks: bool,
    /// The memory that its header section takes while it goes up.
    room: Option<Room>,
    /// How long the smarthost has stalled since the device was last waited for. The device's dot may have lain
    /// there unread for as long.
    stalled: Duration,
}

impl Driver {
    /// Takes the data of a message that the relay keeps, and answers its dot.
    pub(super) async fn keep(&mut self, keeper: Arc<Keeper>) -> Result<(), SessionOutcome> {
        let Some(transaction) = &mut self.transaction else { return Ok(()) };
        let sender = transaction.rule().reverse_path(&transaction.envelope.reverse_path);
        let held = transaction.mailbox().bars(sender.as_str());
        let asks = transaction.mode == DeliveryMode::StreamThenSpool && held.is_none();
        let mut incoming = Incoming {
            replay: Some(Replay::new(
                keeper.queue.incoming(),
                &transaction.id,
                self.relay.delivery.replay_memory,
                Arc::clone(&keeper.budget),
            )),
            upload: Upload::NotYet,
            lent: None,
            refusal: None,
            finder: Finder::default(),
            letter: None,
            asks,
            room: None,
            stalled: Duration::ZERO,
        };
        self.begin_data().await?;
        let ended = self.receive(&mut incoming).await?;
        if incoming.letter.is_none() {
            self.address(&mut incoming).await;
        }
        let patience = self.relay.delivery.device_patience;
        // What is not taken by then is still to be written to disk.
        let patience = patience - COMMIT.min(patience / 10);
        let deadline = Instant::now() + patience.saturating_sub(incoming.stalled);
        let mended = self.data_ended(&ended);
        let Incoming { replay, upload, refusal, letter, asks, room: _room, .. } = incoming;
        let (disposition, reply) = match (refusal, letter.zip(self.transaction.as_mut())) {
            (Some(reply), _) => (Disposition::Refused, reply),
            (None, None) => (Disposition::Refused, answer::no_answer()),
            (None, Some((mut letter, transaction))) => {
                letter.envelope.params.size = Some(ended.size);
                let now = keeper.clock.now();
                let relay = &self.relay;
                let acceptance =
                    Acceptance { relay, keeper: &keeper, transaction, letter, replay, deadline };
                // Boxed: it is large, and there is one for each busy session only.
                if asks {
                    Box::pin(acceptance.run(upload)).await
                } else {
                    Box::pin(acceptance.keep(untried(held, now))).await
                }
            }
        };
        self.data_answered(disposition, reply, ended.size, mended).await
    }

    /// Reads the data up to their dot. Afterwards the device waits for its answer.
    async fn receive(&mut self, incoming: &mut Incoming) -> Result<Ended, SessionOutcome> {
        let limit = self.message_size();
        let mut pace = Pace::new(self.relay.limits.data_min_rate);
        loop {
            let (began, seen) = (Instant::now(), self.framed.codec().data_seen());
            let item = match &mut incoming.upload {
                Upload::Opening(opening) => tokio::select! {
                    biased;
                    opened = opening => Err(opened),
                    item = self.next(pace::SILENCE) => Ok(item),
                },
                _ => Ok(self.next(pace::SILENCE).await),
            };
            // After a fault octets come without items: they are progress all the same.
            let octets = self.framed.codec().data_seen().saturating_sub(seen);
            pace.waited(began.elapsed(), octets);
            let item = match item {
                Ok(item) => item,
                Err(opened) => {
                    incoming.lent = Some(Instant::now());
                    incoming.upload = match opened {
                        Ok(opened) => Upload::Open(opened),
                        Err(outcome) => Upload::Over(Some(outcome)),
                    };
                    self.catch_up(incoming).await;
                    continue;
                }
            };
            if began.elapsed() >= WAITED {
                incoming.stalled = Duration::ZERO;
            }
            match item {
                Ok(ServerItem::Data(_)) if incoming.refusal.is_some() => {}
                Ok(ServerItem::Data(_)) if self.framed.codec().data_size() > limit => {
                    self.limited(Limit::Size);
                    incoming.refuse(too_large(limit));
                }
                Ok(ServerItem::Data(chunk)) => self.take(incoming, chunk).await,
                Ok(ServerItem::DataFault(fault)) => {
                    self.fault(device_fault(fault));
                    incoming.refuse(answer::data_fault(fault));
                }
                Ok(ServerItem::DataEnd { size, mended }) => return Ok(Ended { size, mended }),
                // Inside DATA the codec cuts no lines.
                Ok(ServerItem::Line(_) | ServerItem::LineTooLong | ServerItem::ClientHello)
                | Err(SessionOutcome::TimedOut) => {}
                Err(outcome) => {
                    self.vanished();
                    return Err(outcome);
                }
            }
            if let Some(refusal) = &incoming.refusal {
                let refusal = refusal.clone();
                self.ends_refused_data(&refusal).await?;
            }
            let contended = self.is_waited_for();
            let is_over = incoming.lent.is_some_and(|since| since.elapsed() >= TURN);
            match pace.progress(contended) {
                // What cannot be kept has to go up while it comes.
                Progress::Moving if contended && is_over && incoming.replay.is_some() => {
                    incoming.take_back();
                }
                Progress::Moving => {}
                Progress::Stalled => incoming.take_back(),
                Progress::Dead => {
                    self.limited(Limit::Rate);
                    self.vanished();
                    self.farewell(&answer::timed_out()).await?;
                    return Err(SessionOutcome::TimedOut);
                }
            }
        }
    }

    /// Keeps a chunk, and passes it on if somebody takes it.
    async fn take(&mut self, incoming: &mut Incoming, chunk: Bytes) {
        if let Some(replay) = &mut incoming.replay
            && let Err(error) = replay.push(chunk.clone()).await
        {
            tracing::error!(%error, "mail data cannot be kept: {}", self.id);
            incoming.replay = None;
        }
        // What was read stays in the replay: the next read is given room that has served before, if there is any.
        let room = self.framed.read_buffer_mut();
        if room.is_empty()
            && room.capacity() < LARGE
            && let Some(buffer) = incoming.replay.as_ref().and_then(Replay::buffer)
        {
            *room = buffer;
        }
        if incoming.letter.is_none() && incoming.finder.look(&chunk).is_some() {
            self.address(incoming).await;
        }
        let size = incoming.replay.as_ref().map_or(0, Replay::size);
        match &mut incoming.upload {
            Upload::Open(opened) => {
                let (began, left) = (Instant::now(), self.stall_left(incoming.stalled));
                let streamed = opened.stream(chunk, left).await;
                incoming.went_up(began, streamed);
            }
            Upload::NotYet
                if incoming.asks
                    && size >= EARLY
                    && incoming.letter.is_some()
                    && !self.is_waited_for() =>
            {
                self.ask(incoming);
            }
            Upload::NotYet | Upload::Opening(_) | Upload::Over(_) => {}
        }
        incoming.refuse_if_nowhere();
    }

    /// The header section is there: how the message goes up is decided. Where there is no memory to edit it in, the
    /// spool takes the message.
    async fn address(&mut self, incoming: &mut Incoming) {
        let Some(replay) = &mut incoming.replay else { return };
        let section = match replay.section().await {
            Ok(section) => section,
            Err(error) => {
                tracing::error!(%error, "mail data cannot be read again: {}", self.id);
                incoming.replay = None;
                return incoming.refuse_if_nowhere();
            }
        };
        let head = match &section {
            Some(section) => self.head(section),
            None => {
                self.limited(Limit::Header);
                Err(answer::header_too_long())
            }
        };
        match (head, &mut self.transaction) {
            (Err(reply), _) => incoming.refuse(reply),
            (Ok(head), Some(transaction)) => {
                // As it came, and as it goes up.
                let octets = section.as_ref().map_or(0, |section| 2 * section.fields.len() as u64);
                let octets = Some(octets).filter(|octets| *octets > USUAL).unwrap_or(0);
                incoming.room = replay.room(octets).filter(|_| incoming.asks);
                incoming.asks = incoming.room.is_some();
                let section = section.filter(|_| incoming.asks);
                let (envelope, rule) = (transaction.envelope.clone(), transaction.rule());
                incoming.letter = Some(Letter::new(envelope, head, section, &rule));
            }
            (Ok(_), None) => {}
        }
    }

    /// Asks for a connection while the data go on coming in.
    fn ask(&mut self, incoming: &mut Incoming) {
        let (Some(transaction), Some(letter)) = (&mut self.transaction, &incoming.letter) else {
            return;
        };
        transaction.attempts += 1;
        let pool = Arc::clone(&transaction.mailbox().pool);
        let manner = Manner {
            who: transaction.who(),
            lease: pool.lease_wait(),
            step: self.relay.delivery.device_patience,
            one_by_one: false,
            transcript: self.transcript.clone(),
        };
        let opening = attempt::open(pool, letter.clone(), manner);
        incoming.upload = Upload::Opening(Box::pin(opening));
    }

    /// Sends what had come before the connection was there.
    async fn catch_up(&mut self, incoming: &mut Incoming) {
        let (began, step) = (Instant::now(), self.stall_left(incoming.stalled));
        let all = self.relay.delivery.device_patience.saturating_sub(incoming.stalled);
        if let (Upload::Open(opened), Some(letter), Some(replay)) =
            (&mut incoming.upload, &incoming.letter, &mut incoming.replay)
        {
            // The whole message may be there already, with the dot behind it.
            let sending = timeout(all, opened.send(letter, replay, step));
            let sent = sending.await.unwrap_or_else(|_| {
                let cause = LostCause::Timeout(all);
                Err(Outcome::Lost(Lost { stage: Stage::Data, cause }))
            });
            incoming.went_up(began, sent);
        }
        incoming.refuse_if_nowhere();
    }

    /// How long the smarthost may take nothing at all yet: half of the device's patience is kept for another
    /// attempt.
    fn stall_left(&self, stalled: Duration) -> Duration {
        (self.relay.delivery.device_patience / 2).saturating_sub(stalled)
    }
}

impl Incoming {
    /// Nothing of it is wanted any more; the data are read to their dot all the same.
    fn refuse(&mut self, reply: Reply) {
        self.refusal.get_or_insert(reply);
        self.replay = None;
        self.upload = Upload::Over(None);
    }

    /// Data went up from `began` on, or did not.
    fn went_up(&mut self, began: Instant, sent: Result<(), Outcome>) {
        let took = began.elapsed();
        if took >= STALL {
            self.stalled += took;
        }
        if let Err(outcome) = sent {
            self.upload = Upload::Over(Some(outcome));
        }
    }

    /// The connection is better used by somebody else.
    fn take_back(&mut self) {
        if matches!(self.upload, Upload::Open(_) | Upload::Opening(_)) {
            self.upload = Upload::Over(None);
            self.refuse_if_nowhere();
        }
    }

    /// Data that are neither kept nor on their way up are lost.
    fn refuse_if_nowhere(&mut self) {
        if self.replay.is_none()
            && !matches!(self.upload, Upload::Open(_))
            && self.refusal.is_none()
        {
            self.refuse(answer::no_room(&QueueError::Broken(
                "the mail data could not be written".to_owned(),
            )));
        }
    }
}
