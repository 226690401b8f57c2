//! How the stand-in behaves: what it offers, whom it lets in, and what goes wrong.
//!
//! Faults are named by an address's local part, for the one message that uses it, or by a scenario file:
//!
//! | local part | what happens |
//! |---|---|
//! | `reply-550-5.7.708@…` | that reply: at RCPT to a recipient, at MAIL to a sender |
//! | `reply-432-4.3.2-dot@…` | that reply at a stage: `mail`, `rcpt`, `data`, `dot` |
//! | `close-dot@…`, `close-after-dot@…` | the connection is closed instead of an answer at the stage; the message is not taken |
//! | `hang-dot@…` | no answer comes at the stage, and the connection stays open until the relay closes it |
//! | `garbage-dot@…` | what comes at the stage is no reply; the message is not taken |
//! | `slow-354@…`, `slow-dot-1.5@…` | the answer comes late, by 5 s or as said |
//!
//! What follows a `+` is ignored, so that addresses can be told apart.
//!
//! A fault of a file may be left to `chance`, by a generator that `seed` starts: the same dialogues in the same order
//! meet with the same faults.
//!
//! `max_connections` and `messages_per_minute` are Exchange Online's limits, of each user: above the first every message
//! gets 432 at its dot, above the second 421 at MAIL, and the connection is closed.
//!
//! There are two stages without an answer of their own, where a fault strikes all the same:
//!
//! | stage | when | what a fault does there |
//! |---|---|---|
//! | `in-data` | 32 KiB of the data have come | `reply` and `garbage` are said, then it closes; `hang` reads no more, `slow` not for that long |
//! | `tls` (file only) | the handshake has begun | `reply` and `garbage` come in the clear, then it closes; `hang` goes no further, `delay` later |

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use serde::Deserialize;

use super::identity::Tenant;
use crate::proto::reply::{Code, Enhanced, Reply};

/// Behaviour, as a scenario file says it (TOML).
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scenario {
    /// The only user name that may log in; absent: any.
    pub user: Option<String>,
    /// The only password that is right; absent: any.
    pub password: Option<String>,
    /// The only access token that is right; absent: any.
    pub token: Option<String>,
    /// Who gives the access tokens that are right, and no others then; absent: nobody.
    pub identity: Option<Tenant>,
    /// Whether TLS begins with the first octet; Exchange Online does not do that, others do.
    pub implicit: bool,
    /// What TLS it speaks.
    pub tls: Tls,
    /// Whether STARTTLS is offered; a middlebox may have removed it.
    pub starttls: bool,
    /// The mechanisms that are offered.
    pub auth: Vec<String>,
    /// EHLO keywords that are not offered.
    pub hide: Vec<String>,
    /// The SIZE that is offered, in octets.
    pub size: u64,
    /// Messages of a user who has more connections than that get 432 at the dot; absent: no limit.
    pub max_connections: Option<usize>,
    /// A user's messages above this number in any minute get 421 at MAIL; absent: no limit.
    pub messages_per_minute: Option<usize>,
    /// Octets of each message's data that are kept to be looked at.
    pub keep: usize,
    /// Where chance begins.
    pub seed: u64,
    /// What goes wrong.
    #[serde(rename = "fault")]
    pub faults: Vec<Fault>,
}

/// What TLS the stand-in speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tls {
    /// As Exchange Online: TLS 1.2 and 1.3 with ECDHE and AEAD.
    #[default]
    ExchangeOnline,
    /// As an old Exchange in the cellar: TLS 1.2 with RSA key exchange and CBC ciphers only.
    OnPremises,
    /// TLS 1.1 at most.
    TooOld,
}

/// Something that goes wrong at a stage.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Where.
    pub stage: Stage,
    /// What is said instead of the usual.
    pub reply: Option<String>,
    /// Whether nothing is said ever, on a connection that stays open until the relay closes it.
    #[serde(default)]
    pub hang: bool,
    /// Whether octets are said that are no reply.
    #[serde(default)]
    pub garbage: bool,
    /// Whether the connection is closed, after what is said if there is anything.
    #[serde(default)]
    pub close: bool,
    /// Seconds by which the answer is late.
    #[serde(default)]
    pub delay: f64,
    /// Only every so many-th time.
    #[serde(default = "one")]
    pub every: u32,
    /// Only so often; absent: always.
    pub times: Option<u32>,
    /// Only by chance, from 0 for never to 1 for always; `every` and `times` count what is left.
    #[serde(default = "always")]
    pub chance: f64,
}

/// A place in the dialogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// The greeting.
    Connect,
    /// EHLO.
    Ehlo,
    /// STARTTLS.
    Starttls,
    /// In the TLS handshake.
    Tls,
    /// The end of an AUTH exchange.
    Auth,
    /// MAIL.
    Mail,
    /// RCPT.
    Rcpt,
    /// DATA.
    Data,
    /// 32 KiB into the data.
    InData,
    /// The final dot.
    Dot,
    /// When a message was accepted: something said unasked.
    Idle,
}

/// What a fault comes to.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Deed {
    pub(super) delay: Duration,
    pub(super) words: Words,
    pub(super) close: bool,
}

/// What is said at a stage.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Words {
    /// What is always said there; nothing if the connection is closed.
    #[default]
    Usual,
    /// Another reply.
    Reply(Reply),
    /// What is no reply.
    Garbage,
    /// Nothing, ever.
    None,
}

/// A scenario that counts how often each of its faults was due.
pub(super) struct Script {
    pub(super) scenario: Scenario,
    reached: Vec<AtomicU32>,
    chance: Mutex<fastrand::Rng>,
    /// Nothing goes wrong any more.
    mended: AtomicBool,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            user: None,
            password: None,
            token: None,
            identity: None,
            implicit: false,
            tls: Tls::default(),
            starttls: true,
            auth: vec!["LOGIN".to_owned(), "XOAUTH2".to_owned()],
            hide: Vec::new(),
            size: 157_286_400,
            max_connections: None,
            messages_per_minute: None,
            keep: super::KEPT,
            seed: 0,
            faults: Vec::new(),
        }
    }
}

impl Scenario {
    /// Reads a scenario file's text; the error names the line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let scenario: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        for fault in &scenario.faults {
            if let Some(text) = &fault.reply {
                reply(text).ok_or_else(|| {
                    format!("{text:?} is no reply: write code, enhanced code and text")
                })?;
            }
            if fault.every == 0
                || !(0.0..=86_400.0).contains(&fault.delay)
                || !(0.0..=1.0).contains(&fault.chance)
            {
                return Err(
                    "every is 1 or more, delay from 0 to 86400 seconds, chance from 0 to 1"
                        .to_owned(),
                );
            }
            if [fault.reply.is_some(), fault.hang, fault.garbage]
                .into_iter()
                .filter(|on| *on)
                .count()
                > 1
            {
                return Err("reply, hang and garbage exclude each other".to_owned());
            }
        }
        Ok(scenario)
    }
}

impl Fault {
    fn words(&self) -> Words {
        match self.reply.as_deref().and_then(reply) {
            Some(reply) => Words::Reply(reply),
            None if self.garbage => Words::Garbage,
            None if self.hang => Words::None,
            None => Words::Usual,
        }
    }
}

impl Script {
    pub(super) fn new(scenario: Scenario) -> Self {
        let reached = scenario.faults.iter().map(|_| AtomicU32::new(0)).collect();
        let chance = Mutex::new(fastrand::Rng::with_seed(scenario.seed));
        Self { scenario, reached, chance, mended: AtomicBool::new(false) }
    }

    /// From now on no fault is due.
    pub(super) fn mend(&self) {
        self.mended.store(true, Ordering::SeqCst);
    }

    /// The fault that is due at a stage: the file's, else one that an address asks for.
    pub(super) fn due<'a>(
        &self,
        stage: Stage,
        addresses: impl Iterator<Item = (Stage, &'a str)>,
    ) -> Option<Deed> {
        if self.mended.load(Ordering::SeqCst) {
            return None;
        }
        let scripted = self
            .scenario
            .faults
            .iter()
            .zip(&self.reached)
            .filter(|(fault, _)| fault.stage == stage);
        for (fault, reached) in scripted {
            if fault.chance < 1.0 && self.chance() >= fault.chance {
                continue;
            }
            let count = reached.fetch_add(1, Ordering::SeqCst) + 1;
            if count % fault.every == 0
                && fault.times.is_none_or(|times| count / fault.every <= times)
            {
                return Some(Deed {
                    delay: Duration::from_secs_f64(fault.delay),
                    words: fault.words(),
                    close: fault.close,
                });
            }
        }
        addresses
            .filter_map(|(usual, address)| asked(usual, address))
            .find(|(at, _)| *at == stage)
            .map(|(_, deed)| deed)
    }

    fn chance(&self) -> f64 {
        self.chance.lock().unwrap_or_else(PoisonError::into_inner).f64()
    }
}

const fn one() -> u32 {
    1
}

const fn always() -> f64 {
    1.0
}

/// Reads `code enhanced text`.
fn reply(text: &str) -> Option<Reply> {
    let code = Code::parse(text.as_bytes().get(..3)?)?;
    let (enhanced, text) = Enhanced::split(text.get(3..)?.trim_start());
    Some(Reply { code, enhanced, lines: vec![text.to_owned()] })
}

/// What an address asks for, and where; `usual` is the stage of the command that it stands in.
fn asked(usual: Stage, address: &str) -> Option<(Stage, Deed)> {
    let local = address.rsplit_once('@').map_or(address, |(local, _)| local);
    let words: Vec<&str> = local.split('+').next()?.split('-').collect();
    match *words.as_slice() {
        ["reply", code, enhanced, ref rest @ ..] => {
            let reply = Reply {
                code: Code::parse(code.as_bytes())?,
                enhanced: Some(Enhanced::parse(enhanced)?),
                lines: vec!["scripted by the sandbox".to_owned()],
            };
            let words = Words::Reply(reply);
            Some((stage(rest).unwrap_or(usual), Deed { words, ..Deed::default() }))
        }
        ["hang", ref rest @ ..] => {
            Some((stage(rest)?, Deed { words: Words::None, ..Deed::default() }))
        }
        ["garbage", ref rest @ ..] => {
            Some((stage(rest)?, Deed { words: Words::Garbage, ..Deed::default() }))
        }
        ["close", ref rest @ ..] => Some((stage(rest)?, Deed { close: true, ..Deed::default() })),
        ["slow", ref rest @ ..] => {
            let (at, rest) =
                rest.split_at_checked(if rest.first() == Some(&"in") { 2 } else { 1 })?;
            let seconds = rest.first().and_then(|seconds| seconds.parse().ok()).unwrap_or(5.0f64);
            let delay = Duration::try_from_secs_f64(seconds).ok()?;
            Some((stage(at)?, Deed { delay, ..Deed::default() }))
        }
        _ => None,
    }
}

fn stage(words: &[&str]) -> Option<Stage> {
    Some(match *words {
        ["mail"] => Stage::Mail,
        ["rcpt"] => Stage::Rcpt,
        ["data"] | ["354"] => Stage::Data,
        ["in", "data"] => Stage::InData,
        ["dot"] | ["after", "dot"] => Stage::Dot,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(script: &Script, stage: Stage, recipient: &str) -> Option<Deed> {
        script.due(stage, std::iter::once((Stage::Rcpt, recipient)))
    }

    #[test]
    fn addresses_ask_for_faults() {
        let script = Script::new(Scenario::default());
        let said = |stage, recipient: &str| match due(&script, stage, recipient)?.words {
            Words::Reply(reply) => Some(reply.to_string()),
            words => Some(format!("{words:?}")),
        };
        assert_eq!(
            said(Stage::Rcpt, "reply-550-5.7.708@x").as_deref(),
            Some("550 5.7.708 scripted by the sandbox")
        );
        assert_eq!(said(Stage::Rcpt, "reply-432-4.3.2-dot+2@x"), None);
        assert_eq!(
            said(Stage::Dot, "reply-432-4.3.2-dot+2@x").as_deref(),
            Some("432 4.3.2 scripted by the sandbox")
        );
        assert!(due(&script, Stage::Dot, "close-after-dot@x").unwrap().close);
        assert!(due(&script, Stage::InData, "close-in-data@x").unwrap().close);
        assert_eq!(due(&script, Stage::Data, "slow-354@x").unwrap().delay, Duration::from_secs(5));
        assert_eq!(
            due(&script, Stage::Dot, "slow-dot-0.5@x").unwrap().delay,
            Duration::from_millis(500)
        );
        assert_eq!(
            due(&script, Stage::InData, "slow-in-data-2@x").unwrap().delay,
            Duration::from_secs(2)
        );
        assert_eq!(said(Stage::Dot, "hang-dot@x").as_deref(), Some("None"));
        assert_eq!(said(Stage::InData, "garbage-in-data@x").as_deref(), Some("Garbage"));
        for nothing in [
            "office@x",
            "slow@x",
            "slow-in@x",
            "hang@x",
            "garbage-tls@x",
            "reply-9-x@x",
            "close-nowhere@x",
            "slow-354--1@x",
        ] {
            assert!(
                [Stage::Rcpt, Stage::Dot]
                    .into_iter()
                    .all(|stage| due(&script, stage, nothing).is_none()),
                "{nothing}"
            );
        }
    }

    #[test]
    fn a_file_counts() {
        let text = "password = 'p'\n[[fault]]\nstage = 'dot'\nreply = '451 4.7.0 PRX4'\nevery = 2\ntimes = 2\n";
        let script = Script::new(Scenario::parse(text).unwrap());
        let times: Vec<bool> = (0..8).map(|_| due(&script, Stage::Dot, "a@b").is_some()).collect();
        assert_eq!(times, [false, true, false, true, false, false, false, false]);
        assert!(due(&script, Stage::Dot, "close-dot@x").is_some());
        script.mend();
        assert!(due(&script, Stage::Dot, "close-dot@x").is_none(), "nor what an address asks for");
        assert!(Scenario::parse("[[fault]]\nstage = 'dot'\nreply = 'no'").is_err());
        assert!(Scenario::parse("passwort = 'p'").unwrap_err().contains("passwort"));
    }

    #[test]
    fn chance_is_the_same_with_the_same_seed() {
        let times = |lines: &str| -> Vec<bool> {
            let fault = "[[fault]]\nstage = 'dot'\nreply = '451 4.7.0 PRX4'";
            let script = Script::new(Scenario::parse(&lines.replace("FAULT", fault)).unwrap());
            (0..1_000).map(|_| due(&script, Stage::Dot, "a@b").is_some()).collect()
        };
        let struck = |times: &[bool]| times.iter().filter(|struck| **struck).count();
        let one = times("seed = 1\nFAULT\nchance = 0.1");
        assert!((50..150).contains(&struck(&one)), "{}", struck(&one));
        assert_eq!(one, times("seed = 1\nFAULT\nchance = 0.1"));
        assert_ne!(one, times("seed = 2\nFAULT\nchance = 0.1"));
        assert_eq!(struck(&times("FAULT\nchance = 0.1\ntimes = 7")), 7);
        assert_eq!(struck(&times("FAULT\nchance = 0.0")), 0);
        assert_eq!(struck(&times("FAULT\nchance = 1.0")), 1_000);
        assert!(Scenario::parse("[[fault]]\nstage = 'dot'\nchance = 1.5").is_err());
    }

    #[test]
    fn a_file_says_one_thing_at_a_time() {
        let words = |lines: &str| {
            let scenario = Scenario::parse(&format!("[[fault]]\nstage = 'tls'\n{lines}"))?;
            Ok::<_, String>(due(&Script::new(scenario), Stage::Tls, "a@b").unwrap().words)
        };
        assert_eq!(words("hang = true"), Ok(Words::None));
        assert_eq!(words("garbage = true\nclose = true"), Ok(Words::Garbage));
        assert_eq!(words("close = true"), Ok(Words::Usual));
        assert!(words("hang = true\ngarbage = true").unwrap_err().contains("exclude"));
    }
}
