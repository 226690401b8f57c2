//! What is behind the listeners: the pool and what all sessions share. Without a socket, so that a test can have it
//! too, with a clock that stands still and streams in memory.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{certificate::Certificate, start::StartError};
use crate::{
    auth::accounts::{Accounts, AccountsError},
    config::{self, Config},
    relay::{Door, Relay},
    smarthost::{
        Target,
        pool::{Lifetime, Pool},
    },
    telemetry::{
        metrics::Metrics,
        transcript::{Keep, Transcripts},
    },
};

/// A relay that serves whoever is let in: [`session::serve`](crate::relay::session::serve) needs no more than one
/// of its [`doors`].
pub struct Wired {
    /// What its sessions share.
    pub relay: Arc<Relay>,
    /// What it does beside its sessions runs here; it ends some time after [`Pool::stop`].
    pub background: TaskTracker,
}

/// Wires a relay to its smarthost. Nothing is dialled before somebody asks for it.
pub async fn wire(config: &Config, target: Target, metrics: &Metrics) -> Result<Wired, StartError> {
    let accounts = accounts(config)?;
    let background = TaskTracker::new();
    let transcripts = Transcripts::new(match config.log.transcripts {
        config::Transcripts::Off => Keep::Off,
        config::Transcripts::Failed => Keep::Failed,
        config::Transcripts::All => Keep::All,
    });
    let pool = Pool::new(
        target,
        config.mailbox.max_connections,
        Lifetime::default(),
        metrics.clone(),
        Arc::clone(&transcripts),
        background.clone(),
    );
    let relay = Arc::new(Relay {
        hostname: config.hostname.clone(),
        received: config.received,
        limits: config.limits.clone(),
        lease_wait: config.smarthost.lease_wait,
        delivery: config.delivery.clone(),
        accounts,
        logins: Semaphore::new(2),
        pool,
        metrics: metrics.clone(),
        transcripts,
        drain: CancellationToken::new(),
    });
    Ok(Wired { relay, background })
}

/// The listeners of a configuration without their sockets, each with its promise proven; the certificate is the
/// configured one, or made once in `state_dir`.
pub async fn doors(config: &Config, metrics: &Metrics) -> Result<Vec<Door>, StartError> {
    Ok(Certificate::show(config, metrics).await?.0)
}

/// Who may log in.
pub(super) fn accounts(config: &Config) -> Result<Accounts, AccountsError> {
    let accounts = config.users_file.clone().map_or(Accounts::None, Accounts::File);
    accounts.check()?;
    Ok(accounts)
}
