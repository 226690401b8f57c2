//! The users file: `name:argon2 hash`, one a line. Read anew for each login, so that a change counts at once.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use argon2::{Argon2, PasswordHash, PasswordVerifier as _};
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
    /// Anybody: for devices that insist on a login although their address is trusted.
    Any,
    /// Who stands in this file.
    File(PathBuf),
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
}

impl Accounts {
    /// Reads the whole file and says what is wrong with it.
    pub fn check(&self) -> Result<(), AccountsError> {
        let Self::File(path) = self else { return Ok(()) };
        for (index, line) in read(path)?.lines().enumerate() {
            let well_formed = account(line).is_none_or(|(_, hash)| PasswordHash::new(hash).is_ok());
            if !well_formed || (account(line).is_none() && !is_remark(line)) {
                return Err(AccountsError::Line { path: path.clone(), line: index + 1 });
            }
        }
        Ok(())
    }

    /// Judges a login. Takes tens of milliseconds on purpose: not for the event loop.
    pub fn accept(&self, credentials: &Credentials) -> Result<bool, AccountsError> {
        let path = match self {
            Self::None => return Ok(false),
            Self::Any => return Ok(true),
            Self::File(path) => path,
        };
        let text = read(path)?;
        // Some devices make an address of whatever name they are given (devices.md row 12).
        let name = credentials.user.split('@').next().unwrap_or_default();
        let known = text
            .lines()
            .filter_map(account)
            .find(|(known, _)| *known == name || *known == credentials.user);
        let hash = known.map_or(NOBODY, |(_, hash)| hash);
        let verified = PasswordHash::new(hash).is_ok_and(|hash| {
            Argon2::default().verify_password(credentials.secret.as_bytes(), &hash).is_ok()
        });
        Ok(verified && known.is_some())
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

#[cfg(test)]
mod tests {
    use argon2::{Params, PasswordHasher as _, password_hash::SaltString};

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
        accounts.check().unwrap();
        assert!(accounts.accept(&login("scan", "right")).unwrap());
        assert!(accounts.accept(&login("scan@example.org", "right")).unwrap());
        assert!(!accounts.accept(&login("scan", "wrong")).unwrap());
        assert!(!accounts.accept(&login("other", "right")).unwrap());
        assert!(!accounts.accept(&login("# copiers", "right")).unwrap());
        assert!(!Accounts::None.accept(&login("scan", "right")).unwrap());
        assert!(Accounts::Any.accept(&login("x", "")).unwrap());
    }

    #[test]
    fn a_bad_line_is_named() {
        let (_folder, accounts) = file(&format!("scan:{}\nscan2:plain text\n", hash("x")));
        assert!(
            accounts
                .check()
                .unwrap_err()
                .to_string()
                .contains("users.txt:2: expected name:argon2 hash")
        );
        assert!(
            Accounts::File("/nonexistent".into())
                .check()
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
