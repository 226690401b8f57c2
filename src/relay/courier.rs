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

use super::{Relay, delivery, keeper::Keeper};
use crate::spool::queue::{Hold, Leased, Queue as _, QueueError, State};

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
    /// One permit for each delivery that may be under way.
    hands: Arc<Semaphore>,
    capacity: usize,
    could_log_in: bool,
    counted: Option<Instant>,
    tidied: Option<Instant>,
    complained: Option<Instant>,
}

impl Courier {
    /// A courier for what the keeper keeps.
    pub fn new(relay: Arc<Relay>, keeper: Arc<Keeper>) -> Self {
        // Twice as many as can be sent at once, so that they are taken from the queue several at a time.
        let capacity = 2 * relay.pool.max_connections();
        Self {
            relay,
            keeper,
            hands: Arc::new(Semaphore::new(capacity)),
            capacity,
            could_log_in: true,
            counted: None,
            tidied: None,
            complained: None,
        }
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
                let mut stops = self.keeper.stops();
                stops.only(&holds, now);
                for hold in holds {
                    stops.resume(hold, now);
                }
                self.keeper.metrics.breaker(self.relay.pool.mailbox(), !stops.is_empty());
            }
            Err(error) => tracing::error!(%error, "the spool cannot say what it holds"),
        }
    }

    async fn round(&mut self) -> Result<(), QueueError> {
        let now = self.keeper.clock.now();
        self.look_at_the_login(now);
        self.probe(now).await?;
        self.take(now).await?;
        if is_due(&mut self.counted, COUNT) {
            self.keeper.queue.heal().await;
            self.count(now).await?;
        }
        if is_due(&mut self.tidied, TIDY) {
            self.keeper.budget.forget();
            self.tidy(now).await?;
            self.resume().await;
        }
        Ok(())
    }

    /// A secret that has changed, an operator's word, or time may let the mailbox log in again.
    fn look_at_the_login(&mut self, now: Timestamp) {
        let can = self.relay.pool.admits_login();
        if can && !std::mem::replace(&mut self.could_log_in, can) {
            self.keeper.stops().try_again(Some(&Hold::Credential), now);
        }
        self.could_log_in = can;
    }

    /// One message for each thing that is stopped and to be found out about.
    async fn probe(&mut self, now: Timestamp) -> Result<(), QueueError> {
        if self.keeper.away().until.is_some_and(|until| now < until) {
            return Ok(());
        }
        let due = self.keeper.stops().due(now, PROBES);
        for hold in due {
            match self.keeper.queue.lease_held(hold.clone()).await {
                Ok(Some(leased)) => {
                    self.keeper.tasks.spawn(self.delivery(leased, Some(hold), None));
                }
                Ok(None) => {
                    // Nothing is held by it: the next message finds out.
                    let mut stops = self.keeper.stops();
                    stops.forget(&hold);
                    self.keeper.metrics.breaker(self.relay.pool.mailbox(), !stops.is_empty());
                }
                Err(error) => {
                    self.keeper.stops().put_off(&hold, now);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Takes what is due, as much as there are hands for.
    async fn take(&mut self, now: Timestamp) -> Result<(), QueueError> {
        let free = self.hands.available_permits();
        let away = self.keeper.away().until;
        let room = match away {
            Some(until) if now < until => 0,
            // It asks whether the smarthost is back.
            Some(_) => usize::from(free == self.capacity),
            // Several at a time, so that they share a sync.
            None if free < self.capacity.div_ceil(4) => 0,
            None => free,
        };
        if room == 0 {
            return Ok(());
        }
        for leased in self.keeper.queue.lease_due(now, room).await? {
            let hand = Arc::clone(&self.hands).acquire_owned().await.ok();
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
