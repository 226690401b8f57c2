//! The access token of a mailbox: asked for once however many want it, renewed ahead of its end, and used until then
//! while renewing fails.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::{sync::watch, time::Instant};
use tokio_util::task::TaskTracker;

use super::{
    TokenError,
    cache::{Cache, Identity, Next},
    endpoint::{self, Endpoint, Form, Granted},
    proof::{Proof, unread},
    store::{SignIn, Store},
};
use crate::{
    config::{Config, Mailbox, OAuth, OAuthFlow},
    smarthost::{TargetError, expiry::Expiry},
};

/// How often at most a sign-in is written that could not be.
const WRITE_AGAIN: Duration = Duration::from_secs(10);
/// A refresh token that is not used is good for 90 days.
pub(super) const SIGN_IN_LASTS: SignedDuration = SignedDuration::from_hours(24 * 90);

/// The access tokens of a mailbox.
pub struct Tokens {
    pub(super) mailbox: String,
    pub(super) username: String,
    pub(super) oauth: OAuth,
    pub(super) endpoint: Endpoint,
    /// For the flows in which somebody signs in.
    pub(super) store: Store,
    expiry: Arc<Expiry>,
    state: Mutex<State>,
    /// Held while a sign-in is written.
    writing: Mutex<()>,
    /// What is being asked goes on when whoever wanted it has gone.
    tasks: TaskTracker,
    /// The cache's time begins here.
    born: Instant,
    hasher: RandomState,
}

/// An access token.
#[derive(Clone, Debug)]
pub struct AccessToken {
    /// What to log in with.
    pub secret: SecretString,
    /// When it ends, as far as the endpoint says.
    pub expires: Timestamp,
}

#[derive(Default)]
struct State {
    cache: Cache<AccessToken>,
    flight: Option<Flight>,
    /// The last failure that was logged and has lasted since.
    told: Option<String>,
    /// The sign-in that goes on though it is not written yet.
    unkept: Option<Unkept>,
}

/// A sign-in that is to be written.
#[derive(Clone)]
struct Unkept {
    new: SignIn,
    /// What lay in its place.
    former: Option<SignIn>,
    /// Why it was not written, once that was tried.
    why: Option<String>,
    /// When to try it again, in the cache's time.
    again: Duration,
}

/// A request that is under way.
struct Flight {
    identity: Identity,
    landed: watch::Receiver<Option<Landed>>,
}

type Landed = Result<AccessToken, TokenError>;

/// All that a token is asked for with, as it is now.
pub(super) struct Means {
    proof: Proof,
    /// `None` where the application acts for itself.
    sign_in: Option<SignIn>,
    /// Whether the sign-in is kept already, or only configured.
    kept: bool,
    /// What lies where sign-ins are kept.
    stored: Option<SignIn>,
}

impl Tokens {
    /// Those of a mailbox of a configuration; nobody is asked yet.
    pub fn new(
        config: &Config,
        mailbox: &Mailbox,
        oauth: &OAuth,
    ) -> Result<Arc<Self>, TargetError> {
        Self::with_expiry(config, mailbox, oauth, Arc::new(Expiry::new(&mailbox.address)))
    }

    pub(in crate::smarthost) fn with_expiry(
        config: &Config,
        mailbox: &Mailbox,
        oauth: &OAuth,
        expiry: Arc<Expiry>,
    ) -> Result<Arc<Self>, TargetError> {
        Ok(Arc::new(Self {
            mailbox: mailbox.address.clone(),
            username: mailbox.username.clone(),
            oauth: oauth.clone(),
            endpoint: Endpoint::new(&mailbox.smarthost)?,
            store: Store::new(&config.state_dir, &mailbox.address),
            expiry,
            state: Mutex::default(),
            writing: Mutex::default(),
            tasks: TaskTracker::new(),
            born: Instant::now(),
            hasher: RandomState::new(),
        }))
    }

    /// How tokens are had.
    pub fn oauth(&self) -> &OAuth {
        &self.oauth
    }

    /// A token that is good now.
    pub async fn token(self: &Arc<Self>) -> Result<AccessToken, TokenError> {
        loop {
            self.keep_again().await;
            let means = self.means().inspect_err(|error| self.tell(error))?;
            let identity = self.identity(&means);
            let landed = {
                let mut state = self.state();
                match state.cache.next(identity, self.born.elapsed()) {
                    Next::Use(token) => return Ok(token),
                    Next::Renew(token) => {
                        self.flight(&mut state, identity, means);
                        return Ok(token);
                    }
                    Next::Wait(error) => return Err(error),
                    Next::Ask => self.flight(&mut state, identity, means),
                }
            };
            let result = wait_for(landed.1).await;
            // A request that began with a former secret says nothing of this one.
            if landed.0 == identity {
                return result;
            }
        }
    }

    /// Asks for a token now, whatever is known: for a doctor. It is kept like any other.
    pub async fn request(self: &Arc<Self>) -> Result<AccessToken, TokenError> {
        let means = self.means()?;
        let identity = self.identity(&means);
        let (_, landed) = self.flight(&mut self.state(), identity, means);
        wait_for(landed).await
    }

    /// What tokens are had with is told by this: a renewed token is of the same credential, a new secret or sign-in
    /// another one.
    pub fn credential(&self) -> Result<u64, TokenError> {
        let means = self.means()?;
        self.expiry.credential_ends(self.ends(&means), Timestamp::now());
        Ok(self.credential_of(&means))
    }

    /// When the client secret, the certificate or the sign-in ends, as far as it is known.
    pub fn credential_expires(&self) -> Option<Timestamp> {
        self.ends(&self.means().ok()?)
    }

    /// The smarthost has refused a token. Returns whether the next one is asked for because of it.
    pub fn refused(&self, token: &str) -> bool {
        let now = self.born.elapsed();
        self.state().cache.refused(|held| held.secret.expose_secret() == token, now)
    }

    /// An operator's word: the endpoint is asked at the next occasion, whatever it said last.
    pub fn try_again(&self) {
        self.state().cache.try_again();
    }

    /// Joins the request that is under way, or begins one; returns whose it is, and where its end is told.
    fn flight(
        self: &Arc<Self>,
        state: &mut State,
        identity: Identity,
        means: Means,
    ) -> (Identity, watch::Receiver<Option<Landed>>) {
        // One that was dropped with its runtime never lands.
        if let Some(flight) =
            state.flight.as_ref().filter(|flight| flight.landed.has_changed().is_ok())
        {
            return (flight.identity, flight.landed.clone());
        }
        let (land, landed) = watch::channel(None);
        state.flight = Some(Flight { identity, landed: landed.clone() });
        let tokens = Arc::clone(self);
        self.tasks.spawn(async move {
            let result = tokens.ask(identity, means).await;
            tokens.state().flight = None;
            land.send_replace(Some(result));
        });
        (identity, landed)
    }

    async fn ask(self: &Arc<Self>, identity: Identity, means: Means) -> Landed {
        if let Some(mode) = self.store.open_mode().filter(|_| means.kept) {
            tracing::warn!(
                mailbox = self.mailbox,
                "{} has mode {mode:04o}: more users than its owner can get at the sign-in; chmod 600 it",
                self.store.path().display()
            );
        }
        let (asked, identity) = self.granted(identity, means).await;
        let asked = asked.map_err(|error| error.of(&self.mailbox));
        let now = self.born.elapsed();
        match asked {
            Ok((token, life)) => {
                let mut state = self.state();
                state.cache.got(token.clone(), life, identity, now);
                state.told = None;
                self.expiry.token_ends(Some(token.expires));
                tracing::info!(mailbox = self.mailbox, expires = %token.expires, "a new access token");
                Ok(token)
            }
            Err(error) => {
                self.state().cache.failed(error.clone(), identity, fastrand::f64(), now);
                self.tell(&error);
                Err(error)
            }
        }
    }

    /// One request, and with whom the next one is made. What the endpoint gives for that is kept before the token is
    /// looked at: the former refresh token may be spent.
    async fn granted(
        self: &Arc<Self>,
        identity: Identity,
        means: Means,
    ) -> (Result<(AccessToken, Duration), TokenError>, Identity) {
        let mut granted = match self.answered(&means).await {
            Ok(granted) => granted,
            Err(error) => return (Err(error), identity),
        };
        let means = self.rotated(means, &mut granted).await;
        let next = self.identity(&means);
        self.state().cache.succeeded(identity, next);
        self.expiry.credential_ends(self.ends(&means), Timestamp::now());
        let token = granted.token(&endpoint::host(&self.oauth.token_url)).map(|(secret, life)| {
            // In whole seconds, as people and metrics have it.
            let expires = Timestamp::now().as_second() + life.as_secs().cast_signed();
            let expires = Timestamp::from_second(expires).unwrap_or(Timestamp::MAX);
            (AccessToken { secret, expires }, life)
        });
        (token, next)
    }

    async fn answered(&self, means: &Means) -> Result<Granted, TokenError> {
        let mut form = Form::new(&self.oauth.client_id);
        match &means.sign_in {
            None => form.add("grant_type", "client_credentials"),
            Some(sign_in) => {
                form.add("grant_type", "refresh_token");
                form.add("refresh_token", &sign_in.refresh_token);
            }
        }
        form.add("scope", &self.oauth.scope);
        means.proof.add_to(&mut form, &self.oauth, Timestamp::now())?;
        let url = &self.oauth.token_url;
        self.endpoint.post(url, &form).await
    }

    /// Keeps the refresh token that came with an access token; in memory, where it cannot be written. One that
    /// somebody has signed in for meanwhile stays.
    async fn rotated(self: &Arc<Self>, means: Means, granted: &mut Granted) -> Means {
        let Some(used) = &means.sign_in else { return means };
        let next = granted.refresh_token.take().map(|next| next.0);
        let next = next.filter(|next| !next.expose_secret().is_empty());
        if next.is_none() && means.kept {
            return means;
        }
        let mut new = used.clone();
        if let Some(next) = next {
            new.refresh_token = next.expose_secret().to_owned();
            new.issued = Timestamp::now();
        }
        if let Some(scope) = granted.scope.take() {
            new.scope = scope;
        }
        let former = means.stored.clone();
        let unkept = Unkept { new: new.clone(), former, why: None, again: Duration::ZERO };
        self.state().unkept = Some(unkept);
        self.keep_again().await;
        Means { sign_in: Some(new), kept: true, ..means }
    }

    /// Writes the sign-in that is not written yet, if there is one and it is time to.
    async fn keep_again(self: &Arc<Self>) {
        let now = self.born.elapsed();
        if self.state().unkept.as_ref().is_some_and(|unkept| unkept.again <= now) {
            let tokens = Arc::clone(self);
            // Whatever becomes of it, the sign-in stays in memory until it is written.
            let _ = self.tasks.spawn_blocking(move || tokens.keep(now)).await;
        }
    }

    fn keep(&self, now: Duration) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let due = self.state().unkept.clone().filter(|unkept| unkept.again <= now);
        let Some(Unkept { new, former, why, .. }) = due else { return };
        let written = self.store.replace(former.as_ref(), &new);
        let mut state = self.state();
        // The next one may have come meanwhile; it is written next.
        let Some(unkept) = state.unkept.as_mut().filter(|unkept| unkept.new == new) else { return };
        match written {
            Ok(written) => {
                state.unkept = None;
                if !written {
                    tracing::info!(
                        mailbox = self.mailbox,
                        "somebody has signed in meanwhile: that sign-in is used"
                    );
                } else if why.is_some() {
                    tracing::info!(mailbox = self.mailbox, "the sign-in is written now");
                }
            }
            Err(error) => {
                unkept.again = now + WRITE_AGAIN;
                if unkept.why.replace(error.message.clone()).as_ref() != Some(&error.message) {
                    tracing::warn!(
                        mailbox = self.mailbox,
                        remedy = error.remedy.join(". "),
                        "{}; the relay goes on with the new one in memory, and who restarts it before it is written has to \
                         sign in again",
                        error.message.trim_start_matches("no token: ")
                    );
                }
            }
        }
    }

    /// The sign-in in memory that could not be written, unless there is a newer one.
    fn unkept(&self, found: &Result<Option<SignIn>, TokenError>) -> Option<Unkept> {
        let unkept = self.state().unkept.clone()?;
        let goes_on = match found {
            Ok(found) => {
                *found == unkept.former
                    || found.as_ref().is_some_and(|found| found.id == unkept.new.id)
            }
            Err(_) => true,
        };
        goes_on.then_some(unkept)
    }

    /// What a token is asked for with, read anew.
    fn means(&self) -> Result<Means, TokenError> {
        let proof = Proof::load(&self.oauth)?;
        if self.oauth.flow == OAuthFlow::ClientCredentials {
            return Ok(Means { proof, sign_in: None, kept: false, stored: None });
        }
        let configured = self.configured()?;
        let of_it = |kept: &SignIn| match &configured {
            None => true,
            // What descends from a former one gives way to the one that is configured now.
            Some(configured) => kept.configured == configured.configured,
        };
        let read = self.store.read();
        let unkept = self.unkept(&read).filter(|unkept| of_it(&unkept.new));
        let (kept, stored) = match (read, unkept) {
            (Ok(stored), Some(unkept)) => (Some(unkept.new), stored),
            (Err(_), Some(unkept)) => (Some(unkept.new), unkept.former),
            (Ok(stored), None) => (stored.clone().filter(of_it), stored),
            // Whatever it was, there is another one.
            (Err(_), None) if configured.is_some() => (None, None),
            (Err(error), None) => return Err(error),
        };
        match (kept, configured) {
            (Some(kept), _) if kept.client_id != self.oauth.client_id => {
                Err(self.sign_in_first(&format!(
                    "the sign-in in {} was made for another client_id",
                    self.store.path().display()
                )))
            }
            (Some(kept), _) => Ok(Means { proof, sign_in: Some(kept), kept: true, stored }),
            (None, Some(configured)) => {
                Ok(Means { proof, sign_in: Some(configured), kept: false, stored })
            }
            (None, None) => Err(self.sign_in_first("nobody has signed in yet")),
        }
    }

    fn sign_in_first(&self, why: &str) -> TokenError {
        TokenError::local(
            format!("no token: {why} for {}", self.mailbox),
            &format!("Sign in: smtp-uplift login {}", self.mailbox),
        )
    }

    /// The sign-in of a `refresh_token` that is configured.
    fn configured(&self) -> Result<Option<SignIn>, TokenError> {
        let Some(secret) = &self.oauth.refresh_token else { return Ok(None) };
        let token = secret.load().map_err(|error| unread("refresh_token", secret, &error))?;
        let print = fingerprint(token.expose_secret());
        Ok(Some(SignIn {
            id: format!("configured {print}"),
            client_id: self.oauth.client_id.clone(),
            refresh_token: token.expose_secret().to_owned(),
            issued: Timestamp::now(),
            scope: self.oauth.scope.clone(),
            who: None,
            configured: Some(print),
        }))
    }

    /// The fingerprint of the `refresh_token` that is configured now, for a sign-in that takes its place.
    pub(super) fn configured_print(&self) -> Option<String> {
        self.configured().ok()??.configured
    }

    fn identity(&self, means: &Means) -> Identity {
        let sign_in = means.sign_in.as_ref();
        Identity {
            subject: self.hasher.hash_one(sign_in.map(|sign_in| &sign_in.id)),
            proof: self
                .hasher
                .hash_one((&means.proof, sign_in.map(|sign_in| &sign_in.refresh_token))),
        }
    }

    fn credential_of(&self, means: &Means) -> u64 {
        self.hasher.hash_one((&means.proof, means.sign_in.as_ref().map(|sign_in| &sign_in.id)))
    }

    fn ends(&self, means: &Means) -> Option<Timestamp> {
        let secret =
            self.oauth.client_secret_expires.filter(|_| matches!(means.proof, Proof::Secret(_)));
        let secret = secret.and_then(|date| date.to_zoned(jiff::tz::TimeZone::UTC).ok());
        let sign_in = means.sign_in.as_ref().filter(|_| means.kept);
        [
            secret.map(|zoned| zoned.timestamp()),
            means.proof.ends(),
            sign_in.and_then(|sign_in| sign_in.issued.checked_add(SIGN_IN_LASTS).ok()),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The log is told of a failure when it begins, and of each that the endpoint has a hand in.
    fn tell(&self, error: &TokenError) {
        let said = error.to_string();
        let known = self.state().told.replace(said.clone()).is_some_and(|told| told == said);
        if !(known && error.is_local()) {
            tracing::warn!(
                mailbox = self.mailbox,
                remedy = error.remedy.join(". "),
                "{}",
                error.message
            );
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn wait_for(mut landed: watch::Receiver<Option<Landed>>) -> Landed {
    match landed.wait_for(Option::is_some).await {
        Ok(result) => result.clone().unwrap_or_else(|| Err(interrupted())),
        Err(_) => Err(interrupted()),
    }
}

fn interrupted() -> TokenError {
    TokenError::passing("no token: the request for it was interrupted", "Try again")
}

/// Tells one secret from another, in a file too.
fn fingerprint(secret: &str) -> String {
    let digest = openssl::sha::sha256(secret.as_bytes());
    digest.iter().take(8).map(|octet| format!("{octet:02x}")).collect()
}
