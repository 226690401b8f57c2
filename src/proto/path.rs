//! Addresses and paths: read leniently from devices, written strictly.

use std::fmt;

use thiserror::Error;

use super::limits;

/// A mail address, `local-part@domain`, safe to stand between `<` and `>` of a command.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Address {
    text: String,
    at: usize,
}

/// Who gets the bounces: the argument of MAIL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReversePath {
    /// `<>`, of a notification (RFC 5321 section 4.5.5).
    Null,
    /// An address.
    Address(Address),
}

/// A recipient: the argument of RCPT.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ForwardPath {
    /// `<postmaster>` without a domain, which every server takes (RFC 5321 section 4.1.1.3).
    Postmaster,
    /// An address.
    Address(Address),
}

/// Why an address is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PathFault {
    /// No text at all, or nothing that ends the brackets.
    #[error("an address in angle brackets is missing")]
    Missing,
    /// There is no `@` with something on both sides.
    #[error("the address has no domain")]
    NoDomain,
    /// Blanks, controls or brackets outside a quoted local part.
    #[error("the address has characters that none may have")]
    Characters,
    /// Longer than [`limits::ADDRESS`].
    #[error("the address is too long")]
    TooLong,
}

impl Address {
    /// Reads `local-part@domain` without brackets.
    pub fn parse(text: &str) -> Result<Self, PathFault> {
        Ok(Self { at: at_sign(text)?, text: text.to_owned() })
    }

    /// Whether this is an address, without one.
    pub fn is(text: &str) -> bool {
        at_sign(text).is_ok()
    }

    /// The whole address.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What stands before the last `@`.
    pub fn local_part(&self) -> &str {
        &self.text[..self.at]
    }

    /// What stands behind the last `@`.
    pub fn domain(&self) -> &str {
        &self.text[self.at + 1..]
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

impl ReversePath {
    /// Whether SMTPUTF8 is needed to send it (RFC 6531 section 3.2).
    pub fn is_ascii(&self) -> bool {
        self.as_str().is_ascii()
    }

    /// The address, empty for the null path.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Null => "",
            Self::Address(address) => address.as_str(),
        }
    }
}

impl ForwardPath {
    /// Whether SMTPUTF8 is needed to send it (RFC 6531 section 3.2).
    pub fn is_ascii(&self) -> bool {
        self.as_str().is_ascii()
    }

    /// The address without brackets.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Postmaster => "postmaster",
            Self::Address(address) => address.as_str(),
        }
    }
}

/// The place of the `@` of what is an address.
fn at_sign(text: &str) -> Result<usize, PathFault> {
    if text.len() > limits::ADDRESS {
        return Err(PathFault::TooLong);
    }
    let at =
        text.rfind('@').filter(|at| *at > 0 && at + 1 < text.len()).ok_or(PathFault::NoDomain)?;
    if !valid_local_part(&text[..at]) || !valid_domain(&text[at + 1..]) {
        return Err(PathFault::Characters);
    }
    Ok(at)
}

/// Splits the argument of MAIL or RCPT (behind the colon) into its path and what follows.
///
/// Devices leave the brackets off, put blanks before them and forget the blank behind them; a source route
/// is dropped (RFC 5321 appendix C).
pub(super) fn split(argument: &str) -> Result<(&str, &str), PathFault> {
    let argument = argument.trim_start();
    let (path, rest) = match argument.strip_prefix('<') {
        Some(inner) => {
            let end = closing_bracket(inner).ok_or(PathFault::Missing)?;
            (&inner[..end], &inner[end + 1..])
        }
        None if argument.is_empty() => return Err(PathFault::Missing),
        None => argument.split_at(argument.find(char::is_whitespace).unwrap_or(argument.len())),
    };
    Ok((without_source_route(path.trim()), rest))
}

/// Reads the path of a MAIL command.
pub(super) fn reverse_path(path: &str) -> Result<ReversePath, PathFault> {
    if path.is_empty() {
        return Ok(ReversePath::Null);
    }
    Address::parse(path).map(ReversePath::Address)
}

/// Reads the path of a MAIL command whose address is not going to be used: what is none becomes one that mail gets
/// nowhere by, with as much of it as may stand there (devices.md row 24).
pub(super) fn any_reverse_path(path: &str) -> Result<ReversePath, PathFault> {
    match reverse_path(path) {
        Err(PathFault::NoDomain | PathFault::Characters) => {
            let local = path.split('@').next().unwrap_or_default();
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._+".contains(c);
            let local: String =
                local.chars().take(64).map(|c| if is_plain(c) { c } else { '_' }).collect();
            let local = if local.is_empty() { "unknown" } else { &local };
            Address::parse(&format!("{local}@localhost")).map(ReversePath::Address)
        }
        read => read,
    }
}

/// Reads the path of a RCPT command.
pub(super) fn forward_path(path: &str) -> Result<ForwardPath, PathFault> {
    if path.is_empty() {
        return Err(PathFault::Missing);
    }
    if path.eq_ignore_ascii_case("postmaster") {
        return Ok(ForwardPath::Postmaster);
    }
    Address::parse(path).map(ForwardPath::Address)
}

fn closing_bracket(inner: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    for (index, byte) in inner.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'>' if !quoted => return Some(index),
            _ => {}
        }
    }
    None
}

fn without_source_route(path: &str) -> &str {
    match path.starts_with('@').then(|| path.split_once(':')).flatten() {
        Some((_, address)) => address,
        None => path,
    }
}

fn valid_local_part(local: &str) -> bool {
    if let Some(inner) = local.strip_prefix('"') {
        return inner.len() > 1 && quoted_to_the_end(inner);
    }
    local.chars().all(|c| !c.is_control() && !c.is_whitespace() && !"<>()[],;:\\\"@".contains(c))
}

/// Whether `inner` ends its quotes at its very end (RFC 5321 section 4.1.2, Quoted-string).
fn quoted_to_the_end(inner: &str) -> bool {
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => return chars.as_str().is_empty(),
            '\\' if chars.next().is_none_or(char::is_control) => return false,
            c if c.is_control() => return false,
            _ => {}
        }
    }
    false
}

fn valid_domain(domain: &str) -> bool {
    if let Some(literal) = domain.strip_prefix('[') {
        return literal.strip_suffix(']').is_some_and(|inner| {
            !inner.is_empty()
                && inner.bytes().all(|b| b.is_ascii_alphanumeric() || b".:-".contains(&b))
        });
    }
    // Underscores and the like are wrong but seen; what may not pass is what could end or split the path.
    domain.chars().all(|c| {
        c.is_ascii_alphanumeric() || "-._".contains(c) || (!c.is_ascii() && c.is_alphanumeric())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_write_paths_in_many_ways() {
        for (argument, path, rest) in [
            ("<a@b.example>", "a@b.example", ""),
            (" <a@b.example> SIZE=5", "a@b.example", " SIZE=5"),
            ("<a@b.example>SIZE=5", "a@b.example", "SIZE=5"),
            ("a@b.example", "a@b.example", ""),
            (" a@b.example  SIZE=5", "a@b.example", "  SIZE=5"),
            ("< a@b.example >", "a@b.example", ""),
            ("<@hop.example,@next.example:a@b.example>", "a@b.example", ""),
            ("<\"odd > name\"@b.example>", "\"odd > name\"@b.example", ""),
            ("<>", "", ""),
        ] {
            assert_eq!(split(argument), Ok((path, rest)), "{argument}");
        }
        assert_eq!(split(""), Err(PathFault::Missing));
        assert_eq!(split("<a@b.example"), Err(PathFault::Missing));
    }

    #[test]
    fn an_address_cannot_hold_what_would_end_the_command() {
        for good in [
            "a@b",
            "a.b+c@d.example",
            "\"a b\"@c.example",
            "\"a\\\"b\"@c",
            "müller@bücher.example",
            "a@[192.0.2.1]",
            "a_b@c_d.example",
        ] {
            assert_eq!(Address::parse(good).map(|a| a.to_string()).as_deref(), Ok(good));
        }
        for bad in [
            "a",
            "@b",
            "a@",
            "a b@c",
            "a@b c",
            "a@b>",
            "<a@b",
            "a\r\n@b",
            "\"a\"b\"@c",
            "\"a\\\"@c",
            "\"\u{0}\"@c",
            "a@[]",
            "a@[x y]",
            "a@b@c",
        ] {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Address::parse(&format!("{}@b", "a".repeat(253))), Err(PathFault::TooLong));
    }

    #[test]
    fn only_a_recipient_may_be_postmaster_without_a_domain() {
        assert_eq!(forward_path("PostMaster"), Ok(ForwardPath::Postmaster));
        assert_eq!(reverse_path("postmaster"), Err(PathFault::NoDomain));
        assert_eq!(reverse_path(""), Ok(ReversePath::Null));
        assert_eq!(forward_path(""), Err(PathFault::Missing));
    }
}
