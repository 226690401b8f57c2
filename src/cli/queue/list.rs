//! `smtp-uplift queue list`

use std::io;

use jiff::Timestamp;

use super::{
    Filters, Refusal, Spool,
    words::{self, Row, clean, cut},
};
use crate::{
    cli::{ConfigFile, OK},
    spool::queue::{Filter, State, Summary},
};

/// What is listed unless states are named: all that is not delivered.
const DEFAULT: [State; 6] =
    [State::Ready, State::Leased, State::Awaiting, State::MaybeSent, State::Held, State::Failed];

/// Characters of an address that are shown on a terminal: a quarter of it, within these bounds.
const ADDRESS: (usize, usize) = (16, 32);
/// What is left for the reason on a terminal, however narrow.
const REASON: usize = 24;

#[derive(clap::Args)]
#[command(
    after_help = "Without --state it lists all but those that are done. Without a spool it lists nothing, and says so."
)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    filters: Filters,
    /// So many at the most; 0: all
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
    /// Only messages received after this one: for the next page
    #[arg(long, value_name = "ID")]
    after: Option<String>,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args) -> Result<u8, Refusal> {
    let spool = match super::open(&args.config)? {
        Ok(spool) => spool,
        Err(_) if args.json => {
            say!("[]");
            return Ok(OK);
        }
        Err(missing) => {
            say!("Nothing is kept: {missing}.");
            return Ok(OK);
        }
    };
    let now = Timestamp::now();
    let filter = args.filters.filter(&DEFAULT, now);
    if let Some(after) = &args.after
        && spool.queue.show(after.clone()).await?.is_none()
    {
        return Err(Refusal::failed(format!(
            "--after {after}: there is no such message (any more); leave it out to begin anew"
        )));
    }
    // One more than is shown tells whether there are more.
    let most = if args.limit == 0 { 0 } else { args.limit.saturating_add(1) };
    let mut found =
        spool.queue.list(Filter { after: args.after.clone(), most, ..filter.clone() }).await?;
    let is_last = args.limit == 0 || found.len() <= args.limit;
    if !is_last {
        found.truncate(args.limit);
    }
    if args.json {
        let rows: Vec<_> = found.iter().map(Row::of).collect();
        say!("{:#}", serde_json::json!(rows));
        return Ok(OK);
    }
    if found.is_empty() {
        say!("{}", nothing(&args, &spool));
        return Ok(OK);
    }
    say!("{}", table(&found, now, width()).trim_end());
    say!();
    let all = match (is_last, &args.after) {
        (true, None) => found.len() as u64,
        _ => count(&spool, filter).await?,
    };
    if found.len() as u64 == all {
        say!("{}.", words::messages(all));
    } else {
        say!("{} of {}.", found.len(), words::messages(all));
    }
    if let Some(last) = found.last().filter(|_| !is_last) {
        say!("The next: {}", next_page(&args, &last.id));
    }
    Ok(OK)
}

fn nothing(args: &Args, spool: &Spool) -> String {
    if args.after.is_some() {
        "There are no more.".to_owned()
    } else if args.filters.is_empty() {
        format!("No message waits in {}.", spool.places.spool.display())
    } else {
        "No message is like that; without these options smtp-uplift queue list shows all that wait."
            .to_owned()
    }
}

/// How many messages there are in all, on other pages too.
async fn count(spool: &Spool, filter: Filter) -> Result<u64, Refusal> {
    if filter.device.is_some() || filter.before.is_some() {
        return Ok(spool.queue.list(filter).await?.len() as u64);
    }
    let totals = spool.queue.totals().await?;
    let listed = totals.messages.iter().filter(|(state, _)| filter.states.contains(state));
    Ok(listed.map(|(_, count)| count).sum())
}

fn next_page(args: &Args, last: &str) -> String {
    let mut command = "smtp-uplift queue list".to_owned();
    if let Some(file) = &args.config.config {
        command.push_str(&format!(" --config {}", words::shell(&file.to_string_lossy())));
    }
    command.push_str(&args.filters.written());
    if args.limit != 50 {
        command.push_str(&format!(" --limit {}", args.limit));
    }
    format!("{command} --after {}", words::shell(last))
}

/// Characters of a line; `None` where nobody is to see them at once.
fn width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    (size.ws_col > 0).then_some(size.ws_col.into())
}

/// A row a message, in columns; cut where a terminal's line ends.
fn table(messages: &[Summary], now: Timestamp, width: Option<usize>) -> String {
    const HEAD: [&str; 8] = ["ID", "STATE", "AGE", "DUE IN", "SIZE", "FROM", "TO", "REASON"];
    let most = width.map_or(usize::MAX, |width| (width / 4).clamp(ADDRESS.0, ADDRESS.1));
    let rows = messages.iter().map(|message| row(message, now, most));
    let rows: Vec<_> = std::iter::once(HEAD.map(str::to_owned)).chain(rows).collect();
    let mut widths = [0; HEAD.len() - 1];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let before: usize = widths.iter().map(|width| width + 2).sum();
    let mut table = String::new();
    for row in rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(&row) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        let reason = &row[HEAD.len() - 1];
        match width {
            Some(width) => line.push_str(&cut(reason, width.saturating_sub(before).max(REASON))),
            None => line.push_str(reason),
        }
        table.push_str(line.trim_end());
        table.push('\n');
    }
    table
}

fn row(message: &Summary, now: Timestamp, most: usize) -> [String; 8] {
    let state = message.state.as_str();
    let state = match &message.hold {
        // The sender's address has a column of its own.
        Some(hold) => format!("{state} ({})", hold.name().split(':').next().unwrap_or_default()),
        None => state.to_owned(),
    };
    let to = cut(&clean(&message.to), most);
    let to = match message.recipients.saturating_sub(1) {
        0 => to,
        others => format!("{to} +{others}"),
    };
    [
        clean(&message.id),
        state,
        words::span(message.received, now),
        words::due(message.due, now),
        words::size(message.size),
        cut(&words::sender(&message.from), most),
        to,
        clean(&message.reason),
    ]
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;
    use crate::spool::queue::Hold;

    fn messages(now: Timestamp) -> Vec<Summary> {
        let ready = Summary {
            id: "1tyjb7hc.1".into(),
            state: State::Ready,
            device: "10.1.2.3".into(),
            mailbox: "scanner@example.com".into(),
            from: "copier-on-the-third-floor@branch.example.com".into(),
            to: "a@example.com".into(),
            recipients: 1,
            size: 312_000,
            received: now - SignedDuration::from_mins(3),
            due: Some(now + SignedDuration::from_mins(2)),
            hold: None,
            reason: "451 4.7.0 Temporary server error. Please try again later. PRX4".into(),
            rule: "prx4".into(),
            attempts: 1,
            maybe_sent: 0,
        };
        let held = Summary {
            id: "1tyjb7hc.22".into(),
            state: State::Held,
            from: String::new(),
            recipients: 3,
            size: 1024,
            due: None,
            hold: Some(Hold::Sender(String::new())),
            reason: "554 5.2.252 \u{1b}[2JSendAsDenied".into(),
            ..ready.clone()
        };
        vec![ready, held]
    }

    #[test]
    fn columns_are_cut_on_a_terminal_only() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        insta::assert_snapshot!(table(&messages(now), now, None), @r"
        ID           STATE          AGE  DUE IN  SIZE      FROM                                          TO                REASON
        1tyjb7hc.1   ready          3m   2m      304.7KiB  copier-on-the-third-floor@branch.example.com  a@example.com     451 4.7.0 Temporary server error. Please try again later. PRX4
        1tyjb7hc.22  held (sender)  3m   -       1KiB      <>                                            a@example.com +2  554 5.2.252 ?[2JSendAsDenied
        ");
        insta::assert_snapshot!(table(&messages(now), now, Some(130)), @r"
        ID           STATE          AGE  DUE IN  SIZE      FROM                              TO                REASON
        1tyjb7hc.1   ready          3m   2m      304.7KiB  copier-on-the-third-floor@branc…  a@example.com     451 4.7.0 Temporary server…
        1tyjb7hc.22  held (sender)  3m   -       1KiB      <>                                a@example.com +2  554 5.2.252 ?[2JSendAsDeni…
        ");
        insta::assert_snapshot!(table(&messages(now), now, Some(20)), @r"
        ID           STATE          AGE  DUE IN  SIZE      FROM              TO                REASON
        1tyjb7hc.1   ready          3m   2m      304.7KiB  copier-on-the-t…  a@example.com     451 4.7.0 Temporary ser…
        1tyjb7hc.22  held (sender)  3m   -       1KiB      <>                a@example.com +2  554 5.2.252 ?[2JSendAsD…
        ");
    }
}
