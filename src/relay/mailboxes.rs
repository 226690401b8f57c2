//! The accounts that the relay sends with: what is known of each, and which one a message goes through.
//!
//! A message that is bound goes through its mailbox, whatever state that is in. Any other goes through one of those
//! that may send as its reverse-path, the least loaded of those that can. Where senders are rewritten one that can
//! send goes before one that may: as itself it sends anything.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::sync::Semaphore;

use super::{course::Course, keeper::Clock, stops::Stops};
use crate::{
    config,
    policy::{Patterns, sender::Rewrite},
    proto::session::SmarthostOffer,
    smarthost::{breaker, pool::Pool},
    spool::{
        queue::Hold,
        schedule::{self, Trouble},
    },
    telemetry::metrics::Metrics,
};

/// Devices that are kept waiting for another attempt at the same time, at most.
const PATIENT: usize = 3;
/// How long a mailbox pauses that has sent too fast.
const TOO_FAST: Duration = Duration::from_secs(60);

/// One account.
pub struct Mailbox {
    /// Its connections.
    pub pool: Arc<Pool>,
    /// Devices that may be kept waiting for another attempt at the same time. That is for the odd hiccup: when
    /// many messages meet with one, the spool answers sooner, and the courier makes the same attempts.
    pub patient: Semaphore,
    send_as: Patterns,
    away: Mutex<Away>,
    stopped: Mutex<Stops>,
    /// Its budget is spent, or it was told to pause: the courier asks for no lease until then.
    rests: Mutex<Option<Timestamp>>,
}

/// A smarthost that cannot be reached.
#[derive(Debug, Default)]
pub struct Away {
    failures: u32,
    /// It is asked again then; `None`: it is there.
    pub until: Option<Timestamp>,
}

/// All accounts; at least one.
pub struct Mailboxes {
    all: Vec<Arc<Mailbox>>,
    clock: Clock,
    /// How long a smarthost that cannot be reached is left alone.
    waits: Vec<Duration>,
    rewrite: Rewrite,
}

/// A mailbox as a choice sees it.
#[derive(Clone, Copy, Debug)]
struct View<L> {
    /// Whether it may send as the reverse-path.
    may: bool,
    /// Whether the message is no larger than it takes.
    fits: bool,
    condition: Condition,
    load: L,
}

/// Whether a mailbox can send, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Condition {
    Able,
    /// Its smarthost cannot be reached, which passes.
    Away,
    /// Somebody has to change a setting.
    Stopped,
}

impl Away {
    /// No connection came about at `now`. What fails at the same time counts once.
    fn failed(&mut self, now: Timestamp, waits: &[Duration]) {
        if self.until.is_none_or(|until| until <= now) {
            self.failures += 1;
            let wait = schedule::wait(Trouble::Passing, self.failures, waits, fastrand::f64());
            self.until = Some(now.saturating_add(wait).unwrap_or(now));
        }
    }

    /// Until when it is left alone, if it is.
    pub fn left_alone(&self, now: Timestamp) -> Option<Timestamp> {
        self.until.filter(|until| now < *until)
    }
}

impl Mailbox {
    /// A mailbox of the configuration, with its connections.
    pub fn new(settings: &config::Mailbox, pool: Arc<Pool>) -> Arc<Self> {
        Arc::new(Self {
            patient: Semaphore::new(settings.max_connections.min(PATIENT)),
            send_as: settings.send_as.clone(),
            away: Mutex::default(),
            stopped: Mutex::default(),
            rests: Mutex::default(),
            pool,
        })
    }

    /// Its address.
    pub fn address(&self) -> &str {
        self.pool.mailbox()
    }

    /// What is stopped here.
    pub fn stops(&self) -> MutexGuard<'_, Stops> {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether its smarthost can be reached.
    pub fn away(&self) -> MutexGuard<'_, Away> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until when the courier asks for no lease.
    pub fn rests(&self) -> MutexGuard<'_, Option<Timestamp>> {
        self.rests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection came about.
    pub fn reached(&self) {
        *self.away() = Away::default();
    }

    /// What a message with this reverse-path is held by before it is tried: the hold, the reply and the rule.
    pub fn bars(&self, reverse_path: &str) -> Option<(Hold, String, String)> {
        let stops = self.stops();
        let (hold, stopped) = stops.bars(reverse_path)?;
        Some((hold.clone(), stopped.reason.clone(), stopped.rule.clone()))
    }

    /// Whether it can send, as far as is known.
    pub fn can_send(&self, now: Timestamp) -> bool {
        let rests = self.rests().is_some_and(|until| now < until);
        !rests && self.trouble().is_none() && self.away().left_alone(now).is_none()
    }

    /// Why it cannot send at all until somebody has acted, in words.
    pub fn trouble(&self) -> Option<String> {
        // Where its own address may not send, hardly anything else may.
        if let Some((hold, stopped)) = self.stops().bars(self.address()) {
            return Some(format!("{} stopped: {}", hold.name(), stopped.reason));
        }
        self.pool.trouble()
    }

    /// Says in the metrics whether something is stopped here.
    pub fn meter(&self, metrics: &Metrics) {
        let open = !self.stops().is_empty() || self.pool.trouble().is_some();
        metrics.breaker(self.address(), open);
    }

    /// How it fares, for operators.
    pub fn state(&self) -> &'static str {
        match self.pool.state() {
            breaker::State::Refused => breaker::State::Refused.as_str(),
            _ if self.pool.trouble().is_some() => "no-login",
            _ if self.stops().bars(self.address()).is_some() => "stopped",
            _ if self.away().until.is_some() => "smarthost-away",
            state => state.as_str(),
        }
    }

    /// Senders that it may use besides its own address.
    pub fn send_as(&self) -> &Patterns {
        &self.send_as
    }

    /// Whether it may send as this, as far as the configuration says. As itself it sends what has no reverse-path.
    fn may_send_as(&self, reverse_path: &str) -> bool {
        let own = reverse_path.is_empty() || reverse_path.eq_ignore_ascii_case(self.address());
        own || self.send_as.hold(reverse_path)
    }

    /// `sender` as it is sent.
    fn condition(&self, sender: &str, now: Timestamp) -> Condition {
        if self.stops().bars(sender).is_some() || !self.pool.admits_login() {
            Condition::Stopped
        } else if self.away().left_alone(now).is_some() {
            Condition::Away
        } else {
            Condition::Able
        }
    }

    /// What the smarthost says of too much counts for all that goes through here.
    pub fn heed(&self, course: &Course) {
        match course {
            Course::Wait(Trouble::Concurrency) => self.pool.lower(),
            Course::Wait(Trouble::Rate) => self.pool.pause(TOO_FAST),
            _ => {}
        }
    }
}

impl Mailboxes {
    /// These, at least one; `waits` is how long a smarthost that cannot be reached is left alone.
    pub fn new(
        all: Vec<Arc<Mailbox>>,
        clock: Clock,
        waits: Vec<Duration>,
        rewrite: Rewrite,
    ) -> Arc<Self> {
        assert!(!all.is_empty(), "a configuration has at least one mailbox");
        Arc::new(Self { all, clock, waits, rewrite })
    }

    /// Whether senders are rewritten that a mailbox may not use.
    pub fn rewrite(&self) -> Rewrite {
        self.rewrite
    }

    /// All of them.
    pub fn all(&self) -> &[Arc<Mailbox>] {
        &self.all
    }

    /// The first of the configuration.
    pub fn first(&self) -> &Arc<Mailbox> {
        &self.all[0]
    }

    /// The only one, if there are no others.
    pub fn only(&self) -> Option<&Arc<Mailbox>> {
        (self.all.len() == 1).then(|| self.first())
    }

    /// The one with this address.
    pub fn find(&self, address: &str) -> Option<&Arc<Mailbox>> {
        self.all.iter().find(|mailbox| mailbox.address().eq_ignore_ascii_case(address))
    }

    /// The others.
    pub fn others(&self, mailbox: &Arc<Mailbox>) -> impl Iterator<Item = &Arc<Mailbox>> {
        self.all.iter().filter(move |other| !Arc::ptr_eq(other, mailbox))
    }

    /// The one that a message goes through.
    pub fn choose<'a>(
        &'a self,
        bound: Option<&'a Arc<Mailbox>>,
        reverse_path: &str,
        size: Option<u64>,
        recipients: usize,
    ) -> &'a Arc<Mailbox> {
        let views = || self.views(reverse_path, size, recipients);
        bound.unwrap_or_else(|| &self.all[choose(&views(), self.rewrite)])
    }

    /// Another one that can send the same message now.
    pub fn instead_of(
        &self,
        mailbox: &Arc<Mailbox>,
        reverse_path: &str,
        size: u64,
    ) -> Option<&Arc<Mailbox>> {
        let views = self.views(reverse_path, Some(size), 1);
        let is_this = |place: usize| Arc::ptr_eq(&self.all[place], mailbox);
        another(&views, self.rewrite, is_this).map(|place| &self.all[place])
    }

    /// What a session offers: what its mailbox takes, or else the most that any takes, and what all understand.
    pub fn offer(&self, bound: Option<&Arc<Mailbox>>) -> SmarthostOffer {
        if let Some(mailbox) = bound {
            return mailbox.pool.offer();
        }
        let offers = self.all.iter().map(|mailbox| mailbox.pool.offer());
        let more = |one: SmarthostOffer, other: SmarthostOffer| SmarthostOffer {
            size: one.size.zip(other.size).map(|(one, other)| one.max(other)),
            smtputf8: one.smtputf8 && other.smtputf8,
        };
        offers.reduce(more).unwrap_or_default()
    }

    /// No connection came about.
    pub fn failed(&self, mailbox: &Mailbox) {
        mailbox.away().failed(self.now(), &self.waits);
    }

    /// An operator's word: whatever is stopped or away is tried now.
    pub fn try_again(&self) {
        let now = self.now();
        for mailbox in &self.all {
            mailbox.pool.try_again();
            mailbox.stops().try_again(None, now);
            let mut away = mailbox.away();
            away.until = away.until.map(|_| now);
            *mailbox.rests() = None;
        }
    }

    /// Why nothing can be sent until somebody has acted, in words: each mailbox has its trouble.
    pub fn trouble(&self) -> Option<String> {
        let each = self.all.iter().map(|mailbox| {
            mailbox.trouble().map(|trouble| format!("{}: {trouble}", mailbox.address()))
        });
        Some(each.collect::<Option<Vec<_>>>()?.join("; "))
    }

    /// The time of day.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn views(
        &self,
        reverse_path: &str,
        size: Option<u64>,
        recipients: usize,
    ) -> Vec<View<impl Ord + use<>>> {
        let now = self.now();
        let view = |mailbox: &Arc<Mailbox>| {
            let may = mailbox.may_send_as(reverse_path);
            let as_itself = reverse_path.is_empty() || !may && self.rewrite == Rewrite::Mailbox;
            let sender = if as_itself { mailbox.address() } else { reverse_path };
            View {
                may,
                fits: size.zip(mailbox.pool.offer().size).is_none_or(|(size, most)| size <= most),
                condition: mailbox.condition(sender, now),
                load: mailbox.pool.load(recipients),
            }
        };
        self.all.iter().map(view).collect()
    }
}

/// The place of the one to take: of those that may send, or of all if none may or senders are rewritten, one that the
/// message is not too large for, that can send, that may, and that has the least to do. A message that is too large is
/// refused for good, so that goes before what only makes it wait.
fn choose<L: Ord>(views: &[View<L>], rewrite: Rewrite) -> usize {
    let all = takes_all(views, rewrite);
    let candidates = views.iter().enumerate().filter(|(_, view)| view.may || all);
    let best =
        candidates.min_by_key(|(_, view)| (!view.fits, view.condition, !view.may, &view.load));
    best.map_or(0, |(place, _)| place)
}

/// Whether those may be taken too that may not send as the reverse-path.
fn takes_all<L>(views: &[View<L>], rewrite: Rewrite) -> bool {
    rewrite == Rewrite::Mailbox || !views.iter().any(|view| view.may)
}

/// The place of the one to take instead: it can send now, may rather than not, and has the least to do of those.
fn another<L: Ord>(
    views: &[View<L>],
    rewrite: Rewrite,
    is_this: impl Fn(usize) -> bool,
) -> Option<usize> {
    let all = takes_all(views, rewrite);
    let candidates = views.iter().enumerate().filter(|(place, view)| {
        let can = view.fits && view.condition == Condition::Able;
        can && (view.may || all) && !is_this(*place)
    });
    candidates.min_by_key(|(_, view)| (!view.may, &view.load)).map(|(place, _)| place)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABLE: View<u32> = View { may: true, fits: true, condition: Condition::Able, load: 1 };
    const MAY_NOT: View<u32> = View { may: false, ..ABLE };
    const SMALL: View<u32> = View { fits: false, ..ABLE };
    const AWAY: View<u32> = View { condition: Condition::Away, ..ABLE };
    const STOPPED: View<u32> = View { condition: Condition::Stopped, ..ABLE };

    fn busy(view: View<u32>) -> View<u32> {
        View { load: 9, ..view }
    }

    #[test]
    fn the_best_of_those_that_may_is_chosen() {
        for (views, chosen) in [
            (vec![ABLE], 0),
            (vec![STOPPED], 0),
            (vec![ABLE, ABLE], 0),
            (vec![busy(ABLE), ABLE], 1),
            (vec![MAY_NOT, busy(ABLE)], 1),
            (vec![MAY_NOT, STOPPED], 1),
            (vec![busy(MAY_NOT), MAY_NOT], 1),
            (vec![STOPPED, busy(ABLE)], 1),
            (vec![AWAY, busy(ABLE)], 1),
            (vec![STOPPED, busy(AWAY)], 1),
            (vec![busy(STOPPED), STOPPED], 1),
            (vec![SMALL, busy(ABLE)], 1),
            (vec![SMALL, STOPPED], 1),
            (vec![busy(SMALL), SMALL], 1),
        ] {
            assert_eq!(choose(&views, Rewrite::Keep), chosen, "{views:?}");
        }
    }

    #[test]
    fn where_senders_are_rewritten_one_that_can_goes_before_one_that_may() {
        for (views, chosen, taken) in [
            (vec![ABLE, MAY_NOT], 0, Some(1)),
            (vec![MAY_NOT, busy(ABLE)], 1, Some(1)),
            (vec![STOPPED, MAY_NOT], 1, Some(1)),
            (vec![AWAY, MAY_NOT], 1, Some(1)),
            (vec![STOPPED, MAY_NOT, busy(ABLE)], 2, Some(2)),
            (vec![STOPPED, View { condition: Condition::Stopped, ..MAY_NOT }], 0, None),
            (vec![SMALL, MAY_NOT], 1, Some(1)),
        ] {
            assert_eq!(choose(&views, Rewrite::Mailbox), chosen, "{views:?}");
            let other = another(&views, Rewrite::Mailbox, |place| place == 0);
            assert_eq!(other, taken, "{views:?}");
        }
    }

    #[test]
    fn instead_of_one_only_another_that_can_is_taken() {
        for (views, taken) in [
            (vec![ABLE], None),
            (vec![ABLE, ABLE], Some(1)),
            (vec![STOPPED, busy(ABLE), ABLE], Some(2)),
            (vec![STOPPED, STOPPED], None),
            (vec![STOPPED, AWAY], None),
            (vec![STOPPED, SMALL], None),
            (vec![STOPPED, MAY_NOT], None),
            (vec![MAY_NOT, MAY_NOT], Some(1)),
        ] {
            let other = another(&views, Rewrite::Keep, |place| place == 0);
            assert_eq!(other, taken, "{views:?}");
        }
    }

    #[test]
    fn what_fails_at_the_same_time_counts_once() {
        let (mut away, waits) =
            (Away::default(), [Duration::from_secs(60), Duration::from_secs(600)]);
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        (0..5).for_each(|_| away.failed(at(0), &waits));
        assert!(away.left_alone(at(40)).is_some() && away.left_alone(at(80)).is_none());
        away.failed(at(80), &waits);
        assert!(away.left_alone(at(400)).is_some(), "it waits longer");
    }
}
