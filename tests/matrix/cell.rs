//! One cell: a message meets with a fault, the fault lasts for a while, then it is over.

use std::time::Duration;

use smtp_uplift::spool::queue::{State, Summary};
use tokio::time::sleep;

use super::{
    cases::{Case, Trouble},
    common::{SPOOL, STREAM, memory::InMemory},
    house::{
        COPIER, Heard, OFFICE, PATIENCE, copies, count, house, is_over, message, rows, say_so,
        send, smarthost, until,
    },
};

/// Longer than the third probe of what is stopped is away: 15, 30 and 60 minutes.
const HOURS: Duration = Duration::from_secs(2 * 3600);
/// Longer than the smarthost may think about a dot, and than the wait before the next attempt.
const NEXT: Duration = Duration::from_secs(2000);
/// The one whose message is through when the fault strikes.
const EARLIER: &str = "earlier@example.com";

/// What was seen.
pub(super) struct Seen {
    /// What the device heard.
    pub heard: String,
    /// The longest that it waited, in seconds.
    pub waited: u64,
    /// Copies that had arrived by then.
    pub at_once: usize,
    /// What was kept then.
    pub kept: Option<State>,
    /// What had become of that after another try, with the fault still there.
    pub tried: Option<State>,
    /// What became of it when the fault was over; in `stream` mode when a device gets through again.
    pub end: String,
    /// Copies in the end.
    pub copies: usize,
    /// Promises that were not kept.
    pub broken: Vec<String>,
}

/// Runs a cell; `None` if there is no such thing.
pub(super) async fn run(case: &Case, delivery: &str) -> Option<Seen> {
    let smarthost = match &case.trouble {
        Trouble::Impossible => return None,
        Trouble::Away => smarthost(""),
        Trouble::Fault(lines) => smarthost(&format!("[[fault]]\n{lines}")),
    };
    smarthost.refuse(matches!(case.trouble, Trouble::Away));
    let house = house(smarthost, delivery).await;
    let mut broken = Vec::new();
    if case.follows {
        let earlier = send(&house, COPIER, &[EARLIER], &message(false)).await;
        if !earlier.is_yes() {
            broken.push(format!("the message before hears {}", earlier.told()));
        }
        // In spool mode it has gone on its way meanwhile.
        sleep(Duration::from_secs(3)).await;
        if copies(&house, EARLIER) != 1 {
            broken.push("the message before has not arrived".to_owned());
        }
    }
    let heard = send(&house, COPIER, &[OFFICE], &message(case.large)).await;
    let mut seen = Seen {
        heard: heard.told(),
        waited: (heard.waited.as_secs_f64()).round() as u64,
        at_once: count(&heard.arrived, OFFICE),
        kept: kept(&house).await.map(|row| row.state),
        tried: None,
        end: String::new(),
        copies: 0,
        broken,
    };
    if delivery == STREAM {
        seen.copies = seen.at_once;
        seen.end = again(&house).await;
    } else {
        seen.tried = next(&house, delivery).await;
        seen.end = afterwards(&house).await;
        seen.copies = copies(&house, OFFICE);
    }
    let last = kept(&house).await;
    if case.follows && copies(&house, EARLIER) != 1 {
        seen.broken.push(format!("{} copies of the message before", copies(&house, EARLIER)));
    }
    let promises = promises(&seen, &heard, last.as_ref(), delivery);
    seen.broken.extend(promises);
    Some(seen)
}

/// The message's row.
async fn kept(house: &InMemory) -> Option<Summary> {
    rows(house).await.into_iter().find(|row| row.to == OFFICE)
}

/// Waits until what is kept was tried once more, if anything is and that is to be. In `spool` mode that may have
/// happened already.
async fn next(house: &InMemory, delivery: &str) -> Option<State> {
    let mut before = kept(house).await?;
    if delivery == SPOOL {
        (before.state, before.attempts) = (State::Ready, 0);
    }
    let rests = |row: &Summary| {
        let tried = row.state != before.state || row.attempts != before.attempts;
        let under_way = matches!(row.state, State::Leased | State::Awaiting);
        is_over(row) || row.state == State::Held || tried && !under_way
    };
    until(house, NEXT, |row| row.to != OFFICE || rests(row)).await;
    Some(kept(house).await?.state)
}

/// The fault is over: what becomes of what is kept.
async fn afterwards(house: &InMemory) -> String {
    house.sandbox.mend();
    house.sandbox.refuse(false);
    let told = if until(house, HOURS, is_over).await {
        ""
    } else {
        say_so(house);
        until(house, NEXT, is_over).await;
        ", when told that it is mended"
    };
    match kept(house).await {
        Some(row) => format!("{}{told}", row.state.as_str()),
        None => String::new(),
    }
}

/// The fault is over: when a device gets through that tries every minute.
async fn again(house: &InMemory) -> String {
    const ANOTHER: &str = "another@example.com";
    house.sandbox.mend();
    house.sandbox.refuse(false);
    for minutes in 0..120 {
        if send(house, COPIER, &[ANOTHER], &message(false)).await.is_yes() {
            return if minutes == 0 {
                "at once".to_owned()
            } else {
                format!("after {minutes} min")
            };
        }
        sleep(Duration::from_secs(60)).await;
    }
    say_so(house);
    match send(house, COPIER, &[ANOTHER], &message(false)).await {
        heard if heard.is_yes() => "when told that it is mended".to_owned(),
        _ => "never".to_owned(),
    }
}

/// What holds in every cell. Returns what does not.
fn promises(seen: &Seen, heard: &Heard, last: Option<&Summary>, delivery: &str) -> Vec<String> {
    let mut broken = Vec::new();
    let mut promise = |kept: bool, what: &str| {
        if !kept {
            broken.push(what.to_owned());
        }
    };
    let yes = heard.is_yes();
    let patience = PATIENCE + Duration::from_secs(1);
    let failed = last.is_some_and(|row| row.state == State::Failed);
    promise(!yes || seen.at_once > 0 || seen.kept.is_some(), "a yes for what is nowhere");
    promise(yes || seen.at_once == 0, "a no for what has arrived");
    promise(yes || seen.kept.is_none(), "a no for what is kept");
    // What the smarthost has refused for good is kept to be looked at.
    promise(!yes || seen.copies > 0 || failed, "a yes for what is lost in the end");
    let maybe_sent = last.is_some_and(|row| row.maybe_sent > 0);
    promise(seen.copies < 2 || maybe_sent, "sent twice without being maybe sent");
    if delivery == STREAM {
        promise(heard.at == "dot" || heard.waited <= patience, "a command waits too long");
        promise(last.is_none(), "something is kept in stream mode");
        promise(seen.end != "never", "no device gets through any more");
    } else {
        promise(heard.waited <= patience, "a device waits too long");
        promise(heard.stalled <= patience, "data wait too long");
        promise(last.is_none_or(is_over), "what is kept stays where it is");
    }
    broken
}
