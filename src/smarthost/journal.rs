//! What a mailbox hears from the smarthost: each reply is classified and counted, what a person has to heal is
//! said in the log with its remedy, and the last trouble is kept for `/status`.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;

use super::{
    LoginError, Target,
    classify::{self, Verdict, catalogue::Catalogue},
    connection::OpenError,
    expiry::Expiry,
};
use crate::{
    proto::{client::Stage, reply::Reply},
    telemetry::metrics::Metrics,
};

/// How long the log is spared the same alarm; `/status` has it all the while.
const AGAIN: Duration = Duration::from_secs(600);

/// The replies to one mailbox.
pub struct Journal {
    mailbox: String,
    catalogue: Arc<Catalogue>,
    metrics: Metrics,
    expiry: Arc<Expiry>,
    last: Mutex<Option<Trouble>>,
    /// When the log was last told that somebody has to act, by rule; no more of them than rules.
    told: Mutex<HashMap<String, Instant>>,
}

/// What went wrong last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Trouble {
    /// When.
    pub time: String,
    /// The smarthost's reply, or what happened where it said nothing.
    pub reply: String,
    /// The rule that knew it.
    pub rule: String,
    /// What it means.
    pub meaning: String,
    /// What to do, one step an item.
    pub remedy: Vec<String>,
}

impl Journal {
    /// An empty one for the mailbox of a target.
    pub fn new(target: &Target, metrics: Metrics) -> Arc<Self> {
        target.expiry.show_in(&metrics);
        // What ends soon is told of at once. One that cannot be read shows at the login.
        let _ = target.credential();
        Arc::new(Self {
            mailbox: target.mailbox.clone(),
            catalogue: Arc::clone(&target.catalogue),
            metrics,
            expiry: Arc::clone(&target.expiry),
            last: Mutex::default(),
            told: Mutex::default(),
        })
    }

    /// What a reply means.
    pub fn judge(&self, stage: Stage, reply: &Reply) -> Verdict {
        classify::reply(&self.catalogue, Some(stage), reply)
    }

    /// The smarthost has said something; what that means. After a refusal in the same flight the next replies
    /// only follow from it.
    pub(super) fn heard(&self, stage: Stage, reply: &Reply, follows: bool) -> Verdict {
        let verdict = self.judge(stage, reply);
        let (class, rule) = (verdict.class.as_str(), verdict.rule.as_str());
        self.metrics.upstream_reply(&self.mailbox, stage, reply, class, rule);
        if reply.code.get() >= 400 && !follows {
            self.note(stage, reply, &verdict);
        }
        verdict
    }

    fn note(&self, stage: Stage, reply: &Reply, verdict: &Verdict) {
        let rule = verdict.rule.as_str();
        if verdict.is_unknown() {
            tracing::warn!(mailbox = self.mailbox, %stage, reply = reply.to_string(), "no rule knows this reply");
        } else if verdict.needs_a_person() && self.is_news(rule) {
            let remedy = verdict.remedy.join(" ");
            tracing::error!(
                mailbox = self.mailbox, %stage, reply = reply.to_string(), rule, meaning = &*verdict.meaning, remedy,
                "somebody has to act"
            );
        }
        self.keep(Trouble {
            time: Timestamp::now().to_string(),
            reply: reply.to_string(),
            rule: rule.to_owned(),
            meaning: verdict.meaning.to_string(),
            remedy: verdict.remedy.to_vec(),
        });
    }

    /// Whether a rule has not been told of for a while: a device with a wrong sender asks for it at each message.
    fn is_news(&self, rule: &str) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let news = told.get(rule).is_none_or(|last| now.duration_since(*last) >= AGAIN);
        if news {
            told.insert(rule.to_owned(), now);
        }
        news
    }

    /// No connection came about, for another reason than a reply.
    pub(super) fn failed(&self, error: &OpenError) {
        let doctor =
            || vec!["smtp-uplift doctor walks the way to the smarthost step by step".to_owned()];
        let (rule, meaning, remedy) = match error {
            OpenError::Login(LoginError::Token(error)) => {
                ("token", error.message.clone(), error.remedy.clone())
            }
            error => ("", error.to_string(), doctor()),
        };
        self.keep(Trouble {
            time: Timestamp::now().to_string(),
            reply: String::new(),
            rule: rule.to_owned(),
            meaning,
            remedy,
        });
    }

    /// When the mailbox's access token ends, as far as that is known.
    pub fn token_expires(&self) -> Option<Timestamp> {
        self.expiry.token()
    }

    /// When what its tokens are asked for with ends, as far as that is known.
    pub fn credential_expires(&self) -> Option<Timestamp> {
        self.expiry.credential()
    }

    /// What went wrong last.
    pub fn last_error(&self) -> Option<Trouble> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn keep(&self, trouble: Trouble) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(trouble);
    }
}
