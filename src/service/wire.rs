//! What is behind the listeners: the pool, the spool, and what all sessions share. Without a socket, so that a test can have it
//! too, with a clock that stands still and streams in memory.

use std::sync::{Arc, Mutex};

use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{certificate::Certificate, start::StartError};
use crate::{
    auth::accounts::{Accounts, AccountsError},
    config::{self, Config, DeliveryMode, MailboxAuth, NoticeWay, SmarthostTls},
    relay::{
        Door, Relay,
        courier::Courier,
        devices::Devices,
        keeper::{Clock, Keeper},
        logins::Logins,
        mailboxes::{Mailbox, Mailboxes},
        notifier::Notifier,
        quotas::DeviceQuotas,
        replay::Budget,
    },
    smarthost::{
        Target,
        ledger::Ledger,
        pool::{Allowance, Lifetime, Pool},
    },
    spool::store::Store,
    telemetry::{
        metrics::Metrics,
        once::Once,
        transcript::{Keep, Transcripts},
    },
    transport::handshakes::Handshakes,
};

/// A relay that serves whoever is let in: [`session::serve`](crate::relay::session::serve) needs no more than one
/// of its [`doors`].
pub struct Wired {
    /// What its sessions share.
    pub relay: Arc<Relay>,
    /// What it does beside its sessions runs here; it ends some time after each mailbox's [`Pool::stop`].
    pub background: TaskTracker,
}

/// Wires a relay to its smarthosts, one target for each mailbox of the configuration, and to its spool. Nothing is
/// dialled before somebody asks for it, unless the spool has something to deliver.
pub async fn wire(
    config: &Config,
    targets: Vec<Target>,
    metrics: &Metrics,
    clock: Clock,
) -> Result<Wired, StartError> {
    let accounts = accounts(config)?;
    let background = TaskTracker::new();
    let transcripts = Transcripts::new(match config.log.transcripts {
        config::Transcripts::Off => Keep::Off,
        config::Transcripts::Failed => Keep::Failed,
        config::Transcripts::All => Keep::All,
    });
    let mailboxes = config.mailboxes.iter().zip(targets).map(|(mailbox, target)| {
        metrics.breaker(&mailbox.address, false);
        let pool = Pool::new(
            target,
            mailbox.into(),
            ledger(config, mailbox),
            Lifetime::default(),
            metrics.clone(),
            Arc::clone(&transcripts),
            background.clone(),
        );
        Mailbox::new(mailbox, pool)
    });
    let mailboxes =
        Mailboxes::new(mailboxes.collect(), clock, config.spool.retry.clone(), config.rewrite);
    let keeper = keeper(config, &mailboxes, metrics, clock).await?.map(Arc::new);
    let relay = Arc::new(Relay {
        hostname: config.hostname.clone(),
        received: config.received,
        limits: config.limits.clone(),
        delivery: config.delivery.clone(),
        logins: Logins::new(accounts),
        quotas: Arc::new(DeviceQuotas::new(&config.limits)),
        crowd: Mutex::default(),
        handshakes: Arc::new(Handshakes::new(
            config.limits.handshakes,
            config.limits.sessions_per_device,
        )),
        devices: Devices::new(config.devices.clone()),
        roster: Arc::default(),
        mailboxes,
        keeper: keeper.clone(),
        ignored: Once::default(),
        metrics: metrics.clone(),
        transcripts,
        drain: CancellationToken::new(),
    });
    if let Some(keeper) = keeper {
        let notifier = notifier(config, &relay, &background)?;
        // On the keeper's tasks: who waits for those waits for these, and what they have begun.
        let courier = Courier::new(Arc::clone(&relay), Arc::clone(&keeper));
        keeper.tasks.spawn(courier.run(relay.drain.clone()));
        keeper.tasks.spawn(notifier.run(Arc::clone(&keeper), relay.drain.clone()));
    }
    Ok(Wired { relay, background })
}

/// Where what a mailbox has sent outlives a restart, if it is limited.
fn ledger(config: &Config, mailbox: &config::Mailbox) -> Option<Ledger> {
    let limited = mailbox.messages_per_minute > 0 || mailbox.recipients_per_day > 0;
    limited.then(|| Ledger::new(&config.state_dir.join("limits"), &mailbox.address))
}

/// What keeps messages: there if a mode asks for it, of all devices or of one, or if an earlier relay has kept some.
async fn keeper(
    config: &Config,
    mailboxes: &Arc<Mailboxes>,
    metrics: &Metrics,
    clock: Clock,
) -> Result<Option<Keeper>, StartError> {
    let settings = &config.spool;
    let mut modes = config.devices.iter().filter_map(|device| device.delivery);
    let keeps = |mode| mode != DeliveryMode::Stream;
    if !keeps(config.delivery.mode) && !modes.any(keeps) && !settings.directory.exists() {
        return Ok(None);
    }
    let queue = Store::open(&settings.directory, settings.max_size, metrics.clone())?;
    let addresses: Vec<_> =
        config.mailboxes.iter().map(|mailbox| mailbox.address.clone()).collect();
    queue.adopt(&addresses, clock.now()).await.map_err(|error| StartError::Adopt {
        directory: settings.directory.clone(),
        cause: error,
    })?;
    Ok(Some(Keeper {
        queue,
        budget: Budget::new(config.delivery.replay_memory_total),
        settings: settings.clone(),
        notices: config.notices.clone(),
        clock,
        tasks: TaskTracker::new(),
        abort: CancellationToken::new(),
        wake: Notify::new(),
        mailboxes: Arc::clone(mailboxes),
        metrics: metrics.clone(),
    }))
}

/// Who sends notices, with the ways to the server that takes them, if it is another: with TLS, and without for one
/// that has none.
fn notifier(
    config: &Config,
    relay: &Relay,
    background: &TaskTracker,
) -> Result<Notifier, StartError> {
    let mut servers = Vec::new();
    if let Some(config::Notices { way: NoticeWay::Smtp { host, port }, .. }) = &config.notices {
        for tls in [SmarthostTls::StartTls, SmarthostTls::None] {
            let server = config::Mailbox {
                address: "notices".to_owned(),
                auth: MailboxAuth::None,
                smarthost: config::Smarthost {
                    host: host.clone(),
                    port: *port,
                    tls,
                    ..config.smarthost.clone()
                },
                ..config.mailboxes[0].clone()
            };
            servers.push(Pool::new(
                Target::new(config, &server)?,
                Allowance::unlimited(1),
                None,
                Lifetime::default(),
                relay.metrics.clone(),
                Arc::clone(&relay.transcripts),
                background.clone(),
            ));
        }
    }
    Ok(Notifier::new(config.mailboxes[0].address.clone(), config.hostname.clone(), servers))
}

/// The listeners of a configuration without their sockets, each with its promise proven; the certificate is the
/// configured one, or made once in `state_dir`.
pub async fn doors(config: &Config, metrics: &Metrics) -> Result<Vec<Door>, StartError> {
    Ok(Certificate::show(config, metrics).await?.0)
}

/// Who may log in.
pub(super) fn accounts(config: &Config) -> Result<Accounts, AccountsError> {
    let accounts = config.users_file.clone().map_or(Accounts::None, Accounts::File);
    let mailboxes: Vec<_> =
        config.mailboxes.iter().map(|mailbox| mailbox.address.as_str()).collect();
    accounts.check(Some(&mailboxes))?;
    Ok(accounts)
}
