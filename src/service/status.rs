//! The state of the relay as JSON, for operators and their tools.

use std::{net::SocketAddr, sync::Arc};

use serde::Serialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    config::Listener,
    smarthost::{
        journal::Trouble,
        pool::{Connections, Pool},
    },
    telemetry::{metrics::Metrics, transcript::Transcripts},
};

/// What there is to tell of.
pub(super) struct Status {
    pub(super) metrics: Metrics,
    pub(super) drain: CancellationToken,
    pub(super) pool: Arc<Pool>,
    pub(super) transcripts: Arc<Transcripts>,
    /// With the addresses that they are bound to.
    pub(super) listeners: Vec<(Listener, SocketAddr)>,
    pub(super) began: Instant,
}

#[derive(Serialize)]
struct Whole<'a> {
    version: &'static str,
    uptime_seconds: u64,
    listeners: Vec<ListenerState<'a>>,
    mailboxes: [MailboxState<'a>; 1],
    transcripts: Vec<Transcript>,
}

#[derive(Serialize)]
struct ListenerState<'a> {
    name: &'a str,
    address: SocketAddr,
    tls: &'static str,
    tls_profile: &'static str,
}

#[derive(Serialize)]
struct MailboxState<'a> {
    address: &'a str,
    state: &'static str,
    connections: Connections,
    waiting: usize,
    last_error: Option<Trouble>,
}

#[derive(Serialize)]
struct Transcript {
    id: String,
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    lines: Option<Vec<String>>,
}

impl Status {
    /// Everything but the lines of the transcripts.
    pub(super) fn whole(&self) -> String {
        let listeners = self.listeners.iter().map(|(listener, address)| ListenerState {
            name: &listener.name,
            address: *address,
            tls: listener.tls.as_str(),
            tls_profile: listener.tls_profile.as_str(),
        });
        json(&Whole {
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: self.began.elapsed().as_secs(),
            listeners: listeners.collect(),
            mailboxes: [MailboxState {
                address: self.pool.mailbox(),
                state: self.pool.state().as_str(),
                connections: self.pool.connections(),
                waiting: self.pool.waiting(),
                last_error: self.pool.journal().last_error(),
            }],
            transcripts: self.found(None, false),
        })
    }

    /// What was said under an id, if it was kept.
    pub(super) fn transcripts(&self, id: &str) -> Option<String> {
        let found = self.found(Some(id), true);
        (!found.is_empty()).then(|| json(&found))
    }

    fn found(&self, id: Option<&str>, lines: bool) -> Vec<Transcript> {
        let kept = self.transcripts.find(id).into_iter();
        kept.map(|kept| Transcript {
            id: kept.id,
            time: kept.time.to_string(),
            lines: lines.then_some(kept.lines),
        })
        .collect()
    }
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}
