//! What was promised, what arrived, and when.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use smtp_uplift::sandbox::Sandbox;
use tokio::time::Instant;

use crate::job::{self, Kind};

/// What the smarthost counts over.
const MINUTE: Duration = Duration::from_secs(60);

/// A message that was answered 250.
pub(crate) struct Promise {
    pub(crate) kind: Kind,
    /// SHA-256 of what is behind its header section.
    pub(crate) body: [u8; 32],
    /// When its dot was sent.
    pub(crate) dot: Instant,
    /// Whether the spool has answered for it.
    pub(crate) is_queued: bool,
}

/// All that was promised, by number.
#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) promises: HashMap<usize, Promise>,
}

/// How long messages took from their dots until they arrived.
#[derive(Debug)]
pub(crate) struct Delays {
    pub(crate) count: usize,
    pub(crate) queued: usize,
    pub(crate) median: Duration,
    pub(crate) longest: Duration,
    /// When the last one arrived.
    pub(crate) last: Instant,
}

impl Ledger {
    /// Each promise was kept once, with its data, and nothing else arrived. Returns the delays.
    pub(crate) fn settle(&self, sandbox: &Sandbox) -> BTreeMap<Kind, Delays> {
        let (mut arrived, mut delays) = (BTreeSet::new(), BTreeMap::<Kind, Vec<_>>::new());
        for delivery in sandbox.deliveries() {
            assert_eq!(delivery.recipients.len(), 1, "{:?}", delivery.recipients);
            let number = job::number(&delivery.recipients[0]);
            let promise = self.promises.get(&number);
            let promise = promise.unwrap_or_else(|| panic!("nobody has sent {number}"));
            assert!(arrived.insert(number), "message {number} arrived twice");
            assert_eq!(delivery.body, promise.body, "message {number} has other data");
            let subject = format!("\r\nSubject: scan {number}\r\n\r\npage {number}\r\n");
            let head = String::from_utf8_lossy(&delivery.data);
            assert!(head.starts_with("Received: ") && head.contains(&subject), "{head}");
            delays.entry(promise.kind).or_default().push((delivery.at - promise.dot, delivery.at));
        }
        for number in self.promises.keys() {
            assert!(arrived.contains(number), "message {number} was answered 250 and is lost");
        }
        let queued = |kind| {
            self.promises.values().filter(move |promise| promise.kind == kind && promise.is_queued)
        };
        let of = |(kind, mut delays): (Kind, Vec<(Duration, Instant)>)| {
            delays.sort_unstable();
            let (count, queued) = (delays.len(), queued(kind).count());
            let (median, longest) = (delays[count / 2].0, delays[count - 1].0);
            let last = delays.iter().map(|(_, at)| *at).max().unwrap();
            (kind, Delays { count, queued, median, longest, last })
        };
        delays.into_iter().map(of).collect()
    }
}

/// The most of these moments that lie in any minute.
pub(crate) fn most_in_a_minute(mut moments: Vec<Instant>) -> usize {
    moments.sort_unstable();
    let mut first = 0;
    let in_minute_before = |(last, moment): (usize, &Instant)| {
        while *moment - moments[first] >= MINUTE {
            first += 1;
        }
        last + 1 - first
    };
    moments.iter().enumerate().map(in_minute_before).max().unwrap_or(0)
}
