//! What a mailbox knows of its token: whether to use it, to ask for the next one meanwhile, or not to ask for a
//! while. Pure: the time is an argument, how long the mailbox has been there.
//!
//! ```text
//!        got()            five minutes before its end       its end
//! (none) ─────► use it ───────────────────────────► use it, and ask ──────► ask, and wait for it
//!   │ failed()                                            │ failed()
//!   └────► the same answer until the wait is over ◄───────┘ (used meanwhile, until its end)
//! ```

use std::time::Duration;

use super::TokenError;

/// A token is renewed so long before its end, if it lives long enough.
const AHEAD: Duration = Duration::from_secs(300);
/// How long nobody is asked after a failure that passes, by how many there were.
const PASSING: [Duration; 7] = [
    // Most are over at once; what is not is left alone.
    Duration::from_secs(5),
    Duration::from_secs(30),
    minutes(1),
    minutes(2),
    minutes(5),
    minutes(10),
    minutes(15),
];
/// How long after one that waits for somebody.
const SETTING: [Duration; 3] = [minutes(15), minutes(30), minutes(60)];
/// So long after a token was asked for because the last one was refused, no refusal asks for another.
const REFUSED_AGAIN: Duration = minutes(5);

const fn minutes(count: u64) -> Duration {
    Duration::from_secs(60 * count)
}

/// On whose behalf, and with what, tokens are asked for; each a fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// Whose sign-in it is: a token of another one is of no use.
    pub(super) subject: u64,
    /// What the application or the sign-in proves itself with: a new one is worth a try.
    pub(super) proof: u64,
}

/// What is known.
#[derive(Debug)]
pub(super) struct Cache<T> {
    identity: Option<Identity>,
    held: Option<Held<T>>,
    failed: Option<Failed>,
    /// When a token was last asked for because the one before was refused.
    forced: Option<Duration>,
}

#[derive(Debug)]
struct Held<T> {
    token: T,
    ends: Duration,
    renew: Duration,
}

#[derive(Debug)]
struct Failed {
    error: TokenError,
    until: Duration,
    times: usize,
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<T> {
    /// This token is good.
    Use(T),
    /// So is this, and the next one should be asked for meanwhile.
    Renew(T),
    /// There is none: ask.
    Ask,
    /// There is none, and it is too early to ask again.
    Wait(TokenError),
}

impl<T> Default for Cache<T> {
    fn default() -> Self {
        Self { identity: None, held: None, failed: None, forced: None }
    }
}

impl<T: Clone> Cache<T> {
    /// What to do for whoever wants a token, if this is who asks now.
    pub(super) fn next(&mut self, identity: Identity, now: Duration) -> Next<T> {
        self.present(identity, now);
        let waiting = self.failed.as_ref().filter(|failed| now < failed.until);
        match self.held.as_ref().filter(|held| now < held.ends) {
            Some(held) if held.renew <= now && waiting.is_none() => Next::Renew(held.token.clone()),
            Some(held) => Next::Use(held.token.clone()),
            None => match waiting {
                Some(failed) => Next::Wait(failed.error.clone()),
                None => Next::Ask,
            },
        }
    }

    /// A token has come, good for so long; `identity` is what the next one is asked for with.
    pub(super) fn got(&mut self, token: T, life: Duration, identity: Identity, now: Duration) {
        let ahead = if life > 3 * AHEAD { AHEAD } else { life / 3 };
        self.identity = Some(identity);
        self.held = Some(Held { token, ends: now + life, renew: now + life - ahead });
        self.failed = None;
    }

    /// What tokens are asked for with has a successor, of the same worth.
    pub(super) fn succeeded(&mut self, former: Identity, next: Identity) {
        if self.identity == Some(former) {
            self.identity = Some(next);
        }
    }

    /// None has come; `chance` between 0 and 1 spreads the wait. What is mended here is looked at each time, and what
    /// was asked with a former secret says nothing of the new one.
    pub(super) fn failed(
        &mut self,
        error: TokenError,
        identity: Identity,
        chance: f64,
        now: Duration,
    ) {
        if error.is_local() || self.identity != Some(identity) {
            return;
        }
        let times = self.failed.as_ref().map_or(0, |failed| failed.times);
        let waits: &[Duration] = if error.is_temporary() { &PASSING } else { &SETTING };
        let wait = waits[times.min(waits.len() - 1)];
        let spread = 0.8 + 0.4 * chance.clamp(0.0, 1.0);
        let wait = match error.retry_after {
            // Never earlier than asked for.
            Some(asked) => asked.max(Duration::from_secs(1)).mul_f64(spread + 0.2),
            None => wait.mul_f64(spread),
        };
        self.failed = Some(Failed { error, until: now + wait, times: times + 1 });
    }

    /// The smarthost has refused this token. Returns whether another one is had because of it.
    pub(super) fn refused(&mut self, is_it: impl Fn(&T) -> bool, now: Duration) -> bool {
        if self.failed.as_ref().is_some_and(|failed| now < failed.until) {
            return false;
        }
        match &self.held {
            Some(held) if is_it(&held.token) => {
                if self.forced.is_some_and(|forced| now < forced + REFUSED_AGAIN) {
                    return false;
                }
                self.held = None;
                self.forced = Some(now);
                true
            }
            // Somebody else's refusal has seen to that.
            _ => true,
        }
    }

    /// An operator's word: whatever the last request met with, the next one is made.
    pub(super) fn try_again(&mut self) {
        self.failed = None;
    }

    /// A token of somebody else is of no use; a new secret ends a wait, and shows at once whether it is right.
    fn present(&mut self, identity: Identity, now: Duration) {
        let Some(known) = self.identity.replace(identity).filter(|known| *known != identity) else {
            return;
        };
        self.failed = None;
        self.forced = None;
        if known.subject != identity.subject {
            self.held = None;
        } else if let Some(held) = &mut self.held {
            held.renew = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: Identity = Identity { subject: 1, proof: 1 };

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn error(passes: bool, retry_after: Option<u64>) -> TokenError {
        let error = if passes {
            TokenError::passing("no", "wait")
        } else {
            TokenError::setting("no", "mend")
        };
        TokenError { retry_after: retry_after.map(seconds), ..error }
    }

    fn full(life: u64) -> Cache<&'static str> {
        let mut cache = Cache::default();
        assert_eq!(cache.next(ME, seconds(0)), Next::Ask);
        cache.got("one", seconds(life), ME, seconds(0));
        cache
    }

    #[test]
    fn a_token_is_renewed_ahead_of_its_end() {
        for (life, renew) in [(3600, 3300), (901, 601), (900, 600), (300, 200), (3, 2)] {
            let mut cache = full(life);
            assert_eq!(cache.next(ME, seconds(renew - 1)), Next::Use("one"), "{life}");
            assert_eq!(cache.next(ME, seconds(renew)), Next::Renew("one"), "{life}");
            assert_eq!(cache.next(ME, seconds(life)), Next::Ask, "{life}");
        }
    }

    #[test]
    fn a_good_token_is_used_while_renewing_fails() {
        let mut cache = full(3600);
        cache.failed(error(true, None), ME, 0.5, seconds(3300));
        assert_eq!(cache.next(ME, seconds(3304)), Next::Use("one"));
        assert_eq!(cache.next(ME, seconds(3305)), Next::Renew("one"));
        cache.failed(error(true, None), ME, 0.5, seconds(3590));
        assert_eq!(cache.next(ME, seconds(3600)), Next::Wait(error(true, None)));
        assert_eq!(cache.next(ME, seconds(3620)), Next::Ask);
    }

    #[test]
    fn after_failures_the_waits_grow() {
        for (passes, waits) in
            [(true, &[5, 30, 60, 120, 300, 600, 900, 900][..]), (false, &[900, 1800, 3600, 3600])]
        {
            let mut cache = Cache::<&str>::default();
            let mut now = 0;
            for wait in waits {
                assert_eq!(cache.next(ME, seconds(now)), Next::Ask);
                cache.failed(error(passes, None), ME, 0.5, seconds(now));
                now += wait;
                assert!(
                    matches!(cache.next(ME, seconds(now - 1)), Next::Wait(_)),
                    "{passes} {wait}"
                );
            }
        }
        let mut cache = Cache::<&str>::default();
        cache.next(ME, seconds(0));
        cache.failed(error(true, None), ME, 0.0, seconds(0));
        assert_eq!(cache.next(ME, seconds(4)), Next::Ask, "chance spreads it");
        cache.failed(TokenError::local("no", "mend"), ME, 0.5, seconds(0));
        assert_eq!(cache.next(ME, seconds(48)), Next::Ask, "a file is looked at each time");
    }

    #[test]
    fn the_endpoint_is_left_alone_for_as_long_as_it_asks() {
        for chance in [0.0, 1.0] {
            let mut cache = Cache::<&str>::default();
            cache.next(ME, seconds(0));
            cache.failed(error(true, Some(1800)), ME, chance, seconds(0));
            assert!(matches!(cache.next(ME, seconds(1799)), Next::Wait(_)));
            assert_eq!(cache.next(ME, seconds(1800 * 2)), Next::Ask);
        }
    }

    #[test]
    fn what_has_changed_is_tried_at_once() {
        let secret = Identity { proof: 2, ..ME };
        let mut cache = Cache::<&str>::default();
        cache.next(ME, seconds(0));
        cache.failed(error(false, None), ME, 0.5, seconds(0));
        assert!(matches!(cache.next(ME, seconds(1)), Next::Wait(_)));
        assert_eq!(cache.next(secret, seconds(2)), Next::Ask);
        cache.failed(error(false, None), ME, 0.5, seconds(2));
        assert_eq!(cache.next(secret, seconds(2)), Next::Ask, "that was the former one");
        cache.failed(error(false, None), secret, 0.5, seconds(2));
        cache.try_again();
        assert_eq!(cache.next(secret, seconds(3)), Next::Ask);
        let rotated = Identity { proof: 3, ..ME };
        cache.succeeded(secret, rotated);
        cache.failed(error(false, None), rotated, 0.5, seconds(3));
        assert!(matches!(cache.next(rotated, seconds(4)), Next::Wait(_)), "it was the last one's");
        let mut cache = full(3600);
        assert_eq!(cache.next(secret, seconds(10)), Next::Renew("one"));
        assert_eq!(cache.next(Identity { subject: 2, ..secret }, seconds(11)), Next::Ask);
    }

    #[test]
    fn a_refused_token_is_replaced_once() {
        let mut cache = full(3600);
        assert!(cache.refused(|token| *token == "one", seconds(10)));
        assert_eq!(cache.next(ME, seconds(10)), Next::Ask);
        assert!(cache.refused(|token| *token == "one", seconds(10)), "the next one is on its way");
        cache.got("two", seconds(3600), ME, seconds(11));
        assert!(!cache.refused(|token| *token == "two", seconds(12)), "once");
        assert_eq!(cache.next(ME, seconds(12)), Next::Use("two"));
        assert!(cache.refused(|token| *token == "two", seconds(1000)), "a good one may be revoked");
        cache.failed(error(true, None), ME, 0.5, seconds(1000));
        assert!(!cache.refused(|token| *token == "two", seconds(1001)), "nobody is asked now");
    }
}
