//! What people are told of messages, and how it gets to them.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use std::{fs, time::Duration};

use common::{House, KEEP, Plan, fault, memory::InMemory};
use smtp_uplift::{
    sandbox::{Sandbox, scenario::Scenario},
    spool::queue::{Filter, Queue as _, State},
};

const DESK: &str = "[notices]\nto = \"desk@example.com\"\n";

fn told<'a>(more: &'a str) -> Plan<'a> {
    Plan { delivery: KEEP, more, settled: false, ..Plan::default() }
}

/// The notices that have arrived, oldest first.
fn notices(sandbox: &Sandbox) -> Vec<String> {
    let sent = sandbox.deliveries().into_iter();
    sent.filter(|delivery| delivery.recipients == ["desk@example.com"])
        .map(|delivery| String::from_utf8(delivery.data.to_vec()).unwrap())
        .collect()
}

async fn pause(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn a_recipient_refused_among_others_is_told_of_with_the_remedy() {
    let house = InMemory::build(told(DESK)).await;
    let heard =
        house.send("copier@example.com", &["a@example.com", "reply-550-5.1.1@example.com"]).await;
    assert!(heard.starts_with("250 2.0.0 ok, id "), "{heard}");
    pause(10).await;
    let notices = notices(&house.sandbox);
    assert_eq!(notices.len(), 1, "{notices:#?}");
    for part in [
        "From: smtp-uplift <scanner@example.com>\r\nTo: <desk@example.com>\r\n",
        "Subject: Not delivered: mail of 127.0.0.1 to reply-550-5.1.1@example.com\r\n",
        "Auto-Submitted: auto-generated\r\n",
        "What was said\r\n  550 5.1.1 scripted by the sandbox\r\n",
        "What to do\r\n  * ",
        "Its header section\r\n  From: a@example.com\r\n  Subject: scan\r\n",
    ] {
        assert!(notices[0].contains(part), "{part:?} in {}", notices[0]);
    }
    assert_eq!(house.metric("notices_total{outcome=\"sent\"}"), 1.0);
}

#[tokio::test(start_paused = true)]
async fn what_expires_is_failed_and_told_of_once() {
    let more = format!("{DESK}[spool]\nexpire = \"10m\"\n");
    let house = InMemory::build(told(&more)).await;
    house.sandbox.refuse(true);
    house.send("copier@example.com", &["office@example.com"]).await;
    pause(9 * 60).await;
    let state = async || house.keeper().queue.list(Filter::default()).await.unwrap()[0].state;
    assert_eq!(state().await, State::Ready);
    pause(3 * 60).await;
    assert_eq!(state().await, State::Failed);
    house.sandbox.refuse(false);
    pause(7_200).await;
    let notices = notices(&house.sandbox);
    assert_eq!(notices.len(), 1, "{notices:#?}");
    assert!(notices[0].contains("Subject: Given up: mail of 127.0.0.1 to office@example.com"));
    assert!(notices[0].contains("smtp-uplift queue retry "), "{}", notices[0]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_is_told_of_once_however_much_it_holds() {
    let house = InMemory::build(told(DESK)).await;
    for _ in 0..5 {
        house.send("reply-554-5.2.252-dot@example.com", &["office@example.com"]).await;
    }
    pause(6 * 3_600).await;
    let notices = notices(&house.sandbox);
    assert_eq!(notices.len(), 1, "{notices:#?}");
    let subject = "Subject: Held: all mail from reply-554-5.2.252-dot@example.com\r\n";
    assert!(notices[0].contains(subject), "{}", notices[0]);
}

#[tokio::test(start_paused = true)]
async fn beyond_twenty_an_hour_they_come_together() {
    let house = InMemory::build(told(DESK)).await;
    for _ in 0..30 {
        let to = ["a@example.com", "reply-550-5.1.1@example.com"];
        house.send("copier@example.com", &to).await;
    }
    pause(60).await;
    assert_eq!(notices(&house.sandbox).len(), 20);
    pause(1_200).await;
    let notices = notices(&house.sandbox);
    assert_eq!(notices.len(), 21);
    assert!(notices[20].contains("Subject: 10 things need a look\r\n"), "{}", notices[20]);
    assert_eq!(notices[20].matches("  * Not delivered: mail of 127.0.0.1").count(), 10);
    assert_eq!(house.metric("notices_total{outcome=\"digest\"}"), 1.0);
}

#[tokio::test(start_paused = true)]
async fn there_is_no_notice_about_a_notice() {
    let more = "[notices]\nto = \"reply-550-5.1.1@example.com\"\n";
    let house = InMemory::build(told(more)).await;
    house.send("copier@example.com", &["a@example.com", "reply-550-5.1.1@example.com"]).await;
    pause(3_600).await;
    let found = house.keeper().queue.list(Filter::default()).await.unwrap();
    let states: Vec<State> = found.iter().map(|summary| summary.state).collect();
    assert_eq!(states, [State::Failed; 2], "the message, and the notice of it");
    assert_eq!(house.metric("notices_total{outcome=\"failed\"}"), 1.0);
    assert_eq!(house.keeper().queue.notices().await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn one_that_waits_behind_a_stop_is_seen_and_goes_when_the_stop_does() {
    let scenario =
        fault("stage = 'dot'\nreply = '430 4.2.0 STOREDRV; mailbox logon failure'\ntimes = 1");
    let house = InMemory::build(Plan { scenario, ..told(DESK) }).await;
    house.send("copier@example.com", &["office@example.com"]).await;
    pause(60).await;
    assert_eq!(notices(&house.sandbox).len(), 0);
    assert_eq!(house.keeper().queue.totals().await.unwrap().notices, 1);
    assert_eq!(house.metric("notices_total{outcome=\"waiting\"}"), 1.0);
    pause(3_600).await;
    let notices = notices(&house.sandbox);
    assert_eq!(notices.len(), 1);
    assert!(notices[0].contains("Subject: Held: all mail of scanner@example.com\r\n"));
}

#[tokio::test]
async fn a_program_reads_it_from_its_standard_input() {
    let folder = tempfile::tempdir().unwrap();
    let mail = folder.path().join("mail");
    let more = format!(
        "{DESK}command = [\"sh\", \"-c\", \"cat > {0}.new && mv {0}.new {0}\"]\n",
        mail.display()
    );
    let house = House::build(Plan { delivery: KEEP, more: &more, ..Plan::default() }).await;
    house.send("copier@example.com", &["a@example.com", "reply-550-5.1.1@example.com"]).await;
    while !mail.exists() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let notice = fs::read_to_string(mail).unwrap();
    assert!(notice.contains("\nSubject: Not delivered: mail of 127.0.0.1"), "{notice}");
    assert_eq!(notices(&house.sandbox).len(), 0, "not through the mailbox");
}

#[tokio::test]
async fn another_server_takes_it_without_a_login_and_without_tls_if_it_has_none() {
    let plain = Scenario { auth: Vec::new(), starttls: false, ..Scenario::default() };
    let other = Sandbox::start(([127, 0, 0, 1], 0).into(), plain).await.unwrap();
    let more = format!("{DESK}smtp = \"{}\"\n", other.address());
    let house = House::build(Plan { delivery: KEEP, more: &more, ..Plan::default() }).await;
    house.send("copier@example.com", &["a@example.com", "reply-550-5.1.1@example.com"]).await;
    other.delivered(1).await;
    assert_eq!(notices(&other).len(), 1);
    assert_eq!(notices(&house.sandbox).len(), 0, "not through the mailbox");
}
