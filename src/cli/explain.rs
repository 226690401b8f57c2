//! `smtp-uplift explain`

use std::{io::Read as _, path::PathBuf};

use super::{CONFIGURATION, OK, USAGE, complain};
use crate::{
    proto::client::Stage,
    smarthost::{
        self,
        classify::{self, explain},
    },
};

/// Longer than any log that somebody would paste.
const MOST: u64 = 1024 * 1024;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Where the reply came, if that is known: connect, ehlo, starttls, tls, auth, mail, rcpt, data, eod, any
    #[arg(long, value_parser = at)]
    stage: Option<At>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// A file of rules that go before those that are built in, as replies_file in [smarthost]
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
    /// The reply as a printer's panel, a log or a bounce shows it; - reads it from standard input
    #[arg(required = true, allow_hyphen_values = true)]
    reply: Vec<String>,
}

/// A stage, or `any`: not known.
#[derive(Clone, Copy)]
struct At(Option<Stage>);

fn at(name: &str) -> Result<At, String> {
    match (name, Stage::parse(name)) {
        // A bounce tells of no stage either.
        ("any" | "ndr", _) => Ok(At(None)),
        // As scenarios of the sandbox call it.
        ("dot", _) => Ok(At(Some(Stage::Eod))),
        (_, Some(stage)) => Ok(At(Some(stage))),
        (_, None) => {
            let names: Vec<_> = Stage::ALL.iter().map(|stage| stage.as_str()).collect();
            Err(format!("the stages are {} (eod: after the final dot), any", names.join(", ")))
        }
    }
}

pub(super) fn run(args: Args) -> u8 {
    let mut reply = args.reply.join(" ");
    if reply == "-" {
        let mut octets = Vec::new();
        if let Err(error) = std::io::stdin().take(MOST).read_to_end(&mut octets) {
            return complain(&format!("standard input cannot be read: {error}"), USAGE);
        }
        reply = String::from_utf8_lossy(&octets).into_owned();
    }
    if reply.trim().is_empty() {
        return complain(&"there is no reply: smtp-uplift explain \"535 5.7.139 …\"", USAGE);
    }
    let catalogue = match smarthost::catalogue(args.rules.as_deref()) {
        Ok(catalogue) => catalogue,
        Err(error) => return complain(&error, CONFIGURATION),
    };
    let verdict = classify::pasted(&catalogue, args.stage.and_then(|At(stage)| stage), &reply);
    if args.json {
        say!("{}", explain::json(&verdict));
    } else {
        say!("{}", explain::text(&verdict, &reply).trim_end());
    }
    OK
}
