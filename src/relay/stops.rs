//! What is stopped until somebody changes a setting: mail of one sender, of the mailbox, or all to the smarthost.
//! A reply opens a stop, and only a message that was accepted closes it: a login proves nothing. Meanwhile one held
//! message at a time finds out whether it still holds.
//!
//! ```text
//!        stop()                 due()               passed()
//! (open) ──────► waiting ──────────────► probing ───────────► (gone)
//!                   ▲                       │
//!                   └── stop(), put_off() ──┘
//! ```
//!
//! Where nothing is held by it, since other mailboxes send the rest, the next message is let through to find out
//! ([`Stops::let_through`]).
//!
//! Pure: the time is an argument.

use std::{collections::HashMap, time::Duration};

use jiff::Timestamp;

use crate::spool::{
    queue::Hold,
    schedule::{self, Trouble},
};

/// Senders that may be stopped one by one. A device that makes up more gets each message held by itself.
const SENDERS: usize = 1_000;
/// How long a probe that came to no verdict is put off.
const NO_VERDICT: Duration = Duration::from_secs(60);

/// All that is stopped.
#[derive(Debug, Default)]
pub struct Stops {
    open: HashMap<Hold, Stopped>,
}

/// One thing that is stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// The reply that did it.
    pub reason: String,
    /// The rule that knew it.
    pub rule: String,
    tries: u32,
    /// When it was last met with.
    since: Timestamp,
    /// When it is probed; `None`: while it is being probed.
    probe: Option<Timestamp>,
    /// Mail is let through to find out.
    open: bool,
}

impl Stops {
    /// A message met with this. Returns what holds it now, and whether that is news.
    pub fn stop(&mut self, hold: Hold, reason: &str, rule: &str, now: Timestamp) -> (Hold, bool) {
        let is_wide = !matches!(hold, Hold::Operator | Hold::Message | Hold::MailboxGone);
        let full = matches!(hold, Hold::Sender(_)) && self.senders() >= SENDERS;
        if !is_wide || full && !self.open.contains_key(&hold) {
            return (Hold::Message, true);
        }
        let known = self.open.get(&hold);
        let tries = match known {
            // Those that were under way when it was opened say nothing new.
            Some(stopped) if stopped.probe.is_some() => return (hold, false),
            Some(stopped) => stopped.tries + 1,
            None => 1,
        };
        let news = known.is_none();
        let probe = now.saturating_add(schedule::wait(Trouble::Setting, tries, &[], 0.5));
        let stopped = Stopped {
            reason: reason.to_owned(),
            rule: rule.to_owned(),
            tries,
            since: now,
            probe: Some(probe.unwrap_or(now)),
            open: false,
        };
        self.open.insert(hold.clone(), stopped);
        (hold, news)
    }

    /// Messages are held by this, so it is stopped, whether we knew or not: found out at once whether it still is.
    pub fn resume(&mut self, hold: Hold, now: Timestamp) {
        if matches!(hold, Hold::Operator | Hold::Message | Hold::MailboxGone) {
            return;
        }
        let stopped = Stopped {
            reason: "mail is held for this already".to_owned(),
            rule: String::new(),
            tries: 0,
            since: now,
            probe: Some(now),
            open: false,
        };
        self.open.entry(hold).or_insert(stopped);
    }

    /// These hold messages, and no others: what has held nothing for a minute is over, and the next message finds
    /// out.
    pub fn only(&mut self, holds: &[Hold], now: Timestamp) {
        self.open.retain(|hold, stopped| {
            let young = now.duration_since(stopped.since).unsigned_abs() < NO_VERDICT;
            young || stopped.probe.is_none() || holds.contains(hold)
        });
    }

    /// What a message with this reverse-path falls under, the widest first.
    pub fn bars(&self, reverse_path: &str) -> Option<(&Hold, &Stopped)> {
        self.closed()
            .filter(|(hold, _)| hold.reaches(reverse_path))
            .min_by_key(|(hold, _)| rank(hold))
    }

    /// What stops all mail, the widest first.
    pub fn wide(&self) -> Option<(&Hold, &Stopped)> {
        self.closed()
            .filter(|(hold, _)| rank(hold) < rank(&Hold::Message))
            .min_by_key(|(hold, _)| rank(hold))
    }

    fn closed(&self) -> impl Iterator<Item = (&Hold, &Stopped)> {
        self.open.iter().filter(|(_, stopped)| !stopped.open)
    }

    /// Whether this is stopped, and the same rule knew why.
    pub fn has_by(&self, hold: &Hold, rule: &str) -> bool {
        self.open.get(hold).is_some_and(|stopped| stopped.rule == rule)
    }

    /// Whether this is stopped.
    pub fn has(&self, hold: &Hold) -> bool {
        self.open.contains_key(hold)
    }

    /// Whether nothing is stopped.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// What is to be probed now, so many at most; each is being probed from here on.
    pub fn due(&mut self, now: Timestamp, most: usize) -> Vec<Hold> {
        let mut due = Vec::new();
        for (hold, stopped) in &mut self.open {
            if due.len() < most && stopped.probe.is_some_and(|probe| probe <= now) {
                stopped.probe = None;
                due.push(hold.clone());
            }
        }
        due
    }

    /// This may be over soon: probed in a minute.
    pub fn soon(&mut self, hold: &Hold, now: Timestamp) {
        if let Some(stopped) = self.open.get_mut(hold) {
            stopped.probe = Some(now.saturating_add(NO_VERDICT).unwrap_or(now));
        }
    }

    /// A probe came to no verdict about this, for a reason of its own.
    pub fn put_off(&mut self, hold: &Hold, now: Timestamp) {
        if self.open.get(hold).is_some_and(|stopped| stopped.probe.is_none()) {
            self.soon(hold, now);
        }
    }

    /// A message with this reverse-path was accepted: whatever it fell under is over. Returns what that was.
    pub fn passed(&mut self, reverse_path: &str) -> Vec<Hold> {
        self.open.extract_if(|hold, _| hold.reaches(reverse_path)).map(|(hold, _)| hold).collect()
    }

    /// Nothing is held by this that could find out: the next message may.
    pub fn let_through(&mut self, hold: &Hold) {
        if let Some(stopped) = self.open.get_mut(hold) {
            stopped.open = true;
        }
    }

    /// Nothing is held by this any more.
    pub fn forget(&mut self, hold: &Hold) {
        self.open.remove(hold);
    }

    /// Everything, or this alone, is probed now: an operator's word, or a setting that has changed.
    pub fn try_again(&mut self, only: Option<&Hold>, now: Timestamp) {
        for (hold, stopped) in &mut self.open {
            if only.is_none_or(|only| only == hold) && stopped.probe.is_some() {
                stopped.probe = Some(now);
            }
        }
    }

    /// What is stopped, by name.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.open.keys().map(Hold::name).collect();
        names.sort();
        names
    }

    fn senders(&self) -> usize {
        self.open.keys().filter(|hold| matches!(hold, Hold::Sender(_))).count()
    }
}

fn rank(hold: &Hold) -> u8 {
    match hold {
        Hold::Smarthost => 0,
        Hold::Credential => 1,
        Hold::Mailbox => 2,
        _ => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minutes: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + 60 * minutes).unwrap()
    }

    fn sender(address: &str) -> Hold {
        Hold::Sender(address.to_owned())
    }

    #[test]
    fn it_is_probed_after_15_30_and_60_minutes_one_message_at_a_time() {
        let mut stops = Stops::default();
        assert_eq!(stops.stop(Hold::Mailbox, "554", "r", at(0)), (Hold::Mailbox, true));
        assert_eq!(stops.stop(Hold::Mailbox, "554", "r", at(1)), (Hold::Mailbox, false));
        let mut now = 0;
        for wait in [15, 30, 60, 60] {
            assert_eq!(stops.due(at(now + wait - 1), 9), []);
            now += wait;
            assert_eq!(stops.due(at(now), 9), [Hold::Mailbox]);
            assert_eq!(stops.due(at(now + 500), 9), [], "it is being probed");
            assert_eq!(stops.stop(Hold::Mailbox, "554", "r", at(now)), (Hold::Mailbox, false));
        }
        assert_eq!(stops.passed("anybody@example.com"), [Hold::Mailbox]);
        assert_eq!(stops.bars("anybody@example.com"), None);
    }

    #[test]
    fn a_sender_stops_nobody_else() {
        let mut stops = Stops::default();
        stops.stop(sender("copier@example.com"), "554 5.2.252", "send-as-denied", at(0));
        let (hold, stopped) = stops.bars("Copier@Example.com").unwrap();
        assert_eq!(
            (hold.name().as_str(), &*stopped.rule),
            ("sender:copier@example.com", "send-as-denied")
        );
        assert_eq!(stops.bars("other@example.com"), None);
        assert_eq!(stops.passed("other@example.com"), []);
        assert_eq!(stops.passed("copier@example.com").len(), 1);
    }

    #[test]
    fn a_probe_without_a_verdict_is_put_off_for_a_minute() {
        let mut stops = Stops::default();
        stops.stop(Hold::Smarthost, "5.7.708", "r", at(0));
        stops.put_off(&Hold::Smarthost, at(0));
        assert_eq!(stops.due(at(1), 9), [], "it was not being probed");
        assert_eq!(stops.due(at(15), 9), [Hold::Smarthost]);
        stops.put_off(&Hold::Smarthost, at(15));
        assert_eq!(stops.due(at(16), 9), [Hold::Smarthost]);
    }

    #[test]
    fn an_operators_word_and_a_start_probe_at_once() {
        let mut stops = Stops::default();
        stops.stop(Hold::Credential, "535", "r", at(0));
        stops.stop(Hold::Mailbox, "554", "r", at(0));
        stops.try_again(Some(&Hold::Credential), at(1));
        assert_eq!(stops.due(at(1), 9), [Hold::Credential]);
        stops.try_again(None, at(1));
        assert_eq!(stops.due(at(1), 9), [Hold::Mailbox], "the other one is being probed");
        stops.resume(sender("a@b"), at(2));
        assert_eq!(stops.due(at(2), 9), [sender("a@b")]);
    }

    #[test]
    fn where_nothing_is_held_the_next_message_is_let_through_and_may_stop_it_again() {
        let mut stops = Stops::default();
        stops.stop(Hold::Mailbox, "554", "r", at(0));
        assert!(stops.wide().is_some() && stops.has_by(&Hold::Mailbox, "r"));
        assert_eq!(stops.due(at(15), 9), [Hold::Mailbox]);
        stops.let_through(&Hold::Mailbox);
        assert!(stops.bars("a@b").is_none() && stops.wide().is_none());
        assert!(!stops.is_empty() && stops.due(at(100), 9).is_empty());
        let (hold, news) = stops.stop(Hold::Mailbox, "554", "r", at(20));
        assert_eq!((hold, news), (Hold::Mailbox, false), "nobody is told twice");
        assert!(stops.bars("a@b").is_some());
        assert_eq!(stops.due(at(49), 9), []);
        assert_eq!(stops.due(at(50), 9), [Hold::Mailbox]);
        stops.let_through(&Hold::Mailbox);
        assert_eq!(stops.passed("a@b"), [Hold::Mailbox]);
    }

    #[test]
    fn what_holds_nothing_any_more_is_over() {
        let mut stops = Stops::default();
        stops.stop(Hold::Mailbox, "554", "r", at(0));
        stops.stop(sender("a@b"), "554", "r", at(0));
        stops.only(&[], at(0));
        assert!(stops.has(&Hold::Mailbox), "its message may be on its way to the disk");
        stops.only(&[sender("a@b")], at(1));
        assert_eq!(stops.names(), ["sender:a@b"]);
    }

    #[test]
    fn made_up_senders_are_bounded() {
        let mut stops = Stops::default();
        for number in 0..SENDERS {
            let (hold, _) = stops.stop(sender(&format!("{number}@x")), "", "", at(0));
            assert_ne!(hold, Hold::Message);
        }
        assert_eq!(stops.stop(sender("one-more@x"), "", "", at(0)), (Hold::Message, true));
        assert_eq!(stops.stop(sender("0@x"), "", "", at(0)), (sender("0@x"), false));
        assert_eq!(stops.stop(Hold::Message, "", "", at(0)), (Hold::Message, true));
        assert_eq!(stops.bars("one-more@x"), None);
    }
}
