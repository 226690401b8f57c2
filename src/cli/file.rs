//! Files that commands write: a new one never over another, a changed one in the place of the old in one step.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown},
    path::Path,
};

use tempfile::NamedTempFile;

/// For what only its owner may read.
pub(super) const PRIVATE: u32 = 0o600;
/// For what everybody may read, if the umask says so.
pub(super) const PUBLIC: u32 = 0o666;

/// Writes a file that is not there yet.
pub(super) fn create(path: &Path, octets: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(octets)?;
    file.sync_all()
}

/// Writes a file anew: whoever reads it meanwhile sees the old one or the new one, whole, and so does who
/// reads it after a crash. Owner and mode stay; a file that was not there becomes private.
pub(super) fn replace(path: &Path, octets: &[u8]) -> io::Result<()> {
    // A link stays one.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    folder.metadata()?;
    // Its own error names a file that nobody knows.
    let unnamed = |error: io::Error| io::Error::from(error.kind());
    let mut file = NamedTempFile::new_in(folder).map_err(unnamed)?;
    file.write_all(octets)?;
    let mode = match path.metadata() {
        Ok(old) => {
            keep_owner(file.as_file(), &old)?;
            old.permissions()
        }
        Err(_) => Permissions::from_mode(PRIVATE),
    };
    file.as_file().set_permissions(mode)?;
    file.as_file().sync_all()?;
    file.persist(&path)?;
    File::open(folder)?.sync_all()
}

/// Root may change a file of the relay's user, who must be able to read it afterwards too.
fn keep_owner(file: &File, old: &fs::Metadata) -> io::Result<()> {
    let new = file.metadata()?;
    if (new.uid(), new.gid()) == (old.uid(), old.gid()) {
        return Ok(());
    }
    fchown(file, Some(old.uid()), Some(old.gid())).map_err(|error| {
        io::Error::new(error.kind(), "it belongs to another user; do this as its owner or as root")
    })
}
