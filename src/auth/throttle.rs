//! Failed logins slow their address down. Pure: the time is an argument, counted from some beginning.

use std::{collections::HashMap, net::IpAddr, time::Duration};

/// How long the next login waits after the first failure; each further one doubles it.
const FIRST: Duration = Duration::from_secs(1);
/// The longest that it waits.
const LONGEST: Duration = Duration::from_secs(60);
/// What has not failed for so long is forgotten.
const QUIET: Duration = Duration::from_secs(600);
/// Addresses that are known at a time. Of more, those go that have failed least and longest ago: whoever has many
/// addresses makes nobody forget one that keeps on guessing.
const ADDRESSES: usize = 10_000;

/// How long logins wait, by the address that they come from.
#[derive(Debug, Default)]
pub struct Throttle(HashMap<IpAddr, Failures>);

#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    last: Duration,
}

impl Throttle {
    /// How long the next login of an address waits before it is judged.
    pub fn wait(&self, address: IpAddr, now: Duration) -> Duration {
        self.0.get(&address).map_or(Duration::ZERO, |failures| {
            let wait = FIRST * 2u32.pow((failures.count - 1).min(6));
            (failures.last + wait.min(LONGEST)).saturating_sub(now)
        })
    }

    /// A login of an address was refused. One that succeeds changes nothing: who knows one password may still guess
    /// others.
    pub fn failed(&mut self, address: IpAddr, now: Duration) {
        let known = self.0.get(&address).filter(|failures| !failures.is_over(now));
        let count = known.map_or(0, |failures| failures.count).saturating_add(1);
        if !self.0.contains_key(&address) && self.0.len() >= ADDRESSES {
            self.0.retain(|_, failures| !failures.is_over(now));
            if self.0.len() >= ADDRESSES {
                let least = self.0.iter().min_by_key(|(_, it)| (it.count, it.last));
                if let Some(address) = least.map(|(address, _)| *address) {
                    self.0.remove(&address);
                }
            }
        }
        self.0.insert(address, Failures { count, last: now });
    }
}

impl Failures {
    fn is_over(&self, now: Duration) -> bool {
        self.last + QUIET <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn address(number: u32) -> IpAddr {
        IpAddr::from(number.to_be_bytes())
    }

    #[test]
    fn each_failure_doubles_the_wait_up_to_a_minute() {
        let (mut throttle, mut now) = (Throttle::default(), seconds(5));
        assert_eq!(throttle.wait(address(1), now), seconds(0));
        for wait in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
            throttle.failed(address(1), now);
            assert_eq!(throttle.wait(address(1), now), seconds(wait));
            assert_eq!(throttle.wait(address(2), now), seconds(0), "nobody else waits");
            now += seconds(wait);
            assert_eq!(throttle.wait(address(1), now), seconds(0));
        }
        let later = now + QUIET;
        throttle.failed(address(1), later);
        assert_eq!(throttle.wait(address(1), later), seconds(1), "forgotten after a quiet while");
    }

    #[test]
    fn who_has_many_addresses_makes_nobody_forget_who_guesses_most() {
        let mut throttle = Throttle::default();
        for _ in 0..20 {
            throttle.failed(address(0), seconds(0));
        }
        for number in 1..=2 * ADDRESSES as u32 {
            throttle.failed(address(number), seconds(1));
        }
        assert_eq!(throttle.0.len(), ADDRESSES);
        assert_eq!(throttle.wait(address(0), seconds(1)), seconds(59));
        throttle.failed(address(u32::MAX), QUIET + seconds(1));
        assert_eq!(throttle.0.len(), 1, "what is over makes room");
    }
}
