//! Several recipients of one message, of whom some are refused.

use std::{fmt::Write as _, time::Duration};

use smtp_uplift::{
    sandbox::Delivery,
    spool::queue::{Queue as _, RecipientState, State},
};
use tokio::time::sleep;

use super::{
    common::{KEEP, Plan, SPOOL, STREAM, memory::InMemory},
    house::{
        COPIER, PATIENCE, copies, count, in_its_own_time, is_over, message, plan, rows, send,
        shown, smarthost, until,
    },
};

const HELPDESK: &str = "helpdesk@example.com";
const GOOD: &str = "good@example.com";
const ALSO: &str = "also@example.com";
const GONE: &str = "reply-550-5.1.10@example.com";
const BUSY: &str = "reply-450-4.2.1@example.com";
const DENIED: &str = "reply-554-5.2.252-dot@example.com";

const HEAD: &str = "
## Several recipients

One message to several people. *Gone* is refused for good at RCPT (`550 5.1.10`), *busy* is deferred there (`450 4.2.1`)
until the relay has tried once more, the others are accepted. *Notice* tells whether the address in `[notices]` has got one.

| Recipients | Mode | The device hears | arrived | kept | in the end | arrived in the end | notice |
|---|---|---|---|---|---|---|---|
";

/// Who is named, and from whom.
struct Case {
    says: &'static str,
    from: &'static str,
    to: &'static [(&'static str, &'static str)],
    lines: &'static str,
    /// Who has it in the end where the relay keeps messages.
    has: &'static [&'static str],
}

const CASES: [Case; 6] = [
    Case {
        says: "good, gone, also",
        from: COPIER,
        to: &[("good", GOOD), ("gone", GONE), ("also", ALSO)],
        lines: "",
        has: &["good", "also"],
    },
    Case {
        says: "good, busy",
        from: COPIER,
        to: &[("good", GOOD), ("busy", BUSY)],
        lines: "",
        has: &["good", "busy"],
    },
    Case {
        says: "gone, busy, good",
        from: COPIER,
        to: &[("gone", GONE), ("busy", BUSY), ("good", GOOD)],
        lines: "",
        has: &["busy", "good"],
    },
    Case {
        says: "gone, busy",
        from: COPIER,
        to: &[("gone", GONE), ("busy", BUSY)],
        lines: "",
        has: &["busy"],
    },
    Case {
        says: "good, also; `452 4.5.3 Too many recipients` at the second, once",
        from: COPIER,
        to: &[("good", GOOD), ("also", ALSO)],
        // The second transaction takes its time, so that the device hears its answer first.
        lines: "[[fault]]\nstage = 'rcpt'\nreply = '452 4.5.3 Too many recipients'\nevery = 2\ntimes = 1\n[[fault]]\nstage = 'mail'\ndelay = 5.0\nevery = 2",
        has: &["good", "also"],
    },
    Case {
        says: "good, gone; `554 5.2.252` at the dot",
        from: DENIED,
        to: &[("good", GOOD), ("gone", GONE)],
        lines: "",
        has: &["good"],
    },
];

/// The table, and the promises that were not kept in it.
pub(super) fn section() -> (String, Vec<String>) {
    let (mut table, mut broken) = (HEAD.to_owned(), Vec::new());
    for case in &CASES {
        for (mode, delivery) in [("stream", STREAM), ("stream-then-spool", KEEP), ("spool", SPOOL)]
        {
            let (cells, faults) = in_its_own_time(run(case, delivery));
            writeln!(table, "| {} | `{mode}` | {} |", case.says, cells.join(" | ")).unwrap();
            broken
                .extend(faults.into_iter().map(|fault| format!("{mode}, {}: {fault}", case.says)));
        }
    }
    (table, broken)
}

/// Who has it, by their short names; with a number who has it more than once.
fn arrived(deliveries: &[Delivery], case: &Case) -> String {
    let have = case.to.iter().filter_map(|(name, address)| match count(deliveries, address) {
        0 => None,
        1 => Some((*name).to_owned()),
        more => Some(format!("{name} ({more})")),
    });
    have.collect::<Vec<_>>().join(", ")
}

async fn run(case: &Case, delivery: &str) -> (Vec<String>, Vec<String>) {
    let more = format!("[notices]\nto = \"{HELPDESK}\"");
    let folder = tempfile::tempdir().unwrap();
    let plan = Plan { more: &more, ..plan(delivery) };
    let house = InMemory::with(smarthost(case.lines), folder, plan).await;
    let to: Vec<&str> = case.to.iter().map(|(_, address)| *address).collect();
    let heard = send(&house, case.from, &to, &message(false)).await;
    let at_once = arrived(&heard.arrived, case);
    let kept = rows(&house).await;
    let mut broken = Vec::new();
    let mut promise = |kept: bool, what: &str| {
        if !kept {
            broken.push(what.to_owned());
        }
    };
    promise(heard.waited <= PATIENCE + Duration::from_secs(1), "a device waits too long");
    let codes: Vec<_> = heard.recipients.iter().map(|reply| reply.code.to_string()).collect();
    let mut cells = vec![match heard.at {
        "dot" => format!("RCPT {}; {}", codes.join(", "), heard.told()),
        _ => format!("RCPT {}", codes.join(", ")),
    }];
    // What the spool does with it meanwhile is a matter of the moment.
    cells.extend(match delivery {
        SPOOL => [String::new(), "ready".to_owned()],
        _ => [at_once.clone(), kept.first().map_or("", |row| shown(row.state)).to_owned()],
    });
    if delivery == STREAM {
        promise(kept.is_empty(), "something is kept in stream mode");
        // Whoever was accepted has it, and nobody else.
        let taken = heard
            .recipients
            .iter()
            .zip(case.to)
            .filter(|(reply, _)| heard.is_yes() && reply.code.is_positive());
        let taken = taken.map(|(_, (name, _))| *name).collect::<Vec<_>>().join(", ");
        promise(at_once == taken, "a verdict that is not true");
        cells.extend([String::new(), at_once, String::new()]);
        return (cells, broken);
    }
    // Long enough for one more try, and for none after that.
    sleep(Duration::from_secs(80)).await;
    house.sandbox.mend();
    promise(
        until(&house, Duration::from_secs(2 * 3600), is_over).await,
        "what is kept stays where it is",
    );
    // Notices are gathered for a while.
    sleep(Duration::from_secs(1200)).await;
    let told = copies(&house, HELPDESK) > 0;
    let mut end = String::new();
    if let Some(row) = kept.first() {
        let row = house.keeper().queue.show(row.id.clone()).await.unwrap().unwrap();
        end = row.summary.state.as_str().to_owned();
        for (recipient, (name, address)) in row.recipients.iter().zip(case.to) {
            let has = copies(&house, address) > 0;
            promise(has == (recipient.state == RecipientState::Delivered), name);
            promise(has || recipient.state == RecipientState::Failed, "somebody is left out");
        }
        let failed = row.recipients.iter().any(|to| to.state == RecipientState::Failed);
        promise(failed == (row.summary.state == State::Failed), "the row says something else");
        promise(told || !failed, "nobody is told");
    }
    let finally = arrived(&house.sandbox.deliveries(), case);
    promise(finally == case.has.join(", "), "not everybody who can has it once");
    cells.extend([end, finally, if told { "yes" } else { "" }.to_owned()]);
    (cells, broken)
}
