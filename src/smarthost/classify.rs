//! The decision: which rule of a [`Catalogue`] a reply falls under.
//!
//! Words go first, then the enhanced code with the stage, then the reply code; a reply is never judged by its
//! first digit alone, since Exchange Online's codes contradict each other (`451 5.7.3`, `554 4.3.2`), one code
//! means many things (`535 5.7.139`), and one thing has changed its words. What no rule knows falls back to the
//! RFCs and is called `unknown`.

pub mod catalogue;
pub mod class;
pub mod explain;
mod fallback;
pub mod handbook;
pub mod rule;
pub mod scan;
pub mod words;

use std::sync::Arc;

use serde::{Serialize, Serializer};

use crate::proto::{
    client::Stage,
    reply::{Code, Enhanced, Reply},
};

use self::{
    catalogue::{Catalogue, Hits, canonical_from},
    class::{Class, Retry, Scope},
    rule::{Rule, RuleId},
    scan::Scan,
};

/// What a reply means, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The kind of trouble.
    pub class: Class,
    /// Whether trying again helps.
    pub retry: Retry,
    /// How far it reaches.
    pub scope: Scope,
    /// The rule that knew it, or `unknown`.
    pub rule: RuleId,
    /// What it means, for whoever runs the relay.
    pub meaning: Arc<str>,
    /// What to do, one step an item.
    pub remedy: Arc<[String]>,
    /// The reply code.
    #[serde(serialize_with = "code_as_number")]
    pub code: Option<Code>,
    /// The enhanced code.
    #[serde(serialize_with = "enhanced_as_text")]
    pub enhanced: Option<Enhanced>,
    /// Whether the secret itself is wrong, so that it must not be presented again.
    #[serde(skip)]
    pub wrong_secret: bool,
}

/// What is known of a reply.
struct Known<'t> {
    stage: Option<Stage>,
    code: Option<Code>,
    enhanced: Option<Enhanced>,
    text: &'t str,
    /// Where in the text the reply begins.
    start: usize,
    /// Whether it is surely a positive reply, whose words are not to be searched for trouble.
    positive: bool,
}

/// Judges a reply that came over a connection.
pub fn reply(catalogue: &Catalogue, stage: Option<Stage>, reply: &Reply) -> Verdict {
    let text = words::without_names(scan::capped(&reply.text()));
    let text = text.as_str();
    let enhanced = reply.enhanced.or_else(|| {
        // Some put a word before it: `550 SMTP; 5.7.60 …`.
        scan::scan(text).enhanced.filter(|found| u16::from(found.0) == reply.code.get() / 100)
    });
    judge(
        catalogue,
        &Known {
            stage,
            code: Some(reply.code),
            enhanced,
            text,
            start: 0,
            positive: reply.code.get() < 400,
        },
    )
}

/// Judges a text that somebody pasted, with whatever stands around the reply.
pub fn pasted(catalogue: &Catalogue, stage: Option<Stage>, text: &str) -> Verdict {
    let text = &words::without_addresses(scan::capped(text));
    let Scan { code, enhanced, start, garbled } = scan::scan(text);
    if garbled {
        return Verdict { code, enhanced, ..protocol_fault() };
    }
    let is_positive = code.is_some_and(|code| code.get() < 400);
    let begins = text[..start].bytes().all(|byte| !byte.is_ascii_alphanumeric());
    let known = Known { stage, code, enhanced, text, start, positive: is_positive && begins };
    if is_positive && !begins {
        // "handshake failure after 220 …": what is told is trouble, and the positive reply only its setting.
        let told = Known { code: None, enhanced: None, start: 0, ..known };
        let verdict = judge(catalogue, &told);
        if !verdict.is_unknown() && verdict.class != Class::Service {
            return verdict;
        }
    }
    judge(catalogue, &known)
}

/// What came is no reply (RFC 5321 section 4.2), so that there is nothing to look up.
pub fn protocol_fault() -> Verdict {
    Verdict {
        class: Class::Permanent,
        retry: Retry::No,
        scope: Scope::Connection,
        rule: RuleId(fallback::PROTOCOL_FAULT.into()),
        meaning: fallback::NO_REPLY.into(),
        remedy: fallback::NO_REPLY_REMEDY.map(str::to_owned).into(),
        code: None,
        enhanced: None,
        wrong_secret: false,
    }
}

impl Verdict {
    /// Whether no rule knew the reply.
    pub fn is_unknown(&self) -> bool {
        fallback::IDS.contains(&self.rule.as_str())
    }

    /// Whether a person has to act, even if the relay goes on trying (`PRX4` in answer to AUTH).
    pub fn needs_a_person(&self) -> bool {
        self.retry == Retry::AfterConfig || self.class == Class::AuthConfig
    }
}

fn judge(catalogue: &Catalogue, known: &Known<'_>) -> Verdict {
    let (canonical, from) = canonical_from(known.text, known.start);
    let hits = catalogue.hits(&canonical);
    let stage = known.stage.or_else(|| catalogue.stage_hint(&hits));
    let known = &Known { stage, ..*known };
    match decide(catalogue, known, &hits, from) {
        Some(rule) if rule.wraps => {
            inside(catalogue, known).unwrap_or_else(|| verdict(rule, known))
        }
        Some(rule) => verdict(rule, known),
        None => unknown(known),
    }
}

/// Looks all that is known up in the operator's rules, then in the others.
fn decide<'c>(
    catalogue: &'c Catalogue,
    known: &Known<'_>,
    hits: &Hits,
    from: usize,
) -> Option<&'c Rule> {
    catalogue.layers().into_iter().find_map(|layer| {
        let find = |matches: &dyn Fn(usize, &Rule) -> bool| {
            layer.clone().find(|index| {
                let rule = &catalogue.rules()[*index];
                matches(*index, rule)
                    && rule.allows(known.stage, known.code, known.enhanced)
                    && (!known.positive || rule.class == Class::Service)
            })
        };
        let by_words = |from: usize| find(&|index, _| catalogue.has_phrase(index, hits, from));
        let by_enhanced = || {
            let enhanced = known.enhanced?;
            find(&|_, rule| rule.enhanced.iter().any(|pattern| pattern.matches(enhanced)))
        };
        let by_code = || {
            let code = known.code?;
            find(&|_, rule| rule.code.iter().any(|pattern| pattern.matches(code)))
        };
        // What stands before the reply is some program's; its words count only if nothing else does.
        let before = || if from > 0 { by_words(0) } else { None };
        let index = by_words(from).or_else(by_enhanced).or_else(before).or_else(by_code)?;
        Some(&catalogue.rules()[index])
    })
}

/// The verdict on a reply inside another one (`530 5.7.57 … Error: 535 5.7.139 …`), with the outer codes.
fn inside(catalogue: &Catalogue, known: &Known<'_>) -> Option<Verdict> {
    let own_code = if known.start > 0 || known.text.starts_with(|c: char| c.is_ascii_digit()) {
        known.start + 3
    } else {
        0
    };
    let text = scan::embedded(known.text.get(own_code..)?)?;
    let Scan { code, enhanced, start, .. } = scan::scan(text);
    let inner = Known { stage: None, code, enhanced, text, start, positive: false };
    let (canonical, from) = canonical_from(text, start);
    let rule = decide(catalogue, &inner, &catalogue.hits(&canonical), from)?;
    Some(verdict(rule, known))
}

fn verdict(rule: &Rule, known: &Known<'_>) -> Verdict {
    Verdict {
        class: rule.class,
        retry: rule.retry,
        scope: rule.scope,
        rule: rule.id.clone(),
        meaning: rule.meaning.clone(),
        remedy: rule.remedy.clone(),
        code: known.code,
        enhanced: known.enhanced,
        wrong_secret: rule.wrong_secret,
    }
}

fn unknown(known: &Known<'_>) -> Verdict {
    let (class, retry, scope) = fallback::verdict(known.stage, known.code, known.enhanced);
    let has_code = known.code.is_some() || known.enhanced.is_some();
    let (meaning, remedy): (_, &[&str]) = if has_code {
        (fallback::meaning(class, retry).into(), &fallback::REMEDY)
    } else {
        (fallback::NOTHING.into(), &fallback::NOTHING_REMEDY)
    };
    Verdict {
        class,
        retry,
        scope,
        rule: RuleId(fallback::UNKNOWN.into()),
        meaning,
        remedy: remedy.iter().map(|step| (*step).to_owned()).collect(),
        code: known.code,
        enhanced: known.enhanced,
        // Better not tried again than an account that is locked.
        wrong_secret: known.stage == Some(Stage::Auth)
            && known.code.is_some_and(|code| code.get() == 535),
    }
}

fn code_as_number<S: Serializer>(code: &Option<Code>, serializer: S) -> Result<S::Ok, S::Error> {
    code.map(Code::get).serialize(serializer)
}

fn enhanced_as_text<S: Serializer>(
    enhanced: &Option<Enhanced>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    enhanced.map(|enhanced| enhanced.to_string()).serialize(serializer)
}
