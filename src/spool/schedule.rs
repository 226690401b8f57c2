//! When a message is tried again: by what kind of trouble it met, how often so far, and chance.

use std::time::Duration;

/// A kind of trouble, by how long it lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It passes: the configured waits.
    Passing,
    /// Too many connections at once.
    Concurrency,
    /// Too many messages a minute.
    Rate,
    /// The service does not like us for a while.
    Reputation,
    /// The day's messages are spent.
    Quota,
    /// Somebody has to change a setting.
    Setting,
}

const fn minutes(count: u64) -> Duration {
    Duration::from_secs(60 * count)
}

/// How long the `tried`-th try (1 is the first) is followed by none. `waits` are the configured ones, of which the
/// last repeats; `chance` between 0 and 1 spreads each by a fifth to both sides, so that what failed together does
/// not come back together.
pub fn wait(trouble: Trouble, tried: u32, waits: &[Duration], chance: f64) -> Duration {
    const CONCURRENCY: [Duration; 3] =
        [Duration::from_secs(35), Duration::from_secs(60), minutes(5)];
    const RATE: [Duration; 3] = [minutes(1), minutes(2), minutes(5)];
    const SLOW: [Duration; 3] = [minutes(15), minutes(30), minutes(60)];
    const HOURLY: [Duration; 1] = [minutes(60)];
    let waits = match trouble {
        Trouble::Passing => waits,
        Trouble::Concurrency => &CONCURRENCY,
        Trouble::Rate => &RATE,
        Trouble::Reputation | Trouble::Setting => &SLOW,
        Trouble::Quota => &HOURLY,
    };
    let index = (tried.max(1) as usize - 1).min(waits.len().saturating_sub(1));
    let wait = waits.get(index).copied().unwrap_or(minutes(1));
    wait.mul_f64(0.8 + 0.4 * chance.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_waits_and_the_last_repeats() {
        let configured = [minutes(1), minutes(2), minutes(5)];
        let waits = |trouble, tries: [u32; 4]| {
            tries.map(|tried| wait(trouble, tried, &configured, 0.5).as_secs())
        };
        assert_eq!(waits(Trouble::Passing, [1, 2, 3, 9]), [60, 120, 300, 300]);
        assert_eq!(waits(Trouble::Concurrency, [1, 2, 3, 9]), [35, 60, 300, 300]);
        assert_eq!(waits(Trouble::Rate, [1, 2, 3, 9]), [60, 120, 300, 300]);
        assert_eq!(waits(Trouble::Setting, [1, 2, 3, 9]), [900, 1800, 3600, 3600]);
        assert_eq!(waits(Trouble::Quota, [0, 1, 2, 9]), [3600; 4]);
    }

    #[test]
    fn chance_spreads_by_a_fifth() {
        let configured = [minutes(10)];
        let at = |chance| wait(Trouble::Passing, 1, &configured, chance).as_secs();
        assert_eq!([at(0.0), at(0.5), at(1.0)], [480, 600, 720]);
        assert_eq!(wait(Trouble::Passing, 1, &[], 0.5), minutes(1), "no waits at all");
    }
}
