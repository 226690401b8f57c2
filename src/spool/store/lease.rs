//! Handing messages out to be delivered.

use std::{
    io, mem,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, ErrorCode, OptionalExtension as _, Row, ToSql, params};

use super::{
    body::Bodies,
    error::{Fault, words},
    rows::{self, Time},
};
use crate::{
    proto::path::ReversePath,
    spool::queue::{Body, Due, Hold, Leased, NewNotice, RecipientState, State},
};

/// When mail data that cannot be read are looked at again.
const LATER: SignedDuration = SignedDuration::from_hours(1);

/// Which messages are meant, the first of them first.
pub(super) enum Which {
    /// Due; the turns go on behind this device.
    Due(Due, String),
    /// Held by this at a mailbox.
    Held(String, Hold),
    /// Received before these, waiting and held. What an operator has forced gets its try first.
    Overdue(Timestamp, Timestamp),
}

/// Leases whose callers went away before they had them. The next lease puts them back.
pub(super) type Unfetched = Arc<Mutex<Vec<Lent>>>;

/// A message that was handed out, and how it stood before.
#[derive(Clone, Debug)]
pub(super) struct Lent {
    seq: i64,
    /// The lease's number: by the time that it is put back, somebody else may have it.
    pub(super) lease: i64,
    state: State,
    due: Option<Timestamp>,
    hold: Option<Hold>,
    forced: bool,
}

/// Why a message cannot be delivered.
pub(super) enum Unfit {
    /// What it needs is gone or damaged.
    Lost(String),
    /// Its mail data are there, and cannot be read just now.
    Unreadable(String),
}

/// Messages on their way to the caller.
pub(super) struct Claim {
    messages: Vec<(Lent, Leased)>,
    unfetched: Unfetched,
}

impl Claim {
    pub(super) fn new(messages: Vec<(Lent, Leased)>, unfetched: Unfetched) -> Self {
        Self { messages, unfetched }
    }

    /// The caller has them.
    pub(super) fn fetch(mut self) -> Vec<Leased> {
        mem::take(&mut self.messages).into_iter().map(|(_, leased)| leased).collect()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let lent = self.messages.drain(..).map(|(lent, _)| lent);
        self.unfetched.lock().unwrap_or_else(PoisonError::into_inner).extend(lent);
    }
}

/// Leases up to `most` of these messages. One whose mail data or envelope is gone or cannot be read is set aside and
/// hurts no other.
pub(super) fn lease(
    connection: &Connection,
    bodies: &Bodies,
    which: &Which,
    most: usize,
    now: Timestamp,
) -> Result<Vec<(Lent, Leased)>, Fault> {
    let (mut leased, mut aside) = (Vec::new(), Vec::new());
    // Each round of turns has one message of each device, and begins where the one before did.
    while leased.len() < most {
        let mut found = next(connection, which, most - leased.len())?;
        // A probe of single messages may come upon one again that it has just set aside.
        found.retain(|seq| !aside.contains(seq));
        if found.is_empty() {
            break;
        }
        for seq in found {
            match lend(connection, bodies, seq)? {
                Ok(lent) => leased.push(lent),
                Err(unfit) => {
                    // What has waited long enough waits no longer.
                    let unfit = match (unfit, which) {
                        (Unfit::Unreadable(reason), Which::Overdue(..)) => Unfit::Lost(reason),
                        (unfit, _) => unfit,
                    };
                    set_aside(connection, seq, &unfit, now)?;
                    aside.push(seq);
                }
            }
        }
    }
    Ok(leased)
}

/// Puts these back as they were, where they are still leased. Returns their leases' numbers.
pub(super) fn put_back(connection: &Connection, unfetched: &[Lent]) -> Result<Vec<i64>, Fault> {
    for lent in unfetched {
        connection
            .prepare_cached(
                "UPDATE messages SET state = ?3, due = ?4, hold = ?5, forced = ?6, lease = NULL
                WHERE seq = ?1 AND lease = ?2 AND state = 'leased'",
            )?
            .execute(params![
                lent.seq,
                lent.lease,
                lent.state,
                lent.due.map(Time),
                lent.hold,
                lent.forced
            ])?;
    }
    Ok(unfetched.iter().map(|lent| lent.lease).collect())
}

/// Sets a message aside that cannot be delivered, and has somebody told. One that has lost what it needs is given up;
/// the rest of it stays, so that whoever finds the file can put it back and retry. One that cannot be read is held,
/// and looked at again later.
pub(super) fn set_aside(
    connection: &Connection,
    seq: i64,
    unfit: &Unfit,
    now: Timestamp,
) -> Result<(), Fault> {
    let (reason, state, hold) = match unfit {
        Unfit::Lost(reason) => (reason, State::Failed, None),
        Unfit::Unreadable(reason) => (reason, State::Held, Some(Hold::Message)),
    };
    let due = hold.as_ref().map(|_| Time(now.saturating_add(LATER).unwrap_or(now)));
    let known: bool = connection
        .prepare_cached("SELECT hold IS ?2 AND reason = ?3 FROM messages WHERE seq = ?1")?
        .query_row(params![seq, Hold::Message, reason], |row| row.get(0))?;
    let (id, device, from, is_notice): (String, String, String, bool) = connection
        .prepare_cached(
            "UPDATE messages SET state = ?2, due = ?3, hold = ?4, lease = NULL, forced = 0,
                settled = ?5, reason = ?6, rule = ''
            WHERE seq = ?1 RETURNING id, device, reverse_path, is_notice",
        )?
        .query_row(params![seq, state, due, hold, Time(now), reason], |row| {
            // What is wrong with the row may be wrong with these.
            let text = |column| rows::lossy(row, column);
            Ok((text(0)?, text(1)?, text(2)?, row.get(3)?))
        })?;
    if state == State::Failed {
        connection
            .prepare_cached(
                "UPDATE recipients SET state = ?2, reply = '' WHERE message = ?1 AND state = ?3",
            )?
            .execute(params![seq, RecipientState::Failed, RecipientState::Pending])?;
        tracing::error!(id, reason, "a message of the spool is lost");
    } else {
        tracing::error!(id, reason, "a message of the spool cannot be read; it is tried again");
    }
    // Of a notice nobody is told, and of one that is still unreadable nobody is told again.
    if is_notice || (known && state == State::Held) {
        return Ok(());
    }
    rows::add_notice(connection, &unfit.notice(&id, &device, &from, now))
}

impl Unfit {
    fn notice(&self, id: &str, device: &str, from: &str, now: Timestamp) -> NewNotice {
        let from = if from.is_empty() { "nobody (<>)" } else { from };
        let message =
            format!("The message\n  id        {id}\n  device    {device}\n  from      {from}\n");
        let (subject, text) = match self {
            Self::Lost(reason) => (
                format!("Lost: mail of {device}"),
                format!(
                    "A message that the relay had taken over cannot be delivered:\n  {reason}\n\n\
                     If you have the file, from a backup or where it was moved to, put it back and say \
                     smtp-uplift queue retry {id}. Else have it sent again by the device.\n\n{message}"
                ),
            ),
            Self::Unreadable(reason) => (
                format!("Held: a message of {device}"),
                format!(
                    "A message that the relay had taken over cannot be read:\n  {reason}\n\n\
                     It is held and tried again each hour. See whether the disk is whole and whose the file is, \
                     mend it, and say smtp-uplift queue retry {id}.\n\n{message}"
                ),
            ),
        };
        NewNotice { subject, text, time: now }
    }
}

/// Why a message whose file is not there is given up.
pub(super) fn missing(file: &Path) -> Unfit {
    Unfit::Lost(format!("its mail data are gone: {} is missing", file.display()))
}

fn next(connection: &Connection, which: &Which, most: usize) -> Result<Vec<i64>, Fault> {
    let most = most as i64;
    // Each states the condition of the index that it is found by.
    let (sql, values): (_, &[&dyn ToSql]) = match which {
        Which::Due(due, after) => return round(connection, due, after, most),
        Which::Held(mailbox, hold) => (
            // The least tried: one that is refused whatever is mended must not stand before the others.
            "SELECT seq FROM messages WHERE hold = ?2 AND +state = 'held'
                AND mailbox = ?3 COLLATE NOCASE
            ORDER BY attempts, random() LIMIT ?1",
            &[&most, hold, mailbox],
        ),
        Which::Overdue(waiting, held) => (
            "SELECT seq FROM messages WHERE state IN ('ready', 'maybe-sent') AND received < ?2
                AND forced = 0
            UNION ALL
            SELECT seq FROM messages WHERE state = 'held' AND received < ?3
            ORDER BY seq LIMIT ?1",
            &[&most, &Time(*waiting), &Time(*held)],
        ),
    };
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map(values, |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Of each device behind one and up to another its longest due. The recursion skips from device to device in the
/// index, however many messages each has.
pub(super) const ROUND: &str = "WITH RECURSIVE turn (device) AS (
        SELECT min(device) FROM messages
        WHERE due IS NOT NULL AND mailbox = ?1 COLLATE NOCASE AND device > ?2
        UNION ALL
        SELECT (SELECT min(device) FROM messages
            WHERE due IS NOT NULL AND mailbox = ?1 COLLATE NOCASE AND device > turn.device)
        FROM turn WHERE turn.device IS NOT NULL)
    SELECT first FROM (
        SELECT (SELECT seq FROM messages
            WHERE due <= ?4 AND mailbox = ?1 COLLATE NOCASE AND device = turn.device
                AND +state IN ('ready', 'maybe-sent', 'held') AND NOT (+bound AND ?5)
            ORDER BY due, seq LIMIT 1) AS first
        FROM turn WHERE device IS NOT NULL AND (?3 IS NULL OR device <= ?3))
    WHERE first IS NOT NULL LIMIT ?6";

/// One round of turns: the devices behind `after`, then the others.
fn round(
    connection: &Connection,
    Due { mailbox, unbound, now, .. }: &Due,
    after: &str,
    most: i64,
) -> Result<Vec<i64>, Fault> {
    let mut statement = connection.prepare_cached(ROUND)?;
    let mut found: Vec<i64> = Vec::new();
    // No device has an empty name.
    for (from, to) in [(after, None), ("", Some(after))] {
        let left = most - found.len() as i64;
        let values = params![mailbox, from, to, Time(*now), unbound, left];
        let rows = statement.query_map(values, |row| row.get(0))?;
        found.extend(rows.collect::<Result<Vec<i64>, _>>()?);
        if after.is_empty() || found.len() as i64 >= most {
            break;
        }
    }
    Ok(found)
}

/// Leases one message, or says why it cannot be delivered any more.
fn lend(
    connection: &Connection,
    bodies: &Bodies,
    seq: i64,
) -> Result<Result<(Lent, Leased), Unfit>, Fault> {
    let lost = |reason: &str| Ok(Err(Unfit::Lost(reason.to_owned())));
    let read = |row: &Row<'_>| {
        let lent = Lent {
            seq,
            lease: fastrand::i64(1..),
            state: row.get("state")?,
            due: rows::time(row, "due")?,
            hold: row.get("hold")?,
            forced: row.get("forced")?,
        };
        let leased = Leased {
            id: row.get("id")?,
            mailbox: row.get("mailbox")?,
            bound: row.get("bound")?,
            forced: lent.forced,
            device: row.get("device")?,
            // Both are filled in below.
            reverse_path: ReversePath::Null,
            body: Body::File { path: PathBuf::new(), size: rows::count(row, "size")? },
            eight_bit: row.get("eight_bit")?,
            smtputf8: row.get("smtputf8")?,
            received: row.get::<_, Time>("received")?.0,
            head: row.get("head")?,
            is_notice: row.get("is_notice")?,
            recipients: Vec::new(),
            state: lent.state,
            hold: lent.hold.clone(),
            reason: row.get("reason")?,
            rule: row.get("rule")?,
            attempts: row.get("attempts")?,
            maybe_sent: row.get("maybe_sent")?,
        };
        Ok((lent, leased, row.get::<_, String>("reverse_path")?, row.get::<_, bool>("in_file")?))
    };
    let found = connection
        .prepare_cached("SELECT * FROM messages WHERE seq = ?1")?
        .query_row([seq], read)
        .optional();
    let (lent, mut leased, reverse_path, in_file) = match found {
        Ok(Some(found)) => found,
        Ok(None) => return lost("it is gone"),
        Err(error) if error.sqlite_error().is_some() => return Err(error.into()),
        Err(_) => return lost("its row in the database cannot be read"),
    };
    match body(connection, bodies, seq, &leased, in_file)? {
        Ok(body) => leased.body = body,
        Err(unfit) => return Ok(Err(unfit)),
    }
    let envelope = rows::reverse_path(&reverse_path)
        .and_then(|path| Ok((path, rows::recipients(connection, seq)?)));
    let recipients;
    (leased.reverse_path, recipients) = match envelope {
        Ok(envelope) => envelope,
        Err(fault) if fault.of_store => return Err(fault),
        Err(_) => return lost("its envelope in the database cannot be read"),
    };
    leased.recipients = recipients
        .into_iter()
        .enumerate()
        .filter(|(_, recipient)| recipient.state == RecipientState::Pending)
        .map(|(place, recipient)| (place, recipient.path))
        .collect();
    connection
        .prepare_cached(
            "UPDATE messages SET state = 'leased', due = NULL, hold = NULL, lease = ?2
            WHERE seq = ?1",
        )?
        .execute([seq, lent.lease])?;
    Ok(Ok((lent, leased)))
}

fn body(
    connection: &Connection,
    bodies: &Bodies,
    seq: i64,
    leased: &Leased,
    in_file: bool,
) -> Result<Result<Body, Unfit>, Fault> {
    if let Some(reason) = bodies.unreadable().remove(&seq) {
        return Ok(Err(Unfit::Unreadable(reason)));
    }
    if !in_file {
        return match rows::inline_body(connection, seq) {
            Ok(body) => Ok(body.ok_or_else(|| Unfit::Lost("its mail data are gone".to_owned()))),
            // Pages of its own are damaged: the rest of the database may well be whole. After such an error SQLite
            // writes nothing more in this transaction: the next lease sets it aside, and does not read it before.
            Err(error) if is_damage(&error) => {
                let reason =
                    format!("its mail data in the database cannot be read: {}", words(&error));
                bodies.unreadable().insert(seq, reason.clone());
                Err(Fault::of_job(format!("of message {} {reason}", leased.id)))
            }
            Err(error) => Err(error.into()),
        };
    }
    let (path, size) = (bodies.path(&leased.id), leased.body.size());
    Ok(match path.metadata() {
        Ok(file) if file.len() == size => Ok(Body::File { path, size }),
        Ok(file) => Err(Unfit::Lost(format!(
            "its mail data are damaged: {} has {} octets and not {size}",
            path.display(),
            file.len()
        ))),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Err(missing(&path)),
        Err(cause) => Err(Unfit::Unreadable(format!(
            "its mail data cannot be read: {}: {cause}",
            path.display()
        ))),
    })
}

fn is_damage(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error_code();
    matches!(code, Some(ErrorCode::DatabaseCorrupt | ErrorCode::SystemIoFailure))
}
