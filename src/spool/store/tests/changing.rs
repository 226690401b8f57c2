//! What operators, settings and time do to messages; what lists and counts show of them.

use super::*;

const DONE: &str = "done";

#[tokio::test]
async fn an_operators_word_depends_on_the_state() {
    // The state, then what becomes of it by each word; "-" where it is refused.
    for (from, retry, hold, release, drop) in [
        (State::Ready, "ready", "held/operator", "-", DONE),
        (State::MaybeSent, "ready", "held/operator", "-", DONE),
        (State::Held, "ready", "held/operator", "ready", DONE),
        (State::Failed, "ready", "-", "-", DONE),
        (State::Done, "-", "-", "-", DONE),
        (State::Leased, "-", "-", "-", "-"),
        (State::Awaiting, "-", "-", "-", "-"),
    ] {
        for (change, to) in [
            (Change::Retry, retry),
            (Change::Hold, hold),
            (Change::Release, release),
            (Change::Drop, drop),
        ] {
            let (_folder, store) = open();
            if from == State::Leased {
                store.take(message("a")).await.unwrap();
                assert_eq!(lease_ids(&store, at(1)).await, ["a"]);
            } else {
                let mut message = message_in("a", from);
                if from == State::Failed {
                    message.recipients[1].state = RecipientState::Failed;
                    message.recipients[0].state = RecipientState::Delivered;
                }
                store.take(message).await.unwrap();
            }
            let changed = store.change("a".to_owned(), change, at(5)).await.unwrap();
            let what = format!("{change:?} of {}", from.as_str());
            match to {
                "-" => {
                    assert_eq!(changed, Changed::NotNow(from), "{what}");
                    assert_eq!(state(&store, "a").await, from, "{what}");
                }
                DONE => {
                    assert_eq!(changed, Changed::Done, "{what}");
                    assert_eq!(store.show("a".to_owned()).await.unwrap(), None, "{what}");
                }
                to => {
                    assert_eq!(changed, Changed::Done, "{what}");
                    assert_eq!(stands(&store, "a").await, to, "{what}");
                    let due = (to == "ready").then_some(at(5));
                    assert_eq!(summary(&store, "a").await.due, due, "{what}");
                }
            }
            if (from, change) == (State::Failed, Change::Retry) {
                let leased = store.lease_due(due_by(at(5), 1)).await.unwrap().remove(0);
                assert_eq!(leased.recipients.len(), 1, "whoever has it does not get it again");
            }
        }
    }
}

#[tokio::test]
async fn a_message_that_is_dropped_leaves_nothing() {
    let (_folder, store) = open();
    let change = |id: &str, change| store.change(id.to_owned(), change, at(1));
    store.take(large("a")).await.unwrap();
    let path = store.bodies.path("a");
    assert!(path.exists());
    assert_eq!(change("a", Change::Drop).await.unwrap(), Changed::Done);
    assert!(!path.exists());
    assert_eq!(change("a", Change::Drop).await.unwrap(), Changed::NotFound);
    store.take(message("b")).await.unwrap();
    change("b", Change::Drop).await.unwrap();
    let left = store
        .read(|connection| {
            Ok(connection.query_row(
                "SELECT (SELECT count(*) FROM recipients) + (SELECT count(*) FROM bodies)",
                [],
                |row| row.get::<_, i64>(0),
            )?)
        })
        .await;
    assert_eq!(left.unwrap(), 0);
    let mut failed = message_in("c", State::Failed);
    failed.recipients.iter_mut().for_each(|to| to.state = RecipientState::Delivered);
    store.take(failed).await.unwrap();
    assert_eq!(change("c", Change::Retry).await.unwrap(), Changed::NotNow(State::Failed));
}

#[tokio::test]
async fn a_hold_reaches_what_it_says_and_a_release_exactly_that() {
    let (_folder, store) = open();
    let from = |id, path: &str, state| NewMessage {
        reverse_path: match path {
            "" => ReversePath::Null,
            path => ReversePath::Address(address(path)),
        },
        ..message_in(id, state)
    };
    take_all(
        &store,
        [
            from("a", "Scan@Example.org", State::Ready),
            from("b", "other@example.org", State::MaybeSent),
            from("null", "", State::Ready),
            from("forced", "scan@example.org", State::Ready),
            from("failed", "scan@example.org", State::Failed),
            NewMessage {
                mailbox: "SCAN@example.org".to_owned(),
                ..from("as-mailbox", "", State::Ready)
            },
        ],
    )
    .await;
    store.change("forced".to_owned(), Change::Retry, at(1)).await.unwrap();
    let hold = |hold| store.hold_all(stop("default", hold));
    for reaches_none in [Hold::Operator, Hold::Message, Hold::MailboxGone] {
        assert_eq!(hold(reaches_none).await.unwrap(), 0);
    }
    let scan = || Hold::Sender("scan@example.org".to_owned());
    assert_eq!(hold(scan()).await.unwrap(), 1);
    assert_eq!(stands(&store, "as-mailbox").await, "ready", "that is at another mailbox");
    assert_eq!(store.hold_all(stop("scan@example.org", scan())).await.unwrap(), 1);
    assert_eq!(stands(&store, "as-mailbox").await, "held/sender:scan@example.org");
    assert_eq!(hold(Hold::Sender(String::new())).await.unwrap(), 1);
    assert_eq!(hold(Hold::Credential).await.unwrap(), 1);
    assert_eq!(stands(&store, "a").await, "held/sender:scan@example.org");
    assert_eq!(stands(&store, "b").await, "held/credential");
    assert_eq!(stands(&store, "null").await, "held/sender:");
    let a = summary(&store, "a").await;
    assert_eq!((a.reason.as_str(), a.rule.as_str(), a.due), ("no", "rule", None));
    assert_eq!(stands(&store, "forced").await, "ready");

    // Once it was tried it is like any other.
    assert_eq!(lease_ids(&store, at(2)).await, ["forced"]);
    let ready = Standing { due: Some(at(9)), ..standing(State::Ready) };
    store.settle(Settlement::new("forced", ready, at(3))).await.unwrap();
    assert_eq!(hold(Hold::Smarthost).await.unwrap(), 1);

    let release = |mailbox: &str, hold| store.release_all(mailbox.to_owned(), hold, at(4));
    assert_eq!(release("other", Hold::Credential).await.unwrap(), 0);
    assert_eq!(release("default", Hold::Credential).await.unwrap(), 1);
    assert_eq!(release("default", Hold::Mailbox).await.unwrap(), 0);
    assert_eq!(stands(&store, "b").await, "ready");
    assert_eq!(lease_ids(&store, at(4)).await, ["b"]);
}

#[tokio::test]
async fn what_another_mailbox_may_send_is_left_alone_if_that_is_wanted() {
    let (_folder, store) = open();
    take_all(&store, [NewMessage { bound: true, ..message("bound") }, message("free")]).await;
    let stop = Stop { bound: true, ..stop("default", Hold::Credential) };
    assert_eq!(store.hold_all(stop).await.unwrap(), 1);
    assert_eq!(stands(&store, "bound").await, "held/credential");
    assert_eq!(stands(&store, "free").await, "ready");
}

#[tokio::test]
async fn what_is_released_from_a_mailbox_that_is_gone_goes_through_any() {
    let (_folder, store) = open();
    take_all(&store, [NewMessage { bound: true, ..message("a") }]).await;
    store.adopt(&["here".to_owned()], at(1)).await.unwrap();
    assert_eq!(stands(&store, "a").await, "held/mailbox-gone");
    store.change("a".to_owned(), Change::Release, at(2)).await.unwrap();
    store.adopt(&["here".to_owned()], at(3)).await.unwrap();
    assert_eq!(stands(&store, "a").await, "ready");
    let any = Due { mailbox: String::new(), ..due_by(at(3), 9) };
    let leased = store.lease_due(any).await.unwrap().remove(0);
    assert_eq!((leased.mailbox.as_str(), leased.bound, leased.forced), ("", false, true));
    let moved = Settlement {
        mailbox: Some("here".to_owned()),
        forced: true,
        ..Settlement::new("a", Standing { due: Some(at(4)), ..standing(State::Ready) }, at(4))
    };
    store.settle(moved).await.unwrap();
    assert_eq!(summary(&store, "a").await.mailbox, "here");
    let here = Due { mailbox: "Here".to_owned(), ..due_by(at(4), 9) };
    assert!(store.lease_due(here).await.unwrap()[0].forced, "it was not tried yet");
}

#[tokio::test]
async fn messages_wait_for_their_mailbox_to_come_back() {
    let (_folder, store) = open();
    let of = |id, mailbox: &str, state| NewMessage {
        mailbox: mailbox.to_owned(),
        ..message_in(id, state)
    };
    take_all(
        &store,
        [
            of("a", "gone", State::Ready),
            of("b", "gone", State::Held),
            of("c", "gone", State::Failed),
            of("d", "here", State::Ready),
            of("e", "Here", State::Ready),
            of("f", "gone", State::Ready),
        ],
    )
    .await;
    store.change("f".to_owned(), Change::Hold, at(0)).await.unwrap();
    store.adopt(&["here".to_owned()], at(1)).await.unwrap();
    assert_eq!(stands(&store, "e").await, "ready", "it is written in another case");
    assert_eq!(stands(&store, "f").await, "held/operator");
    assert_eq!(stands(&store, "a").await, "held/mailbox-gone");
    assert_eq!(stands(&store, "b").await, "held/mailbox-gone");
    assert_eq!(stands(&store, "c").await, "failed");
    assert_eq!(stands(&store, "d").await, "ready");
    assert_eq!(
        summary(&store, "a").await.reason,
        "its mailbox gone is not in the configuration any more"
    );
    store.adopt(&["GONE".to_owned(), "here".to_owned()], at(2)).await.unwrap();
    assert_eq!(stands(&store, "f").await, "held/operator", "only who holds it releases it");
    assert_eq!(stands(&store, "a").await, "ready");
    assert_eq!(summary(&store, "b").await.due, Some(at(2)));
}

#[tokio::test]
async fn only_what_was_kept_long_enough_is_purged() {
    let (_folder, store) = open();
    let many = i64::from(PURGE) + 3;
    for n in 0..many {
        let received = at(-n);
        let done = message_in(&format!("done.{n}"), State::Done);
        store.take(NewMessage { received, ..done }).await.unwrap();
    }
    take_all(&store, [message_in("ready", State::Ready), message_in("held", State::Held)]).await;
    let failed = NewMessage { standing: standing(State::Failed), ..large("failed") };
    store.take(failed).await.unwrap();
    assert_eq!(store.purge(at(0), at(0)).await.unwrap() as i64, many - 1);
    let path = store.bodies.path("failed");
    assert!(path.exists());
    assert_eq!(store.purge(at(0), at(1)).await.unwrap(), 1);
    assert!(!path.exists());
    assert_eq!(listed(&store, Filter::default()).await, ["done.0", "ready", "held"]);
}

#[tokio::test]
async fn lists_are_filtered_and_come_in_pages() {
    let (_folder, store) = open();
    for n in 0..7 {
        let state = if n % 2 == 0 { State::Ready } else { State::Held };
        let device = if n < 4 { "scanner" } else { "copier" }.to_owned();
        let message =
            NewMessage { device, received: at(n), ..message_in(&format!("m.{n}"), state) };
        store.take(message).await.unwrap();
    }
    let page = |after: Option<&str>, most| Filter {
        after: after.map(str::to_owned),
        most,
        ..Filter::default()
    };
    assert_eq!(listed(&store, page(None, 3)).await, ["m.0", "m.1", "m.2"]);
    assert_eq!(listed(&store, page(Some("m.2"), 3)).await, ["m.3", "m.4", "m.5"]);
    assert_eq!(listed(&store, page(Some("m.5"), 0)).await, ["m.6"]);
    assert!(listed(&store, page(Some("unknown"), 3)).await.is_empty());
    let held = Filter { states: vec![State::Held, State::Failed], ..Filter::default() };
    assert_eq!(listed(&store, held).await, ["m.1", "m.3", "m.5"]);
    let mixed = Filter {
        states: vec![State::Ready],
        device: Some("copier".to_owned()),
        before: Some(at(6)),
        ..Filter::default()
    };
    assert_eq!(listed(&store, mixed).await, ["m.4"]);
}

#[tokio::test]
async fn totals_count_what_is_there() {
    let (_folder, store) = open();
    assert_eq!(store.totals().await.unwrap(), Totals::default());
    take_all(
        &store,
        [
            NewMessage { received: at(-9), ..message_in("done", State::Done) },
            NewMessage { received: at(-8), ..message_in("failed", State::Failed) },
            NewMessage { received: at(-7), is_notice: true, ..message("ready") },
            NewMessage { notice: Some(notice("x")), ..message_in("held", State::Held) },
        ],
    )
    .await;
    let size = message("").body.size();
    let totals = store.totals().await.unwrap();
    let one = |state| (state, 1);
    assert_eq!(totals.messages, [State::Ready, State::Held, State::Failed, State::Done].map(one));
    assert_eq!((totals.bytes, totals.oldest, totals.notices), (3 * size, Some(at(-7)), 2));
}

#[tokio::test]
async fn the_oldest_notices_give_way() {
    let (_folder, store) = open();
    let add = |connection: &Connection| {
        (0..1003).try_for_each(|n| rows::add_notice(connection, &notice(&format!("notice {n}"))))
    };
    store.submit(Kind::Note, add).await.unwrap();
    assert_eq!(store.totals().await.unwrap().notices, 1000);
    let waiting = store.notices().await.unwrap();
    let ends = [&waiting[0], &waiting[999]].map(|waiting| waiting.notice.subject.as_str());
    assert_eq!(ends, ["notice 3", "notice 1002"]);
}

#[tokio::test]
async fn notices_are_forgotten_with_what_carries_them_or_not_at_all() {
    let (_folder, store) = open();
    for n in 0..3 {
        let notice = Some(notice(&format!("notice {n}")));
        store.take(NewMessage { notice, ..message(&format!("m.{n}")) }).await.unwrap();
    }
    let waiting = store.notices().await.unwrap();
    let subjects = waiting.iter().map(|waiting| waiting.notice.subject.as_str());
    assert_eq!(subjects.collect::<Vec<_>>(), ["notice 0", "notice 1", "notice 2"]);
    let numbers: Vec<_> = waiting.iter().map(|notice| notice.number).collect();
    let first_two = numbers[..2].to_vec();
    let carrier = |id| Some(NewMessage { is_notice: true, ..message(id) });
    assert!(store.notified(first_two.clone(), carrier("m.0")).await.is_err(), "the id is known");
    assert_eq!(store.notices().await.unwrap().len(), 3);
    store.notified(first_two, carrier("n.1")).await.unwrap();
    assert_eq!(store.notices().await.unwrap(), waiting[2..]);
    assert_eq!(state(&store, "n.1").await, State::Ready);
    store.notified(vec![numbers[2]], None).await.unwrap();
    assert!(store.notices().await.unwrap().is_empty());
}
