//! The rules by which replies are known: those that are built in (`catalogue.toml`) and, before them, those of
//! an operator's own file.

use std::{ops::Range, path::Path, sync::OnceLock};

use aho_corasick::{AhoCorasick, MatchKind};
use serde::Deserialize;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use crate::{
    config::{Problem, Problems},
    proto::client::Stage,
};

use super::{
    fallback,
    rule::{Phrase, Rule},
    words,
};

const BUILT_IN: &str = include_str!("../catalogue.toml");

/// Rules in their order, ready to be looked up.
#[derive(Debug)]
pub struct Catalogue {
    rules: Vec<Rule>,
    /// How many of them are the operator's.
    own: usize,
    /// For each rule the numbers of its phrases' parts in `matcher`.
    text: Vec<Vec<Parts>>,
    unless: Vec<Vec<Parts>>,
    matcher: AhoCorasick,
    parts: usize,
    /// Parts that tell the stage.
    hints: Vec<(usize, Stage)>,
}

type Parts = Vec<usize>;

/// Which phrases stand in a text, and where.
#[derive(Debug)]
pub(super) struct Hits {
    /// For each part the octet after its last beginning; 0 if it is not there.
    last: Vec<usize>,
}

/// What programs write about a reply that tells its stage.
const STAGE_HINTS: [(&str, Stage); 24] = [
    ("refused to talk to me", Stage::Connect),
    ("after initial connection", Stage::Connect),
    ("in reply to mail from", Stage::Mail),
    ("in reply to rcpt to", Stage::Rcpt),
    ("in reply to data", Stage::Data),
    ("in reply to end of data", Stage::Eod),
    ("in reply to auth*", Stage::Auth),
    ("after mail from", Stage::Mail),
    ("after rcpt to", Stage::Rcpt),
    ("after end of data", Stage::Eod),
    ("after pipelined end of data", Stage::Eod),
    ("mail command failed", Stage::Mail),
    ("all recipients were rejected", Stage::Rcpt),
    ("data not accepted", Stage::Eod),
    ("invalid login", Stage::Auth),
    ("auth command failed", Stage::Auth),
    ("password command failed", Stage::Auth),
    ("*authenticationerror", Stage::Auth),
    ("*authenticationexception", Stage::Auth),
    ("authenticationfailedexception", Stage::Auth),
    ("smtpsenderrefused", Stage::Mail),
    ("smtprecipientsrefused", Stage::Rcpt),
    ("smtpfailedrecipientexception", Stage::Rcpt),
    ("smtpdataerror", Stage::Eod),
];

impl Catalogue {
    /// The rules that are built in.
    pub fn built_in() -> &'static Self {
        static CATALOGUE: OnceLock<Catalogue> = OnceLock::new();
        CATALOGUE.get_or_init(|| {
            Self::new(Vec::new()).expect("the built-in rules are good, which a test proves")
        })
    }

    /// An operator's rules, read from the text of a file, before those that are built in.
    pub fn with_own(text: &str, file: &Path) -> Result<Self, Problems> {
        Self::new(read(text, file)?)
    }

    /// Every rule, the operator's first.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    fn new(mut rules: Vec<Rule>) -> Result<Self, Problems> {
        let own = rules.len();
        rules.extend(read(BUILT_IN, Path::new("catalogue.toml"))?);
        let mut parts: Vec<String> = Vec::new();
        let mut number = |part: &str| {
            parts.iter().position(|known| known == part).unwrap_or_else(|| {
                parts.push(part.to_owned());
                parts.len() - 1
            })
        };
        let mut numbers = |phrases: &[Phrase]| -> Vec<Parts> {
            let of_phrase =
                |phrase: &Phrase| phrase.parts.iter().map(|part| number(part)).collect();
            phrases.iter().map(of_phrase).collect()
        };
        let text = rules.iter().map(|rule| numbers(&rule.text)).collect();
        let unless = rules.iter().map(|rule| numbers(&rule.unless)).collect();
        let hints = STAGE_HINTS
            .iter()
            .filter_map(|(words, stage)| {
                let phrase: Phrase = words.parse().ok()?;
                Some((numbers(&[phrase]).first()?.first().copied()?, *stage))
            })
            .collect();
        let matcher = AhoCorasick::builder()
            .match_kind(MatchKind::Standard)
            .build(&parts)
            .expect("some hundred short words fit into an automaton");
        Ok(Self { rules, own, text, unless, parts: parts.len(), matcher, hints })
    }

    /// Looks for every phrase at once in a canonical text.
    pub(super) fn hits(&self, canonical: &str) -> Hits {
        let mut last = vec![0; self.parts];
        for found in self.matcher.find_overlapping_iter(canonical) {
            last[found.pattern().as_usize()] = found.start() + 1;
        }
        Hits { last }
    }

    /// The stage that the words around a reply tell of.
    pub(super) fn stage_hint(&self, hits: &Hits) -> Option<Stage> {
        self.hints.iter().find(|(part, _)| hits.last[*part] > 0).map(|(_, stage)| *stage)
    }

    /// The operator's rules and the others: all that is known of a reply is tried on the former first.
    pub(super) fn layers(&self) -> [Range<usize>; 2] {
        [0..self.own, self.own..self.rules.len()]
    }

    /// Whether the text, from an octet on, has a phrase of the rule and none that speaks against it.
    pub(super) fn has_phrase(&self, rule: usize, hits: &Hits, from: usize) -> bool {
        let there = |parts: &Parts| parts.iter().all(|part| hits.last[*part] > from);
        self.text[rule].iter().any(there) && !self.unless[rule].iter().any(there)
    }
}

/// Reads every rule of a file, or says what is wrong with each that cannot be read.
fn read(text: &str, file: &Path) -> Result<Vec<Rule>, Problems> {
    let problem = |at: Option<usize>, key: String, reason: &str, hint: &str| Problem {
        file: file.to_owned(),
        line: at.map(|at| text[..at.min(text.len())].matches('\n').count() + 1),
        key,
        reason: reason.split_whitespace().collect::<Vec<_>>().join(" "),
        hint: Some(hint.to_owned()),
    };
    const SHAPE: &str = "a file of rules has [[rule]] sections with id, text or enhanced or code, class, retry, scope, meaning and remedy";
    let tree = DeTable::parse(text).map_err(|error| {
        let at = error.span().map(|span| span.start);
        Problems {
            problems: vec![problem(at, String::new(), error.message(), "this is not TOML")],
            warnings: Vec::new(),
        }
    })?;
    let (mut rules, mut problems) = (Vec::<Rule>::new(), Vec::new());
    for (name, value) in tree.into_inner() {
        let at = Some(name.span().start);
        let DeValue::Array(items) = value.into_inner() else {
            problems.push(problem(at, name.to_string(), "not known here", SHAPE));
            continue;
        };
        if name.get_ref() != "rule" {
            problems.push(problem(at, name.to_string(), "not known here", SHAPE));
            continue;
        }
        for (index, item) in items.into_iter().enumerate() {
            let at = item.span().start;
            let key = format!("rule {}", index + 1);
            match Rule::deserialize(ValueDeserializer::from(item)) {
                Ok(rule) => match fault(&rule, &rules) {
                    Some((reason, hint)) => {
                        let key = format!("{key} ({})", rule.id);
                        problems.push(problem(Some(at), key, &reason, hint));
                    }
                    None => rules.push(rule),
                },
                Err(error) => {
                    let at = error.span().map_or(at, |span| span.start);
                    problems.push(problem(Some(at), key, error.message(), SHAPE));
                }
            }
        }
    }
    if problems.is_empty() { Ok(rules) } else { Err(Problems { problems, warnings: Vec::new() }) }
}

/// What is wrong with a rule that can be read.
fn fault(rule: &Rule, before: &[Rule]) -> Option<(String, &'static str)> {
    if rule.text.is_empty() && rule.enhanced.is_empty() && rule.code.is_empty() {
        return Some(("nothing to know a reply by".into(), "give it text, enhanced or code"));
    }
    if rule.meaning.trim().is_empty() {
        return Some(("no meaning".into(), "say in a sentence what the reply means"));
    }
    if fallback::IDS.contains(&rule.id.as_str()) {
        return Some(("this id is taken by replies that no rule knows".into(), "use another id"));
    }
    if before.iter().any(|other| other.id == rule.id) {
        return Some(("a rule before it has the same id".into(), "use another id"));
    }
    None
}

/// The canonical form of a text, and the octet of it at which `start` of the text lies.
pub(super) fn canonical_from(text: &str, start: usize) -> (String, usize) {
    let mut canonical = String::with_capacity(text.len() + 2);
    let (before, reply) = text.split_at_checked(start).unwrap_or(("", text));
    if !before.is_empty() {
        words::append_canonical(before, &mut canonical);
    }
    let from = canonical.len().saturating_sub(1);
    words::append_canonical(reply, &mut canonical);
    (canonical, from)
}
