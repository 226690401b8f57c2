//! Why there is no token.

use std::{fmt, time::Duration};

use thiserror::Error;

use super::fault::{self, Code};

/// Why there is no token. Nothing in it is secret.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub struct TokenError {
    /// What happened.
    pub message: String,
    /// What to do, one step an item.
    pub remedy: Vec<String>,
    /// The endpoint's `error`, if it gave one.
    pub code: Option<Code>,
    /// The number of Microsoft's identity platform, if it gave one.
    pub aadsts: Option<u32>,
    /// How it ends.
    pub kind: Kind,
    /// How long the endpoint wants to be left alone.
    pub retry_after: Option<Duration>,
}

/// How a trouble ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It passes by itself.
    Passing,
    /// Somebody changes a setting, here or at the identity platform.
    Setting,
    /// Somebody mends something on this machine; looking at it costs nothing.
    Local,
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.remedy.iter().try_for_each(|step| write!(f, "; {}", uncapped(step)))
    }
}

/// A step in the middle of a line begins small, unless it begins with a name.
fn uncapped(step: &str) -> String {
    let mut chars = step.chars();
    match (chars.next(), chars.clone().next()) {
        (Some(first), Some(second)) if second.is_lowercase() || second == ' ' => {
            first.to_lowercase().chain(chars).collect()
        }
        _ => step.to_owned(),
    }
}

impl TokenError {
    /// It passes by itself.
    pub(super) fn passing(message: impl Into<String>, remedy: &str) -> Self {
        Self::new(Kind::Passing, message, remedy)
    }

    /// Somebody has to change a setting.
    pub(super) fn setting(message: impl Into<String>, remedy: &str) -> Self {
        Self::new(Kind::Setting, message, remedy)
    }

    /// Something on this machine is in the way.
    pub(super) fn local(message: impl Into<String>, remedy: &str) -> Self {
        Self::new(Kind::Local, message, remedy)
    }

    /// The endpoint has said no; `said` is what may be shown of its words.
    pub(super) fn refused(error: &str, said: &str, aadsts: Option<u32>) -> Self {
        let code = Code::parse(error);
        let (meaning, steps) = fault::advice(code, aadsts);
        let number = aadsts.map(|number| format!(", AADSTS{number}")).unwrap_or_default();
        let quoted = if said.is_empty() { String::new() } else { format!(": \"{said}\"") };
        Self {
            message: format!("no token: {meaning} ({error}{number}){quoted}"),
            remedy: steps.iter().map(|step| (*step).to_owned()).collect(),
            code: Some(code),
            aadsts,
            kind: if code.passes() { Kind::Passing } else { Kind::Setting },
            retry_after: None,
        }
    }

    fn new(kind: Kind, message: impl Into<String>, remedy: &str) -> Self {
        Self {
            message: message.into(),
            remedy: vec![remedy.to_owned()],
            code: None,
            aadsts: None,
            kind,
            retry_after: None,
        }
    }

    /// Whether it passes without anybody's help.
    pub fn is_temporary(&self) -> bool {
        self.kind == Kind::Passing
    }

    /// Whether it is about something on this machine, so that nobody was asked.
    pub fn is_local(&self) -> bool {
        self.kind == Kind::Local
    }
}
