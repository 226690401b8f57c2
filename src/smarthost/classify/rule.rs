//! One rule of the catalogue: how a reply is known, and what is said of it.

use std::{fmt, ops::RangeInclusive, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::proto::{
    client::Stage,
    reply::{Code, Enhanced},
};

use super::{
    class::{Class, Retry, Scope},
    words,
};

/// A rule as it stands in a catalogue file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Its name in logs and metrics.
    pub id: RuleId,
    /// Phrases, of which any is enough.
    #[serde(default)]
    pub text: Vec<Phrase>,
    /// Phrases that speak against it.
    #[serde(default)]
    pub unless: Vec<Phrase>,
    /// Enhanced codes, of which any is enough.
    #[serde(default)]
    pub enhanced: Vec<EnhancedPattern>,
    /// Reply codes, of which any is enough.
    #[serde(default)]
    pub code: Vec<CodePattern>,
    /// Enhanced codes that a reply must not contradict.
    #[serde(default)]
    pub if_enhanced: Vec<EnhancedPattern>,
    /// Reply codes that a reply must not contradict.
    #[serde(default)]
    pub if_code: Vec<CodePattern>,
    /// Stages at which it holds; empty means all.
    #[serde(default, deserialize_with = "stages")]
    pub stage: Vec<Stage>,
    /// Whether it is an event in a log, which has no reply code.
    #[serde(default)]
    pub no_reply: bool,
    /// Whether another reply may stand inside, which counts if a rule knows it.
    #[serde(default)]
    pub wraps: bool,
    /// Whether the secret itself is wrong, so that it must not be presented again.
    #[serde(default)]
    pub wrong_secret: bool,
    /// The kind of trouble.
    pub class: Class,
    /// Whether trying again helps.
    pub retry: Retry,
    /// How far it reaches.
    pub scope: Scope,
    /// What it means, for whoever runs the relay.
    pub meaning: Arc<str>,
    /// What to do, one step an item.
    pub remedy: Arc<[String]>,
    /// A reply that it is for.
    #[serde(default)]
    pub example: String,
    /// Where it is known from.
    #[serde(default)]
    pub source: String,
}

/// The name of a rule: lower-case letters, digits and hyphens, so that it can be a metric's label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct RuleId(pub(super) Arc<str>);

/// Words to look for. The parts may stand anywhere, and all must be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phrase {
    /// As it stands in the file.
    pub source: String,
    /// In the form of [`words::canonical`], with a blank at each end where a word must end.
    pub(super) parts: Vec<String>,
}

/// `5.7.60`, `4.7.500-4.7.699`, `5.7.*` or `2.*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnhancedPattern(RangeInclusive<(u8, u16, u16)>);

/// `535` or `5xx`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodePattern(RangeInclusive<u16>);

impl Rule {
    /// Whether what is known of the reply besides its text speaks for this rule or at least not against it.
    pub(super) fn allows(
        &self,
        stage: Option<Stage>,
        code: Option<Code>,
        enhanced: Option<Enhanced>,
    ) -> bool {
        let stage_fits =
            self.stage.is_empty() || stage.is_none_or(|stage| self.stage.contains(&stage));
        let code_fits = self.if_code.is_empty()
            || match (code, enhanced) {
                (Some(code), _) => self.if_code.iter().any(|pattern| pattern.matches(code)),
                (None, Some(enhanced)) => {
                    self.if_code.iter().any(|pattern| pattern.may_go_with(enhanced))
                }
                (None, None) => true,
            };
        let enhanced_fits = self.if_enhanced.is_empty()
            || enhanced.is_none_or(|enhanced| {
                self.if_enhanced.iter().any(|pattern| pattern.matches(enhanced))
            });
        stage_fits && code_fits && enhanced_fits && !(self.no_reply && code.is_some())
    }
}

impl EnhancedPattern {
    /// Whether a code lies in the range.
    pub fn matches(&self, enhanced: Enhanced) -> bool {
        self.0.contains(&(enhanced.0, enhanced.1, enhanced.2))
    }

    /// The lowest code of the range.
    pub fn first(&self) -> Enhanced {
        let (class, subject, detail) = *self.0.start();
        Enhanced(class, subject, detail)
    }
}

impl fmt::Display for EnhancedPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (*self.0.start(), *self.0.end()) {
            (from, to) if from == to => write!(f, "{}", self.first()),
            ((class, ..), (_, u16::MAX, _)) => write!(f, "{class}.*"),
            ((class, subject, _), (_, _, u16::MAX)) => write!(f, "{class}.{subject}.*"),
            (_, (class, subject, detail)) => {
                write!(f, "{}-{class}.{subject}.{detail}", self.first())
            }
        }
    }
}

impl CodePattern {
    /// Whether a code lies in the range.
    pub fn matches(&self, code: Code) -> bool {
        self.0.contains(&code.get())
    }

    /// Whether a reply code in the range may stand before this enhanced code.
    fn may_go_with(&self, enhanced: Enhanced) -> bool {
        (self.0.start() / 100..=self.0.end() / 100).contains(&u16::from(enhanced.0))
    }
}

impl FromStr for RuleId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if text.is_empty() || text.len() > 40 || !text.bytes().all(good) {
            return Err(format!(
                "{text:?} is no rule id: up to 40 lower-case letters, digits and hyphens"
            ));
        }
        Ok(Self(text.into()))
    }
}

impl FromStr for Phrase {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let part = |part: &str| {
            let words = words::canonical(part);
            let words = words.trim();
            let start = if part.trim_start().starts_with('*') { "" } else { " " };
            let end = if part.trim_end().ends_with('*') { "" } else { " " };
            if words.len() < 2 {
                return Err(format!(
                    "{text:?} has no words to look for (reply codes do not count)"
                ));
            }
            Ok(format!("{start}{words}{end}"))
        };
        let parts = text.split('&').map(part).collect::<Result<_, _>>()?;
        Ok(Self { source: text.to_owned(), parts })
    }
}

impl FromStr for EnhancedPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let exact = |text: &str| Enhanced::parse(text).map(|Enhanced(c, s, d)| (c, s, d));
        let range = match (text.split_once('-'), text.strip_suffix(".*")) {
            (Some((from, to)), _) => exact(from).zip(exact(to)).map(|(from, to)| from..=to),
            (None, Some(start)) => exact(&format!("{start}.0"))
                .map(|from| from..=(from.0, from.1, u16::MAX))
                .or_else(|| {
                    exact(&format!("{start}.0.0")).map(|from| from..=(from.0, u16::MAX, u16::MAX))
                }),
            (None, None) => exact(text).map(|code| code..=code),
        };
        range.filter(|range| !range.is_empty()).map(Self).ok_or_else(|| {
            format!("{text:?} is no enhanced code; \"5.7.60\", \"4.7.500-4.7.699\" and \"2.*\" are")
        })
    }
}

impl FromStr for CodePattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let exact = |digits: &str| Code::parse(digits.as_bytes()).map(Code::get);
        let range = match text.strip_suffix("xx") {
            Some(class) => exact(&format!("{class}00")).map(|from| from..=from + 99),
            None => exact(text).map(|code| code..=code),
        };
        range.map(Self).ok_or_else(|| format!("{text:?} is no reply code; \"535\" and \"5xx\" are"))
    }
}

macro_rules! read_from_a_string {
    ($($name:ident),*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    )*};
}

read_from_a_string!(RuleId, Phrase, EnhancedPattern, CodePattern);

fn stages<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Stage>, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    let stage = |name: &String| {
        Stage::parse(name).ok_or_else(|| {
            de::Error::custom(format!(
                "{name:?} is no stage: connect, ehlo, starttls, tls, auth, mail, rcpt, data, eod and rset are"
            ))
        })
    };
    names.iter().map(stage).collect()
}

impl RuleId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_say_what_they_take() {
        let takes = |pattern: &str, code: &str| {
            let pattern: EnhancedPattern = pattern.parse().unwrap();
            pattern.matches(Enhanced::parse(code).unwrap())
        };
        assert!(takes("4.7.500-4.7.699", "4.7.500") && takes("4.7.500-4.7.699", "4.7.699"));
        assert!(!takes("4.7.500-4.7.699", "4.7.700") && !takes("4.7.500-4.7.699", "5.7.600"));
        assert!(takes("2.*", "2.6.0") && !takes("2.*", "4.2.0"));
        assert!(takes("5.7.*", "5.7.139") && !takes("5.7.*", "5.6.0"));
        for text in ["5.7.60", "4.7.500-4.7.699", "5.7.*", "2.*"] {
            assert_eq!(text.parse::<EnhancedPattern>().unwrap().to_string(), text);
        }
        for no in ["", "5.7", "3.*", "5.7.1.*", "4.7.699-4.7.500", "5.7.1-", "535"] {
            assert!(no.parse::<EnhancedPattern>().is_err(), "{no}");
        }
        let code = |text: &str| text.parse::<CodePattern>().unwrap();
        assert!(code("5xx").matches(Code::new(599)) && !code("5xx").matches(Code::new(499)));
        assert!(code("535").matches(Code::new(535)) && !code("535").matches(Code::new(534)));
        for no in ["", "6xx", "53", "5x", "xx", "5355"] {
            assert!(no.parse::<CodePattern>().is_err(), "{no}");
        }
    }

    #[test]
    fn phrases_end_at_words_unless_a_star_opens_them() {
        let parts = |text: &str| text.parse::<Phrase>().unwrap().parts;
        assert_eq!(parts("Unable to relay"), [" unable to relay "]);
        assert_eq!(parts("*SendAsDenied*"), ["sendasdenied"]);
        assert_eq!(
            parts("STOREDRV.Deliver & mailbox full*"),
            [" storedrv deliver ", " mailbox full"]
        );
        for no in ["", "*", "535 5.7.139", "a & ", "&"] {
            assert!(no.parse::<Phrase>().is_err(), "{no}");
        }
    }
}
