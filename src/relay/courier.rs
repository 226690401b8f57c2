//! The courier: takes from the spool what is due, finds out whether what is stopped still is, and gives up what has
//! waited long enough.
//!
//! While the smarthost cannot be reached one message at a time asks for it; the others wait untouched.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{Relay, delivery, keeper::Keeper, mailboxes::Mailbox};
use crate::{
    smarthost::Credential,
    spool::queue::{Due, Hold, Leased, Queue as _, QueueError, State},
};

/// How often the courier looks at what is due.
const TICK: Duration = Duration::from_secs(1);
/// How often what there is is counted.
const COUNT: Duration = Duration::from_secs(2);
/// How often what has waited long enough is looked for.
const TIDY: Duration = Duration::from_secs(60);
/// How long what was delivered is remembered.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);
/// Messages that are given up in one step.
const AT_ONCE: usize = 100;
/// Messages that find out in one step whether something still is stopped.
const PROBES: usize = 5;

/// Delivers what the spool holds.
pub struct Courier {
    relay: Arc<Relay>,
    keeper: Arc<Keeper>,
    /// One for each mailbox: none keeps the others' mail waiting.
    rounds: Vec<Round>,
    counted: Option<Instant>,
    tidied: Option<Instant>,
    complained: Option<Instant>,
}

/// What is delivered of one mailbox's mail.
struct Round {
    mailbox: Arc<Mailbox>,
    /// One permit for each delivery that may be under way.
    hands: Arc<Semaphore>,
    capacity: usize,
    could_log_in: bool,
    /// What it logged in with when this was last looked at.
    credential: Credential,
}

impl Round {
    fn new(mailbox: &Arc<Mailbox>) -> Self {
        // Twice as many as can be sent at once, so that they are taken from the queue several at a time.
        let capacity = 2 * mailbox.pool.max_connections();
        let hands = Arc::new(Semaphore::new(capacity));
        let credential = mailbox.pool.credential();
        Self { mailbox: Arc::clone(mailbox), hands, capacity, could_log_in: true, credential }
    }

    /// How much is to be taken now, and whether only what may go through another mailbox too.
    fn room(&self, now: Timestamp) -> (usize, bool) {
        let free = self.hands.available_permits();
        let rests = self.mailbox.rests().is_some_and(|until| now < until);
        match self.mailbox.away().until {
            Some(until) if now < until => (free, true),
            // It asks whether the smarthost is back.
            Some(_) => (usize::from(free == self.capacity), false),
            // Several at a time, so that they share a sync.
            None if free < self.capacity.div_ceil(4) => (0, false),
            None => (free, rests),
        }
    }
}

impl Courier {
    /// A courier for what the keeper keeps.
    pub fn new(relay: Arc<Relay>, keeper: Arc<Keeper>) -> Self {
        let rounds = keeper.mailboxes.all().iter().map(Round::new).collect();
        Self { relay, keeper, rounds, counted: None, tidied: None, complained: None }
    }

    /// Works until the relay drains; what is under way then goes on on the keeper's tasks.
    pub async fn run(mut self, drain: CancellationToken) {
        self.resume().await;
        loop {
            if let Err(error) = self.round().await
                && is_due(&mut self.complained, TIDY)
            {
                let directory = self.keeper.settings.directory.display();
                tracing::error!(
                    %error, %directory,
                    "the spool cannot be worked on, and what it holds waits: make room on its disk, or see that it can be written"
                );
            }
            tokio::select! {
                biased;
                () = drain.cancelled() => break,
                () = self.keeper.wake.notified() => {}
                () = sleep(TICK) => {}
            }
        }
    }

    /// Takes up what an earlier relay had stopped, and forgets what holds nothing any more.
    async fn resume(&self) {
        match self.keeper.queue.holds().await {
            Ok(holds) => {
                let now = self.keeper.clock.now();
                for mailbox in self.keeper.mailboxes.all() {
                    let is_here =
                        |(at, _): &&(String, _)| at.eq_ignore_ascii_case(mailbox.address());
                    let here: Vec<Hold> =
                        holds.iter().filter(is_here).map(|(_, hold)| hold.clone()).collect();
                    let mut stops = mailbox.stops();
                    // Where others send the rest, what is stopped may hold nothing all the while.
                    if self.keeper.mailboxes.only().is_some() {
                        stops.only(&here, now);
                    }
                    for hold in here {
                        stops.resume(hold, now);
                    }
                }
            }
            Err(error) => tracing::error!(%error, "the spool cannot say what it holds"),
        }
    }

    async fn round(&mut self) -> Result<(), QueueError> {
        let now = self.keeper.clock.now();
        self.look_at_the_logins(now);
        self.probe(now).await?;
        self.take(now).await?;
        if is_due(&mut self.counted, COUNT) {
            self.keeper.queue.heal().await;
            self.count(now).await?;
            self.take_any(now).await?;
        }
        if is_due(&mut self.tidied, TIDY) {
            self.keeper.budget.forget();
            self.tidy(now).await?;
            self.resume().await;
        }
        Ok(())
    }

    /// A secret that has changed, an operator's word, or time may let a mailbox log in again.
    fn look_at_the_logins(&mut self, now: Timestamp) {
        for Round { mailbox, could_log_in, credential, .. } in &mut self.rounds {
            let can = mailbox.pool.admits_login();
            let now_with = mailbox.pool.credential();
            // Where no token was had, nobody was refused: the new secret is the news.
            let before = std::mem::replace(credential, now_with);
            let news = before != Credential::default() && before != now_with;
            if can && (!*could_log_in || news) {
                mailbox.stops().try_again(Some(&Hold::Credential), now);
            }
            *could_log_in = can;
        }
    }

    /// One message for each thing that is stopped and to be found out about.
    async fn probe(&self, now: Timestamp) -> Result<(), QueueError> {
        for mailbox in self.keeper.mailboxes.all() {
            if mailbox.away().left_alone(now).is_some() {
                continue;
            }
            let due = mailbox.stops().due(now, PROBES);
            for hold in due {
                let address = mailbox.address().to_owned();
                match self.keeper.queue.lease_held(address, hold.clone()).await {
                    Ok(Some(leased)) => {
                        self.keeper.tasks.spawn(self.delivery(leased, Some(hold), None));
                    }
                    // Nothing is held by it: the next message finds out.
                    Ok(None) if self.keeper.mailboxes.only().is_some() => {
                        mailbox.stops().forget(&hold);
                    }
                    // But nobody is told twice.
                    Ok(None) => mailbox.stops().let_through(&hold),
                    Err(error) => {
                        mailbox.stops().put_off(&hold, now);
                        return Err(error);
                    }
                }
            }
            self.keeper.meter(mailbox);
        }
        Ok(())
    }

    /// Takes what is due, as much as there are hands for.
    async fn take(&self, now: Timestamp) -> Result<(), QueueError> {
        for round in &self.rounds {
            let (most, unbound) = round.room(now);
            // Untouched it waits until its mailbox can send, unless another can.
            let others = || self.keeper.mailboxes.others(&round.mailbox);
            if most == 0 || unbound && !others().any(|other| other.can_send(now)) {
                continue;
            }
            let mailbox = round.mailbox.address().to_owned();
            self.lease(round, Due { mailbox, unbound, now, most }).await?;
        }
        Ok(())
    }

    /// Takes what an operator has released from a mailbox that is gone.
    async fn take_any(&self, now: Timestamp) -> Result<(), QueueError> {
        for round in &self.rounds {
            let most = round.hands.available_permits();
            if most > 0 && round.mailbox.can_send(now) {
                let mailbox = String::new();
                return self.lease(round, Due { mailbox, unbound: false, now, most }).await;
            }
        }
        Ok(())
    }

    async fn lease(&self, round: &Round, due: Due) -> Result<(), QueueError> {
        for leased in self.keeper.queue.lease_due(due).await? {
            let hand = Arc::clone(&round.hands).acquire_owned().await.ok();
            self.keeper.tasks.spawn(self.delivery(leased, None, hand));
        }
        Ok(())
    }

    fn delivery(
        &self,
        leased: Leased,
        probe: Option<Hold>,
        hand: Option<OwnedSemaphorePermit>,
    ) -> impl Future<Output = ()> + use<> {
        let (relay, keeper) = (Arc::clone(&self.relay), Arc::clone(&self.keeper));
        async move {
            let _hand = hand;
            delivery::deliver(&relay, &keeper, leased, probe).await;
            keeper.wake.notify_one();
        }
    }

    async fn count(&mut self, now: Timestamp) -> Result<(), QueueError> {
        let totals = self.keeper.queue.totals().await?;
        let of = |state: State| {
            totals.messages.iter().find(|(found, _)| *found == state).map_or(0, |(_, count)| *count)
        };
        let messages: Vec<_> = State::ALL.map(|state| (state.as_str(), of(state))).to_vec();
        let age = totals.oldest.map_or(0, |oldest| now.duration_since(oldest).as_secs().max(0));
        self.keeper.metrics.spool_holds(&messages, totals.bytes, age as u64);
        if let Some(free) = self.keeper.queue.disk_free() {
            self.keeper.metrics.spool_disk_free(free);
        }
        Ok(())
    }

    async fn tidy(&mut self, now: Timestamp) -> Result<(), QueueError> {
        // An operator may have wanted to try again what no mailbox sends any more.
        let mailboxes = self.keeper.mailboxes.all().iter();
        let mailboxes: Vec<_> = mailboxes.map(|mailbox| mailbox.address().to_owned()).collect();
        self.keeper.queue.adopt(&mailboxes, now).await?;
        let settings = &self.keeper.settings;
        let before = |age: Duration| now.saturating_sub(age).unwrap_or(now);
        let (waiting, held) = (before(settings.expire), before(settings.held_expire));
        loop {
            let overdue = self.keeper.queue.lease_overdue(waiting, held, AT_ONCE).await?;
            let count = overdue.len();
            for leased in overdue {
                delivery::give_up(&self.relay, &self.keeper, leased, now).await;
            }
            if count < AT_ONCE {
                break;
            }
        }
        self.keeper.queue.purge(before(REMEMBERED), before(settings.keep_failed)).await?;
        Ok(())
    }
}

fn is_due(last: &mut Option<Instant>, every: Duration) -> bool {
    let due = last.is_none_or(|last| last.elapsed() >= every);
    if due {
        *last = Some(Instant::now());
    }
    due
}
