//! What a start finds, and what it refuses.

use std::fs;

use rusqlite::Connection;

use super::*;

fn refused(directory: &Path) -> OpenError {
    Store::open(directory, u64::MAX, Metrics::new("test")).err().unwrap()
}

/// A database at the place of the spool's.
fn made(directory: &Path, make: impl FnOnce(&mut Connection)) {
    fs::create_dir_all(directory).unwrap();
    let mut connection = Connection::open(directory.join("queue.db")).unwrap();
    make(&mut connection);
}

#[tokio::test]
async fn a_second_relay_is_refused_with_the_first_ones_number() {
    let (folder, store) = open();
    let directory = folder.path().join("spool");
    let error = refused(&directory);
    let text = error.to_string();
    assert!(error.is_temporary());
    assert!(
        text.starts_with(&format!("another relay (pid {}) uses", std::process::id())),
        "{text}"
    );
    drop(store);
    let visitor = Store::visit(&directory).unwrap();
    let store = open_at(&directory);
    assert!(store.notices().await.unwrap().is_empty(), "a command keeps no lock");
    drop(visitor);
}

#[test]
fn a_command_needs_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let error = Store::visit(&folder.path().join("none")).err().unwrap();
    assert!(error.to_string().starts_with("there is no spool at"), "{error}");
    assert!(!error.is_temporary() && !folder.path().join("none").exists());
    Store::visit(folder.path()).unwrap();
}

#[test]
fn what_is_not_ours_is_refused_and_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    made(&path("foreign"), |connection| {
        connection
            .execute_batch("CREATE TABLE photos (name TEXT); PRAGMA user_version = 1")
            .unwrap();
    });
    made(&path("marked"), |connection| {
        connection.pragma_update(None, "application_id", 0x1234).unwrap();
    });
    made(&path("newer"), |connection| {
        schema::make_version(connection, 3).unwrap();
        connection.pragma_update(None, "user_version", 7).unwrap();
    });
    fs::create_dir_all(path("text")).unwrap();
    fs::write(path("text/queue.db"), "this is a letter and no database\n".repeat(200)).unwrap();
    for (name, said) in [
        ("foreign", "is not a spool of smtp-uplift"),
        ("marked", "is not a spool of smtp-uplift"),
        ("newer", "has version 7 and this program knows versions up to 3"),
        ("text", ".recover"),
    ] {
        let before = fs::read(path(name).join("queue.db")).unwrap();
        for error in [refused(&path(name)), Store::visit(&path(name)).err().unwrap()] {
            let text = error.to_string();
            assert!(
                text.contains(said) && text.contains("queue.db") && !text.contains('\n'),
                "{text}"
            );
            assert!(!error.is_temporary());
        }
        assert!(before == fs::read(path(name).join("queue.db")).unwrap(), "{name}");
    }
}

#[tokio::test]
async fn a_damaged_database_is_refused() {
    let (folder, store) = open();
    for n in 0..100 {
        store.take(message(&format!("m.{n}"))).await.unwrap();
    }
    drop(store);
    let path = folder.path().join("spool/queue.db");
    let mut data = fs::read(&path).unwrap();
    data[4096..].fill(0xA5);
    fs::write(&path, data).unwrap();
    let text = refused(&folder.path().join("spool")).to_string();
    assert!(text.contains("is damaged") && text.contains("move it aside"), "{text}");
}

/// A database of an earlier version, with a message that waits.
fn made_by_version(version: usize, directory: &Path) {
    made(directory, |connection| {
        schema::make_version(connection, version).unwrap();
        connection
            .execute_batch(
                "INSERT INTO messages (id, state, due, received, size, in_file, attempts, maybe_sent,
                    is_notice, eight_bit, smtputf8, mailbox, device, listener, reverse_path, rule,
                    reason, head, transcript)
                VALUES ('old.1', 'ready', 0, 0, 4, 0, 0, 0, 0, 0, 0, 'default', 'scanner', 'legacy',
                    'a@b.example', '', '', '', '');
                INSERT INTO recipients VALUES (1, 0, 'c@d.example', 'pending', '');
                INSERT INTO bodies VALUES (1, x'41420d0a');",
            )
            .unwrap();
    });
}

#[tokio::test]
async fn an_earlier_version_is_migrated_after_a_backup() {
    let folder = tempfile::tempdir().unwrap();
    made_by_version(1, folder.path());
    let store = open_at(folder.path());
    assert_eq!(octets(store.body("old.1".to_owned()).await.unwrap().unwrap()), b"AB\r\n");
    assert!(store.notices().await.unwrap().is_empty());
    store.take(NewMessage { notice: Some(notice("new")), ..message("new.1") }).await.unwrap();
    assert_eq!(lease_ids(&store, at(0)).await, ["old.1", "new.1"]);

    let path = folder.path().join("queue.db.v1.backup");
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let backup = Connection::open(&path).unwrap();
    assert_eq!(schema::version(&backup).unwrap(), 1);
    let id: String = backup.query_row("SELECT id FROM messages", [], |row| row.get(0)).unwrap();
    assert_eq!(id, "old.1");
    drop(store);
    fs::remove_file(&path).unwrap();
    open_at(folder.path());
    assert!(!path.exists(), "only a migration makes one");
}

#[tokio::test]
async fn what_waited_before_there_were_several_mailboxes_is_bound_to_none() {
    let folder = tempfile::tempdir().unwrap();
    made_by_version(2, folder.path());
    let store = open_at(folder.path());
    assert!(folder.path().join("queue.db.v2.backup").exists());
    let leased = store.lease_due(due_by(at(0), 9)).await.unwrap().remove(0);
    assert_eq!((leased.id.as_str(), leased.bound, leased.forced), ("old.1", false, false));
}

#[test]
fn a_command_does_not_migrate_what_a_relay_uses() {
    let folder = tempfile::tempdir().unwrap();
    made(folder.path(), |connection| schema::make_version(connection, 1).unwrap());
    let place = Place::make(folder.path()).unwrap();
    let lock = place.lock().unwrap();
    let error = Store::visit(folder.path()).err().unwrap();
    assert!(error.to_string().contains("restart that relay"), "{error}");
    drop(lock);
    Store::visit(folder.path()).unwrap();
    assert!(folder.path().join("queue.db.v1.backup").exists());
}

#[tokio::test]
async fn files_without_a_message_are_swept() {
    let (folder, store) = open();
    take_all(&store, [large("kept"), large("other")]).await;
    let directory = folder.path().join("spool");
    let kept = store.bodies.path("kept");
    let orphan = kept.with_file_name("orphan.1");
    let misplaced = directory.join("bodies/zz/other");
    let incoming = store.incoming().join("half");
    for file in [&orphan, &misplaced, &incoming] {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "x").unwrap();
    }
    Store::visit(&directory).unwrap();
    assert!(incoming.exists(), "a command sweeps nothing");
    drop(store);
    let store = open_at(&directory);
    assert!(kept.exists() && store.bodies.path("other").exists());
    assert!(!orphan.exists() && !misplaced.exists() && !incoming.exists());
    assert_eq!(lease_ids(&store, at(0)).await, ["kept", "other"]);
}

#[tokio::test]
async fn the_database_is_as_safe_as_it_is_said_to_be() {
    let (_folder, store) = open();
    for (pragma, value) in [
        ("journal_mode", "wal"),
        ("synchronous", "2"),
        ("secure_delete", "1"),
        ("foreign_keys", "1"),
        ("busy_timeout", "5000"),
        ("temp_store", "2"),
    ] {
        let is = store
            .read(move |connection| {
                Ok(connection.pragma_query_value(None, pragma, |row| {
                    let value: rusqlite::types::Value = row.get(0)?;
                    Ok(match value {
                        rusqlite::types::Value::Integer(number) => number.to_string(),
                        rusqlite::types::Value::Text(text) => text,
                        _ => String::new(),
                    })
                })?)
            })
            .await;
        assert_eq!(is.unwrap(), value, "{pragma}");
    }
}

#[tokio::test]
async fn what_runs_often_is_found_by_an_index() {
    let (_folder, store) = open();
    let plan = async |sql: &'static str| {
        store
            .read(move |connection| {
                let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}"))?;
                let rows = statement.query_map([], |row| row.get::<_, String>(3))?;
                Ok(rows.collect::<Result<Vec<_>, _>>()?.join("; "))
            })
            .await
            .unwrap()
    };
    for (sql, index) in [
        (
            "SELECT seq FROM messages WHERE hold = 'x' AND +state = 'held' ORDER BY seq LIMIT 1",
            "USING INDEX messages_hold",
        ),
        (
            "SELECT state, count(*), sum(size), min(received), sum(is_notice) FROM messages
            GROUP BY state",
            "USING COVERING INDEX messages_totals",
        ),
        (
            "SELECT seq FROM messages WHERE state = 'done' AND settled < 1",
            "USING COVERING INDEX messages_settled",
        ),
    ] {
        let plan = plan(sql).await;
        assert!(plan.contains(index) && !plan.contains("TEMP B-TREE"), "{plan}");
    }
    let mut round = lease::ROUND.to_owned();
    for (number, value) in ["'m'", "'d'", "NULL", "1", "0", "9"].iter().enumerate() {
        round = round.replace(&format!("?{}", number + 1), value);
    }
    let plan = plan(round.leak()).await;
    assert!(!plan.contains("SCAN messages") && !plan.contains("TEMP B-TREE"), "{plan}");
    for part in ["(mailbox=? AND device>?)", "(mailbox=? AND device=? AND due<?)"] {
        assert!(plan.contains(&format!("messages_turn {part}")), "{plan}");
    }
}
