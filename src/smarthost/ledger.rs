//! What a mailbox has sent lately, in a file: the smarthost's minute and day go on when the relay is started anew.
//!
//! Written at once when it has changed, but not waited for and not synced: a killed relay loses at most what it had
//! granted while the last write was under way, and after a power cut the minute is over.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::limits::Ended;

/// A file that is longer than anything that is written here.
const MAX_OCTETS: u64 = 256 * 1024;

/// The file of one mailbox.
pub struct Ledger {
    path: PathBuf,
    mailbox: String,
    news: Notify,
}

/// What stands in it: times in milliseconds since 1970, with how many ended then.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Page {
    messages: Vec<(i64, u32)>,
    recipients: Vec<(i64, u32)>,
}

impl Ledger {
    /// The ledger of a mailbox in a folder, which is made if it is not there.
    pub fn new(folder: &Path, mailbox: &str) -> Self {
        Self {
            path: folder.join(format!("{}.json", file_name(mailbox))),
            mailbox: mailbox.to_owned(),
            news: Notify::new(),
        }
    }

    /// What an earlier relay has written down; `now` is the time that the counts are told by. What cannot be read
    /// counts as nothing.
    pub fn read(&self, now: Duration) -> (Ended, Ended) {
        let page = match page(&self.path) {
            Ok(page) => page,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Page::default(),
            Err(error) => {
                let path = self.path.display();
                tracing::warn!(
                    mailbox = self.mailbox, %path, %error,
                    "what the mailbox has sent lately cannot be read: its limits begin anew"
                );
                Page::default()
            }
        };
        let wall = Timestamp::now().as_millisecond();
        let told = |counts: Vec<(i64, u32)>| {
            let then = |at: i64| {
                // From the future only if the clock was put back.
                let age = u64::try_from(wall.saturating_sub(at)).unwrap_or(0);
                now.saturating_sub(Duration::from_millis(age))
            };
            counts.into_iter().map(|(at, count)| (then(at), count)).collect()
        };
        (told(page.messages), told(page.recipients))
    }

    /// Something has changed.
    pub fn note(&self) {
        self.news.notify_one();
    }

    /// Waits until something has changed.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// Writes down what was sent, told by a clock that says so much.
    pub async fn write(&self, counts: impl FnOnce() -> (Duration, (Ended, Ended))) {
        let (now, (messages, recipients)) = counts();
        let wall = Timestamp::now().as_millisecond();
        let told = |counts: Ended| {
            let then = |at: Duration| {
                // The end of a grain may be ahead of now.
                let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
                wall.saturating_sub(millis(now)).saturating_add(millis(at))
            };
            counts.into_iter().map(|(at, count)| (then(at), count)).collect()
        };
        let page = Page { messages: told(messages), recipients: told(recipients) };
        let path = self.path.clone();
        let written = tokio::task::spawn_blocking(move || write(&path, &page)).await;
        if let Ok(Err(error)) = written {
            let path = self.path.display();
            tracing::warn!(
                mailbox = self.mailbox, %path, %error,
                "what the mailbox has sent cannot be written down: after a restart its limits begin anew; see that the \
                 relay's user can write there"
            );
        }
    }
}

fn page(path: &Path) -> io::Result<Page> {
    let length = fs::metadata(path)?.len();
    if length > MAX_OCTETS {
        return Err(io::Error::other(format!("it has {length} octets")));
    }
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

fn write(path: &Path, page: &Page) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let new = path.with_extension("json.new");
    fs::write(&new, serde_json::to_vec(page)?)?;
    fs::rename(&new, path)
}

/// An address as the name of a file: what is special to a file system is written as its number.
pub fn file_name(address: &str) -> String {
    let plain = |c: char| {
        c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '@' | '.' | '-' | '_')
    };
    let name: String = address
        .to_ascii_lowercase()
        .chars()
        .map(|c| if plain(c) { c.to_string() } else { format!("%{:x}", u32::from(c)) })
        .collect();
    // No hidden file, and no way out of the folder.
    name.strip_prefix('.').map(|rest| format!("%2e{rest}")).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[tokio::test]
    async fn what_was_written_is_read_by_another_clock() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::new(&folder.path().join("limits"), "Scanner@Example.com");
        assert_eq!(ledger.read(seconds(1_000)), (vec![], vec![]));
        let (messages, recipients) =
            (vec![(seconds(90), 3), (seconds(101), 1)], vec![(seconds(5), 7)]);
        ledger.write(|| (seconds(100), (messages, recipients))).await;
        let (messages, recipients) = ledger.read(seconds(5_000));
        let about = |at: Duration, wanted| at.abs_diff(seconds(wanted)) < seconds(2);
        assert!(about(messages[0].0, 4_990) && messages[0].1 == 3, "{messages:?}");
        assert!(about(messages[1].0, 5_000) && messages[1].1 == 1, "{messages:?}");
        assert!(about(recipients[0].0, 4_905) && recipients[0].1 == 7, "{recipients:?}");
        for bad in ["", "{", "[]", "{\"messages\":[[1,-1]],\"recipients\":[]}"] {
            fs::write(&ledger.path, bad).unwrap();
            assert_eq!(ledger.read(seconds(5_000)), (vec![], vec![]), "{bad}");
        }
    }

    #[test]
    fn a_name_stays_in_its_folder() {
        assert_eq!(file_name("Scanner@Example.com"), "scanner@example.com");
        assert_eq!(file_name("../a/b@x"), "%2e.%2fa%2fb@x");
        assert_eq!(file_name("büro+1@x"), "b%fcro%2b1@x");
    }
}
