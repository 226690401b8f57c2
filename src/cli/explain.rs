//! `smtp-uplift explain`

use std::{io::Read as _, path::PathBuf};

use clap::ValueEnum;

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
    /// Where the reply came, if that is known
    #[arg(long, value_enum)]
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

/// A place in the dialogue.
#[derive(Clone, Copy, ValueEnum)]
enum At {
    Connect,
    Ehlo,
    Starttls,
    Tls,
    Auth,
    Mail,
    Rcpt,
    Data,
    /// After the final dot
    Eod,
}

impl From<At> for Stage {
    fn from(at: At) -> Self {
        match at {
            At::Connect => Self::Connect,
            At::Ehlo => Self::Ehlo,
            At::Starttls => Self::StartTls,
            At::Tls => Self::Tls,
            At::Auth => Self::Auth,
            At::Mail => Self::Mail,
            At::Rcpt => Self::Rcpt,
            At::Data => Self::Data,
            At::Eod => Self::Eod,
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
    let verdict = classify::pasted(&catalogue, args.stage.map(Stage::from), &reply);
    if args.json {
        say!("{}", explain::json(&verdict));
    } else {
        say!("{}", explain::text(&verdict, &reply).trim_end());
    }
    OK
}
