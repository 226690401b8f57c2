//! The folder of a spool: what has to be true of it, where things lie in it, and the lock that keeps a second
//! relay out.
//!
//! ```text
//! queue.db, -wal, -shm   the database
//! lock                   locked by the relay that works on it, with its process id
//! incoming/<id>          mail data that are being written; swept at start
//! bodies/xx/<id>         mail data that are too large for a row
//! ```

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io::{self, Read as _, Write as _},
    os::unix::fs::{
        DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
    },
    path::{Path, PathBuf},
};

use thiserror::Error;

use crate::config::unreadable;

/// Octets that stay free on a disk, for others and for SQLite's log.
const RESERVE: u64 = 64 << 20;

/// The folder of a spool, fit to be used.
#[derive(Clone, Debug)]
pub struct Place {
    directory: PathBuf,
    incoming: PathBuf,
    bodies: PathBuf,
}

/// Keeps other relays out while it lives.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// A disk, in octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Free for us.
    pub free: u64,
    /// All.
    pub size: u64,
}

/// Why a folder is not fit for a spool.
#[derive(Debug, Error)]
pub enum PlaceError {
    /// It cannot be made, read or written.
    #[error("the spool cannot use {}: {}; make it writable or set spool.directory to another folder", path.display(), unreadable(path, cause))]
    Unusable {
        /// The folder, or the file in it.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// A command looks for a spool where there is none.
    #[error("there is no spool at {}: a relay makes it when it starts; see spool.directory", .0.display())]
    Missing(PathBuf),
    /// It is a file.
    #[error("the spool {} is not a folder: move it aside or set spool.directory to another one", .0.display())]
    NoFolder(PathBuf),
    /// It is somebody else's.
    #[error("the spool {path} belongs to user {owner} and this program runs as user {ours}: {next}", path = path.display(), next = as_whom(*owner, *ours, path))]
    Owner {
        /// The folder.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who we are.
        ours: u32,
    },
    /// It lies on a network file system.
    #[error("the spool {} lies on {kind}, a network file system, on which its write-ahead log is not safe: set spool.directory to a folder on a local disk", path.display())]
    Network {
        /// The folder.
        path: PathBuf,
        /// The kind of file system.
        kind: &'static str,
    },
    /// Another relay uses it.
    #[error("another relay{} uses the spool {}: stop it first, or give this one its own spool.directory", .pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(), path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
        /// The other one's process id, if it has written it.
        pid: Option<u32>,
    },
}

impl Place {
    /// The folder for a relay: made if it is not there, and closed to everybody else.
    pub fn make(directory: &Path) -> Result<Self, PlaceError> {
        if !directory.exists() {
            let make = || {
                let changed = parents_of_missing(directory)?;
                DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
                changed.iter().try_for_each(|folder| sync_folder(folder))
            };
            make().map_err(|cause| unusable(directory, cause))?;
        }
        Self::find(directory)
    }

    /// The folder for a command, which has to be there.
    pub fn find(directory: &Path) -> Result<Self, PlaceError> {
        let metadata = fs::metadata(directory).map_err(|cause| match cause.kind() {
            io::ErrorKind::NotFound => PlaceError::Missing(directory.to_owned()),
            io::ErrorKind::NotADirectory => PlaceError::NoFolder(directory.to_owned()),
            _ => unusable(directory, cause),
        })?;
        if !metadata.is_dir() {
            return Err(PlaceError::NoFolder(directory.to_owned()));
        }
        // Not even root: what it writes here the relay could not read any more.
        let (owner, ours) = (metadata.uid(), rustix::process::geteuid().as_raw());
        if owner != ours {
            return Err(PlaceError::Owner { path: directory.to_owned(), owner, ours });
        }
        if let Some(kind) = network_file_system(directory) {
            return Err(PlaceError::Network { path: directory.to_owned(), kind });
        }
        let place = Self {
            directory: directory.to_owned(),
            incoming: directory.join("incoming"),
            bodies: directory.join("bodies"),
        };
        close(directory).map_err(|cause| unusable(directory, cause))?;
        for folder in [&place.incoming, &place.bodies] {
            private_folder(folder).map_err(|cause| unusable(folder, cause))?;
        }
        private_file(&place.database()).map_err(|cause| unusable(&place.database(), cause))?;
        sync_folder(directory).map_err(|cause| unusable(directory, cause))?;
        Ok(place)
    }

    /// The folder itself.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where mail data are written to while they come in.
    pub fn incoming(&self) -> &Path {
        &self.incoming
    }

    /// Where large mail data are kept.
    pub fn bodies(&self) -> &Path {
        &self.bodies
    }

    /// The database.
    pub fn database(&self) -> PathBuf {
        self.directory.join("queue.db")
    }

    /// Locks it, unless somebody else has.
    pub fn lock(&self) -> Result<Lock, PlaceError> {
        let path = self.directory.join("lock");
        let locked = || {
            private_file(&path)?;
            let mut file = OpenOptions::new().read(true).write(true).open(&path)?;
            match file.try_lock() {
                Ok(()) => {
                    file.set_len(0)?;
                    write!(file, "{}", std::process::id())?;
                    Ok(Ok(Lock { _file: file }))
                }
                Err(TryLockError::WouldBlock) => {
                    let mut text = String::new();
                    file.read_to_string(&mut text)?;
                    Ok(Err(text.trim().parse().ok()))
                }
                Err(TryLockError::Error(cause)) => Err(cause),
            }
        };
        locked()
            .map_err(|cause| unusable(&path, cause))?
            .map_err(|pid| PlaceError::InUse { path: self.directory.clone(), pid })
    }

    /// The disk that it lies on.
    pub fn disk(&self) -> Option<Disk> {
        Disk::of(&self.directory)
    }
}

impl Disk {
    /// The one that a folder lies on.
    pub fn of(folder: &Path) -> Option<Self> {
        let disk = rustix::fs::statvfs(folder).ok()?;
        Some(Self {
            free: disk.f_bavail.saturating_mul(disk.f_frsize),
            size: disk.f_blocks.saturating_mul(disk.f_frsize),
        })
    }

    /// Whether so many octets more leave free what has to stay free; if not, why.
    pub fn fits(self, octets: u64) -> Result<(), String> {
        let reserve = RESERVE.min(self.size / 20);
        if self.free < reserve.saturating_add(octets) {
            return Err(format!(
                "its disk has {} octets free, of which {reserve} are kept",
                self.free
            ));
        }
        Ok(())
    }
}

/// Makes a folder that only we can look into, or closes it if it is there, whatever the umask.
pub(super) fn private_folder(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => Err(cause),
        _ => close(path),
    }
}

/// Puts the entries of a folder on disk.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Makes an empty file that only we can read, or closes it if it is there. One that is there is not opened: to
/// close the database's file again would take SQLite's locks of this process away.
pub(super) fn private_file(path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => Err(cause),
        _ => close(path),
    }
}

/// Takes the permissions of everybody else away, and gives us ours.
fn close(path: &Path) -> io::Result<()> {
    let metadata = fs::metadata(path)?;
    let wanted = if metadata.is_dir() { 0o700 } else { 0o600 };
    if metadata.mode() & 0o7777 == wanted {
        return Ok(());
    }
    fs::set_permissions(path, Permissions::from_mode(wanted))
}

/// The folders that get a new entry when this one is made with all above it that are missing.
fn parents_of_missing(path: &Path) -> io::Result<Vec<PathBuf>> {
    let path = std::path::absolute(path)?;
    let missing = path.ancestors().take_while(|folder| !folder.exists());
    Ok(missing.filter_map(Path::parent).map(Path::to_owned).collect())
}

fn unusable(path: &Path, cause: io::Error) -> PlaceError {
    PlaceError::Unusable { path: path.to_owned(), cause }
}

#[cfg(target_os = "linux")]
fn network_file_system(path: &Path) -> Option<&'static str> {
    // Magic numbers have 32 bits; the field is wider, and its sign differs from one platform to the other.
    network_name(rustix::fs::statfs(path).ok()?.f_type as u32)
}

#[cfg(not(target_os = "linux"))]
fn network_file_system(_path: &Path) -> Option<&'static str> {
    None
}

/// The name of a file system that several machines can write to, by statfs' `f_type` (statfs(2), linux/magic.h).
/// The write-ahead log needs memory that all its users share. FUSE is not among them: it may be anything.
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "the numbers are Linux'"))]
fn network_name(magic: u32) -> Option<&'static str> {
    Some(match magic {
        0x6969 => "NFS",
        0x517B => "SMB",
        0xFF53_4D42 => "CIFS",
        0xFE53_4D42 => "SMB2",
        0x5346_414F | 0x6B41_4653 => "AFS",
        0x00C3_6400 => "Ceph",
        0x0102_1997 => "9p",
        0x7375_7245 => "Coda",
        0x564C => "NCP",
        0x0BD0_0BD0 => "Lustre",
        0x0116_1970 => "GFS2",
        0x7461_636F => "OCFS2",
        0x1983_0326 => "BeeGFS",
        0x4750_4653 => "GPFS",
        0x2003_0528 => "OrangeFS",
        0x786F_4256 => "a VirtualBox shared folder",
        0xBACB_ACBC => "a VMware shared folder",
        _ => return None,
    })
}

/// What to do about a folder of somebody else's. Who is root can be anybody, and should not take it from the relay.
fn as_whom(owner: u32, ours: u32, path: &Path) -> String {
    if ours == 0 {
        return format!("run it as user {owner}: sudo -u '#{owner}' smtp-uplift …");
    }
    format!("run it as user {owner}, or `chown -R {ours} {}`", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn network_file_systems_are_known_by_their_numbers() {
        for (magic, name) in [
            (0x6969, Some("NFS")),
            (0x517B, Some("SMB")),
            (0xFF53_4D42, Some("CIFS")),
            (0xFE53_4D42, Some("SMB2")),
            (0x5346_414F, Some("AFS")),
            (0x00C3_6400, Some("Ceph")),
            (0x0102_1997, Some("9p")),
            (0xEF53, None),      // ext4
            (0x5846_5342, None), // XFS
            (0x9123_683E, None), // btrfs
            (0x0102_1994, None), // tmpfs
            (0x794C_7630, None), // overlayfs
            (0x2FC1_2FC1, None), // ZFS
            (0x6573_5546, None), // FUSE
        ] {
            assert_eq!(network_name(magic), name, "{magic:#x}");
        }
    }

    #[test]
    fn the_folder_is_made_and_closed() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("state/spool");
        let place = Place::make(&directory).unwrap();
        fs::set_permissions(&directory, Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(place.database(), Permissions::from_mode(0o644)).unwrap();
        Place::find(&directory).unwrap();
        for path in [place.directory(), place.incoming(), place.bodies()] {
            assert_eq!(mode(path), 0o700, "{}", path.display());
        }
        assert_eq!(mode(&place.database()), 0o600);
        let disk = place.disk().unwrap();
        assert!(disk.size > disk.free && disk.free > 0, "{disk:?}");
    }

    #[test]
    fn each_folder_that_gets_a_new_one_is_to_be_synced() {
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path();
        let changed = |name: &str| parents_of_missing(&there.join(name)).unwrap();
        assert_eq!(changed("a/b/c"), [there.join("a/b"), there.join("a"), there.to_owned()]);
        assert_eq!(changed("a"), [there]);
        assert!(changed("").is_empty());
    }

    #[test]
    fn what_is_wrong_with_the_folder_is_named_with_the_next_step() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let said = |error: PlaceError| error.to_string();
        let missing = said(Place::find(&folder.path().join("none")).unwrap_err());
        assert!(missing.starts_with("there is no spool at "), "{missing}");
        for path in [file.clone(), file.join("spool")] {
            let error = said(Place::make(&path).unwrap_err());
            assert!(error.contains("spool.directory"), "{error}");
            assert!(!error.contains('\n'));
        }
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(folder.path(), Some(4711), None).unwrap();
            let error = said(Place::make(folder.path()).unwrap_err());
            assert!(
                error.contains("belongs to user 4711 and this program runs as user 0"),
                "{error}"
            );
        }
    }

    #[test]
    fn one_has_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::make(folder.path()).unwrap();
        let lock = place.lock().unwrap();
        let error = place.lock().unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("another relay (pid {})", std::process::id())),
            "{error}"
        );
        drop(lock);
        place.lock().unwrap();
    }
}
