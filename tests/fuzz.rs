//! The fuzz targets, over every seed and everything that fuzzing found; `fuzz/README.md` says how to look
//! for more.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

#[path = "fuzz/mod.rs"]
mod targets;

use std::{env, fs, path::Path, time::Duration};

use tokio::time::Instant;

type Target = fn(&[u8]);

/// Runs a target over the files of its folder.
fn over_seeds(name: &str, target: Target) {
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
fn operations() {
    over_seeds("operations", targets::operations);
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

#[test]
fn spool() {
    over_seeds("spool", targets::spool);
}

/// What libFuzzer does, without its knowledge of what an input has reached: for machines that lack it.
#[test]
#[ignore = "takes minutes: UPLIFT_FUZZ_SECONDS=120 cargo test --test fuzz -- --ignored"]
fn mutated_seeds_for_a_while() {
    let seconds = env::var("UPLIFT_FUZZ_SECONDS").map_or(5, |text| text.parse().unwrap());
    let only = env::var("UPLIFT_FUZZ_TARGET").ok();
    let all: [(&str, Target); 8] = [
        ("command", targets::command),
        ("config", targets::config),
        ("data", targets::data),
        ("operations", targets::operations),
        ("relay", targets::relay),
        ("reply", targets::reply),
        ("session", targets::session),
        ("spool", targets::spool),
    ];
    for (name, target) in all.into_iter().filter(|(name, _)| only.iter().all(|only| only == name)) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fuzz").join(name);
        let seeds: Vec<Vec<u8>> = fs::read_dir(folder)
            .unwrap()
            .map(|file| fs::read(file.unwrap().path()).unwrap())
            .collect();
        let (end, mut count) = (Instant::now() + Duration::from_secs(seconds), 0);
        while Instant::now() < end {
            let input = mutated(&seeds);
            if std::panic::catch_unwind(|| target(&input)).is_err() {
                let found = std::env::temp_dir().join(format!("uplift-fuzz-{name}"));
                fs::write(&found, &input).unwrap();
                panic!(
                    "promises of {name} are broken by {}: {:?}",
                    found.display(),
                    input.escape_ascii().to_string()
                );
            }
            count += 1;
        }
        eprintln!("{name}: {count} inputs");
    }
}

/// A seed with some of its octets changed, gone, doubled, or followed by another's.
fn mutated(seeds: &[Vec<u8>]) -> Vec<u8> {
    let seed = || &seeds[fastrand::usize(..seeds.len())];
    let mut input = seed().clone();
    for _ in 0..fastrand::usize(1..8) {
        let place = fastrand::usize(..=input.len());
        let behind = (place + fastrand::usize(..20)).min(input.len());
        match fastrand::u8(..6) {
            0 if place < input.len() => input[place] = fastrand::u8(..),
            1 if place < input.len() => input[place] ^= 1 << fastrand::u8(..8),
            2 => drop(input.drain(place..behind)),
            3 => input.splice(place..place, input[place..behind].to_vec()).for_each(drop),
            4 => input.insert(place, *b"\r\n.\0|-<>@ =\xff".get(fastrand::usize(..12)).unwrap()),
            _ => {
                let other = seed();
                let from = fastrand::usize(..=other.len());
                input.truncate(place);
                input.extend_from_slice(&other[from..]);
            }
        }
    }
    input
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
