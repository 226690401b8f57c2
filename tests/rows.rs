//! Rows of `docs/devices.md` that take time, a log or two sides to see; the others are `row-NN-….smtp` files in
//! `tests/dialogues/`. In memory, and with the clock stopped.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, Write},
    path::Path,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use common::{
    House, KEEP, Plan, SPOOL, STREAM, fault,
    memory::{InMemory, timed},
};
use smtp_uplift::{
    sandbox::device::Device,
    spool::queue::{Filter, Queue as _, State},
};
use tokio::{io::AsyncReadExt as _, io::AsyncWriteExt as _, net::TcpStream, time::sleep};
use tracing::{Level, subscriber::DefaultGuard};

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// What is logged on this thread while the guard lives.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn listen() -> (Self, DefaultGuard) {
        let log = Self::default();
        let ear = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(Level::INFO)
            .with_ansi(false)
            .with_writer(move || ear.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    /// The lines that have this in them.
    fn lines(&self, words: &str) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned();
        text.lines().filter(|line| line.contains(words)).map(str::to_owned).collect()
    }
}

impl Write for Log {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(octets);
        Ok(octets.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A device that was told to send its data.
async fn in_data(house: &InMemory) -> Device {
    let mut device = house.device().await;
    for line in ["MAIL FROM:<a@x>", "RCPT TO:<b@x>", "DATA"] {
        assert!(device.say(line).await.unwrap().code.get() < 400);
    }
    device
}

/// What is said to the smarthost.
fn said_upstream(house: &InMemory) -> Vec<String> {
    let kept = house.relay.transcripts.find(None);
    let lines = kept.iter().flat_map(|kept| &kept.lines);
    lines.filter_map(|line| Some(line.split_once(" smarthost > ")?.1.to_owned())).collect()
}

#[tokio::test(start_paused = true)]
async fn row_14_and_16_what_goes_up_is_strict_and_has_our_own_name() {
    let more = "[log]\ntranscripts = \"all\"";
    let house = InMemory::build(Plan { more, settled: false, ..Plan::default() }).await;
    let mut device = Device::over(house.connect()).await.unwrap();
    for line in ["helo b\u{fc}ro_copier", "mail from: a@b.example  ", "rcpt  to: < c@d.example >"] {
        let said = device.say(line).await.unwrap();
        assert!(said.code.is_positive(), "{line}: {said}");
    }
    device.say("data ").await.unwrap();
    device.write("Subject: x\r\n\r\n").await.unwrap();
    assert_eq!(device.say(".").await.unwrap().code.get(), 250);
    let said = said_upstream(&house);
    for line in ["EHLO relay.example", "RCPT TO:<c@d.example>", "DATA"] {
        assert!(said.iter().any(|said| said == line), "{line} in {said:?}");
    }
    assert!(said.iter().any(|said| said.starts_with("MAIL FROM:<a@b.example>")), "{said:?}");
    let data = house.sandbox.deliveries().pop().unwrap().data;
    assert!(data.starts_with(b"Received: from b?ro_copier "), "{data:?}");
}

#[tokio::test(start_paused = true)]
async fn row_15_what_is_ignored_is_logged_once_for_each_device_and_without_addresses() {
    let (log, _guard) = Log::listen();
    let house = InMemory::new().await;
    for peer in ["10.0.0.1", "10.0.0.2", "10.0.0.1"] {
        let mut device = Device::over(house.connect_from(peer.parse().unwrap())).await.unwrap();
        device.say("EHLO copier").await.unwrap();
        for line in ["MAIL FROM:<a@x> AUTH=<boss@x> SIZE=", "RSET", "MAIL FROM:<a@x> XYZZY"] {
            assert_eq!(device.say(line).await.unwrap().code.get(), 250, "{line}");
        }
    }
    let lines = log.lines("parameters of MAIL are ignored");
    assert_eq!(lines.len(), 2, "{lines:#?}");
    for (line, peer) in lines.iter().zip(["10.0.0.1", "10.0.0.2"]) {
        assert!(line.contains(peer) && line.contains(r#"["AUTH", "SIZE"]"#), "{line}");
        assert!(!line.contains("boss"), "{line}");
    }
}

#[tokio::test]
async fn row_17_a_probe_is_no_error_in_log_or_metric() {
    let (log, _guard) = Log::listen();
    let house = House::new().await;
    for said in [
        "",
        "QUIT\r\n",
        "HELO monitor\r\nQUIT\r\n",
        "HELO monitor\r\n",
        "EHLO x\r\nNOOP\r\nQUIT\r\n",
    ] {
        let mut probe = TcpStream::connect(house.address()).await.unwrap();
        if !said.is_empty() {
            while probe.read_u8().await.unwrap() != b'\n' {}
            probe.write_all(said.as_bytes()).await.unwrap();
        }
        drop(probe);
    }
    let mut probe = Device::connect(house.address()).await.unwrap();
    assert_eq!(probe.say("QUIT").await.unwrap().code.get(), 221);
    let ended = |outcome| {
        house.metric(&format!("sessions_total{{listener=\"lan\",outcome=\"{outcome}\"}}"))
    };
    while ended("quit") + ended("closed") < 6.0 {
        sleep(Duration::from_millis(1)).await;
    }
    let metrics = house.service.metrics().render();
    let faults = metrics.lines().filter(|line| line.contains("device_faults_total{"));
    assert!(faults.clone().all(|line| line.ends_with(" 0")), "{:?}", faults.collect::<Vec<_>>());
    assert!(!metrics.contains("messages_total{"), "no message was begun");
    for level in ["WARN", "ERROR"] {
        assert_eq!(log.lines(level), Vec::<String>::new());
    }
}

#[tokio::test(start_paused = true)]
async fn row_18_rubbish_without_end_costs_nothing_and_is_over_some_day() {
    let house = InMemory::new().await;
    let mut device = Device::over(house.connect()).await.unwrap();
    let rubbish: Vec<u8> = (0..1_000_000u32).map(|number| (number * 7 % 256) as u8).collect();
    // Some of its octets are LF, and end lines.
    let _ = device.write(rubbish).await;
    let mut last = 0;
    while let Ok(reply) = device.read().await {
        last = reply.code.get();
        assert!(matches!(last, 500 | 421), "{reply}");
    }
    assert_eq!(last, 421, "too many errors");
    assert!(house.send("a@x", &["b@x"]).await.starts_with("250 "), "others are served");
}

#[tokio::test(start_paused = true)]
async fn row_21_data_that_end_with_lf_dot_lf_time_out_and_the_log_says_why() {
    for delivery in [STREAM, KEEP] {
        for end in ["\n.\n", "\n.\r\n", "\r\n.\n"] {
            let (log, _guard) = Log::listen();
            let house = InMemory::build(Plan { delivery, ..Plan::default() }).await;
            let mut device = in_data(&house).await;
            device.write(format!("Subject: x\n\nline{end}")).await.unwrap();
            let (heard, took) = timed(device.read()).await;
            assert_eq!(heard.unwrap().code.get(), 421);
            assert!(took >= seconds(60) && took < seconds(120), "{took:?}");
            assert!(house.sandbox.deliveries().is_empty(), "it is no end");
            let lines = log.lines("lone dot between line ends that are not CR LF");
            assert_eq!(lines.len(), 1, "{end:?}");
            assert!(lines[0].contains("WARN") && lines[0].contains("127.0.0.1"), "{lines:?}");
            let kept = house.relay.transcripts.find(None);
            let told = |line: &String| line.contains("lone dot between line ends");
            assert!(kept[0].lines.iter().any(told), "{kept:?}");
            let faults = "device_faults_total{kind=\"smuggling\",listener=\"lan\"}";
            assert_eq!(house.metric(faults), 1.0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn row_21_the_same_dots_in_data_that_end_well_are_told_to_nobody() {
    let (log, _guard) = Log::listen();
    let house = InMemory::new().await;
    let mut device = in_data(&house).await;
    device.write("Subject: x\n\n.\nline\r\n").await.unwrap();
    assert_eq!(device.say(".").await.unwrap().code.get(), 250);
    assert!(log.lines("lone dot").is_empty());
}

#[tokio::test(start_paused = true)]
async fn row_23_what_comes_before_data_are_refused_is_no_command() {
    for pause in [0, 20, 150] {
        let house = InMemory::new().await;
        let mut device = house.device().await;
        device.write("DATA\r\n").await.unwrap();
        sleep(Duration::from_millis(pause)).await;
        device.write("RSET\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@x>\r\nDATA\r\n").await.unwrap();
        assert_eq!(device.read().await.unwrap().code.get(), 503);
        assert!(device.read().await.is_err(), "closed, {pause} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn row_26_a_scan_over_a_slow_link_with_minutes_between_its_packets_arrives() {
    let house = InMemory::build(Plan { delivery: KEEP, ..Plan::default() }).await;
    let mut device = in_data(&house).await;
    device.write("Subject: scan\r\n\r\n").await.unwrap();
    let packet = "0123456789abcdef\r\n".repeat(64 * 1024 / 18);
    let (_, took) = timed(async {
        for minutes in [0, 1, 3, 2, 4, 1, 3, 3] {
            sleep(seconds(60 * minutes)).await;
            device.write(packet.clone()).await.unwrap();
        }
        sleep(seconds(200)).await;
    })
    .await;
    assert!(took > seconds(1_200), "{took:?}");
    let heard = device.say(".").await.unwrap().to_string();
    assert!(heard.starts_with("250 2.0.0 ok, id "), "{heard}");
    let data = house.sandbox.deliveries().pop().unwrap().data;
    assert!(data.ends_with(packet.repeat(8).as_bytes()));
}

#[tokio::test(start_paused = true)]
async fn row_26_who_says_nothing_for_longer_than_that_is_given_up() {
    let house = InMemory::build(Plan { delivery: KEEP, ..Plan::default() }).await;
    let mut device = in_data(&house).await;
    device.write(format!("Subject: scan\r\n\r\n{}", "x".repeat(1_000_000))).await.unwrap();
    let (heard, took) = timed(device.read()).await;
    assert_eq!(heard.unwrap().code.get(), 421);
    assert!(took >= seconds(300) && took <= seconds(370), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn row_27_the_dot_is_answered_within_the_devices_patience() {
    for lines in [
        "stage = 'dot'\ndelay = 120.0",
        "stage = 'dot'\nhang = true",
        "stage = 'connect'\nhang = true",
        "stage = 'auth'\nhang = true",
        "stage = 'data'\ndelay = 40.0",
    ] {
        let plan =
            Plan { scenario: fault(lines), delivery: KEEP, settled: false, ..Plan::default() };
        let house = InMemory::build(plan).await;
        let mut device = in_data(&house).await;
        device.write("Subject: x\r\n\r\n").await.unwrap();
        let (heard, took) = timed(device.say(".")).await;
        let heard = heard.unwrap().to_string();
        assert!(heard.starts_with("250 2.0.0 queued, id "), "{lines}: {heard}");
        assert!(took <= seconds(20), "{lines}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn row_28_a_device_that_never_tries_again_hears_no_4xx_of_what_time_heals() {
    for lines in [
        "stage = 'mail'\nreply = '421 4.4.2 Message submission rate exceeded'\ntimes = 1",
        "stage = 'dot'\nreply = '451 4.7.0 Temporary server error. PRX5'\ntimes = 4",
        "stage = 'dot'\nreply = '432 4.3.2 Concurrent connections limit exceeded.'\ntimes = 1",
        "stage = 'dot'\nclose = true\ntimes = 1",
    ] {
        let plan =
            Plan { scenario: fault(lines), delivery: KEEP, settled: false, ..Plan::default() };
        let house = InMemory::build(plan).await;
        let heard = house.send("a@x", &["b@x"]).await;
        assert!(heard.starts_with("250 2.0.0 "), "{lines}: {heard}");
        house.sandbox.delivered(1).await;
        sleep(seconds(600)).await;
        let rows = house.keeper().queue.list(Filter::default()).await.unwrap();
        assert!(rows.iter().all(|row| row.state == State::Done), "{lines}: {rows:#?}");
        assert_eq!(house.sandbox.counts().accepted.load(Ordering::SeqCst), 1, "{lines}");
    }
}

#[tokio::test(start_paused = true)]
async fn row_29_a_device_that_drops_the_connection_behind_its_dot_has_its_message_delivered_once() {
    for delivery in [STREAM, KEEP, SPOOL] {
        for reads in [true, false] {
            let (log, _guard) = Log::listen();
            let house = InMemory::build(Plan { delivery, ..Plan::default() }).await;
            let mut device = in_data(&house).await;
            device.write("Subject: x\r\n\r\n.\r\n").await.unwrap();
            if reads {
                assert_eq!(device.read().await.unwrap().code.get(), 250);
            }
            drop(device);
            house.sandbox.delivered(1).await;
            sleep(seconds(600)).await;
            assert_eq!(house.sandbox.deliveries().len(), 1, "{delivery}, it reads: {reads}");
            assert_eq!(house.sandbox.counts().cut.load(Ordering::SeqCst), 0);
            if delivery != STREAM {
                let rows = house.keeper().queue.list(Filter::default()).await.unwrap();
                assert!(rows.iter().all(|row| row.state == State::Done && row.maybe_sent == 0));
            }
            for level in ["WARN", "ERROR"] {
                assert_eq!(log.lines(level), Vec::<String>::new(), "{delivery}: it is normal");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn row_32_some_recipients_are_refused_and_the_others_get_it() {
    for (delivery, verdicts) in
        [(STREAM, [250, 550, 452, 250]), (KEEP, [250; 4]), (SPOOL, [250; 4])]
    {
        let more = "[notices]\nto = \"it@x\"";
        let house = InMemory::build(Plan { delivery, more, ..Plan::default() }).await;
        let mut device = house.device().await;
        device.say("MAIL FROM:<a@x>").await.unwrap();
        let to = ["one@x", "reply-550-5.1.1@x", "reply-452-4.5.3@x", "two@x"];
        for (to, verdict) in to.iter().zip(verdicts) {
            let said = device.say(&format!("RCPT TO:<{to}>")).await.unwrap();
            assert_eq!(said.code.get(), verdict, "{delivery}: {said}");
        }
        device.say("DATA").await.unwrap();
        device.write("Subject: x\r\n\r\n").await.unwrap();
        assert_eq!(device.say(".").await.unwrap().code.get(), 250, "{delivery}");
        house.sandbox.delivered(1).await;
        sleep(seconds(60)).await;
        let deliveries = house.sandbox.deliveries();
        let to_them = |name: &str| {
            deliveries.iter().filter(|all| all.recipients.iter().any(|to| to == name)).count()
        };
        assert_eq!((to_them("one@x"), to_them("two@x")), (1, 1), "{delivery}: {deliveries:?}");
        // Who is refused for good is told of where the device could not be.
        let told = deliveries.iter().filter(|all| all.recipients == ["it@x"]).count();
        assert_eq!(told, usize::from(delivery != STREAM), "{delivery}: {deliveries:?}");
    }
}

const ROWS: u32 = 33;
/// What stands before the table in `docs/devices.md`.
const HEAD: &str = "\n## Which test is which row\n\n\
<!-- Made by `UPDATE_DOCS=1 cargo test --test rows`; do not edit below. -->\n\n\
Files are dialogues in `tests/dialogues/`, the others functions in `tests/`.\n\n\
| Row | Tests |\n|---|---|\n";

/// The tests that are named as a row, by its number.
fn tests_of_rows() -> BTreeMap<u32, Vec<String>> {
    fn look(folder: &Path, found: &mut BTreeMap<u32, Vec<String>>) {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        for path in names {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let mut note = |digits: &str, test: String| {
                let row: u32 = digits.parse().unwrap_or_else(|_| panic!("{test} names no row"));
                assert!((1..=ROWS).contains(&row), "{test} names no row");
                found.entry(row).or_default().push(test);
            };
            if path.is_dir() {
                look(&path, found);
            } else if let Some(rest) = name.strip_prefix("row-") {
                note(&rest[..2], format!("`{name}`"));
            } else if name.ends_with(".rs") {
                let text = fs::read_to_string(&path).unwrap();
                for (_, rest) in text.lines().filter_map(|line| line.split_once("fn row_")) {
                    let function = rest.split('(').next().unwrap_or_default();
                    let digits = function.split("_and_").map(|part| part.get(..2).unwrap_or(""));
                    for digits in
                        digits.take_while(|part| part.bytes().all(|octet| octet.is_ascii_digit()))
                    {
                        note(digits, format!("`row_{function}` in `{name}`"));
                    }
                }
            }
        }
    }
    let mut found = BTreeMap::new();
    look(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests"), &mut found);
    found
}

#[test]
fn every_row_of_the_document_has_its_test_and_is_told_of() {
    let found = tests_of_rows();
    let missing: Vec<u32> = (1..=ROWS).filter(|row| !found.contains_key(row)).collect();
    let table: String =
        found.iter().map(|(row, tests)| format!("| {row} | {} |\n", tests.join("<br>"))).collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/devices.md");
    let text = fs::read_to_string(&path).unwrap();
    let before = text.split(HEAD).next().unwrap_or_default();
    let wanted = format!("{before}{HEAD}{table}");
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &wanted).unwrap();
    }
    let there = fs::read_to_string(&path).unwrap();
    assert!(there == wanted, "docs/devices.md is stale: UPDATE_DOCS=1 cargo test --test rows");
    assert_eq!(missing, [0; 0], "rows without a test");
}
