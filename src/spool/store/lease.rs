//! Handing messages out to be delivered.

use std::{
    io, mem,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, ToSql, params};

use super::{
    body::Bodies,
    error::Fault,
    rows::{self, Time},
};
use crate::{
    proto::path::ReversePath,
    spool::queue::{Body, Hold, Leased, RecipientState, State},
};

/// Which messages are meant, the first of them first.
pub(super) enum Which {
    /// Due by now.
    Due(Timestamp),
    /// Held by this.
    Held(Hold),
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

/// Leases up to `most` of these messages. One whose mail data or envelope is gone is set aside and hurts no other.
pub(super) fn lease(
    connection: &Connection,
    bodies: &Bodies,
    which: &Which,
    most: usize,
    now: Timestamp,
) -> Result<Vec<(Lent, Leased)>, Fault> {
    let mut leased = Vec::new();
    while leased.len() < most {
        let found = next(connection, which, most - leased.len())?;
        if found.is_empty() {
            break;
        }
        for seq in found {
            match lend(connection, bodies, seq)? {
                Ok(lent) => leased.push(lent),
                Err(reason) => set_aside(connection, seq, &reason, now)?,
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

/// Gives a message up, for what it needs to be sent is gone. The rest of it stays, so that whoever finds the file
/// can put it back and retry.
pub(super) fn set_aside(
    connection: &Connection,
    seq: i64,
    reason: &str,
    now: Timestamp,
) -> Result<(), Fault> {
    let id: String = connection
        .prepare_cached(
            "UPDATE messages SET state = 'failed', due = NULL, hold = NULL, lease = NULL, forced = 0,
                settled = ?2, reason = ?3, rule = '' WHERE seq = ?1 RETURNING id",
        )?
        .query_row(params![seq, Time(now), reason], |row| row.get(0))?;
    connection
        .prepare_cached(
            "UPDATE recipients SET state = ?2, reply = '' WHERE message = ?1 AND state = ?3",
        )?
        .execute(params![seq, RecipientState::Failed, RecipientState::Pending])?;
    tracing::error!(id, reason, "a message of the spool is lost");
    Ok(())
}

/// Why a message whose file is not there is given up.
pub(super) fn missing(file: &Path) -> String {
    format!("its mail data are gone: {} is missing", file.display())
}

fn next(connection: &Connection, which: &Which, most: usize) -> Result<Vec<i64>, Fault> {
    let most = most as i64;
    // Each states the condition of the index that it is found by.
    let (sql, values): (_, &[&dyn ToSql]) = match which {
        Which::Due(now) => (
            "SELECT seq FROM messages WHERE due <= ?2
                AND +state IN ('ready', 'maybe-sent', 'held')
            ORDER BY due, seq LIMIT ?1",
            &[&most, &Time(*now)],
        ),
        Which::Held(hold) => (
            // By chance: one that is refused whatever is mended must not stand before the others.
            "SELECT seq FROM messages WHERE hold = ?2 AND +state = 'held'
            ORDER BY random() LIMIT ?1",
            &[&most, hold],
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

/// Leases one message, or says why it cannot be delivered any more.
fn lend(
    connection: &Connection,
    bodies: &Bodies,
    seq: i64,
) -> Result<Result<(Lent, Leased), String>, Fault> {
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
        Ok(None) => return Ok(Err("it is gone".to_owned())),
        Err(error) if error.sqlite_error().is_some() => return Err(error.into()),
        Err(_) => return Ok(Err("its row in the database cannot be read".to_owned())),
    };
    match body(connection, bodies, seq, &leased, in_file)? {
        Ok(body) => leased.body = body,
        Err(reason) => return Ok(Err(reason)),
    }
    let envelope = rows::reverse_path(&reverse_path)
        .and_then(|path| Ok((path, rows::recipients(connection, seq)?)));
    let recipients;
    (leased.reverse_path, recipients) = match envelope {
        Ok(envelope) => envelope,
        Err(fault) if fault.of_store => return Err(fault),
        Err(_) => return Ok(Err("its envelope in the database cannot be read".to_owned())),
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
) -> Result<Result<Body, String>, Fault> {
    if !in_file {
        return Ok(
            rows::inline_body(connection, seq)?.ok_or_else(|| "its mail data are gone".to_owned())
        );
    }
    let (path, size) = (bodies.path(&leased.id), leased.body.size());
    Ok(match path.metadata() {
        Ok(file) if file.len() == size => Ok(Body::File { path, size }),
        Ok(file) => Err(format!(
            "its mail data are damaged: {} has {} octets and not {size}",
            path.display(),
            file.len()
        )),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Err(missing(&path)),
        Err(cause) => return Err(cause.into()),
    })
}
