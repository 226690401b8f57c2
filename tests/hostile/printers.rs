//! The honest ones.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use openssl::ssl::SslVersion;
use smtp_uplift::{sandbox::device::Device, transport::device_tls::DeviceTls};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{common::own_device, relay::PATIENCE};

/// How long messages took, from the connection on to the answer to the dot; the quickest first.
pub(crate) struct Latencies(Vec<Duration>);

impl Latencies {
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        self.0[(self.0.len() * percent / 100).min(self.0.len() - 1)]
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |percent| self.percentile(percent).as_secs_f64() * 1_000.0;
        let count = self.count();
        write!(
            f,
            "{count} messages, median {:.1} ms, 99 % within {:.1} ms, all within {:.1} ms",
            at(50),
            at(99),
            at(100)
        )
    }
}

/// So many printers send so many messages each, and go on until that time is over. Each message has a connection of
/// its own, every other one over TLS 1.0; a message that is not taken at once is lost, as real ones are.
pub(crate) async fn print(
    relay: SocketAddr,
    printers: usize,
    messages: usize,
    lasts: Duration,
) -> Latencies {
    let tls = Arc::new(DeviceTls::new(SslVersion::TLS1, None).unwrap());
    let end = Instant::now() + lasts;
    let mut working = JoinSet::new();
    for number in 0..printers {
        let tls = Arc::clone(&tls);
        working.spawn(async move {
            let mut took = Vec::new();
            while took.len() < messages || Instant::now() < end {
                let began = Instant::now();
                let printing = one(relay, number, (took.len() % 2 == 1).then_some(&*tls));
                timeout(PATIENCE, printing).await.expect("a printer waits forever");
                took.push(began.elapsed());
                sleep(Duration::from_millis(100)).await;
            }
            took
        });
    }
    let mut took = working.join_all().await.concat();
    took.sort_unstable();
    Latencies(took)
}

async fn one(relay: SocketAddr, number: usize, tls: Option<&DeviceTls>) {
    let mut device: Device = own_device(relay, number).await;
    if let Some(tls) = tls {
        device = device.starttls(tls).await.unwrap();
        device.say("EHLO printer").await.unwrap();
    }
    let page =
        "A page as printers send them, in lines as long as base64 has them ..\r\n".repeat(300);
    let message = format!("Subject: page of {number}\r\n\r\n{page}");
    let heard = device.send("printer@example.com", &["office@example.com"], message).await.unwrap();
    assert!(heard.code.is_positive(), "printer {number}: {heard}");
    let _ = device.say("QUIT").await;
}
