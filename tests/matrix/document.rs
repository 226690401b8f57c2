//! `docs/fault-matrix.md` shows what the matrix shows. `UPDATE_DOCS=1 cargo test --test matrix` writes it anew.

use std::{
    env,
    fmt::Write as _,
    fs,
    path::Path,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use smtp_uplift::spool::queue::State;

use super::{
    cases::{self, Case},
    cell::{self, Seen},
    common::{KEEP, SPOOL, STREAM},
    house::{in_its_own_time, shown},
    recipients,
};

const HEAD: &str = "# What becomes of a message when something goes wrong

<!-- Made by `UPDATE_DOCS=1 cargo test --test matrix`, which sends a message for every line; do not edit. -->

For those who run the relay and want to know what it does when the smarthost does not do what it should. A test has
sent a message for every line of these tables, and fails when one of them is not true any more.

Each line is one message, at a relay that has just been started. Something goes wrong at a *stage* of the dialogue with the
smarthost, in the same way every time, until the relay has tried once more by itself. Then it is over.

| Kind | What goes wrong |
|---|---|
| 4xx | the smarthost refuses for the moment |
| throttled | it has been sent too much |
| 5xx | it refuses for good |
| config | it refuses until somebody has changed a setting |
| close | it closes the connection, or lets nobody in |
| hang | it says nothing more, and keeps the connection |
| garbage | it says what is no reply |
| slow | its answer is 25 s late, which is more than a device is kept waiting (`device_patience`, 20 s) |

| Column | What it says |
|---|---|
| the device hears | the answer to its final dot, or to the command in brackets |
| after | the longest that it waited for an answer, in seconds |
| arrived | copies that had arrived when it heard that |
| kept | the state of the message in the relay's queue then; nothing if it is not there |
| next try, first try | the state after the relay has tried once more by itself, while things are as they were |
| in the end | the state when it is over. *When told*: nobody can see from outside that it is, so somebody says `smtp-uplift queue retry` or sends SIGHUP |
| copies | copies that have arrived in the end |
| gets through | when a device that tries every minute gets through again |

The states are those of `smtp-uplift queue list`: *ready* waits for its time, *awaiting* for the answer to its dot, *maybe-sent* may have
arrived and is sent again with the same Message-ID, *held* waits for somebody to change a setting, *failed* was
refused for good and is kept to be looked at, *done* was delivered.

Lines of dashes are about what does not happen. Before the greeting nobody says anything, and who does not get as far as
that is late with the greeting; in a handshake words are garbage, whatever they say; when a message is through nobody
waits for anything that could be late, and no setting is spoken of.

*In the data* is a message of 200 KiB, of which 32 KiB have gone up. *After the dot* a message is through already, and
something happens to the connection that it took; the line is about the next message.

**What holds in every line:** a device that hears 250 has its message delivered or on disk; one that hears anything
else can send it again without making a second copy; nothing that was answered with 250 is lost; there is a second copy only of
what was *maybe-sent*; no device waits longer for an answer than `device_patience`, except in `stream` mode for that
to its dot, which is the smarthost's own.
";

#[test]
fn each_stage_and_fault_in_each_mode_is_as_written() {
    let cases = cases::all();
    let modes = [
        ("stream", STREAM, "The smarthost's answer is the device's. Nothing is kept."),
        ("stream-then-spool", KEEP, "What the smarthost does not take at once is kept."),
        ("spool", SPOOL, "Everything is kept first, and the device hears 250 at once."),
    ];
    let deliveries = modes.map(|(_, delivery, _)| delivery);
    let (seen, recipients) = thread::scope(|scope| {
        let recipients = scope.spawn(recipients::section);
        (all_cells(&cases, &deliveries), recipients.join().unwrap())
    });
    let mut text = HEAD.to_owned();
    let mut broken = Vec::new();
    for ((name, delivery, says), seen) in modes.into_iter().zip(seen.chunks(cases.len())) {
        let (table, faults) = section(&cases, delivery, seen);
        write!(text, "\n## `{name}`\n\n{says}\n\n{table}").unwrap();
        broken.extend(faults.into_iter().map(|fault| format!("{name}: {fault}")));
    }
    let (table, faults) = recipients;
    text.push_str(&table);
    broken.extend(faults);
    println!("{text}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/fault-matrix.md");
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &text).unwrap();
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    let there = fs::read_to_string(&path).unwrap_or_default();
    let other = text.lines().filter(|line| !there.lines().any(|known| known == *line));
    let other: Vec<_> = other.collect();
    assert!(
        there == text,
        "docs/fault-matrix.md is stale: UPDATE_DOCS=1 cargo test --test matrix\n{}",
        other.join("\n")
    );
}

/// Runs every case in every mode, on as many threads as the machine has use for; they take what is next.
fn all_cells(cases: &[Case], deliveries: &[&str]) -> Vec<Option<Seen>> {
    let count = cases.len() * deliveries.len();
    let (next, seen) = (AtomicUsize::new(0), (0..count).map(|_| OnceLock::new()));
    let seen: Vec<OnceLock<Option<Seen>>> = seen.collect();
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, |count| count.get() + 1) {
            scope.spawn(|| {
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(cell) = seen.get(place) else { break };
                    let (mode, case) = (place / cases.len(), place % cases.len());
                    let running = cell::run(&cases[case], deliveries[mode]);
                    let _ = cell.set(in_its_own_time(running));
                }
            });
        }
    });
    seen.into_iter().map(|cell| cell.into_inner().flatten()).collect()
}

/// The table of a mode, and the promises that were not kept in it.
fn section(cases: &[Case], delivery: &str, seen: &[Option<Seen>]) -> (String, Vec<String>) {
    let columns: &[&str] = match delivery {
        STREAM => &["the device hears", "after", "arrived", "gets through"],
        KEEP => {
            &["the device hears", "after", "arrived", "kept", "next try", "in the end", "copies"]
        }
        _ => &["the device hears", "after", "first try", "in the end", "copies"],
    };
    let mut table = format!(
        "| Stage | Kind | The smarthost | {} |\n|---|---|---|{}\n",
        columns.join(" | "),
        "---|".repeat(columns.len())
    );
    let mut broken = Vec::new();
    for (case, seen) in cases.iter().zip(seen) {
        let does = if seen.is_some() { &case.does } else { "-" };
        let cells = match seen {
            Some(seen) => columns.iter().map(|column| cell(seen, column)).collect(),
            None => vec!["-".to_owned(); columns.len()],
        };
        writeln!(table, "| {} | {} | {does} | {} |", case.stage, case.kind, cells.join(" | "))
            .unwrap();
        let faults = seen.iter().flat_map(|seen| &seen.broken);
        let place = format!("{}, {}, {}", case.stage, case.kind, case.does);
        broken.extend(faults.map(|fault| format!("{place}: {fault}")));
    }
    (table, broken)
}

fn cell(seen: &Seen, column: &str) -> String {
    let state = |state: Option<State>| state.map_or("", shown).to_owned();
    match column {
        "the device hears" => seen.heard.clone(),
        "after" => format!("{} s", seen.waited),
        "arrived" => seen.at_once.to_string(),
        "kept" => state(seen.kept),
        "first try" | "next try" => state(seen.tried),
        "copies" => seen.copies.to_string(),
        _ => seen.end.clone(),
    }
}
