//! Messages as rows, and back.

use jiff::Timestamp;
use rusqlite::{
    Connection, OptionalExtension as _, Row, ToSql, named_params, params,
    types::{FromSql, FromSqlError, FromSqlResult, ToSqlOutput, ValueRef},
};

use super::{body::Stored, error::Fault};
use crate::{
    proto::path::{Address, ForwardPath, ReversePath},
    spool::queue::{
        Body, Detail, Filter, Hold, NewMessage, NewNotice, Notice, Recipient, RecipientState,
        Standing, State, Summary, Totals,
    },
};

/// A time as milliseconds since 1970.
pub(super) struct Time(pub(super) Timestamp);

/// A list of names as one value, for `IN (SELECT value FROM json_each(?))`.
pub(super) fn names<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    serde_json::Value::from_iter(names).to_string()
}

/// Notices that are kept.
const NOTICES: i64 = 1000;

const SUMMARY: &str = "seq, id, state, device, mailbox, reverse_path, size, received, due, hold, \
    reason, rule, attempts, maybe_sent, \
    coalesce((SELECT path FROM recipients WHERE message = seq AND place = 0), '') AS first, \
    (SELECT count(*) FROM recipients WHERE message = seq) AS recipients";

/// Writes a new message.
pub(super) fn insert(
    connection: &Connection,
    message: &NewMessage,
    stored: &Stored,
) -> Result<(), Fault> {
    let standing = Standing { due: due(&message.standing), ..message.standing.clone() };
    let known =
        connection.prepare_cached("SELECT 1 FROM messages WHERE id = ?1")?.exists([&message.id])?;
    if known || standing.state == State::Leased {
        return Err(Fault::of_job(format!("message {} cannot be taken as new", message.id)));
    }
    // What is over at once was settled when it came.
    let over = matches!(standing.state, State::Failed | State::Done);
    connection
        .prepare_cached(
            "INSERT INTO messages (id, state, due, hold, received, settled, size, in_file, attempts,
                maybe_sent, is_notice, eight_bit, smtputf8, mailbox, bound, device, listener,
                reverse_path, rule, reason, head, transcript)
            VALUES (:id, :state, :due, :hold, :received, :settled, :size, :in_file, :attempts,
                :maybe_sent, :is_notice, :eight_bit, :smtputf8, :mailbox, :bound, :device, :listener,
                :reverse_path, :rule, :reason, :head, :transcript)",
        )?
        .execute(named_params! {
            ":id": message.id,
            ":state": standing.state,
            ":due": standing.due.map(Time),
            ":hold": hold(&standing),
            ":received": Time(message.received),
            ":settled": over.then_some(Time(message.received)),
            ":size": message.body.size() as i64,
            ":in_file": matches!(stored, Stored::File(_)),
            ":attempts": standing.attempts,
            ":maybe_sent": u32::from(standing.maybe_sent),
            ":is_notice": message.is_notice,
            ":eight_bit": message.eight_bit,
            ":smtputf8": message.smtputf8,
            ":mailbox": message.mailbox,
            ":bound": message.bound,
            ":device": message.device,
            ":listener": message.listener,
            ":reverse_path": message.reverse_path.as_str(),
            ":rule": standing.rule,
            ":reason": standing.reason,
            ":head": message.head,
            ":transcript": standing.transcript,
        })?;
    let seq = connection.last_insert_rowid();
    let mut recipient =
        connection.prepare_cached("INSERT INTO recipients VALUES (?1, ?2, ?3, ?4, ?5)")?;
    for (place, to) in message.recipients.iter().enumerate() {
        recipient.execute(params![seq, place as i64, to.path.as_str(), to.state, to.reply])?;
    }
    if let Stored::Row(data) = stored
        && standing.state != State::Done
    {
        connection
            .prepare_cached("INSERT INTO bodies VALUES (?1, ?2)")?
            .execute(params![seq, data])?;
    }
    message.notice.as_ref().map_or(Ok(()), |notice| add_notice(connection, notice))
}

/// When it is due, in the states in which it can be.
pub(super) fn due(standing: &Standing) -> Option<Timestamp> {
    let waits = matches!(standing.state, State::Ready | State::MaybeSent | State::Held);
    standing.due.filter(|_| waits)
}

/// What holds it, if it is held.
pub(super) fn hold(standing: &Standing) -> Option<&Hold> {
    standing.hold.as_ref().filter(|_| standing.state == State::Held)
}

pub(super) fn list(connection: &Connection, filter: &Filter) -> Result<Vec<Summary>, Fault> {
    // The plus keeps the states' index out of it: its rows would all have to be sorted, while a page is found
    // soon in the order of the list.
    let mut sql = format!("SELECT {SUMMARY} FROM messages WHERE 1");
    let states = names(filter.states.iter().map(|state| state.as_str()));
    let (before, most) = (filter.before.map(Time), filter.most as i64);
    let mut values: Vec<(&str, &dyn ToSql)> = Vec::new();
    if !filter.states.is_empty() {
        sql.push_str(" AND +state IN (SELECT value FROM json_each(:states))");
        values.push((":states", &states));
    }
    if let Some(device) = &filter.device {
        sql.push_str(" AND device = :device");
        values.push((":device", device));
    }
    if let Some(before) = &before {
        sql.push_str(" AND received < :before");
        values.push((":before", before));
    }
    if let Some(after) = &filter.after {
        sql.push_str(" AND seq > (SELECT seq FROM messages WHERE id = :after)");
        values.push((":after", after));
    }
    sql.push_str(" ORDER BY seq");
    if filter.most > 0 {
        sql.push_str(" LIMIT :most");
        values.push((":most", &most));
    }
    let mut statement = connection.prepare_cached(&sql)?;
    let rows = statement.query_map(values.as_slice(), summary)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn show(connection: &Connection, id: &str) -> Result<Option<Detail>, Fault> {
    let sql = format!(
        "SELECT {SUMMARY}, listener, head, transcript, settled FROM messages WHERE id = ?1"
    );
    let found = connection
        .prepare_cached(&sql)?
        .query_row([id], |row| {
            let detail = Detail {
                summary: summary(row)?,
                listener: row.get("listener")?,
                head: row.get("head")?,
                recipients: Vec::new(),
                transcript: row.get("transcript")?,
                settled: time(row, "settled")?,
            };
            Ok((row.get::<_, i64>("seq")?, detail))
        })
        .optional()?;
    let Some((seq, detail)) = found else {
        return Ok(None);
    };
    Ok(Some(Detail { recipients: recipients(connection, seq)?, ..detail }))
}

/// All recipients of a message, in order.
pub(super) fn recipients(connection: &Connection, seq: i64) -> Result<Vec<Recipient>, Fault> {
    let mut statement = connection.prepare_cached(
        "SELECT path, state, reply FROM recipients WHERE message = ?1 ORDER BY place",
    )?;
    let rows = statement
        .query_map([seq], |row| Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?)))?;
    rows.map(|row| {
        let (path, state, reply) = row?;
        Ok(Recipient { path: forward_path(&path)?, state, reply })
    })
    .collect()
}

/// The mail data of a message in its row.
pub(super) fn inline_body(connection: &Connection, seq: i64) -> rusqlite::Result<Option<Body>> {
    let data: Option<Vec<u8>> = connection
        .prepare_cached("SELECT data FROM bodies WHERE message = ?1")?
        .query_row([seq], |row| row.get(0))
        .optional()?;
    Ok(data.map(|data| Body::Chunks(vec![data.into()])))
}

pub(super) fn totals(connection: &Connection) -> Result<Totals, Fault> {
    let notices = connection
        .query_row("SELECT count(*) AS notices FROM notices", [], |row| count(row, "notices"))?;
    let mut totals = Totals { notices, ..Totals::default() };
    let mut statement = connection.prepare_cached(
        "SELECT state, count(*) AS messages, sum(size) AS octets, min(received) AS oldest,
            sum(is_notice) AS notices
        FROM messages GROUP BY state",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let state: State = row.get("state")?;
        totals.messages.push((state, count(row, "messages")?));
        if state != State::Done {
            totals.bytes += count(row, "octets")?;
        }
        if !matches!(state, State::Done | State::Failed) {
            let oldest = row.get::<_, Time>("oldest")?.0;
            totals.oldest = Some(totals.oldest.map_or(oldest, |known| known.min(oldest)));
            totals.notices += count(row, "notices")?;
        }
    }
    totals.messages.sort_unstable_by_key(|(state, _)| *state);
    Ok(totals)
}

/// Adds a notice. Where nobody fetches them they do not pile up: the oldest give way.
pub(super) fn add_notice(connection: &Connection, notice: &NewNotice) -> Result<(), Fault> {
    connection
        .prepare_cached("INSERT INTO notices (time, subject, text) VALUES (?1, ?2, ?3)")?
        .execute(params![Time(notice.time), notice.subject, notice.text])?;
    connection
        .prepare_cached(
            "DELETE FROM notices WHERE number <=
                (SELECT number FROM notices ORDER BY number DESC LIMIT 1 OFFSET ?1)",
        )?
        .execute([NOTICES])?;
    Ok(())
}

pub(super) fn notices(connection: &Connection) -> Result<Vec<Notice>, Fault> {
    let mut statement = connection.prepare_cached(
        "SELECT number, subject, text, time FROM notices ORDER BY number LIMIT ?1",
    )?;
    let rows = statement.query_map([NOTICES], |row| {
        let notice =
            NewNotice { subject: row.get(1)?, text: row.get(2)?, time: row.get::<_, Time>(3)?.0 };
        Ok(Notice { number: row.get(0)?, notice })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn summary(row: &Row<'_>) -> rusqlite::Result<Summary> {
    Ok(Summary {
        id: row.get("id")?,
        state: row.get("state")?,
        device: row.get("device")?,
        mailbox: row.get("mailbox")?,
        from: row.get("reverse_path")?,
        to: row.get("first")?,
        recipients: count(row, "recipients")? as usize,
        size: count(row, "size")?,
        received: row.get::<_, Time>("received")?.0,
        due: time(row, "due")?,
        hold: row.get("hold")?,
        reason: row.get("reason")?,
        rule: row.get("rule")?,
        attempts: row.get("attempts")?,
        maybe_sent: row.get("maybe_sent")?,
    })
}

/// A number that is never negative.
pub(super) fn count(row: &Row<'_>, column: &str) -> rusqlite::Result<u64> {
    Ok(row.get::<_, i64>(column)?.max(0) as u64)
}

/// A text, whatever its octets are.
pub(super) fn lossy(row: &Row<'_>, column: usize) -> rusqlite::Result<String> {
    Ok(match row.get_ref(column)? {
        ValueRef::Text(octets) => String::from_utf8_lossy(octets).into_owned(),
        _ => String::new(),
    })
}

/// A time that may be none.
pub(super) fn time(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<Timestamp>> {
    Ok(row.get::<_, Option<Time>>(column)?.map(|time| time.0))
}

pub(super) fn forward_path(text: &str) -> Result<ForwardPath, Fault> {
    if text == ForwardPath::Postmaster.as_str() {
        return Ok(ForwardPath::Postmaster);
    }
    Address::parse(text).map(ForwardPath::Address).map_err(|_| unreadable())
}

pub(super) fn reverse_path(text: &str) -> Result<ReversePath, Fault> {
    if text.is_empty() {
        return Ok(ReversePath::Null);
    }
    Address::parse(text).map(ReversePath::Address).map_err(|_| unreadable())
}

fn unreadable() -> Fault {
    Fault::of_job("a path in the database cannot be read")
}

impl ToSql for Time {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.0.as_millisecond().into())
    }
}

impl FromSql for Time {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let time = Timestamp::from_millisecond(value.as_i64()?);
        time.map(Self).map_err(|_| FromSqlError::InvalidType)
    }
}

impl ToSql for State {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.as_str().into())
    }
}

impl FromSql for State {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Self::parse(value.as_str()?).ok_or(FromSqlError::InvalidType)
    }
}

impl ToSql for Hold {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.name().into())
    }
}

impl FromSql for Hold {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Self::parse(value.as_str()?).ok_or(FromSqlError::InvalidType)
    }
}

impl ToSql for RecipientState {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
        }
        .into())
    }
}

impl FromSql for RecipientState {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        match value.as_str()? {
            "pending" => Ok(Self::Pending),
            "delivered" => Ok(Self::Delivered),
            "failed" => Ok(Self::Failed),
            _ => Err(FromSqlError::InvalidType),
        }
    }
}
