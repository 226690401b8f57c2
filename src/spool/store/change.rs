//! What becomes of messages that are there. Another program may have changed them a moment ago: each change looks
//! at the state first, in the same transaction.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, named_params, params};

use super::{
    error::Fault,
    rows::{self, Time},
};
use crate::spool::queue::{Change, Changed, Hold, RecipientState, Settlement, State, Stop};

/// A message's file is not needed any more, once the change is on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unneeded(pub(super) Option<String>);

/// Says what became of a message; `None` if it is neither leased nor awaited.
pub(super) fn settle(
    connection: &Connection,
    settlement: &Settlement,
) -> Result<Option<Unneeded>, Fault> {
    let standing = &settlement.standing;
    if matches!(standing.state, State::Leased | State::Awaiting) {
        return Err(Fault::of_job(format!("{} is no end of a delivery", standing.state.as_str())));
    }
    let found: Option<(i64, bool)> = connection
        .prepare_cached(
            "UPDATE messages SET state = :state, due = :due, hold = :hold, lease = NULL,
                forced = :forced, mailbox = coalesce(:mailbox, mailbox), settled = :now, reason = :reason,
                rule = :rule, attempts = :attempts, maybe_sent = maybe_sent + :maybe_sent,
                transcript = :transcript
            WHERE id = :id AND state IN ('leased', 'awaiting') RETURNING seq, in_file",
        )?
        .query_row(
            named_params! {
                ":id": settlement.id,
                ":mailbox": settlement.mailbox,
                ":forced": settlement.forced,
                ":state": standing.state,
                ":due": rows::due(standing).map(Time),
                ":hold": rows::hold(standing),
                ":now": Time(settlement.now),
                ":reason": standing.reason,
                ":rule": standing.rule,
                ":attempts": standing.attempts,
                ":maybe_sent": u32::from(standing.maybe_sent),
                ":transcript": standing.transcript,
            },
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()?;
    let Some((seq, in_file)) = found else {
        return Ok(None);
    };
    let mut recipient = connection.prepare_cached(
        "UPDATE recipients SET state = ?3, reply = ?4 WHERE message = ?1 AND place = ?2",
    )?;
    for (place, state, reply) in &settlement.recipients {
        recipient.execute(params![seq, *place as i64, state, reply])?;
    }
    if let Some(notice) = &settlement.notice {
        rows::add_notice(connection, notice)?;
    }
    if standing.state != State::Done {
        return Ok(Some(Unneeded(None)));
    }
    // Whoever was refused earlier keeps the message from being done.
    let failed = connection
        .prepare_cached(
            "UPDATE messages SET state = ?2 WHERE seq = ?1
                AND EXISTS (SELECT 1 FROM recipients WHERE message = ?1 AND state = ?3)",
        )?
        .execute(params![seq, State::Failed, RecipientState::Failed])?;
    if failed > 0 {
        return Ok(Some(Unneeded(None)));
    }
    connection.prepare_cached("DELETE FROM bodies WHERE message = ?1")?.execute([seq])?;
    connection.prepare_cached("UPDATE messages SET in_file = 0 WHERE seq = ?1")?.execute([seq])?;
    Ok(Some(Unneeded(in_file.then(|| settlement.id.clone()))))
}

/// Does what an operator wants.
pub(super) fn change(
    connection: &Connection,
    id: &str,
    change: Change,
    now: Timestamp,
) -> Result<(Changed, Unneeded), Fault> {
    let found: Option<(i64, State, bool)> = connection
        .prepare_cached("SELECT seq, state, in_file FROM messages WHERE id = ?1")?
        .query_row([id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    let Some((seq, state, in_file)) = found else {
        return Ok((Changed::NotFound, Unneeded(None)));
    };
    let waits = matches!(state, State::Ready | State::MaybeSent | State::Held);
    let mut unneeded = Unneeded(None);
    match change {
        Change::Retry if state == State::Failed && again(connection, seq)? => {
            force(connection, seq, now)?;
        }
        Change::Retry if waits => force(connection, seq, now)?,
        Change::Release if state == State::Held => force(connection, seq, now)?,
        Change::Hold if waits => {
            connection
                .prepare_cached(
                    "UPDATE messages SET state = 'held', due = NULL, hold = ?2, forced = 0
                    WHERE seq = ?1",
                )?
                .execute(params![seq, Hold::Operator])?;
        }
        Change::Drop if waits || matches!(state, State::Failed | State::Done) => {
            connection.prepare_cached("DELETE FROM messages WHERE seq = ?1")?.execute([seq])?;
            unneeded = Unneeded(in_file.then(|| id.to_owned()));
        }
        _ => return Ok((Changed::NotNow(state), unneeded)),
    }
    Ok((Changed::Done, unneeded))
}

/// Whom it has failed for is to be delivered to again. False if there is nobody.
fn again(connection: &Connection, seq: i64) -> Result<bool, Fault> {
    connection
        .prepare_cached(
            "UPDATE recipients SET state = ?2, reply = '' WHERE message = ?1 AND state = ?3",
        )?
        .execute(params![seq, RecipientState::Pending, RecipientState::Failed])?;
    let mut pending =
        connection.prepare_cached("SELECT 1 FROM recipients WHERE message = ?1 AND state = ?2")?;
    Ok(pending.exists(params![seq, RecipientState::Pending])?)
}

/// To be tried now, whatever holds it; through any mailbox if its own is gone.
fn force(connection: &Connection, seq: i64, now: Timestamp) -> Result<(), Fault> {
    connection
        .prepare_cached(
            "UPDATE messages SET state = 'ready', due = ?2, hold = NULL, forced = 1,
                mailbox = iif(hold IS ?3, '', mailbox), bound = iif(hold IS ?3, 0, bound)
            WHERE seq = ?1",
        )?
        .execute(params![seq, Time(now), Hold::MailboxGone])?;
    Ok(())
}

/// Holds what waits and what the hold reaches; SQL's words for [`Hold::reaches`].
pub(super) fn hold_all(connection: &Connection, stop: &Stop) -> Result<u64, Fault> {
    let Stop { mailbox, hold, reason, rule, bound } = stop;
    let sender = match hold {
        Hold::Operator | Hold::Message | Hold::MailboxGone => return Ok(0),
        Hold::Sender(address) => Some(address),
        Hold::Mailbox | Hold::Credential | Hold::Smarthost => None,
    };
    // NOCASE compares the case of ASCII letters only, as eq_ignore_ascii_case does. With a null reverse-path it is
    // the mailbox itself that sends.
    let changed = connection
        .prepare_cached(
            "UPDATE messages SET state = 'held', due = NULL, hold = ?1, reason = ?2, rule = ?3
            WHERE state IN ('ready', 'maybe-sent') AND forced = 0
                AND mailbox = ?5 COLLATE NOCASE AND (bound OR NOT ?6)
                AND (?4 IS NULL OR reverse_path = ?4 COLLATE NOCASE
                    OR (reverse_path = '' AND mailbox = ?4 COLLATE NOCASE))",
        )?
        .execute(params![hold, reason, rule, sender, mailbox, bound])?;
    Ok(changed as u64)
}

/// Makes ready what is held by this.
pub(super) fn release_all(
    connection: &Connection,
    mailbox: &str,
    hold: &Hold,
    now: Timestamp,
) -> Result<u64, Fault> {
    let changed = connection
        .prepare_cached(
            "UPDATE messages SET state = 'ready', due = ?2, hold = NULL
            WHERE hold = ?1 AND +state = 'held' AND mailbox = ?3 COLLATE NOCASE",
        )?
        .execute(params![hold, Time(now), mailbox])?;
    Ok(changed as u64)
}

/// What holds something, and where.
pub(super) fn holds(connection: &Connection) -> Result<Vec<(String, Hold)>, Fault> {
    let mut statement = connection.prepare_cached(
        "SELECT DISTINCT mailbox, hold FROM messages WHERE hold IS NOT NULL ORDER BY mailbox, hold",
    )?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Holds what goes through mailboxes that are not among these, and releases what was held for that. What an operator
/// holds stays so. The case of ASCII letters makes no other mailbox.
pub(super) fn adopt(
    connection: &Connection,
    mailboxes: &[String],
    now: Timestamp,
) -> Result<(), Fault> {
    let known = rows::names(mailboxes.iter().map(String::as_str));
    connection.execute(
        "UPDATE messages SET state = 'held', due = NULL, hold = ?2, forced = 0, rule = '',
            reason = 'its mailbox ' || mailbox || ' is not in the configuration any more'
        WHERE state IN ('ready', 'maybe-sent', 'held') AND hold IS NOT ?2 AND hold IS NOT ?3
            AND mailbox <> '' AND mailbox COLLATE NOCASE NOT IN (SELECT value FROM json_each(?1))",
        params![known, Hold::MailboxGone, Hold::Operator],
    )?;
    connection.execute(
        "UPDATE messages SET state = 'ready', due = ?3, hold = NULL
        WHERE hold = ?2 AND +state = 'held'
            AND mailbox COLLATE NOCASE IN (SELECT value FROM json_each(?1))",
        params![known, Hold::MailboxGone, Time(now)],
    )?;
    Ok(())
}

/// Deletes up to `most` messages that were kept long enough. Returns how many, and whose files are not needed.
pub(super) fn purge(
    connection: &Connection,
    done: Timestamp,
    failed: Timestamp,
    most: u32,
) -> Result<(u64, Vec<Unneeded>), Fault> {
    let mut statement = connection.prepare_cached(
        "DELETE FROM messages WHERE seq IN (
            SELECT seq FROM messages WHERE state = 'done' AND settled < ?1
            UNION ALL SELECT seq FROM messages WHERE state = 'failed' AND settled < ?2
            LIMIT ?3)
        RETURNING id, in_file",
    )?;
    let rows = statement.query_map(params![Time(done), Time(failed), most], |row| {
        let id: String = row.get(0)?;
        Ok(Unneeded(row.get::<_, bool>(1)?.then_some(id)))
    })?;
    let unneeded = rows.collect::<Result<Vec<_>, _>>()?;
    Ok((unneeded.len() as u64, unneeded))
}

/// Writes and takes it back, so that the disk is asked.
pub(super) fn nothing(connection: &Connection) -> Result<(), Fault> {
    connection.execute("INSERT INTO notices (time, subject, text) VALUES (0, '', '')", [])?;
    connection.execute("DELETE FROM notices WHERE number = last_insert_rowid()", [])?;
    Ok(())
}

/// Forgets notices.
pub(super) fn forget(connection: &Connection, numbers: &[i64]) -> Result<(), Fault> {
    let mut statement = connection.prepare_cached("DELETE FROM notices WHERE number = ?1")?;
    for number in numbers {
        statement.execute([number])?;
    }
    Ok(())
}
