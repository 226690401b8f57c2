//! `smtp-uplift queue retry`, `hold`, `release` and `drop`

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use jiff::Timestamp;
use serde_json::json;

use super::{Filters, NO_MESSAGE, Refusal, Spool, words};
use crate::{
    cli::{ConfigFile, FAILED, OK, USAGE, complain},
    spool::queue::{Change, Changed, State},
};

#[derive(clap::Args)]
#[command(after_help = "Exits with 1 if it could not be done to one of the messages.")]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigFile,
    /// The messages
    #[arg(value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
    ids: Vec<String>,
    /// All messages instead, or those that the filters leave; failed ones only with --state failed
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    filters: Filters,
    /// Print a JSON array: what came of each message
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(super) struct DropArgs {
    #[command(flatten)]
    args: Args,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub(super) async fn run(args: Args, change: Change) -> Result<u8, Refusal> {
    let spool = super::open_existing(&args.config)?;
    let ids = meant(&args, &spool, change).await?;
    make(&args, &spool, change, ids).await
}

pub(super) async fn drop(DropArgs { args, yes }: DropArgs) -> Result<u8, Refusal> {
    let spool = super::open_existing(&args.config)?;
    let ids = meant(&args, &spool, Change::Drop).await?;
    if !yes && !ids.is_empty() && !confirmed(ids.len() as u64)? {
        return Err(Refusal::failed("nothing was deleted"));
    }
    make(&args, &spool, Change::Drop, ids).await
}

/// The messages that are meant, each once.
async fn meant(args: &Args, spool: &Spool, change: Change) -> Result<Vec<String>, Refusal> {
    // clap asks for --all in vain where ids stand in its place.
    if !args.all && !args.filters.is_empty() {
        let reason = "--state, --device and --older narrow --all down; leave them or the ids out";
        return Err(Refusal { reason: reason.to_owned(), code: USAGE });
    }
    if args.all {
        let filter = args.filters.filter(possible(change), Timestamp::now());
        let found = spool.queue.list(filter).await?;
        return Ok(found.into_iter().map(|message| message.id).collect());
    }
    let mut ids: Vec<String> = Vec::with_capacity(args.ids.len());
    for id in &args.ids {
        if !ids.contains(id) {
            ids.push(id.clone());
        }
    }
    Ok(ids)
}

/// The states in which `--all` means a message, unless others are named.
fn possible(change: Change) -> &'static [State] {
    match change {
        Change::Retry | Change::Drop => &[State::Ready, State::MaybeSent, State::Held],
        Change::Hold => &[State::Ready, State::MaybeSent],
        Change::Release => &[State::Held],
    }
}

/// Asks on the terminal.
fn confirmed(count: u64) -> Result<bool, Refusal> {
    if !io::stdin().is_terminal() {
        let reason = format!(
            "{} would be deleted, and there is no terminal to ask on; say --yes",
            words::messages(count)
        );
        return Err(Refusal { reason, code: USAGE });
    }
    // Not to stdout, which may be JSON.
    let asked = write!(
        io::stderr(),
        "Delete {}? What is deleted cannot be had back. Write yes to go on: ",
        words::messages(count)
    );
    let mut answer = String::new();
    let answered = asked.and_then(|()| io::stdin().lock().read_line(&mut answer));
    Ok(answered.is_ok() && answer.trim().eq_ignore_ascii_case("yes"))
}

async fn make(args: &Args, spool: &Spool, change: Change, ids: Vec<String>) -> Result<u8, Refusal> {
    let (mut outcomes, mut code) = (Vec::new(), OK);
    if ids.is_empty() && !args.json {
        say!("There is no such message; nothing was done.");
    }
    for id in ids {
        let changed = match spool.queue.change(id.clone(), change, Timestamp::now()).await {
            Ok(changed) => changed,
            Err(error) => {
                // What was done until now is told all the same.
                if args.json {
                    say!("{:#}", json!(outcomes));
                }
                return Err(Refusal::failed(format!("{id}: {error}; it stays as it was")));
            }
        };
        let (outcome, state, reason) = match changed {
            Changed::Done => ("done", None, done(change).to_owned()),
            Changed::NotFound => ("not-found", None, NO_MESSAGE.to_owned()),
            Changed::NotNow(state) => ("not-now", Some(state), not_now(change, state, &id)),
        };
        if outcome != "done" {
            code = FAILED;
        }
        if args.json {
            let word = word(change);
            outcomes.push(json!({
                "id": id, "change": word, "outcome": outcome, "state": state, "reason": reason
            }));
        } else if outcome == "done" {
            say!("{id}: {reason}");
        } else {
            complain(&format_args!("{id}: {reason}"), code);
        }
    }
    if args.json {
        say!("{:#}", json!(outcomes));
    }
    Ok(code)
}

fn word(change: Change) -> &'static str {
    match change {
        Change::Retry => "retry",
        Change::Hold => "hold",
        Change::Release => "release",
        Change::Drop => "drop",
    }
}

fn done(change: Change) -> &'static str {
    match change {
        Change::Retry => "it is due now, whatever held it",
        Change::Hold => "held until it is released",
        Change::Release => "released, it is due now",
        Change::Drop => "deleted",
    }
}

/// Why it could not be done, and what can be.
fn not_now(change: Change, state: State, id: &str) -> String {
    match (change, state) {
        (_, State::Leased | State::Awaiting) => {
            "it is being delivered just now; try again in a minute".to_owned()
        }
        (_, State::Done) => "it was delivered, and there is nothing left to do".to_owned(),
        (Change::Retry, State::Failed) => "nobody is left whom it could be delivered to".to_owned(),
        (_, State::Failed) => format!(
            "it has failed, and is not tried any more; smtp-uplift queue retry {id} has it tried again"
        ),
        (Change::Release, _) => format!(
            "it is not held but {}; smtp-uplift queue retry {id} has it tried now",
            state.as_str()
        ),
        _ => format!("it is {}; smtp-uplift queue show {id} says more", state.as_str()),
    }
}
