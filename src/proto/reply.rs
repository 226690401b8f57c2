//! Replies (RFC 5321 section 4.2) with enhanced codes (RFC 2034, 3463).

use std::fmt;

use bytes::{BufMut, BytesMut};
use thiserror::Error;

use super::limits;

/// A reply code, 200 to 599.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Code(u16);

/// An enhanced status code, `class.subject.detail` (RFC 3463).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Enhanced(pub u8, pub u16, pub u16);

/// A reply: code, enhanced code and text are three fields, never one string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The three digits.
    pub code: Code,
    /// The enhanced code, where there is one.
    pub enhanced: Option<Enhanced>,
    /// The text, one item a line, at least one.
    pub lines: Vec<String>,
}

/// Bytes from the smarthost that are no reply.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ReplyFault {
    /// The line does not begin with a code.
    #[error("not a reply: {0:?}")]
    Malformed(String),
    /// The lines of a multi-line reply differ in their code (RFC 5321 section 4.2.1).
    #[error("lines of one reply differ in their code")]
    CodesDiffer,
    /// A line without end, or lines without end.
    #[error("the reply is longer than any reply may be")]
    TooLong,
}

/// Puts the lines of a reply together.
#[derive(Debug, Default)]
pub struct ReplyLines {
    partial: Option<Reply>,
}

impl Code {
    /// `number` must lie between 200 and 599.
    pub const fn new(number: u16) -> Self {
        assert!(number >= 200 && number < 600, "a reply code has three digits, the first 2 to 5");
        Self(number)
    }

    /// Reads three digits; the first is 2 to 5.
    pub fn parse(digits: &[u8]) -> Option<Self> {
        let [a @ b'2'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9'] = *digits else { return None };
        Some(Self(u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0')))
    }

    /// The number.
    pub const fn get(self) -> u16 {
        self.0
    }

    /// 2xx.
    pub const fn is_positive(self) -> bool {
        self.0 < 300
    }

    /// 4xx.
    pub const fn is_transient(self) -> bool {
        self.0 >= 400 && self.0 < 500
    }

    /// 5xx.
    pub const fn is_permanent(self) -> bool {
        self.0 >= 500
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:03}", self.0)
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Enhanced {
    /// Splits a leading enhanced code from a reply's text.
    pub fn split(text: &str) -> (Option<Self>, &str) {
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        match Self::parse(word) {
            Some(enhanced) => (Some(enhanced), rest),
            None => (None, text),
        }
    }

    /// Reads `class.subject.detail`.
    pub fn parse(word: &str) -> Option<Self> {
        let mut parts = word.split('.');
        let (class, subject, detail) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() || !matches!(class, "2" | "4" | "5") {
            return None;
        }
        let number = |part: &str| -> Option<u16> {
            let digits =
                !part.is_empty() && part.len() <= 3 && part.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| part.parse().ok()).flatten()
        };
        Some(Self(class.parse().ok()?, number(subject)?, number(detail)?))
    }
}

impl fmt::Display for Enhanced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl fmt::Debug for Enhanced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Reply {
    /// A reply of one line.
    pub fn new(code: u16, enhanced: impl Into<Option<Enhanced>>, text: impl Into<String>) -> Self {
        Self { code: Code::new(code), enhanced: enhanced.into(), lines: vec![text.into()] }
    }

    /// The lines as one text.
    pub fn text(&self) -> String {
        self.lines.join(" ")
    }

    /// Writes the reply with CR LF after each line.
    pub fn encode(&self, out: &mut BytesMut) {
        for (index, line) in self.lines.iter().enumerate() {
            let separator = if index + 1 < self.lines.len() { '-' } else { ' ' };
            out.put_slice(format!("{}{separator}", self.code).as_bytes());
            if let Some(enhanced) = self.enhanced {
                out.put_slice(format!("{enhanced} ").as_bytes());
            }
            out.put_slice(line.as_bytes());
            out.put_slice(b"\r\n");
        }
    }
}

impl fmt::Display for Reply {
    /// One line: code, enhanced code, text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if let Some(enhanced) = self.enhanced {
            write!(f, " {enhanced}")?;
        }
        write!(f, " {}", self.text())
    }
}

impl ReplyLines {
    /// Takes a line without its line end; returns the reply when this was its last.
    pub fn push(&mut self, line: &[u8]) -> Result<Option<Reply>, ReplyFault> {
        let malformed = || {
            ReplyFault::Malformed(String::from_utf8_lossy(&line[..line.len().min(80)]).into_owned())
        };
        let code = line.get(..3).and_then(Code::parse).ok_or_else(malformed)?;
        let last = match line.get(3) {
            Some(b'-') => false,
            Some(b' ') | None => true,
            Some(_) => return Err(malformed()),
        };
        let text = String::from_utf8_lossy(line.get(4..).unwrap_or_default());
        // RFC 5321 section 4.2 allows none; in a log they could show what nobody said.
        let text = text.replace(char::is_control, " ");
        let (enhanced, rest) = Enhanced::split(&text);
        let reply = self.partial.get_or_insert_with(|| Reply { code, enhanced, lines: Vec::new() });
        // A line with an enhanced code of its own keeps it as text.
        let text = if enhanced == reply.enhanced { rest } else { &text };
        if reply.code != code {
            return Err(ReplyFault::CodesDiffer);
        }
        if reply.lines.len() == limits::REPLY_LINES {
            return Err(ReplyFault::TooLong);
        }
        reply.lines.push(text.to_owned());
        Ok(if last { self.partial.take() } else { None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Result<Option<Reply>, ReplyFault> {
        let mut reader = ReplyLines::default();
        for line in &lines[..lines.len() - 1] {
            assert_eq!(reader.push(line.as_bytes())?, None);
        }
        reader.push(lines[lines.len() - 1].as_bytes())
    }

    fn written(reply: &Reply) -> String {
        let mut out = BytesMut::new();
        reply.encode(&mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn what_exchange_online_says_is_read_into_three_fields() {
        let reply =
            read(&["535 5.7.139 Authentication unsuccessful, basic authentication is disabled."])
                .unwrap()
                .unwrap();
        assert_eq!((reply.code.get(), reply.enhanced), (535, Some(Enhanced(5, 7, 139))));
        assert_eq!(reply.text(), "Authentication unsuccessful, basic authentication is disabled.");
        let reply = read(&["250-relay Hello [192.0.2.1]", "250-SIZE 157286400", "250 SMTPUTF8"])
            .unwrap()
            .unwrap();
        assert_eq!(reply.lines, ["relay Hello [192.0.2.1]", "SIZE 157286400", "SMTPUTF8"]);
        let reply = read(&["550-5.1.1 a", "550-5.7.1 b", "550 c"]).unwrap().unwrap();
        assert_eq!(reply.to_string(), "550 5.1.1 a 5.7.1 b c");
        let reply = read(&["250 a\0b\r\u{1b}[2J\u{85}c\td"]).unwrap().unwrap();
        assert_eq!(reply.text(), "a b  [2J c d", "controls are blanks");
        assert_eq!(read(&["334 "]).unwrap().unwrap().text(), "");
        assert_eq!(read(&["354"]).unwrap().unwrap().text(), "");
    }

    #[test]
    fn garbage_is_no_reply() {
        for line in ["", "25", "100 no", "600 no", "2x0 no", "250_no", "HTTP/1.1 400 Bad Request"] {
            assert!(matches!(read(&[line]), Err(ReplyFault::Malformed(_))), "{line}");
        }
        assert_eq!(read(&["250-a", "251 b"]), Err(ReplyFault::CodesDiffer));
        let mut endless = ReplyLines::default();
        let fault = (0..1_000).find_map(|_| endless.push(b"250-more").err());
        assert_eq!(fault, Some(ReplyFault::TooLong));
    }

    #[test]
    fn each_line_carries_code_and_enhanced_code() {
        let mut reply = Reply::new(550, Enhanced(5, 1, 1), "no such user");
        assert_eq!(written(&reply), "550 5.1.1 no such user\r\n");
        reply.lines.push("ask the help desk".into());
        assert_eq!(written(&reply), "550-5.1.1 no such user\r\n550 5.1.1 ask the help desk\r\n");
        assert_eq!(written(&Reply::new(334, None, "VXNlcm5hbWU6")), "334 VXNlcm5hbWU6\r\n");
    }

    #[test]
    fn enhanced_codes_are_not_guessed() {
        assert_eq!(Enhanced::parse("5.7.708"), Some(Enhanced(5, 7, 708)));
        for no in ["3.1.1", "5.7", "5.7.1.2", "5..1", "5.7.1234", "a.b.c", "5.7.+1"] {
            assert_eq!(Enhanced::parse(no), None, "{no}");
        }
    }
}
