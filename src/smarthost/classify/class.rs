//! The three words of a verdict: what kind of trouble, whether it passes, how far it reaches.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What kind of trouble a reply is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// It will never work like this; faults of the protocol are among these.
    Permanent,
    /// It passes by itself.
    Transient,
    /// A limit was reached.
    Throttling,
    /// The login, or what it may do, has to be set up.
    AuthConfig,
    /// The mailbox may not send as this sender.
    SenderPermission,
    /// It is about a recipient.
    Recipient,
    /// The message is built wrongly.
    Content,
    /// The message is too large.
    Size,
    /// Encryption.
    Tls,
    /// Somebody's rules forbid it.
    Policy,
    /// The service's own state; positive replies are among these.
    Service,
}

/// Whether trying again helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Retry {
    /// Wait and try again.
    Yes,
    /// It will not help.
    No,
    /// Somebody has to change a setting first; the mail is kept meanwhile.
    AfterConfig,
}

/// What a reply speaks of, and so what it may stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// One recipient.
    Recipient,
    /// One message.
    Message,
    /// One sender's address at this mailbox.
    Sender,
    /// One connection.
    Connection,
    /// All that the mailbox sends.
    Mailbox,
    /// All that logs in with this name and secret.
    Credential,
    /// All that goes to this smarthost.
    Smarthost,
}

impl Class {
    /// The name in files, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Permanent => "permanent",
            Self::Transient => "transient",
            Self::Throttling => "throttling",
            Self::AuthConfig => "auth-config",
            Self::SenderPermission => "sender-permission",
            Self::Recipient => "recipient",
            Self::Content => "content",
            Self::Size => "size",
            Self::Tls => "tls",
            Self::Policy => "policy",
            Self::Service => "service",
        }
    }
}

impl Class {
    /// What an administrator would call it.
    pub const fn title(self) -> &'static str {
        match self {
            Self::AuthConfig => "The login is refused",
            Self::SenderPermission => "The sender's address is not allowed",
            Self::Throttling => "Too much, or too fast",
            Self::Policy => "Forbidden by a rule, or barred",
            Self::Tls => "Encryption does not come about",
            Self::Recipient => "A recipient is refused",
            Self::Size => "The message is too large",
            Self::Content => "The message is built wrongly",
            Self::Transient => "Something is wrong for the moment",
            Self::Service => "The service speaks of its own state",
            Self::Permanent => "It cannot be done like this",
        }
    }
}

impl Retry {
    /// Whether it passes, as an answer to somebody who asks.
    pub const fn outlook(self) -> &'static str {
        match self {
            Self::Yes => "Yes. It can be sent again later.",
            Self::No => "No. Trying again will not help.",
            Self::AfterConfig => "No. Somebody has to change a setting first.",
        }
    }

    /// The name in files, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::AfterConfig => "after-config",
        }
    }
}

impl Scope {
    /// What is affected, in words.
    pub const fn reach(self) -> &'static str {
        match self {
            Self::Recipient => "this recipient only",
            Self::Message => "this message only",
            Self::Sender => "all mail with this sender's address",
            Self::Connection => "this connection only",
            Self::Mailbox => "all mail that this mailbox sends",
            Self::Credential => "everything that logs in with this name",
            Self::Smarthost => "everything that is sent to this server",
        }
    }

    /// The name in files, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Recipient => "recipient",
            Self::Message => "message",
            Self::Sender => "sender",
            Self::Connection => "connection",
            Self::Mailbox => "mailbox",
            Self::Credential => "credential",
            Self::Smarthost => "smarthost",
        }
    }
}

macro_rules! shown_by_name {
    ($($word:ident),*) => {$(
        impl fmt::Display for $word {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    )*};
}

shown_by_name!(Class, Retry, Scope);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_files_and_in_labels_are_the_same() {
        for class in ["permanent", "auth-config", "sender-permission", "tls", "service"] {
            let read: Class = serde_json::from_str(&format!("{class:?}")).unwrap();
            assert_eq!(read.as_str(), class);
        }
        for retry in ["yes", "no", "after-config"] {
            let read: Retry = serde_json::from_str(&format!("{retry:?}")).unwrap();
            assert_eq!(read.to_string(), retry);
        }
        for scope in
            ["recipient", "message", "sender", "connection", "mailbox", "credential", "smarthost"]
        {
            let read: Scope = serde_json::from_str(&format!("{scope:?}")).unwrap();
            assert_eq!(read.to_string(), scope);
        }
    }
}
