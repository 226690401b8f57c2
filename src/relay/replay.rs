//! The mail data of a transaction, kept so that they can be sent again without asking the device: the very
//! `Bytes` that its socket filled, up to a bound, and what comes beyond in a file of the spool.
//!
//! ```text
//!             replay_memory, within replay_memory_total
//! 0 ├──────── memory ────────┤├────────── file ──────────┤├ pending ┤ size
//! ```
//!
//! The file begins where the memory ends, so that a message that goes through is never written as a whole. Only
//! when the spool takes it over the memory is written in front of it. Each step looks at the disk first and leaves
//! the spool's reserve free; `max_size` is looked at when the whole is handed over.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::{Bytes, BytesMut};

use crate::{
    proto::header::{Gathered, Gatherer, Section},
    spool::{place::Disk, queue::Body},
};

/// Chunks below this are put together: each costs its handle, and a device may send octet by octet.
const SMALL: usize = 1024;
/// Room for small chunks that is asked for at once.
const TOGETHER: usize = 8 * 1024;
/// Octets that are written to the file, and read from it, in one step.
const STEP: usize = 256 * 1024;

/// Buffers that are kept for the next message: those of a message of 32 MiB.
const KEPT: usize = 512;
/// Octets that such a buffer has room for: most of what is asked for while data stream.
pub const LARGE: usize = 48 * 1024;

/// The memory that all messages may take together.
#[derive(Debug)]
pub struct Budget {
    left: AtomicU64,
    /// Buffers of messages that went through. Memory that is new to the process costs the system more than all
    /// that is done with it here.
    kept: Mutex<Vec<BytesMut>>,
}

/// Octets of the budget; given back when dropped.
#[derive(Debug)]
pub struct Room {
    budget: Arc<Budget>,
    octets: u64,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.budget.release(self.octets);
    }
}

/// The mail data of one transaction, in wire form.
pub struct Replay {
    memory: Vec<Bytes>,
    /// Small chunks that are not in `memory` yet.
    together: BytesMut,
    /// Octets in memory, those of `together` included.
    in_memory: u64,
    /// Octets of the budget that are ours.
    reserved: u64,
    file: Option<Spilled>,
    size: u64,
    limit: u64,
    budget: Arc<Budget>,
    /// Where a file would be.
    path: PathBuf,
    look: Look,
}

/// Looks at the disk of a folder.
type Look = fn(&Path) -> Option<Disk>;

/// The part that is in a file.
struct Spilled {
    file: Arc<File>,
    /// Octets of the message up to which the file is written.
    written: u64,
    pending: Vec<Bytes>,
    pending_octets: usize,
    /// Where it is, while it is ours to delete.
    ours: Option<PathBuf>,
    look: Look,
}

/// How far a reader has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cursor {
    chunk: usize,
    octets: u64,
    /// Octets that are stepped over.
    skip: usize,
}

impl Cursor {
    /// Behind so many octets.
    pub fn behind(octets: usize) -> Self {
        Self { skip: octets, ..Self::default() }
    }
}

impl Budget {
    /// So many octets for all.
    pub fn new(octets: u64) -> Arc<Self> {
        Arc::new(Self { left: AtomicU64::new(octets), kept: Mutex::default() })
    }

    fn reserve(&self, octets: u64) -> bool {
        let take = |left: u64| left.checked_sub(octets);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    fn release(&self, octets: u64) {
        self.left.fetch_add(octets, Ordering::Relaxed);
    }

    fn buffer(&self) -> Option<BytesMut> {
        self.kept().pop()
    }

    /// Gives the buffers that are kept back to the system.
    pub fn forget(&self) {
        self.kept().clear();
    }

    /// Keeps the buffers of chunks that nobody else has.
    fn keep(&self, chunks: Vec<Bytes>) {
        let mut kept = self.kept();
        for chunk in chunks {
            if kept.len() < KEPT
                && let Ok(mut buffer) = chunk.try_into_mut()
            {
                buffer.clear();
                // The last chunk of several in one buffer has all of it.
                if buffer.try_reclaim(LARGE) {
                    kept.push(buffer);
                }
            }
        }
    }

    fn kept(&self) -> MutexGuard<'_, Vec<BytesMut>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Replay {
    /// An empty buffer that has served before, if there is one.
    pub fn buffer(&self) -> Option<BytesMut> {
        self.budget.buffer()
    }

    /// Nothing yet. Up to `limit` octets stay in memory; a file would be `folder/name`.
    pub fn new(folder: &Path, name: &str, limit: u64, budget: Arc<Budget>) -> Self {
        Self {
            memory: Vec::new(),
            together: BytesMut::new(),
            in_memory: 0,
            reserved: 0,
            file: None,
            size: 0,
            limit,
            budget,
            path: folder.join(name),
            look: Disk::of,
        }
    }

    /// Mail data that a queue has kept, to be read only.
    pub fn stored(body: Body) -> io::Result<Self> {
        let size = body.size();
        let mut replay = Self::new(Path::new(""), "", 0, Budget::new(0));
        replay.size = size;
        match body {
            Body::Chunks(chunks) => {
                replay.memory = chunks;
                replay.in_memory = size;
            }
            Body::File { path, size } => {
                let file = Arc::new(File::open(path)?);
                replay.file = Some(Spilled {
                    file,
                    written: size,
                    pending: Vec::new(),
                    pending_octets: 0,
                    ours: None,
                    look: Disk::of,
                });
            }
        }
        Ok(replay)
    }

    /// Memory for something else that the message needs; `None` if all messages together have no more.
    pub fn room(&self, octets: u64) -> Option<Room> {
        let budget = &self.budget;
        budget.reserve(octets).then(|| Room { budget: Arc::clone(budget), octets })
    }

    /// Octets so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Keeps one more chunk. After an error, as that the disk's reserve is reached, the data are not whole any more.
    pub async fn push(&mut self, chunk: Bytes) -> io::Result<()> {
        let octets = chunk.len() as u64;
        self.size += octets;
        if self.file.is_none()
            && self.in_memory + octets <= self.limit
            && self.budget.reserve(octets)
        {
            self.reserved += octets;
            self.in_memory += octets;
            self.remember(chunk);
            return Ok(());
        }
        if self.file.is_none() {
            self.settle();
            self.file = Some(Spilled::create(&self.path, self.in_memory, self.look).await?);
        }
        let Some(spilled) = &mut self.file else { return Ok(()) };
        spilled.pending_octets += chunk.len();
        spilled.pending.push(chunk);
        if spilled.pending_octets >= STEP || spilled.pending.len() >= STEP / SMALL {
            spilled.write().await?;
        }
        Ok(())
    }

    /// The next chunk behind a cursor, or `None` at the end of what there is so far.
    pub async fn next(&mut self, cursor: &mut Cursor) -> io::Result<Option<Bytes>> {
        while let Some(mut chunk) = self.step(cursor).await? {
            let skipped = chunk.len().min(cursor.skip);
            cursor.skip -= skipped;
            if skipped < chunk.len() {
                return Ok(Some(chunk.split_off(skipped)));
            }
        }
        Ok(None)
    }

    /// The header section, once all of it is there; `None` if it is too long for one.
    pub async fn section(&mut self) -> io::Result<Option<Section>> {
        let (mut cursor, mut gatherer) = (Cursor::default(), Gatherer::default());
        let mut gathered = None;
        while gathered.is_none()
            && let Some(chunk) = self.next(&mut cursor).await?
        {
            gathered = gatherer.push(chunk);
        }
        match gathered.unwrap_or_else(|| gatherer.end()) {
            Gathered::Whole(section, _) => Ok(Some(section)),
            Gathered::TooLong => Ok(None),
        }
    }

    async fn step(&mut self, cursor: &mut Cursor) -> io::Result<Option<Bytes>> {
        self.settle();
        if let Some(chunk) = self.memory.get(cursor.chunk) {
            cursor.chunk += 1;
            cursor.octets += chunk.len() as u64;
            return Ok(Some(chunk.clone()));
        }
        let Some(spilled) = &mut self.file else { return Ok(None) };
        spilled.write().await?;
        if cursor.octets >= spilled.written {
            return Ok(None);
        }
        let chunk = spilled.read(cursor.octets).await?;
        cursor.octets += chunk.len() as u64;
        Ok(Some(chunk))
    }

    /// Hands the data over to a queue. A file is complete then, not synced.
    pub async fn into_body(mut self) -> io::Result<Body> {
        self.settle();
        let Some(spilled) = &mut self.file else {
            return Ok(Body::Chunks(std::mem::take(&mut self.memory)));
        };
        spilled.write().await?;
        spilled.put(0, std::mem::take(&mut self.memory)).await?;
        spilled.ours = None;
        Ok(Body::File { path: std::mem::take(&mut self.path), size: self.size })
    }

    fn remember(&mut self, chunk: Bytes) {
        if chunk.len() < SMALL {
            if self.together.capacity() - self.together.len() < chunk.len() {
                self.settle();
                self.together.reserve(TOGETHER);
            }
            self.together.extend_from_slice(&chunk);
        } else {
            self.settle();
            self.memory.push(chunk);
        }
    }

    /// What was put together becomes a chunk.
    fn settle(&mut self) {
        if !self.together.is_empty() {
            self.memory.push(self.together.split().freeze());
        }
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        self.budget.release(self.reserved);
        self.budget.keep(std::mem::take(&mut self.memory));
    }
}

impl Drop for Spilled {
    fn drop(&mut self) {
        if let Some(path) = &self.ours {
            // If it cannot be deleted now, the next start does it.
            let _ = fs::remove_file(path);
        }
    }
}

impl Spilled {
    /// If nobody waits for it any more the file is removed again.
    async fn create(path: &Path, from: u64, look: Look) -> io::Result<Self> {
        let path = path.to_owned();
        blocking(move || {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create_new(true).mode(0o600);
            Ok(Self {
                file: Arc::new(options.open(&path)?),
                written: from,
                pending: Vec::new(),
                pending_octets: 0,
                ours: Some(path),
                look,
            })
        })
        .await
    }

    /// Writes what is pending. If it is broken off it stays pending, and the same octets are written again to the
    /// same place.
    async fn write(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.put(self.written, self.pending.clone()).await?;
        self.pending.clear();
        self.written += std::mem::take(&mut self.pending_octets) as u64;
        Ok(())
    }

    /// Writes chunks if the disk has room for them.
    async fn put(&self, at: u64, chunks: Vec<Bytes>) -> io::Result<()> {
        let (file, look) = (Arc::clone(&self.file), self.look);
        let folder = self.ours.as_deref().and_then(Path::parent).map(Path::to_owned);
        blocking(move || {
            let octets = chunks.iter().map(|chunk| chunk.len() as u64).sum();
            folder
                .and_then(|folder| look(&folder))
                .map_or(Ok(()), |disk| disk.fits(octets))
                .map_err(|reason| io::Error::new(io::ErrorKind::StorageFull, reason))?;
            write_at(&file, at, &chunks)
        })
        .await
    }

    async fn read(&self, at: u64) -> io::Result<Bytes> {
        let length = (self.written - at).min(STEP as u64) as usize;
        let file = Arc::clone(&self.file);
        blocking(move || {
            let mut buffer = vec![0; length];
            file.read_exact_at(&mut buffer, at)?;
            Ok(Bytes::from(buffer))
        })
        .await
    }
}

fn write_at(file: &File, mut at: u64, chunks: &[Bytes]) -> io::Result<()> {
    for chunk in chunks {
        file.write_all_at(chunk, at)?;
        at += chunk.len() as u64;
    }
    Ok(())
}

/// Files may keep a thread waiting: not one of the event loop's.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn pattern(octets: usize) -> Vec<u8> {
        (0..octets).map(|at| (at / 7 % 251) as u8).collect()
    }

    async fn filled(folder: &Path, limit: u64, budget: &Arc<Budget>, pieces: &[&[u8]]) -> Replay {
        let mut replay = Replay::new(folder, "k3.1", limit, Arc::clone(budget));
        for piece in pieces {
            replay.push(Bytes::copy_from_slice(piece)).await.unwrap();
        }
        replay
    }

    async fn all(replay: &mut Replay) -> Vec<u8> {
        let (mut cursor, mut out) = (Cursor::default(), Vec::new());
        while let Some(chunk) = replay.next(&mut cursor).await.unwrap() {
            out.extend_from_slice(&chunk);
        }
        out
    }

    #[tokio::test]
    async fn what_is_read_is_what_was_pushed_wherever_it_lies() {
        let data = pattern(700_000);
        for (limit, piece) in
            [(1 << 20, 64 * 1024), (100_000, 64 * 1024), (0, 50_000), (5_000, 100), (700_000, 1)]
        {
            let folder = tempfile::tempdir().unwrap();
            let budget = Budget::new(1 << 30);
            let pieces: Vec<&[u8]> = data.chunks(piece).collect();
            let mut replay = filled(folder.path(), limit, &budget, &pieces).await;
            assert_eq!(replay.size(), 700_000);
            let name = format!("limit {limit}, pieces of {piece}");
            assert!(all(&mut replay).await == data, "{name}");
            assert!(all(&mut replay).await == data, "{name}, once more");
            let has_file = folder.path().join("k3.1").exists();
            assert_eq!(has_file, limit < 700_000, "{name}");
            let body = replay.into_body().await.unwrap();
            assert_eq!(body.size(), 700_000);
            let mut stored = Replay::stored(body).unwrap();
            assert!(all(&mut stored).await == data, "{name}, stored");
            drop(stored);
            assert_eq!(folder.path().join("k3.1").exists(), has_file, "the queue's, not ours");
            assert_eq!(budget.left.load(Ordering::Relaxed), 1 << 30, "{name}");
        }
    }

    #[tokio::test]
    async fn a_reader_begins_behind_the_header_section() {
        let head = [&b"A: "[..], &[b'x'; 3_000], b"\r\n"].concat();
        let data = [&head[..], b"\r\n", &pattern(9_000)].concat();
        for (limit, piece) in [(1 << 20, 1 << 20), (1 << 20, 2_000), (1 << 20, 7), (0, 500)] {
            let folder = tempfile::tempdir().unwrap();
            let pieces: Vec<&[u8]> = data.chunks(piece).collect();
            let mut replay = filled(folder.path(), limit, &Budget::new(1 << 20), &pieces).await;
            let section = replay.section().await.unwrap().unwrap();
            assert_eq!(section.fields, head);
            let (mut cursor, mut behind) = (Cursor::behind(head.len()), Vec::new());
            while let Some(chunk) = replay.next(&mut cursor).await.unwrap() {
                assert!(!chunk.is_empty());
                behind.extend_from_slice(&chunk);
            }
            assert!(behind == data[head.len()..], "limit {limit}, pieces of {piece}");
        }
    }

    #[tokio::test]
    async fn a_chunk_in_memory_is_the_same_memory() {
        let folder = tempfile::tempdir().unwrap();
        let chunk = Bytes::from(pattern(5_000));
        let mut replay = Replay::new(folder.path(), "k3.1", 1 << 20, Budget::new(1 << 20));
        replay.push(chunk.clone()).await.unwrap();
        let read = replay.next(&mut Cursor::default()).await.unwrap().unwrap();
        assert_eq!((read.as_ptr(), read.len()), (chunk.as_ptr(), chunk.len()));
    }

    #[tokio::test]
    async fn a_reader_goes_on_when_more_has_come() {
        let folder = tempfile::tempdir().unwrap();
        let mut replay = filled(folder.path(), 1_500, &Budget::new(1 << 20), &[&[b'a'; 10]]).await;
        let mut cursor = Cursor::default();
        assert_eq!(replay.next(&mut cursor).await.unwrap().unwrap().len(), 10);
        assert!(replay.next(&mut cursor).await.unwrap().is_none());
        replay.push(Bytes::from_static(&[b'b'; 20])).await.unwrap();
        assert_eq!(replay.next(&mut cursor).await.unwrap().unwrap(), [b'b'; 20][..]);
        replay.push(Bytes::from_static(&[b'c'; 2_000])).await.unwrap();
        assert_eq!(replay.next(&mut cursor).await.unwrap().unwrap(), [b'c'; 2_000][..]);
        assert!(replay.next(&mut cursor).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn who_finds_the_budget_spent_writes_a_file_and_gives_everything_back() {
        let folder = tempfile::tempdir().unwrap();
        let budget = Budget::new(10_000);
        let first = filled(folder.path(), 1 << 20, &budget, &[&[b'a'; 8_000]]).await;
        let mut second = Replay::new(folder.path(), "k3.2", 1 << 20, Arc::clone(&budget));
        second.push(Bytes::from_static(&[b'b'; 8_000])).await.unwrap();
        assert!(folder.path().join("k3.2").exists() && !folder.path().join("k3.1").exists());
        drop((first, second));
        assert_eq!(budget.left.load(Ordering::Relaxed), 10_000);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "no file is left");
    }

    #[tokio::test]
    async fn buffers_serve_again_once_nobody_has_a_part_of_them() {
        let (folder, budget) = (tempfile::tempdir().unwrap(), Budget::new(1 << 20));
        let mut buffer = BytesMut::with_capacity(64 * 1024);
        buffer.extend_from_slice(&[b'a'; 60_000]);
        let memory = buffer.as_ptr();
        let (first, second) = (buffer.split_to(20_000).freeze(), buffer.split().freeze());
        drop(buffer);
        let mut replay = Replay::new(folder.path(), "k3.1", 1 << 20, Arc::clone(&budget));
        replay.push(first.clone()).await.unwrap();
        replay.push(second).await.unwrap();
        drop(replay);
        assert!(budget.buffer().is_none(), "somebody has a part");
        let mut replay = Replay::new(folder.path(), "k3.2", 1 << 20, Arc::clone(&budget));
        replay.push(first).await.unwrap();
        drop(replay);
        let again = budget.buffer().unwrap();
        assert!(again.is_empty() && again.capacity() >= LARGE && again.as_ptr() == memory);
        budget.keep(vec![again.freeze()]);
        budget.forget();
        assert!(budget.buffer().is_none());
    }

    #[tokio::test]
    async fn octet_by_octet_costs_no_more_than_the_octets() {
        let folder = tempfile::tempdir().unwrap();
        let octets: Vec<&[u8]> = vec![b"x"; 50_000];
        let replay = filled(folder.path(), 1 << 20, &Budget::new(1 << 20), &octets).await;
        assert!(replay.memory.len() < 20, "{} chunks", replay.memory.len());
    }

    #[tokio::test]
    async fn a_write_that_is_broken_off_is_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let data = pattern(3 * STEP);
        let mut replay = filled(folder.path(), 0, &Budget::new(0), &[&data[..10]]).await;
        for piece in [&data[10..STEP + 10], &data[STEP + 10..3 * STEP]] {
            let _ = replay.push(Bytes::copy_from_slice(piece)).now_or_never();
        }
        assert!(all(&mut replay).await == data);
    }

    #[tokio::test]
    async fn the_disks_reserve_is_left_alone_and_no_file_stays() {
        let folder = tempfile::tempdir().unwrap();
        let looks: [(Look, bool); 2] = [
            (|_| Some(Disk { free: (64 << 20) + STEP as u64, size: 1 << 40 }), true),
            (|_| Some(Disk { free: (64 << 20) + STEP as u64 - 1, size: 1 << 40 }), false),
        ];
        for (look, fits) in looks {
            let mut replay = Replay::new(folder.path(), "k3.1", 0, Budget::new(0));
            replay.look = look;
            let refused = replay.push(Bytes::from(pattern(STEP))).await.err();
            let expected = (!fits).then_some(io::ErrorKind::StorageFull);
            assert_eq!(refused.map(|error| error.kind()), expected);
            drop(replay);
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }

    #[tokio::test]
    async fn a_folder_that_is_gone_is_an_error() {
        let mut replay = Replay::new(Path::new("/nonexistent"), "k3.1", 0, Budget::new(0));
        assert!(replay.push(Bytes::from_static(b"x")).await.is_err());
    }
}
