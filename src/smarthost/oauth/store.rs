//! Where the sign-in of a mailbox is kept: one file in `state_dir/tokens`, which `smtp-uplift login` writes and the
//! relay, as each refresh token brings its successor. Whoever reads it sees the old one or the new one, whole.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io::{self, ErrorKind, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use rustix::fs::{AtFlags, Dir, Mode, OFlags, mkdirat, openat, renameat, unlinkat};
use serde::{Deserialize, Serialize};

use super::TokenError;
use crate::config::{open_mode, unreadable};

/// Longer than any sign-in.
const LONGEST: u64 = 256 * 1024;
/// How files begin that are being written.
const TEMPORARY: &str = ".new-";
/// The folder in `state_dir`.
const FOLDER: &str = "tokens";
/// What whoever writes there holds meanwhile.
const LOCK: &str = "lock";
/// A file name has 255 octets at most.
const NAME: usize = 200;

/// Where the sign-in of one mailbox is kept.
#[derive(Debug, Clone)]
pub(super) struct Store {
    folder: PathBuf,
    path: PathBuf,
    mailbox: String,
}

/// What is kept. It has a secret in it, and so no Debug.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SignIn {
    /// Tells one sign-in from another; the tokens that follow from it have the same.
    pub(super) id: String,
    /// The application that it was made for.
    pub(super) client_id: String,
    /// What the next token is had with.
    pub(super) refresh_token: String,
    /// When that was issued.
    #[serde(with = "moment")]
    pub(super) issued: Timestamp,
    /// What it is good for.
    pub(super) scope: String,
    /// Who signed in, as far as the token tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) who: Option<String>,
    /// The fingerprint of the `refresh_token` that was configured then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) configured: Option<String>,
}

/// A time as RFC 3339 writes it.
mod moment {
    use jiff::Timestamp;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(at: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(at)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Timestamp, D::Error> {
        String::deserialize(from)?.parse().map_err(|_| D::Error::custom("no time"))
    }
}

impl Store {
    /// The place of a mailbox. Nothing is made yet.
    pub(super) fn new(state_dir: &Path, mailbox: &str) -> Self {
        let folder = state_dir.join(FOLDER);
        let path = folder.join(file_name(mailbox));
        Self { folder, path, mailbox: mailbox.to_owned() }
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What is kept, if anything is.
    pub(super) fn read(&self) -> Result<Option<SignIn>, TokenError> {
        use std::io::Read as _;
        let mut text = String::new();
        let read =
            File::open(&self.path).and_then(|file| file.take(LONGEST).read_to_string(&mut text));
        match read {
            Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(None),
            Err(cause) if cause.kind() != ErrorKind::InvalidData => {
                return Err(self.broken(
                    &format!("cannot be read: {}", unreadable(&self.path, &cause)),
                    "Give it, and its folder, back to the relay's user",
                ));
            }
            _ => {}
        }
        // What serde says of it could quote it.
        serde_json::from_str(&text).map(Some).map_err(|_| {
            self.broken(
                "holds no sign-in",
                &format!("Sign in again, which writes it anew: smtp-uplift login {}", self.mailbox),
            )
        })
    }

    /// Keeps a sign-in in the place of `former`, or of one that it follows from. Returns whether it did: somebody
    /// else's that has come meanwhile stays.
    pub(super) fn replace(
        &self,
        former: Option<&SignIn>,
        new: &SignIn,
    ) -> Result<bool, TokenError> {
        self.write(new, || match self.read() {
            Ok(found) => {
                Ok(found.as_ref() == former || found.is_some_and(|found| found.id == new.id))
            }
            // What nobody could read then is worth nothing now.
            Err(_) if former.is_none() => Ok(true),
            Err(error) => Err(error),
        })
    }

    /// Keeps a sign-in, whatever was there.
    pub(super) fn put(&self, new: &SignIn) -> Result<(), TokenError> {
        self.write(new, || Ok(true)).map(|_| ())
    }

    /// The mode of the file, if others may read it.
    pub(super) fn open_mode(&self) -> Option<u32> {
        open_mode(&self.path, 0o077)
    }

    fn write(
        &self,
        new: &SignIn,
        still: impl FnOnce() -> Result<bool, TokenError>,
    ) -> Result<bool, TokenError> {
        let failed = |cause: io::Error| {
            let remedy = match cause.kind() {
                ErrorKind::InvalidInput => "Delete it: nothing of the relay's is meant to be there",
                _ => "Make room on its disk, and let the relay's user write to state_dir",
            };
            self.broken(&format!("cannot be written: {cause}"), remedy)
        };
        let (folder, _lock) = self.enter().map_err(failed)?;
        if !still()? {
            return Ok(false);
        }
        sweep(&folder);
        let text = serde_json::to_string_pretty(new).map_err(|error| failed(error.into()))?;
        self.swap(&folder, text.as_bytes())
            .map_err(|cause| failed(explained(&self.folder, cause)))?;
        Ok(true)
    }

    /// Opens the folder, and keeps others from writing there: the command and the relay do not write at the same
    /// time, or one would undo what the other has done.
    ///
    /// The relay's user owns the folder, and root writes there too. So everything is opened below the folder that is
    /// open, no link is followed, and only what is open changes its owner.
    fn enter(&self) -> io::Result<(File, File)> {
        let folder = self.open_folder()?;
        let path = self.folder.join(LOCK);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NONBLOCK;
        let lock = open_in(&folder, LOCK, flags).map_err(|cause| explained(&path, cause))?;
        let metadata = lock.metadata()?;
        if !metadata.is_file() || metadata.nlink() != 1 {
            return Err(strange(&path, "is no file of its own"));
        }
        // At once: whatever fails later, the relay's user can open it.
        give(&lock, &folder)?;
        lock.lock()?;
        Ok((folder, lock))
    }

    /// Puts a new file in the place of the old one, on disk when this returns.
    fn swap(&self, folder: &File, octets: &[u8]) -> io::Result<()> {
        let name = format!("{TEMPORARY}{:016x}", fastrand::u64(..));
        let mut file = open_in(folder, &name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?;
        let written = (|| {
            file.write_all(octets)?;
            give(&file, folder)?;
            file.sync_all()?;
            Ok(renameat(folder, &name, folder, file_name(&self.mailbox))?)
        })();
        if written.is_err() {
            let _ = unlinkat(folder, &name, AtFlags::empty());
        }
        written.and_then(|()| folder.sync_all())
    }

    /// A folder that only its owner can look into. Root makes it for whoever owns what it lies in.
    fn open_folder(&self) -> io::Result<File> {
        let state_dir = self.folder.parent().unwrap_or(&self.folder);
        let named = |cause| explained(&self.folder, cause);
        DirBuilder::new().recursive(true).mode(0o700).create(state_dir).map_err(named)?;
        let above = File::open(state_dir).map_err(named)?;
        let made = match mkdirat(&above, FOLDER, Mode::RWXU) {
            Ok(()) => true,
            Err(rustix::io::Errno::EXIST) => false,
            Err(cause) => return Err(named(cause.into())),
        };
        let folder = open_in(&above, FOLDER, OFlags::RDONLY | OFlags::DIRECTORY).map_err(named)?;
        if made {
            give(&folder, &above)?;
            above.sync_all()?;
        }
        if folder.metadata()?.mode() & 0o7777 != 0o700 {
            folder.set_permissions(Permissions::from_mode(0o700)).map_err(named)?;
        }
        Ok(folder)
    }

    fn broken(&self, what: &str, remedy: &str) -> TokenError {
        TokenError::local(
            format!("no token: the sign-in in {} {what}", self.path.display()),
            remedy,
        )
    }
}

/// Opens what lies in a folder that is open; of a link it is the link, which fails.
fn open_in(folder: &File, name: &str, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(folder, name, flags, Mode::RUSR | Mode::WUSR)?.into())
}

/// Deletes what a kill has left half written.
fn sweep(folder: &File) {
    let entries = Dir::read_from(folder).into_iter().flatten().flatten();
    for left in
        entries.filter(|entry| entry.file_name().to_bytes().starts_with(TEMPORARY.as_bytes()))
    {
        // One that stays is in nobody's way.
        let _ = unlinkat(folder, left.file_name(), AtFlags::empty());
    }
}

/// What root writes, the relay's user has to be able to read: gives it to the owner of another.
fn give(file: &File, like: &File) -> io::Result<()> {
    let (ours, theirs) = (file.metadata()?, like.metadata()?);
    if (ours.uid(), ours.gid()) == (theirs.uid(), theirs.gid())
        || !rustix::process::geteuid().is_root()
    {
        return Ok(());
    }
    fchown(file, Some(theirs.uid()), Some(theirs.gid()))
}

/// Why a path cannot be opened; a link is named as that, for the system calls it a loop, or no folder.
fn explained(path: &Path, cause: io::Error) -> io::Error {
    if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink()) {
        return strange(path, "is a link, which is not followed");
    }
    io::Error::other(format!("{}: {}", path.display(), unreadable(path, &cause)))
}

/// Somebody has put there what the relay does not.
fn strange(path: &Path, what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, format!("{} {what}", path.display()))
}

/// An address as the name of a file: what a file system or a shell could take for something else is written as
/// `%` and two digits.
fn file_name(mailbox: &str) -> String {
    let plain = |octet: u8| {
        octet.is_ascii_lowercase() || octet.is_ascii_digit() || b"@._-+".contains(&octet)
    };
    let mut name = String::new();
    for (index, octet) in mailbox.to_ascii_lowercase().bytes().enumerate() {
        if plain(octet) && !(index == 0 && octet == b'.') {
            name.push(char::from(octet));
        } else {
            name.push_str(&format!("%{octet:02x}"));
        }
    }
    if name.len() > NAME {
        let digest = openssl::sha::sha256(name.as_bytes());
        name.truncate(NAME - 65);
        name.push('%');
        digest.iter().for_each(|octet| name.push_str(&format!("{octet:02x}")));
    }
    name + ".json"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sign_in(token: &str) -> SignIn {
        SignIn {
            id: "one".into(),
            client_id: "the-client".into(),
            refresh_token: token.into(),
            issued: Timestamp::now(),
            scope: "scope".into(),
            who: None,
            configured: None,
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn what_is_kept_is_private_and_whole() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(&folder.path().join("state"), "Scan@example.com");
        assert!(store.read().unwrap().is_none());
        let one = sign_in("secret-1");
        assert!(store.replace(None, &one).unwrap());
        assert!(store.read().unwrap() == Some(one.clone()));
        assert_eq!(store.path(), folder.path().join("state/tokens/scan@example.com.json"));
        assert_eq!((mode(store.path()), mode(&store.folder)), (0o600, 0o700));
        assert_eq!(store.open_mode(), None);
        fs::set_permissions(store.path(), Permissions::from_mode(0o644)).unwrap();
        fs::set_permissions(&store.folder, Permissions::from_mode(0o755)).unwrap();
        assert_eq!(store.open_mode(), Some(0o644));
        let two = SignIn { id: "two".into(), ..sign_in("secret-2") };
        assert!(!store.replace(None, &two).unwrap(), "there is another one meanwhile");
        let next = sign_in("secret-1-next");
        assert!(store.replace(None, &next).unwrap(), "it follows from what is there");
        assert!(!store.replace(Some(&one), &two).unwrap());
        assert!(store.replace(None, &one).unwrap());
        assert!(store.replace(Some(&one), &two).unwrap());
        assert_eq!((mode(store.path()), mode(&store.folder)), (0o600, 0o700));
        let left: Vec<_> =
            fs::read_dir(&store.folder).unwrap().map(|file| file.unwrap().file_name()).collect();
        assert_eq!(left.len(), 2, "the sign-in and the lock: {left:?}");
    }

    #[test]
    fn a_kill_while_it_is_written_leaves_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path(), "a@example.com");
        let one = sign_in("secret-1");
        store.put(&one).unwrap();
        // What a kill leaves behind: a file that is half written beside the old one, and a lock of nobody's.
        fs::write(store.folder.join(".new-abc"), "{\"id\": \"tw").unwrap();
        assert!(store.read().unwrap() == Some(one.clone()));
        let two = sign_in("secret-2");
        assert!(store.replace(Some(&one), &two).unwrap());
        assert!(store.read().unwrap() == Some(two));
        assert!(!store.folder.join(".new-abc").exists(), "a secret that nobody needs");
    }

    #[test]
    fn what_cannot_be_used_is_named_with_the_next_step() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path(), "a@example.com");
        store.put(&sign_in("secret-1")).unwrap();
        for text in ["", "{}", "{\"refresh_token\": 5, \"id\": \"secret-1\"}", "secret-1", "\u{1}"]
        {
            fs::write(store.path(), text).unwrap();
            let error = store.read().err().unwrap();
            assert!(error.is_local());
            let said = error.to_string();
            assert!(said.contains("a@example.com.json holds no sign-in; sign in again"), "{said}");
            assert!(said.contains("smtp-uplift login a@example.com") && !said.contains("secret-1"));
        }
        fs::write(store.path(), [0xff]).unwrap();
        assert!(store.read().err().unwrap().message.ends_with("holds no sign-in"));
        fs::remove_dir_all(&store.folder).unwrap();
        fs::write(&store.folder, "").unwrap();
        let said = store.put(&sign_in("secret-1")).unwrap_err().to_string();
        assert!(said.contains("cannot be written: ") && said.contains("state_dir"), "{said}");
    }

    #[test]
    fn any_address_is_the_name_of_one_file() {
        for (mailbox, name) in [
            ("scan@example.com", "scan@example.com.json"),
            ("../../etc/passwd@x", "%2e./..%2fetc".split('/').next().unwrap()),
            (".hidden@x", "%2ehidden@x.json"),
            ("a b\"*@x", "a%20b%22%2a@x.json"),
            ("ä@x", "%c3%a4@x.json"),
        ] {
            let found = file_name(mailbox);
            assert!(found.starts_with(name.trim_end_matches(".json")), "{mailbox}: {found}");
            assert!(!found.contains('/') && !found.starts_with('.'), "{found}");
        }
        let long = file_name(&"x".repeat(300));
        assert!(long.len() < 255 && long != file_name(&"x".repeat(301)), "{long}");
    }

    #[test]
    fn what_root_writes_belongs_to_whoever_has_the_folder() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can give a file away");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(folder.path(), Some(4711), Some(4712)).unwrap();
        let store = Store::new(folder.path(), "a@example.com");
        store.put(&sign_in("secret-1")).unwrap();
        for path in [store.path(), &store.folder, &store.folder.join("lock")] {
            let metadata = fs::metadata(path).unwrap();
            assert_eq!((metadata.uid(), metadata.gid()), (4711, 4712), "{}", path.display());
        }
    }

    /// The relay's user owns the folder, and can put there what it likes.
    #[test]
    fn root_gives_nothing_away_that_a_link_leads_to() {
        let folder = tempfile::tempdir().unwrap();
        let (target, elsewhere) = (folder.path().join("target"), folder.path().join("elsewhere"));
        fs::write(&target, "of root").unwrap();
        fs::set_permissions(&target, Permissions::from_mode(0o644)).unwrap();
        DirBuilder::new().mode(0o755).create(&elsewhere).unwrap();
        fs::write(elsewhere.join(".new-file"), "of root").unwrap();
        let untouched = |path: &Path| {
            let metadata = fs::metadata(path).unwrap();
            (metadata.uid(), metadata.gid(), metadata.mode())
        };
        let before = (untouched(&target), untouched(&elsewhere));
        let state = folder.path().join("state");
        fs::create_dir(&state).unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&state, Some(4711), Some(4712)).unwrap();
        }
        let store = Store::new(&state, "a@example.com");
        store.put(&sign_in("secret-1")).unwrap();
        let lock = store.folder.join(LOCK);
        let refused = |what: &str| {
            let said = store.put(&sign_in("secret-2")).unwrap_err().to_string();
            assert!(said.contains(what) && said.contains("; delete it"), "{said}");
        };
        fs::remove_file(&lock).unwrap();
        std::os::unix::fs::symlink(&target, &lock).unwrap();
        refused("tokens/lock is a link, which is not followed");
        fs::remove_file(&lock).unwrap();
        fs::hard_link(&target, &lock).unwrap();
        refused("tokens/lock is no file of its own");
        fs::remove_dir_all(&store.folder).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &store.folder).unwrap();
        refused("state/tokens is a link, which is not followed");
        assert_eq!((untouched(&target), untouched(&elsewhere)), before);
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 1, "nothing is made or deleted");
    }

    #[test]
    fn a_lock_that_root_has_made_is_given_away_whatever_fails_later() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can give a file away");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(folder.path(), Some(4711), Some(4712)).unwrap();
        let store = Store::new(folder.path(), "a@example.com");
        fs::create_dir(&store.folder).unwrap();
        std::os::unix::fs::chown(&store.folder, Some(4711), Some(4712)).unwrap();
        // Nothing can take the place of a folder.
        fs::create_dir(store.path()).unwrap();
        store.put(&sign_in("secret-1")).unwrap_err();
        assert_eq!(fs::metadata(store.folder.join(LOCK)).unwrap().uid(), 4711);
        let left = fs::read_dir(&store.folder).unwrap().count();
        assert_eq!(left, 2, "no secret is left half written");
    }
}
