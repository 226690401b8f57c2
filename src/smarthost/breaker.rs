//! Whether the mailbox may log in now: what its secret has met with so far, and how long the next try waits. The
//! time is an argument: how long the pool has been there.

use std::time::Duration;

use super::{
    Credential,
    classify::{
        Verdict,
        class::{Retry, Scope},
    },
};

/// How long a login waits that a setting has to heal, by how often it was refused.
const HEALED: [Duration; 3] = [minutes(15), minutes(30), minutes(60)];
/// How long one waits that should heal by itself.
const PASSING: [Duration; 5] = [minutes(1), minutes(2), minutes(4), minutes(8), minutes(15)];

/// How long a login that has succeeded vouches for the next ones: the secret may be changed elsewhere any time.
const VOUCHED: Duration = minutes(1);

const fn minutes(count: u64) -> Duration {
    Duration::from_secs(60 * count)
}

/// What is known of the mailbox's login.
#[derive(Debug, Default)]
pub struct Breaker {
    /// The secret that this is known of.
    credential: Credential,
    /// When one has succeeded last, since the last refusal.
    proven: Option<Duration>,
    /// The last one was refused.
    refused: Option<Refused>,
}

/// A refused login.
#[derive(Clone, Copy, Debug)]
struct Refused {
    /// When it may be tried again; `None`: not with this secret, since each try could lock the account.
    until: Option<Duration>,
    /// How often in a row.
    times: usize,
}

/// How a mailbox fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nobody has logged in with its secret yet.
    Unproven,
    /// The last login succeeded.
    Ready,
    /// The smarthost has refused the login.
    Refused,
}

impl State {
    /// The word in `/status`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unproven => "unproven",
            Self::Ready => "ready",
            Self::Refused => "login-refused",
        }
    }
}

impl Breaker {
    /// This is the secret now: another than before is unproven. Returns whether it has replaced one that
    /// something was known of.
    pub fn present(&mut self, credential: Credential) -> bool {
        if self.is_of(credential) {
            return false;
        }
        let known = self.state() != State::Unproven;
        *self = Self { credential, ..Self::default() };
        known
    }

    /// Whether this is what is known of a secret.
    pub fn is_of(&self, credential: Credential) -> bool {
        self.credential == credential
    }

    /// The secret that something is known of.
    pub fn credential(&self) -> Credential {
        self.credential
    }

    /// Whether a login has just succeeded; until then there should be one at a time.
    pub fn is_proven(&self, now: Duration) -> bool {
        self.proven.is_some_and(|at| now < at + VOUCHED)
    }

    /// Whether a login may be tried. If not: how long not, `None` until the secret changes.
    pub fn admits(&self, now: Duration) -> Result<(), Option<Duration>> {
        match self.refused.map(|refused| refused.until) {
            None => Ok(()),
            Some(Some(until)) if until <= now => Ok(()),
            Some(until) => Err(until.map(|until| until.saturating_sub(now))),
        }
    }

    /// A login has succeeded.
    pub fn accepted(&mut self, credential: Credential, now: Duration) {
        *self = Self { credential, proven: Some(now), refused: None };
    }

    /// The token that was refused is replaced by another one: that is tried at once, and counts as the same try.
    pub fn once_more(&mut self) {
        if let Some(refused) = &mut self.refused {
            refused.until = Some(Duration::ZERO);
            refused.times = refused.times.saturating_sub(1);
        }
    }

    /// The smarthost has answered a login with something else than yes. A wrong password is presented again by
    /// nobody; a token may become right by a setting elsewhere.
    pub fn refused(
        &mut self,
        credential: Credential,
        verdict: &Verdict,
        is_token: bool,
        now: Duration,
    ) {
        if verdict.retry == Retry::Yes && verdict.scope == Scope::Connection {
            // The login was not what was refused.
            return;
        }
        let times = self.refused.map_or(0, |refused| refused.times);
        let waits: &[Duration] = if verdict.retry == Retry::Yes { &PASSING } else { &HEALED };
        let until = now + waits[times.min(waits.len() - 1)];
        let until = (is_token || !verdict.wrong_secret).then_some(until);
        let refused = Some(Refused { until, times: times + 1 });
        *self = Self { credential, proven: None, refused };
    }

    /// An operator's word: the next login is tried, whatever the last one met with.
    pub fn try_again(&mut self) {
        self.refused = None;
    }

    /// How the mailbox fares.
    pub fn state(&self) -> State {
        match self {
            Self { refused: Some(_), .. } => State::Refused,
            Self { proven: Some(_), .. } => State::Ready,
            Self { .. } => State::Unproven,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        proto::{
            client::Stage,
            reply::{Enhanced, Reply},
        },
        smarthost::classify::{self, catalogue::Catalogue},
    };

    fn verdict(code: u16, enhanced: Enhanced, text: &str) -> Verdict {
        let reply = Reply::new(code, enhanced, text);
        classify::reply(Catalogue::built_in(), Some(Stage::Auth), &reply)
    }

    fn wrong_password() -> Verdict {
        let text = "Authentication unsuccessful, the user credentials were incorrect.";
        verdict(535, Enhanced(5, 7, 139), text)
    }

    #[test]
    fn each_refusal_waits_longer_and_the_last_wait_stays() {
        let switched_off =
            "Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant.";
        let prx4 = "Temporary server error. Please try again later. PRX4";
        for (verdict, waits) in [
            (verdict(535, Enhanced(5, 7, 139), switched_off), &[15, 30, 60, 60][..]),
            (verdict(451, Enhanced(4, 7, 0), prx4), &[1, 2, 4, 8, 15, 15]),
        ] {
            let (mut breaker, mut now) = (Breaker::default(), minutes(7));
            for wait in waits.iter().copied().map(minutes) {
                assert_eq!(breaker.admits(now), Ok(()));
                breaker.refused(Credential::default(), &verdict, false, now);
                assert_eq!(breaker.admits(now), Err(Some(wait)));
                assert_eq!(breaker.state(), State::Refused);
                let short = now + wait - Duration::from_secs(1);
                assert_eq!(breaker.admits(short), Err(Some(Duration::from_secs(1))));
                now += wait;
            }
            breaker.accepted(Credential::default(), now);
            assert_eq!((breaker.state(), breaker.admits(now)), (State::Ready, Ok(())));
            breaker.refused(Credential::default(), &verdict, false, now);
            assert_eq!(breaker.admits(now), Err(Some(minutes(waits[0]))), "from the beginning");
            assert!(!breaker.is_proven(now));
        }
    }

    #[test]
    fn a_wrong_secret_waits_for_another_or_for_the_operator() {
        let (old, new) = (Credential(1), Credential(2));
        let (mut breaker, now) = (Breaker::default(), minutes(7));
        assert!(!breaker.present(old), "nothing was known of none");
        breaker.refused(old, &wrong_password(), false, now);
        assert_eq!(breaker.admits(now + minutes(10_000)), Err(None));
        breaker.try_again();
        assert_eq!(breaker.admits(now), Ok(()));
        breaker.refused(old, &wrong_password(), false, now);
        assert!(!breaker.present(old), "the same");
        assert_eq!(breaker.admits(now), Err(None));
        assert!(breaker.present(new) && breaker.is_of(new));
        assert_eq!((breaker.admits(now), breaker.state()), (Ok(()), State::Unproven));
    }

    #[test]
    fn a_refused_token_is_replaced_once_and_probed_like_what_a_setting_heals() {
        let (mut breaker, mut now) = (Breaker::default(), minutes(7));
        let refused = verdict(535, Enhanced(5, 7, 3), "Authentication unsuccessful");
        for wait in [15, 30, 60, 60].map(minutes) {
            breaker.refused(Credential(1), &refused, true, now);
            breaker.once_more();
            assert_eq!(breaker.admits(now), Ok(()), "the new token is tried");
            breaker.refused(Credential(1), &refused, true, now);
            assert_eq!(breaker.admits(now), Err(Some(wait)));
            now += wait;
        }
    }

    #[test]
    fn a_success_vouches_for_a_minute() {
        let (mut breaker, now) = (Breaker::default(), minutes(7));
        assert!(!breaker.is_proven(now));
        breaker.accepted(Credential(1), now);
        assert!(breaker.is_proven(now + minutes(1) - Duration::from_secs(1)));
        assert!(!breaker.is_proven(now + minutes(1)), "the secret may have been changed");
        assert_eq!(breaker.state(), State::Ready);
    }

    #[test]
    fn a_login_that_was_not_judged_is_no_refusal() {
        let hiccup = verdict(454, Enhanced(4, 7, 0), "Temporary authentication failure");
        let (mut breaker, now) = (Breaker::default(), minutes(7));
        breaker.accepted(Credential::default(), now);
        breaker.refused(Credential::default(), &hiccup, false, now);
        assert!(breaker.is_proven(now) && breaker.admits(now).is_ok());
    }
}
