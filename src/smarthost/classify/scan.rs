//! Finds the codes of a reply in whatever people paste: a printer's panel, an event log, a bounce, a stack trace.
//!
//! A [`Scan`] holds them, and where the reply begins, since what programs write in front of it ("Mailbox
//! unavailable. The server response was:") is not the server's. [`words`](super::words) has the rest.

use crate::proto::reply::{Code, Enhanced};

/// As much of a text as is looked at. A reply has a few hundred octets, a bounce some thousand.
pub const LIMIT: usize = 64 * 1024;

/// What is known of a reply besides its words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// The reply code.
    pub code: Option<Code>,
    /// The enhanced code.
    pub enhanced: Option<Enhanced>,
    /// The octet at which the reply begins; 0 if no code was found.
    pub start: usize,
    /// Whether lines of one reply differ in their code (RFC 5321 section 4.2.1).
    pub garbled: bool,
}

/// As far as is looked around a code, so that a text of nothing but codes takes no longer than another.
const LOOK: usize = 48;

/// A reply code or an enhanced code in a text, and how likely it is one.
#[derive(Clone, Copy)]
struct Candidate<T> {
    value: T,
    at: usize,
    score: u8,
}

/// Cuts a text to [`LIMIT`] octets.
pub fn capped(text: &str) -> &str {
    let boundary = (0..=LIMIT.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    &text[..boundary.unwrap_or(0)]
}

/// Looks for a reply in a text.
pub fn scan(text: &str) -> Scan {
    let bytes = text.as_bytes();
    let mut code: Option<Candidate<(Code, Option<Enhanced>)>> = None;
    let mut enhanced: Option<Candidate<Enhanced>> = None;
    let mut at = 0;
    while at < bytes.len() {
        if !bytes[at].is_ascii_digit() {
            at += 1;
        } else if let Some((value, end)) = enhanced_at(bytes, at) {
            keep_better(
                &mut enhanced,
                Candidate { value, at, score: enhanced_score(bytes, at, end) },
            );
            at = end;
        } else if let Some((value, end)) = code_at(bytes, at) {
            let next = enhanced_after(bytes, end);
            if let Some(score) = code_score(bytes, at, end, value, next.is_some()) {
                keep_better(&mut code, Candidate { value: (value, next), at, score });
            }
            at = end;
        } else {
            while bytes.get(at).is_some_and(u8::is_ascii_digit) {
                at += 1;
            }
        }
    }
    let enhanced = enhanced.filter(|found| found.score > 0);
    match (code, enhanced) {
        (Some(Candidate { value: (code, Some(enhanced)), at, .. }), _) => {
            Scan { code: Some(code), enhanced: Some(enhanced), start: at, garbled: garbled(text) }
        }
        (Some(Candidate { value: (code, None), at, .. }), enhanced) => {
            // A code of another class belongs to something else, such as a program's version.
            let enhanced = enhanced.filter(|found| u16::from(found.value.0) == code.get() / 100);
            Scan {
                code: Some(code),
                enhanced: enhanced.map(|found| found.value),
                start: enhanced.map_or(at, |found| at.min(found.at)),
                garbled: garbled(text),
            }
        }
        (None, Some(found)) => {
            Scan { enhanced: Some(found.value), start: found.at, ..Scan::default() }
        }
        (None, None) => Scan::default(),
    }
}

/// The part of a reply that begins with another reply: `530 5.7.57 … Error: 535 5.7.139 …`.
pub fn embedded(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if !bytes[at].is_ascii_digit() {
            at += 1;
            continue;
        }
        match code_at(bytes, at) {
            Some((code, end)) if code.get() >= 400 && enhanced_after(bytes, end).is_some() => {
                return Some(&text[at..]);
            }
            Some((_, end)) => at = end,
            None => {
                while bytes.get(at).is_some_and(u8::is_ascii_digit) {
                    at += 1;
                }
            }
        }
    }
    None
}

/// Reads `class.subject.detail` that is no part of a version, an address or a longer number.
pub(super) fn enhanced_at(bytes: &[u8], at: usize) -> Option<(Enhanced, usize)> {
    if !matches!(bytes[at], b'2' | b'4' | b'5') || bytes.get(at + 1) != Some(&b'.') {
        return None;
    }
    if at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || b"./".contains(&bytes[at - 1])) {
        return None;
    }
    let number = |from: usize| {
        let digits = bytes[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        (1..=3).contains(&digits).then_some(from + digits)
    };
    let subject_end = number(at + 2)?;
    if bytes.get(subject_end) != Some(&b'.') {
        return None;
    }
    let end = number(subject_end + 1)?;
    let goes_on = match bytes.get(end) {
        Some(b'.') => bytes.get(end + 1).is_some_and(u8::is_ascii_digit),
        Some(byte) => byte.is_ascii_alphabetic(),
        None => false,
    };
    let text = std::str::from_utf8(&bytes[at..end]).ok()?;
    (!goes_on).then_some((Enhanced::parse(text)?, end))
}

/// Reads three digits that are no part of a longer number, an address or a time.
pub(super) fn code_at(bytes: &[u8], at: usize) -> Option<(Code, usize)> {
    let end = at + 3;
    let code = Code::parse(bytes.get(at..end)?)?;
    let before = at.checked_sub(1).map(|at| bytes[at]);
    let starts = before.is_none_or(|byte| !byte.is_ascii_alphanumeric() && !b"._/".contains(&byte));
    let ends = match bytes.get(end) {
        Some(b'.') => !bytes.get(end + 1).is_some_and(u8::is_ascii_digit),
        Some(byte) => !byte.is_ascii_alphanumeric() && *byte != b'_',
        None => true,
    };
    // Ports, and what RFC 5321 and its kin know of 2xx and 3xx.
    let known = match code.get() {
        465 | 587 => false,
        200..=399 => matches!(code.get(), 211 | 214 | 220 | 221 | 235 | 250..=252 | 334 | 354),
        _ => true,
    };
    (starts && ends && known).then_some((code, end))
}

/// The enhanced code that stands right after a reply code: `550 5.7.60`, `550-5.7.60`, `(550, b'5.7.60`.
fn enhanced_after(bytes: &[u8], end: usize) -> Option<Enhanced> {
    let gap = bytes[end..]
        .iter()
        .take(12)
        .take_while(|byte| byte.is_ascii_whitespace() || b"-,:;#'\"(`*b".contains(byte))
        .count();
    let at = end + gap;
    (gap > 0 && at < bytes.len()).then(|| enhanced_at(bytes, at)).flatten().map(|(code, _)| code)
}

/// How likely three digits are a reply code; `None` if hardly.
fn code_score(bytes: &[u8], at: usize, end: usize, code: Code, with_enhanced: bool) -> Option<u8> {
    let failing = code.get() >= 400;
    let introduced = is_introduced(bytes, at);
    let words_follow = match bytes.get(end) {
        Some(b' ' | b'-') => bytes[end + 1..]
            .iter()
            .take(LOOK)
            .find(|byte| **byte != b' ')
            .is_some_and(|byte| !byte.is_ascii_punctuation() && !byte.is_ascii_digit()),
        None => true,
        _ => false,
    };
    let score = 4 * u8::from(with_enhanced)
        + 2 * u8::from(introduced)
        + 2 * u8::from(failing)
        + u8::from(words_follow);
    let enough = if failing { score > 2 } else { with_enhanced || introduced };
    enough.then_some(score)
}

fn enhanced_score(bytes: &[u8], at: usize, end: usize) -> u8 {
    let words_follow = bytes.get(end).is_none_or(|byte| !byte.is_ascii_digit())
        && bytes[end..]
            .iter()
            .take(LOOK)
            .find(|byte| !byte.is_ascii_whitespace() && !b"'\".,:;-*#[(<".contains(byte))
            .is_none_or(|byte| byte.is_ascii_alphabetic() || !byte.is_ascii());
    2 * u8::from(is_introduced(bytes, at)) + u8::from(words_follow)
}

/// Whether a line begins here, or a word that programs put in front of a reply stands before it.
fn is_introduced(bytes: &[u8], at: usize) -> bool {
    const WORDS: [&[u8]; 8] = [b"s", b"is", b"was", b"war", b"got", b"led", b"dsn", b"err"];
    const ENDS: [&[u8]; 12] = [
        b"said",
        b"returned",
        b"response",
        b"code",
        b"status",
        b"stat",
        b"error",
        b"reply",
        b"smtp",
        b"failed",
        b"message",
        b"detail",
    ];
    let before = &bytes[at.saturating_sub(LOOK)..at];
    let line = before.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    let end = line.iter().rposition(u8::is_ascii_alphanumeric).map_or(0, |at| at + 1);
    let start = line[..end].iter().rposition(|byte| !byte.is_ascii_alphanumeric());
    let word = line[start.map_or(0, |at| at + 1)..end].to_ascii_lowercase();
    let near = line.len() - end <= 8;
    word.is_empty()
        || near && (WORDS.contains(&&word[..]) || ENDS.iter().any(|known| word.ends_with(known)))
}

fn keep_better<T: PartialEq>(best: &mut Option<Candidate<T>>, candidate: Candidate<T>) {
    match best {
        // The same code again: another line of the same reply.
        Some(best) if best.value == candidate.value => best.score = best.score.max(candidate.score),
        Some(best) if best.score >= candidate.score => {}
        _ => *best = Some(candidate),
    }
}

/// Whether a continued line of a reply is followed by one with another failing code. A transcript goes from
/// 250- to 535 without being wrong.
fn garbled(text: &str) -> bool {
    let code = |line: &str| {
        let line = line.trim_start();
        let code = line.as_bytes().get(..3).and_then(Code::parse)?;
        Some((code, line.as_bytes().get(3).copied()))
    };
    text.lines().zip(text.lines().skip(1)).any(|(line, next)| match (code(line), code(next)) {
        (Some((one, Some(b'-'))), Some((other, _))) => {
            one != other && one.get() >= 400 && other.get() >= 400
        }
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> (u16, String) {
        let scan = scan(text);
        let enhanced = scan.enhanced.map(|enhanced| enhanced.to_string());
        (scan.code.map_or(0, Code::get), enhanced.unwrap_or_default())
    }

    #[test]
    fn codes_are_found_in_whatever_stands_around_them() {
        for (text, code, enhanced) in [
            ("550 5.7.60 SMTP; no", 550, "5.7.60"),
            ("550-5.7.60 no", 550, "5.7.60"),
            ("451- 4.7.652 slow down", 451, "4.7.652"),
            ("smtp;550 5.1.1 no", 550, "5.1.1"),
            ("#550 5.2.3 too large ##", 550, "5.2.3"),
            ("(535, b'5.7.139 no')", 535, "5.7.139"),
            ("with code 554 (5.6.211) 'no'", 554, "5.6.211"),
            ("535: 5.7.3 no", 535, "5.7.3"),
            ("报504 5.7.4 no", 504, "5.7.4"),
            ("said: 530\n5.7.0\n    no", 530, "5.7.0"),
            ("S: 334 \r\nC: x\r\nS: 535 5.7.3 no", 535, "5.7.3"),
            ("334 VXNlcm5hbWU6 535 5.7.3 no", 535, "5.7.3"),
            ("responseCode: 535", 535, ""),
            ("the printer shows 550 User unknown", 550, ""),
            ("Detail: 5.7.60 no\nSMTP code: 550", 550, "5.7.60"),
            ("dsn=5.7.57, status=bounced (host x[192.0.2.1] said: 530 5.7.57 no", 530, "5.7.57"),
            ("The server response was: 4.4.2 no", 0, "4.4.2"),
            ("554 5.6.0 no 1.36674:0A000000, 4.21921:DC040000, 255.1494:05", 554, "5.6.0"),
        ] {
            assert_eq!(found(text), (code, enhanced.to_owned()), "{text}");
        }
    }

    #[test]
    fn other_numbers_are_no_codes() {
        for text in [
            "",
            "587",
            "smtp.office365.com:587",
            "nodemailer/5.0.1",
            "v5.7.1",
            "192.0.2.250 250.1.2.3",
            "5.7.1.2",
            "15.7.1",
            "5.7.1234",
            "delay=550, delays=4.1/0/0.5",
            "at line 254",
            "index.js:550:19",
            "0x550",
            "5509",
        ] {
            assert_eq!(found(text), (0, String::new()), "{text}");
        }
    }

    #[test]
    fn lines_that_contradict_each_other_are_seen() {
        assert!(scan("550-5.7.1 a\r\n451 4.7.0 b").garbled);
        assert!(!scan("550-5.7.1 a\r\n550 5.7.1 b").garbled);
        assert!(!scan("250-CHUNKING\r\n535 5.7.3 no").garbled, "a transcript");
    }
}
