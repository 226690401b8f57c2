//! `smtp-uplift queue show`

use std::path::Path;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    Refusal, Spool, eml,
    words::{self, Row, clean},
};
use crate::{
    cli::{ConfigFile, OK, warn},
    smarthost::{
        self,
        classify::{self, Verdict, catalogue::Catalogue, explain},
    },
    spool::queue::{Detail, RecipientState},
};

/// Octets of the header section that are shown.
const HEADER: usize = 8 * 1024;
/// What a reason begins with where there was nothing to log in with.
const NO_TOKEN: &str = "no token: ";
/// Replies that are explained; more would hide the rest.
const REPLIES: usize = 3;

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigFile,
    /// The message
    id: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args) -> Result<u8, Refusal> {
    let spool = super::open_existing(&args.config)?;
    let id = &args.id;
    let Some(detail) = spool.queue.show(id.clone()).await? else {
        return Err(Refusal::no_message(id));
    };
    let header = header(&spool, &detail).await?;
    let verdicts = verdicts(&detail, spool.places.replies_file.as_deref());
    if args.json {
        say!("{:#}", document(&detail, &header, &verdicts));
    } else {
        tell(&detail, &header, &verdicts, Timestamp::now());
    }
    Ok(OK)
}

/// The header section, as far as it is kept and can be read.
async fn header(spool: &Spool, detail: &Detail) -> Result<String, Refusal> {
    let Some(body) = spool.queue.body(detail.summary.id.clone()).await? else {
        return Ok(detail.head.clone());
    };
    Ok(eml::header(&detail.head, &body, HEADER).unwrap_or_else(|error| {
        warn(&format_args!("warning: the mail data cannot be read: {error}"));
        detail.head.clone()
    }))
}

/// What the replies mean, each meaning once: the last one about the message, then those about recipients.
fn verdicts(detail: &Detail, own: Option<&Path>) -> Vec<(String, Verdict)> {
    let read = smarthost::catalogue(own).or_else(|error| {
        warn(&format_args!("warning: {error}; the replies are explained without these rules"));
        smarthost::catalogue(None)
    });
    let Ok(catalogue) = read else {
        return Vec::new();
    };
    let summary = &detail.summary;
    let about = [(summary.reason.as_str(), summary.rule.as_str())];
    let others = detail.recipients.iter().filter(|it| it.state != RecipientState::Delivered);
    let mut verdicts: Vec<(String, Verdict)> = Vec::new();
    for (reply, rule) in about.into_iter().chain(others.map(|it| (it.reply.as_str(), ""))) {
        // Our own words: the smarthost was never asked.
        if reply.starts_with(NO_TOKEN) {
            continue;
        }
        let verdict = verdict(&catalogue, reply, rule);
        let known = verdict.code.is_some() || !verdict.is_unknown();
        if known && verdicts.iter().all(|(_, other)| other.rule != verdict.rule) {
            verdicts.push((reply.to_owned(), verdict));
        }
    }
    verdicts.truncate(REPLIES);
    verdicts
}

/// The relay knew at which stage the reply came: where it has named a rule, that one counts.
fn verdict(catalogue: &Catalogue, reply: &str, rule: &str) -> Verdict {
    let verdict = classify::pasted(catalogue, None, reply);
    match catalogue.rules().iter().find(|known| known.id.as_str() == rule) {
        Some(known) if verdict.rule != known.id => Verdict {
            class: known.class,
            retry: known.retry,
            scope: known.scope,
            rule: known.id.clone(),
            meaning: known.meaning.clone(),
            remedy: known.remedy.clone(),
            ..verdict
        },
        _ => verdict,
    }
}

fn document(detail: &Detail, header: &str, verdicts: &[(String, Verdict)]) -> Value {
    let addressees = detail
        .recipients
        .iter()
        .map(|it| json!({ "address": it.path.as_str(), "state": it.state, "reply": it.reply }));
    let verdicts = verdicts.iter().map(|(reply, verdict)| {
        let mut verdict = json!(verdict);
        verdict["reply"] = json!(reply);
        verdict
    });
    let mut document = json!(Row::of(&detail.summary));
    for (key, value) in [
        ("listener", json!(detail.listener)),
        ("settled", json!(detail.settled.map(|settled| settled.to_string()))),
        ("addressees", addressees.collect()),
        ("verdicts", verdicts.collect()),
        ("header", json!(header)),
        ("transcript", json!(detail.transcript)),
    ] {
        document[key] = value;
    }
    document
}

fn tell(detail: &Detail, header: &str, verdicts: &[(String, Verdict)], now: Timestamp) {
    let summary = &detail.summary;
    let ago = |time: Timestamp| format!("{time:.0} ({} ago)", words::span(time, now));
    say!("id        {}", clean(&summary.id));
    say!("state     {}", words::standing(summary, now));
    say!("device    {}, listener {}", clean(&summary.device), clean(&detail.listener));
    say!("received  {}", ago(summary.received));
    say!("mailbox   {}", clean(&summary.mailbox));
    say!("from      {}", words::sender(&summary.from));
    say!("size      {}", words::size(summary.size));
    say!("attempts  {}{}", summary.attempts, maybe_sent(summary.maybe_sent));
    if let Some(settled) = detail.settled {
        say!("last      {}", ago(settled));
    }
    if !summary.reason.is_empty() {
        let rule = if summary.rule.is_empty() {
            String::new()
        } else {
            format!(" (rule {})", clean(&summary.rule))
        };
        say!("reason    {}{rule}", clean(&summary.reason));
    }
    say!();
    say!("Recipients");
    for recipient in &detail.recipients {
        let state = match recipient.state {
            RecipientState::Pending => "pending",
            RecipientState::Delivered => "delivered",
            RecipientState::Failed => "failed",
        };
        let line = format!("  {state:<9}  {}", clean(recipient.path.as_str()));
        match recipient.reply.as_str() {
            "" => say!("{line}"),
            reply => say!("{line}: {}", clean(reply)),
        }
    }
    for (reply, verdict) in verdicts {
        say!();
        say!("{}", explain::text(verdict, reply).trim_end());
    }
    if detail.summary.reason.starts_with(NO_TOKEN) {
        say!();
        say!(
            "There was no token to log in with: smtp-uplift doctor walks the way to one and says at each step what to do. \
             A new secret or sign-in has held mail tried by itself within seconds."
        );
    }
    section("Header section", header);
    section("What was said", &detail.transcript);
}

fn maybe_sent(times: u32) -> String {
    match times {
        0 => String::new(),
        1 => ", after one of which it may have arrived".to_owned(),
        many => format!(", after {many} of which it may have arrived"),
    }
}

fn section(title: &str, text: &str) {
    if text.trim().is_empty() {
        return;
    }
    say!();
    say!("{title}");
    for line in text.lines() {
        say!("  {}", clean(&line.replace('\t', " ")));
    }
}
