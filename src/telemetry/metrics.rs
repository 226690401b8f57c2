//! Prometheus metrics behind typed handles: call sites never write a label.
//!
//! No label takes a value that a peer can choose freely: codes that are not in the lists below become
//! `other`.

use std::time::Duration;

use prometheus::{
    Encoder, GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry,
    TextEncoder, process_collector::ProcessCollector,
};

use super::maillog::Disposition;
use crate::proto::{client::Stage, reply::Reply};

/// Reply codes that get a label of their own: those of RFC 5321, its extensions, and Exchange Online.
const CODES: [u16; 40] = [
    211, 214, 220, 221, 235, 250, 251, 252, 334, 354, 421, 430, 431, 432, 441, 442, 450, 451, 452,
    454, 455, 500, 501, 502, 503, 504, 521, 523, 530, 534, 535, 538, 541, 550, 551, 552, 553, 554,
    555, 556,
];

/// All metrics of one relay.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    /// The process's own metrics keep their usual names, without our prefix.
    process: Registry,
    sessions_open: IntGaugeVec,
    sessions: IntCounterVec,
    handshakes: IntCounterVec,
    received: IntCounterVec,
    messages: IntCounterVec,
    message_bytes: HistogramVec,
    relay_seconds: HistogramVec,
    wait_seconds: HistogramVec,
    replies: IntCounterVec,
    connections: IntGaugeVec,
    connects: IntCounterVec,
    mailbox_up: IntGaugeVec,
    mailbox_left: IntGaugeVec,
    mailbox_waiting: IntGaugeVec,
    certificate_expiry: GaugeVec,
    token_expiry: GaugeVec,
    credential_expiry: GaugeVec,
    device_faults: IntCounterVec,
    limits: IntCounterVec,
    reloads: IntCounterVec,
    spool_messages: IntGaugeVec,
    spool_bytes: IntGaugeVec,
    spool_oldest: IntGaugeVec,
    spool_disk_free: IntGaugeVec,
    spool_commits: IntCounterVec,
    spool_deliveries: IntCounterVec,
    notices: IntCounterVec,
    breaker_open: IntGaugeVec,
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionOutcome {
    /// With QUIT.
    Quit,
    /// The device closed, or its connection was lost.
    Closed,
    /// The device was silent or slow for too long.
    TimedOut,
    /// Its address is not allowed.
    Refused,
    /// Too many sessions.
    Busy,
    /// The TLS handshake failed.
    TlsFailed,
    /// Too many errors, or bytes where none may be.
    Faulty,
    /// The relay stops.
    Drained,
}

/// Something that a device does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceFault {
    /// LF without CR in the data.
    BareLf,
    /// CR without LF in the data.
    BareCr,
    /// NUL in the data.
    Nul,
    /// A command that was refused for its form or order.
    BadCommand,
    /// Bytes sent before they were asked for.
    EarlyTalk,
    /// A failed handshake.
    TlsFailed,
    /// A load balancer's connection without a PROXY header that makes sense.
    ProxyHeader,
    /// A message that goes in circles.
    Loop,
    /// What some servers take for the end of the data, in data that came to no end.
    Smuggling,
    /// A session without STARTTLS after a failed handshake.
    StartTlsWithheld,
}

/// A limit of what a device may use up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Sessions in all.
    Sessions,
    /// Sessions of one address.
    SessionsPerDevice,
    /// TLS handshakes at a time.
    Handshakes,
    /// Commands without a message.
    Commands,
    /// Refused commands.
    Errors,
    /// Recipients of a message.
    Recipients,
    /// Octets of a line.
    Line,
    /// Octets of a header section.
    Header,
    /// Time from MAIL to DATA.
    Transaction,
    /// Time for one command.
    Command,
    /// Time without a transaction.
    Idle,
    /// Octets of mail data.
    Size,
    /// Progress of mail data.
    Rate,
    /// Time to take a reply.
    Reply,
    /// Messages in a span of time.
    MessagesPerDevice,
    /// Recipients in a span of time.
    RecipientsPerDevice,
    /// Logins after failed ones.
    LoginWait,
}

impl Limit {
    /// The name in logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sessions => "sessions",
            Self::SessionsPerDevice => "sessions_per_device",
            Self::Handshakes => "handshakes",
            Self::Commands => "commands",
            Self::Errors => "errors",
            Self::Recipients => "recipients",
            Self::Line => "line",
            Self::Header => "header",
            Self::Transaction => "transaction",
            Self::Command => "command",
            Self::Idle => "idle",
            Self::Size => "size",
            Self::Rate => "rate",
            Self::Reply => "reply",
            Self::MessagesPerDevice => "messages_per_device",
            Self::RecipientsPerDevice => "recipients_per_device",
            Self::LoginWait => "login_wait",
        }
    }
}

impl SessionOutcome {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Quit => "quit",
            Self::Closed => "closed",
            Self::TimedOut => "timed_out",
            Self::Refused => "refused",
            Self::Busy => "busy",
            Self::TlsFailed => "tls_failed",
            Self::Faulty => "faulty",
            Self::Drained => "drained",
        }
    }
}

impl DeviceFault {
    /// The name in logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BareLf => "bare_lf",
            Self::BareCr => "bare_cr",
            Self::Nul => "nul",
            Self::BadCommand => "bad_command",
            Self::EarlyTalk => "early_talk",
            Self::TlsFailed => "tls_failed",
            Self::ProxyHeader => "proxy_header",
            Self::Loop => "loop",
            Self::Smuggling => "smuggling",
            Self::StartTlsWithheld => "starttls_withheld",
        }
    }
}

impl Metrics {
    /// A fresh set, at zero. `openssl` is the version of the library that serves devices.
    pub fn new(openssl: &str) -> Self {
        let registry =
            Registry::new_custom(Some("smtp_uplift".into()), None).expect("the prefix is valid");
        let metrics = Self {
            sessions_open: gauge(
                &registry,
                "sessions_open",
                "Sessions of devices that are open",
                &["listener"],
            ),
            sessions: counter(
                &registry,
                "sessions_total",
                "Sessions of devices, by how they ended",
                &["listener", "outcome"],
            ),
            handshakes: counter(
                &registry,
                "tls_handshakes_total",
                "TLS handshakes with devices",
                &["listener", "version", "cipher", "outcome"],
            ),
            received: counter(
                &registry,
                "messages_received_total",
                "Messages handed in, by TLS version",
                &["listener", "tls"],
            ),
            messages: counter(
                &registry,
                "messages_total",
                "Messages, by what became of them",
                &["mailbox", "result"],
            ),
            message_bytes: histogram(
                &registry,
                "message_bytes",
                "Octets of mail data of a relayed message",
                &["mailbox"],
                prometheus::exponential_buckets(1024.0, 4.0, 10),
            ),
            relay_seconds: histogram(
                &registry,
                "relay_seconds",
                "From MAIL to the answer to the final dot",
                &["mailbox"],
                prometheus::exponential_buckets(0.005, 2.5, 12),
            ),
            wait_seconds: histogram(
                &registry,
                "mailbox_wait_seconds",
                "How long a transaction waited for a connection to the smarthost",
                &["mailbox"],
                prometheus::exponential_buckets(0.001, 4.0, 9),
            ),
            replies: counter(
                &registry,
                "upstream_replies_total",
                "Replies of the smarthost",
                &["mailbox", "stage", "code", "enhanced", "class", "rule"],
            ),
            connections: gauge(
                &registry,
                "upstream_connections",
                "Connections to the smarthost",
                &["mailbox", "state"],
            ),
            connects: counter(
                &registry,
                "upstream_connects_total",
                "Attempts to connect and log in",
                &["mailbox", "outcome"],
            ),
            mailbox_up: gauge(
                &registry,
                "mailbox_up",
                "1 if the last login succeeded",
                &["mailbox"],
            ),
            mailbox_left: gauge(
                &registry,
                "mailbox_left",
                "What the mailbox may still send now: messages of a minute, recipients of a day",
                &["mailbox", "what"],
            ),
            mailbox_waiting: gauge(
                &registry,
                "mailbox_waiting",
                "Transactions and deliveries that wait for a turn at the mailbox",
                &["mailbox"],
            ),
            certificate_expiry: float_gauge(
                &registry,
                "certificate_expiry_timestamp_seconds",
                "When the certificate shown to devices ends",
                &["listener"],
            ),
            token_expiry: float_gauge(
                &registry,
                "token_expiry_timestamp_seconds",
                "When the access token of the mailbox ends",
                &["mailbox"],
            ),
            credential_expiry: float_gauge(
                &registry,
                "credential_expiry_timestamp_seconds",
                "When the client secret, the certificate or the sign-in ends that tokens are had with",
                &["mailbox"],
            ),
            device_faults: counter(
                &registry,
                "device_faults_total",
                "What devices did wrong",
                &["listener", "kind"],
            ),
            limits: counter(
                &registry,
                "limits_total",
                "How often a device met one of its limits",
                &["listener", "limit"],
            ),
            reloads: counter(
                &registry,
                "config_reloads_total",
                "Changed files that were taken over, or refused",
                &["outcome"],
            ),
            spool_messages: gauge(&registry, "spool_messages", "Messages in the spool", &["state"]),
            spool_bytes: gauge(&registry, "spool_bytes", "Octets of mail data in the spool", &[]),
            spool_oldest: gauge(
                &registry,
                "spool_oldest_seconds",
                "Age of the oldest message that waits in the spool",
                &[],
            ),
            spool_disk_free: gauge(
                &registry,
                "spool_disk_free_bytes",
                "Octets free on the spool's disk",
                &[],
            ),
            spool_commits: counter(
                &registry,
                "spool_commits_total",
                "Synced commits of the spool; many messages share one",
                &[],
            ),
            spool_deliveries: counter(
                &registry,
                "spool_deliveries_total",
                "Attempts to deliver from the spool",
                &["mailbox", "outcome"],
            ),
            notices: counter(&registry, "notices_total", "Notices to people", &["outcome"]),
            breaker_open: gauge(
                &registry,
                "mailbox_breaker_open",
                "1 while mail of the mailbox is held until somebody changes a setting",
                &["mailbox"],
            ),
            registry,
            process: Registry::new(),
        };
        let info =
            gauge(&metrics.registry, "build_info", "Versions", &["version", "openssl", "rustls"]);
        info.with_label_values(&[env!("CARGO_PKG_VERSION"), openssl, env!("RUSTLS_VERSION")])
            .set(1);
        metrics.process.register(Box::new(ProcessCollector::for_self())).expect("registered once");
        metrics
    }

    /// Everything in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut out = Vec::new();
        let mut families = self.registry.gather();
        families.extend(self.process.gather());
        // Writing to memory fails only for a family without metrics, which is left out.
        let _ = TextEncoder::new().encode(&families, &mut out);
        String::from_utf8_lossy(&out).into_owned()
    }

    /// A session has begun.
    pub fn session_opened(&self, listener: &str) {
        self.sessions_open.with_label_values(&[listener]).inc();
    }

    /// A session that had begun is over.
    pub fn session_closed(&self, listener: &str, outcome: SessionOutcome) {
        self.sessions_open.with_label_values(&[listener]).dec();
        self.session_turned_away(listener, outcome);
    }

    /// A session ended before it began.
    pub fn session_turned_away(&self, listener: &str, outcome: SessionOutcome) {
        self.sessions.with_label_values(&[listener, outcome.as_str()]).inc();
    }

    /// A handshake with a device; `None` if it failed.
    pub fn handshake(&self, listener: &str, tls: Option<(&str, &str)>) {
        let (version, cipher) = tls.unwrap_or(("none", "none"));
        let outcome = if tls.is_some() { "ok" } else { "failed" };
        self.handshakes.with_label_values(&[listener, version, cipher, outcome]).inc();
    }

    /// A device has handed in a message, up to its dot.
    pub fn message_received(&self, listener: &str, tls_version: &str) {
        self.received.with_label_values(&[listener, tls_version]).inc();
    }

    /// A transaction is over.
    pub fn message_done(
        &self,
        mailbox: &str,
        disposition: Disposition,
        bytes: u64,
        took: Duration,
    ) {
        self.messages.with_label_values(&[mailbox, disposition.as_str()]).inc();
        if disposition == Disposition::Relayed {
            self.message_bytes.with_label_values(&[mailbox]).observe(bytes as f64);
            self.relay_seconds.with_label_values(&[mailbox]).observe(took.as_secs_f64());
        }
    }

    /// A transaction has waited for a lease.
    pub fn lease_waited(&self, mailbox: &str, took: Duration) {
        self.wait_seconds.with_label_values(&[mailbox]).observe(took.as_secs_f64());
    }

    /// What a mailbox may still send now: messages of a minute, recipients of a day; `None` is any number.
    pub fn mailbox_left(&self, mailbox: &str, messages: Option<u32>, recipients: Option<u32>) {
        for (what, left) in [("messages", messages), ("recipients", recipients)] {
            if let Some(left) = left {
                self.mailbox_left.with_label_values(&[mailbox, what]).set(i64::from(left));
            }
        }
    }

    /// So many wait for a turn at a mailbox.
    pub fn mailbox_waiting(&self, mailbox: &str, waiting: usize) {
        self.mailbox_waiting.with_label_values(&[mailbox]).set(waiting as i64);
    }

    /// The smarthost has answered; class and rule are those of the catalogue.
    pub fn upstream_reply(
        &self,
        mailbox: &str,
        stage: Stage,
        reply: &Reply,
        class: &str,
        rule: &str,
    ) {
        let code = CODES.into_iter().find(|code| *code == reply.code.get());
        let code = code.map_or_else(|| "other".to_owned(), |code| code.to_string());
        self.replies
            .with_label_values(&[
                mailbox,
                stage.as_str(),
                &code,
                &enhanced_label(reply),
                class,
                rule,
            ])
            .inc();
    }

    /// Connections to the smarthost that are leased and shelved.
    pub fn upstream_connections(&self, mailbox: &str, leased: usize, shelved: usize) {
        self.connections.with_label_values(&[mailbox, "leased"]).set(leased as i64);
        self.connections.with_label_values(&[mailbox, "shelved"]).set(shelved as i64);
    }

    /// An attempt to connect and log in is over; `outcome` is `ok` or the stage at which it failed.
    pub fn upstream_connect(&self, mailbox: &str, outcome: &'static str) {
        self.connects.with_label_values(&[mailbox, outcome]).inc();
        self.mailbox_up.with_label_values(&[mailbox]).set(i64::from(outcome == "ok"));
    }

    /// When the certificate of a listener ends, in seconds since 1970.
    pub fn certificate_expiry(&self, listener: &str, at: i64) {
        self.certificate_expiry.with_label_values(&[listener]).set(at as f64);
    }

    /// When the access token of a mailbox ends, in seconds since 1970.
    pub fn token_expiry(&self, mailbox: &str, at: i64) {
        self.token_expiry.with_label_values(&[mailbox]).set(at as f64);
    }

    /// When what its tokens are had with ends, in seconds since 1970.
    pub fn credential_expiry(&self, mailbox: &str, at: i64) {
        self.credential_expiry.with_label_values(&[mailbox]).set(at as f64);
    }

    /// A file has changed while the relay runs, and was taken over or not.
    pub fn reloaded(&self, taken: bool) {
        self.reloads.with_label_values(&[if taken { "ok" } else { "failed" }]).inc();
    }

    /// What the spool holds: messages by state, their octets, and the age of the oldest that waits, in seconds.
    pub fn spool_holds(&self, messages: &[(&str, u64)], bytes: u64, oldest: u64) {
        for (state, count) in messages {
            self.spool_messages.with_label_values(&[state]).set(*count as i64);
        }
        self.spool_bytes.with_label_values::<&str>(&[]).set(bytes as i64);
        self.spool_oldest.with_label_values::<&str>(&[]).set(oldest as i64);
    }

    /// Octets that are free on the spool's disk.
    pub fn spool_disk_free(&self, octets: u64) {
        self.spool_disk_free.with_label_values::<&str>(&[]).set(octets as i64);
    }

    /// The spool has synced a commit.
    pub fn spool_committed(&self) {
        self.spool_commits.with_label_values::<&str>(&[]).inc();
    }

    /// An attempt to deliver from the spool is over.
    pub fn spool_delivery(&self, mailbox: &str, outcome: &'static str) {
        self.spool_deliveries.with_label_values(&[mailbox, outcome]).inc();
    }

    /// Something became of a notice.
    pub fn notice(&self, outcome: &'static str) {
        self.notices.with_label_values(&[outcome]).inc();
    }

    /// Whether mail of the mailbox is held until somebody changes a setting.
    pub fn breaker(&self, mailbox: &str, open: bool) {
        self.breaker_open.with_label_values(&[mailbox]).set(i64::from(open));
    }

    /// A device met a limit.
    pub fn limited(&self, listener: &str, limit: Limit) {
        self.limits.with_label_values(&[listener, limit.as_str()]).inc();
    }

    /// A device did something wrong.
    pub fn device_fault(&self, listener: &str, fault: DeviceFault) {
        self.device_faults.with_label_values(&[listener, fault.as_str()]).inc();
    }
}

/// Enhanced codes as far as RFC 3463 and Exchange Online number them.
fn enhanced_label(reply: &Reply) -> String {
    match reply.enhanced {
        None => "none".to_owned(),
        Some(enhanced)
            if enhanced.1 <= 7 && (enhanced.2 <= 31 || enhanced.1 == 7 && enhanced.2 < 800) =>
        {
            enhanced.to_string()
        }
        Some(_) => "other".to_owned(),
    }
}

fn counter(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    registered(registry, IntCounterVec::new(Opts::new(name, help), labels))
}

fn gauge(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    registered(registry, IntGaugeVec::new(Opts::new(name, help), labels))
}

fn float_gauge(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
    registered(registry, GaugeVec::new(Opts::new(name, help), labels))
}

fn histogram(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
    buckets: prometheus::Result<Vec<f64>>,
) -> HistogramVec {
    let options = HistogramOpts::new(name, help)
        .buckets(buckets.expect("start, factor and count are positive"));
    registered(registry, HistogramVec::new(options, labels))
}

fn registered<C: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    made: prometheus::Result<C>,
) -> C {
    let collector = made.expect("name and labels are constants");
    registry.register(Box::new(collector.clone())).expect("each name is registered once");
    collector
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::reply::Enhanced;

    #[test]
    fn what_a_peer_makes_up_becomes_other() {
        let metrics = Metrics::new("OpenSSL");
        for (code, enhanced) in
            [(250, Enhanced(2, 0, 0)), (599, Enhanced(5, 999, 999)), (550, Enhanced(5, 7, 708))]
        {
            let reply = Reply::new(code, enhanced, "x");
            metrics.upstream_reply("m@example.org", Stage::Rcpt, &reply, "recipient", "some-rule");
        }
        let text = metrics.render();
        let label = |rest: &str| {
            format!(
                "smtp_uplift_upstream_replies_total{{class=\"recipient\",code={rest},mailbox=\"m@example.org\",rule=\"some-rule\",stage=\"rcpt\"}} 1"
            )
        };
        for rest in [
            "\"250\",enhanced=\"2.0.0\"",
            "\"other\",enhanced=\"other\"",
            "\"550\",enhanced=\"5.7.708\"",
        ] {
            assert!(text.contains(&label(rest)), "{rest} in {text}");
        }
    }

    #[test]
    fn sessions_are_counted_in_and_out() {
        let metrics = Metrics::new("OpenSSL");
        metrics.session_opened("lan");
        metrics.session_opened("lan");
        metrics.session_closed("lan", SessionOutcome::Quit);
        let text = metrics.render();
        assert!(text.contains("smtp_uplift_sessions_open{listener=\"lan\"} 1"), "{text}");
        assert!(
            text.contains("smtp_uplift_sessions_total{listener=\"lan\",outcome=\"quit\"} 1"),
            "{text}"
        );
    }
}
