//! `docs/replies.md` says what the catalogue says. `UPDATE_DOCS=1 cargo test --test replies` writes it anew.

use std::{env, fs, path::Path};

use smtp_uplift::smarthost::classify::{catalogue::Catalogue, handbook};

#[test]
fn the_document_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/replies.md");
    let text = handbook::render(Catalogue::built_in());
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &text).unwrap();
    }
    let there = fs::read_to_string(&path).unwrap_or_default();
    assert!(there == text, "docs/replies.md is stale: UPDATE_DOCS=1 cargo test --test replies");
}

#[test]
fn every_rule_is_in_the_document_once() {
    let text = handbook::render(Catalogue::built_in());
    for rule in Catalogue::built_in().rules() {
        assert_eq!(text.matches(&format!("\n### {}\n", rule.id)).count(), 1, "{}", rule.id);
        assert!(text.contains(&format!("    {}\n", rule.example)), "{}", rule.id);
    }
    assert!(text.contains("| 5.7.139 | [smtp-auth-off-mailbox](#smtp-auth-off-mailbox)"));
}
