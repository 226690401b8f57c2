//! `smtp-uplift queue`: what the spool keeps, and an operator's word about it. It works beside a running relay and
//! without one; of the configuration only where the spool is has to be right.

mod change;
mod eml;
mod export;
mod list;
mod show;
mod words;

use std::{
    fs,
    io::ErrorKind,
    path::{self, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use jiff::{SignedDuration, Timestamp};

use super::{CONFIGURATION, ConfigFile, FAILED, complain};
use crate::{
    config::{self, Places, unreadable},
    spool::{
        queue::{Change, Filter, Queue, QueueError, State},
        store::Store,
    },
};

#[derive(clap::Args)]
#[command(after_help = STATES)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

const STATES: &str = "\
States:
  ready       it waits for its time
  leased      it is being delivered
  awaiting    its end was sent, and the smarthost's answer is waited for
  maybe-sent  its end was sent and the connection was lost; it waits to be sent again
  held        it waits for somebody to change something
  failed      it will not be delivered, to some recipient at least
  done        it was delivered";

#[derive(clap::Subcommand)]
enum Command {
    /// List what is kept
    List(list::Args),
    /// Show one message: where it stands, why, and what to do
    Show(show::Args),
    /// Have messages tried now, whatever holds them
    Retry(change::Args),
    /// Hold messages until they are released
    Hold(change::Args),
    /// Let held messages go
    Release(change::Args),
    /// Delete messages
    Drop(change::DropArgs),
    /// Write a message to a file, as mail programs open it
    Export(export::Args),
}

pub(super) async fn run(args: Args) -> u8 {
    let done = match args.command {
        Command::List(args) => list::run(args).await,
        Command::Show(args) => show::run(args).await,
        Command::Retry(args) => change::run(args, Change::Retry).await,
        Command::Hold(args) => change::run(args, Change::Hold).await,
        Command::Release(args) => change::run(args, Change::Release).await,
        Command::Drop(args) => change::drop(args).await,
        Command::Export(args) => export::run(args).await,
    };
    done.unwrap_or_else(|Refusal { reason, code }| complain(&reason, code))
}

/// Why nothing, or nothing more, was done.
struct Refusal {
    reason: String,
    code: u8,
}

impl Refusal {
    fn failed(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), code: FAILED }
    }

    fn no_message(id: &str) -> Self {
        Self::failed(format!("{id}: {NO_MESSAGE}"))
    }
}

impl From<QueueError> for Refusal {
    fn from(error: QueueError) -> Self {
        Self::failed(format!("{error}; the relay's log may say more"))
    }
}

const NO_MESSAGE: &str =
    "there is no such message (any more); smtp-uplift queue list shows those that there are";

/// The spool of a configuration.
struct Spool {
    queue: Arc<dyn Queue>,
    places: Places,
}

/// Opens the spool; `None` if the relay has not made one.
fn open(config: &ConfigFile) -> Result<Result<Spool, Missing>, Refusal> {
    let mut places = config::places(&config.path())
        .map_err(|problems| Refusal { reason: problems.to_string(), code: CONFIGURATION })?;
    // Whoever reads of it may be in another folder.
    if let Ok(whole) = path::absolute(&places.spool) {
        places.spool = whole;
    }
    let directory = &places.spool;
    match fs::metadata(directory) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Ok(Err(Missing(places.spool)));
        }
        Err(error) => {
            return Err(Refusal::failed(format!(
                "the spool {} cannot be read: {}; run this as the relay's user",
                directory.display(),
                unreadable(directory, &error)
            )));
        }
    }
    let queue = Store::visit(directory).map_err(|error| Refusal::failed(error.to_string()))?;
    Ok(Ok(Spool { queue, places }))
}

/// The same for commands that have nothing to do without one.
fn open_existing(config: &ConfigFile) -> Result<Spool, Refusal> {
    open(config)?.map_err(|missing| Refusal::failed(missing.to_string()))
}

/// There is no spool here.
struct Missing(PathBuf);

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "there is no spool at {}; the relay makes it when it runs with [delivery] mode stream-then-spool or spool",
            self.0.display()
        )
    }
}

/// Which messages are meant.
#[derive(Clone, Debug, Default, clap::Args)]
struct Filters {
    /// Only messages in this state; may be given several times
    #[arg(long = "state", value_name = "STATE", value_parser = states())]
    states: Vec<State>,
    /// Only messages of the device with this name or address
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    /// Only messages received longer ago, for example 2h or 3days
    #[arg(long, value_name = "AGE", value_parser = age)]
    older: Option<Age>,
}

/// A span of time, and how it was written.
#[derive(Clone, Debug)]
struct Age {
    span: Duration,
    text: String,
}

fn states() -> impl clap::builder::TypedValueParser<Value = State> {
    PossibleValuesParser::new(State::ALL.map(State::as_str))
        .try_map(|name| State::parse(&name).ok_or("unknown"))
}

fn age(text: &str) -> Result<Age, String> {
    let span = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    // What a clock can subtract, with much to spare.
    let most = Duration::from_secs(100 * 366 * 24 * 3600);
    (span <= most)
        .then(|| Age { span, text: text.to_owned() })
        .ok_or_else(|| "nothing is older than a hundred years".to_owned())
}

impl Filters {
    /// For a queue; without a state it means these.
    fn filter(&self, default: &[State], now: Timestamp) -> Filter {
        let states = if self.states.is_empty() { default } else { &self.states };
        let before = self.older.as_ref().and_then(|age| {
            SignedDuration::try_from(age.span).ok().and_then(|span| now.checked_sub(span).ok())
        });
        Filter {
            states: states.to_vec(),
            device: self.device.clone(),
            before,
            after: None,
            most: 0,
        }
    }

    fn is_empty(&self) -> bool {
        self.states.is_empty() && self.device.is_none() && self.older.is_none()
    }

    /// As they were written.
    fn written(&self) -> String {
        let mut written = String::new();
        for state in &self.states {
            written.push_str(&format!(" --state {}", state.as_str()));
        }
        if let Some(device) = &self.device {
            written.push_str(&format!(" --device {}", words::shell(device)));
        }
        if let Some(age) = &self.older {
            written.push_str(&format!(" --older {}", words::shell(&age.text)));
        }
        written
    }
}
