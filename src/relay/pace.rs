//! Whether a device that sends mail data moves. There is no limit to the time that a message may take, only
//! to the time without progress; time in which the device waits for us does not count.

use std::time::Duration;

/// A device that is silent for this long does not move.
pub const SILENCE: Duration = Duration::from_secs(10);
/// Octets a second below which a device is slow when somebody waits for its lease.
const SLOW: u64 = 256 * 1024;
const MINUTE: Duration = Duration::from_secs(60);

/// The progress of one device's mail data.
#[derive(Debug)]
pub struct Pace {
    /// Octets a second that it must reach over a minute.
    min_rate: u64,
    silence: Duration,
    window: Span,
    minute: Span,
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
        Self { min_rate, silence: Duration::ZERO, window: Span::default(), minute: Span::default() }
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
        if let Some(octets) = self.minute.over(MINUTE)
            && octets < self.min_rate.saturating_mul(MINUTE.as_secs())
        {
            return Progress::Dead;
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
    fn time_in_which_the_device_waits_for_us_does_not_count() {
        let mut pace = Pace::new(256);
        for _ in 0..1_000 {
            pace.waited(Duration::ZERO, 1);
            assert_eq!(pace.progress(true), Progress::Moving);
        }
    }
}
