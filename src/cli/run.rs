//! `smtp-uplift run`

use std::io;

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
};

use super::{CONFIGURATION, ConfigFile, OK, TEMPORARY, complain, container};
use crate::{
    config::{self, LogFormat},
    service::{Service, systemd},
    telemetry::log,
};

#[derive(clap::Args)]
#[command(
    after_help = "The log goes to stderr: $SMTP_UPLIFT_LOG overrides its level, $NO_COLOR takes its colours away.\n\
    SIGTERM or Ctrl-C lets messages that are under way finish, a second one does not."
)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigFile,
}

pub(super) async fn run(args: Args) -> u8 {
    let path = args.config.path();
    let loaded = match config::load(&path) {
        Ok(loaded) => loaded,
        Err(problems) => return complain(&problems, CONFIGURATION),
    };
    let config = loaded.config;
    if let Err(error) = log::start(config.log.format == LogFormat::Json, &config.log.level) {
        return complain(&error, CONFIGURATION);
    }
    let nat = container::warnings(&config);
    for warning in loaded.warnings.iter().map(ToString::to_string).chain(nat) {
        tracing::warn!("{warning}");
    }
    raise_file_limit(config.limits.sessions);
    let mut signals = match signals() {
        Ok(signals) => signals,
        Err(error) => return complain(&format!("cannot watch for signals: {error}"), TEMPORARY),
    };
    let service = match Service::start(config).await {
        Ok(service) => service,
        Err(error) => {
            return complain(&error, if error.is_temporary() { TEMPORARY } else { CONFIGURATION });
        }
    };
    let admin = service.admin().map_or_else(|| "off".to_owned(), |address| address.to_string());
    tracing::info!(config = %path.display(), admin, "ready");
    systemd::ready();
    let mut watchdog = JoinSet::new();
    watchdog.spawn(systemd::watchdog());
    signalled(&mut signals, || {
        tracing::warn!(
            "SIGHUP: a refused login is tried again. Certificates, secrets and the users file are read again by themselves; \
             for other changes restart"
        );
        service.try_again();
    })
    .await;
    systemd::stopping();
    service.stop(signalled(&mut signals, || {})).await;
    OK
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

fn signals() -> io::Result<Signals> {
    Ok(Signals {
        terminate: signal(SignalKind::terminate())?,
        interrupt: signal(SignalKind::interrupt())?,
        hangup: signal(SignalKind::hangup())?,
    })
}

/// Waits for SIGTERM or SIGINT, with something to do at each SIGHUP.
async fn signalled(Signals { terminate, interrupt, hangup }: &mut Signals, hung_up: impl Fn()) {
    loop {
        tokio::select! {
            _ = terminate.recv() => return,
            _ = interrupt.recv() => return,
            _ = hangup.recv() => hung_up(),
        }
    }
}

/// Each session needs a file, and so does its connection to the smarthost.
fn raise_file_limit(sessions: usize) {
    let wanted = 2 * sessions as u64 + 64;
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) if limit < wanted => {
            tracing::warn!(
                limit,
                sessions,
                "too few open files are allowed for so many sessions: raise LimitNOFILE or lower limits.sessions"
            );
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }
}
