//! What the relay has to know of a file beside its content: whether it has changed, and whose it is.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// Tells one state of a file from another: by inode, size and the time of its last change, of its permissions too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp(Option<(u64, u64, i64, i64)>);

impl Stamp {
    /// The state that a file is in now; one that cannot be seen is in a state too.
    pub fn of(path: &Path) -> Self {
        let metadata = fs::metadata(path).ok();
        Self(metadata.map(|file| (file.ino(), file.len(), file.ctime(), file.ctime_nsec())))
    }

    /// Whether there was no file to be seen.
    pub fn is_absent(self) -> bool {
        self.0.is_none()
    }
}

/// Why a file cannot be read: what the system said and, where permissions are in the way, which.
pub fn unreadable(path: &Path, cause: &io::Error) -> String {
    if cause.kind() != io::ErrorKind::PermissionDenied {
        return cause.to_string();
    }
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    // The last one that can be seen is in the way: the file itself, or a folder that lets nobody in.
    let Some((closed, metadata)) =
        path.ancestors().find_map(|part| Some((part, fs::metadata(part).ok()?)))
    else {
        return cause.to_string();
    };
    format!(
        "permission denied: {} has mode {:04o} and belongs to user {} and group {}, the relay runs as user {} and group {}",
        if closed == path { PathBuf::from("it") } else { closed.to_owned() }.display(),
        metadata.mode() & 0o7777,
        metadata.uid(),
        metadata.gid(),
        rustix::process::geteuid(),
        rustix::process::getegid(),
    )
}

/// The permissions of a file if they go beyond its owner in one of these bits.
pub fn open_mode(path: &Path, bits: u32) -> Option<u32> {
    let mode = fs::metadata(path).ok()?.mode() & 0o7777;
    (mode & bits != 0).then_some(mode)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_stamp_changes_with_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let absent = Stamp::of(&path);
        fs::write(&path, "one").unwrap();
        let one = Stamp::of(&path);
        assert_eq!(one, Stamp::of(&path));
        // As careful programs replace a file: the time may be the same, the inode is not.
        let other = folder.path().join("new");
        fs::write(&other, "two").unwrap();
        fs::rename(&other, &path).unwrap();
        let two = Stamp::of(&path);
        assert!(absent != one && one != two && two != absent);
        // A repaired permission is a change too, or nobody would read the file again.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_ne!(two, Stamp::of(&path));
    }
}
