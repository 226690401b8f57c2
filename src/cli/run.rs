//! `smtp-uplift run`

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{CONFIGURATION, ConfigFile, OK, TEMPORARY, complain};
use crate::{
    config::{self, LogFormat},
    service::Service,
    telemetry::log,
};

#[derive(clap::Args)]
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
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    raise_file_limit(config.limits.sessions);
    let (mut terminate, mut interrupt) = match signals() {
        Ok(signals) => signals,
        Err(error) => return complain(&format!("cannot watch for signals: {error}"), TEMPORARY),
    };
    let service = match Service::start(config).await {
        Ok(service) => service,
        Err(error) => {
            return complain(&error, if error.is_temporary() { TEMPORARY } else { CONFIGURATION });
        }
    };
    tracing::info!("ready");
    signalled(&mut terminate, &mut interrupt).await;
    service.stop(signalled(&mut terminate, &mut interrupt)).await;
    OK
}

fn signals() -> io::Result<(Signal, Signal)> {
    Ok((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
}

async fn signalled(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
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
