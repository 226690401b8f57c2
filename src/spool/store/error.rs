//! What goes wrong with the database: at start, where somebody has to act, and later, where the spool is merely
//! broken for a while.

use std::{io, path::PathBuf};

use rusqlite::{ErrorCode, ffi};
use thiserror::Error;

use crate::spool::{place::PlaceError, queue::QueueError};

/// Why a spool cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Its folder is not fit, or another relay's.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The database cannot be read.
    #[error("{path} is damaged, or no database at all ({cause}): move it aside, and start again with what `sqlite3 {path} .recover` saves of it, or without", path = path.display())]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        cause: &'static str,
    },
    /// It is another program's.
    #[error("{} is not a spool of smtp-uplift but another program's database: move it aside, or set spool.directory to another folder", .0.display())]
    Foreign(PathBuf),
    /// A later version has written it.
    #[error("{} has version {found} and this program knows versions up to {known}: start the later smtp-uplift that wrote it, or move it aside", path.display())]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// A relay of an earlier version works on it.
    #[error("{} has version {found} and this program needs version {known}, but a relay uses it: restart that relay as this version first", path.display())]
    Older {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// It cannot be saved before it is migrated.
    #[error("{} cannot be written, and without this backup the spool is not migrated ({cause}): make room for it and start again", path.display())]
    Backup {
        /// The backup.
        path: PathBuf,
        /// What went wrong.
        cause: String,
    },
    /// Something else.
    #[error("{} cannot be opened ({cause}): see that its disk has room and no other program holds it, and start again", path.display())]
    Database {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        cause: String,
    },
    /// A folder of mail data cannot be read.
    #[error("{} cannot be swept ({cause}): make it readable and start again", path.display())]
    Sweep {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
}

impl OpenError {
    /// Whether another start may succeed with nothing changed.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Place(PlaceError::InUse { .. }))
    }

    /// What SQLite said about a database that is being opened.
    pub(super) fn from_sqlite(path: PathBuf, error: &rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
                Self::Damaged { path, cause: words(error) }
            }
            _ => Self::Database { path, cause: words(error).to_owned() },
        }
    }
}

/// Why a job did not get done.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub(super) error: QueueError,
    /// It is the store's, not this job's: others would meet it too.
    pub(super) of_store: bool,
}

impl Fault {
    /// Of one job.
    pub(super) fn of_job(text: impl Into<String>) -> Self {
        Self { error: QueueError::Broken(text.into()), of_store: false }
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        let text = words(&error).to_owned();
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self { error: QueueError::Full(text), of_store: true },
            Some(ErrorCode::ConstraintViolation) | None => Self::of_job(text),
            Some(_) => Self { error: QueueError::Broken(text), of_store: true },
        }
    }
}

impl From<io::Error> for Fault {
    fn from(cause: io::Error) -> Self {
        let full =
            matches!(cause.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        let text = cause.to_string();
        let error = if full { QueueError::Full(text) } else { QueueError::Broken(text) };
        // A file that is there already is another message's, or this one's a second time.
        Self { error, of_store: cause.kind() != io::ErrorKind::AlreadyExists }
    }
}

/// In SQLite's own words for its code. What rusqlite adds may quote statements and values.
pub(super) fn words(error: &rusqlite::Error) -> &'static str {
    match error {
        rusqlite::Error::SqliteFailure(error, _) => ffi::code_to_str(error.extended_code),
        _ => "a row of the database cannot be read",
    }
}
