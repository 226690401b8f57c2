//! Whose turn it is: devices that are there now take turns, one lease each, so that one with a thousand messages keeps
//! none of the others waiting; the spool gets one turn in four while devices wait, and all of them when none does.
//! Pure.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

/// Turns of devices after which the spool has one.
const LIVE: u32 = 3;

/// Who asks for a lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// A device that is there now, by its name or address.
    Device(Arc<str>),
    /// The spool, which takes turns between devices itself.
    Spool,
    /// The relay itself, which sends no message with it.
    Relay,
}

/// Those who wait.
#[derive(Debug)]
pub struct Turns<T> {
    relay: VecDeque<T>,
    devices: HashMap<Arc<str>, VecDeque<T>>,
    /// Devices that wait, whose turn is next first.
    round: VecDeque<Arc<str>>,
    spool: VecDeque<T>,
    /// Turns of devices since the spool had one.
    live: u32,
    waiting: usize,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self {
            relay: VecDeque::new(),
            devices: HashMap::new(),
            round: VecDeque::new(),
            spool: VecDeque::new(),
            live: 0,
            waiting: 0,
        }
    }
}

impl<T> Turns<T> {
    /// One more waits.
    pub fn push(&mut self, who: &Who, waiter: T) {
        self.waiting += 1;
        match who {
            Who::Relay => self.relay.push_back(waiter),
            Who::Spool => self.spool.push_back(waiter),
            Who::Device(name) => {
                let waiters = self.devices.entry(Arc::clone(name)).or_default();
                if waiters.is_empty() {
                    self.round.push_back(Arc::clone(name));
                }
                waiters.push_back(waiter);
            }
        }
    }

    /// The next one of those that may go now, if there is any.
    pub fn next(&mut self, may: impl FnMut(&T) -> bool) -> Option<T> {
        let next = self.next_one(may);
        self.waiting -= usize::from(next.is_some());
        next
    }

    fn next_one(&mut self, mut may: impl FnMut(&T) -> bool) -> Option<T> {
        if self.relay.front().is_some_and(&mut may) {
            return self.relay.pop_front();
        }
        if self.live < LIVE
            && let Some(waiter) = self.next_device(&mut may)
        {
            self.live += 1;
            return Some(waiter);
        }
        if self.spool.front().is_some_and(&mut may) {
            self.live = 0;
            return self.spool.pop_front();
        }
        // The spool has no use for its turn.
        self.live = 0;
        let waiter = self.next_device(&mut may)?;
        self.live = 1;
        Some(waiter)
    }

    fn next_device(&mut self, may: &mut impl FnMut(&T) -> bool) -> Option<T> {
        for place in 0..self.round.len() {
            let waiters = self.devices.get_mut(&self.round[place])?;
            if !waiters.front().is_some_and(&mut *may) {
                continue;
            }
            let waiter = waiters.pop_front();
            let name = self.round.remove(place)?;
            if waiters.is_empty() {
                self.devices.remove(&name);
            } else {
                self.round.push_back(name);
            }
            return waiter;
        }
        None
    }

    /// Takes out those that are meant.
    pub fn take_out(&mut self, is_meant: impl Fn(&T) -> bool) -> Vec<T> {
        let mut out = Vec::new();
        let queues = [&mut self.relay, &mut self.spool];
        for waiters in queues.into_iter().chain(self.devices.values_mut()) {
            let (gone, stay) = std::mem::take(waiters).into_iter().partition(&is_meant);
            *waiters = stay;
            out.extend(gone as VecDeque<T>);
        }
        self.waiting -= out.len();
        self.tidy();
        out
    }

    /// Takes out one that does not wait any more.
    pub fn leave(&mut self, who: &Who, is_meant: impl Fn(&T) -> bool) -> Option<T> {
        let waiters = match who {
            Who::Relay => &mut self.relay,
            Who::Spool => &mut self.spool,
            Who::Device(name) => self.devices.get_mut(name)?,
        };
        let left = waiters.iter().position(is_meant).and_then(|place| waiters.remove(place));
        self.waiting -= usize::from(left.is_some());
        if waiters.is_empty() && matches!(who, Who::Device(_)) {
            self.tidy();
        }
        left
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// All who wait, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        let devices = self.devices.values().flatten();
        self.relay.iter().chain(&self.spool).chain(devices)
    }

    fn tidy(&mut self) {
        self.devices.retain(|_, waiters| !waiters.is_empty());
        self.round.retain(|name| self.devices.contains_key(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str) -> Who {
        Who::Device(name.into())
    }

    fn order(turns: &mut Turns<&'static str>) -> Vec<&'static str> {
        std::iter::from_fn(|| turns.next(|_| true)).collect()
    }

    #[test]
    fn devices_take_turns_however_many_messages_each_has() {
        let mut turns = Turns::default();
        for waiter in ["a1", "a2", "a3", "a4"] {
            turns.push(&device("a"), waiter);
        }
        turns.push(&device("b"), "b1");
        turns.push(&device("c"), "c1");
        turns.push(&device("b"), "b2");
        assert_eq!(order(&mut turns), ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]);
        assert!(turns.is_empty() && turns.devices.is_empty());
    }

    #[test]
    fn the_spool_has_one_turn_in_four_and_all_that_nobody_else_wants() {
        let mut turns = Turns::default();
        for waiter in ["s1", "s2", "s3", "s4"] {
            turns.push(&Who::Spool, waiter);
        }
        for (name, waiter) in [("a", "a"), ("b", "b"), ("c", "c"), ("d", "d"), ("e", "e")] {
            turns.push(&device(name), waiter);
        }
        turns.push(&Who::Relay, "relay");
        assert_eq!(order(&mut turns), ["relay", "a", "b", "c", "s1", "d", "e", "s2", "s3", "s4"]);
    }

    #[test]
    fn who_may_not_go_keeps_nobody_else_waiting_and_keeps_the_turn() {
        let mut turns = Turns::default();
        turns.push(&device("a"), "big");
        turns.push(&device("b"), "small");
        turns.push(&Who::Spool, "big too");
        assert_eq!(turns.next(|waiter| *waiter == "small"), Some("small"));
        assert_eq!(turns.next(|waiter| *waiter == "small"), None);
        assert_eq!(order(&mut turns), ["big", "big too"]);
    }

    #[test]
    fn who_leaves_leaves_nothing_behind() {
        let mut turns = Turns::default();
        turns.push(&device("a"), 1);
        turns.push(&device("a"), 2);
        turns.push(&device("b"), 3);
        turns.push(&Who::Spool, 4);
        assert_eq!(turns.leave(&device("a"), |waiter| *waiter == 2), Some(2));
        assert_eq!(turns.leave(&device("a"), |waiter| *waiter == 2), None);
        assert_eq!(turns.leave(&device("z"), |_| true), None);
        assert_eq!((turns.len(), turns.iter().count()), (3, 3));
        assert_eq!(turns.take_out(|waiter| *waiter != 3).len(), 2);
        assert_eq!(turns.next(|_| true), Some(3));
        assert!(turns.is_empty() && turns.devices.is_empty() && turns.round.is_empty());
    }
}
