//! What an earlier relay has left: deliveries in the middle, and files of no message.

use std::collections::HashMap;

use jiff::Timestamp;
use rusqlite::{Connection, TransactionBehavior};

use super::{
    body::Bodies,
    error::{Fault, OpenError},
    lease::{missing, set_aside},
    rows::Time,
};
use crate::spool::place::Place;

/// What was being delivered may have been: of no dot is known whether it was answered. Due since it was received,
/// for a start asks no clock.
pub(super) fn recover(connection: &Connection, place: &Place) -> Result<(), OpenError> {
    let count = connection
        .execute(
            "UPDATE messages SET state = 'maybe-sent', due = received, hold = NULL, lease = NULL,
                maybe_sent = maybe_sent + 1
            WHERE state IN ('leased', 'awaiting')",
            [],
        )
        .map_err(|error| OpenError::from_sqlite(place.database(), &error))?;
    if count > 0 {
        tracing::info!(count, "messages of the spool were being delivered and may have been sent");
    }
    Ok(())
}

/// Removes files of no message, and sets messages aside whose file is missing.
pub(super) fn sweep(
    connection: &mut Connection,
    bodies: &Bodies,
    place: &Place,
    now: Timestamp,
) -> Result<(), OpenError> {
    let failed = |error| OpenError::from_sqlite(place.database(), &error);
    let mut ids = with_files(connection).map_err(failed)?;
    let removed = bodies
        .sweep(&mut ids)
        .map_err(|cause| OpenError::Sweep { path: place.directory().to_owned(), cause })?;
    if removed > 0 {
        tracing::info!(
            removed,
            "files of mail that was never taken over, or is delivered, are removed"
        );
    }
    let mut lost: Vec<_> = ids.into_iter().filter(|(_, (_, lost))| !lost).collect();
    if lost.is_empty() {
        return Ok(());
    }
    lost.sort_unstable_by_key(|(_, (seq, _))| *seq);
    let mut set_all_aside = || {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for (id, (seq, _)) in &lost {
            set_aside(&transaction, *seq, &missing(&bodies.path(id)), now)?;
        }
        transaction.commit().map_err(Fault::from)
    };
    tracing::error!(count = lost.len(), "mail data of the spool are missing");
    set_all_aside().map_err(|fault| OpenError::Database {
        path: place.database(),
        cause: fault.error.to_string(),
    })
}

/// The last time that the database knows of.
pub(super) fn last_time(connection: &Connection) -> rusqlite::Result<Timestamp> {
    let time: Option<Time> = connection.query_row(
        "SELECT max(coalesce((SELECT max(received) FROM messages), 0),
            coalesce((SELECT max(settled) FROM messages WHERE settled IS NOT NULL), 0))",
        [],
        |row| row.get(0),
    )?;
    Ok(time.map_or(Timestamp::UNIX_EPOCH, |time| time.0))
}

/// The messages whose mail data are files, each with its number and whether it is given up already.
fn with_files(connection: &Connection) -> rusqlite::Result<HashMap<String, (i64, bool)>> {
    let mut statement =
        connection.prepare("SELECT id, seq, state = 'failed' FROM messages WHERE in_file = 1")?;
    statement.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))))?.collect()
}
