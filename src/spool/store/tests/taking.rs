//! What is taken over comes back as it was; what cannot be is refused and leaves nothing.

use std::{fs, os::unix::fs::PermissionsExt as _};

use super::*;

fn everything(id: &str) -> NewMessage {
    NewMessage {
        eight_bit: true,
        smtputf8: true,
        reverse_path: ReversePath::Null,
        is_notice: true,
        received: "2024-02-29T23:59:59.123Z".parse().unwrap(),
        recipients: vec![
            Recipient {
                path: ForwardPath::Postmaster,
                state: RecipientState::Delivered,
                reply: "250 2.1.5 ok".to_owned(),
            },
            recipient("müller@bücher.example"),
            Recipient {
                state: RecipientState::Failed,
                reply: "550 5.1.1 no".to_owned(),
                ..recipient("\"odd > name\"@b.example")
            },
        ],
        standing: Standing {
            state: State::Held,
            due: Some(at(60)),
            hold: Some(Hold::Sender("scan@example.org".to_owned())),
            reason: "550 5.7.60 SendAsDenied; 'quoted'".to_owned(),
            rule: "send-as-denied".to_owned(),
            attempts: 3,
            maybe_sent: true,
            transcript: "-> MAIL\n<- 250\n".to_owned(),
        },
        notice: Some(notice("A mailbox may not send")),
        ..message(id)
    }
}

#[tokio::test]
async fn every_field_comes_back_after_a_restart() {
    let (folder, store) = open();
    store.take(everything("k3v9abcd.1")).await.unwrap();
    drop(store);
    let store = open_at(&folder.path().join("spool"));
    let sent = everything("k3v9abcd.1");
    let detail = store.show("k3v9abcd.1".to_owned()).await.unwrap().unwrap();
    let expected = Detail {
        summary: Summary {
            id: sent.id.clone(),
            state: State::Held,
            device: sent.device.clone(),
            mailbox: sent.mailbox.clone(),
            from: String::new(),
            to: "postmaster".to_owned(),
            recipients: 3,
            size: sent.body.size(),
            received: sent.received,
            due: Some(at(60)),
            hold: sent.standing.hold.clone(),
            reason: sent.standing.reason.clone(),
            rule: sent.standing.rule.clone(),
            attempts: 3,
            maybe_sent: 1,
        },
        listener: sent.listener.clone(),
        head: sent.head.clone(),
        recipients: sent.recipients.clone(),
        transcript: sent.standing.transcript.clone(),
        settled: None,
    };
    assert_eq!(detail, expected);
    assert_eq!(store.list(Filter::default()).await.unwrap(), [expected.summary]);
    assert_eq!(store.notices().await.unwrap()[0].notice, notice("A mailbox may not send"));

    let leased = store.lease_due(due_by(at(60), 1)).await.unwrap().remove(0);
    assert_eq!(leased.id, sent.id);
    assert_eq!((leased.mailbox, leased.device), (sent.mailbox, sent.device));
    assert_eq!((leased.reverse_path, leased.received), (sent.reverse_path, sent.received));
    assert_eq!((leased.eight_bit, leased.smtputf8, leased.is_notice), (true, true, true));
    assert_eq!((leased.head, leased.reason), (sent.head, sent.standing.reason));
    assert_eq!((leased.state, leased.hold), (State::Held, sent.standing.hold));
    assert_eq!((leased.attempts, leased.maybe_sent), (3, 1));
    assert_eq!(leased.recipients, [(1, sent.recipients[1].path.clone())], "only who is pending");
    assert_eq!(octets(leased.body), octets(sent.body));
}

#[tokio::test]
async fn mail_data_come_back_octet_for_octet_from_row_and_file() {
    let (folder, store) = open();
    let all = Bytes::from_iter(0..=255_u8);
    let whole = |size: u64| Body::Chunks(vec![Bytes::from(vec![b'x'; size as usize])]);
    for (id, body, in_file) in [
        ("empty", Body::Chunks(Vec::new()), false),
        ("small", Body::Chunks(vec![all.clone(), Bytes::new(), all]), false),
        ("edge", whole(body::INLINE), false),
        ("over", whole(body::INLINE + 1), true),
        ("large", large("large").body, true),
    ] {
        store.take(NewMessage { body: body.clone(), ..message(id) }).await.unwrap();
        let kept = store.body(id.to_owned()).await.unwrap().unwrap();
        assert_eq!(matches!(kept, Body::File { .. }), in_file, "{id}");
        assert!(octets(kept) == octets(body), "{id}");
    }
    let path = store.incoming().join("anything");
    fs::write(&path, b"from a file").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let body = Body::File { path: path.clone(), size: 11 };
    store.take(NewMessage { body, ..message("filed") }).await.unwrap();
    assert!(!path.exists());
    let kept = store.body("filed".to_owned()).await.unwrap().unwrap();
    assert_eq!(octets(kept), b"from a file");
    assert_eq!(store.body("none".to_owned()).await.unwrap(), None);

    // Whatever the umask is, nobody else can look into it.
    let mut folders = vec![folder.path().join("spool")];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
                continue;
            }
            files += 1;
            let mode = entry.metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{}", entry.path().display());
        }
    }
    assert_eq!(files, 4 + 3, "database, log, shared memory, lock and three bodies");
}

#[tokio::test]
async fn what_is_refused_leaves_nothing() {
    let (folder, store) = open();
    store.take(large("one.1")).await.unwrap();
    let outside = folder.path().join("outside");
    fs::write(&outside, "x").unwrap();
    let short = store.incoming().join("short");
    let known = store.incoming().join("known");
    for file in [&short, &known] {
        fs::write(file, "x").unwrap();
    }
    let file = |path, size| Body::File { path, size };
    for (why, bad) in [
        ("the id is known", large("one.1")),
        ("the id is known", message("one.1")),
        ("the id leads elsewhere", message("../one")),
        ("the file lies elsewhere", NewMessage { body: file(outside.clone(), 1), ..message("a") }),
        ("the file is too short", NewMessage { body: file(short.clone(), 2), ..message("b") }),
        ("the id is known", NewMessage { body: file(known, 1), ..message("one.1") }),
        ("nobody has leased it", message_in("c", State::Leased)),
    ] {
        let error = store.take(bad).await.unwrap_err();
        assert!(matches!(error, QueueError::Broken(_)), "{why}: {error}");
    }
    assert_eq!(store.list(Filter::default()).await.unwrap().len(), 1);
    assert_eq!(fs::read_dir(store.incoming()).unwrap().count(), 0, "no file is left");
    assert!(outside.exists(), "what lies elsewhere is not the store's");
    let kept = store.body("one.1".to_owned()).await.unwrap().unwrap();
    assert!(octets(kept) == octets(large("").body), "the first one's data are untouched");
    assert!(store.room(1).is_ok(), "none of this is the store's fault");
}

#[tokio::test]
async fn the_limit_is_kept_but_notices_get_through() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), 500_000, Metrics::new("test")).unwrap();
    store.take(large("a")).await.unwrap();
    assert!(store.room(100_000).is_ok() && store.room(100_001).is_err());
    assert!(matches!(store.take(large("b")).await, Err(QueueError::Full(_))));
    let path = store.incoming().join("b");
    for waits in [true, false] {
        fs::write(&path, vec![b'x'; 300_000]).unwrap();
        let body = Body::File { path: path.clone(), size: 300_000 };
        let taking = store.take(NewMessage { body, ..message("b") });
        if waits {
            assert!(matches!(taking.await, Err(QueueError::Full(_))));
        } else {
            drop(taking);
        }
        assert!(!path.exists(), "a message that is not taken leaves no file");
    }
    store.take(NewMessage { is_notice: true, ..large("c") }).await.unwrap();
    assert!(store.room(0).is_err());
    drop(store);
    let store = Store::open(folder.path(), 500_000, Metrics::new("test")).unwrap();
    assert!(store.room(0).is_err(), "it is known from the start");
    for id in ["a", "c"] {
        assert_eq!(store.change(id.to_owned(), Change::Drop, at(1)).await.unwrap(), Changed::Done);
    }
    assert_eq!(store.totals().await.unwrap().bytes, 0);
    assert!(store.room(500_000).is_ok());
    assert!(store.disk_free().unwrap() > 0);
}

#[tokio::test]
async fn a_full_disk_is_told_from_a_broken_one_and_heals() {
    let (_folder, store) = open();
    store.take(message("a")).await.unwrap();
    tamper(&store, "PRAGMA max_page_count = 1").await;
    let body = Body::Chunks(vec![Bytes::from(vec![b'x'; 200_000])]);
    let error = store.take(NewMessage { body: body.clone(), ..message("b") }).await.unwrap_err();
    assert_eq!(error.to_string(), "the spool is full: database or disk is full");
    assert!(matches!(store.room(0), Err(QueueError::Full(_))));
    tamper(&store, "PRAGMA max_page_count = 1000000").await;
    store.take(NewMessage { body, ..message("b") }).await.unwrap();
    assert!(store.room(0).is_ok());

    tamper(&store, "PRAGMA query_only = ON").await;
    let error = store.take(large("c")).await.unwrap_err();
    assert!(matches!(error, QueueError::Broken(_)), "{error}");
    assert!(!error.to_string().contains("INSERT") && store.room(0).is_err());
    assert!(!store.bodies.path("c").exists(), "its file is removed again");
    // Not in a transaction that writes: it could not begin.
    let heal = |connection: &Connection| Ok(connection.execute_batch("PRAGMA query_only = OFF")?);
    store.read(heal).await.unwrap();
    store.take(large("c")).await.unwrap();
    assert!(store.room(0).is_ok());
}
