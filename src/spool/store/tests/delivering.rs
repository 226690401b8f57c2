//! From lease to settlement.

use std::fs;

use super::*;

#[tokio::test]
async fn the_longest_due_come_first_and_nobody_gets_one_twice() {
    let (_folder, store) = open();
    let due = |id, state, due: Option<i64>| NewMessage {
        standing: Standing { due: due.map(at), ..standing(state) },
        ..message(id)
    };
    take_all(
        &store,
        [
            due("late", State::Ready, Some(30)),
            due("early", State::MaybeSent, Some(10)),
            due("never", State::Ready, None),
            due("held", State::Held, Some(20)),
            due("future", State::Ready, Some(31)),
            due("over", State::Failed, Some(5)),
            due("awaited", State::Awaiting, Some(5)),
        ],
    )
    .await;
    assert!(lease_ids(&store, at(9)).await.is_empty());
    let first = store.lease_due(due_by(at(30), 1)).await.unwrap();
    assert_eq!((first[0].id.as_str(), first[0].state), ("early", State::MaybeSent));
    assert_eq!(lease_ids(&store, at(30)).await, ["held", "late"]);
    assert!(lease_ids(&store, at(30)).await.is_empty());
    assert_eq!(state(&store, "early").await, State::Leased);
}

#[tokio::test]
async fn devices_take_turns_however_much_one_of_them_sends() {
    let (_folder, store) = open();
    let of = |device: &str, n: i64| NewMessage {
        device: device.to_owned(),
        bound: n % 2 == 1,
        standing: Standing { due: Some(at(n)), ..standing(State::Ready) },
        ..message(&format!("{device}.{n}"))
    };
    let many = (0..100).map(|n| of("many", n)).chain([0, 1].map(|n| of("few", n)));
    take_all(&store, many.chain([of("one", 50), of("tomorrow", 86_400)])).await;
    let lease = async |most| -> Vec<String> {
        let leased = store.lease_due(due_by(at(60), most)).await.unwrap();
        leased.into_iter().map(|leased| leased.id).collect()
    };
    assert_eq!(lease(1).await, ["few.0"]);
    assert_eq!(lease(1).await, ["many.0"]);
    assert_eq!(lease(1).await, ["one.50"]);
    assert_eq!(lease(1).await, ["few.1"]);
    assert_eq!(lease(3).await, ["many.1", "many.2", "many.3"]);
    let unbound = Due { unbound: true, ..due_by(at(60), 2) };
    let leased = store.lease_due(unbound).await.unwrap();
    assert_eq!(leased.iter().map(|leased| &*leased.id).collect::<Vec<_>>(), ["many.4", "many.6"]);
    assert!(
        store
            .lease_due(Due { mailbox: "other".into(), ..due_by(at(60), 9) })
            .await
            .unwrap()
            .is_empty()
    );
}

/// What a turn costs is measured in steps of SQLite's machine: a clock would measure this computer.
#[tokio::test]
async fn a_turn_costs_the_same_whatever_waits_behind_it() {
    let (_folder, store) = open();
    let fill = |rows: i64| {
        store.submit(Kind::Note, move |connection| {
            let mut insert = connection.prepare_cached(
                "INSERT INTO messages (id, state, due, received, size, in_file, attempts,
                    maybe_sent, is_notice, eight_bit, smtputf8, mailbox, device, listener,
                    reverse_path, rule, reason, head, transcript)
                VALUES (?1, 'ready', 0, 0, 0, 0, 0, 0, 0, 0, 0, 'default', ?2, '', '', '', '', '', '')",
            )?;
            for n in 0..rows {
                let device = if n % 100 == 0 { format!("small.{}", n / 100 % 50) } else { "large".to_owned() };
                insert.execute([format!("{rows}.{n}"), device])?;
            }
            Ok(())
        })
    };
    let steps = || {
        store.read(|connection| {
            let mut statement = connection.prepare(lease::ROUND)?;
            let found = statement
                .query_map(rusqlite::params!["default", "", None::<&str>, 1, false, 6], |row| {
                    row.get::<_, i64>(0)
                })?
                .count();
            assert_eq!(found, 6);
            Ok(statement.get_status(rusqlite::StatementStatus::VmStep))
        })
    };
    fill(5_000).await.unwrap();
    let few = steps().await.unwrap();
    fill(10_000).await.unwrap();
    let many = steps().await.unwrap();
    assert!(many < few + few / 10 && many < 2_000, "{few} steps, then {many}");
}

#[tokio::test]
async fn a_settlement_is_written_with_its_recipients_and_notice() {
    let (_folder, store) = open();
    take_all(&store, [large("a"), message("b")]).await;
    assert_eq!(lease_ids(&store, at(1)).await, ["a", "b"]);
    let again = Settlement {
        recipients: vec![(1, RecipientState::Delivered, "250 ok".to_owned())],
        notice: Some(notice("one of two")),
        ..Settlement::new(
            "a",
            Standing {
                due: Some(at(60)),
                reason: "451 4.7.0 later".to_owned(),
                rule: "busy".to_owned(),
                attempts: 1,
                maybe_sent: true,
                transcript: "talk".to_owned(),
                ..standing(State::MaybeSent)
            },
            at(2),
        )
    };
    assert!(store.settle(again.clone()).await.unwrap());
    assert!(!store.settle(again).await.unwrap(), "it is not leased any more");
    assert_eq!(store.notices().await.unwrap().len(), 1, "the second notice is not written");
    let detail = store.show("a".to_owned()).await.unwrap().unwrap();
    assert_eq!((detail.summary.state, detail.summary.maybe_sent), (State::MaybeSent, 1));
    assert_eq!((detail.summary.due, detail.settled), (Some(at(60)), Some(at(2))));
    assert_eq!(
        (detail.summary.reason.as_str(), detail.transcript.as_str()),
        ("451 4.7.0 later", "talk")
    );
    assert_eq!(detail.recipients[0].state, RecipientState::Pending);
    assert_eq!(detail.recipients[1].reply, "250 ok");

    let leased = store.lease_due(due_by(at(60), 9)).await.unwrap().remove(0);
    assert_eq!(leased.recipients.iter().map(|(place, _)| *place).collect::<Vec<_>>(), [0]);
    let Body::File { path, .. } = leased.body else { panic!("a large one has a file") };
    for id in ["a", "b"] {
        assert!(store.settle(Settlement::new(id, standing(State::Done), at(61))).await.unwrap());
        assert_eq!(store.body(id.to_owned()).await.unwrap(), None);
    }
    assert!(!path.exists(), "what is delivered leaves no mail data");
    assert_eq!(store.totals().await.unwrap().messages, [(State::Done, 2)]);
    assert_eq!(store.totals().await.unwrap().bytes, 0);
}

#[tokio::test]
async fn what_is_delivered_when_it_is_taken_keeps_no_mail_data() {
    let (_folder, store) = open();
    let path = store.incoming().join("b");
    fs::write(&path, "x").unwrap();
    let body = Body::File { path: path.clone(), size: 1 };
    let done = |message| NewMessage { standing: standing(State::Done), ..message };
    take_all(&store, [done(large("a")), done(NewMessage { body, ..message("b") })]).await;
    assert!(!path.exists() && !store.bodies.path("a").exists());
    for id in ["a", "b"] {
        assert_eq!(store.body(id.to_owned()).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_live_session_settles_what_it_awaits() {
    let (_folder, store) = open();
    take_all(&store, [message_in("a", State::Awaiting), message_in("b", State::Ready)]).await;
    assert!(store.settle(Settlement::new("a", standing(State::Done), at(1))).await.unwrap());
    assert!(!store.settle(Settlement::new("b", standing(State::Done), at(1))).await.unwrap());
    assert!(!store.settle(Settlement::new("none", standing(State::Done), at(1))).await.unwrap());
    for state in [State::Leased, State::Awaiting] {
        assert!(store.settle(Settlement::new("b", standing(state), at(1))).await.is_err());
    }
}

#[tokio::test]
async fn a_probe_gets_any_message_of_exactly_this_hold() {
    let (_folder, store) = open();
    let held = |id, hold| NewMessage {
        standing: Standing { hold: Some(hold), ..standing(State::Held) },
        ..message(id)
    };
    let sender = |name: &str| Hold::Sender(name.to_owned());
    take_all(
        &store,
        [
            held("a", sender("x@y.example")),
            held("b", Hold::Mailbox),
            held("c", sender("")),
            held("d", sender("x@y.example")),
        ],
    )
    .await;
    let here = |hold| ("default".to_owned(), hold);
    let holds = store.holds().await.unwrap();
    assert_eq!(holds, [Hold::Mailbox, sender(""), sender("x@y.example")].map(here));
    let leased = async |hold| {
        let leased = store.lease_held("Default".to_owned(), hold).await.unwrap();
        leased.map(|leased| leased.id)
    };
    assert!(store.lease_held("other".to_owned(), Hold::Mailbox).await.unwrap().is_none());
    let mut both = [leased(sender("x@y.example")).await, leased(sender("x@y.example")).await];
    both.sort();
    assert_eq!(both, [Some("a".to_owned()), Some("d".to_owned())]);
    assert_eq!(leased(sender("x@y.example")).await, None);
    assert_eq!(leased(Hold::Smarthost).await, None);
    assert_eq!(leased(sender("")).await.as_deref(), Some("c"));
    assert_eq!(store.holds().await.unwrap(), [here(Hold::Mailbox)]);
}

#[tokio::test]
async fn what_was_kept_long_enough_is_leased_to_be_given_up() {
    let (_folder, store) = open();
    let of = |id, state, received| NewMessage { received: at(received), ..message_in(id, state) };
    take_all(
        &store,
        [
            of("old", State::Ready, 10),
            of("old-maybe", State::MaybeSent, 10),
            of("old-held", State::Held, 4),
            of("new-held", State::Held, 10),
            of("new", State::Ready, 20),
            of("forced", State::Ready, 10),
            of("failed", State::Failed, 1),
        ],
    )
    .await;
    store.change("forced".to_owned(), Change::Retry, at(30)).await.unwrap();
    let ids = |leased: Vec<Leased>| leased.into_iter().map(|leased| leased.id).collect::<Vec<_>>();
    assert_eq!(ids(store.lease_overdue(at(20), at(5), 2).await.unwrap()), ["old", "old-maybe"]);
    assert_eq!(ids(store.lease_overdue(at(20), at(5), 9).await.unwrap()), ["old-held"]);
    assert!(store.lease_overdue(at(20), at(5), 9).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_restart_takes_what_was_being_delivered_as_maybe_sent() {
    let (folder, store) = open();
    take_all(&store, [message("leased"), message_in("awaited", State::Awaiting), message("later")])
        .await;
    store.change("later".to_owned(), Change::Retry, at(90)).await.unwrap();
    assert_eq!(lease_ids(&store, at(1)).await, ["leased"]);
    drop(store);
    let store = open_at(&folder.path().join("spool"));
    for id in ["leased", "awaited"] {
        let summary = summary(&store, id).await;
        assert_eq!((summary.state, summary.maybe_sent), (State::MaybeSent, 1), "{id}");
    }
    assert_eq!(state(&store, "later").await, State::Ready);
    assert_eq!(lease_ids(&store, at(0)).await, ["leased", "awaited"]);
    drop(store);
    // A command without a relay finds the same.
    let store = Store::visit(&folder.path().join("spool")).unwrap();
    assert_eq!(summary(&store, "leased").await.maybe_sent, 2);
}

#[tokio::test]
async fn a_message_whose_data_are_gone_is_set_aside_and_hurts_no_other() {
    let (folder, store) = open();
    take_all(&store, ["a", "b", "c", "d"].map(large)).await;
    take_all(&store, [message("e"), message("f"), message("g"), message("h")]).await;
    let directory = folder.path().join("spool");
    fs::remove_file(store.bodies.path("a")).unwrap();
    fs::write(store.bodies.path("b"), "cut off").unwrap();
    tamper(
        &store,
        "UPDATE recipients SET path = 'no address'
        WHERE message = (SELECT seq FROM messages WHERE id = 'e')",
    )
    .await;
    tamper(&store, "UPDATE messages SET received = 9223372036854775807 WHERE id = 'f'").await;
    tamper(&store, "DELETE FROM bodies WHERE message = (SELECT seq FROM messages WHERE id = 'g')")
        .await;
    assert_eq!(lease_ids(&store, at(7)).await, ["c", "d", "h"]);
    let detail = store.show("a".to_owned()).await.unwrap().unwrap();
    let missing = store.bodies.path("a");
    assert_eq!(
        detail.summary.reason,
        format!("its mail data are gone: {} is missing", missing.display())
    );
    assert_eq!((detail.summary.state, detail.settled), (State::Failed, Some(at(7))));
    assert_eq!(detail.recipients[0].state, RecipientState::Failed);
    assert!(summary(&store, "b").await.reason.contains("has 7 octets and not 400000"));
    assert_eq!(summary(&store, "g").await.reason, "its mail data are gone");
    let notices = store.notices().await.unwrap();
    assert_eq!(notices.len(), 5, "somebody is told of each");
    let NewNotice { subject, text, time } = &notices[0].notice;
    assert_eq!((subject.as_str(), *time), ("Lost: mail of scanner", at(7)));
    for said in ["queue retry a", "scan@example.org", "is missing", "id        a"] {
        assert!(text.contains(said), "{text}");
    }
    tamper(&store, "DELETE FROM messages WHERE id = 'f'").await;

    fs::remove_file(store.bodies.path("c")).unwrap();
    let found = store.bodies.path("a");
    drop(store);
    let store = open_at(&directory);
    let summary = summary(&store, "c").await;
    assert_eq!(summary.state, State::Failed);
    assert!(summary.reason.ends_with("is missing"), "{}", summary.reason);
    assert_eq!(store.notices().await.unwrap().len(), 6, "a start tells it too, once");
    // Whoever finds the file puts it back.
    fs::create_dir_all(found.parent().unwrap()).unwrap();
    fs::write(found, octets(large("").body)).unwrap();
    assert_eq!(store.change("a".to_owned(), Change::Retry, at(8)).await.unwrap(), Changed::Done);
    assert!(lease_ids(&store, at(8)).await.contains(&"a".to_owned()));
}

#[tokio::test]
async fn a_message_that_cannot_be_read_is_held_and_hurts_no_other() {
    let (folder, store) = open();
    let inline = NewMessage {
        body: Body::Chunks(vec![Bytes::from(vec![b'z'; 100_000])]),
        ..message("inline")
    };
    take_all(&store, [large("filed"), inline, message("good")]).await;
    let file = store.bodies.path("filed");
    drop(store);
    // Such a link is there and leads nowhere, whoever looks; such a page names a next one that is not there.
    fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink(&file, &file).unwrap();
    let database = folder.path().join("spool/queue.db");
    let mut data = fs::read(&database).unwrap();
    let pages = data.chunks_mut(4096);
    let page = pages.into_iter().find(|page| page[4..].iter().all(|octet| *octet == b'z'));
    page.unwrap()[..4].fill(0xFF);
    fs::write(&database, data).unwrap();

    let store = open_at(&folder.path().join("spool"));
    // One lease finds the damage, the next one knows of it.
    assert!(store.lease_due(due_by(at(7), 9)).await.is_err());
    assert_eq!(lease_ids(&store, at(7)).await, ["good"]);
    assert!(store.room(0).is_ok(), "the store works");
    for id in ["filed", "inline"] {
        assert_eq!(stands(&store, id).await, "held/message");
        let summary = summary(&store, id).await;
        assert_eq!(summary.due, Some(at(3607)));
        assert!(summary.reason.contains("cannot be read"), "{}", summary.reason);
        let detail = store.show(id.to_owned()).await.unwrap().unwrap();
        assert_eq!(detail.recipients[0].state, RecipientState::Pending);
    }
    assert_eq!(store.notices().await.unwrap().len(), 2);
    assert!(store.lease_due(due_by(at(3607), 9)).await.is_err());
    assert!(lease_ids(&store, at(3607)).await.is_empty());
    assert_eq!(store.notices().await.unwrap().len(), 2, "nobody is told again");
    fs::remove_file(&file).unwrap();
    fs::write(&file, octets(large("").body)).unwrap();
    assert!(store.lease_due(due_by(at(7207), 9)).await.is_err());
    assert_eq!(lease_ids(&store, at(7207)).await, ["filed"]);
    // What is to be given up is given up.
    assert!(store.lease_overdue(at(0), at(1), 9).await.is_err());
    assert!(store.lease_overdue(at(0), at(1), 9).await.unwrap().is_empty());
    assert_eq!(state(&store, "inline").await, State::Failed);
}

#[tokio::test]
async fn who_was_refused_earlier_keeps_a_message_from_being_done() {
    let (_folder, store) = open();
    let two = NewMessage {
        recipients: vec![recipient("a@x.example"), recipient("b@x.example")],
        ..message_in("two", State::Ready)
    };
    store.take(two).await.unwrap();
    for (place, state) in [(0, RecipientState::Failed), (1, RecipientState::Delivered)] {
        let leased = store.lease_due(due_by(at(100), 1)).await.unwrap();
        assert_eq!(leased.len(), 1);
        let ends = if place == 1 { State::Done } else { State::Ready };
        let standing = Standing { due: Some(at(100)), ..standing(ends) };
        let settled = Settlement {
            recipients: vec![(place, state, String::new())],
            ..Settlement::new("two", standing, at(100))
        };
        assert!(store.settle(settled).await.unwrap());
    }
    let shown = store.show("two".to_owned()).await.unwrap().unwrap();
    assert_eq!(shown.summary.state, State::Failed);
    assert!(store.body("two".to_owned()).await.unwrap().is_some(), "it can be exported");
}
