//! The log: lines on stderr, which under systemd is the journal.

use std::{
    ffi::OsStr,
    io::{self, IsTerminal as _},
};

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
    let filter = filter(&level)?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(colours(io::stderr().is_terminal(), std::env::var_os("NO_COLOR").as_deref()))
        // It would complain on stderr, and panic if that is what is broken.
        .log_internal_errors(false)
        .with_target(false);
    // Fails only where a log runs already: the embedding program's own.
    let _ = if json {
        log.json().flatten_event(true).with_span_list(false).try_init()
    } else {
        log.try_init()
    };
    Ok(())
}

/// Reads a level, or a list of `target=level` with blanks around its parts.
pub fn filter(level: &str) -> Result<EnvFilter, BadLevel> {
    // A blank in front of a part makes the crate's parser cut it in the wrong places, within a character too.
    let parts: Vec<&str> = level.split(',').map(str::trim).collect();
    EnvFilter::try_new(parts.join(",")).map_err(|_| BadLevel(level.to_owned()))
}

/// Colours are for terminals, unless the user wants none: <https://no-color.org>.
fn colours(is_terminal: bool, no_color: Option<&OsStr>) -> bool {
    is_terminal && no_color.is_none_or(OsStr::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_around_a_part_change_nothing() {
        let wanted = EnvFilter::new("info,smtp_uplift=debug").to_string();
        for level in ["info, smtp_uplift=debug", " info ,\tsmtp_uplift=debug "] {
            assert_eq!(filter(level).unwrap().to_string(), wanted, "{level:?}");
        }
        assert!(filter("info, smtp_uplift=loud").is_err());
        assert!(filter(" [a{ =\u{fffd}\u{fffd}}]=warn").is_ok(), "no panic");
    }

    #[test]
    fn colours_are_for_terminals_whose_user_wants_them() {
        assert!(colours(true, None) && colours(true, Some(OsStr::new(""))));
        assert!(!colours(true, Some(OsStr::new("0"))));
        assert!(!colours(false, None));
    }
}
