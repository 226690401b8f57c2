//! Logins that have succeeded. A device that logs in for each page costs no Argon2, and never waits behind guessers.

use std::{collections::HashMap, fmt, time::Duration};

use openssl::{error::ErrorStack, hash::MessageDigest, pkey::PKey, rand::rand_bytes, sign::Signer};

use crate::proto::sasl::Credentials;

/// How long a login is remembered that is not used.
const MEMORY: Duration = Duration::from_secs(600);
/// Logins that are remembered at a time; of more, those go that would be forgotten first.
const LOGINS: usize = 10_000;

/// A keyed hash of a login: HMAC-SHA256. Nobody learns a password from it, nor from the key, which is nowhere but in
/// memory.
pub type Mark = [u8; 32];

/// What is remembered, and until when.
pub struct Remembered {
    key: [u8; 32],
    marks: HashMap<Mark, Duration>,
}

impl Remembered {
    /// Nothing yet, under a key of its own.
    pub fn new() -> Result<Self, ErrorStack> {
        let mut key = [0; 32];
        rand_bytes(&mut key)?;
        Ok(Self { key, marks: HashMap::new() })
    }

    /// The mark of a login that the users file has this line for: once the line changes the mark is another.
    pub fn mark(&self, credentials: &Credentials, line: &str) -> Option<Mark> {
        let key = PKey::hmac(&self.key).ok()?;
        let mut signer = Signer::new(MessageDigest::sha256(), &key).ok()?;
        for part in [&credentials.user, &credentials.secret, line] {
            // Each with its length, so that no two logins read as the same octets.
            signer.update(&(part.len() as u64).to_be_bytes()).ok()?;
            signer.update(part.as_bytes()).ok()?;
        }
        signer.sign_to_vec().ok()?.try_into().ok()
    }

    /// Whether a login has succeeded lately. Then it is remembered anew: a device that logs in every few minutes is
    /// never judged behind somebody who guesses from its address.
    pub fn renews(&mut self, mark: &Mark, now: Duration) -> bool {
        let Some(until) = self.marks.get_mut(mark).filter(|until| now < **until) else {
            return false;
        };
        *until = now + MEMORY;
        true
    }

    /// A login has succeeded.
    pub fn insert(&mut self, mark: Mark, now: Duration) {
        if self.marks.len() >= LOGINS && !self.marks.contains_key(&mark) {
            self.marks.retain(|_, until| now < *until);
            if self.marks.len() >= LOGINS
                && let Some(first) = self.marks.iter().min_by_key(|(_, until)| **until)
            {
                let first = *first.0;
                self.marks.remove(&first);
            }
        }
        self.marks.insert(mark, now + MEMORY);
    }
}

impl fmt::Debug for Remembered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remembered").field("marks", &self.marks.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn a_mark_is_of_one_login_one_line_and_one_relay() {
        let remembered = Remembered::new().unwrap();
        let mark = |user: &str, secret: &str, line| {
            let credentials = Credentials { user: user.to_owned(), secret: secret.to_owned() };
            remembered.mark(&credentials, line).unwrap()
        };
        let one = mark("scan", "geheim", "scan:HASH");
        assert_eq!(one, mark("scan", "geheim", "scan:HASH"));
        for other in [
            mark("scang", "eheim", "scan:HASH"),
            mark("scan", "geheim", "scan:OTHER"),
            mark("scan", "geheims", "can:HASH"),
        ] {
            assert_ne!(one, other);
        }
        let credentials = Credentials { user: "scan".to_owned(), secret: "geheim".to_owned() };
        let elsewhere = Remembered::new().unwrap().mark(&credentials, "scan:HASH").unwrap();
        assert_ne!(one, elsewhere, "each relay has its own key");
        assert!(!format!("{remembered:?}").contains("key"));
    }

    #[test]
    fn logins_are_remembered_for_ten_minutes_of_idleness_and_so_many() {
        let mut remembered = Remembered::new().unwrap();
        let mark = |number: u64| {
            let mut mark = [0; 32];
            mark[..8].copy_from_slice(&number.to_be_bytes());
            mark
        };
        remembered.insert(mark(0), seconds(1));
        assert!(!remembered.renews(&mark(1), seconds(1)));
        assert!(remembered.renews(&mark(0), seconds(600)));
        assert!(remembered.renews(&mark(0), seconds(1_199)), "it was used meanwhile");
        assert!(!remembered.renews(&mark(0), seconds(1_799)));
        assert!(!remembered.renews(&mark(0), seconds(1_799)), "to ask for it is no use");

        let mut remembered = Remembered::new().unwrap();
        for number in 0..LOGINS as u64 {
            remembered.insert(mark(number), seconds(1));
        }
        assert!(remembered.renews(&mark(0), seconds(2)));
        remembered.insert(mark(LOGINS as u64), seconds(3));
        assert_eq!(remembered.marks.len(), LOGINS);
        let held =
            (0..=LOGINS as u64).filter(|number| remembered.renews(&mark(*number), seconds(4)));
        assert_eq!(held.count(), LOGINS);
        assert!(remembered.renews(&mark(0), seconds(5)), "one that was not used went");
    }
}
