//! A stand-in for Microsoft's identity platform (`login.microsoftonline.com`): one tenant with one application, on
//! loopback and without TLS. It gives tokens by all the grants that the relay asks for, checks what is shown to it
//! as strictly as the real one, and misbehaves when told to.
//!
//! The stand-in for Exchange Online takes XOAUTH2 with its tokens only: see [`Authority::accepts`].

mod assertion;
mod grant;
mod http;
mod refusal;
mod token;

use std::{
    collections::VecDeque,
    io,
    net::{Ipv4Addr, SocketAddr},
    ops::Deref,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use openssl::x509::X509;
use serde::Deserialize;
use tokio::{net::TcpListener, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::token::Signer;
use crate::transport::certificate::{self, CertificateError};

/// How many codes and tokens of each kind are known at a time; the oldest are forgotten.
const KNOWN: usize = 1_000;
/// How long a refresh token that was used works once more: its successor may have been lost on the way.
const GRACE: Duration = Duration::from_secs(60);

/// What the identity platform knows, as the section `[identity]` of a scenario file says it.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tenant {
    /// Where it listens; port 0 for a free one.
    pub listen: SocketAddr,
    /// The only tenant, by its domain; its id is [`TENANT_ID`].
    pub tenant: String,
    /// The only application.
    pub client_id: String,
    /// The application's secret; absent: it has none.
    pub client_secret: Option<String>,
    /// The application's certificate (PEM); absent: it has none.
    pub certificate: Option<PathBuf>,
    /// The mailboxes that the application may use; empty: any.
    pub users: Vec<String>,
    /// Seconds that an access token is good for.
    pub lifetime: u32,
    /// Seconds between two questions for a device code.
    pub interval: u32,
    /// Seconds that a device code is good for.
    pub device_code_lifetime: u32,
    /// Seconds by which its clock is ahead.
    pub clock: i32,
    /// What the administrator has done wrong.
    pub mistake: Option<Mistake>,
    /// What goes wrong at the endpoint itself.
    pub fault: Option<Fault>,
}

/// The id of the only tenant.
pub const TENANT_ID: &str = "72f988bf-0000-4000-8000-5a9db0c5a9db";

/// A mistake that administrators make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mistake {
    /// The application has no `SMTP.SendAsApp`, or nobody has consented to it: the token does not say it.
    MissingRole,
    /// Exchange's service principal was made with the object id of the app registration: the token is good, and
    /// SMTP refuses it.
    ObjectId,
    /// The secret's id was copied, not its value.
    WrongSecret,
    /// The secret has ended.
    ExpiredSecret,
    /// The certificate has ended.
    ExpiredCertificate,
    /// There is no such tenant.
    WrongTenant,
    /// Nobody has consented to what the application wants to do on behalf of people.
    NoConsent,
}

/// What goes wrong at the endpoint, whatever is asked.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// Whoever connects is cut off.
    Down,
    /// The answer is late by so many seconds.
    Slow(f64),
    /// A page for people, with 200.
    Html,
    /// Elsewhere, where the request would be granted.
    Redirect,
    /// 429, to be tried again after so many seconds.
    TooMany(u64),
    /// 503, to be tried again after so many seconds.
    Unavailable(u64),
    /// JSON that is no token.
    WrongJson,
    /// 10 MB.
    Huge,
}

impl Default for Tenant {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            tenant: "contoso.onmicrosoft.com".to_owned(),
            client_id: "6731de76-14a6-49ae-97bc-6eba6914391e".to_owned(),
            client_secret: Some("rehearsal".to_owned()),
            certificate: None,
            users: Vec::new(),
            lifetime: 3_599,
            interval: 5,
            device_code_lifetime: 900,
            clock: 0,
            mistake: None,
            fault: None,
        }
    }
}

/// Why the stand-in does not start.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// The address cannot be bound.
    #[error("cannot listen on {0}: {1}")]
    Bind(SocketAddr, io::Error),
    /// The application's certificate cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// No key to sign tokens with.
    #[error("cannot make a key for tokens: {0}")]
    Key(String),
}

/// The stand-in, running. Dropping it stops it.
pub struct TokenIssuer {
    authority: Arc<Authority>,
    stop: CancellationToken,
    tracker: TaskTracker,
}

/// What decides who gets a token, and what one is worth.
pub struct Authority {
    tenant: Tenant,
    address: SocketAddr,
    certificate: Option<X509>,
    signer: Signer,
    requests: Arc<AtomicU64>,
    known: Mutex<Known>,
}

/// What changes.
struct Known {
    mistake: Option<Mistake>,
    fault: Option<Fault>,
    tokens: VecDeque<Issued>,
    refresh_tokens: VecDeque<RefreshToken>,
    codes: VecDeque<Code>,
    device_codes: VecDeque<DeviceCode>,
    /// The `jti` of each assertion that was seen.
    assertions: VecDeque<String>,
}

/// An access token that is out.
struct Issued {
    token: String,
    /// On whose behalf; `None`: the application's own.
    user: Option<String>,
    /// Whether it allows to send mail.
    sends: bool,
    ends: Instant,
}

struct RefreshToken {
    token: String,
    user: String,
    /// When it was used first.
    used: Option<Instant>,
}

/// What a browser brings back (RFC 6749 section 4.1.2).
struct Code {
    code: String,
    user: String,
    redirect_uri: String,
    /// RFC 7636 section 4.2.
    challenge: String,
}

/// RFC 8628.
struct DeviceCode {
    device_code: String,
    user_code: String,
    answer: Answer,
    ends: Instant,
    interval: Duration,
    asked: Option<Instant>,
}

/// What was said to a device code.
enum Answer {
    None,
    Yes { user: String },
    No,
}

impl TokenIssuer {
    /// Starts where the tenant's settings say.
    pub async fn start(tenant: Tenant) -> Result<Self, IssuerError> {
        let listen = tenant.listen;
        let bind = |error| IssuerError::Bind(listen, error);
        let socket = TcpListener::bind(listen).await.map_err(bind)?;
        let address = socket.local_addr().map_err(bind)?;
        let authority = Arc::new(Authority::new(tenant, address)?);
        let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
        tracker.spawn(http::serve(socket, Arc::clone(&authority), stop.clone(), tracker.clone()));
        Ok(Self { authority, stop, tracker })
    }

    /// What it decides by, to be shared with whoever takes its tokens.
    pub fn authority(&self) -> &Arc<Authority> {
        &self.authority
    }

    /// Closes every connection and the door.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

impl Deref for TokenIssuer {
    type Target = Authority;

    fn deref(&self) -> &Authority {
        &self.authority
    }
}

impl Drop for TokenIssuer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Authority {
    /// One that is asked by other means than HTTP; the address only stands in its URLs.
    pub fn new(tenant: Tenant, address: SocketAddr) -> Result<Self, IssuerError> {
        let path = tenant.certificate.as_deref();
        let chain = path.map(certificate::read_chain).transpose()?;
        let known = Known {
            mistake: tenant.mistake,
            fault: tenant.fault,
            tokens: VecDeque::new(),
            refresh_tokens: VecDeque::new(),
            codes: VecDeque::new(),
            device_codes: VecDeque::new(),
            assertions: VecDeque::new(),
        };
        Ok(Self {
            tenant,
            address,
            certificate: chain.and_then(|chain| chain.into_iter().next()),
            signer: Signer::new()?,
            requests: Arc::default(),
            known: Mutex::new(known),
        })
    }

    /// What it knows of the tenant.
    pub fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where tokens are had.
    pub fn token_url(&self) -> String {
        format!("http://{}/{}/oauth2/v2.0/token", self.address, self.tenant.tenant)
    }

    /// Whom Dovecot asks about a token (RFC 7662).
    pub fn introspection_url(&self) -> String {
        format!("http://{}/introspect", self.address)
    }

    /// The public key of its tokens, PEM.
    pub fn public_key(&self) -> &[u8] {
        self.signer.public_key()
    }

    /// Token requests so far, whatever came of them.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }

    pub(super) fn counter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.requests)
    }

    /// From now on this goes wrong at the endpoint, or nothing.
    pub fn fail(&self, fault: Option<Fault>) {
        self.known().fault = fault;
    }

    /// From now on the administrator has made this mistake, or none.
    pub fn mistake(&self, mistake: Option<Mistake>) {
        self.known().mistake = mistake;
    }

    /// No access token that is out is taken any more.
    pub fn revoke(&self) {
        self.known().tokens.clear();
    }

    /// No refresh token that is out is taken any more: too old, or somebody has changed a password.
    pub fn revoke_refresh_tokens(&self) {
        self.known().refresh_tokens.clear();
    }

    /// Somebody has signed in for a device code. Returns whether there is such a code.
    pub fn approve(&self, user_code: &str, user: &str) -> bool {
        self.answer(user_code, Answer::Yes { user: user.to_owned() })
    }

    /// Somebody has refused a device code. Returns whether there is such a code.
    pub fn decline(&self, user_code: &str) -> bool {
        self.answer(user_code, Answer::No)
    }

    /// Whether SMTP takes this token for this mailbox.
    pub fn accepts(&self, token: &str, user: &str) -> bool {
        let known = self.known();
        let issued = known.tokens.iter().find(|issued| issued.token == token);
        known.mistake != Some(Mistake::ObjectId)
            && issued.is_some_and(|issued| {
                issued.sends
                    && issued.ends > Instant::now()
                    && match &issued.user {
                        Some(holder) => holder.eq_ignore_ascii_case(user),
                        None => self.may_use(user),
                    }
            })
    }

    fn may_use(&self, user: &str) -> bool {
        let users = &self.tenant.users;
        users.is_empty() || users.iter().any(|allowed| allowed.eq_ignore_ascii_case(user))
    }

    /// Whose mailbox is meant unless it is said.
    pub fn somebody(&self) -> &str {
        self.tenant.users.first().map_or("scanner@example.com", String::as_str)
    }

    fn answer(&self, user_code: &str, answer: Answer) -> bool {
        let mut known = self.known();
        let found = known.device_codes.iter_mut().find(|code| code.user_code == user_code);
        found.map(|code| code.answer = answer).is_some()
    }

    /// Seconds of its clock since the epoch.
    fn now(&self) -> i64 {
        jiff::Timestamp::now().as_second() + i64::from(self.tenant.clock)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn keep<T>(known: &mut VecDeque<T>, new: T) {
    if known.len() >= KNOWN {
        known.pop_front();
    }
    known.push_back(new);
}

/// Something that nobody guesses in a rehearsal.
fn random(length: usize) -> String {
    std::iter::repeat_with(fastrand::alphanumeric).take(length).collect()
}
