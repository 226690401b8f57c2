//! Logins of devices: judged in turn, remembered, and slowed down where they fail.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{self, Semaphore},
    task::spawn_blocking,
    time::{Instant, sleep_until, timeout_at},
};

use crate::{
    auth::{
        accounts::{Account, Accounts, AccountsError, Memory},
        remembered::{Mark, Remembered},
        throttle::Throttle,
    },
    policy::household,
    proto::sasl::Credentials,
};

/// Logins that are verified at a time: Argon2 takes 19 MiB for each.
const SEATS: usize = 2;

/// Who may log in, and who has tried.
pub struct Logins {
    accounts: Accounts,
    seats: Arc<Semaphore>,
    /// One for each seat, once it was taken.
    memory: Arc<Mutex<Vec<Memory>>>,
    born: Instant,
    throttle: Mutex<Throttle>,
    /// `None` where there are no random numbers to be had: then nothing is remembered.
    remembered: Option<Mutex<Remembered>>,
    /// Those whose logins wait or are judged just now: one login of an address at a time, so that one attacker cannot
    /// take all seats.
    turns: Mutex<HashMap<IpAddr, Arc<sync::Mutex<()>>>>,
}

/// What became of a login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is right.
    Accepted(Account),
    /// Name or password is wrong.
    Refused,
    /// It was not judged: too many of its address have failed.
    Later,
}

/// An address' place among those that wait; the last one to leave takes the queue away.
struct Turn<'a> {
    logins: &'a Logins,
    address: IpAddr,
    queue: Arc<sync::Mutex<()>>,
}

impl Logins {
    /// Nobody has tried yet.
    pub fn new(accounts: Accounts) -> Self {
        Self {
            accounts,
            seats: Arc::new(Semaphore::new(SEATS)),
            memory: Arc::default(),
            born: Instant::now(),
            throttle: Mutex::default(),
            remembered: Remembered::new().ok().map(Mutex::new),
            turns: Mutex::default(),
        }
    }

    /// Judges a login from an address, or says after `patience` that it could not.
    pub async fn judge(
        &self,
        address: IpAddr,
        credentials: &Credentials,
        patience: Duration,
    ) -> Verdict {
        let deadline = Instant::now() + patience;
        if let Some(account) = self.remembered(credentials).await {
            return Verdict::Accepted(account);
        }
        let address = household(address);
        let turn = self.turn(address);
        let Ok(_turn) = timeout_at(deadline, turn.queue.lock()).await else {
            return Verdict::Later;
        };
        let due = Instant::now() + lock(&self.throttle).wait(address, self.now());
        sleep_until(due.min(deadline)).await;
        if due > deadline {
            return Verdict::Later;
        }
        let Ok(Ok(seat)) = timeout_at(deadline, Arc::clone(&self.seats).acquire_owned()).await
        else {
            return Verdict::Later;
        };
        // From here on it is judged to the end, and counts. Argon2 takes its time: not the event loop's.
        let (accounts, given) = (self.accounts.clone(), credentials.clone());
        let memory = Arc::clone(&self.memory);
        let judged = spawn_blocking(move || {
            let line = accounts.line(&given.user)?;
            let mut own = lock(&memory).pop().unwrap_or_default();
            let account = Account::verified(line.as_deref(), &given.secret, &mut own);
            lock(&memory).push(own);
            drop(seat);
            Ok::<_, AccountsError>(account.zip(line))
        });
        match judged.await {
            Ok(Ok(Some((account, line)))) => {
                if let Some(mark) = self.mark(credentials, &line)
                    && let Some(remembered) = &self.remembered
                {
                    lock(remembered).insert(mark, self.now());
                }
                Verdict::Accepted(account)
            }
            Ok(Ok(None)) => {
                lock(&self.throttle).failed(address, self.now());
                Verdict::Refused
            }
            // A users file that went bad refuses everybody, and says so.
            Ok(Err(error)) => {
                tracing::error!(%error, "nobody can log in");
                Verdict::Refused
            }
            Err(_) => Verdict::Later,
        }
    }

    /// The account of a login that has succeeded lately, if the users file still says the same of it.
    async fn remembered(&self, credentials: &Credentials) -> Option<Account> {
        let (accounts, user) = (self.accounts.clone(), credentials.user.clone());
        let line = spawn_blocking(move || accounts.line(&user)).await.ok()?.ok()??;
        let mark = self.mark(credentials, &line)?;
        let held = lock(self.remembered.as_ref()?).renews(&mark, self.now());
        held.then(|| Account::of(&line))
    }

    fn mark(&self, credentials: &Credentials, line: &str) -> Option<Mark> {
        lock(self.remembered.as_ref()?).mark(credentials, line)
    }

    fn turn(&self, address: IpAddr) -> Turn<'_> {
        let queue = Arc::clone(lock(&self.turns).entry(address).or_default());
        Turn { logins: self, address, queue }
    }

    fn now(&self) -> Duration {
        self.born.elapsed()
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut turns = lock(&self.logins.turns);
        // Ours and the one in the map.
        if Arc::strong_count(&self.queue) == 2 {
            turns.remove(&self.address);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
