//! How many messages a device may send in a span of time, and to how many recipients. Pure: the time is an argument,
//! counted from some beginning.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    time::Duration,
};

/// Devices that are counted at a time. Of more, those go that have used least: whoever comes from ever new addresses
/// makes nobody forget what a busy device has used.
const DEVICES: usize = 10_000;
/// What is used within one such part of a span is free again at the same moment.
const PARTS: u32 = 64;

/// So many in any span of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// How many; 0 means any number.
    pub count: u32,
    /// In what time.
    pub span: Span,
}

/// A span of time that people count in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// A second.
    Second,
    /// A minute.
    Minute,
    /// An hour.
    Hour,
    /// A day.
    Day,
}

/// What each device has used of a quota.
#[derive(Debug)]
pub struct Quotas {
    quota: Quota,
    used: HashMap<String, Window>,
}

/// What one device has used: ends of parts with the number that is free again there, oldest first.
#[derive(Debug, Default)]
struct Window(VecDeque<(Duration, u32)>);

/// A quota is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exceeded {
    /// The quota.
    pub quota: Quota,
    /// When something is free again.
    pub left: Duration,
}

/// One that was counted, for [`Quotas::give_back`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted(Duration);

impl Span {
    const ALL: [Self; 4] = [Self::Second, Self::Minute, Self::Hour, Self::Day];

    /// Its length.
    pub const fn length(self) -> Duration {
        Duration::from_secs(match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3_600,
            Self::Day => 24 * 3_600,
        })
    }

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Second => "second",
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }
}

impl Quota {
    /// Any number.
    pub const fn unlimited(span: Span) -> Self {
        Self { count: 0, span }
    }

    /// `100/h`: a count and the first letter of second, minute, hour or day.
    pub fn parse(text: &str) -> Option<Self> {
        let (count, unit) = text.split_once('/')?;
        let span = Span::ALL.into_iter().find(|span| span.as_str()[..1] == *unit)?;
        let digits = !count.is_empty() && count.bytes().all(|octet| octet.is_ascii_digit());
        digits.then_some(())?;
        Some(Self { count: count.parse().ok()?, span })
    }
}

/// As [`Quota::parse`] reads it.
impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.count, &self.span.as_str()[..1])
    }
}

impl Quotas {
    /// Nobody has used anything.
    pub fn new(quota: Quota) -> Self {
        Self { quota, used: HashMap::new() }
    }

    /// Counts one more of a device, if its quota has room for it.
    pub fn count(&mut self, device: &str, now: Duration) -> Result<Counted, Exceeded> {
        let Quota { count, span } = self.quota;
        // What is used at any moment of a part is free again a whole span after its end.
        let part = (span.length() / PARTS).as_nanos();
        let ended = (now.as_nanos() / part + 1) * part;
        let free = Duration::from_nanos(u64::try_from(ended).unwrap_or(u64::MAX)) + span.length();
        let counted = Counted(free);
        if count == 0 {
            return Ok(counted);
        }
        if !self.used.contains_key(device) {
            self.make_room(now);
        }
        let window = self.used.entry(device.to_owned()).or_default();
        window.forget(now);
        if window.used() >= count {
            let left = window.0.front().map_or(span.length(), |(free, _)| *free - now);
            return Err(Exceeded { quota: self.quota, left });
        }
        match window.0.back_mut() {
            Some((last, used)) if *last == free => *used += 1,
            _ => window.0.push_back((free, 1)),
        }
        Ok(counted)
    }

    /// It came to nothing after all: it does not count.
    pub fn give_back(&mut self, device: &str, Counted(counted): Counted) {
        let Some(window) = self.used.get_mut(device) else { return };
        if let Some((_, used)) = window.0.iter_mut().find(|(free, _)| *free == counted) {
            *used = used.saturating_sub(1);
        }
        window.0.retain(|(_, used)| *used > 0);
        if window.0.is_empty() {
            self.used.remove(device);
        }
    }

    fn make_room(&mut self, now: Duration) {
        if self.used.len() < DEVICES {
            return;
        }
        self.used.retain(|_, window| {
            window.forget(now);
            !window.0.is_empty()
        });
        if self.used.len() >= DEVICES {
            let least = self.used.iter().min_by_key(|(_, window)| window.used());
            if let Some(device) = least.map(|(device, _)| device.clone()) {
                self.used.remove(&device);
            }
        }
    }
}

impl Window {
    fn forget(&mut self, now: Duration) {
        while self.0.front().is_some_and(|(free, _)| *free <= now) {
            self.0.pop_front();
        }
    }

    fn used(&self) -> u32 {
        self.0.iter().map(|(_, used)| used).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn quotas(text: &str) -> Quotas {
        Quotas::new(Quota::parse(text).unwrap())
    }

    #[test]
    fn quotas_read_back_as_they_were() {
        for text in ["0/s", "1/m", "100/h", "4294967295/d"] {
            assert_eq!(Quota::parse(text).unwrap().to_string(), text);
        }
        for text in
            ["", "/", "1", "1/", "/h", "-1/h", "+1/h", "1/w", "1/hour", "4294967296/d", "1/h/h"]
        {
            assert_eq!(Quota::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_device_waits_for_its_own_window_and_nobody_elses() {
        let mut quotas = quotas("2/m");
        for _ in 0..2 {
            quotas.count("a", seconds(10)).unwrap();
        }
        let exceeded = quotas.count("a", seconds(40)).unwrap_err();
        assert!(exceeded.left > seconds(30) && exceeded.left <= seconds(31), "{exceeded:?}");
        quotas.count("b", seconds(40)).unwrap();
        quotas.count("a", seconds(40) + exceeded.left).unwrap();
        let mut unlimited = Quotas::new(Quota::unlimited(Span::Day));
        unlimited.count("a", seconds(0)).unwrap();
        assert!(unlimited.used.is_empty());
    }

    #[test]
    fn what_came_to_nothing_does_not_count() {
        let mut quotas = quotas("1/h");
        let counted = quotas.count("a", seconds(1)).unwrap();
        assert!(quotas.count("a", seconds(2)).is_err(), "not while it is under way");
        quotas.give_back("a", counted);
        quotas.count("a", seconds(3)).unwrap();
        quotas.give_back("nobody", counted);
    }

    #[test]
    fn who_comes_from_ever_new_addresses_makes_nobody_forget() {
        let mut quotas = quotas("5/d");
        for _ in 0..5 {
            quotas.count("busy", seconds(0)).unwrap();
        }
        for number in 0..2 * DEVICES {
            quotas.count(&number.to_string(), seconds(1)).unwrap();
        }
        assert!(quotas.used.len() <= DEVICES);
        assert!(quotas.count("busy", seconds(2)).is_err());
        quotas.count("new", seconds(200_000)).unwrap();
        assert_eq!(quotas.used.len(), 1, "what is over is forgotten when room is needed");
    }

    proptest! {
        /// No span has more than the count, wherever it begins, and a quota that is never reached bars nobody.
        #[test]
        fn no_span_has_too_many(count in 1u32..6, mut times in prop::collection::vec(0u64..300_000, 1..60)) {
            times.sort_unstable();
            let mut quotas = Quotas::new(Quota { count, span: Span::Minute });
            let mut taken: Vec<Duration> = Vec::new();
            for now in times.into_iter().map(Duration::from_millis) {
                let recent = |grain| taken.iter().filter(|at| **at + seconds(60) + grain > now).count();
                let (within, about) = (recent(Duration::ZERO), recent(seconds(1)));
                match quotas.count("a", now) {
                    Ok(_) => {
                        prop_assert!(within < count as usize);
                        taken.push(now);
                    }
                    Err(exceeded) => {
                        prop_assert!(about >= count as usize);
                        prop_assert!(exceeded.left > Duration::ZERO);
                    }
                }
            }
        }
    }
}
