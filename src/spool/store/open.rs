//! How a spool is opened: by the relay, whose it is, and by a command beside it.

use std::{
    path::Path,
    sync::{Arc, Mutex, atomic::AtomicI64},
    thread,
    time::Duration,
};

use jiff::Timestamp;
use rusqlite::Connection;

use super::{
    Store,
    body::Bodies,
    error::{Fault, OpenError},
    lease::Unfetched,
    recover,
    room::Room,
    rows, schema,
    writer::{Database, Writer},
};
use crate::{
    spool::place::{Lock, Place, PlaceError},
    telemetry::metrics::Metrics,
};

/// How often somebody else may be in the way of opening, at intervals of 50 ms.
const TRIES: u32 = if cfg!(test) { 2 } else { 20 };

impl Store {
    /// As the relay opens it: makes the folder, takes its lock, migrates, recovers, sweeps. Blocks for as long as
    /// that takes.
    pub fn open(directory: &Path, max_size: u64, metrics: Metrics) -> Result<Arc<Self>, OpenError> {
        let place = Place::make(directory)?;
        // A command may hold it for a moment.
        let lock = patiently(|| place.lock(), |error| matches!(error, PlaceError::InUse { .. }))?;
        let mut connection = schema::open(&place)?;
        schema::migrate(&mut connection, &place)?;
        recover::recover(&connection, &place)?;
        let failed = |fault: Fault| OpenError::Database {
            path: place.database(),
            cause: fault.error.to_string(),
        };
        let told = recover::last_time(&connection).map_err(|error| failed(error.into()))?;
        let store = Unconnected::new(place.clone(), max_size, told);
        recover::sweep(&mut connection, &store.bodies, &place, told)?;
        store.room.counted(rows::totals(&connection).map_err(failed)?.bytes);
        Ok(store.with(connection, Some(lock), Some(metrics)))
    }

    /// As a command opens it beside a running relay (or without one; then what an earlier relay left is recovered
    /// first, under the lock, which is released again at once). The directory must exist.
    pub fn visit(directory: &Path) -> Result<Arc<Self>, OpenError> {
        let place = Place::find(directory)?;
        // A relay that has just begun may not have made the tables yet.
        let connection = patiently(
            || {
                let lock = place.lock();
                let mut connection = schema::open(&place)?;
                let found = schema::version(&connection)
                    .map_err(|error| OpenError::from_sqlite(place.database(), &error))?;
                match lock {
                    Ok(_lock) => {
                        schema::migrate(&mut connection, &place)?;
                        recover::recover(&connection, &place)?;
                    }
                    Err(PlaceError::InUse { .. }) if found == schema::VERSION => {}
                    Err(PlaceError::InUse { .. }) => {
                        let (path, known) = (place.database(), schema::VERSION);
                        return Err(OpenError::Older { path, found, known });
                    }
                    Err(error) => return Err(error.into()),
                }
                Ok(connection)
            },
            |error| matches!(error, OpenError::Older { .. }),
        )?;
        let store = Unconnected::new(place, u64::MAX, Timestamp::UNIX_EPOCH);
        Ok(store.with(connection, None, None))
    }
}

/// A store that has no connection yet.
struct Unconnected {
    place: Place,
    bodies: Arc<Bodies>,
    room: Arc<Room>,
    told: Timestamp,
}

impl Unconnected {
    fn new(place: Place, max_size: u64, told: Timestamp) -> Self {
        let bodies = Arc::new(Bodies::new(place.clone()));
        let room = Arc::new(Room::new(place.clone(), max_size));
        Self { place, bodies, room, told }
    }

    fn with(
        self,
        connection: Connection,
        lock: Option<Lock>,
        metrics: Option<Metrics>,
    ) -> Arc<Store> {
        let Self { place, bodies, room, told } = self;
        let writer = Writer::new(Database::new(connection, lock), Arc::clone(&room), metrics);
        let told = Arc::new(AtomicI64::new(told.as_millisecond()));
        let (unfetched, turns) = (Unfetched::default(), Mutex::default());
        Arc::new(Store { place, bodies, room, writer, unfetched, turns, told })
    }
}

/// Tries again for a second what is in somebody's way for a moment.
fn patiently<T, E>(
    mut attempt: impl FnMut() -> Result<T, E>,
    passes: impl Fn(&E) -> bool,
) -> Result<T, E> {
    for _ in 0..TRIES {
        match attempt() {
            Err(error) if passes(&error) => thread::sleep(Duration::from_millis(50)),
            outcome => return outcome,
        }
    }
    attempt()
}
