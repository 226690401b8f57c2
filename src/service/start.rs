//! Start: everything that can be wrong is found before the first device is greeted.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc};

use thiserror::Error;
use tokio::{sync::Semaphore, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    ANNOUNCEMENTS, Service, Sessions,
    admin::Admin,
    certificate::Certificate,
    status::Status,
    wire::{Wired, accounts, wire},
};
use crate::{
    auth::accounts::AccountsError,
    config::Config,
    relay::keeper::Clock,
    smarthost::{Target, TargetError},
    spool::{queue::QueueError, store::OpenError},
    telemetry::metrics::Metrics,
    transport::{
        certificate::CertificateError,
        listener::{Listener, Seats},
        server_tls::{self, ServerTlsError},
    },
};

/// Why the relay does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// An address cannot be bound.
    #[error("{what} cannot listen on {address}: {cause}; free the address or choose another")]
    Bind {
        /// The listener, or `admin`.
        what: String,
        /// Its address.
        address: SocketAddr,
        /// What the system said.
        cause: io::Error,
    },
    /// There is no certificate to show.
    #[error("certificate (configured in [tls], else made in state_dir): {0}")]
    Certificate(#[from] CertificateError),
    /// A listener cannot keep its promise.
    #[error("{whose}: {cause}")]
    ServerTls {
        /// The listener, or the device.
        whose: String,
        /// Why.
        cause: ServerTlsError,
    },
    /// There is no way to the smarthost.
    #[error("{0}")]
    Target(#[from] TargetError),
    /// The users file is bad.
    #[error("{0}")]
    Accounts(#[from] AccountsError),
    /// The spool cannot be used.
    #[error("spool: {0}")]
    Spool(#[from] OpenError),
    /// The spool cannot be written.
    #[error("spool in {}: {cause}; make room on its disk, or see that it can be written", directory.display())]
    Adopt {
        /// Its folder.
        directory: PathBuf,
        /// Why.
        cause: QueueError,
    },
}

impl StartError {
    /// Whether a later try without a changed configuration may do better.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Bind { .. } | Self::Adopt { .. } => true,
            Self::Spool(error) => error.is_temporary(),
            _ => false,
        }
    }
}

impl Service {
    /// Finds what [`Service::start`] would find, without binding an address or writing a file.
    pub async fn check(config: &Config) -> Result<(), StartError> {
        targets(config)?;
        accounts(config)?;
        Certificate::check(config, &Metrics::new(server_tls::library_version())).await
    }

    /// Starts a relay; when this returns, devices are served.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let metrics = Metrics::new(server_tls::library_version());
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            openssl = server_tls::library_version(),
            "starting"
        );
        let targets = targets(&config)?;
        let (doors, certificate) = Certificate::show(&config, &metrics).await?;
        let mut bound = Vec::new();
        for door in doors {
            let address = door.listener.address;
            let socket = Listener::bind(address).await.map_err(|cause| StartError::Bind {
                what: format!("listener {}", door.listener.name),
                address,
                cause,
            })?;
            bound.push((socket, door));
        }
        let admin =
            match &config.admin {
                None => None,
                Some(admin) => Some(Admin::bind(admin).await.map_err(|cause| {
                    StartError::Bind { what: "admin".to_owned(), address: admin.address, cause }
                })?),
            };
        let Wired { relay, background } = wire(&config, targets, &metrics, Clock::Wall).await?;
        let over = CancellationToken::new();
        let sessions = Sessions {
            seats: Arc::new(Seats::new(config.limits.sessions, config.limits.sessions_per_device)),
            announcements: Arc::new(Semaphore::new(ANNOUNCEMENTS)),
            tracker: TaskTracker::new(),
            abort: CancellationToken::new(),
            relay: Arc::clone(&relay),
        };
        let (mut addresses, mut listeners) = (Vec::new(), Vec::new());
        for (socket, door) in bound {
            let listener = &door.listener;
            tracing::info!(
                listener = listener.name, address = %socket.address(), tls = listener.profile.tls.as_str(),
                profile = %listener.profile.tls_profile, "listening"
            );
            addresses.push((listener.name.clone(), socket.address()));
            listeners.push((listener.clone(), socket.address()));
            background.spawn(sessions.clone().serve(socket, Arc::new(door)));
        }
        let status = Arc::new(Status {
            metrics: metrics.clone(),
            drain: relay.drain.clone(),
            relay: Arc::clone(&relay),
            mailboxes: Arc::clone(&relay.mailboxes),
            keeper: relay.keeper.clone(),
            roster: Arc::clone(&relay.roster),
            transcripts: Arc::clone(&relay.transcripts),
            listeners,
            began: Instant::now(),
        });
        let admin = admin.map(|admin| {
            let address = admin.socket.local_addr().ok();
            background.spawn(admin.serve(status, over.clone()));
            address
        });
        background.spawn(certificate.watch(metrics.clone(), over.clone()));
        for mailbox in relay.mailboxes.all() {
            let pool = Arc::clone(&mailbox.pool);
            background.spawn(async move { pool.warm_up().await });
        }
        Ok(Self {
            addresses,
            admin: admin.flatten(),
            metrics,
            drain_timeout: config.drain_timeout,
            sessions,
            background,
            over,
        })
    }
}

/// The smarthost of each mailbox.
fn targets(config: &Config) -> Result<Vec<Target>, TargetError> {
    config.mailboxes.iter().map(|mailbox| Target::new(config, mailbox)).collect()
}
