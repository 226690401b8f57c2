//! Commands (RFC 5321 section 4.1): read from devices, written to the smarthost.

use std::fmt;

use bytes::{BufMut, BytesMut};
use thiserror::Error;

use super::{
    limits,
    param::{self, MailParams},
    path::{self, ForwardPath, PathFault, ReversePath},
};

/// One command line.
#[derive(Clone, PartialEq, Eq)]
pub enum Command {
    /// `EHLO`; the name is what the peer says, not what it is.
    Ehlo(String),
    /// `HELO`.
    Helo(String),
    /// `STARTTLS` (RFC 3207).
    StartTls,
    /// `AUTH` (RFC 4954): mechanism in upper case, and the initial response, still in base64.
    Auth(String, Option<String>),
    /// An answer to a 334 challenge, in base64. Never parsed as a command.
    AuthResponse(String),
    /// `MAIL`.
    Mail(ReversePath, MailParams),
    /// `RCPT`.
    Rcpt(ForwardPath),
    /// `DATA`.
    Data,
    /// `RSET`.
    Rset,
    /// `NOOP`.
    Noop,
    /// `HELP`.
    Help,
    /// `VRFY`.
    Vrfy,
    /// `EXPN`.
    Expn,
    /// `QUIT`.
    Quit,
}

/// Why a line is no command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CommandFault {
    /// The verb is not one of ours.
    #[error("command not recognised")]
    Unknown,
    /// The line is longer than a command may be.
    #[error("line too long")]
    TooLong,
    /// The argument is missing, surplus or malformed.
    #[error("syntax error in the argument: {0}")]
    Argument(&'static str),
    /// The path of MAIL or RCPT.
    #[error("{0}")]
    Path(#[from] PathFault),
}

impl Command {
    /// Reads a line without its line end.
    pub fn parse(line: &[u8]) -> Result<Self, CommandFault> {
        Self::read(line, path::reverse_path)
    }

    /// The same where the sender that MAIL names is not going to be used, so that it may be anything.
    pub fn parse_any_sender(line: &[u8]) -> Result<Self, CommandFault> {
        Self::read(line, path::any_reverse_path)
    }

    fn read(
        line: &[u8],
        reverse_path: fn(&str) -> Result<ReversePath, PathFault>,
    ) -> Result<Self, CommandFault> {
        let is_auth = line.get(..5).is_some_and(|verb| verb.eq_ignore_ascii_case(b"AUTH "));
        if line.len() > limits::COMMAND_LINE && !is_auth {
            return Err(CommandFault::TooLong);
        }
        // The name behind HELO may be anything (devices.md row 16); elsewhere a bad byte is a fault of its own.
        let text = String::from_utf8_lossy(line);
        let text = text.trim_matches([' ', '\t', '\r']);
        let (verb, argument) = text.split_once([' ', '\t']).unwrap_or((text, ""));
        let argument = argument.trim_start();
        match verb.to_ascii_uppercase().as_str() {
            "EHLO" => Ok(Self::Ehlo(printable(argument))),
            "HELO" => Ok(Self::Helo(printable(argument))),
            "STARTTLS" => without_argument(Self::StartTls, argument),
            "AUTH" => auth(argument),
            "MAIL" => {
                let (path, rest) = path::split(argument_behind("FROM", argument)?)?;
                Ok(Self::Mail(reverse_path(path)?, MailParams::parse(rest)))
            }
            "RCPT" => {
                let (path, _) = path::split(argument_behind("TO", argument)?)?;
                Ok(Self::Rcpt(path::forward_path(path)?))
            }
            "DATA" => without_argument(Self::Data, argument),
            "RSET" => without_argument(Self::Rset, argument),
            "QUIT" => without_argument(Self::Quit, argument),
            "NOOP" => Ok(Self::Noop),
            "HELP" => Ok(Self::Help),
            "VRFY" => Ok(Self::Vrfy),
            "EXPN" => Ok(Self::Expn),
            _ => Err(CommandFault::Unknown),
        }
    }

    /// The parameters of a MAIL command that are ignored, without their values: those may be addresses.
    pub fn ignored(line: &[u8]) -> Vec<String> {
        let text = String::from_utf8_lossy(line);
        let argument = text.split_once(':').map_or("", |(_, argument)| argument);
        let Ok((_, rest)) = path::split(argument) else { return Vec::new() };
        let unknown = rest.split_ascii_whitespace().filter(|word| !param::is_understood(word));
        let key =
            |word: &str| word.split('=').next().unwrap_or_default().chars().take(20).collect();
        unknown.map(key).take(8).collect()
    }

    /// Writes the command in its strict form, with CR LF.
    pub fn encode(&self, out: &mut BytesMut) {
        let mut put = |parts: &[&str]| parts.iter().for_each(|part| out.put_slice(part.as_bytes()));
        match self {
            Self::Ehlo(name) => put(&["EHLO ", name]),
            Self::Helo(name) => put(&["HELO ", name]),
            Self::StartTls => put(&["STARTTLS"]),
            Self::Auth(mechanism, None) => put(&["AUTH ", mechanism]),
            Self::Auth(mechanism, Some(initial)) => put(&["AUTH ", mechanism, " ", initial]),
            Self::AuthResponse(response) => put(&[response]),
            Self::Mail(path, params) => {
                put(&["MAIL FROM:<", path.as_str(), ">"]);
                if let Some(size) = params.size {
                    put(&[" SIZE=", &size.to_string()]);
                }
                if params.eight_bit {
                    put(&[" BODY=8BITMIME"]);
                }
                if params.smtputf8 {
                    put(&[" SMTPUTF8"]);
                }
            }
            Self::Rcpt(path) => put(&["RCPT TO:<", path.as_str(), ">"]),
            Self::Data => put(&["DATA"]),
            Self::Rset => put(&["RSET"]),
            Self::Noop => put(&["NOOP"]),
            Self::Help => put(&["HELP"]),
            Self::Vrfy => put(&["VRFY"]),
            Self::Expn => put(&["EXPN"]),
            Self::Quit => put(&["QUIT"]),
        }
        out.put_slice(b"\r\n");
    }
}

impl fmt::Debug for Command {
    /// As on the wire, but for what stands behind AUTH.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auth(mechanism, None) => write!(f, "AUTH {mechanism}"),
            Self::Auth(mechanism, Some(_)) => write!(f, "AUTH {mechanism} [redacted]"),
            Self::AuthResponse(_) => f.write_str("[redacted]"),
            other => {
                let mut line = BytesMut::new();
                other.encode(&mut line);
                f.write_str(String::from_utf8_lossy(&line).trim_end())
            }
        }
    }
}

fn without_argument(command: Command, argument: &str) -> Result<Command, CommandFault> {
    if argument.is_empty() {
        Ok(command)
    } else {
        Err(CommandFault::Argument("this command takes none"))
    }
}

fn auth(argument: &str) -> Result<Command, CommandFault> {
    let mut words = argument.split_ascii_whitespace();
    let mechanism = words.next().ok_or(CommandFault::Argument("the mechanism is missing"))?;
    let initial = words.next().map(str::to_owned);
    if words.next().is_some() {
        return Err(CommandFault::Argument("one initial response at most"));
    }
    Ok(Command::Auth(mechanism.to_ascii_uppercase(), initial))
}

/// What follows `FROM:` or `TO:`; devices put blanks on either side of the colon.
fn argument_behind<'a>(keyword: &str, argument: &'a str) -> Result<&'a str, CommandFault> {
    let missing = CommandFault::Argument(if keyword == "FROM" {
        "FROM: is missing"
    } else {
        "TO: is missing"
    });
    let (word, rest) = argument.split_once(':').ok_or(missing)?;
    if !word.trim_end().eq_ignore_ascii_case(keyword) {
        return Err(missing);
    }
    if rest.contains(['\u{fffd}', '\0', '\r', '\n']) {
        return Err(CommandFault::Argument("characters that are neither ASCII nor UTF-8"));
    }
    Ok(rest)
}

/// A peer's name as it may stand in a header field: visible ASCII without what would end a comment.
fn printable(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_ascii_graphic() && !"()<>\\\"".contains(c) { c } else { '?' })
        .take(255)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Command, CommandFault> {
        Command::parse(line.as_bytes())
    }

    fn encoded(command: &Command) -> String {
        let mut out = BytesMut::new();
        command.encode(&mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn sloppy_commands_are_understood_and_written_strictly() {
        for (line, strict) in [
            ("ehlo printer", "EHLO printer\r\n"),
            ("HELO", "HELO \r\n"),
            ("EHLO b\u{fc}ro (x)", "EHLO b?ro??x?\r\n"),
            ("mail from: a@b.example", "MAIL FROM:<a@b.example>\r\n"),
            ("MAIL FROM:a@b.example  ", "MAIL FROM:<a@b.example>\r\n"),
            (
                "MAIL FROM :<a@b.example> size=10 body=8bitmime",
                "MAIL FROM:<a@b.example> SIZE=10 BODY=8BITMIME\r\n",
            ),
            ("MAIL FROM:<>", "MAIL FROM:<>\r\n"),
            ("rcpt to: <a@b.example> NOTIFY=NEVER", "RCPT TO:<a@b.example>\r\n"),
            ("data ", "DATA\r\n"),
            ("auth login", "AUTH LOGIN\r\n"),
            ("AUTH plain AGEAYg==  ", "AUTH PLAIN AGEAYg==\r\n"),
            ("quit\r", "QUIT\r\n"),
        ] {
            assert_eq!(encoded(&parse(line).unwrap()), strict, "{line}");
        }
    }

    #[test]
    fn what_mail_says_besides_is_told_without_its_values() {
        for (line, ignored) in [
            ("MAIL FROM:<a@b> SIZE=10 BODY=8BITMIME SMTPUTF8", &[][..]),
            ("MAIL FROM:<a@b>", &[]),
            ("mail from: a@b auth=<boss@b> size=", &["auth", "size"]),
            ("MAIL FROM:<a@b> RET=HDRS ENVID=x BODY=BINARYMIME", &["RET", "ENVID", "BODY"]),
        ] {
            assert_eq!(Command::ignored(line.as_bytes()), ignored, "{line}");
        }
        let many = format!("MAIL FROM:<a@b>{}", format!(" {}", "x".repeat(99)).repeat(10));
        assert_eq!(Command::ignored(many.as_bytes()), vec!["x".repeat(20); 8]);
    }

    #[test]
    fn a_sender_that_is_not_used_may_be_anything() {
        for (line, strict) in [
            ("MAIL FROM:<copier>", "MAIL FROM:<copier@localhost>\r\n"),
            ("MAIL FROM: copier SIZE=10", "MAIL FROM:<copier@localhost> SIZE=10\r\n"),
            ("MAIL FROM:<copier@>", "MAIL FROM:<copier@localhost>\r\n"),
            ("MAIL FROM:<@printer>", "MAIL FROM:<unknown@localhost>\r\n"),
            ("MAIL FROM:<copier 3@b.example>", "MAIL FROM:<copier_3@localhost>\r\n"),
            ("MAIL FROM:<b\u{fc}ro>", "MAIL FROM:<b_ro@localhost>\r\n"),
            ("MAIL FROM:<a@b.example>", "MAIL FROM:<a@b.example>\r\n"),
            ("MAIL FROM:<>", "MAIL FROM:<>\r\n"),
        ] {
            let command = Command::parse_any_sender(line.as_bytes()).unwrap();
            assert_eq!(encoded(&command), strict, "{line}");
        }
        for bad in ["MAIL FROM:", "MAIL FROM:<copier", "RCPT TO:<copier>"] {
            assert!(Command::parse_any_sender(bad.as_bytes()).is_err(), "{bad}");
        }
        let long = format!("MAIL FROM:<{}@b>", "x".repeat(300));
        let fault = Command::parse_any_sender(long.as_bytes());
        assert_eq!(fault, Err(CommandFault::Path(PathFault::TooLong)));
    }

    #[test]
    fn faults_are_told_apart() {
        assert_eq!(parse("\u{1}\u{2}GARBAGE"), Err(CommandFault::Unknown));
        assert_eq!(parse(""), Err(CommandFault::Unknown));
        assert_eq!(parse("MAIL a@b"), Err(CommandFault::Argument("FROM: is missing")));
        assert_eq!(parse("RCPT FROM:<a@b>"), Err(CommandFault::Argument("TO: is missing")));
        assert_eq!(parse("MAIL FROM:"), Err(CommandFault::Path(PathFault::Missing)));
        assert_eq!(parse("RCPT TO:<a>"), Err(CommandFault::Path(PathFault::NoDomain)));
        assert_eq!(parse("AUTH"), Err(CommandFault::Argument("the mechanism is missing")));
        assert_eq!(parse("DATA now"), Err(CommandFault::Argument("this command takes none")));
        assert_eq!(
            Command::parse(b"MAIL FROM:<\xff@b>"),
            Err(CommandFault::Argument("characters that are neither ASCII nor UTF-8"))
        );
        assert_eq!(
            Command::parse(b"MAIL FROM:<a\0@b>"),
            Err(CommandFault::Argument("characters that are neither ASCII nor UTF-8"))
        );
        assert_eq!(parse(&format!("NOOP {}", "x".repeat(3_000))), Err(CommandFault::TooLong));
        assert!(parse(&format!("AUTH XOAUTH2 {}", "x".repeat(3_000))).is_ok());
    }

    #[test]
    fn debug_never_shows_a_login() {
        assert_eq!(
            format!("{:?}", Command::Auth("PLAIN".into(), Some("c2VjcmV0".into()))),
            "AUTH PLAIN [redacted]"
        );
        assert_eq!(format!("{:?}", Command::AuthResponse("c2VjcmV0".into())), "[redacted]");
        assert_eq!(format!("{:?}", Command::Quit), "QUIT");
    }
}
