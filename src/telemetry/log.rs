//! The log: lines on stderr, which under systemd is the journal.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;

/// The environment variable that overrides the configured level.
pub const LEVEL_VARIABLE: &str = "SMTP_UPLIFT_LOG";

/// A level that is neither a level nor a list of `target=level`.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a log level: write error, warn, info, debug or trace, or target=level,…")]
pub struct BadLevel(String);

/// Starts the log of this process. `json` for machines, else text for people; `level` gives way to
/// [`LEVEL_VARIABLE`]. A log that runs already goes on as it is.
pub fn start(json: bool, level: &str) -> Result<(), BadLevel> {
    let level = std::env::var(LEVEL_VARIABLE).unwrap_or_else(|_| level.to_owned());
    let filter = EnvFilter::try_new(&level).map_err(|_| BadLevel(level))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false);
    // Fails only where a log runs already: the embedding program's own.
    let _ = if json {
        log.json().flatten_event(true).with_span_list(false).try_init()
    } else {
        log.try_init()
    };
    Ok(())
}
