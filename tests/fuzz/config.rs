//! The text of a configuration.

use std::path::Path;

use smtp_uplift::{
    config::{self, Problem},
    telemetry::log,
};
use toml::de::{DeTable, DeValue};

/// A password that no message may quote.
const SECRET: &str = "tr0ub4dor";
/// The keys whose value is a secret.
const SECRETS: [&str; 5] = ["password", "token", "client_secret", "refresh_token", "private_key"];
/// Where the text is said to come from; relative paths lead nowhere.
const FILE: &str = "/nowhere/smtp-uplift.toml";

/// * What is refused has a problem; every problem has a line of the file, or names what is not there.
/// * A problem is one line of visible text, and tells no secret; neither does the configuration.
/// * What is taken can be acted on: there is a listener, and the log understands its level.
pub fn config(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let tree = DeTable::parse(&text);
    if tree.as_ref().is_ok_and(|tree| leads_somewhere(tree.get_ref())) {
        return;
    }
    let (problems, shown) = match config::parse(&text, Path::new(FILE)) {
        Ok(loaded) => {
            let shown = format!("{loaded:?}");
            assert!(!loaded.config.listeners.is_empty(), "no device could connect");
            let level = &loaded.config.log.level;
            assert!(log::filter(level).is_ok(), "the log does not know {level:?}");
            (loaded.warnings, shown)
        }
        Err(problems) => {
            assert!(!problems.problems.is_empty(), "refused for no reason");
            let shown = format!("{problems:?}");
            (problems.problems, shown)
        }
    };
    let lines = text.matches('\n').count() + 1;
    for problem in &problems {
        one_line(problem, lines);
        // The parser does not say where a key has too many dots.
        if problem.line.is_none() && problem.reason != "recursion limit" {
            let section = problem.key.split('.').next().unwrap_or_default();
            let there = tree.as_ref().map_or(true, |tree| tree.get_ref().contains_key(section));
            assert!(!there, "{section} has a line: {problem}");
        }
    }
    // Text that is no TOML has no other places than those of a secret.
    if tree.as_ref().map_or(true, |tree| !tells_itself(tree.get_ref())) {
        assert!(!shown.contains(SECRET), "{shown}");
    }
}

fn one_line(problem: &Problem, lines: usize) {
    let shown = problem.to_string();
    assert!(!shown.contains(char::is_control), "{shown:?}");
    assert!(!problem.reason.is_empty() && problem.hint.as_deref() != Some(""), "{shown}");
    assert!(problem.line.is_none_or(|line| (1..=lines).contains(&line)), "{lines} lines: {shown}");
}

/// Whether a path in it could be a file of this machine.
fn leads_somewhere(table: &DeTable<'_>) -> bool {
    any(table, &|_, text| text.starts_with('/') || text.contains(".."))
}

/// Whether the secret stands where none is expected, too.
fn tells_itself(table: &DeTable<'_>) -> bool {
    any(table, &|key, text| {
        key.contains(SECRET) || text.contains(SECRET) && !SECRETS.contains(&key)
    })
}

/// Whether any key has the property, which is also told its text, empty where it has none.
fn any(table: &DeTable<'_>, has: &dyn Fn(&str, &str) -> bool) -> bool {
    fn below(key: &str, value: &DeValue<'_>, has: &dyn Fn(&str, &str) -> bool) -> bool {
        let deeper = match value {
            DeValue::Array(items) => items.iter().any(|item| below(key, item.get_ref(), has)),
            DeValue::Table(table) => any(table, has),
            _ => false,
        };
        deeper || has(key, value.as_str().unwrap_or_default())
    }
    table.iter().any(|(key, value)| below(key.get_ref(), value.get_ref(), has))
}
