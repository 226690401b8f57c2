//! Whether the spool can take more: its limit, the disk, and whether the store works at all.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::error::Fault;
use crate::spool::{
    place::{Disk, Place},
    queue::QueueError,
};

/// How old a look at the disk may be, and how long after a failure the next message may try.
const SECOND: Duration = Duration::from_secs(1);

pub(super) struct Room {
    place: Place,
    max_size: u64,
    /// Octets of mail data: those of the last count, and what was taken since.
    held: AtomicU64,
    disk: Mutex<Option<(Instant, Option<Disk>)>>,
    sick: Mutex<Option<Sick>>,
}

struct Sick {
    error: QueueError,
    tried: Instant,
}

impl Room {
    pub(super) fn new(place: Place, max_size: u64) -> Self {
        Self {
            place,
            max_size,
            held: AtomicU64::new(0),
            disk: Mutex::new(None),
            sick: Mutex::new(None),
        }
    }

    /// Whether a message of so many octets may try to come in.
    ///
    /// After a write has failed none may, until one succeeds. Somebody has to find out whether one would: each
    /// second one message is let through to try it, and is refused as any other would be if it fails.
    pub(super) fn admit(&self, octets: u64) -> Result<(), QueueError> {
        self.fits(octets)?;
        let mut sick = self.sick.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sick) = sick.as_mut() else {
            return Ok(());
        };
        let now = Instant::now();
        if now.duration_since(sick.tried) < SECOND {
            return Err(sick.error.clone());
        }
        sick.tried = now;
        Ok(())
    }

    /// Why no message can come in, if none can. Only a look: nobody's try is used up by it.
    pub(super) fn trouble(&self) -> Option<QueueError> {
        self.fits(0).err().or_else(|| {
            let sick = self.sick.lock().unwrap_or_else(PoisonError::into_inner);
            sick.as_ref().map(|sick| sick.error.clone())
        })
    }

    /// Whether so many octets more fit in.
    pub(super) fn fits(&self, octets: u64) -> Result<(), QueueError> {
        let held = self.held.load(Ordering::Relaxed);
        if held.saturating_add(octets) > self.max_size {
            return Err(QueueError::Full(format!(
                "it holds {held} octets of mail and spool.max_size is {}",
                self.max_size
            )));
        }
        self.disk().map_or(Ok(()), |disk| disk.fits(octets)).map_err(QueueError::Full)
    }

    /// The disk, as it was less than a second ago.
    pub(super) fn disk(&self) -> Option<Disk> {
        let mut seen = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match *seen {
            Some((time, disk)) if now.duration_since(time) < SECOND => disk,
            _ => {
                let disk = self.place.disk();
                *seen = Some((now, disk));
                disk
            }
        }
    }

    /// Mail data were taken over.
    pub(super) fn took(&self, octets: u64) {
        self.held.fetch_add(octets, Ordering::Relaxed);
    }

    /// All of them were counted.
    pub(super) fn counted(&self, octets: u64) {
        self.held.store(octets, Ordering::Relaxed);
    }

    /// A write is on disk.
    pub(super) fn worked(&self) {
        *self.sick.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Something went wrong.
    pub(super) fn failed(&self, fault: &Fault) {
        if !fault.of_store {
            return;
        }
        let mut sick = self.sick.lock().unwrap_or_else(PoisonError::into_inner);
        if sick.is_none() {
            tracing::error!(error = %fault.error, "the spool does not work; it is tried again");
        }
        *sick = Some(Sick { error: fault.error.clone(), tried: Instant::now() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(max_size: u64) -> (tempfile::TempDir, Room) {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::make(folder.path()).unwrap();
        (folder, Room::new(place, max_size))
    }

    fn fault(of_store: bool) -> Fault {
        Fault { of_store, ..Fault::of_job("it broke") }
    }

    #[test]
    fn the_limit_counts_what_was_taken_since_the_last_count() {
        let (_folder, room) = room(1000);
        room.took(600);
        assert!(room.admit(400).is_ok());
        let error = room.admit(401).unwrap_err().to_string();
        assert_eq!(
            error,
            "the spool is full: it holds 600 octets of mail and spool.max_size is 1000"
        );
        room.counted(10);
        assert!(room.admit(990).is_ok());
    }

    #[test]
    fn the_disk_keeps_a_reserve() {
        let (_folder, room) = room(u64::MAX);
        let see = |free, size| {
            *room.disk.lock().unwrap() = Some((Instant::now(), Some(Disk { free, size })));
        };
        see(64 << 20, 1 << 40);
        assert!(room.admit(0).is_ok());
        assert!(matches!(room.admit(1), Err(QueueError::Full(_))));
        see(5, 100);
        assert!(room.admit(0).is_ok() && room.admit(1).is_err(), "a small disk keeps a twentieth");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_lets_one_try_each_second_until_a_write_succeeds() {
        let (_folder, room) = room(u64::MAX);
        room.failed(&fault(false));
        assert!(room.admit(1).is_ok(), "what is wrong with one job is nothing to the others");
        room.failed(&fault(true));
        assert!(room.admit(1).is_err());
        tokio::time::advance(SECOND).await;
        assert!(room.trouble().is_some() && room.trouble().is_some());
        assert!(room.admit(1).is_ok() && room.admit(1).is_err(), "one, not two");
        room.worked();
        assert!(room.trouble().is_none());
        assert!(room.admit(1).is_ok() && room.admit(1).is_ok());
    }
}
