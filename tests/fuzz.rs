//! The fuzz targets, over every seed and everything that fuzzing found; `fuzz/README.md` says how to look
//! for more.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

#[path = "fuzz/mod.rs"]
mod targets;

use std::{fs, path::Path, time::Duration};

use tokio::time::Instant;

/// Runs a target over the files of its folder.
fn over_seeds(name: &str, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fuzz").join(name);
    let mut files: Vec<_> =
        fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} has no seeds", folder.display());
    let breaks = |file: &Path| {
        let seed = fs::read(file).unwrap();
        std::panic::catch_unwind(|| target(&seed)).is_err()
    };
    let broken: Vec<_> = files.iter().filter(|file| breaks(file)).collect();
    assert!(broken.is_empty(), "promises of {name} are broken by {broken:?}");
}

#[test]
fn command() {
    over_seeds("command", targets::command);
}

#[test]
fn config() {
    over_seeds("config", targets::config);
}

#[test]
fn data() {
    over_seeds("data", targets::data);
}

#[test]
fn header() {
    over_seeds("header", targets::header);
}

#[test]
fn relay() {
    over_seeds("relay", targets::relay);
}

#[test]
fn reply() {
    over_seeds("reply", targets::reply);
}

#[test]
fn session() {
    over_seeds("session", targets::session);
}

/// A configuration of 256 KiB is read within a second; whatever grows with its square would take hours.
#[test]
fn long_configurations_take_no_longer_than_their_length() {
    let kinds: [(&str, &dyn Fn(usize) -> String); 11] = [
        ("", &|i| format!("k{i} = 1\n")),
        ("", &|i| format!("[s{i}]\n")),
        ("", &|i| format!("a.b{i}.c = 1\n")),
        ("", &|i| format!("[[listener]]\naddress = \"127.0.0.1:{i}\"\n")),
        ("[[listener]]\nallow = [", &|_| "\"x\",".to_owned()),
        ("", &|_| "k".to_owned()),
        ("a = ", &|_| "[".to_owned()),
        ("[limits]\nrecipients = 1", &|_| "_1".to_owned()),
        ("[log]\nlevel = \"info", &|_| ",a::b=info".to_owned()),
        ("a = \"", &|_| "\\n".to_owned()),
        ("", &|_| "\"\n".to_owned()),
    ];
    for (head, piece) in kinds {
        let mut text = head.to_owned();
        let mut count = 0;
        while text.len() < 256 * 1024 {
            text += &piece(count);
            count += 1;
        }
        let began = Instant::now();
        targets::config(text.as_bytes());
        let took = began.elapsed();
        assert!(took < Duration::from_secs(30), "{took:?} for {:?}…", &text[..60]);
    }
}
