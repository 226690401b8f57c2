//! The relay as a running thing: listeners, sessions, the pool, the admin address; from start to drain.

mod admin;
mod certificate;
mod start;
mod status;
pub mod systemd;
pub mod wire;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::BytesMut;
use tokio::{io::AsyncWriteExt as _, sync::Semaphore, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use crate::{
    policy::ListenerTls,
    relay::{Door, Relay, answer, session},
    telemetry::metrics::{DeviceFault, Limit, Metrics, SessionOutcome},
    transport::{
        listener::{Full, Listener, Seat, Seats},
        proxy_header::{self, ProxyFault},
        stream::BoxIo,
    },
};

pub use start::StartError;

/// Connections of load balancers that have not told yet whose they are, at most.
const ANNOUNCEMENTS: usize = 1_000;
/// How long closing the connections to the smarthost may take in the end.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A relay that runs until [`Service::stop`].
pub struct Service {
    addresses: Vec<(String, SocketAddr)>,
    admin: Option<SocketAddr>,
    metrics: Metrics,
    drain_timeout: Duration,
    sessions: Sessions,
    background: TaskTracker,
    /// Cancelled when everything is over, the admin address too.
    over: CancellationToken,
}

/// What the listeners share.
#[derive(Clone)]
struct Sessions {
    relay: Arc<Relay>,
    seats: Arc<Seats>,
    /// Places for connections of load balancers that have not told yet whose they are.
    announcements: Arc<Semaphore>,
    tracker: TaskTracker,
    /// Cancelled when sessions are dropped wherever they are.
    abort: CancellationToken,
}

impl Service {
    /// The address that a listener is bound to.
    pub fn address(&self, listener: &str) -> Option<SocketAddr> {
        self.addresses.iter().find(|(name, _)| name == listener).map(|(_, address)| *address)
    }

    /// The address of metrics and health, if it is on.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// An operator's word: a login that was refused is tried again, and so is mail that waits for a setting.
    pub fn try_again(&self) {
        self.sessions.relay.try_again();
    }

    /// Drains: no more sessions, idle ones get 421, those in a transaction finish it, and so do deliveries from the
    /// spool. What is left when the drain timeout ends, or `hurry` does, is dropped without a dot.
    pub async fn stop(self, hurry: impl Future<Output = ()>) {
        tracing::info!(timeout = ?self.drain_timeout, "draining");
        self.sessions.relay.drain.cancel();
        self.sessions.tracker.close();
        let keeper = self.sessions.relay.keeper.clone();
        let finished = async {
            self.sessions.tracker.wait().await;
            if let Some(keeper) = &keeper {
                keeper.finish().await;
            }
        };
        tokio::select! {
            () = finished => {}
            () = tokio::time::sleep(self.drain_timeout) => tracing::warn!("drain timeout: what is left is dropped"),
            () = hurry => tracing::warn!("told to hurry: what is left is dropped"),
        }
        self.sessions.abort.cancel();
        self.sessions.tracker.wait().await;
        if let Some(keeper) = &keeper {
            keeper.abort.cancel();
            let _ = tokio::time::timeout(LAST_WORDS, keeper.finish()).await;
        }
        for mailbox in self.sessions.relay.mailboxes.all() {
            mailbox.pool.stop();
        }
        self.over.cancel();
        self.background.close();
        let _ = tokio::time::timeout(LAST_WORDS, self.background.wait()).await;
        tracing::info!("stopped");
    }
}

impl Sessions {
    /// Serves whoever connects, until the relay drains.
    async fn serve(self, socket: Listener, door: Arc<Door>) {
        let drain = self.relay.drain.clone();
        while let Some((stream, peer)) = drain.run_until_cancelled(socket.accept()).await {
            let (io, peer, door) = (Box::new(stream), peer.ip(), Arc::clone(&door));
            if door.listener.proxy_protocol_from.allows(peer) {
                self.tracker.spawn(self.clone().announced(io, peer, door));
            } else {
                self.admit(io, peer, door);
            }
        }
    }

    /// A connection of a load balancer, which tells first whose it is.
    async fn announced(self, io: BoxIo, balancer: IpAddr, door: Arc<Door>) {
        let listener = &door.listener.name;
        let taken = match self.announcements.try_acquire() {
            Ok(_place) => self.relay.drain.run_until_cancelled(proxy_header::take(io)).await,
            Err(_) => Some(Err(ProxyFault::TooMany)),
        };
        match taken {
            Some(Ok((io, Some(device)))) => self.admit(io, device, door),
            // It only looks whether somebody is there.
            Some(Ok((_, None))) if !door.listener.allow.allows(balancer) => {
                tracing::debug!(%balancer, listener, "a load balancer's own connection");
            }
            Some(Ok((io, None))) => self.admit(io, balancer, door),
            Some(Err(fault)) => {
                tracing::warn!(%balancer, listener, %fault, "a connection of a load balancer is closed");
                self.relay.metrics.device_fault(listener, DeviceFault::ProxyHeader);
                self.relay.metrics.session_turned_away(listener, SessionOutcome::Faulty);
            }
            None => {}
        }
    }

    fn admit(&self, io: BoxIo, peer: IpAddr, door: Arc<Door>) {
        match self.seats.take(peer) {
            Ok(seat) => self.seat(io, peer, seat, door),
            Err(full) => self.turn_away(io, peer, full, &door),
        }
    }

    fn seat(&self, io: BoxIo, peer: IpAddr, seat: Seat, door: Arc<Door>) {
        let id = session_id();
        let span = tracing::info_span!("session", id);
        let (relay, abort) = (Arc::clone(&self.relay), self.abort.clone());
        let session = async move {
            let listener = door.listener.name.clone();
            let metrics = relay.metrics.clone();
            metrics.session_opened(&listener);
            // Boxed once: each future that it is wrapped in would have room for it again.
            let serving = Box::pin(session::serve(io, peer, id, door, relay));
            let outcome =
                abort.run_until_cancelled(serving).await.unwrap_or(SessionOutcome::Drained);
            metrics.session_closed(&listener, outcome);
            tracing::debug!(?outcome, "session over");
            drop(seat);
        };
        self.tracker.spawn(session.instrument(span));
    }

    /// Established devices keep working; the newest one hears that there is no seat.
    fn turn_away(&self, mut io: BoxIo, peer: IpAddr, full: Full, door: &Door) {
        let (listener, limit) = match full {
            Full::All => (&door.listener.name, Limit::Sessions),
            Full::Each => (&door.listener.name, Limit::SessionsPerDevice),
        };
        tracing::warn!(device = %peer, listener, limit = limit.as_str(), "too many sessions");
        self.relay.metrics.session_turned_away(listener, SessionOutcome::Busy);
        self.relay.metrics.limited(listener, limit);
        let profile = self.relay.devices.profile(peer.to_canonical(), &door.listener.profile);
        if profile.tls != ListenerTls::Implicit {
            let mut line = BytesMut::new();
            answer::too_many_sessions().encode(&mut line);
            // A fresh socket has room for a line, at once; whoever it has none for hears nothing.
            self.tracker.spawn(async move {
                let _ = timeout(LAST_WORDS, io.write_all(&line)).await;
            });
        }
    }
}

/// Short enough to be read out on the telephone, long enough not to come twice in a log.
fn session_id() -> String {
    const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    (0..8).map(|_| char::from(DIGITS[fastrand::usize(..DIGITS.len())])).collect()
}
