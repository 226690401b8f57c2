//! Tells the program which rustls it is built with. It is also the reason why `openssl-src` may stand
//! under `[build-dependencies]`, where its features are chosen.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=Cargo.lock");
    let folder = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let lock = fs::read_to_string(folder.join("Cargo.lock")).unwrap_or_default();
    println!("cargo::rustc-env=RUSTLS_VERSION={}", locked_version(&lock, "rustls"));
}

fn locked_version<'a>(lock: &'a str, package: &str) -> &'a str {
    let entry = format!("name = \"{package}\"\nversion = \"");
    lock.split_once(&entry)
        .and_then(|(_, rest)| rest.split_once('"'))
        .map_or("unknown", |(version, _)| version)
}
