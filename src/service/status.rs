//! The state of the relay as JSON, for operators and their tools.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    config::Listener,
    relay::{
        Relay,
        keeper::Keeper,
        mailboxes::{Mailbox, Mailboxes},
        roster::{Device, Roster},
    },
    smarthost::{desk::Left, journal::Trouble, pool::Connections},
    spool::queue::{Queue as _, State},
    telemetry::{metrics::Metrics, transcript::Transcripts},
};

/// Octets of a reason: `healthcheck` prints 200.
const SENTENCE: usize = 190;

/// What there is to tell of.
pub(super) struct Status {
    pub(super) metrics: Metrics,
    pub(super) drain: CancellationToken,
    pub(super) relay: Arc<Relay>,
    pub(super) mailboxes: Arc<Mailboxes>,
    pub(super) keeper: Option<Arc<Keeper>>,
    pub(super) roster: Arc<Roster>,
    pub(super) transcripts: Arc<Transcripts>,
    /// With the addresses that they are bound to.
    pub(super) listeners: Vec<(Listener, SocketAddr)>,
    pub(super) began: Instant,
}

#[derive(Serialize)]
struct Whole<'a> {
    version: &'static str,
    uptime_seconds: u64,
    /// What should not stay so.
    warnings: Vec<String>,
    listeners: Vec<ListenerState<'a>>,
    mailboxes: Vec<MailboxState<'a>>,
    /// Those that were seen last first.
    devices: Vec<Device>,
    spool: Option<SpoolState>,
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
    /// What it may still send.
    budget: Left,
    /// What is held until somebody changes a setting.
    stopped: Vec<String>,
    token_expires: Option<String>,
    credential_expires: Option<String>,
    last_error: Option<Trouble>,
}

#[derive(Serialize)]
struct SpoolState {
    #[serde(flatten)]
    messages: BTreeMap<&'static str, u64>,
    oldest_seconds: u64,
    bytes: u64,
    /// Notices to people that have not gone out.
    notices_waiting: u64,
    /// Why no message can be kept, if none can.
    #[serde(skip_serializing_if = "Option::is_none")]
    trouble: Option<String>,
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
    pub(super) async fn whole(&self) -> String {
        let spool = self.spool().await;
        let listeners = self.listeners.iter().map(|(listener, address)| ListenerState {
            name: &listener.name,
            address: *address,
            tls: listener.profile.tls.as_str(),
            tls_profile: listener.profile.tls_profile.as_str(),
        });
        json(&Whole {
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: self.began.elapsed().as_secs(),
            warnings: self.warnings(),
            listeners: listeners.collect(),
            mailboxes: self.mailboxes.all().iter().map(|mailbox| state(mailbox)).collect(),
            devices: self.roster.devices(),
            spool,
            transcripts: self.found(None, false),
        })
    }

    fn warnings(&self) -> Vec<String> {
        let open = self.listeners.iter().filter(|(listener, _)| listener.is_open_relay());
        let open = open.map(|(listener, _)| {
            format!(
                "listener {} is an OPEN RELAY: everybody who reaches it can send as your mailbox; remove open_relay = true",
                listener.name
            )
        });
        open.chain(self.relay.warning()).collect()
    }

    async fn spool(&self) -> Option<SpoolState> {
        let keeper = self.keeper.as_ref()?;
        let counted = keeper.queue.totals().await;
        let trouble = self.spool_trouble().or(counted.as_ref().err().map(ToString::to_string));
        let totals = counted.unwrap_or_default();
        let mut messages: BTreeMap<_, _> = State::ALL.map(|state| (state.as_str(), 0)).into();
        messages.extend(totals.messages.iter().map(|(state, count)| (state.as_str(), *count)));
        let age = |oldest: Timestamp| keeper.clock.now().duration_since(oldest).as_secs().max(0);
        Some(SpoolState {
            messages,
            oldest_seconds: totals.oldest.map_or(0, age).unsigned_abs(),
            bytes: totals.bytes,
            notices_waiting: totals.notices,
            trouble,
        })
    }

    /// Everything for Prometheus.
    pub(super) fn metrics(&self) -> String {
        for mailbox in self.mailboxes.all() {
            mailbox.meter(&self.metrics);
        }
        self.metrics.render()
    }

    /// Why devices should go elsewhere for now, if they should.
    pub(super) fn trouble(&self) -> Option<String> {
        if self.drain.is_cancelled() {
            return Some("draining".to_owned());
        }
        let cannot_send = || {
            let said = format!("no mailbox can send: {}", self.mailboxes.trouble()?);
            Some(said.chars().filter(char::is_ascii).take(SENTENCE).collect())
        };
        self.spool_trouble().or_else(cannot_send)
    }

    /// Why no message can be kept, if none can.
    pub(super) fn spool_trouble(&self) -> Option<String> {
        let keeper = self.keeper.as_ref()?;
        keeper.queue.trouble().map(|error| error.to_string())
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

fn state(mailbox: &Mailbox) -> MailboxState<'_> {
    MailboxState {
        address: mailbox.address(),
        state: mailbox.state(),
        connections: mailbox.pool.connections(),
        waiting: mailbox.pool.waiting(),
        budget: mailbox.pool.left(),
        stopped: mailbox.stops().names(),
        token_expires: mailbox.pool.journal().token_expires().map(|at| at.to_string()),
        credential_expires: mailbox.pool.journal().credential_expires().map(|at| at.to_string()),
        last_error: mailbox.pool.journal().last_error(),
    }
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}
