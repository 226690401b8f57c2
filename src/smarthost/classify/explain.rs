//! A verdict told to people: in sentences that a help desk can read aloud, or as JSON.

use std::fmt::Write;

use super::{Verdict, class::Class, fallback, scan, words};

/// What a reply means and what to do, with the pasted text it was found in.
pub fn text(verdict: &Verdict, pasted: &str) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = tell(&mut out, verdict, pasted);
    out
}

/// The verdict as JSON; the keys are `class`, `retry`, `scope`, `rule`, `meaning`, `remedy`, `code` and `enhanced`.
pub fn json(verdict: &Verdict) -> String {
    serde_json::to_string_pretty(verdict).expect("a verdict is made of strings and a number")
}

fn tell(out: &mut String, verdict: &Verdict, pasted: &str) -> Result<(), std::fmt::Error> {
    let codes = [
        verdict.code.map(|code| code.to_string()),
        verdict.enhanced.map(|enhanced| enhanced.to_string()),
    ];
    let codes = codes.into_iter().flatten().collect::<Vec<_>>().join(" ");
    let is_nothing = codes.is_empty() && verdict.rule.as_str() == fallback::UNKNOWN;
    let title = match () {
        () if is_nothing => "No reply was found in this text",
        () if is_good_news(verdict) => "All is well",
        () => verdict.class.title(),
    };
    match codes.as_str() {
        "" => writeln!(out, "{title}.")?,
        codes => writeln!(out, "{codes}: {title}.")?,
    }
    writeln!(out, "\nWhat it means\n  {}", verdict.meaning)?;
    if !verdict.remedy.is_empty() {
        writeln!(out, "\nWhat to do")?;
        for (index, step) in verdict.remedy.iter().enumerate() {
            writeln!(out, "  {}. {step}", index + 1)?;
        }
    }
    if !is_nothing && !is_good_news(verdict) {
        writeln!(out, "\nWill it pass by itself?  {}", verdict.retry.outlook())?;
        writeln!(out, "What is affected?        {}", capitalized(verdict.scope.reach()))?;
    }
    let (_, trace) =
        words::split_trace(scan::capped(pasted).lines().next_back().unwrap_or_default());
    if !trace.is_empty() {
        writeln!(out, "For Microsoft support    {trace}")?;
    }
    let (class, retry, scope) = (verdict.class, verdict.retry, verdict.scope);
    writeln!(out, "\nRule {}: class {class}, retry {retry}, scope {scope}.", verdict.rule)
}

fn is_good_news(verdict: &Verdict) -> bool {
    let positive = verdict.code.map(|code| code.get() < 400);
    let positive = positive.or_else(|| verdict.enhanced.map(|enhanced| enhanced.0 == 2));
    verdict.class == Class::Service && positive == Some(true)
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map_or_else(String::new, |first| format!("{}{}.", first.to_uppercase(), chars.as_str()))
}
