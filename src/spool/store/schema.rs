//! The database: how it is opened, and what its tables look like.

use std::{
    fs::{self, File},
    path::PathBuf,
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior, config::DbConfig};

use super::error::{OpenError, words};
use crate::spool::place::{Place, private_file, sync_folder};

/// Tells our databases from those of other programs: "Uplf".
pub(super) const APPLICATION: i64 = 0x5570_6C66;

/// What makes version N of N - 1, from version 1 on. A step that was released is never changed.
const STEPS: [&str; 3] = [
    // `due`, `hold` and `lease` are set only in the states that have them, so that the indexes stay small. Mail
    // data lie apart from the rows, which are read in lists. Times are milliseconds since 1970.
    "CREATE TABLE messages (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        state TEXT NOT NULL,
        due INTEGER,
        hold TEXT,
        lease INTEGER,
        forced INTEGER NOT NULL DEFAULT 0,
        received INTEGER NOT NULL,
        settled INTEGER,
        size INTEGER NOT NULL,
        in_file INTEGER NOT NULL,
        attempts INTEGER NOT NULL,
        maybe_sent INTEGER NOT NULL,
        is_notice INTEGER NOT NULL,
        eight_bit INTEGER NOT NULL,
        smtputf8 INTEGER NOT NULL,
        mailbox TEXT NOT NULL,
        device TEXT NOT NULL,
        listener TEXT NOT NULL,
        reverse_path TEXT NOT NULL,
        rule TEXT NOT NULL,
        reason TEXT NOT NULL,
        head TEXT NOT NULL,
        transcript TEXT NOT NULL
    ) STRICT;
    CREATE INDEX messages_due ON messages (due) WHERE due IS NOT NULL;
    CREATE INDEX messages_hold ON messages (hold) WHERE hold IS NOT NULL;
    CREATE INDEX messages_settled ON messages (state, settled) WHERE settled IS NOT NULL;
    CREATE INDEX messages_totals ON messages (state, received, size, is_notice);
    CREATE INDEX messages_files ON messages (id, state) WHERE in_file = 1;
    CREATE TABLE recipients (
        message INTEGER NOT NULL REFERENCES messages (seq) ON DELETE CASCADE,
        place INTEGER NOT NULL,
        path TEXT NOT NULL,
        state TEXT NOT NULL,
        reply TEXT NOT NULL,
        PRIMARY KEY (message, place)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE bodies (
        message INTEGER PRIMARY KEY REFERENCES messages (seq) ON DELETE CASCADE,
        data BLOB NOT NULL
    ) STRICT;",
    "CREATE TABLE notices (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        time INTEGER NOT NULL,
        subject TEXT NOT NULL,
        text TEXT NOT NULL
    ) STRICT;",
    // What is due is found from device to device of a mailbox, each by its longest due.
    "ALTER TABLE messages ADD COLUMN bound INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX messages_turn ON messages (mailbox COLLATE NOCASE, device, due)
        WHERE due IS NOT NULL;
    DROP INDEX messages_due;",
];

/// The version that this program reads and writes.
pub(super) const VERSION: i64 = STEPS.len() as i64;

/// Opens the database of a place, whatever its version up to ours. Nothing is written to one that is not ours.
pub(super) fn open(place: &Place) -> Result<Connection, OpenError> {
    let path = place.database();
    let failed = |error| OpenError::from_sqlite(path.clone(), &error);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(&path, flags).map_err(failed)?;
    connection.busy_timeout(Duration::from_secs(5)).map_err(failed)?;
    let (application, found) = marks(&connection).map_err(failed)?;
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(failed)?;
    // One without tables is new, or its making was broken off.
    if application != APPLICATION && (application, tables) != (0, 0) {
        return Err(OpenError::Foreign(path));
    }
    if found > VERSION {
        return Err(OpenError::Newer { path, found, known: VERSION });
    }
    prepare(&connection).map_err(failed)?;
    connection.set_prepared_statement_cache_capacity(64);
    // A plan is made once. SQLite would make it anew whenever other values are bound, which takes longer than most
    // of our statements do.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map_err(failed)?;
    Ok(connection)
}

/// The version of an opened database; 0 is a new one.
pub(super) fn version(connection: &Connection) -> rusqlite::Result<i64> {
    marks(connection).map(|(_, version)| version)
}

/// Brings an opened database up to our version, after a copy of it is on disk. Its place has to be locked.
pub(super) fn migrate(connection: &mut Connection, place: &Place) -> Result<(), OpenError> {
    let failed = |error| OpenError::from_sqlite(place.database(), &error);
    let found = version(connection).map_err(failed)?;
    if found == VERSION {
        return Ok(());
    }
    if found > 0 {
        let path = back_up(connection, place, found)?;
        tracing::info!(backup = %path.display(), from = found, to = VERSION, "the spool is migrated");
    }
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    step_up(&transaction, found).map_err(failed)?;
    transaction.commit().map_err(failed)
}

fn marks(connection: &Connection) -> rusqlite::Result<(i64, i64)> {
    let mark = |name| connection.pragma_query_value(None, name, |row| row.get(0));
    Ok((mark("application_id")?, mark("user_version")?))
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    // FULL syncs the log at each commit: what was answered for survives a power cut. What is deleted is
    // overwritten. Temporary tables stay in memory, for no mail may lie elsewhere.
    connection.execute_batch(
        "PRAGMA journal_mode = WAL;
        PRAGMA synchronous = FULL;
        PRAGMA secure_delete = ON;
        PRAGMA foreign_keys = ON;
        PRAGMA wal_autocheckpoint = 4000;
        PRAGMA journal_size_limit = 67108864;
        PRAGMA cache_size = -8192;
        PRAGMA temp_store = MEMORY;
        PRAGMA trusted_schema = OFF;",
    )
}

fn step_up(transaction: &Transaction<'_>, from: i64) -> rusqlite::Result<()> {
    for step in STEPS.iter().skip(from.max(0) as usize) {
        transaction.execute_batch(step)?;
    }
    // Both stand in the file's header and belong to the transaction.
    transaction.pragma_update(None, "application_id", APPLICATION)?;
    transaction.pragma_update(None, "user_version", VERSION)
}

fn back_up(connection: &Connection, place: &Place, version: i64) -> Result<PathBuf, OpenError> {
    let path = place.directory().join(format!("queue.db.v{version}.backup"));
    let new = path.with_extension("backup.new");
    let failed = |cause: String| OpenError::Backup { path: path.clone(), cause };
    let _ = fs::remove_file(&new);
    // SQLite writes into an empty file, and would make one that others can read.
    private_file(&new).map_err(|cause| failed(cause.to_string()))?;
    connection
        .execute("VACUUM INTO ?1", [new.to_string_lossy()])
        .map_err(|cause| failed(words(&cause).to_owned()))?;
    File::open(&new)
        .and_then(|file| file.sync_all())
        .and_then(|()| fs::rename(&new, &path))
        .and_then(|()| sync_folder(place.directory()))
        .map_err(|cause| failed(cause.to_string()))?;
    Ok(path)
}

/// A database of an earlier version, for tests of the migration.
#[cfg(test)]
pub(super) fn make_version(connection: &mut Connection, version: usize) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    for step in &STEPS[..version] {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION)?;
    transaction.pragma_update(None, "user_version", version as i64)?;
    transaction.commit()
}
