//! What a mailbox may have its smarthost do: connections at a time, messages in any minute, recipients in any day. Pure:
//! the time is an argument, counted from some beginning.
//!
//! Nobody knows at which moment of a transaction the smarthost counts it. So it counts here from its beginning until
//! a whole span after its end: then no span has too many, wherever in them the smarthost looks.

use std::{collections::VecDeque, fmt, time::Duration};

use crate::config::Mailbox;

/// How long the smarthost is taken at its word that there are too many connections.
pub const LOWERED: Duration = Duration::from_secs(300);

/// The share of a day's recipients from which on somebody is told, in percent.
pub const NEARLY: u64 = 80;

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What a mailbox may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Connections at a time; at least one.
    pub connections: usize,
    /// Messages in any minute; 0 means any number.
    pub messages_per_minute: u32,
    /// Recipients in any 24 hours; 0 means any number.
    pub recipients_per_day: u32,
}

impl Allowance {
    /// So many connections, and any number of messages over them.
    pub fn unlimited(connections: usize) -> Self {
        Self { connections, messages_per_minute: 0, recipients_per_day: 0 }
    }
}

impl From<&Mailbox> for Allowance {
    fn from(mailbox: &Mailbox) -> Self {
        Self {
            connections: mailbox.max_connections,
            messages_per_minute: mailbox.messages_per_minute,
            recipients_per_day: mailbox.recipients_per_day,
        }
    }
}

/// What one transaction uses up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// 1, or 0 if nothing is sent.
    pub messages: u32,
    /// Whom it goes to.
    pub recipients: u32,
}

impl Cost {
    /// That of a message to so many recipients.
    pub fn of(recipients: usize) -> Self {
        Self { messages: 1, recipients: u32::try_from(recipients).unwrap_or(u32::MAX) }
    }
}

/// What a mailbox may do, and what it has done.
#[derive(Debug)]
pub struct Limits {
    connections: usize,
    /// When each lowering ends.
    lowered: Vec<Duration>,
    paused_until: Duration,
    messages: Window,
    recipients: Window,
    /// When somebody was told last that the day's recipients run out.
    told: Option<Duration>,
}

/// Why nothing may begin just now, and for how long at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bar {
    /// The smarthost has refused to take more for now.
    Paused(Duration),
    /// A limit is reached.
    Spent(Spent),
}

/// A limit that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spent {
    /// How many there may be.
    pub count: u32,
    /// Of what.
    pub what: Budget,
    /// When there is room again, at the earliest.
    pub left: Duration,
}

/// What a mailbox may send so many of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// Messages in any minute.
    Messages,
    /// Recipients in any 24 hours.
    Recipients,
}

/// How many have ended when: what outlives a restart.
pub type Ended = Vec<(Duration, u32)>;

/// So many in any span.
#[derive(Debug)]
struct Window {
    /// 0 means any number.
    most: u32,
    span: Duration,
    /// What ends within one grain counts as ended at its end.
    grain: Duration,
    under_way: u32,
    /// Ends of grains with the number that ended there, oldest first.
    ended: VecDeque<(Duration, u32)>,
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Messages => "messages a minute",
            Self::Recipients => "recipients a day",
        })
    }
}

impl Bar {
    /// For how long at least.
    pub fn left(self) -> Duration {
        match self {
            Self::Paused(left) | Self::Spent(Spent { left, .. }) => left,
        }
    }
}

impl Limits {
    /// Nothing is used yet.
    pub fn new(allowance: Allowance) -> Self {
        let Allowance { connections, messages_per_minute, recipients_per_day } = allowance;
        Self {
            connections,
            lowered: Vec::new(),
            paused_until: Duration::ZERO,
            messages: Window::new(messages_per_minute, MINUTE),
            recipients: Window::new(recipients_per_day, DAY),
            told: None,
        }
    }

    /// How many connections there may be.
    pub fn connections(&self, now: Duration) -> usize {
        let lowered = self.lowered.iter().filter(|until| **until > now).count();
        self.connections.saturating_sub(lowered).max(1)
    }

    /// When a lowering ends next.
    pub fn raised_at(&self, now: Duration) -> Option<Duration> {
        self.lowered.iter().copied().filter(|until| *until > now).min()
    }

    /// The smarthost counts too many connections: for a while there is one less, down to the last. Returns how many
    /// are left, if that is news.
    pub fn lower(&mut self, now: Duration) -> Option<usize> {
        self.lowered.retain(|until| *until > now);
        let left = self.connections(now);
        (left > 1).then(|| {
            self.lowered.push(now + LOWERED);
            left - 1
        })
    }

    /// The smarthost was sent too much: nothing begins for so long. Of several pauses the last to end counts; returns
    /// whether that is this one.
    pub fn pause(&mut self, now: Duration, wait: Duration) -> bool {
        let longer = self.paused_until < now + wait;
        self.paused_until = self.paused_until.max(now + wait);
        longer
    }

    /// What keeps a transaction from beginning, connections apart.
    pub fn bar(&self, now: Duration, cost: Cost) -> Option<Bar> {
        if cost == Cost::default() {
            return None;
        }
        if now < self.paused_until {
            return Some(Bar::Paused(self.paused_until - now));
        }
        let spent = |window: &Window, count, what| {
            let left = window.wait(now, count)?;
            Some(Bar::Spent(Spent { count: window.most, what, left }))
        };
        let messages = spent(&self.messages, cost.messages, Budget::Messages);
        let recipients = spent(&self.recipients, cost.recipients, Budget::Recipients);
        [messages, recipients].into_iter().flatten().max_by_key(|bar| bar.left())
    }

    /// A transaction begins.
    pub fn begin(&mut self, cost: Cost) {
        for (window, count) in
            [(&mut self.messages, cost.messages), (&mut self.recipients, cost.recipients)]
        {
            window.under_way = window.under_way.saturating_add(count);
        }
    }

    /// One that has begun is over; `used` if the smarthost has heard of it.
    pub fn end(&mut self, now: Duration, cost: Cost, used: bool) {
        self.messages.end(now, cost.messages, used);
        self.recipients.end(now, cost.recipients, used);
    }

    /// How many messages and recipients may still be sent now; `None`: any number.
    pub fn left(&self, now: Duration) -> (Option<u32>, Option<u32>) {
        (self.messages.left(now), self.recipients.left(now))
    }

    /// Whether somebody is to be told now that the day's recipients run out, which is once a day: how many there may
    /// be, and how many are left.
    pub fn runs_out(&mut self, now: Duration) -> Option<(u32, u32)> {
        let (most, left) = (self.recipients.most, self.recipients.left(now)?);
        let nearly = u64::from(most - left) * 100 >= u64::from(most) * NEARLY;
        let news = nearly && self.told.is_none_or(|at| at + DAY <= now);
        news.then(|| {
            self.told = Some(now);
            (most, left)
        })
    }

    /// Messages and recipients that count, those under way as of now.
    pub fn counts(&self, now: Duration) -> (Ended, Ended) {
        (self.messages.counts(now), self.recipients.counts(now))
    }

    /// Counts of an earlier relay.
    pub fn resume(&mut self, now: Duration, (messages, recipients): (Ended, Ended)) {
        self.messages.resume(now, messages);
        self.recipients.resume(now, recipients);
    }
}

impl Window {
    fn new(most: u32, span: Duration) -> Self {
        // Fine enough to lose little, coarse enough to have few.
        let grain = span / 240;
        Self { most, span, grain, under_way: 0, ended: VecDeque::new() }
    }

    fn end(&mut self, now: Duration, count: u32, used: bool) {
        self.under_way = self.under_way.saturating_sub(count);
        if !used || count == 0 || self.most == 0 {
            return;
        }
        self.forget(now);
        let grains = now.as_nanos() / self.grain.as_nanos().max(1) + 1;
        let end = self.grain.saturating_mul(u32::try_from(grains).unwrap_or(u32::MAX));
        match self.ended.back_mut() {
            Some((last, ended)) if *last >= end => *ended = ended.saturating_add(count),
            _ => self.ended.push_back((end, count)),
        }
    }

    fn forget(&mut self, now: Duration) {
        while self.ended.front().is_some_and(|(at, _)| *at + self.span <= now) {
            self.ended.pop_front();
        }
    }

    fn counted(&self, now: Duration) -> u32 {
        let recent = self.ended.iter().filter(|(at, _)| *at + self.span > now);
        // What was read from a file may be anything.
        recent.fold(self.under_way, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// How long until so many more may begin, at least; `None`: they may now. More than there may be at all wait until
    /// nothing counts.
    fn wait(&self, now: Duration, count: u32) -> Option<Duration> {
        if self.most == 0 || count == 0 {
            return None;
        }
        let room = self.most.saturating_sub(count);
        let mut counted = self.counted(now);
        if counted <= room {
            return None;
        }
        for (at, ended) in self.ended.iter().filter(|(at, _)| *at + self.span > now) {
            counted = counted.saturating_sub(*ended);
            if counted <= room {
                return Some(*at + self.span - now);
            }
        }
        // It takes the end of one that is under way, and a span from there.
        Some(self.span)
    }

    fn left(&self, now: Duration) -> Option<u32> {
        (self.most > 0).then(|| self.most.saturating_sub(self.counted(now)))
    }

    fn counts(&self, now: Duration) -> Ended {
        let recent = self.ended.iter().filter(|(at, _)| *at + self.span > now).copied();
        recent.chain((self.under_way > 0).then_some((now, self.under_way))).collect()
    }

    fn resume(&mut self, now: Duration, mut counts: Ended) {
        if self.most == 0 {
            return;
        }
        counts.retain(|(at, _)| *at + self.span > now);
        counts.sort_unstable();
        self.ended = counts.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    const ONE: Cost = Cost { messages: 1, recipients: 1 };

    fn limits(connections: usize, messages_per_minute: u32, recipients_per_day: u32) -> Limits {
        Limits::new(Allowance { connections, messages_per_minute, recipients_per_day })
    }

    /// Begins and ends one at the same moment, if it may.
    fn send(limits: &mut Limits, now: Duration, cost: Cost) -> bool {
        let may = limits.bar(now, cost).is_none();
        if may {
            limits.begin(cost);
            limits.end(now, cost, true);
        }
        may
    }

    #[test]
    fn no_minute_has_more_messages_than_allowed_wherever_it_begins() {
        let mut limits = limits(3, 28, 0);
        let mut sent = Vec::new();
        // Every 100 ms somebody asks, for ten minutes.
        for tenths in 0..6_000 {
            let now = Duration::from_millis(100 * tenths);
            if send(&mut limits, now, ONE) {
                sent.push(now);
            }
        }
        for (first, begin) in sent.iter().enumerate() {
            let within = sent[first..].iter().take_while(|at| **at < *begin + MINUTE).count();
            assert!(within <= 28, "{within} from {begin:?} on");
        }
        assert!(sent.len() >= 27 * 10, "{} of 280 are used", sent.len());
        assert!(limits.messages.ended.len() <= 242);
    }

    #[test]
    fn what_is_under_way_counts_until_a_minute_after_its_end() {
        let mut limits = limits(3, 2, 0);
        limits.begin(ONE);
        assert!(send(&mut limits, seconds(1), ONE));
        let Some(Bar::Spent(spent)) = limits.bar(seconds(2), ONE) else { panic!("spent") };
        assert_eq!((spent.count, spent.what), (2, Budget::Messages));
        assert!(spent.left > seconds(59) && spent.left <= seconds(60), "{spent:?}");
        // The other one left the window; this one has been under way for 500 s.
        assert!(send(&mut limits, seconds(500), ONE));
        limits.end(seconds(501), ONE, true);
        assert!(limits.bar(seconds(560), ONE).is_some());
        assert!(limits.bar(seconds(562), ONE).is_none());
    }

    #[test]
    fn what_the_smarthost_never_heard_of_is_given_back() {
        let mut limits = limits(3, 1, 1);
        limits.begin(ONE);
        assert!(limits.bar(seconds(1), ONE).is_some());
        limits.end(seconds(1), ONE, false);
        assert_eq!(limits.bar(seconds(1), ONE), None);
        assert_eq!(limits.left(seconds(1)), (Some(1), Some(1)));
    }

    #[test]
    fn recipients_of_a_day_roll() {
        let mut limits = limits(3, 0, 1_000);
        let to = |recipients| Cost { messages: 1, recipients };
        assert!(send(&mut limits, seconds(0), to(600)));
        assert!(send(&mut limits, seconds(3_600), to(400)));
        let bar = limits.bar(seconds(3_600), to(1)).unwrap();
        assert!(
            bar.left() >= DAY - seconds(3_600) && bar.left() <= DAY - seconds(3_200),
            "{bar:?}"
        );
        let bar = limits.bar(seconds(3_600), to(700)).unwrap();
        assert!(bar.left() >= DAY, "the second one has to go too: {bar:?}");
        assert!(send(&mut limits, DAY + seconds(400), to(600)));
        assert_eq!(limits.left(DAY + seconds(400)), (None, Some(0)));
        // More than a day's worth goes when nothing else counts.
        assert!(limits.bar(DAY * 2 + seconds(399), to(5_000)).is_some());
        assert!(send(&mut limits, DAY * 3, to(5_000)));
    }

    #[test]
    fn somebody_is_told_once_a_day_that_its_recipients_run_out() {
        let mut limits = limits(3, 0, 10);
        let to = |recipients| Cost { messages: 1, recipients };
        assert!(send(&mut limits, seconds(0), to(7)));
        assert_eq!(limits.runs_out(seconds(0)), None);
        assert!(send(&mut limits, seconds(0), to(1)));
        assert_eq!(limits.runs_out(seconds(0)), Some((10, 2)));
        assert!(send(&mut limits, seconds(1), to(1)));
        assert_eq!(limits.runs_out(seconds(1)), None);
        let tomorrow = DAY + seconds(400);
        assert!(send(&mut limits, tomorrow, to(9)), "all in one message");
        assert_eq!(limits.runs_out(tomorrow), Some((10, 1)));
        assert_eq!(self::limits(3, 0, 0).runs_out(tomorrow), None, "any number");
    }

    #[test]
    fn counts_outlive_a_restart_and_the_past_is_forgotten() {
        let mut limits = limits(3, 2, 10);
        assert!(send(&mut limits, seconds(100_000), ONE));
        limits.begin(ONE);
        let counts = limits.counts(seconds(100_030));
        let mut next = self::limits(3, 2, 10);
        next.resume(seconds(100_031), counts.clone());
        assert_eq!(next.left(seconds(100_031)), (Some(0), Some(8)));
        assert_eq!(next.left(seconds(100_061)), (Some(1), Some(8)));
        assert_eq!(
            next.left(seconds(100_091)),
            (Some(2), Some(8)),
            "as of when it was written down"
        );
        let mut late = self::limits(3, 2, 10);
        let tomorrow = seconds(100_400) + DAY;
        late.resume(tomorrow, counts);
        assert_eq!(late.left(tomorrow), (Some(2), Some(10)));
    }

    #[test]
    fn a_pause_holds_all_but_those_who_send_nothing() {
        let mut limits = limits(3, 0, 0);
        assert!(limits.pause(seconds(1), seconds(60)));
        assert!(!limits.pause(seconds(2), seconds(10)), "it ends before the other");
        assert_eq!(limits.bar(seconds(11), ONE), Some(Bar::Paused(seconds(50))));
        assert_eq!(limits.bar(seconds(11), Cost::default()), None);
        assert_eq!(limits.bar(seconds(61), ONE), None);
    }

    #[test]
    fn each_lowering_takes_one_connection_for_five_minutes_down_to_the_last() {
        let mut limits = limits(3, 0, 0);
        assert_eq!(limits.lower(seconds(0)), Some(2));
        assert_eq!(limits.lower(seconds(60)), Some(1));
        assert_eq!(limits.lower(seconds(70)), None);
        assert_eq!((limits.connections(seconds(299)), limits.connections(seconds(300))), (1, 2));
        assert_eq!(limits.raised_at(seconds(299)), Some(seconds(300)));
        assert_eq!((limits.connections(seconds(360)), limits.raised_at(seconds(360))), (3, None));
    }
}
