//! The promises of a queue, kept by this one.

mod changing;
mod delivering;
mod opening;
mod sharing;
mod taking;

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use jiff::Timestamp;
use tempfile::TempDir;

use super::*;
use crate::{
    proto::path::{Address, ForwardPath, ReversePath},
    spool::queue::{NewNotice, Recipient, RecipientState, Standing},
    telemetry::metrics::Metrics,
};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn address(text: &str) -> Address {
    Address::parse(text).unwrap()
}

fn recipient(text: &str) -> Recipient {
    Recipient {
        path: ForwardPath::Address(address(text)),
        state: RecipientState::Pending,
        reply: String::new(),
    }
}

fn standing(state: State) -> Standing {
    Standing {
        state,
        due: None,
        hold: None,
        reason: String::new(),
        rule: String::new(),
        attempts: 0,
        maybe_sent: false,
        transcript: String::new(),
    }
}

/// A small message that was received at second 0 and is due then.
fn message(id: &str) -> NewMessage {
    NewMessage {
        id: id.to_owned(),
        mailbox: "default".to_owned(),
        bound: false,
        device: "scanner".to_owned(),
        listener: "legacy".to_owned(),
        reverse_path: ReversePath::Address(address("scan@example.org")),
        eight_bit: false,
        smtputf8: false,
        received: at(0),
        head: "Received: from scanner\r\n".to_owned(),
        body: Body::Chunks(vec![Bytes::from_static(b"Subject: scan\r\n\r\nHello\r\n")]),
        is_notice: false,
        recipients: vec![recipient("a@example.com"), recipient("b@example.com")],
        standing: Standing { due: Some(at(0)), ..standing(State::Ready) },
        notice: None,
    }
}

/// One in this state, as `take` makes it.
fn message_in(id: &str, state: State) -> NewMessage {
    let due = (state != State::Held).then_some(at(0));
    let hold = (state == State::Held).then_some(Hold::Credential);
    NewMessage { standing: Standing { due, hold, ..standing(state) }, ..message(id) }
}

fn large(id: &str) -> NewMessage {
    let chunk = Bytes::from_iter((0..100_000_u32).map(|n| (n % 251) as u8));
    NewMessage { body: Body::Chunks(vec![chunk; 4]), ..message(id) }
}

fn notice(subject: &str) -> NewNotice {
    NewNotice { subject: subject.to_owned(), text: "Plain words.\n".to_owned(), time: at(3) }
}

fn open_at(directory: &Path) -> Arc<Store> {
    Store::open(directory, u64::MAX, Metrics::new("test")).unwrap()
}

fn open() -> (TempDir, Arc<Store>) {
    let folder = tempfile::tempdir().unwrap();
    let store = open_at(&folder.path().join("spool"));
    (folder, store)
}

/// Takes messages, in this order.
async fn take_all(store: &Store, messages: impl IntoIterator<Item = NewMessage>) {
    for message in messages {
        store.take(message).await.unwrap();
    }
}

async fn summary(store: &Store, id: &str) -> Summary {
    store.show(id.to_owned()).await.unwrap().unwrap().summary
}

async fn state(store: &Store, id: &str) -> State {
    summary(store, id).await.state
}

/// State and hold, as `held/credential`.
async fn stands(store: &Store, id: &str) -> String {
    let summary = summary(store, id).await;
    match summary.hold {
        Some(hold) => format!("{}/{}", summary.state.as_str(), hold.name()),
        None => summary.state.as_str().to_owned(),
    }
}

/// Messages of the usual mailbox that are due by then.
fn due_by(now: Timestamp, most: usize) -> Due {
    Due { mailbox: "default".to_owned(), unbound: false, now, most }
}

/// Stopped at a mailbox.
fn stop(mailbox: &str, hold: Hold) -> Stop {
    let (reason, rule) = ("no".to_owned(), "rule".to_owned());
    Stop { mailbox: mailbox.to_owned(), hold, reason, rule, bound: false }
}

async fn lease_ids(store: &Store, now: Timestamp) -> Vec<String> {
    store.lease_due(due_by(now, 100)).await.unwrap().into_iter().map(|leased| leased.id).collect()
}

async fn listed(store: &Store, filter: Filter) -> Vec<String> {
    store.list(filter).await.unwrap().into_iter().map(|summary| summary.id).collect()
}

/// Octets of a body, wherever they are.
fn octets(body: Body) -> Vec<u8> {
    match body {
        Body::Chunks(chunks) => chunks.concat(),
        Body::File { path, size } => {
            let data = std::fs::read(path).unwrap();
            assert_eq!(data.len() as u64, size);
            data
        }
    }
}

/// Changes the database behind the store's back.
async fn tamper(store: &Store, sql: &'static str) {
    store.submit(Kind::Note, move |connection| Ok(connection.execute_batch(sql)?)).await.unwrap();
}
