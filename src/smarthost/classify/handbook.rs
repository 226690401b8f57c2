//! The catalogue as a document for administrators: `docs/replies.md`.

use std::fmt::{Error, Write};

use super::{catalogue::Catalogue, class::Class, rule::Rule, scan};

/// The order in which people look: what they have to mend first, what passes last.
const ORDER: [Class; 11] = [
    Class::AuthConfig,
    Class::SenderPermission,
    Class::Throttling,
    Class::Policy,
    Class::Tls,
    Class::Recipient,
    Class::Size,
    Class::Content,
    Class::Transient,
    Class::Service,
    Class::Permanent,
];

/// The document in Markdown.
pub fn render(catalogue: &Catalogue) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_all(&mut out, catalogue);
    out
}

fn write_all(out: &mut String, catalogue: &Catalogue) -> Result<(), Error> {
    out.push_str(
        "# What the smarthost says\n\n\
         <!-- Made from src/smarthost/catalogue.toml by `UPDATE_DOCS=1 cargo test --test replies`; do not edit. -->\n\n\
         Every reply of Exchange Online that the relay knows, what it means, and what to do. Paste a reply into\n\
         `smtp-uplift explain \"…\"` and it finds the entry; here you can look it up by its number, or by what is wrong.\n\n\
         `<mailbox>` is the mailbox that the relay logs in with, `<sender>` the address that the device sends from.\n\
         Commands are for Exchange Online PowerShell, after `Connect-ExchangeOnline`.\n\n\
         ## By number\n\nA reply has two numbers, as in `535 5.7.139`. The second says more: look for that.\n\n| Number | Entries |\n|---|---|\n",
    );
    for (codes, ids) in by_number(catalogue) {
        let links: Vec<_> = ids.iter().map(|id| format!("[{id}](#{id})")).collect();
        writeln!(out, "| {codes} | {} |", links.join(", "))?;
    }
    for class in ORDER {
        let mut rules = catalogue.rules().iter().filter(|rule| rule.class == class).peekable();
        if rules.peek().is_none() {
            continue;
        }
        writeln!(out, "\n## {}", class.title())?;
        for rule in rules {
            entry(out, rule)?;
        }
    }
    Ok(())
}

fn entry(out: &mut String, rule: &Rule) -> Result<(), Error> {
    writeln!(out, "\n### {}\n", rule.id)?;
    if !rule.example.is_empty() {
        writeln!(out, "    {}\n", rule.example)?;
    }
    writeln!(out, "{}\n", escaped(&rule.meaning))?;
    for step in rule.remedy.iter() {
        if is_command(step) {
            writeln!(out, "* `{step}`")?;
        } else {
            writeln!(out, "* {}", escaped(step))?;
        }
    }
    let gap = if rule.remedy.is_empty() { "" } else { "\n" };
    writeln!(
        out,
        "{gap}Class {}, retry {}, scope {}: {}. Source: {}.",
        rule.class,
        rule.retry,
        rule.scope,
        rule.scope.reach(),
        escaped(&rule.source)
    )
}

/// The codes by which rules are known or which their examples have, in order, each with its rules.
fn by_number(catalogue: &Catalogue) -> Vec<(String, Vec<&str>)> {
    let mut numbered = Vec::new();
    for rule in catalogue.rules() {
        let example = scan::scan(&rule.example);
        let mut codes: Vec<_> = rule
            .enhanced
            .iter()
            .map(|pattern| (pattern.first(), pattern.to_string()))
            .chain(example.enhanced.map(|enhanced| (enhanced, enhanced.to_string())))
            .map(|(first, shown)| ((first.0, first.1, first.2), shown))
            .collect();
        if let (Some(code), None) = (example.code, example.enhanced) {
            codes.push(((0, code.get(), 0), code.to_string()));
        }
        codes.sort();
        codes.dedup();
        numbered.extend(codes.into_iter().map(|codes| (codes, rule.id.as_str())));
    }
    numbered.sort_by(|(one, _), (other, _)| one.cmp(other));
    let mut lines: Vec<(String, Vec<&str>)> = Vec::new();
    for ((_, shown), id) in numbered {
        match lines.last_mut() {
            Some((last, ids)) if *last == shown => ids.push(id),
            _ => lines.push((shown, vec![id])),
        }
    }
    lines
}

/// Whether a step is PowerShell and nothing else: it begins with `Verb-Noun`.
fn is_command(step: &str) -> bool {
    let word = step.split(' ').next().unwrap_or_default();
    let capital = |part: &str| part.starts_with(|c: char| c.is_ascii_uppercase());
    word.split_once('-').is_some_and(|(verb, noun)| capital(verb) && capital(noun))
        && !step.contains(". ")
}

fn escaped(text: &str) -> String {
    text.replace('<', "\\<").replace('*', "\\*").replace('|', "\\|")
}
