//! A queue in SQLite: envelopes, states and small mail data in `queue.db`, large mail data in files beside it.
//!
//! What a method has answered is on disk: the database syncs its log at each commit, and a file is synced and in
//! its place before its row is. After a kill at any moment a start finds each message whole or not at all; what
//! can be left over is a file without a row, and that is swept.
//!
//! ```text
//! writer    who works on the connection; many share a commit
//! schema    the tables, their versions, and the way from one to the next
//! rows      messages as rows          lease     handing messages out
//! body      mail data as files        change    what becomes of them
//! room      whether more fits in      open      at start, with recover: what an earlier relay has left
//! ```

mod body;
mod change;
mod error;
mod lease;
mod open;
mod point;
mod recover;
mod room;
mod rows;
mod schema;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    collections::HashMap,
    mem,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
};

use futures_util::FutureExt as _;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _};
use tokio::task::spawn_blocking;

use self::{
    body::{Bodies, CameIn, Stored},
    change::Unneeded,
    error::Fault,
    lease::{Claim, Unfetched, Which},
    room::Room,
    writer::{Kind, Writer},
};
pub use self::{error::OpenError, point::point};
use super::{
    place::Place,
    queue::{
        Answer, Body, Change, Changed, Detail, Due, Filter, Hold, Leased, NewMessage, NewNotice,
        Notice, Queue, QueueError, Settlement, State, Stop, Summary, Totals,
    },
};

/// Messages that are purged in one commit, so that others get their turn between.
const PURGE: u32 = 500;

/// A spool on disk.
pub struct Store {
    place: Place,
    bodies: Arc<Bodies>,
    room: Arc<Room>,
    writer: Writer,
    unfetched: Unfetched,
    /// The device of each mailbox that had the last turn.
    turns: Mutex<HashMap<String, String>>,
    /// The last time that anybody has told, in milliseconds: for what has to bear one where none is told.
    told: Arc<AtomicI64>,
}

impl Store {
    /// The folder for files that a message is written to while it comes in.
    pub fn incoming(&self) -> &Path {
        self.place.incoming()
    }

    /// Whether it can take so many octets more: `max_size`, free disk (as it was less than a second ago), and
    /// whether the last write succeeded. After one that did not, one message a second is let through to try.
    pub fn room(&self, octets: u64) -> Result<(), QueueError> {
        self.room.admit(octets)
    }

    /// Why it can take no message, if it cannot.
    pub fn trouble(&self) -> Option<QueueError> {
        self.room.trouble()
    }

    /// Finds out whether a store that did not work works again, by a write that changes nothing. Devices would find
    /// out too, but none comes while somebody keeps them away from a relay that is not ready.
    pub async fn heal(&self) {
        if self.room.trouble().is_some() {
            // A failure is known already.
            let _ = self.submit(Kind::Note, change::nothing).await;
        }
    }

    /// Octets free on the disk.
    pub fn disk_free(&self) -> Option<u64> {
        self.room.disk().map(|disk| disk.free)
    }

    /// To be called at start and now and then, with the mailboxes of the configuration: what waits or is held for
    /// others becomes held as [`Hold::MailboxGone`], and what was held so and has its mailbox back becomes *ready* at
    /// `now`. What an operator has released from that goes through any.
    pub fn adopt(&self, mailboxes: &[String], now: Timestamp) -> Answer<'_, ()> {
        let mailboxes = mailboxes.to_vec();
        self.tell(now);
        self.submit(Kind::Note, move |connection| change::adopt(connection, &mailboxes, now))
    }
}

impl Store {
    fn submit<T: Send + 'static>(
        &self,
        kind: Kind,
        work: impl FnMut(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Answer<'_, T> {
        self.writer.submit(kind, work, |value| value).boxed()
    }

    fn read<T: Send + 'static>(
        &self,
        work: impl FnMut(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Answer<'_, T> {
        self.submit(Kind::Read, work)
    }

    fn lease(&self, which: Which, most: usize) -> Answer<'_, Vec<Leased>> {
        let bodies = Arc::clone(&self.bodies);
        let (unfetched, told) = (Arc::clone(&self.unfetched), Arc::clone(&self.told));
        let lost = Arc::clone(&self.unfetched);
        let work = move |connection: &Connection| {
            let lent = unfetched.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let put_back = lease::put_back(connection, &lent)?;
            let now = Timestamp::from_millisecond(told.load(Ordering::Relaxed)).unwrap_or_default();
            Ok((put_back, lease::lease(connection, &bodies, &which, most, now)?))
        };
        // What was put back stays in the list until that is on disk.
        let committed = move |(put_back, messages): (Vec<i64>, _)| {
            lost.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .retain(|lent| !put_back.contains(&lent.lease));
            point("lease-committed");
            Claim::new(messages, lost)
        };
        async move { Ok(self.writer.submit(Kind::Offer, work, committed).await?.fetch()) }.boxed()
    }

    /// Takes a message over; `with` is what else belongs to the same commit. The file that it came in is the
    /// store's from the call on: whatever becomes of the message, or of the future, it does not stay there.
    fn insert(
        &self,
        message: NewMessage,
        with: impl FnMut(&Connection) -> Result<(), Fault> + Send + 'static,
    ) -> Answer<'_, ()> {
        let came_in = self.bodies.came_in(&message.body);
        self.insert_from(came_in, message, with).boxed()
    }

    async fn insert_from(
        &self,
        came_in: Option<CameIn>,
        message: NewMessage,
        mut with: impl FnMut(&Connection) -> Result<(), Fault> + Send + 'static,
    ) -> Result<(), QueueError> {
        if !body::is_id(&message.id) {
            return Err(QueueError::Broken(format!("{:?} is no id of a message", message.id)));
        }
        let size = message.body.size();
        // What tells people that the spool is full has to get through.
        if !message.is_notice {
            self.room.fits(size)?;
        }
        let stored = self.put(came_in, &message).await?;
        // The file goes with the job, whatever becomes of that: it is kept if the row is, and only then.
        let keeper = stored.keeper();
        let work = move |connection: &Connection| {
            let (stored, message) = (&stored, &message);
            with(connection)?;
            rows::insert(connection, message, stored)?;
            point("row-inserted");
            Ok(())
        };
        let room = Arc::clone(&self.room);
        let committed = move |()| {
            keeper.keep();
            room.took(size);
            point("committed");
        };
        self.writer.submit(Kind::Offer, work, committed).await
    }

    async fn put(
        &self,
        came_in: Option<CameIn>,
        message: &NewMessage,
    ) -> Result<Stored, QueueError> {
        let (id, body) = (message.id.clone(), message.body.clone());
        let bodies = Arc::clone(&self.bodies);
        let done = message.standing.state == State::Done;
        let put = move || {
            // It goes with the work: nobody else may remove the file while that moves it.
            let _came_in = came_in;
            match body {
                // Nobody needs the mail data of what is delivered.
                body if done => bodies.discard(&body).map(|()| Stored::Row(Vec::new())),
                body => bodies.put(&id, body),
            }
        };
        let outcome = match &message.body {
            Body::Chunks(_) if message.body.size() <= body::INLINE => put(),
            _ => spawn_blocking(put)
                .await
                .unwrap_or_else(|_| Err(Fault::of_job("its work was broken off"))),
        };
        outcome.map_err(|fault| {
            self.room.failed(&fault);
            fault.error
        })
    }

    fn turns(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, now: Timestamp) {
        self.told.fetch_max(now.as_millisecond(), Ordering::Relaxed);
    }

    /// Removes the files of messages that do not need them any more, once that is on disk.
    fn remover(&self) -> impl Fn(Unneeded) + Send + 'static {
        let bodies = Arc::clone(&self.bodies);
        move |Unneeded(id)| {
            if let Some(id) = id {
                body::remove(&bodies.path(&id));
            }
        }
    }
}

impl Queue for Store {
    fn take(&self, message: NewMessage) -> Answer<'_, ()> {
        self.insert(message, |_| Ok(()))
    }

    fn lease_due(&self, due: Due) -> Answer<'_, Vec<Leased>> {
        self.tell(due.now);
        let (mailbox, most) = (due.mailbox.clone(), due.most);
        let after = self.turns().get(&mailbox).cloned().unwrap_or_default();
        let leasing = self.lease(Which::Due(due, after), most);
        async move {
            let leased = leasing.await?;
            if let Some(last) = leased.last() {
                self.turns().insert(mailbox, last.device.clone());
            }
            Ok(leased)
        }
        .boxed()
    }

    fn lease_held(&self, mailbox: String, hold: Hold) -> Answer<'_, Option<Leased>> {
        let leased = self.lease(Which::Held(mailbox, hold), 1);
        async move { Ok(leased.await?.pop()) }.boxed()
    }

    fn lease_overdue(
        &self,
        waiting: Timestamp,
        held: Timestamp,
        most: usize,
    ) -> Answer<'_, Vec<Leased>> {
        self.lease(Which::Overdue(waiting, held), most)
    }

    fn settle(&self, settlement: Settlement) -> Answer<'_, bool> {
        self.tell(settlement.now);
        let remove = self.remover();
        let work = move |connection: &Connection| change::settle(connection, &settlement);
        let committed = move |outcome: Option<Unneeded>| {
            let settled = outcome.is_some();
            point("settled");
            outcome.into_iter().for_each(remove);
            settled
        };
        self.writer.submit(Kind::Note, work, committed).boxed()
    }

    fn hold_all(&self, stop: Stop) -> Answer<'_, u64> {
        self.submit(Kind::Note, move |connection| change::hold_all(connection, &stop))
    }

    fn release_all(&self, mailbox: String, hold: Hold, now: Timestamp) -> Answer<'_, u64> {
        self.tell(now);
        self.submit(Kind::Note, move |connection| {
            change::release_all(connection, &mailbox, &hold, now)
        })
    }

    fn holds(&self) -> Answer<'_, Vec<(String, Hold)>> {
        self.read(change::holds)
    }

    fn purge(&self, done: Timestamp, failed: Timestamp) -> Answer<'_, u64> {
        async move {
            let mut purged = 0;
            loop {
                let remove = self.remover();
                let work =
                    move |connection: &Connection| change::purge(connection, done, failed, PURGE);
                let committed = move |(count, unneeded): (u64, Vec<Unneeded>)| {
                    unneeded.into_iter().for_each(remove);
                    count
                };
                let count = self.writer.submit(Kind::Note, work, committed).await?;
                purged += count;
                if count < u64::from(PURGE) {
                    return Ok(purged);
                }
            }
        }
        .boxed()
    }

    fn totals(&self) -> Answer<'_, Totals> {
        let room = Arc::clone(&self.room);
        let committed = move |totals: Totals| {
            room.counted(totals.bytes);
            totals
        };
        self.writer.submit(Kind::Read, rows::totals, committed).boxed()
    }

    fn list(&self, filter: Filter) -> Answer<'_, Vec<Summary>> {
        self.read(move |connection| rows::list(connection, &filter))
    }

    fn show(&self, id: String) -> Answer<'_, Option<Detail>> {
        self.read(move |connection| rows::show(connection, &id))
    }

    fn body(&self, id: String) -> Answer<'_, Option<Body>> {
        let bodies = Arc::clone(&self.bodies);
        self.read(move |connection| {
            let found = connection
                .prepare_cached("SELECT seq, in_file, size FROM messages WHERE id = ?1")?
                .query_row([&id], |row| Ok((row.get(0)?, row.get(1)?, rows::count(row, "size")?)))
                .optional()?;
            match found {
                None => Ok(None),
                Some((_, true, size)) => Ok(Some(Body::File { path: bodies.path(&id), size })),
                Some((seq, false, _)) => Ok(rows::inline_body(connection, seq)?),
            }
        })
    }

    fn change(&self, id: String, change: Change, now: Timestamp) -> Answer<'_, Changed> {
        self.tell(now);
        let remove = self.remover();
        let work = move |connection: &Connection| change::change(connection, &id, change, now);
        let committed = move |(changed, unneeded)| {
            remove(unneeded);
            changed
        };
        self.writer.submit(Kind::Note, work, committed).boxed()
    }

    fn notice(&self, notice: NewNotice) -> Answer<'_, ()> {
        self.submit(Kind::Note, move |connection| rows::add_notice(connection, &notice))
    }

    fn notices(&self) -> Answer<'_, Vec<Notice>> {
        self.read(rows::notices)
    }

    fn notified(&self, notices: Vec<i64>, carrier: Option<NewMessage>) -> Answer<'_, ()> {
        match carrier {
            Some(carrier) => {
                self.insert(carrier, move |connection| change::forget(connection, &notices))
            }
            None => self.submit(Kind::Note, move |connection| change::forget(connection, &notices)),
        }
    }
}

impl Drop for Store {
    /// What was leased for callers that went away was never sent: without this it would be *maybe sent*.
    fn drop(&mut self) {
        let lent = mem::take(&mut *self.unfetched.lock().unwrap_or_else(PoisonError::into_inner));
        self.writer.close(|connection| lease::put_back(connection, &lent).map(|_| ()));
    }
}
