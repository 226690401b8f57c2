//! Exists so that `openssl-src` may stand under `[build-dependencies]`, where its features are chosen.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}
