//! What follows from a refusal or a loss: try again at once, keep the message for a while, hold it until somebody
//! changes a setting, or give it up. Pure; the table is section 5 of the blueprint, told in `docs/flow.md`.

use crate::{
    proto::{client::Stage, reply::Reply},
    smarthost::{
        classify::{
            Verdict,
            class::{Class, Retry, Scope},
        },
        connection::OpenError,
        pool::LeaseError,
    },
    spool::{queue::Hold, schedule::Trouble},
};

/// What follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Course {
    /// The connection was at fault: once more on a fresh one.
    Reconnect,
    /// The two servers do not understand each other: once more, command by command.
    OneByOne,
    /// It passes: later.
    Wait(Trouble),
    /// Not before somebody has changed a setting.
    Hold(Hold),
    /// Never.
    Refuse,
}

/// What follows from a refusal at a stage of a transaction; `sender` is the reverse-path that was used.
pub fn of_reply(stage: Stage, reply: &Reply, verdict: &Verdict, sender: &str) -> Course {
    let code = reply.code.get();
    match (verdict.retry, verdict.scope) {
        // A yes where none was expected: who is out of step is the connection.
        _ if code < 400 => Course::Reconnect,
        (Retry::AfterConfig, scope) => Course::Hold(hold(scope, stage, sender)),
        (Retry::Yes, _) if verdict.class == Class::Throttling => Course::Wait(throttled(verdict)),
        _ if code == 421 => Course::Reconnect,
        (Retry::Yes, Scope::Connection) => Course::Reconnect,
        (Retry::Yes, _) => Course::Wait(Trouble::Passing),
        // Our own commands are well formed, unless it speaks of an address in them.
        (Retry::No, Scope::Connection)
            if (500..=504).contains(&code)
                && reply.enhanced.is_none_or(|enhanced| enhanced.1 != 1) =>
        {
            Course::OneByOne
        }
        (Retry::No, _) => Course::Refuse,
    }
}

/// What follows where no connection was to be had; `verdict` is what the smarthost's reply means, if it gave one.
pub fn of_no_lease(error: &LeaseError, verdict: Option<&Verdict>) -> Course {
    match (error, verdict) {
        (LeaseError::LoginRefused(_), _) => Course::Hold(Hold::Credential),
        (_, Some(verdict)) if verdict.retry == Retry::AfterConfig => {
            Course::Hold(match verdict.scope {
                Scope::Credential | Scope::Mailbox | Scope::Sender => Hold::Credential,
                _ => Hold::Smarthost,
            })
        }
        (LeaseError::Open(error), None) => match &**error {
            OpenError::Secret(_) => Course::Hold(Hold::Credential),
            OpenError::Refused(_) => Course::Hold(Hold::Smarthost),
            OpenError::Dial(_) | OpenError::Tls(_) | OpenError::Lost(_) => {
                Course::Wait(Trouble::Passing)
            }
        },
        _ => Course::Wait(Trouble::Passing),
    }
}

fn hold(scope: Scope, stage: Stage, sender: &str) -> Hold {
    match scope {
        Scope::Recipient | Scope::Message => Hold::Message,
        Scope::Sender => Hold::Sender(sender.to_ascii_lowercase()),
        Scope::Mailbox => Hold::Mailbox,
        Scope::Credential => Hold::Credential,
        Scope::Smarthost => Hold::Smarthost,
        // What a device has a hand in stops no more than its message.
        Scope::Connection if stage >= Stage::Mail => Hold::Message,
        Scope::Connection => Hold::Smarthost,
    }
}

fn throttled(verdict: &Verdict) -> Trouble {
    match (verdict.rule.as_str(), verdict.scope) {
        ("mailbox-connections", _) => Trouble::Concurrency,
        ("message-rate", _) => Trouble::Rate,
        (
            "daily-quota"
            | "outbound-quota"
            | "tenant-trial-limit"
            | "tenant-external-limit"
            | "continuous-errors",
            _,
        ) => Trouble::Quota,
        (_, Scope::Smarthost) => Trouble::Reputation,
        _ => Trouble::Passing,
    }
}
