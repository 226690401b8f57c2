//! A stand-in for Exchange Online, and for the devices on the other side: for `demo`, `sandbox`, tests and
//! benches. It says what Exchange Online says, and misbehaves when told to: see [`scenario`].
//!
//! It listens on a socket, or is reached in memory: then a test may stop the clock, which runs on while a socket
//! is in flight.
//!
//! It has Exchange Online's limits, if the scenario says so, for each user who logs in and not for all together: so many
//! connections at once (432 at the dot), and so many messages in any minute (421 at MAIL). What it saw can be read:
//! [`Sandbox::submissions`] has the time of each MAIL and of the answer to its dot, [`Sandbox::most_open`] the most
//! connections that a user had at once, each counted until it was closed.

pub mod device;
pub mod identity;
mod record;
pub mod scenario;
mod session;

use std::{
    collections::VecDeque,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use openssl::ssl::SslVersion;
use tokio::{sync::Notify, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::record::Submission;
use self::{
    identity::{Authority, IssuerError, TokenIssuer},
    record::{Record, Seat},
    scenario::{Scenario, Script, Tls},
};
use crate::{
    policy::TlsProfile,
    transport::{
        certificate::{CertificateError, Identity},
        dial::{DialError, Dialler},
        listener::Listener,
        server_tls::{ServerTls, ServerTlsError},
        stream::BoxIo,
    },
};

/// Octets of mail data that are kept, over all messages; older messages go.
const KEPT: usize = 64 * 1024 * 1024;
/// Octets on their way in each direction of a connection in memory, as in a socket's buffer.
const IN_FLIGHT: usize = 64 * 1024;
/// The names that its certificate is made for.
const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
/// The address of both ends where there are none.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A running stand-in. Dropping it stops it.
pub struct Sandbox {
    address: SocketAddr,
    certificate: Vec<u8>,
    server: Arc<Server>,
    tracker: TaskTracker,
    issuer: Option<TokenIssuer>,
}

/// A message that was accepted.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The reverse-path.
    pub from: String,
    /// The forward-paths.
    pub recipients: Vec<String>,
    /// The mail data in wire form, without the final dot, as far as they are kept.
    pub data: Bytes,
    /// How many octets they were.
    pub size: u64,
    /// SHA-256 of what came behind the header section, in wire form.
    pub body: [u8; 32],
    /// Who was logged in.
    pub user: String,
    /// When it was accepted.
    pub at: Instant,
}

/// What was seen so far.
#[derive(Debug, Default)]
pub struct Counts {
    /// Connections that are open.
    pub open: AtomicUsize,
    /// The most that were open at once.
    pub most_open: AtomicUsize,
    /// Connections in all.
    pub connections: AtomicU64,
    /// Logins that were accepted.
    pub logins: AtomicU64,
    /// Logins that were refused.
    pub refused_logins: AtomicU64,
    /// Mail data that ended without a dot.
    pub cut: AtomicU64,
    /// Messages that were accepted.
    pub accepted: AtomicU64,
    /// Token requests, whatever came of them.
    pub token_requests: Arc<AtomicU64>,
}

/// Why the stand-in does not start.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The address cannot be bound.
    #[error("cannot listen on {0}: {1}")]
    Bind(SocketAddr, io::Error),
    /// No certificate.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// No TLS.
    #[error(transparent)]
    Tls(#[from] ServerTlsError),
    /// Nobody who gives tokens.
    #[error(transparent)]
    Issuer(#[from] IssuerError),
}

struct Server {
    script: Script,
    /// Who says what a token is worth; `None`: the scenario.
    authority: Option<Arc<Authority>>,
    tls: ServerTls,
    counts: Counts,
    record: Record,
    kept: Mutex<VecDeque<Delivery>>,
    news: Notify,
    /// Nobody is let in.
    refuses: AtomicBool,
    /// Cancelled to close what is open; then there is a new one.
    cut: Mutex<CancellationToken>,
    stop: CancellationToken,
}

impl Sandbox {
    /// Starts on an address, port 0 for a free one, with a certificate for `localhost` and its addresses.
    pub async fn start(address: SocketAddr, scenario: Scenario) -> Result<Self, SandboxError> {
        let identity = Identity::make(&NAMES)?;
        Self::start_as(address, scenario, &identity).await
    }

    /// Starts with a certificate of the caller's.
    pub async fn start_as(
        address: SocketAddr,
        scenario: Scenario,
        identity: &Identity,
    ) -> Result<Self, SandboxError> {
        let socket =
            Listener::bind(address).await.map_err(|error| SandboxError::Bind(address, error))?;
        let issuer = match scenario.identity.clone() {
            Some(tenant) => Some(TokenIssuer::start(tenant).await?),
            None => None,
        };
        let authority = issuer.as_ref().map(|issuer| Arc::clone(issuer.authority()));
        let mut sandbox = Self::new(socket.address(), scenario, identity, authority)?;
        sandbox.issuer = issuer;
        sandbox.tracker.spawn(accept(socket, Arc::clone(&sandbox.server), sandbox.tracker.clone()));
        Ok(sandbox)
    }

    /// One without a socket, to be reached by [`Sandbox::connect`] and [`Sandbox::dialler`].
    pub fn in_memory(scenario: Scenario) -> Result<Self, SandboxError> {
        Self::in_memory_as(scenario, &Identity::make(&NAMES)?)
    }

    /// One without a socket and with a certificate of the caller's: making one takes longer than all the rest.
    pub fn in_memory_as(scenario: Scenario, identity: &Identity) -> Result<Self, SandboxError> {
        let tenant = scenario.identity.clone();
        let authority = tenant.map(|tenant| Authority::new(tenant, NOWHERE)).transpose()?;
        Self::new(NOWHERE, scenario, identity, authority.map(Arc::new))
    }

    fn new(
        address: SocketAddr,
        scenario: Scenario,
        identity: &Identity,
        authority: Option<Arc<Authority>>,
    ) -> Result<Self, SandboxError> {
        let certificate = identity.certificate.to_pem().map_err(CertificateError::Make)?;
        let token_requests = authority.as_ref().map(|authority| authority.counter());
        let counts =
            Counts { token_requests: token_requests.unwrap_or_default(), ..Counts::default() };
        let server = Arc::new(Server {
            tls: server_tls(scenario.tls, identity)?,
            script: Script::new(scenario),
            authority,
            counts,
            record: Record::default(),
            kept: Mutex::default(),
            news: Notify::new(),
            refuses: AtomicBool::new(false),
            cut: Mutex::default(),
            stop: CancellationToken::new(),
        });
        Ok(Self { address, certificate, server, tracker: TaskTracker::new(), issuer: None })
    }

    /// A connection in memory, unless it refuses them.
    pub fn connect(&self) -> io::Result<BoxIo> {
        Arc::clone(&self.server).connect(&self.tracker)
    }

    /// A way to it in memory.
    pub fn dialler(&self) -> Dialler {
        let (server, tracker) = (Arc::clone(&self.server), self.tracker.clone());
        Dialler::Fn(Arc::new(move || {
            let connected = Arc::clone(&server).connect(&tracker);
            let dialled = connected.map(|io| (io, NOWHERE)).map_err(|error| DialError::Connect {
                host: "the sandbox".to_owned(),
                tried: vec![format!("in memory: {error}")],
            });
            Box::pin(std::future::ready(dialled))
        }))
    }

    /// From now on nobody is let in, or everybody again; at a socket whoever comes is closed at once. What is open
    /// stays: see [`Sandbox::cut`].
    pub fn refuse(&self, refuses: bool) {
        self.server.refuses.store(refuses, Ordering::SeqCst);
    }

    /// From now on nothing goes wrong, whatever the scenario or an address asks for. What hangs already hangs on.
    pub fn mend(&self) {
        self.server.script.mend();
        if let Some(authority) = self.authority() {
            authority.fail(None);
            authority.mistake(None);
        }
    }

    /// Closes every connection that is open, wherever its dialogue is.
    pub fn cut(&self) {
        let mut cut = self.server.cut.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *cut).cancel();
    }

    /// Where it listens; nowhere if it is in memory.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its certificate in PEM form, for the relay's `ca_file`.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// Who gives the tokens that it takes, if the scenario has somebody. In memory it has no endpoint.
    pub fn authority(&self) -> Option<&Authority> {
        self.server.authority.as_deref()
    }

    /// What was seen so far.
    pub fn counts(&self) -> &Counts {
        &self.server.counts
    }

    /// What was handed in, or begun to be, oldest first: the last 100,000.
    pub fn submissions(&self) -> Vec<Submission> {
        self.server.record.all()
    }

    /// The most connections that a user had at once; a connection is a user's from its login until it is closed.
    pub fn most_open(&self, user: &str) -> usize {
        self.server.record.open(user).1
    }

    /// The messages that are kept, oldest first.
    pub fn deliveries(&self) -> Vec<Delivery> {
        self.server.kept().iter().cloned().collect()
    }

    /// Those of the kept messages that came after so many, and how many that makes.
    pub fn deliveries_after(&self, count: u64) -> (Vec<Delivery>, u64) {
        let kept = self.server.kept();
        let accepted = self.server.counts.accepted.load(Ordering::SeqCst);
        let new = usize::try_from(accepted - count).unwrap_or(usize::MAX).min(kept.len());
        (kept.iter().skip(kept.len() - new).cloned().collect(), accepted)
    }

    /// Waits until so many messages were accepted.
    pub async fn delivered(&self, count: u64) {
        loop {
            let news = self.server.news.notified();
            if self.server.counts.accepted.load(Ordering::SeqCst) >= count {
                return;
            }
            news.await;
        }
    }

    /// Closes every connection and the door: the smarthost is gone.
    pub async fn stop(mut self) {
        if let Some(issuer) = self.issuer.take() {
            issuer.stop().await;
        }
        self.server.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.server.stop.cancel();
    }
}

fn server_tls(tls: Tls, identity: &Identity) -> Result<ServerTls, ServerTlsError> {
    match tls {
        Tls::ExchangeOnline => ServerTls::new(TlsProfile::Modern, identity),
        Tls::OnPremises => {
            ServerTls::outdated(SslVersion::TLS1_2, "AES128-SHA256:AES256-SHA:AES128-SHA", identity)
        }
        Tls::TooOld => {
            ServerTls::outdated(SslVersion::TLS1_1, "AES256-SHA:AES128-SHA:@SECLEVEL=0", identity)
        }
    }
}

async fn accept(socket: Listener, server: Arc<Server>, tracker: TaskTracker) {
    let stop = server.stop.clone();
    while let Some((stream, peer)) = stop.run_until_cancelled(socket.accept()).await {
        if !server.refuses.load(Ordering::SeqCst) {
            tracker.spawn(Arc::clone(&server).serve(Box::new(stream), peer.ip()));
        }
    }
}

impl Server {
    fn connect(self: Arc<Self>, tracker: &TaskTracker) -> io::Result<BoxIo> {
        if self.refuses.load(Ordering::SeqCst) || self.stop.is_cancelled() {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs) = tokio::io::duplex(IN_FLIGHT);
        tracker.spawn(self.serve(Box::new(ours), NOWHERE.ip()));
        Ok(Box::new(theirs))
    }

    async fn serve(self: Arc<Self>, io: BoxIo, peer: IpAddr) {
        let cut = self.cut.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // Let in just before nobody was any more, and too late to be cut.
        if self.refuses.load(Ordering::SeqCst) {
            return;
        }
        let serving = session::serve(io, peer, Seat::new(&self), Arc::clone(&self));
        tokio::select! {
            () = serving => {}
            () = cut.cancelled() => {}
            () = self.stop.cancelled() => {}
        }
    }

    fn keep(&self, delivery: Delivery) {
        let mut kept = self.kept();
        kept.push_back(delivery);
        while kept.len() > 1
            && kept.iter().map(|delivery| delivery.data.len()).sum::<usize>() > KEPT
        {
            kept.pop_front();
        }
        // Counted under the lock: who counts and looks sees the same.
        self.counts.accepted.fetch_add(1, Ordering::SeqCst);
        drop(kept);
        self.news.notify_waiters();
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<Delivery>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
