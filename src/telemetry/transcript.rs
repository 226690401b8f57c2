//! What was said in a session, on both sides, for whoever has to find out why a message failed.
//!
//! Never in it: credentials, and what stands in messages. Commands are written as they were understood, AUTH
//! without what follows it, mail data as a count. Bounded for each session and in all.

use std::{
    collections::VecDeque,
    fmt::Display,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::time::Instant;

use crate::proto::command::{Command, CommandFault};

/// Octets of a session's dialogue; the oldest lines go.
const SESSION: usize = 4 * 1024;
/// Characters of a line.
const LINE: usize = 300;
/// Transcripts that are kept; the oldest go.
const KEPT: usize = 200;

/// Which sessions are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// None; nothing is written down at all.
    Off,
    /// Those in which something failed.
    #[default]
    Failed,
    /// Every transaction.
    All,
}

/// The transcripts that are kept, the youngest last.
#[derive(Debug)]
pub struct Transcripts {
    keep: Keep,
    kept: Mutex<VecDeque<Kept>>,
}

/// A dialogue that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The id of its log line.
    pub id: String,
    /// When it was put here.
    pub time: jiff::Timestamp,
    /// Seconds since its first line, who speaks, and what.
    pub lines: Vec<String>,
}

/// A dialogue that goes on. Clones write into the same one.
#[derive(Clone, Debug, Default)]
pub struct Transcript(Option<Arc<Mutex<Dialogue>>>);

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Voice {
    /// The device, to us.
    Device,
    /// We, to the device.
    ToDevice,
    /// The smarthost, to us.
    Smarthost,
    /// We, to the smarthost.
    ToSmarthost,
    /// Nobody: something that happened.
    Note,
}

#[derive(Debug)]
struct Dialogue {
    began: Instant,
    lines: VecDeque<String>,
    octets: usize,
    forgotten: usize,
}

impl Transcripts {
    /// Keeps what it is told to.
    pub fn new(keep: Keep) -> Arc<Self> {
        Arc::new(Self { keep, kept: Mutex::default() })
    }

    /// A dialogue begins.
    pub fn begin(&self) -> Transcript {
        let dialogue =
            || Dialogue { began: Instant::now(), lines: VecDeque::new(), octets: 0, forgotten: 0 };
        Transcript((self.keep != Keep::Off).then(|| Arc::new(Mutex::new(dialogue()))))
    }

    /// Keeps a dialogue as it is now, if it is one of those to keep.
    pub fn keep(&self, id: &str, transcript: &Transcript, failed: bool) {
        let wanted = match self.keep {
            Keep::Off => false,
            Keep::Failed => failed,
            Keep::All => true,
        };
        let Some(lines) = transcript.lines().filter(|_| wanted) else { return };
        let mut kept = self.kept();
        kept.push_back(Kept { id: id.to_owned(), time: jiff::Timestamp::now(), lines });
        if kept.len() > KEPT {
            kept.pop_front();
        }
    }

    /// What is kept, the youngest first; `id` is that of a transaction or of its session.
    pub fn find(&self, id: Option<&str>) -> Vec<Kept> {
        let is_meant = |kept: &&Kept| {
            id.is_none_or(|id| {
                kept.id
                    .strip_prefix(id)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            })
        };
        self.kept().iter().rev().filter(is_meant).cloned().collect()
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transcript {
    /// Writes down what somebody says. A reply of several lines is one line here.
    pub fn say(&self, voice: Voice, what: impl Display) {
        let Some(dialogue) = &self.0 else { return };
        let mut dialogue = dialogue.lock().unwrap_or_else(PoisonError::into_inner);
        let who = match voice {
            Voice::Device => "device >",
            Voice::ToDevice => "device <",
            Voice::Smarthost => "smarthost <",
            Voice::ToSmarthost => "smarthost >",
            Voice::Note => "*",
        };
        let what: String = what
            .to_string()
            .trim_end()
            .chars()
            .take(LINE)
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        let line = format!("{:.3} {who} {what}", dialogue.began.elapsed().as_secs_f32());
        dialogue.octets += line.len();
        dialogue.lines.push_back(line);
        while dialogue.octets > SESSION {
            let Some(oldest) = dialogue.lines.pop_front() else { break };
            dialogue.octets -= oldest.len();
            dialogue.forgotten += 1;
        }
    }

    /// Writes down a line of the device outside mail data. What is no command may be anything, a password too,
    /// and in `secret` places it is one: only its length is told.
    pub fn device_line(&self, line: &[u8], secret: bool) {
        if self.0.is_none() {
            return;
        }
        let length = || format!("(no command, {} octets)", line.len());
        let said = match Command::parse(line) {
            _ if secret => "[redacted]".to_owned(),
            Ok(command) => format!("{command:?}"),
            // How a device writes addresses is what the operator wants to see.
            Err(CommandFault::Path(_) | CommandFault::Argument(_)) if names_a_path(line) => {
                String::from_utf8_lossy(line).into_owned()
            }
            Err(_) => length(),
        };
        self.say(Voice::Device, said);
    }

    /// All that was said, a line each.
    pub fn text(&self) -> String {
        self.lines().unwrap_or_default().join("\n")
    }

    fn lines(&self) -> Option<Vec<String>> {
        let dialogue = self.0.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        let left_out = (dialogue.forgotten > 0)
            .then(|| format!("({} earlier lines are left out)", dialogue.forgotten));
        Some(left_out.into_iter().chain(dialogue.lines.iter().cloned()).collect())
    }
}

fn names_a_path(line: &[u8]) -> bool {
    let verb = line.get(..5).unwrap_or_default();
    verb.eq_ignore_ascii_case(b"MAIL ") || verb.eq_ignore_ascii_case(b"RCPT ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(transcripts: &Transcripts, id: &str) -> String {
        let kept = transcripts.find(Some(id));
        let said = |line: &String| line.split_once(' ').unwrap().1.to_owned();
        kept.iter().flat_map(|kept| &kept.lines).map(said).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn secrets_and_mail_data_do_not_get_in() {
        let transcripts = Transcripts::new(Keep::Failed);
        let transcript = transcripts.begin();
        for (line, secret) in [
            ("EHLO copier", false),
            ("AUTH PLAIN AHNjYW4AZ2VoZWlt", false),
            ("AUTH LOGIN c2Nhbg== surplus", false),
            ("Z2VoZWlt", true),
            ("Z2VoZWlt", false),
            ("MAIL FROM: scan er@example.com", false),
            ("Subject: wages", false),
            ("HELP wages", false),
            ("DATA wages", false),
        ] {
            transcript.device_line(line.as_bytes(), secret);
        }
        transcripts.keep("k3.1", &transcript, true);
        assert_eq!(
            said(&transcripts, "k3"),
            "device > EHLO copier\n\
             device > AUTH PLAIN [redacted]\n\
             device > (no command, 27 octets)\n\
             device > [redacted]\n\
             device > (no command, 8 octets)\n\
             device > MAIL FROM: scan er@example.com\n\
             device > (no command, 14 octets)\n\
             device > HELP\n\
             device > (no command, 10 octets)"
        );
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let transcripts = Transcripts::new(Keep::All);
        let transcript = transcripts.begin();
        for number in 0..1_000 {
            transcript.say(Voice::ToDevice, format!("250 {number}\r\n{}", "x".repeat(1_000)));
        }
        for number in 0..KEPT + 10 {
            transcripts.keep(&format!("k{number}.1"), &transcript, false);
        }
        let kept = transcripts.find(None);
        assert_eq!((kept.len(), kept[0].id.as_str()), (KEPT, "k209.1"));
        let octets: usize = kept[0].lines.iter().map(String::len).sum();
        assert!(octets < SESSION + 100, "{octets}");
        assert!(kept[0].lines[0].ends_with(" earlier lines are left out)"), "{:?}", kept[0].lines);
        assert!(kept[0].lines.last().unwrap().contains("device < 250 999  xxx"));
    }

    #[test]
    fn each_setting_keeps_its_own() {
        for (keep, kept) in [(Keep::Off, [0, 0]), (Keep::Failed, [0, 1]), (Keep::All, [1, 1])] {
            let transcripts = Transcripts::new(keep);
            let transcript = transcripts.begin();
            transcript.say(Voice::Note, "hello");
            transcripts.keep("good.1", &transcript, false);
            transcripts.keep("bad.1", &transcript, true);
            let count = |id| transcripts.find(Some(id)).len();
            assert_eq!([count("good"), count("bad.1")], kept, "{keep:?}");
            assert_eq!((count("ba"), count("bad.11")), (0, 0));
        }
    }
}
