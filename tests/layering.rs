//! The floors: which module may name which, and which rooms stay pure.
//!
//! Every path under `src/` that begins with `crate` or climbs with `super` is resolved to the top
//! level module that it leads to, in `use` and in code, in tests too. An edge that the table does not
//! have fails, and so does a way round the table: a name for the crate's root, a glob over it, or a
//! re-export at it.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

#[path = "layering/scan.rs"]
mod scan;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use proptest::prelude::*;

/// From the lowest floor up: a module and what it may use besides itself.
const FLOORS: &[(&str, Uses)] = &[
    ("proto", Uses::Only(&[])),
    ("codec", Uses::Only(&["proto"])),
    ("policy", Uses::Only(&["proto"])),
    ("config", Uses::Only(&["proto", "policy"])),
    ("telemetry", Uses::Only(&["proto"])),
    ("transport", Uses::Only(&["policy", "config", "telemetry"])),
    ("auth", Uses::Only(&["proto", "config"])),
    ("smarthost", Uses::Only(&["proto", "codec", "transport", "config", "telemetry"])),
    ("spool", Uses::Only(&["proto", "config", "telemetry"])),
    ("relay", Uses::AllAbove),
    // It plays the other side, so it shares nothing with the relay's own way to it.
    ("sandbox", Uses::Only(&["proto", "codec", "policy", "config", "transport"])),
    ("service", Uses::AllAbove),
    ("cli", Uses::AllAbove),
];

enum Uses {
    Only(&'static [&'static str]),
    /// All that the table has above this row.
    AllAbove,
}

/// The library's name is another name of `crate`, for whoever writes `extern crate self`.
const LIBRARY: &str = "smtp_uplift";

/// Rooms that take `now` as an argument, open nothing and never log; each is a file or a folder.
const PURE: [&str; 10] = [
    "proto",
    "policy",
    "auth/throttle",
    "smarthost/classify",
    "smarthost/limits",
    "smarthost/breaker",
    "smarthost/oauth/cache",
    "smarthost/oauth/error",
    "smarthost/oauth/fault",
    "spool/schedule",
];

/// What a pure room never names: runs of segments, anywhere in a path.
const IMPURE: &[&str] = &[
    "tokio",
    "tokio_openssl",
    "tokio_rustls",
    "tokio_util",
    "tracing",
    "openssl",
    "rustls",
    "SystemTime",
    "Instant::now",
    "jiff::Timestamp::now",
    "jiff::Zoned::now",
    "TcpListener",
    "TcpStream",
    "UdpSocket",
    "UnixListener",
    "UnixStream",
    "ToSocketAddrs",
    "std::env",
    "std::fs",
    "std::io::stderr",
    "std::io::stdin",
    "std::io::stdout",
    "std::os",
    "std::process",
    "std::thread",
    "println",
    "eprintln",
    "dbg",
];

#[test]
fn every_module_names_only_floors_below_its_own() {
    refuse(sources().iter().flat_map(|(file, text)| bad_edges(file, text)));
}

#[test]
fn pure_rooms_name_no_clock_socket_log_or_runtime() {
    let pure = sources().into_iter().filter(|(file, _)| is_pure(file));
    refuse(pure.flat_map(|(file, text)| impurities(&file, &text)));
}

#[test]
fn every_module_has_a_floor() {
    let modules: BTreeSet<_> = sources().iter().filter_map(|(file, _)| module(file)).collect();
    let without: Vec<_> =
        modules.iter().filter(|module| allowed(module).is_none()).cloned().collect();
    assert!(modules.contains("proto"), "{modules:?} cannot be all of src/");
    assert!(without.is_empty(), "give {without:?} a floor in the table of tests/layering.rs");
}

#[test]
fn the_table_leads_down_only() {
    for (index, (module, _)) in FLOORS.iter().enumerate() {
        for used in allowed(module).unwrap() {
            let below = FLOORS[..index].iter().any(|(lower, _)| *lower == used);
            assert!(below, "{module} may use {used}, which is not below it");
        }
    }
}

#[track_caller]
fn refuse(found: impl Iterator<Item = String>) {
    let found: Vec<_> = found.collect();
    assert!(found.is_empty(), "{} not allowed:\n{}", found.len(), found.join("\n"));
}

/// Every source file as its path from `src/`, with `/`, and its text.
fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let file = path.strip_prefix(&root).unwrap();
                let names: Vec<_> = file.iter().map(|name| name.to_str().unwrap()).collect();
                found.push((names.join("/"), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// The edges of one file that the table does not have.
fn bad_edges(file: &str, text: &str) -> Vec<String> {
    let Some(module) = module(file) else {
        return Vec::new();
    };
    let Some(uses) = allowed(&module) else {
        return vec![format!("src/{file}: {module} has no floor in the table")];
    };
    let home = module_path(file);
    let mut bad = Vec::new();
    for path in scan::paths(text) {
        let (line, rule) = match target(&home, &path) {
            None => continue,
            Some(Target::Module { name, .. }) if name == module || uses.contains(&&*name) => {
                continue;
            }
            Some(Target::Module { line, .. }) if uses.is_empty() => {
                (line, format!("{module} may use nothing of ours"))
            }
            Some(Target::Module { line, .. }) => {
                (line, format!("{module} may use only {}", uses.join(", ")))
            }
            Some(Target::Root { line }) => {
                (line, "a name for the crate's root hides what is used through it".to_owned())
            }
        };
        bad.push(format!("src/{file}:{line}: {}: {rule}", path.text()));
    }
    bad
}

/// Where a path leads.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    /// Into a module of the top level, or to whatever else the root has by that name.
    Module { name: String, line: usize },
    /// To the root itself, or to all of it.
    Root { line: usize },
}

/// Follows a path that begins at the root or climbs; `None` for any other, and for one that stays
/// where it may be.
fn target(home: &[String], path: &scan::Path) -> Option<Target> {
    let head = path.segments.first()?;
    let mut here: Vec<&str> = match head.name.as_str() {
        "crate" | LIBRARY => Vec::new(),
        "self" | "super" => home.iter().chain(&path.inside).map(String::as_str).collect(),
        _ => return None,
    };
    for (index, segment) in path.segments.iter().enumerate() {
        match segment.name.as_str() {
            "crate" | LIBRARY if index == 0 => {}
            "self" => {}
            "super" => {
                here.pop();
            }
            "*" => break,
            name if here.is_empty() => {
                return Some(Target::Module { name: name.to_owned(), line: segment.line });
            }
            name => here.push(name),
        }
    }
    if path.is_visibility {
        return None;
    }
    match here.first() {
        Some(name) => Some(Target::Module { name: (*name).to_owned(), line: head.line }),
        None => Some(Target::Root { line: path.segments.last().unwrap_or(head).line }),
    }
}

/// What a pure file names and should not.
fn impurities(file: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for path in scan::paths(text) {
        let names: Vec<_> = path.segments.iter().map(|segment| segment.name.as_str()).collect();
        for impure in IMPURE {
            let wanted: Vec<_> = impure.split("::").collect();
            if let Some(at) = names.windows(wanted.len()).position(|window| window == wanted) {
                let line = path.segments[at].line;
                found.push(format!(
                    "src/{file}:{line}: {}: a pure room names no {impure}",
                    path.text()
                ));
            }
        }
    }
    found
}

fn is_pure(file: &str) -> bool {
    let room = file.strip_suffix(".rs").unwrap_or(file);
    PURE.iter()
        .any(|pure| room.strip_prefix(pure).is_some_and(|r| r.is_empty() || r.starts_with('/')))
}

/// The top level module of a file; `None` for `lib.rs` and `main.rs`, which may use all.
fn module(file: &str) -> Option<String> {
    module_path(file).into_iter().next()
}

/// `relay/session.rs` is `relay::session`, `relay/mod.rs` is `relay`.
fn module_path(file: &str) -> Vec<String> {
    let mut names: Vec<_> =
        file.strip_suffix(".rs").unwrap_or(file).split('/').map(str::to_owned).collect();
    let is_root = names.len() == 1 && matches!(names[0].as_str(), "lib" | "main");
    if is_root || names.last().is_some_and(|name| name == "mod") {
        names.pop();
    }
    names
}

fn allowed(module: &str) -> Option<Vec<&'static str>> {
    let row = FLOORS.iter().position(|(name, _)| *name == module)?;
    Some(match FLOORS[row].1 {
        Uses::Only(these) => these.to_vec(),
        Uses::AllAbove => FLOORS[..row].iter().map(|(name, _)| *name).collect(),
    })
}

/// A forbidden edge is found at its line, in whatever way it is written.
#[test]
fn each_way_to_write_a_bad_edge_is_found() {
    for (line, file, text) in [
        (1, "proto/path.rs", "use crate::relay::Session;"),
        (1, "proto/path.rs", "use crate::relay;"),
        (1, "proto/path.rs", "use crate::relay as other;"),
        (1, "proto/path.rs", "pub(crate) use crate::relay::*;"),
        (1, "proto/path.rs", "use crate::{relay, proto};"),
        (1, "proto/path.rs", "use crate::{{proto::x, {relay::y}}};"),
        (1, "proto/path.rs", "use crate::{proto::{self, path}, relay::{self, x}};"),
        (3, "proto/path.rs", "use crate::{\n    proto::Reply,\n    relay::x,\n};"),
        (2, "proto/path.rs", "use crate::\n    relay::{\n a,\n b };"),
        (1, "proto/path.rs", "use {std::fmt, crate::{proto::x as y, relay::z}};"),
        (1, "proto/path.rs", "use ::{smtp_uplift::relay};"),
        (1, "proto/path.rs", "use ::smtp_uplift::relay;"),
        (1, "proto/path.rs", "impl ::smtp_uplift::relay::Y for X {}"),
        (1, "proto/path.rs", "fn f() { let x = crate::relay::f::<u8>(1)?; }"),
        (1, "proto/path.rs", "fn f(x: &'static crate::relay::X) {}"),
        (1, "proto/path.rs", "type T = <crate::relay::X as Y>::Z;"),
        (1, "proto/path.rs", "type T = Vec<crate::relay::X>;"),
        (1, "proto/path.rs", "impl Y for crate::relay::X {}"),
        (1, "proto/path.rs", "#[derive(crate::relay::X)] struct S;"),
        (1, "proto/path.rs", "fn f() { crate::relay::say!(\"x\"); }"),
        (1, "proto/path.rs", "macro_rules! m { () => { $crate::relay::f() } }"),
        (1, "proto/path.rs", "pub(in crate::relay) fn f() {}"),
        (1, "proto/path.rs", "use crate /* why */ :: /* not */ relay :: x;"),
        (1, "proto/path.rs", "use crate::r#relay::x;"),
        (1, "proto/path.rs", "use smtp_uplift::relay::x;"),
        (1, "proto/path.rs", "fn f() -> ::smtp_uplift::relay::X {}"),
        (1, "proto/path.rs", "use super::super::relay::x;"),
        (1, "proto/path.rs", "use self::super::super::relay::x;"),
        (1, "proto/path.rs", "use super::{super::relay::x, Reply};"),
        (1, "proto/path.rs", "fn f() { super::super::relay::f() }"),
        (1, "proto/path.rs", "pub(in super::super::relay) fn f() {}"),
        (1, "proto/mod.rs", "use super::relay::x;"),
        (1, "proto.rs", "use super::relay::x;"),
        (1, "proto/a/b.rs", "use super::super::super::relay::x;"),
        (3, "proto/path.rs", "#[cfg(test)]\nmod tests {\n    use super::super::super::relay;\n}"),
        (3, "proto/path.rs", "mod a { mod b {} fn f() {\n} }\nuse super::super::relay;"),
        (2, "proto/path.rs", "const S: &str = \"\n\"; use crate::relay;"),
        (1, "proto/path.rs", "const S: &str = r#\"\\\"#; use crate::relay;"),
        (1, "proto/path.rs", "const S: &[u8] = br\"\\\"; use crate::relay;"),
        (1, "proto/path.rs", "const C: char = '\"'; use crate::relay; const D: char = '\"';"),
        (1, "proto/path.rs", "const C: char = '\\''; use crate::relay; const D: char = '\\'';"),
        (1, "proto/path.rs", "fn f<'a>(x: &'a u8) { crate::relay::f('\\u{2a}') }"),
        (1, "proto/path.rs", "/* /* */ \" */ use crate::relay; // \""),
    ] {
        let found = bad_edges(file, text);
        let start = format!("src/{file}:{line}: ");
        let is_right = |fault: &String| {
            fault.starts_with(&start)
                && fault.contains("relay")
                && fault.ends_with("proto may use nothing of ours")
        };
        assert!(!found.is_empty() && found.iter().all(is_right), "{text}: {found:?}");
    }
}

/// What would let an edge through unseen is itself refused.
#[test]
fn each_way_round_the_table_is_found() {
    for text in [
        "use crate as root;",
        "use crate::{self as root};",
        "use crate::*;",
        "use crate::{proto::*, *};",
        "use super::super as root;",
        "use super::super::*;",
        "use super::{super as root};",
        "extern crate self as root;",
        "macro_rules! m { ($x:ident) => { crate::$x::f() } }",
    ] {
        let found = bad_edges("relay/session.rs", text);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert!(found[0].contains("root hides"), "{text}: {found:?}");
    }
    // A re-export at the root looks like a module without a floor.
    let found = bad_edges("config/raw.rs", "use crate::Session;");
    assert_eq!(
        found,
        ["src/config/raw.rs:1: crate::Session: config may use only proto, policy"],
        "the message is what a developer reads"
    );
    assert_eq!(bad_edges("extra/mod.rs", "").len(), 1);
}

#[test]
fn what_is_no_bad_edge_passes() {
    for (file, text) in [
        ("proto/path.rs", "use crate::proto::Reply;"),
        ("proto/path.rs", "use super::{super::proto::x, Reply, *};"),
        (
            "proto/path.rs",
            "pub(crate) fn f() {} pub(super) fn g() {} pub(in super::super) fn h() {}",
        ),
        ("proto/mod.rs", "pub(super) fn f() {} pub(in crate) struct S; use self::path::x;"),
        (
            "proto/path.rs",
            "mod tests { use super::super::Reply; mod deep { use super::super::*; } }",
        ),
        ("proto/path.rs", "use std::{fmt, str}; use bytes::Bytes; fn f() { relay::x(self.x) }"),
        (
            "proto/path.rs",
            "// use crate::relay;\n/// [`crate::relay`]\n//! crate::relay\nfn f() {}",
        ),
        ("proto/path.rs", "/* use crate::relay; /* crate::relay */ crate::relay */"),
        ("proto/path.rs", "const S: &str = \"crate::relay \\\" crate::relay\";"),
        ("proto/path.rs", "const S: &str = r##\"crate::relay \"# crate::relay\"##;"),
        (
            "proto/path.rs",
            "const S: &[u8] = b\"crate::relay\"; const C: &CStr = c\"crate::relay\";",
        ),
        ("proto/path.rs", "fn f<'crate_>() { let x = other::smtp_uplift::relay::x; }"),
        ("relay/session.rs", "use crate::{auth::x, codec, proto::{self, Reply}, spool::y};"),
        ("smarthost/pool.rs", "use crate::transport::client_tls; use super::super::codec;"),
        ("sandbox/mod.rs", "use super::policy::x;"),
        ("lib.rs", "pub use crate::relay::x; use self::cli::y;"),
        ("main.rs", "use smtp_uplift::cli; fn main() { smtp_uplift::relay::f() }"),
    ] {
        assert_eq!(bad_edges(file, text), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn each_impurity_is_found() {
    for (line, text) in [
        (1, "use tokio::time;"),
        (1, "fn f() { tracing::info!(\"x\") }"),
        (1, "use {bytes::Bytes, tracing::{debug, warn}};"),
        (1, "use std::time::SystemTime;"),
        (2, "use std::{fmt,\n    time::{Duration, SystemTime}};"),
        (1, "use std::time; fn f() { time::SystemTime::now() }"),
        (1, "fn f() { Instant::now() }"),
        (1, "fn f() { std::time::Instant::now() }"),
        (1, "use std::net::{IpAddr, TcpStream};"),
        (1, "use std::fs;"),
        (1, "fn f() { println!(\"x\") }"),
        (1, "#[cfg(test)] mod tests { use tokio::time; }"),
    ] {
        let found = impurities("policy/access.rs", text);
        let start = format!("src/policy/access.rs:{line}: ");
        let is_right = |fault: &String| fault.starts_with(&start);
        assert!(!found.is_empty() && found.iter().all(is_right), "{text}: {found:?}");
    }
    for text in [
        "use std::{fmt, net::{IpAddr, Ipv4Addr}, time::{Duration, Instant}};",
        "fn f(now: Instant) -> Instant { now + Duration::from_secs(1) } // tokio, tracing",
        "fn f() { Session::now(\"tracing\") }",
    ] {
        assert_eq!(impurities("policy/access.rs", text), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn a_pure_room_is_a_file_or_a_folder() {
    for (file, pure) in [
        ("proto/mod.rs", true),
        ("proto/a/b.rs", true),
        ("policy.rs", true),
        ("smarthost/limits.rs", true),
        ("smarthost/limits/minute.rs", true),
        ("smarthost/limits_log.rs", false),
        ("smarthost/pool.rs", false),
        ("spool/schedule.rs", true),
        ("protocol/mod.rs", false),
    ] {
        assert_eq!(is_pure(file), pure, "{file}");
    }
}

proptest! {
    /// Whatever stands around it, a forbidden edge outside of comments and strings is found once.
    #[test]
    fn an_edge_is_found_among_anything(
        before in pieces(),
        after in pieces(),
    ) {
        let text = format!("{before}\ncrate::relay::x;\n{after}");
        let found = bad_edges("proto/path.rs", &text);
        prop_assert_eq!(found.len(), 1, "{}", text);
        let line = before.matches('\n').count() + 2;
        let start = format!("src/proto/path.rs:{line}: ");
        prop_assert!(found[0].starts_with(&start), "{:?}", found);
    }

    /// Text that is no Rust at all ends the scan like any other.
    #[test]
    fn anything_can_be_scanned(text in r#"([\\'"/*#{}:\n r]|::|crate|super|\PC){0,40}"#) {
        scan::paths(&text);
    }
}

/// Whole pieces of Rust that hold no edge but look as if they did.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "/* crate::relay */",
        "/* /* \" */ crate::relay */",
        "// crate::relay '\n",
        "\"crate::relay \\\" //\"",
        "r#\"crate::relay \" /*\"#",
        "br\"\\\"",
        "'\"'",
        "b'\\''",
        "'/'",
        "&'a str",
        "use std::{fmt, io::{self, Write as _}};",
        "mod inner { use super::x; }",
        "pub(crate) fn f() -> u8 { 1..2 }",
        "x :: y :: <Z>",
        "\n",
    ]);
    prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.join(" "))
}
