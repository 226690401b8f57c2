//! Lines that people pasted in public, with whatever their programs wrote around the reply.
//!
//! The file's head says which of them rules were improved with, and which were held out.

use smtp_uplift::smarthost::classify::{self, catalogue::Catalogue};

struct Line<'a> {
    text: String,
    expected: [&'a str; 4],
    set: &'a str,
}

fn lines() -> Vec<Line<'static>> {
    include_str!("../data/seen.tsv")
        .lines()
        .skip_while(|line| line.starts_with('#'))
        .skip(1)
        .map(|line| {
            let columns: Vec<&str> = line.split('\t').collect();
            let [text, class, retry, scope, rule, set, _source] = columns[..] else {
                panic!("seven columns: {line}");
            };
            let text = text.replace("\\r", "\r").replace("\\n", "\n");
            Line { text, expected: [class, retry, scope, rule], set }
        })
        .collect()
}

/// Those of a set that are judged wrongly in class, retry or scope, and how many there are in all.
fn wrong(set: &str) -> (Vec<String>, usize) {
    let lines: Vec<_> = lines().into_iter().filter(|line| line.set == set).collect();
    let wrong = lines.iter().filter_map(|line| {
        let verdict = classify::pasted(Catalogue::built_in(), None, &line.text);
        let got = [verdict.class.as_str(), verdict.retry.as_str(), verdict.scope.as_str()];
        (got != line.expected[..3]).then(|| {
            format!("{got:?} by {}, not {:?}: {:.150}", verdict.rule, line.expected, line.text)
        })
    });
    (wrong.collect(), lines.len())
}

#[test]
fn nineteen_of_twenty_pasted_lines_are_judged_rightly() {
    for set in ["tune", "held", "fresh", "last", "final"] {
        let (wrong, all) = wrong(set);
        assert!(all > 20, "{set} has {all} lines");
        assert!(wrong.len() * 20 <= all, "of {all} in {set}:\n{}", wrong.join("\n"));
    }
}

#[test]
fn the_rules_are_those_that_the_labels_name() {
    let lines = lines();
    let other = lines.iter().filter(|line| {
        let verdict = classify::pasted(Catalogue::built_in(), None, &line.text);
        verdict.rule.as_str() != line.expected[3]
    });
    let other = other.count();
    assert!(other * 20 <= lines.len(), "{other} of {}", lines.len());
}
