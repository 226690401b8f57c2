//! A spool in whose database anything may stand: another program wrote there, a disk forgot. A line for each row:
//!
//! ```text
//! m?tready|:tlost|…      the table (m, r, b, n), then its cells behind "|": an octet that picks the column, one for
//!                        the type, and the value. i is a number, t text, u text that may be no UTF-8, x octets,
//!                        - is NULL. What is not said is what a whole row has.
//! ```

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::LazyLock,
};

use jiff::Timestamp;
use rusqlite::{Connection, types::Value};
use smtp_uplift::{
    spool::{
        queue::{Change, Due, Filter, Hold, Queue, QueueError, Settlement, Standing, State, Stop},
        store::Store,
    },
    telemetry::metrics::Metrics,
};
use tokio::runtime::Builder;

const MAILBOX: &str = "scanner@example.com";
/// The message that is whole, whatever stands beside it.
const WHOLE: &str = "whole.1";
const MESSAGES: [&str; 25] = [
    "id",
    "state",
    "due",
    "hold",
    "lease",
    "forced",
    "received",
    "settled",
    "size",
    "in_file",
    "attempts",
    "maybe_sent",
    "is_notice",
    "eight_bit",
    "smtputf8",
    "mailbox",
    "bound",
    "device",
    "listener",
    "reverse_path",
    "rule",
    "reason",
    "head",
    "transcript",
    "seq",
];
const RECIPIENTS: [&str; 5] = ["message", "place", "path", "state", "reply"];
const BODIES: [&str; 2] = ["message", "data"];
/// Without their number, which SQLite gives: when there is none left, nothing is told any more.
const NOTICES: [&str; 3] = ["time", "subject", "text"];

/// * Whatever stands in a row is an error or is set aside; nothing panics.
/// * A message that is whole is handed out all the same.
pub fn spool(input: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("spool");
    fs::create_dir(&directory).unwrap();
    let database = directory.join("queue.db");
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&database).unwrap();
    file.write_all(&EMPTY).unwrap();
    drop(file);
    let ids = fill(&database, input);
    let store = match Store::open(&directory, u64::MAX, Metrics::new("none")) {
        Ok(store) => store,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let now = Timestamp::from_second(2_000_000_000).unwrap();
        let due = || Due { mailbox: MAILBOX.to_owned(), unbound: false, now, most: 100 };
        let mut handed_out = Vec::new();
        // What is damaged may be found out on the way, and set aside by the next lease.
        for _ in 0..3 {
            handed_out.extend(sound(store.lease_due(due()).await).unwrap_or_default());
        }
        let whole = handed_out.iter().filter(|leased| leased.id == WHOLE).count();
        assert_eq!(whole, 1, "what is whole is handed out once, whatever lies beside it");
        for leased in handed_out {
            let standing = waiting(now);
            let _ = sound(store.settle(Settlement::new(&leased.id, standing, now)).await);
        }
        let _ = sound(store.list(Filter::default()).await);
        let _ = sound(store.totals().await);
        let _ = sound(store.notices().await);
        let _ = sound(store.lease_overdue(now, now, 100).await);
        for hold in [Hold::Operator, Hold::Message, Hold::Mailbox, Hold::Sender("a@x".to_owned())] {
            let mailbox = || MAILBOX.to_owned();
            let _ = sound(store.lease_held(mailbox(), hold.clone()).await);
            let (reason, rule) = (String::new(), String::new());
            let stop = Stop { mailbox: mailbox(), hold: hold.clone(), reason, rule, bound: false };
            let _ = sound(store.hold_all(stop).await);
            let _ = sound(store.holds().await);
            let _ = sound(store.release_all(mailbox(), hold, now).await);
        }
        for id in ids {
            let _ = sound(store.show(id.clone()).await);
            let _ = sound(store.body(id.clone()).await);
            for change in [Change::Hold, Change::Release, Change::Retry, Change::Drop] {
                let _ = sound(store.change(id.clone(), change, now).await);
            }
        }
        let _ = sound(store.adopt(&["other@example.com".to_owned()], now).await);
        let _ = sound(store.purge(now, now).await);
    });
}

fn waiting(now: Timestamp) -> Standing {
    Standing {
        state: State::Ready,
        due: Some(now),
        hold: None,
        reason: String::new(),
        rule: String::new(),
        attempts: 1,
        maybe_sent: false,
        transcript: String::new(),
    }
}

/// An answer, of work that came to its end: a panic on the store's thread is told as an error.
fn sound<T>(answer: Result<T, QueueError>) -> Result<T, QueueError> {
    if let Err(error) = &answer {
        assert!(!error.to_string().contains("its work was broken off"), "{error}");
    }
    answer
}

/// A database with its tables and nothing in them.
static EMPTY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("spool");
    drop(Store::open(&directory, u64::MAX, Metrics::new("none")).unwrap());
    let database = directory.join("queue.db");
    let connection = Connection::open(&database).unwrap();
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop(connection);
    fs::read(database).unwrap()
});

/// Writes the whole message, and the input's rows as far as SQLite takes them. Returns the ids that may be there.
fn fill(database: &Path, input: &[u8]) -> Vec<String> {
    let connection = Connection::open(database).unwrap();
    connection.execute_batch("PRAGMA foreign_keys = OFF; BEGIN").unwrap();
    let mut ids = vec![WHOLE.to_owned()];
    let text = |text: &str| Value::Text(text.to_owned());
    insert(&connection, "messages", &message(WHOLE, 1_000_000), &[]).unwrap();
    let to = [1_000_000.into(), 0.into(), text("office@example.com"), text("pending"), text("")];
    insert(&connection, "recipients", &named(&RECIPIENTS, to), &[]).unwrap();
    let data = Value::Blob(b"Subject: x\r\n\r\n".to_vec());
    insert(&connection, "bodies", &named(&BODIES, [1_000_000.into(), data]), &[]).unwrap();
    for (number, line) in input.split(|octet| *octet == b'\n').take(50).enumerate() {
        let Some((table, cells)) = line.split_first() else { continue };
        let seq = number as i64 + 1;
        let (table, columns, usual): (_, &[&str], _) = match table {
            b'r' => {
                let to = [seq.into(), 0.into(), text("b@example.com"), text("pending"), text("")];
                ("recipients", &RECIPIENTS, named(&RECIPIENTS, to))
            }
            b'b' => {
                let data = Value::Blob(b"Subject: x\r\n\r\n".to_vec());
                ("bodies", &BODIES, named(&BODIES, [seq.into(), data]))
            }
            b'n' => {
                let notice = [0.into(), text("subject"), text("text")];
                ("notices", &NOTICES, named(&NOTICES, notice))
            }
            _ => {
                let id = format!("k{number}.1");
                let row = message(&id, seq);
                ids.push(id);
                ("messages", &MESSAGES, row)
            }
        };
        let cells: Vec<_> = cells
            .split(|octet| *octet == b'|')
            .filter_map(|cell| match cell {
                [column, kind, value @ ..] => {
                    Some((columns[usize::from(*column) % columns.len()], *kind, value))
                }
                _ => None,
            })
            .collect();
        // What the tables do not take cannot stand in them.
        let _ = insert(&connection, table, &usual, &cells);
    }
    connection.execute_batch("COMMIT").unwrap();
    ids
}

fn named<const N: usize>(
    columns: &[&'static str; N],
    values: [Value; N],
) -> Vec<(&'static str, Value)> {
    columns.iter().copied().zip(values).collect()
}

/// A message that waits to be delivered.
fn message(id: &str, seq: i64) -> Vec<(&'static str, Value)> {
    let value = |column: &&'static str| {
        let value = match *column {
            "id" => Value::Text(id.to_owned()),
            "seq" => seq.into(),
            "state" => Value::Text("ready".to_owned()),
            "due" => 0.into(),
            "mailbox" => Value::Text(MAILBOX.to_owned()),
            "device" => Value::Text(format!("device {id}")),
            "hold" | "lease" | "settled" => Value::Null,
            "listener" | "reverse_path" | "rule" | "reason" | "head" | "transcript" => {
                Value::Text(String::new())
            }
            _ => 0.into(),
        };
        (*column, value)
    };
    MESSAGES.iter().map(value).collect()
}

fn insert(
    connection: &Connection,
    table: &str,
    usual: &[(&'static str, Value)],
    cells: &[(&str, u8, &[u8])],
) -> rusqlite::Result<usize> {
    let (mut columns, mut places, mut values) = (Vec::new(), Vec::new(), Vec::new());
    for (column, value) in usual {
        let cell = cells.iter().find(|(named, ..)| named == column);
        let (value, place) = match cell {
            None => (value.clone(), "?"),
            Some((_, b'i', digits)) => (integer(digits), "?"),
            Some((_, b'x', octets)) => (Value::Blob(octets.to_vec()), "?"),
            Some((_, b'u', octets)) => (Value::Blob(octets.to_vec()), "CAST(? AS TEXT)"),
            Some((_, b'-', _)) => (Value::Null, "?"),
            Some((_, _, octets)) => {
                (Value::Text(String::from_utf8_lossy(octets).into_owned()), "?")
            }
        };
        columns.push(*column);
        places.push(place);
        values.push(value);
    }
    let (columns, places) = (columns.join(", "), places.join(", "));
    let sql = format!("INSERT INTO {table} ({columns}) VALUES ({places})");
    connection.execute(&sql, rusqlite::params_from_iter(values))
}

/// Digits, or the octets themselves.
fn integer(octets: &[u8]) -> Value {
    let digits = std::str::from_utf8(octets).ok().and_then(|digits| digits.parse().ok());
    digits
        .unwrap_or_else(|| {
            octets.iter().fold(0i64, |sum, octet| sum.wrapping_mul(256) | i64::from(*octet))
        })
        .into()
}
