//! Whether a device that sends mail data moves. There is no limit to the time that a message may take, only
//! to the time without progress; time in which the device waits for us does not count. Scanners rest for minutes
//! between two bursts (devices.md row 26), so what comes beyond the rate earns a pause.

use std::time::Duration;

/// A device that is silent for this long does not move.
pub const SILENCE: Duration = Duration::from_secs(10);
/// Octets a second below which a device is slow when somebody waits for its lease.
const SLOW: u64 = 256 * 1024;
const MINUTE: Duration = Duration::from_secs(60);
/// Minutes that a device may be ahead of its rate: with those that go on at both ends no less than RFC 5321 section
/// 4.5.3.2.7 has a server wait.
const AHEAD: u64 = 4;

/// The progress of one device's mail data.
#[derive(Debug)]
pub struct Pace {
    /// Octets a second that it must reach over a minute.
    min_rate: u64,
    silence: Duration,
    window: Span,
    minute: Span,
    /// Octets beyond the rate so far, as far as they count.
    ahead: u64,
}

#[derive(Debug, Default)]
struct Span {
    waited: Duration,
    octets: u64,
}

/// What follows from the progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It moves.
    Moving,
    /// Its lease is better used by somebody else.
    Stalled,
    /// It is given up.
    Dead,
}

impl Pace {
    /// At the start of the data; `min_rate` in octets a second.
    pub fn new(min_rate: u64) -> Self {
        let (window, minute) = Default::default();
        Self { min_rate, silence: Duration::ZERO, window, minute, ahead: 0 }
    }

    /// The device was waited for, and sent so many octets in the end, or none.
    pub fn waited(&mut self, time: Duration, octets: u64) {
        self.silence = if octets > 0 { Duration::ZERO } else { self.silence + time };
        for span in [&mut self.window, &mut self.minute] {
            span.waited += time;
            span.octets += octets;
        }
    }

    /// Judges the progress so far; `contended` if somebody waits for a lease.
    pub fn progress(&mut self, contended: bool) -> Progress {
        if let Some(octets) = self.minute.over(MINUTE) {
            let least = self.min_rate.saturating_mul(MINUTE.as_secs());
            let Some(ahead) = (self.ahead + octets).checked_sub(least) else {
                return Progress::Dead;
            };
            self.ahead = ahead.min(least.saturating_mul(AHEAD));
        }
        let slow =
            self.window.over(SILENCE).is_some_and(|octets| octets < SLOW * SILENCE.as_secs());
        if self.silence >= SILENCE || (slow && contended) {
            Progress::Stalled
        } else {
            Progress::Moving
        }
    }
}

impl Span {
    /// The octets of a span that is over; the next one begins.
    fn over(&mut self, length: Duration) -> Option<u64> {
        (self.waited >= length).then(|| std::mem::take(self).octets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn after(seconds: u32, octets_a_second: u64, contended: bool) -> Progress {
        let mut pace = Pace::new(256);
        let mut worst = Progress::Moving;
        for _ in 0..seconds {
            pace.waited(SECOND, octets_a_second);
            match pace.progress(contended) {
                Progress::Moving => {}
                progress => worst = progress,
            }
        }
        worst
    }

    #[test]
    fn silence_stalls_and_then_ends() {
        assert_eq!(after(9, 0, false), Progress::Moving);
        assert_eq!(after(10, 0, false), Progress::Stalled);
        assert_eq!(after(60, 0, false), Progress::Dead);
    }

    #[test]
    fn a_slow_device_keeps_its_lease_unless_somebody_waits() {
        assert_eq!(after(600, 1_000, false), Progress::Moving);
        assert_eq!(after(9, 1_000, true), Progress::Moving);
        assert_eq!(after(10, 1_000, true), Progress::Stalled);
        assert_eq!(after(600, SLOW, true), Progress::Moving);
        assert_eq!(after(60, 255, false), Progress::Dead);
    }

    #[test]
    fn what_comes_beyond_the_rate_earns_a_pause_of_six_minutes_at_most() {
        // A burst, and the seconds of silence behind it that are one too many.
        for (burst, lasts) in [(0, 60), (15_360, 120), (64 * 1024, 300), (100_000_000, 360)] {
            let mut pace = Pace::new(256);
            pace.waited(Duration::ZERO, burst);
            let mut dies = || {
                pace.waited(SECOND, 0);
                pace.progress(false) == Progress::Dead
            };
            assert_eq!((1..=600).find(|_| dies()), Some(lasts), "{burst} octets");
        }
    }

    #[test]
    fn time_in_which_the_device_waits_for_us_does_not_count() {
        let mut pace = Pace::new(256);
        for _ in 0..1_000 {
            pace.waited(Duration::ZERO, 1);
            assert_eq!(pace.progress(true), Progress::Moving);
        }
    }
}
