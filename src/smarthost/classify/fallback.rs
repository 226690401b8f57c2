//! Replies that no rule knows: what RFC 5321 says of their code and RFC 3463 of their enhanced code.

use crate::proto::{
    client::Stage,
    reply::{Code, Enhanced},
};

use super::class::{
    Class::{self, *},
    Retry::{self, *},
    Scope,
};

/// The rule of a reply that no rule knows.
pub(super) const UNKNOWN: &str = "unknown";
/// The rule of what is no reply at all.
pub(super) const PROTOCOL_FAULT: &str = "protocol-fault";
/// Ids that no rule may have.
pub(super) const IDS: [&str; 2] = [UNKNOWN, PROTOCOL_FAULT];

/// What a reply's codes alone say. The enhanced code goes first: it says more.
pub(super) fn verdict(
    stage: Option<Stage>,
    code: Option<Code>,
    enhanced: Option<Enhanced>,
) -> (Class, Retry, Scope) {
    let number = code.map(Code::get);
    // Exchange puts 5xx before 4.x.x and the reverse; the enhanced code is the one that is meant.
    let permanent = match (enhanced, number) {
        (Some(Enhanced(class, ..)), _) => class == 5,
        (None, Some(number)) => number >= 500,
        (None, None) => false,
    };
    match (number, enhanced) {
        (Some(..400), None | Some(Enhanced(2, ..))) | (None, Some(Enhanced(2, ..))) => {
            (Service, Yes, Scope::Connection)
        }
        _ if stage == Some(Stage::Auth) && permanent => {
            (AuthConfig, AfterConfig, Scope::Credential)
        }
        (_, Some(enhanced)) if permanent => by_subject(stage, enhanced),
        (_, Some(enhanced)) => passing_by_subject(enhanced),
        (Some(number), None) if permanent => by_code(stage, number),
        (Some(421), None) => (Service, Yes, Scope::Connection),
        (Some(450), None) if stage != Some(Stage::Eod) => (Transient, Yes, Scope::Recipient),
        (Some(452), None) => (Service, Yes, Scope::Connection),
        _ => (Transient, Yes, Scope::Connection),
    }
}

/// 5.x.x, RFC 3463 section 3.
fn by_subject(stage: Option<Stage>, enhanced: Enhanced) -> (Class, Retry, Scope) {
    match enhanced {
        Enhanced(_, 1, 7 | 8) => (Content, No, Scope::Message),
        Enhanced(_, 1, _) => (Recipient, No, Scope::Recipient),
        Enhanced(_, 2, 3) | Enhanced(_, 3, 4) => (Size, No, Scope::Message),
        Enhanced(_, 2, _) => (Recipient, No, Scope::Recipient),
        Enhanced(_, 4, _) => (Permanent, No, Scope::Message),
        Enhanced(_, 6, _) => (Content, No, Scope::Message),
        Enhanced(_, 7, _) => match stage {
            Some(Stage::Rcpt) => (Policy, No, Scope::Recipient),
            // Of content nothing is to be set up, and a device that hears "later" would repeat it for ever.
            Some(Stage::Data | Stage::Eod) => (Policy, No, Scope::Message),
            Some(Stage::Mail) => (Policy, AfterConfig, Scope::Sender),
            // Whatever it is, it stops no more than this message.
            _ => (Policy, AfterConfig, Scope::Message),
        },
        _ => (Permanent, No, Scope::Connection),
    }
}

/// 4.x.x.
fn passing_by_subject(enhanced: Enhanced) -> (Class, Retry, Scope) {
    match enhanced {
        Enhanced(_, 1 | 2, _) => (Transient, Yes, Scope::Recipient),
        Enhanced(_, 3, _) => (Service, Yes, Scope::Connection),
        Enhanced(_, 5, 3) => (Throttling, Yes, Scope::Message),
        Enhanced(_, 6, _) => (Transient, Yes, Scope::Message),
        Enhanced(_, 7, 500..) => (Throttling, Yes, Scope::Smarthost),
        _ => (Transient, Yes, Scope::Connection),
    }
}

/// 5xx without an enhanced code, RFC 5321 section 4.2.
fn by_code(stage: Option<Stage>, number: u16) -> (Class, Retry, Scope) {
    match (number, stage) {
        (500..=504 | 555, _) => (Permanent, No, Scope::Connection),
        (530 | 534 | 535, _) => (AuthConfig, AfterConfig, Scope::Credential),
        (538, _) => (Tls, AfterConfig, Scope::Smarthost),
        (552, _) => (Size, No, Scope::Message),
        (550 | 553, Some(Stage::Mail)) => (Policy, AfterConfig, Scope::Sender),
        (550 | 554, Some(Stage::Data | Stage::Eod)) => (Permanent, No, Scope::Message),
        (550 | 551 | 553 | 556, _) => (Recipient, No, Scope::Recipient),
        (521 | 554, Some(Stage::Connect)) => (Policy, AfterConfig, Scope::Smarthost),
        _ => (Permanent, No, Scope::Message),
    }
}

/// What to tell of a reply that no rule knows.
pub(super) fn meaning(class: Class, retry: Retry) -> String {
    let outlook = match retry {
        Yes => "it should pass by itself",
        No => "trying again will not help",
        AfterConfig => "somebody has to change a setting",
    };
    let about = match class {
        Permanent => "the server does not take this",
        Transient => "something is wrong for the moment",
        Throttling => "too much was sent",
        AuthConfig => "the login was refused",
        SenderPermission => "the sender was refused",
        Recipient => "a recipient was refused",
        Content => "the message is built wrongly",
        Size => "the message is too large",
        Tls => "encryption did not come about",
        Policy => "a rule of the other side forbids it",
        Service => "the server speaks of its own state",
    };
    format!("This version does not know the reply. By its code, {about}, and {outlook}.")
}

/// What to tell of a text without any code.
pub(super) const NOTHING: &str =
    "There is no reply code in this text, and no rule knows its words.";

/// What to do about it.
pub(super) const NOTHING_REMEDY: [&str; 1] = [
    "Paste the server's reply itself, with its numbers: it is in the device's report or in the log of the relay.",
];

/// What to do about a reply that no rule knows.
pub(super) const REMEDY: [&str; 2] = [
    "Read the reply itself: its words are the server's.",
    "If you find out what it means, add a rule to a file of your own, so that the relay acts on it.",
];

/// What to tell of lines that are no reply.
pub(super) const NO_REPLY: &str =
    "The server's lines contradict each other: what came is no reply that mail servers may give.";

/// What to do about it.
pub(super) const NO_REPLY_REMEDY: [&str; 1] = [
    "A firewall that looks into SMTP may have mangled it: switch its SMTP inspection off for the smarthost.",
];
