//! The users file: `name:argon2 hash[:mailbox]`, one a line. Read anew for each login, so that a change counts at once.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use argon2::{Algorithm, Argon2, Block, Params, PasswordHash, Version, password_hash::Output};
use thiserror::Error;

use crate::{config::unreadable, proto::sasl::Credentials};

/// Verified where the name is unknown, so that the time taken does not tell.
const NOBODY: &str = "$argon2id$v=19$m=19456,t=2,p=1$c29tZSBzYWx0IGhlcmU$\
                      xIpzPNs2o9hqFVXIJ6VxVKq3T0yg6n0P1Wc8x9m1h5M";

/// Who may log in.
#[derive(Clone, Debug)]
pub enum Accounts {
    /// Nobody.
    None,
    /// Who stands in this file.
    File(PathBuf),
}

/// A login that was accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// The name in the users file; `None` where any name will do, for devices that insist on a login although their
    /// address is trusted.
    pub name: Option<String>,
    /// The mailbox that its mail goes through; `None`: any.
    pub mailbox: Option<String>,
}

/// What is wrong with a users file.
#[derive(Debug, Error)]
pub enum AccountsError {
    /// It cannot be read.
    #[error("users_file {}: {}", path.display(), unreadable(path, cause))]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// A line is not `name:argon2 hash`.
    #[error("users_file {}:{line}: expected name:argon2 hash, as in scanner:$argon2id$v=19$…", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// A line's mailbox is not configured.
    #[error("users_file {}:{line}: there is no [[mailbox]] with address = \"{mailbox}\"; add it, or correct the line", path.display())]
    Mailbox {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The mailbox.
        mailbox: String,
    },
}

impl Accounts {
    /// Reads the whole file and says what is wrong with it; `mailboxes` are those that there are, if that is known.
    pub fn check(&self, mailboxes: Option<&[&str]>) -> Result<(), AccountsError> {
        let Self::File(path) = self else { return Ok(()) };
        for (index, line) in read(path)?.lines().enumerate() {
            let (path, number) = (path.clone(), index + 1);
            let well_formed = account(line).is_none_or(|(_, hash)| PasswordHash::new(hash).is_ok());
            if !well_formed || (account(line).is_none() && !is_remark(line)) {
                return Err(AccountsError::Line { path, line: number });
            }
            if let Some(mailbox) = mailbox(line)
                && let Some(known) = mailboxes
                && !known.iter().any(|known| known.eq_ignore_ascii_case(mailbox))
            {
                let mailbox = mailbox.to_owned();
                return Err(AccountsError::Mailbox { path, line: number, mailbox });
            }
        }
        Ok(())
    }

    /// Judges a login; `None`: refused. Takes tens of milliseconds on purpose: not for the event loop.
    pub fn accept(&self, credentials: &Credentials) -> Result<Option<Account>, AccountsError> {
        let line = self.line(&credentials.user)?;
        Ok(Account::verified(line.as_deref(), &credentials.secret, &mut Memory::default()))
    }

    /// The line of a name as the users file has it now.
    pub fn line(&self, user: &str) -> Result<Option<String>, AccountsError> {
        let Self::File(path) = self else { return Ok(None) };
        let text = read(path)?;
        // Some devices make an address of whatever name they are given (devices.md row 12).
        let name = user.split('@').next().unwrap_or_default();
        let is = |line: &&str| account(line).is_some_and(|(it, _)| it == name || it == user);
        Ok(text.lines().find(is).map(str::to_owned))
    }
}

impl Account {
    /// That of a line, if the password is its own. Takes as long where there is no line.
    pub fn verified(line: Option<&str>, secret: &str, memory: &mut Memory) -> Option<Self> {
        let hash = line.and_then(account).map_or(NOBODY, |(_, hash)| hash);
        let verified = PasswordHash::new(hash).is_ok_and(|hash| memory.verify(secret, &hash));
        line.map(Self::of).filter(|_| verified)
    }

    /// That of a line.
    pub fn of(line: &str) -> Self {
        Self {
            name: account(line).map(|(name, _)| name.to_owned()),
            mailbox: mailbox(line).map(str::to_owned),
        }
    }
}

/// What Argon2 works in, to be used again: 19 MiB that come and go with each login make the allocator keep hundreds.
#[derive(Default)]
pub struct Memory(Vec<Block>);

impl Memory {
    /// As [`Argon2`] verifies a hash.
    fn verify(&mut self, secret: &str, hash: &PasswordHash<'_>) -> bool {
        self.hashed(secret, hash).zip(hash.hash).is_some_and(|(given, own)| given == own)
    }

    fn hashed(&mut self, secret: &str, hash: &PasswordHash<'_>) -> Option<Output> {
        let params = Params::try_from(hash).ok()?;
        let algorithm = Algorithm::try_from(hash.algorithm).ok()?;
        let version = hash.version.map_or(Ok(Version::default()), Version::try_from).ok()?;
        let (mut salt, length) = ([0; 64], hash.hash?.len());
        let salt = hash.salt?.decode_b64(&mut salt).ok()?;
        self.0.resize(params.block_count().max(self.0.len()), Block::default());
        let argon = Argon2::new(algorithm, version, params);
        let hashed = Output::init_with(length, |output| {
            Ok(argon.hash_password_into_with_memory(
                secret.as_bytes(),
                salt,
                output,
                &mut self.0,
            )?)
        });
        hashed.ok()
    }
}

fn read(path: &Path) -> Result<String, AccountsError> {
    fs::read_to_string(path).map_err(|cause| AccountsError::File { path: path.to_owned(), cause })
}

pub(super) fn is_remark(line: &str) -> bool {
    line.trim().is_empty() || line.starts_with('#')
}

/// Name and hash of a line.
pub(super) fn account(line: &str) -> Option<(&str, &str)> {
    let mut fields = line.trim_end().split(':').filter(|_| !is_remark(line));
    let (name, hash) = (fields.next()?, fields.next()?);
    (!name.is_empty()).then_some((name, hash))
}

/// The mailbox of a line, if it names one.
fn mailbox(line: &str) -> Option<&str> {
    let mailbox = line.split(':').nth(2)?.trim();
    (!is_remark(line) && !mailbox.is_empty()).then_some(mailbox)
}

#[cfg(test)]
mod tests {
    use argon2::{PasswordHasher as _, password_hash::SaltString};

    use super::*;

    fn login(user: &str, secret: &str) -> Credentials {
        Credentials { user: user.to_owned(), secret: secret.to_owned() }
    }

    fn file(lines: &str) -> (tempfile::TempDir, Accounts) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users.txt");
        fs::write(&path, lines).unwrap();
        (folder, Accounts::File(path))
    }

    fn hash(password: &str) -> String {
        let weak = Argon2::new(
            Default::default(),
            Default::default(),
            Params::new(8, 1, 1, None).unwrap(),
        );
        weak.hash_password(password.as_bytes(), &SaltString::encode_b64(b"12345678").unwrap())
            .unwrap()
            .to_string()
    }

    #[test]
    fn names_count_with_and_without_a_domain() {
        let (_folder, accounts) = file(&format!("# copiers\n\nscan:{}\n", hash("right")));
        accounts.check(None).unwrap();
        assert!(accounts.accept(&login("scan", "right")).unwrap().is_some());
        assert!(accounts.accept(&login("scan@example.org", "right")).unwrap().is_some());
        assert!(accounts.accept(&login("scan", "wrong")).unwrap().is_none());
        assert!(accounts.accept(&login("other", "right")).unwrap().is_none());
        assert!(accounts.accept(&login("# copiers", "right")).unwrap().is_none());
        assert!(Accounts::None.accept(&login("scan", "right")).unwrap().is_none());
    }

    #[test]
    fn a_line_may_name_the_mailbox_of_a_login() {
        let (_folder, accounts) =
            file(&format!("# x:y:z\nscan:{0}:Box@example.org \nplain:{0}:\n", hash("right")));
        accounts.check(Some(&["box@example.org"])).unwrap();
        let account = |user| accounts.accept(&login(user, "right")).unwrap().unwrap();
        assert_eq!(account("scan").mailbox.as_deref(), Some("Box@example.org"));
        assert_eq!(account("plain").mailbox, None);
        let error = accounts.check(Some(&["other@example.org"])).unwrap_err().to_string();
        assert!(error.contains("users.txt:2: there is no [[mailbox]]"), "{error}");
        assert!(error.contains("Box@example.org"), "{error}");
    }

    #[test]
    fn a_bad_line_is_named() {
        let (_folder, accounts) = file(&format!("scan:{}\nscan2:plain text\n", hash("x")));
        assert!(
            accounts
                .check(None)
                .unwrap_err()
                .to_string()
                .contains("users.txt:2: expected name:argon2 hash")
        );
        assert!(
            Accounts::File("/nonexistent".into())
                .check(None)
                .unwrap_err()
                .to_string()
                .contains("No such file")
        );
    }

    #[test]
    fn the_hash_of_nobody_is_one_that_takes_as_long() {
        let nobody = PasswordHash::new(NOBODY).unwrap();
        let (theirs, default) = (Params::try_from(&nobody).unwrap(), Params::default());
        assert_eq!((theirs.m_cost(), theirs.t_cost()), (default.m_cost(), default.t_cost()));
    }
}
