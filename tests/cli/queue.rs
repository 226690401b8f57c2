//! What the spool keeps, as an operator sees and handles it.

use std::{fs, os::unix::fs::PermissionsExt as _, sync::Arc};

use assert_cmd::Command;
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use smtp_uplift::{
    proto::path::{Address, ForwardPath, ReversePath},
    spool::{
        queue::{
            Body, Due, Hold, NewMessage, Queue as _, Recipient, RecipientState, Standing, State,
        },
        store::Store,
    },
    telemetry::metrics::Metrics,
};
use tempfile::TempDir;

use super::{filters, run, smtp_uplift, told};

const DATA: &str = "From: copier@example.com\r\nSubject: scan\r\n\r\nline\r\n..dot\r\n";

/// A folder with a configuration, of which nothing else is right.
pub(super) fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("smtp-uplift.toml"),
        "state_dir = \"state\"\nhostname = 3\n[spool]\ndirectory = \"kept\"\n",
    )
    .unwrap();
    folder
}

fn queue(folder: &TempDir, args: &[&str]) -> Command {
    let mut command = smtp_uplift();
    command.arg("queue").args(args).current_dir(folder);
    command
}

fn json(folder: &TempDir, args: &[&str]) -> (i32, Value) {
    let (code, out, err) = run(queue(folder, args).arg("--json"));
    assert_eq!(err, "", "{args:?}");
    (code, serde_json::from_str(&out).unwrap())
}

/// The ids that a list has.
pub(super) fn ids(folder: &TempDir, args: &[&str]) -> Vec<String> {
    let (code, rows) = json(folder, &[&["list"], args].concat());
    assert_eq!(code, 0);
    let rows = rows.as_array().unwrap().iter();
    rows.map(|row| row["id"].as_str().unwrap().to_owned()).collect()
}

fn address(text: &str) -> Address {
    Address::parse(text).unwrap()
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

/// A message that was received so many minutes ago.
fn message(id: &str, minutes: i64, standing: Standing) -> NewMessage {
    let received = Timestamp::now() - SignedDuration::from_secs(60 * minutes + 20);
    NewMessage {
        id: id.into(),
        mailbox: "scanner@example.com".into(),
        bound: false,
        device: "10.1.2.3".into(),
        listener: "lan".into(),
        reverse_path: ReversePath::Address(address("copier@example.com")),
        eight_bit: false,
        smtputf8: false,
        received,
        head: "Received: from copier\r\n".into(),
        body: Body::Chunks(vec![Bytes::from_static(DATA.as_bytes())]),
        is_notice: false,
        recipients: ["a@example.com", "b@example.com"]
            .map(|to| Recipient {
                path: ForwardPath::Address(address(to)),
                state: RecipientState::Pending,
                reply: String::new(),
            })
            .to_vec(),
        standing,
        notice: None,
    }
}

/// One that is ready, one that is held, one from another device, one that has failed.
pub(super) fn messages() -> Vec<NewMessage> {
    let ready = Standing {
        due: Some(Timestamp::now() + SignedDuration::from_secs(150)),
        reason: "451 4.7.0 Temporary server error. Please try again later. PRX4".into(),
        attempts: 1,
        ..standing(State::Ready)
    };
    let held = Standing {
        hold: Some(Hold::Sender("boss@example.com".into())),
        reason: "554 5.2.252 \u{1b}[2JSendAsDenied; not allowed to send as boss".into(),
        rule: "send-as-denied".into(),
        attempts: 2,
        transcript: "-> MAIL FROM:<boss@example.com>\n<- 250 2.1.0 Sender OK".into(),
        ..standing(State::Held)
    };
    let maybe = Standing {
        due: Some(Timestamp::UNIX_EPOCH),
        reason: "the connection was lost".into(),
        attempts: 1,
        maybe_sent: true,
        ..standing(State::MaybeSent)
    };
    let failed = Standing {
        reason: "550 5.1.1 User unknown".into(),
        attempts: 1,
        ..standing(State::Failed)
    };
    let mut messages = vec![
        message("1tyjb7hc.1", 400, ready),
        message("1tyjb7hc.2", 300, held),
        message("1tyjb7hc.3", 3, maybe),
        message("1tyjb7hc.4", 2, failed),
    ];
    messages[1].reverse_path = ReversePath::Address(address("boss@example.com"));
    messages[2].device = "alarm panel".into();
    messages[2].reverse_path = ReversePath::Null;
    messages[3].recipients[0].state = RecipientState::Delivered;
    messages[3].recipients[1].state = RecipientState::Failed;
    messages[3].recipients[1].reply = "550 5.1.1 User unknown".into();
    messages
}

/// What the relay would keep.
pub(super) fn keep(folder: &TempDir, messages: Vec<NewMessage>) {
    let (runtime, store) = store(folder);
    for message in messages {
        runtime.block_on(store.take(message)).unwrap();
    }
}

fn store(folder: &TempDir) -> (tokio::runtime::Runtime, Arc<Store>) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    fs::create_dir_all(folder.path().join("state")).unwrap();
    let directory = folder.path().join("state/kept");
    let store = Store::open(&directory, 1 << 30, Metrics::new("none")).unwrap();
    (runtime, store)
}

fn snapshots(folder: &TempDir) -> insta::internals::SettingsBindDropGuard {
    let filters = filters(folder.path());
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"DATET\d\d:\d\d:\d\dZ", "TIME");
    // It would take these away with it.
    drop(filters);
    settings.bind_to_scope()
}

#[test]
fn without_a_spool() {
    let folder = folder();
    let _snapshots = snapshots(&folder);
    insta::assert_snapshot!(told(&mut queue(&folder, &["list"])), @r"
    exit code 0
    --- stdout
    Nothing is kept: there is no spool at FOLDER/state/kept; the relay makes it when it runs with [delivery] mode stream-then-spool or spool.
    ");
    insta::assert_snapshot!(told(&mut queue(&folder, &["list", "--json"])), @r"
    exit code 0
    --- stdout
    []
    ");
    for args in [
        &["show", "a"][..],
        &["retry", "a"],
        &["hold", "--all"],
        &["release", "--all", "--json"],
        &["drop", "a", "--yes"],
        &["export", "a"],
    ] {
        let (code, out, err) = run(&mut queue(&folder, args));
        assert_eq!((code, out.as_str()), (1, ""), "{args:?}");
        assert!(err.contains("/state/kept; the relay makes it when it runs with "), "{err}");
    }
    assert!(!folder.path().join("state").exists(), "nobody else makes one");
}

#[test]
fn a_configuration_that_cannot_be_read_is_78() {
    let folder = tempfile::tempdir().unwrap();
    let (code, _, err) = run(&mut queue(&folder, &["list", "--config", "none.toml"]));
    assert!(code == 78 && err.contains("name another with --config"), "{err}");
    fs::write(folder.path().join("smtp-uplift.toml"), "[spool]\ndirectory = 1\n").unwrap();
    let (code, _, err) = run(&mut queue(&folder, &["list"]));
    assert!(code == 78 && err.contains(":2: spool.directory: expected a string"), "{err}");
}

#[test]
fn an_empty_spool_says_so() {
    let folder = folder();
    keep(&folder, Vec::new());
    let _snapshots = snapshots(&folder);
    insta::assert_snapshot!(told(&mut queue(&folder, &["list"])), @r"
    exit code 0
    --- stdout
    No message waits in FOLDER/state/kept.
    ");
    insta::assert_snapshot!(told(&mut queue(&folder, &["list", "--state", "held"])), @r"
    exit code 0
    --- stdout
    No message is like that; without these options smtp-uplift queue list shows all that wait.
    ");
    insta::assert_snapshot!(told(&mut queue(&folder, &["retry", "--all"])), @r"
    exit code 0
    --- stdout
    There is no such message; nothing was done.
    ");
    assert_eq!(json(&folder, &["list"]), (0, serde_json::json!([])));
    assert_eq!(json(&folder, &["retry", "--all"]), (0, serde_json::json!([])));
}

#[test]
fn list_and_its_filters() {
    let folder = folder();
    keep(&folder, messages());
    let _snapshots = snapshots(&folder);
    insta::assert_snapshot!("queue-list", told(&mut queue(&folder, &["list"])));
    let [one, two, three, four] = ["1tyjb7hc.1", "1tyjb7hc.2", "1tyjb7hc.3", "1tyjb7hc.4"];
    for (args, found) in [
        (&[][..], &[one, two, three, four][..]),
        (&["--state", "held"], &[two]),
        (&["--state", "held", "--state", "failed"], &[two, four]),
        (&["--state", "done"], &[]),
        (&["--device", "alarm panel"], &[three]),
        (&["--older", "1h"], &[one, two]),
        (&["--older", "1h", "--state", "ready"], &[one]),
        (&["--limit", "2"], &[one, two]),
        (&["--limit", "2", "--after", two], &[three, four]),
        (&["--limit", "0"], &[one, two, three, four]),
    ] {
        assert_eq!(ids(&folder, args), found, "{args:?}");
    }
    let footer = |args: &[&str]| {
        let (code, out, _) = run(queue(&folder, &["list"]).args(args));
        assert_eq!(code, 0);
        out.split_once("\n\n").unwrap().1.to_owned()
    };
    assert_eq!(
        footer(&["--limit", "1"]),
        "1 of 4 messages.\nThe next: smtp-uplift queue list --limit 1 --after 1tyjb7hc.1\n"
    );
    assert_eq!(footer(&["--limit", "1", "--after", three]), "1 of 4 messages.\n");
    assert_eq!(
        footer(&["--older", "1h", "--limit", "1", "--config", "./smtp-uplift.toml"]),
        "1 of 2 messages.\nThe next: smtp-uplift queue list --config ./smtp-uplift.toml --older 1h --limit 1 --after 1tyjb7hc.1\n"
    );
    insta::assert_snapshot!(told(&mut queue(&folder, &["list", "--device", "x"])), @r"
    exit code 0
    --- stdout
    No message is like that; without these options smtp-uplift queue list shows all that wait.
    ");
    insta::assert_snapshot!(told(&mut queue(&folder, &["list", "--after", four])), @r"
    exit code 0
    --- stdout
    There are no more.
    ");
    insta::assert_snapshot!(told(&mut queue(&folder, &["list", "--after", "nobody"])), @r"
    exit code 1
    --- stderr
    smtp-uplift: --after nobody: there is no such message (any more); leave it out to begin anew
    ");
    for wrong in [["--state", "asleep"], ["--older", "long"], ["--older", "900years"]] {
        assert_eq!(run(queue(&folder, &["list"]).args(wrong)).0, 64, "{wrong:?}");
    }
}

#[test]
fn the_json_of_a_list_has_names_that_scripts_rely_on() {
    let folder = folder();
    keep(&folder, messages());
    let (_, rows) = json(&folder, &["list"]);
    let row = rows[1].as_object().unwrap();
    let mut names: Vec<_> = row.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "attempts",
            "bytes",
            "device",
            "due",
            "from",
            "hold",
            "id",
            "mailbox",
            "maybe_sent",
            "reason",
            "received",
            "recipients",
            "rule",
            "state",
            "to"
        ]
    );
    assert_eq!(row["state"], "held");
    assert_eq!(row["hold"], "sender:boss@example.com");
    assert_eq!((&row["to"], &row["recipients"]), (&"a@example.com".into(), &2.into()));
    assert_eq!(row["bytes"], DATA.len());
    assert_eq!(row["due"], Value::Null);
    row["received"].as_str().unwrap().parse::<Timestamp>().unwrap();
    rows[0]["due"].as_str().unwrap().parse::<Timestamp>().unwrap();
    assert_eq!((&rows[2]["from"], &rows[2]["maybe_sent"]), (&"".into(), &1.into()));
}

#[test]
fn show_tells_all_and_what_to_do() {
    let folder = folder();
    keep(&folder, messages());
    let _snapshots = snapshots(&folder);
    insta::assert_snapshot!("queue-show", told(&mut queue(&folder, &["show", "1tyjb7hc.2"])));
    let (code, out, _) = run(&mut queue(&folder, &["show", "1tyjb7hc.4"]));
    assert!(
        code == 0 && out.contains("  failed     b@example.com: 550 5.1.1 User unknown"),
        "{out}"
    );
    let (code, whole) = json(&folder, &["show", "1tyjb7hc.2"]);
    assert_eq!(code, 0);
    assert_eq!(whole["listener"], "lan");
    assert_eq!(whole["recipients"], 2, "as in a list");
    assert_eq!(whole["addressees"][1]["address"], "b@example.com");
    assert_eq!(whole["addressees"][1]["state"], "pending");
    assert_eq!(whole["verdicts"][0]["class"], "sender-permission");
    assert!(
        whole["header"]
            .as_str()
            .unwrap()
            .ends_with("copier\r\nFrom: copier@example.com\r\nSubject: scan\r\n")
    );
    insta::assert_snapshot!(told(&mut queue(&folder, &["show", "nobody"])), @r"
    exit code 1
    --- stderr
    smtp-uplift: nobody: there is no such message (any more); smtp-uplift queue list shows those that there are
    ");
}

#[test]
fn an_operators_word() {
    let folder = folder();
    keep(&folder, messages());
    let _snapshots = snapshots(&folder);
    let [one, two, three, four] = ["1tyjb7hc.1", "1tyjb7hc.2", "1tyjb7hc.3", "1tyjb7hc.4"];
    let said = |args: &[&str]| told(&mut queue(&folder, args));
    insta::assert_snapshot!(said(&["hold", one, one, "nobody"]), @r"
    exit code 1
    --- stdout
    1tyjb7hc.1: held until it is released
    --- stderr
    smtp-uplift: nobody: there is no such message (any more); smtp-uplift queue list shows those that there are
    ");
    assert_eq!(ids(&folder, &["--state", "held"]), [one, two]);
    insta::assert_snapshot!(said(&["release", three, one]), @r"
    exit code 1
    --- stdout
    1tyjb7hc.1: released, it is due now
    --- stderr
    smtp-uplift: 1tyjb7hc.3: it is not held but maybe-sent; smtp-uplift queue retry 1tyjb7hc.3 has it tried now
    ");
    insta::assert_snapshot!(said(&["hold", four]), @r"
    exit code 1
    --- stderr
    smtp-uplift: 1tyjb7hc.4: it has failed, and is not tried any more; smtp-uplift queue retry 1tyjb7hc.4 has it tried again
    ");
    insta::assert_snapshot!(said(&["retry", two]), @r"
    exit code 0
    --- stdout
    1tyjb7hc.2: it is due now, whatever held it
    ");
    assert_eq!(ids(&folder, &["--state", "ready"]), [one, two]);
    let (code, outcomes) = json(&folder, &["hold", one, four, "nobody"]);
    assert_eq!(code, 1);
    let outcome = |index: usize| {
        let it = &outcomes[index];
        [&it["id"], &it["change"], &it["outcome"], &it["state"]].map(|it| it.as_str())
    };
    assert_eq!(outcome(0), [Some(one), Some("hold"), Some("done"), None]);
    assert_eq!(outcome(1), [Some(four), Some("hold"), Some("not-now"), Some("failed")]);
    assert_eq!(outcome(2), [Some("nobody"), Some("hold"), Some("not-found"), None]);
    // Failed ones are meant where they are named.
    let (code, outcomes) = json(&folder, &["retry", "--all"]);
    assert_eq!((code, outcomes.as_array().unwrap().len()), (0, 3));
    let (code, outcomes) = json(&folder, &["retry", "--all", "--state", "failed"]);
    assert_eq!((code, outcomes[0]["id"].as_str()), (0, Some(four)));
    let (code, outcomes) =
        json(&folder, &["hold", "--all", "--older", "1h", "--device", "10.1.2.3"]);
    assert_eq!((code, outcomes.as_array().unwrap().len()), (0, 2));
    for wrong in [&["hold"][..], &["hold", one, "--all"], &["hold", one, "--older", "1h"]] {
        assert_eq!(run(&mut queue(&folder, wrong)).0, 64, "{wrong:?}");
    }
}

#[test]
fn what_is_being_delivered_stays() {
    let folder = folder();
    keep(&folder, messages());
    let (runtime, store) = store(&folder);
    let mailbox = "scanner@example.com".to_owned();
    let due = Due { mailbox, unbound: false, now: Timestamp::now(), most: 1 };
    let leased = runtime.block_on(store.lease_due(due)).unwrap();
    let id = leased[0].id.as_str();
    // The relay is running, and this is beside it.
    assert_eq!(ids(&folder, &["--state", "leased"]), [id]);
    for change in ["retry", "hold", "release", "drop"] {
        let yes: &[&str] = if change == "drop" { &["--yes"] } else { &[] };
        let (code, out, err) = run(queue(&folder, &[change, id]).args(yes));
        assert_eq!((code, out.as_str()), (1, ""));
        assert_eq!(
            err,
            format!("smtp-uplift: {id}: it is being delivered just now; try again in a minute\n")
        );
    }
}

#[test]
fn drop_asks_or_wants_a_yes() {
    let folder = folder();
    keep(&folder, messages());
    let _snapshots = snapshots(&folder);
    let said = |args: &[&str]| told(&mut queue(&folder, args));
    insta::assert_snapshot!(said(&["drop", "1tyjb7hc.1", "1tyjb7hc.2"]), @r"
    exit code 64
    --- stderr
    smtp-uplift: 2 messages would be deleted, and there is no terminal to ask on; say --yes
    ");
    insta::assert_snapshot!(said(&["drop", "1tyjb7hc.1", "--yes"]), @r"
    exit code 0
    --- stdout
    1tyjb7hc.1: deleted
    ");
    assert_eq!(ids(&folder, &[]).len(), 3);
    let (code, _) = json(&folder, &["drop", "--all", "--yes"]);
    assert_eq!(code, 0);
    assert_eq!(ids(&folder, &[]), ["1tyjb7hc.4"], "failed ones have to be named");
}

#[test]
fn export_writes_the_message_as_it_was() {
    let folder = folder();
    let mut messages = messages();
    let big: Vec<_> = (0..6_000).map(|line| format!("..line {line} of many octets\r\n")).collect();
    messages[0].body = Body::Chunks(big.iter().map(|line| Bytes::from(line.clone())).collect());
    messages[2].body = Body::Chunks(vec![Bytes::from("x".repeat(70) + "\r\n"); 10_000]);
    keep(&folder, messages);
    let _snapshots = snapshots(&folder);
    let file = |name: &str| folder.path().join(name);

    insta::assert_snapshot!(told(&mut queue(&folder, &["export", "1tyjb7hc.2"])), @r"
    exit code 0
    --- stdout
    1tyjb7hc.2.eml: 78 octets; only you can read it
    ");
    let wanted = format!("Received: from copier\r\n{}", DATA.replace("\r\n..", "\r\n."));
    assert_eq!(fs::read_to_string(file("1tyjb7hc.2.eml")).unwrap(), wanted);
    let mode = fs::metadata(file("1tyjb7hc.2.eml")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    insta::assert_snapshot!(told(&mut queue(&folder, &["export", "1tyjb7hc.2"])), @r"
    exit code 1
    --- stderr
    smtp-uplift: 1tyjb7hc.2.eml is there already, and nothing is overwritten; name another with --output
    ");
    let (code, out, _) = run(&mut queue(&folder, &["export", "1tyjb7hc.2", "--output", "-"]));
    assert_eq!((code, out), (0, wanted));

    let (code, said) = json(&folder, &["export", "1tyjb7hc.1", "--output", "big.eml"]);
    let big = format!("Received: from copier\r\n{}", big.join("").replace("..", "."));
    assert_eq!((code, &said["file"], &said["bytes"]), (0, &"big.eml".into(), &big.len().into()));
    assert!(fs::read_to_string(file("big.eml")).unwrap() == big);
    let (_, out, _) = run(&mut queue(&folder, &["export", "1tyjb7hc.3", "--output", "-"]));
    assert_eq!(out.len(), 23 + 720_000, "a body of the size that lies in a file");

    let both = ["export", "1tyjb7hc.1", "--output", "-", "--json"];
    assert_eq!(run(&mut queue(&folder, &both)).0, 64);
    insta::assert_snapshot!(told(&mut queue(&folder, &["export", "../../nobody"])), @r"
    exit code 1
    --- stderr
    smtp-uplift: ../../nobody: there is no such message (any more); smtp-uplift queue list shows those that there are
    ");
    let nowhere = ["export", "1tyjb7hc.1", "--output", "none/a.eml"];
    insta::assert_snapshot!(told(&mut queue(&folder, &nowhere)), @r"
    exit code 1
    --- stderr
    smtp-uplift: none/a.eml: No such file or directory (os error 2); name another with --output
    ");
    assert_eq!(ids(&folder, &[]).len(), 4, "all stay");
}

#[test]
fn a_spool_that_is_none_is_no_spool() {
    let folder = folder();
    fs::create_dir(folder.path().join("state")).unwrap();
    fs::write(folder.path().join("state/kept"), "").unwrap();
    let (code, out, err) = run(&mut queue(&folder, &["list"]));
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.starts_with("smtp-uplift: ") && err.contains("state/kept"), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
}
