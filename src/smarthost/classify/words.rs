//! The words of a reply, however they are written.
//!
//! [`canonical`] is what phrases are looked for in: words in lower case, one blank between them, no punctuation
//! and no codes, so that neither doubled blanks nor hyphens, line breaks or quotes matter.

use super::scan::{code_at, enhanced_at};

/// A reply's text without what Exchange appends to it, and that: host, time and session id, which
/// Microsoft's support asks for.
pub fn split_trace(text: &str) -> (&str, &str) {
    let mut rest = text.trim_end();
    if let Some((before, _)) = rest.rsplit_once(" (in reply to ") {
        rest = before;
    }
    while let Some(before) = rest
        .strip_suffix(']')
        .and_then(|inner| inner.rfind('[').map(|at| (&inner[..at], &inner[at + 1..])))
        .filter(|(_, inner)| is_trace(inner))
        .map(|(before, _)| before.trim_end())
    {
        rest = before;
    }
    (rest, text[rest.len()..].trim())
}

/// A reply without addresses and host names. Devices choose some of them, and whatever words are in a name must
/// not decide what a reply means.
pub(super) fn without_names(text: &str) -> String {
    // What Exchange writes with dots and is no host, and block lists of domains.
    const OWN: [&str; 7] = ["aka", "dbl", "queue", "resolver", "smtpsend", "storedrv", "transport"];
    let is_host = |token: &str| {
        let labels = || token.trim_end_matches(['.', ':']).split('.');
        labels().count() > 1
            && labels().all(|label| {
                !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            })
            && labels()
                .next_back()
                .is_some_and(|last| last.bytes().all(|b| b.is_ascii_alphabetic()))
            && labels().next().is_none_or(|first| !OWN.contains(&&*first.to_ascii_lowercase()))
    };
    let is_separator = |char: char| char.is_whitespace() || "<>()[]{}\"'`,;".contains(char);
    without_addresses(text)
        .split_inclusive(is_separator)
        .map(|token| {
            let word = token.trim_end_matches(is_separator);
            if is_host(word) { &token[word.len()..] } else { token }
        })
        .collect()
}

/// A text of the same length in which addresses are one word without a meaning: whatever characters a local part
/// is made of, quoted ones too (RFC 5321 section 4.1.2).
pub(super) fn without_addresses(text: &str) -> String {
    let mut out = text.as_bytes().to_vec();
    for (at, _) in text.match_indices('@') {
        // Longer than any local part or domain (RFC 5321 section 4.5.3.1), so that the work is bounded.
        let near = |end: &usize| text.is_char_boundary(*end);
        let low = (at.saturating_sub(300)..=at).find(near).unwrap_or(at);
        let high = (at + 1..=text.len().min(at + 300)).rev().find(near).unwrap_or(at + 1);
        let (before, behind) = (&text[low..at], &text[at + 1..high]);
        let from = match before.strip_suffix('"').and_then(|inside| inside.rfind('"')) {
            Some(quote) => quote,
            None => before
                .rfind(|c: char| c.is_whitespace() || "<>()[],;:".contains(c))
                .map_or(0, |end| end + before[end..].chars().next().map_or(0, char::len_utf8)),
        };
        let is_domain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-');
        let length = behind.find(|c: char| !is_domain(c)).unwrap_or(behind.len());
        if low + from < at && length > 0 {
            out[low + from..at + 1 + length].fill(b'x');
        }
    }
    // Whole characters were replaced, each by as many as it has octets.
    String::from_utf8(out).unwrap_or_default()
}

/// Words in lower case, one blank between, before and after them; no punctuation, no reply codes.
pub fn canonical(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    append_canonical(text, &mut out);
    out
}

/// Appends the canonical form of a text.
pub(super) fn append_canonical(text: &str, out: &mut String) {
    let bytes = text.as_bytes();
    let end_word = |out: &mut String| {
        if !out.ends_with(' ') {
            out.push(' ');
        }
    };
    end_word(out);
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        if byte.is_ascii_digit() && out.ends_with(' ') {
            let code = enhanced_at(bytes, at).map(|(_, end)| end);
            if let Some(end) = code.or_else(|| code_at(bytes, at).map(|(_, end)| end)) {
                at = end;
                continue;
            }
        }
        if byte.is_ascii_alphanumeric() {
            out.push(char::from(byte.to_ascii_lowercase()));
            at += 1;
        } else if byte == b'=' && soft_break(bytes, at).is_some() {
            at = soft_break(bytes, at).unwrap_or(at + 1);
        } else if byte.is_ascii() {
            end_word(out);
            // A line break that a program wrote as two characters.
            let escaped = byte == b'\\' && matches!(bytes.get(at + 1), Some(b'n' | b'r' | b't'));
            at += if escaped { 2 } else { 1 };
        } else {
            let Some(char) = text[at..].chars().next() else { break };
            if char.is_alphanumeric() {
                out.extend(char.to_lowercase());
            } else {
                end_word(out);
            }
            at += char.len_utf8();
        }
    }
    end_word(out);
}

/// The end of a quoted-printable soft line break (RFC 2045 section 6.7), which splits words in bounces.
fn soft_break(bytes: &[u8], at: usize) -> Option<usize> {
    match bytes[at + 1..] {
        [b'\n', ..] => Some(at + 2),
        [b'\r', b'\n', ..] => Some(at + 3),
        _ => None,
    }
}

/// Whether the inside of brackets is a host, a session or a route, not a part of the message.
fn is_trace(inner: &str) -> bool {
    const NAMES: [&str; 7] =
        ["Hostname=", "Name=", "AGT=", "MxId=", "Message-ID", "InternalId=", "LastAttempted"];
    let is_host = |word: &str| {
        word.contains('.') && word.bytes().all(|b| b.is_ascii_alphanumeric() || b".-".contains(&b))
    };
    let is_session = |word: &str| word.len() >= 12 && word.bytes().all(|b| b.is_ascii_hexdigit());
    NAMES.iter().any(|name| inner.contains(name))
        || inner.split(' ').next().is_some_and(|word| is_host(word) || is_session(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_the_same_however_they_are_written() {
        let words = canonical("Client does not have permissions to send as this sender");
        for text in [
            "client  DOES not\thave permissions\r\n to send as this sender.",
            "550-5.7.60 Client does not have\r\n550 5.7.60 permissions to send as this sender",
            "> Client does not have permi=\r\nssions to send as this sender",
            "Client does not have permissions\\n to send as 'this sender'",
        ] {
            assert_eq!(canonical(text), words, "{text}");
        }
        assert_eq!(canonical("N’était-ce pas Ärgerlich?"), " n était ce pas ärgerlich ");
        assert_eq!(canonical("550 5.7.1"), " ");
    }

    #[test]
    fn what_support_asks_for_is_kept_apart() {
        let (text, trace) = split_trace(
            "550 5.1.8 no [AS(42003)] [MN2PR05CA0004.namprd05.prod.outlook.com 2023-09-12T20:59:57.214Z 08DBB276B7E699C4] (in reply to MAIL FROM command)",
        );
        assert_eq!(text, "550 5.1.8 no [AS(42003)]");
        assert!(trace.starts_with("[MN2PR05CA0004") && trace.ends_with("command)"), "{trace}");
        assert_eq!(split_trace("432 4.3.2 no [Hostname=A.PROD.OUTLOOK.COM]").0, "432 4.3.2 no");
        assert_eq!(split_trace("450 4.4.317 no [Message=UntrustedRoot]").1, "");
        assert_eq!(split_trace("no [Name=Agent][AGT=PFA][MxId=11B989991C72A5F2]").0, "no");
    }

    #[test]
    fn names_that_a_device_may_choose_are_left_out() {
        for (text, left) in [
            ("<spamhaus@a.example>: user unknown", "<>: user unknown"),
            ("<spamhaus'x@a.example>: user unknown", "<>: user unknown"),
            ("<\"blocked using\"@a.example>: user unknown", "<>: user unknown"),
            ("b`locked`using@a.example user unknown", " user unknown"),
        ] {
            assert_eq!(without_names(text).replace('x', ""), left, "{text}");
        }
        let text = "550 5.1.1 <spamhaus@contoso.com>: no";
        assert_eq!(without_addresses(text).len(), text.len());
        assert_eq!(without_names("domain [security-defaults.example] fails"), "domain [] fails");
        for text in [
            "STOREDRV.Submission.Exception:X.Y; no",
            "QUEUE.Expired; no.",
            "5.7.1 no",
            "later. PRX4",
        ] {
            assert_eq!(without_names(text), text);
        }
    }
}
