//! When a mailbox's token and credential end, as far as it is known: for metrics, `/status`, and a warning in time.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use jiff::{SignedDuration, Timestamp};

use crate::{
    telemetry::metrics::Metrics,
    transport::certificate::{RENEW, days_left},
};

/// When a mailbox's token and credential end.
#[derive(Debug, Default)]
pub(super) struct Expiry {
    mailbox: String,
    metrics: OnceLock<Metrics>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    token: Option<Timestamp>,
    credential: Option<Timestamp>,
    /// When people were last told that it ends soon.
    warned: Option<Timestamp>,
}

impl Expiry {
    /// Of a mailbox of which nothing is known yet.
    pub(super) fn new(mailbox: &str) -> Self {
        Self { mailbox: mailbox.to_owned(), ..Self::default() }
    }

    /// What is known is shown there from now on.
    pub(super) fn show_in(&self, metrics: &Metrics) {
        if self.metrics.set(metrics.clone()).is_ok() {
            self.show(&self.known());
        }
    }

    /// When the token ends.
    pub(super) fn token(&self) -> Option<Timestamp> {
        self.known().token
    }

    /// When what tokens are asked for with ends.
    pub(super) fn credential(&self) -> Option<Timestamp> {
        self.known().credential
    }

    /// There is a token that ends then.
    pub(super) fn token_ends(&self, at: Option<Timestamp>) {
        let mut known = self.known();
        if known.token != at {
            known.token = at;
            self.show(&known);
        }
    }

    /// The credential ends then. People are told once a day from a month before.
    pub(super) fn credential_ends(&self, at: Option<Timestamp>, now: Timestamp) {
        let mut known = self.known();
        if known.credential != at {
            known.credential = at;
            known.warned = None;
            self.show(&known);
        }
        let Some(end) = at else { return };
        let days = days_left(end.as_second(), now.as_second());
        let told =
            known.warned.is_some_and(|at| now.duration_since(at) < SignedDuration::from_hours(24));
        if days < RENEW && !told {
            known.warned = Some(now);
            tracing::warn!(
                mailbox = self.mailbox, days, %end,
                "what the mailbox gets its tokens with ends soon, or has ended: renew the client secret or the certificate, or sign \
                 in again"
            );
        }
    }

    fn show(&self, known: &Known) {
        let Some(metrics) = self.metrics.get() else { return };
        if let Some(at) = known.token {
            metrics.token_expiry(&self.mailbox, at.as_second());
        }
        if let Some(at) = known.credential {
            metrics.credential_expiry(&self.mailbox, at.as_second());
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_shown_whenever_metrics_come() {
        let expiry = Expiry::new("a@example.com");
        let at = |second| Timestamp::from_second(second).ok();
        expiry.token_ends(at(1_800_000_000));
        let metrics = Metrics::new("");
        expiry.show_in(&metrics);
        expiry.credential_ends(at(1_900_000_000), Timestamp::UNIX_EPOCH);
        expiry.token_ends(at(1_800_003_600));
        let text = metrics.render();
        for line in [
            "smtp_uplift_token_expiry_timestamp_seconds{mailbox=\"a@example.com\"} 1800003600\n",
            "smtp_uplift_credential_expiry_timestamp_seconds{mailbox=\"a@example.com\"} 1900000000\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert_eq!((expiry.token(), expiry.credential()), (at(1_800_003_600), at(1_900_000_000)));
    }

    #[test]
    fn people_are_told_once_a_day_from_a_month_before() {
        let expiry = Expiry::new("a@example.com");
        let warned = |day: i64| {
            let now = Timestamp::from_second(day * 86_400 + 7).unwrap();
            expiry.credential_ends(Timestamp::from_second(100 * 86_400).ok(), now);
            expiry.known().warned
        };
        assert_eq!(warned(60), None);
        let first = warned(71);
        assert!(first.is_some());
        assert_eq!(warned(71), first);
        assert_ne!(warned(72), first);
    }
}
