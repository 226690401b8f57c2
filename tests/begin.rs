//! An envelope that is known as a whole goes up in one flight. The smarthost is a script that writes down what it
//! hears, and keeps its answers to itself until it has heard DATA, or answers each command.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use smtp_uplift::{
    config,
    proto::{
        client::Stage,
        envelope::Envelope,
        param::MailParams,
        path::{Address, ForwardPath, ReversePath},
    },
    smarthost::{
        Target,
        connection::{Lost, LostCause},
        pool::{Allowance, Lease, Lifetime, Pool, Who},
        transaction::{Begun, StepError},
    },
    telemetry::{
        metrics::Metrics,
        transcript::{Keep, Transcripts},
    },
    transport::dial::Dialler,
};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream};
use tokio_util::task::TaskTracker;

const WAIT: Duration = Duration::from_secs(10);
const ALL: &[&str] = &["PIPELINING", "SIZE 1000", "8BITMIME", "SMTPUTF8"];

/// What the smarthost answers to a command; the first rule whose words the command begins with.
type Rules = &'static [(&'static str, &'static str)];

struct Smarthost {
    pool: Arc<Pool>,
    /// The commands of transactions.
    heard: Arc<Mutex<Vec<String>>>,
    tracker: TaskTracker,
    _folder: tempfile::TempDir,
}

impl Smarthost {
    /// `holds` back its answers until DATA.
    fn new(offers: &'static [&'static str], rules: Rules, holds: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = "hostname = \"relay.example\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
             [smarthost]\nhost = \"localhost\"\nport = 25\ntls = \"none\"\n\
             [[mailbox]]\naddress = \"a@example.com\"\nauth = \"none\"\n[delivery]\nmode = \"stream\"\n";
        let config = config::parse(text, &folder.path().join("relay.toml")).unwrap().config;
        let (heard, tracker) = (Arc::<Mutex<Vec<String>>>::default(), TaskTracker::new());
        let (hearing, serving) = (Arc::clone(&heard), tracker.clone());
        let dialler = Dialler::Fn(Arc::new(move || {
            let (ours, theirs) = tokio::io::duplex(16 * 1024);
            serving.spawn(serve(theirs, offers, rules, holds, Arc::clone(&hearing)));
            let address = ([127, 0, 0, 1], 25).into();
            Box::pin(std::future::ready(Ok((Box::new(ours) as _, address))))
        }));
        let target = Target::with_dialler(&config, &config.mailboxes[0], dialler).unwrap();
        let (metrics, transcripts) = (Metrics::new("none"), Transcripts::new(Keep::All));
        let pool = Pool::new(
            target,
            Allowance::unlimited(1),
            None,
            Lifetime::default(),
            metrics,
            transcripts,
            tracker.clone(),
        );
        Self { pool, heard, tracker, _folder: folder }
    }

    async fn lease(&self) -> Lease {
        self.pool.lease(&Who::Spool, 1, WAIT).await.unwrap()
    }

    async fn begin(&self, from: &str, to: &[&str], pipelined: bool) -> Result<Begun, StepError> {
        self.lease().await.begin(&envelope(from, to), 0, WAIT, pipelined).await
    }

    /// What was heard since the last look.
    fn heard(&self) -> String {
        std::mem::take(&mut *self.heard.lock().unwrap()).join(" | ")
    }

    /// Whether the connection was kept.
    fn is_kept(&self) -> bool {
        self.pool.connections().shelved == 1
    }
}

async fn serve(
    io: DuplexStream,
    offers: &[&str],
    rules: Rules,
    holds: bool,
    heard: Arc<Mutex<Vec<String>>>,
) -> Option<()> {
    let mut io = BufReader::new(io);
    io.write_all(b"220 hello\r\n").await.ok()?;
    let (mut held, mut in_data) = (String::new(), false);
    loop {
        let mut line = String::new();
        if io.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        let line = line.trim_end();
        if line.starts_with("EHLO") {
            let mut offers: Vec<_> = offers.iter().map(|offer| format!("250-{offer}")).collect();
            offers.push("250 HELP".to_owned());
            io.write_all(format!("250-hello\r\n{}\r\n", offers.join("\r\n")).as_bytes())
                .await
                .ok()?;
            continue;
        }
        if !in_data || line == "." {
            heard.lock().unwrap().push(line.to_owned());
        }
        let answer = match line {
            "." => "250 2.0.0 taken",
            _ if in_data => continue,
            _ => rules.iter().find(|(words, _)| line.starts_with(words)).map_or_else(
                || if line == "DATA" { "354 go on" } else { "250 2.0.0 fine" },
                |(_, answer)| *answer,
            ),
        };
        in_data = line == "DATA" && answer.starts_with("354");
        held += &format!("{answer}\r\n");
        if !holds || ["DATA", ".", "RSET", "QUIT"].contains(&line) {
            io.write_all(std::mem::take(&mut held).as_bytes()).await.ok()?;
        }
        if answer.starts_with("421") {
            return None;
        }
    }
}

fn envelope(from: &str, to: &[&str]) -> Envelope {
    let recipient = |to: &&str| ForwardPath::Address(Address::parse(to).unwrap());
    Envelope {
        reverse_path: ReversePath::Address(Address::parse(from).unwrap()),
        params: MailParams::default(),
        recipients: to.iter().map(recipient).collect(),
    }
}

fn codes(begun: &Begun) -> Vec<u16> {
    begun.replies.iter().map(|reply| reply.code.get()).collect()
}

fn refused(begun: Result<Begun, StepError>) -> (Stage, u16) {
    match begun {
        Err(StepError::Refused(stage, reply)) => (stage, reply.code.get()),
        Err(StepError::Lost(lost)) => panic!("{lost}"),
        Ok(begun) => panic!("begun: {:?}", codes(&begun)),
    }
}

async fn finish(begun: Begun) {
    let mut transfer = begun.transfer.unwrap();
    transfer.write(Bytes::from_static(b"a\r\n"), WAIT).await.unwrap();
    assert_eq!(transfer.end(WAIT).await.unwrap().code.get(), 250);
}

#[tokio::test(start_paused = true)]
async fn the_whole_envelope_goes_up_in_one_flight() {
    let smarthost = Smarthost::new(ALL, &[("RCPT TO:<c@x>", "550 5.1.1 no")], true);
    let begun = smarthost.begin("a@x", &["b@x", "c@x", "d@x"], true).await.unwrap();
    assert_eq!(codes(&begun), [250, 550, 250]);
    finish(begun).await;
    let flight = "MAIL FROM:<a@x> | RCPT TO:<b@x> | RCPT TO:<c@x> | RCPT TO:<d@x> | DATA | .";
    assert_eq!(smarthost.heard(), flight);
    assert!(smarthost.is_kept());
    // From the second transaction on RSET comes first.
    let begun = smarthost.begin("a@x", &["b@x"], true).await.unwrap();
    finish(begun).await;
    assert_eq!(smarthost.heard(), "RSET | MAIL FROM:<a@x> | RCPT TO:<b@x> | DATA | .");
}

#[tokio::test(start_paused = true)]
async fn one_by_one_where_pipelining_is_not_offered_or_not_wanted() {
    for (offers, pipelined) in [(&ALL[1..], true), (ALL, false)] {
        let no: Rules = &[("RCPT TO:<c@x>", "451 4.2.0 no")];
        let smarthost = Smarthost::new(offers, no, false);
        let begun = smarthost.begin("a@x", &["c@x", "b@x"], pipelined).await.unwrap();
        assert_eq!(codes(&begun), [451, 250]);
        finish(begun).await;
        smarthost.heard();
        let begun = smarthost.begin("a@x", &["c@x", "c@x"], pipelined).await.unwrap();
        assert_eq!(codes(&begun), [451, 451]);
        assert!(begun.transfer.is_none() && smarthost.is_kept());
        let asked = "RSET | MAIL FROM:<a@x> | RCPT TO:<c@x> | RCPT TO:<c@x>";
        assert_eq!(smarthost.heard(), asked, "DATA is not asked for");
        // One that would answer everything at once is never asked for more than one thing.
        let holds = Smarthost::new(offers, no, true);
        let begun = holds.begin("a@x", &["b@x"], pipelined).await;
        assert!(matches!(begun, Err(StepError::Lost(lost)) if lost.stage == Stage::Mail));
        assert_eq!(holds.heard(), "MAIL FROM:<a@x>");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_mail_is_the_refusal_and_what_follows_says_nothing_new() {
    let rules: Rules = &[
        ("MAIL", "550 5.7.60 SMTP; Client does not have permissions to send as this sender"),
        ("RCPT", "503 5.5.2 Need mail command"),
        ("DATA", "503 5.5.2 Need rcpt command"),
    ];
    for pipelined in [true, false] {
        let smarthost = Smarthost::new(ALL, rules, pipelined);
        let begun = smarthost.begin("a@x", &["b@x", "c@x"], pipelined).await;
        assert_eq!(refused(begun), (Stage::Mail, 550));
        assert!(smarthost.is_kept(), "a 503 that follows spoils nothing");
        let last = smarthost.pool.journal().last_error().unwrap();
        assert!(last.reply.starts_with("550 5.7.60"), "{last:?}");
        let asked = if pipelined { 4 } else { 1 };
        assert_eq!(smarthost.heard().split(" | ").count(), asked);
    }
    // Nor is a connection kept that waits for the data of a message without a sender.
    let smarthost = Smarthost::new(ALL, &rules[..2], true);
    assert_eq!(refused(smarthost.begin("a@x", &["b@x"], true).await), (Stage::Mail, 550));
    assert!(!smarthost.is_kept());
}

#[tokio::test(start_paused = true)]
async fn a_mail_whose_parameters_are_not_known_is_said_without() {
    let rules: Rules = &[
        ("MAIL FROM:<a@x> ", "502 5.3.3 Command not implemented"),
        ("RCPT TO:<no@x>", "550 5.1.1 no"),
    ];
    let mut envelope = envelope("a@x", &["b@x", "no@x"]);
    envelope.params.size = Some(100);
    let smarthost = Smarthost::new(ALL, rules, false);
    let lease = smarthost.lease().await;
    let begun = lease.begin(&envelope, 10, WAIT, false).await.unwrap();
    assert_eq!(codes(&begun), [250, 550]);
    finish(begun).await;
    assert_eq!(
        smarthost.heard(),
        "MAIL FROM:<a@x> SIZE=110 | MAIL FROM:<a@x> | RCPT TO:<b@x> | RCPT TO:<no@x> | DATA | ."
    );
    // In one flight everything is said again, unless somebody waits for data.
    let all: Rules = &[
        ("MAIL FROM:<a@x> ", "502 5.3.3 Command not implemented"),
        ("RCPT", "503 5.5.2 Need mail command"),
        ("DATA", "503 5.5.2 Need rcpt command"),
    ];
    for (rules, asked) in [(all, 8), (&all[..2], 4)] {
        let smarthost = Smarthost::new(ALL, rules, true);
        let lease = smarthost.lease().await;
        let begun = lease.begin(&envelope, 10, WAIT, true).await;
        assert!(begun.is_err() || begun.is_ok_and(|begun| begun.transfer.is_none()));
        assert_eq!(smarthost.heard().split(" | ").count(), asked);
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_recipient_there_is_no_dot() {
    let no: Rules = &[("RCPT", "550 5.1.1 no"), ("DATA", "503 5.5.2 Need rcpt command")];
    let smarthost = Smarthost::new(ALL, no, true);
    let begun = smarthost.begin("a@x", &["b@x", "c@x"], true).await.unwrap();
    assert_eq!(codes(&begun), [550, 550]);
    assert!(begun.transfer.is_none() && smarthost.is_kept());
    // A smarthost that takes data for nobody gets none.
    let smarthost = Smarthost::new(ALL, &no[..1], true);
    let begun = smarthost.begin("a@x", &["b@x", "c@x"], true).await.unwrap();
    assert_eq!(codes(&begun), [550, 550]);
    assert!(begun.transfer.is_none() && !smarthost.is_kept());
    smarthost.pool.stop();
    smarthost.tracker.close();
    smarthost.tracker.wait().await;
    assert!(smarthost.heard().ends_with("| DATA"), "neither a dot nor QUIT");
}

#[tokio::test(start_paused = true)]
async fn a_refused_data_is_the_refusal() {
    for (answer, code, kept) in [
        ("554 5.6.0 Corrupt message content", 554, true),
        ("421 4.3.2 closing", 421, false),
        ("250 2.0.0 fine", 250, false),
    ] {
        let rules: Rules = Box::leak(Box::new([("DATA", answer)]));
        for pipelined in [true, false] {
            let smarthost = Smarthost::new(ALL, rules, pipelined);
            let begun = smarthost.begin("a@x", &["b@x"], pipelined).await;
            assert_eq!(refused(begun), (Stage::Data, code));
            assert_eq!(smarthost.is_kept(), kept, "{answer}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_yes_that_answers_nothing_and_a_farewell_are_no_recipients() {
    for answer in ["252 2.5.0 cannot VRFY", "220 hello", "354 go on"] {
        let rules: Rules = Box::leak(Box::new([("RCPT TO:<c@x>", answer)]));
        let smarthost = Smarthost::new(ALL, rules, false);
        let begun = smarthost.begin("a@x", &["b@x", "c@x"], true).await;
        let Err(StepError::Lost(Lost { stage: Stage::Rcpt, cause: LostCause::OutOfStep })) = begun
        else {
            panic!("{answer}: {:?}", begun.map(|begun| codes(&begun)));
        };
        assert!(!smarthost.is_kept());
    }
    let smarthost = Smarthost::new(ALL, &[("RCPT TO:<c@x>", "421 4.3.2 closing")], false);
    let begun = smarthost.begin("a@x", &["b@x", "c@x", "d@x"], true).await;
    assert_eq!(refused(begun), (Stage::Rcpt, 421));
    let smarthost = Smarthost::new(ALL, &[("RCPT", "251 2.1.5 will forward")], true);
    finish(smarthost.begin("a@x", &["b@x"], true).await.unwrap()).await;
}

#[tokio::test(start_paused = true)]
async fn who_cannot_be_asked_in_ascii_is_refused_without_being_asked() {
    let to = ["b@x", "jürgen@x", "d@x"];
    let smarthost = Smarthost::new(ALL, &[], true);
    let begun = smarthost.begin("a@x", &to, true).await.unwrap();
    assert_eq!(codes(&begun), [250, 250, 250]);
    assert!(
        smarthost
            .heard()
            .starts_with("MAIL FROM:<a@x> SMTPUTF8 | RCPT TO:<b@x> | RCPT TO:<jürgen@x>")
    );
    let smarthost = Smarthost::new(&ALL[..3], &[("RCPT TO:<d@x>", "550 5.1.1 no")], true);
    let begun = smarthost.begin("a@x", &to, true).await.unwrap();
    assert_eq!(codes(&begun), [250, 553, 550]);
    finish(begun).await;
    assert_eq!(smarthost.heard(), "MAIL FROM:<a@x> | RCPT TO:<b@x> | RCPT TO:<d@x> | DATA | .");
    let begun = smarthost.begin("a@x", &to[1..2], true).await.unwrap();
    assert_eq!(codes(&begun), [553]);
    assert!(begun.transfer.is_none() && smarthost.is_kept());
    assert_eq!(smarthost.heard(), "", "there is nothing to ask");
    let begun = smarthost.begin("jürgen@x", &["b@x"], true).await;
    assert_eq!(refused(begun), (Stage::Mail, 553));
    assert!(smarthost.is_kept());
}

#[tokio::test(start_paused = true)]
async fn a_list_of_any_length_goes_up_without_a_standstill() {
    // Long addresses and long answers: in one go they would fill the stream both ways.
    let no: Rules = Box::leak(Box::new([("RCPT TO:<no", {
        let text: &str = Box::leak(format!("550 5.1.1 {}", "no ".repeat(100)).into_boxed_str());
        text
    })]));
    let smarthost = Smarthost::new(ALL, no, false);
    let to: Vec<String> = (0..2_000)
        .map(|number| {
            let who = if number % 3 == 0 { "no" } else { "yes" };
            format!("{who}-{number}@{}.example", "long".repeat(15))
        })
        .collect();
    let to: Vec<&str> = to.iter().map(String::as_str).collect();
    let begun = smarthost.begin("a@x", &to, true).await.unwrap();
    assert_eq!(codes(&begun).iter().filter(|code| **code == 250).count(), 1_333);
    assert!(codes(&begun).iter().step_by(3).all(|code| *code == 550));
    finish(begun).await;
    assert_eq!(smarthost.heard().split(" | ").count(), 2_003);
}
