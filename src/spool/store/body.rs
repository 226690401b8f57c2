//! Mail data on disk: small ones in their row, large ones in a file of their own that is there, for certain,
//! before the row is.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;

use super::{error::Fault, point};
use crate::spool::{
    place::{Place, private_folder, sync_folder},
    queue::Body,
};

/// Octets up to which mail data lie in the row.
pub(super) const INLINE: u64 = 256 << 10;

/// The files of mail data.
pub(super) struct Bodies {
    place: Place,
    /// Folders that are on disk for certain.
    synced: Mutex<HashSet<String>>,
    /// Messages whose rows of mail data were found unreadable, and why: to be set aside.
    unreadable: Mutex<HashMap<i64, String>>,
}

/// Mail data that are ready for their row.
pub(super) enum Stored {
    Row(Vec<u8>),
    File(Placed),
}

/// A file at its place. It is removed again unless it is kept.
pub(super) struct Placed {
    path: PathBuf,
    kept: Keep,
}

/// A file in `incoming` that was handed over. What is not moved to its place by the end is removed.
pub(super) struct CameIn(PathBuf);

/// Says that a file is kept, from afar.
#[derive(Clone, Default)]
pub(super) struct Keep(Arc<AtomicBool>);

impl Keep {
    pub(super) fn keep(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Stored {
    /// What says that it is kept.
    pub(super) fn keeper(&self) -> Keep {
        match self {
            Self::Row(_) => Keep::default(),
            Self::File(placed) => placed.kept.clone(),
        }
    }
}

impl Drop for CameIn {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        if !self.kept.0.load(Ordering::Relaxed) {
            remove(&self.path);
        }
    }
}

impl Bodies {
    pub(super) fn new(place: Place) -> Self {
        Self { place, synced: Mutex::default(), unreadable: Mutex::default() }
    }

    /// Where the file of a message is. The folders keep each other small.
    pub(super) fn path(&self, id: &str) -> PathBuf {
        self.place.bodies().join(folder_name(id)).join(id)
    }

    /// Puts mail data on disk, unless they belong into the row. Blocks for as long as the disk needs.
    pub(super) fn put(&self, id: &str, body: Body) -> Result<Stored, Fault> {
        let size = body.size();
        let chunks = match body {
            Body::File { path, size } => {
                self.check(&path, size)?;
                fs::set_permissions(&path, Permissions::from_mode(0o600))?;
                return Ok(Stored::File(self.place(id, &path, &File::open(&path)?)?));
            }
            Body::Chunks(chunks) if size <= INLINE => return Ok(Stored::Row(chunks.concat())),
            Body::Chunks(chunks) => chunks,
        };
        let path = self.place.incoming().join(id);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let placed = write(&file, &chunks).map_err(Fault::from).and_then(|()| {
            point("body-written");
            self.place(id, &path, &file)
        });
        if placed.is_err() {
            remove(&path);
        }
        placed.map(Stored::File)
    }

    pub(super) fn unreadable(&self) -> std::sync::MutexGuard<'_, HashMap<i64, String>> {
        self.unreadable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the file of mail data on, if they are one. What lies elsewhere is not ours.
    pub(super) fn came_in(&self, body: &Body) -> Option<CameIn> {
        match body {
            Body::File { path, .. } if path.parent() == Some(self.place.incoming()) => {
                Some(CameIn(path.clone()))
            }
            _ => None,
        }
    }

    /// Removes mail data that came in and are not kept.
    pub(super) fn discard(&self, body: &Body) -> Result<(), Fault> {
        if let Body::File { path, size } = body {
            self.check(path, *size)?;
            remove(path);
        }
        Ok(())
    }

    /// Syncs a file of `incoming` and moves it to its place.
    fn place(&self, id: &str, path: &Path, file: &File) -> Result<Placed, Fault> {
        file.sync_all()?;
        point("body-synced");
        let name = folder_name(id);
        let folder = self.place.bodies().join(&name);
        if !self.synced().contains(&name) {
            private_folder(&folder)?;
            sync_folder(self.place.bodies())?;
            self.synced().insert(name.clone());
        }
        let target = folder.join(id);
        // A rename would overwrite another message's data.
        if target.symlink_metadata().is_ok() {
            return Err(Fault::of_job(format!("there are mail data of a message {id} already")));
        }
        if let Err(cause) = fs::rename(path, &target) {
            // Somebody may have removed the folder: the next one makes it again.
            self.synced().remove(&name);
            return Err(cause.into());
        }
        let placed = Placed { path: target, kept: Keep::default() };
        sync_folder(&folder)?;
        point("body-renamed");
        Ok(placed)
    }

    fn check(&self, path: &Path, size: u64) -> Result<(), Fault> {
        if path.parent() != Some(self.place.incoming()) {
            return Err(Fault::of_job("its mail data lie outside of the spool"));
        }
        let metadata = path.symlink_metadata()?;
        if !metadata.is_file() || metadata.len() != size {
            return Err(Fault::of_job(format!("its mail data are not a file of {size} octets")));
        }
        Ok(())
    }

    fn synced(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.synced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes what lies in `incoming` and the files that none of these ids has; takes the ids whose file is there
    /// out, so that the missing ones remain. Returns how many it has removed.
    pub(super) fn sweep<T>(&self, ids: &mut HashMap<String, T>) -> io::Result<usize> {
        let mut removed = 0;
        for file in files(self.place.incoming())? {
            remove(&file?.path());
            removed += 1;
        }
        for folder in fs::read_dir(self.place.bodies())? {
            let folder = folder?;
            if !folder.file_type()?.is_dir() {
                continue;
            }
            for file in files(&folder.path())? {
                let file = file?;
                let name = file.file_name();
                let id = name.to_str().filter(|id| folder.file_name() == *folder_name(id));
                if id.is_none_or(|id| ids.remove(id).is_none()) {
                    remove(&file.path());
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }
}

/// Whether an id can be a file's name: none that leads elsewhere.
pub(super) fn is_id(id: &str) -> bool {
    let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.' || b == b'-';
    !id.is_empty() && id.len() <= 64 && !id.starts_with('.') && id.bytes().all(known)
}

/// Removes a file if it is there. One that stays is an orphan, which the next start sweeps.
pub(super) fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(file = %path.display(), error = %cause, "cannot remove mail data");
        }
        _ => {}
    }
}

fn write(mut file: &File, chunks: &[Bytes]) -> io::Result<()> {
    chunks.iter().try_for_each(|chunk| file.write_all(chunk))
}

/// Everything in a folder but folders.
fn files(folder: &Path) -> io::Result<impl Iterator<Item = io::Result<fs::DirEntry>>> {
    let is_file = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| !kind.is_dir());
    Ok(fs::read_dir(folder)?.filter(move |entry| entry.as_ref().map_or(true, is_file)))
}

/// One of 256 names, by FNV-1a (32 bits): it has to be the same in every version.
fn folder_name(id: &str) -> String {
    let hash = id
        .bytes()
        .fold(0x811C_9DC5_u32, |hash, octet| (hash ^ u32::from(octet)).wrapping_mul(0x0100_0193));
    format!("{:02x}", hash & 0xFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_file_name_and_leads_nowhere() {
        for good in ["k3v9abcd.1", "k3v9abcd.12", "n-1", "0"] {
            assert!(is_id(good), "{good}");
        }
        let long = "a".repeat(65);
        for bad in ["", ".", "..", ".a", "a/b", "A", "a b", "a\0", "ä", "a\\b", &long] {
            assert!(!is_id(bad), "{bad:?}");
        }
    }

    #[test]
    fn the_folders_of_messages_do_not_change_with_the_version() {
        // From the FNV page's test vectors: fnv1a32("") = 811c9dc5, ("a") = e40c292c, ("foobar") = bf9cf968.
        assert_eq!(["", "a", "foobar"].map(folder_name), ["c5", "2c", "68"]);
    }
}
