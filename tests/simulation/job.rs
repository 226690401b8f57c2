//! One message of a device.

use std::{net::IpAddr, time::Duration};

use bytes::Bytes;
use openssl::sha::Sha256;
use smtp_uplift::{proto::reply::Reply, sandbox::device::Device};
use tokio::time::{Instant, sleep};

use crate::{common::memory::InMemory, ledger::Promise};

/// Octets that a slow device sends at a time.
const CHUNK: usize = 32 * 1024;
/// A line of a scan; the dot in front is stuffed.
const LINE: &[u8] =
    b"..0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789abcdefghijklmnopqrstuvwxyz\r\n";

/// Why a device sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// All do so at the same moment.
    Burst,
    /// One of a thousand in a row.
    Row,
    /// Large and slow.
    Scan,
    /// Alone, while another device has a thousand.
    Later,
}

/// A message that a device is to send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    pub(crate) kind: Kind,
    /// Tells it from all others.
    pub(crate) number: usize,
    /// Octets of its data, about.
    pub(crate) size: usize,
    /// Octets a second; nothing: as fast as they go.
    pub(crate) rate: Option<usize>,
}

/// A device that is connected, and the longest that it waited for an answer.
pub(crate) struct Printer {
    device: Device,
    pub(crate) longest_wait: (Duration, String),
}

impl Printer {
    pub(crate) async fn connect(house: &InMemory, address: IpAddr) -> Self {
        let began = Instant::now();
        let device = Device::over(house.connect_from(address)).await.unwrap();
        let mut printer =
            Self { device, longest_wait: (began.elapsed(), "the greeting".to_owned()) };
        printer.say("EHLO printer").await;
        printer
    }

    /// Sends a message; nothing may be refused.
    pub(crate) async fn send(&mut self, job: Job) -> Promise {
        let Job { kind, number, size, rate } = job;
        for line in [
            format!("MAIL FROM:<printer@example.com> SIZE={size}"),
            format!("RCPT TO:<{}>", address(number)),
        ] {
            self.say(&line).await;
        }
        let go = self.answered("DATA", "DATA\r\n").await;
        assert_eq!(go.code.get(), 354, "{go}");
        let subject = format!("Subject: scan {number}\r\n\r\n");
        self.device.write(subject).await.unwrap();
        let body = self.scan(number, size, rate).await;
        let dot = Instant::now();
        let heard = self.answered("the dot", ".\r\n").await;
        assert!(heard.code.get() == 250, "message {number} is refused: {heard}");
        let is_queued = heard.lines[0].starts_with("queued");
        Promise { kind, body, dot, is_queued }
    }

    /// Sends what is behind the header section; returns its SHA-256. Nothing is kept of it.
    async fn scan(&mut self, number: usize, size: usize, rate: Option<usize>) -> [u8; 32] {
        let mut body = Sha256::new();
        let first = format!("page {number}\r\n");
        body.update(first.as_bytes());
        self.device.write(first).await.unwrap();
        let lines = Bytes::from(LINE.repeat(CHUNK.min(size) / LINE.len()));
        let mut left = size;
        while left >= LINE.len() {
            let most = left.min(lines.len()) / LINE.len() * LINE.len();
            let chunk = lines.slice(..most);
            body.update(&chunk);
            self.device.write(chunk).await.unwrap();
            if let Some(rate) = rate {
                sleep(Duration::from_secs_f64(most as f64 / rate as f64)).await;
            }
            left -= most;
        }
        body.finish()
    }

    pub(crate) async fn quit(&mut self) {
        self.say("QUIT").await;
    }

    async fn say(&mut self, line: &str) {
        let reply = self.answered(line, &format!("{line}\r\n")).await;
        assert!(reply.code.is_positive(), "{line}: {reply}");
    }

    async fn answered(&mut self, what: &str, octets: &str) -> Reply {
        let began = Instant::now();
        self.device.write(octets.to_owned()).await.unwrap();
        let reply = self.device.read().await.unwrap();
        if began.elapsed() > self.longest_wait.0 {
            self.longest_wait = (began.elapsed(), what.to_owned());
        }
        reply
    }
}

/// Where a message goes: by this it is known at the other end.
pub(crate) fn address(number: usize) -> String {
    format!("m{number}@example.com")
}

/// The message that goes there.
pub(crate) fn number(address: &str) -> usize {
    address.strip_prefix('m').and_then(|rest| rest.split('@').next()).unwrap().parse().unwrap()
}
