//! The way in to the smarthost: connects and logs in, one login at a time while none has succeeded with the mailbox's
//! secret, and none right after a refusal. A wrong password is presented once.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::{sync::Semaphore, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    Credential, Target,
    breaker::{Breaker, State},
    classify::class::Retry,
    connection::{Connection, OpenError},
    journal::Journal,
    pool::LeaseError,
};
use crate::{
    proto::{
        client::{Refusal, Stage},
        reply::Reply,
        sasl::Login,
        session::SmarthostOffer,
    },
    telemetry::{
        metrics::Metrics,
        transcript::{Transcripts, Voice},
    },
};

/// Lets connections of one mailbox come about.
pub struct Gate {
    /// Where to, and as whom.
    pub target: Target,
    /// What the smarthost says, and what it means.
    pub journal: Arc<Journal>,
    metrics: Metrics,
    transcripts: Arc<Transcripts>,
    breaker: Mutex<Breaker>,
    /// What the smarthost said to the last login that it refused.
    refusal: Mutex<Option<Box<Reply>>>,
    /// The breaker's time begins here.
    born: Instant,
    /// Held by the one login that may run while none has succeeded yet.
    unproven: Semaphore,
    offer: Mutex<SmarthostOffer>,
    /// Why there is nothing to log in with, if somebody has to act.
    no_secret: Mutex<Option<String>>,
}

/// Why a connection did not come about.
struct Refused {
    error: LeaseError,
    /// Whoever logs in is refused, and not only for now.
    by_login: bool,
}

impl From<LeaseError> for Refused {
    fn from(error: LeaseError) -> Self {
        Self { error, by_login: false }
    }
}

impl Gate {
    /// A gate that nobody has gone through.
    pub fn new(target: Target, metrics: Metrics, transcripts: Arc<Transcripts>) -> Self {
        let offer = SmarthostOffer { size: target.message_size, ..SmarthostOffer::default() };
        Self {
            journal: Journal::new(&target, metrics.clone()),
            target,
            metrics,
            transcripts,
            breaker: Mutex::default(),
            refusal: Mutex::default(),
            born: Instant::now(),
            unproven: Semaphore::new(1),
            offer: Mutex::new(offer),
            no_secret: Mutex::default(),
        }
    }

    /// What the smarthost offered when it was last seen.
    pub fn offer(&self) -> SmarthostOffer {
        *self.offer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the mailbox's login fares.
    pub fn state(&self) -> State {
        self.breaker().state()
    }

    /// Why nobody can log in until somebody has acted, in words.
    pub fn trouble(&self) -> Option<String> {
        let no_secret = self.no_secret().clone();
        let refused = self.state() == State::Refused;
        no_secret.or_else(|| refused.then(|| "its login was refused".to_owned()))
    }

    /// The secret that was seen last.
    pub fn credential(&self) -> Credential {
        self.breaker().credential()
    }

    /// An operator's word: the next login is tried, whatever the last one met with.
    pub fn try_again(&self) {
        self.breaker().try_again();
        self.target.try_again();
    }

    /// Whether a login would be tried now.
    pub fn admits(&self) -> bool {
        self.breaker().admits(self.born.elapsed()).is_ok()
    }

    /// Whether a connection has logged in with what the mailbox has now.
    pub fn knows(&self, credential: Credential) -> bool {
        self.breaker().is_of(credential)
    }

    /// Looks at the mailbox's secret: whether it has changed since something was known of it. Then it is unproven.
    pub fn look(&self) -> bool {
        // One that cannot be read just now shows at the next login.
        self.target.credential().is_ok_and(|credential| self.present(credential))
    }

    /// Connects and logs in; `changed` is told when the secret is not what it was.
    pub async fn open(
        &self,
        stopping: &CancellationToken,
        changed: impl Fn(),
    ) -> Result<(Connection, Credential), LeaseError> {
        let mut secret = self.secret(&changed).await?;
        let proven = self.breaker().is_proven(self.born.elapsed());
        let _alone = if proven { None } else { self.unproven.acquire().await.ok() };
        if !proven {
            // Whoever had the turn before may have learnt something, and the secret may have changed.
            secret = self.secret(&changed).await?;
        }
        let (login, credential) = secret;
        match self.attempt(login.clone(), credential, stopping).await {
            // A token may have been taken back before its time: another one, once.
            Err(Refused { by_login: true, .. }) if self.target.refused(&login) => {
                let (login, credential) = self.secret(&changed).await?;
                self.breaker().once_more();
                self.attempt(login, credential, stopping).await
            }
            opened => opened,
        }
        .map_err(|refused| refused.error)
    }

    async fn attempt(
        &self,
        login: Login,
        credential: Credential,
        stopping: &CancellationToken,
    ) -> Result<(Connection, Credential), Refused> {
        let admitted = self.breaker().admits(self.born.elapsed());
        admitted.map_err(|left| LeaseError::LoginRefused(left, self.refusal().clone()))?;
        let transcript = self.transcripts.begin();
        let is_token = matches!(login, Login::Token(_));
        let opening = Connection::open(&self.target, login, &self.journal, &transcript);
        let Some(result) = stopping.run_until_cancelled(opening).await else {
            return Err(LeaseError::Stopping.into());
        };
        let mut by_login = false;
        let outcome = result.as_ref().map_or_else(|error| error.stage().as_str(), |_| "ok");
        match &result {
            Ok(connection) => {
                self.learn(connection);
                self.breaker().accepted(credential, self.born.elapsed());
            }
            Err(OpenError::Refused(Refusal::Reply(Stage::Auth, reply))) => {
                let verdict = self.journal.judge(Stage::Auth, reply);
                *self.refusal() = Some(Box::new(reply.clone()));
                // What passes is about the server, not about who logs in.
                by_login = verdict.retry != Retry::Yes;
                self.breaker().refused(credential, &verdict, is_token, self.born.elapsed());
            }
            Err(_) => {}
        }
        let mailbox = &self.target.mailbox;
        self.metrics.upstream_connect(mailbox, outcome);
        if let Err(error) = &result {
            transcript.say(Voice::Note, error);
            if !matches!(error, OpenError::Refused(Refusal::Reply(..))) {
                self.journal.failed(error);
            }
        }
        self.transcripts.keep(mailbox, &transcript, result.is_err());
        result
            .map(|connection| (connection, credential))
            .map_err(|error| Refused { error: failed(error), by_login })
    }

    /// What to log in with now.
    async fn secret(&self, changed: impl Fn()) -> Result<(Login, Credential), LeaseError> {
        let (login, credential) = match self.target.login().await {
            Ok(login) => login,
            Err(error) => {
                // So that it is told when it changes.
                if self.look() {
                    changed();
                }
                let lasts = (!error.is_temporary()).then(|| error.to_string());
                *self.no_secret() = lasts;
                let error = OpenError::from(error);
                self.metrics.upstream_connect(&self.target.mailbox, error.stage().as_str());
                self.journal.failed(&error);
                return Err(failed(error));
            }
        };
        *self.no_secret() = None;
        if self.present(credential) {
            changed();
        }
        Ok((login, credential))
    }

    /// A secret that has changed is unproven.
    fn present(&self, credential: Credential) -> bool {
        let changed = self.breaker().present(credential);
        if changed {
            tracing::info!(mailbox = self.target.mailbox, "the mailbox's secret has changed");
        }
        changed
    }

    fn learn(&self, connection: &Connection) {
        let capabilities = connection.capabilities();
        let own = self.target.message_size;
        *self.offer.lock().unwrap_or_else(PoisonError::into_inner) = SmarthostOffer {
            size: capabilities.size.into_iter().chain(own).min(),
            smtputf8: capabilities.smtputf8,
        };
    }

    fn no_secret(&self) -> MutexGuard<'_, Option<String>> {
        self.no_secret.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refusal(&self) -> MutexGuard<'_, Option<Box<Reply>>> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn failed(error: OpenError) -> LeaseError {
    LeaseError::Open(Box::new(error))
}
