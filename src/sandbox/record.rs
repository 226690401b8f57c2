//! Who is there and who has handed in what, by the name that was logged in with: Exchange Online's limits are those of
//! a mailbox, not of a server.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use tokio::time::Instant;

use super::Server;

/// What the rate of messages is counted over.
const MINUTE: Duration = Duration::from_secs(60);
/// Submissions that are remembered; older ones go.
const SUBMISSIONS: usize = 100_000;
/// Users that are remembered besides those who are there.
const USERS: usize = 1_000;

/// A MAIL that came, and what came of it.
#[derive(Clone, Debug)]
pub struct Submission {
    /// Who was logged in; empty where no login is asked for.
    pub user: String,
    /// When MAIL came.
    pub mail: Instant,
    /// Whether it was one too many in its minute, and refused for that.
    pub is_too_fast: bool,
    /// When the dot was answered, and the code; nothing while or if there was none.
    pub dot: Option<(Instant, u16)>,
}

/// What every connection of a stand-in is written down in.
#[derive(Default)]
pub(super) struct Record {
    users: Mutex<HashMap<String, User>>,
    submissions: Mutex<Submissions>,
}

/// A connection as it counts, until this is dropped.
pub(super) struct Seat {
    server: Arc<Server>,
    user: Option<String>,
}

#[derive(Default)]
struct User {
    open: usize,
    most_open: usize,
    /// When each MAIL of the last minute came that was not one too many; kept only where there is a limit.
    mails: VecDeque<Instant>,
}

#[derive(Default)]
struct Submissions {
    kept: VecDeque<Submission>,
    /// The number of the oldest one.
    first: u64,
}

impl Record {
    /// A MAIL of a user's has come, with so many allowed a minute. Returns the number by which to tell of its dot;
    /// nothing if it is one too many.
    pub(super) fn mail(&self, user: &str, limit: Option<usize>) -> Option<u64> {
        let now = Instant::now();
        let is_too_fast = limit.is_some_and(|limit| self.is_too_fast(user, limit, now));
        let mut submissions = self.submissions();
        let user = user.to_owned();
        submissions.kept.push_back(Submission { user, mail: now, is_too_fast, dot: None });
        if submissions.kept.len() > SUBMISSIONS {
            submissions.kept.pop_front();
            submissions.first += 1;
        }
        (!is_too_fast).then(|| submissions.first + submissions.kept.len() as u64 - 1)
    }

    /// Counts a MAIL, unless it is one too many.
    fn is_too_fast(&self, user: &str, limit: usize, now: Instant) -> bool {
        let mut users = self.users();
        let mails = &mut users.entry(user.to_owned()).or_default().mails;
        while mails.front().is_some_and(|mail| now.duration_since(*mail) >= MINUTE) {
            mails.pop_front();
        }
        let is_too_fast = mails.len() >= limit;
        if !is_too_fast {
            mails.push_back(now);
        }
        is_too_fast
    }

    /// The dot of that submission is answered.
    pub(super) fn dot(&self, number: u64, code: u16) {
        let mut submissions = self.submissions();
        let place = number.checked_sub(submissions.first).map(|place| place as usize);
        if let Some(submission) = place.and_then(|place| submissions.kept.get_mut(place)) {
            submission.dot = Some((Instant::now(), code));
        }
    }

    /// What was handed in, oldest first.
    pub(super) fn all(&self) -> Vec<Submission> {
        self.submissions().kept.iter().cloned().collect()
    }

    /// The connections that a user has now, and the most that there were at once.
    pub(super) fn open(&self, user: &str) -> (usize, usize) {
        self.users().get(user).map_or((0, 0), |user| (user.open, user.most_open))
    }

    fn users(&self) -> MutexGuard<'_, HashMap<String, User>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn submissions(&self) -> MutexGuard<'_, Submissions> {
        self.submissions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// Somebody has come in.
    pub(super) fn new(server: &Arc<Server>) -> Self {
        let counts = &server.counts;
        let open = counts.open.fetch_add(1, Ordering::SeqCst) + 1;
        counts.most_open.fetch_max(open, Ordering::SeqCst);
        counts.connections.fetch_add(1, Ordering::SeqCst);
        let mut seat = Self { server: Arc::clone(server), user: None };
        if server.script.scenario.auth.is_empty() {
            seat.is_of("");
        }
        seat
    }

    /// It is known whose connection it is.
    pub(super) fn is_of(&mut self, name: &str) {
        let mut users = self.server.record.users();
        if users.len() > USERS {
            users.retain(|_, user| user.open > 0);
        }
        let user = users.entry(name.to_owned()).or_default();
        user.open += 1;
        user.most_open = user.most_open.max(user.open);
        self.user = Some(name.to_owned());
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.server.counts.open.fetch_sub(1, Ordering::SeqCst);
        if let Some(name) = &self.user
            && let Some(user) = self.server.record.users().get_mut(name)
        {
            user.open -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use openssl::ssl::SslVersion;

    use super::*;
    use crate::{
        sandbox::{Sandbox, device::Device, scenario::Scenario},
        transport::device_tls::DeviceTls,
    };

    const MESSAGE: &str = "Subject: scan\r\n\r\nline\r\n\r\nline\r\n";

    async fn logged_in(sandbox: &Sandbox, user: &str) -> Device {
        let tls = DeviceTls::new(SslVersion::TLS1_2, None).unwrap();
        let device = Device::over(sandbox.connect().unwrap()).await.unwrap();
        let mut device = device.starttls(&tls).await.unwrap();
        device.say("EHLO relay").await.unwrap();
        device.say(&format!("AUTH LOGIN {}", STANDARD.encode(user))).await.unwrap();
        assert_eq!(device.say("cA==").await.unwrap().code.get(), 235);
        device
    }

    async fn send(device: &mut Device) -> String {
        device.send("a@x", &["b@x"], MESSAGE).await.unwrap().to_string()
    }

    #[tokio::test(start_paused = true)]
    async fn connections_above_the_limit_are_a_users_own_and_count_until_they_are_closed() {
        let scenario = Scenario { max_connections: Some(2), ..Scenario::default() };
        let sandbox = Sandbox::in_memory(scenario).unwrap();
        let mut first = logged_in(&sandbox, "a").await;
        let mut second = logged_in(&sandbox, "a").await;
        let mut other = logged_in(&sandbox, "b").await;
        assert!(send(&mut first).await.starts_with("250 "));
        let third = logged_in(&sandbox, "a").await;
        assert!(send(&mut second).await.starts_with("432 4.3.2 Concurrent connections limit"));
        assert!(send(&mut other).await.starts_with("250 "), "it is another's limit");
        drop(third);
        while sandbox.server.record.open("a").0 > 2 {
            tokio::task::yield_now().await;
        }
        assert!(send(&mut second).await.starts_with("250 "));
        first.say("QUIT").await.unwrap();
        assert_eq!(sandbox.server.record.open("a"), (1, 3));
        assert_eq!((sandbox.most_open("a"), sandbox.most_open("b")), (3, 1));
        assert_eq!((sandbox.most_open("c"), sandbox.counts().open.load(Ordering::SeqCst)), (0, 2));
        let delivery = sandbox.deliveries().pop().unwrap();
        assert_eq!(delivery.body, openssl::sha::sha256(b"line\r\n\r\nline\r\n"));
        assert_eq!(delivery.size, MESSAGE.len() as u64);
    }

    #[tokio::test(start_paused = true)]
    async fn above_its_rate_a_user_hears_421_and_is_cut_off() {
        let scenario = Scenario { messages_per_minute: Some(2), keep: 20, ..Scenario::default() };
        let sandbox = Sandbox::in_memory(scenario).unwrap();
        let mut device = logged_in(&sandbox, "a").await;
        let began = Instant::now();
        for _ in 0..2 {
            assert!(send(&mut device).await.starts_with("250 "));
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
        let heard = send(&mut device).await;
        assert!(heard.starts_with("421 4.4.2 Message submission rate for this client"), "{heard}");
        assert!(device.is_closed().await);
        assert!(send(&mut logged_in(&sandbox, "b").await).await.starts_with("250 "));
        tokio::time::sleep(Duration::from_secs(20)).await;
        let mut device = logged_in(&sandbox, "a").await;
        assert!(send(&mut device).await.starts_with("250 "));
        let seen: Vec<_> = sandbox
            .submissions()
            .iter()
            .map(|seen| {
                (seen.user.clone(), (seen.mail - began).as_secs(), seen.dot.map(|(_, code)| code))
            })
            .collect();
        let yes = Some(250);
        let expected =
            [("a", 0, yes), ("a", 20, yes), ("a", 40, None), ("b", 40, yes), ("a", 60, yes)];
        assert_eq!(seen, expected.map(|(user, at, code)| (user.to_owned(), at, code)));
        assert_eq!(sandbox.deliveries()[0].data, MESSAGE[..20], "as far as is to be kept");
    }

    #[tokio::test(start_paused = true)]
    async fn a_minute_has_so_many_messages_and_then_one_again_for_each_that_is_over() {
        let record = Record::default();
        let second = async || tokio::time::sleep(Duration::from_secs(1)).await;
        for number in 0..3 {
            assert_eq!(record.mail("a", Some(3)), Some(number));
            second().await;
        }
        assert_eq!(record.mail("a", Some(3)), None);
        assert_eq!(record.mail("b", Some(3)), Some(4), "it is another's limit");
        tokio::time::sleep(Duration::from_secs(57)).await;
        assert_eq!(record.mail("a", Some(3)), Some(5), "the first is 60 s ago, the second 59");
        assert_eq!(record.mail("a", Some(3)), None);
        assert_eq!(record.mail("a", None), Some(7));
        record.dot(4, 250);
        let all = record.all();
        assert_eq!(all.iter().filter(|submission| submission.dot.is_some()).count(), 1);
        assert_eq!((all[4].user.as_str(), all[4].dot.unwrap().1), ("b", 250));
        assert_eq!(all.iter().filter(|submission| submission.is_too_fast).count(), 2);
    }

    #[test]
    fn what_was_handed_in_is_not_remembered_for_ever() {
        let record = Record::default();
        let numbers: Vec<_> = (0..SUBMISSIONS + 2).map(|_| record.mail("a", None)).collect();
        for number in [0, SUBMISSIONS + 1] {
            record.dot(numbers[number].unwrap(), 250);
        }
        let all = record.all();
        assert_eq!(all.len(), SUBMISSIONS);
        assert!(all[0].dot.is_none() && all.last().unwrap().dot.is_some());
    }
}
