//! What a device hears when something went wrong, or right: the one place that turns an outcome into a reply.
//!
//! No answer is better than the smarthost's. Its text goes on as visible ASCII, bounded, without its host
//! names.

use std::time::Duration;

use crate::{
    codec::data::DataFault,
    policy::quota::Exceeded,
    proto::{
        client::{Refusal, Stage},
        header,
        reply::{Enhanced, Reply},
        trace::Circle,
    },
    smarthost::{
        classify::{
            Verdict,
            class::{Retry, Scope},
        },
        connection::{Lost, OpenError},
        pool::LeaseError,
    },
    spool::queue::QueueError,
};

/// Longest text of the smarthost that is passed on, in characters.
const TEXT: usize = 300;

/// The dot's answer when the smarthost has taken the message.
pub fn accepted(id: &str, verdict: &Reply) -> Reply {
    Reply::new(
        250,
        Enhanced(2, 0, 0),
        format!("ok, id {id}; smarthost: {} {}", verdict.code, presentable(&verdict.text())),
    )
}

/// The dot's answer when the spool has the message on disk.
pub fn queued(id: &str) -> Reply {
    Reply::new(250, Enhanced(2, 0, 0), format!("queued, id {id}"))
}

/// In place of a greeting, for whoever did not wait for it.
pub fn early_talk() -> Reply {
    Reply::new(554, Enhanced(5, 5, 1), "wait for the greeting before you talk")
}

/// The spool takes no message (RFC 5321 section 4.2.3, RFC 3463 X.3.1).
pub fn no_room(error: &QueueError) -> Reply {
    let what = match error {
        QueueError::Full(_) => "the relay's spool is full",
        QueueError::Broken(_) => "the relay's spool cannot be written",
    };
    Reply::new(452, Enhanced(4, 3, 1), format!("{what}; try again later"))
}

/// A recipient's answer when the smarthost takes it.
pub fn recipient_accepted() -> Reply {
    Reply::new(250, Enhanced(2, 1, 5), "recipient ok")
}

/// The smarthost's refusal, for the device. What it means decides, not its first digit.
pub fn refused(stage: Stage, reply: &Reply, verdict: &Verdict) -> Reply {
    let code = reply.code.get();
    let text = presentable(&reply.text());
    match code {
        // Nobody can tell what it means here: not a yes, at any rate.
        200..400 => Reply::new(
            451,
            Enhanced(4, 5, 0),
            format!("the smarthost gave an unexpected answer at {stage}: {code} {text}"),
        ),
        // A setting heals it, and no device can change that.
        _ if verdict.retry == Retry::AfterConfig => waiting_for_operator(&text),
        421 => Reply::new(
            451,
            Enhanced(4, 4, 2),
            format!("the smarthost closes the connection: {text}; try again"),
        ),
        // Our own commands are well formed, so this is a fault between the two servers, unless a rule knows
        // better or it speaks of an address.
        500..=504
            if verdict.scope == Scope::Connection
                && reply.enhanced.is_none_or(|enhanced| enhanced.1 != 1) =>
        {
            Reply::new(
                451,
                Enhanced(4, 5, 0),
                format!("the smarthost does not understand us at {stage}: {code} {text}"),
            )
        }
        // Limits of the mailbox, which devices know nothing of; old ones know none of their codes.
        430..=432 => Reply::new(451, paired(4, reply.enhanced), text),
        // Time heals it, whatever its first digit says.
        500.. if verdict.retry == Retry::Yes => Reply::new(451, paired(4, reply.enhanced), text),
        // Not the device's login but ours.
        530 | 534 | 535 | 538 => waiting_for_operator(&text),
        // To a device these would say that it had made a mistake in its commands.
        500 | 502..=504 => Reply::new(554, paired(5, reply.enhanced), text),
        _ => Reply::new(code, paired(if code < 500 { 4 } else { 5 }, reply.enhanced), text),
    }
}

/// Code and enhanced code may disagree at Exchange Online; devices get a pair that does not.
fn paired(class: u8, enhanced: Option<Enhanced>) -> Enhanced {
    enhanced.map_or(Enhanced(class, 0, 0), |given| Enhanced(class, given.1, given.2))
}

/// No connection to the smarthost was to be had; `verdict` is what its reply means, if it gave one.
pub fn no_lease(error: &LeaseError, verdict: Option<&Verdict>) -> Reply {
    match error {
        LeaseError::Busy(_) | LeaseError::Stopping => Reply::new(
            451,
            Enhanced(4, 3, 2),
            "all connections to the smarthost are busy; try again",
        ),
        LeaseError::Spent(spent) => Reply::new(
            451,
            Enhanced(4, 3, 2),
            format!("the mailbox has sent its {} {}; try again later", spent.count, spent.what),
        ),
        LeaseError::Paused(_) => Reply::new(
            451,
            Enhanced(4, 3, 2),
            "the smarthost has asked us to send less; try again later",
        ),
        LeaseError::LoginRefused(..) => waiting_for_operator("the mailbox cannot log in"),
        LeaseError::Open(error) => match &**error {
            OpenError::Refused(Refusal::Reply(_, reply))
                if verdict.is_some_and(|verdict| verdict.retry == Retry::Yes) =>
            {
                let text = presentable(&reply.text());
                let said = format!("the smarthost does not let us in just now: {text}; try again");
                Reply::new(451, Enhanced(4, 3, 2), said)
            }
            OpenError::Refused(_) if error.stage() == Stage::Auth => {
                waiting_for_operator("the mailbox cannot log in")
            }
            OpenError::Refused(Refusal::Reply(..)) => {
                waiting_for_operator("the smarthost does not let us in")
            }
            OpenError::Login(error) if error.is_temporary() => {
                Reply::new(451, Enhanced(4, 3, 2), "no access token for now; try again")
            }
            OpenError::Login(_) => waiting_for_operator("there is nothing to log in with"),
            _ => Reply::new(451, Enhanced(4, 4, 1), "the smarthost cannot be reached; try again"),
        },
    }
}

/// The connection to the smarthost broke.
pub fn lost(lost: &Lost) -> Reply {
    Reply::new(
        451,
        Enhanced(4, 4, 2),
        format!("the connection to the smarthost was lost at {}; try again", lost.stage),
    )
}

/// The smarthost did not answer within the device's patience.
pub fn no_answer() -> Reply {
    Reply::new(451, Enhanced(4, 4, 1), "the smarthost does not answer; try again")
}

/// The device did not move, and its connection to the smarthost was given to somebody else.
pub fn stalled() -> Reply {
    Reply::new(
        451,
        Enhanced(4, 4, 2),
        "too slow: the connection to the smarthost was given up; try again",
    )
}

/// The data have line ends that this listener does not take.
pub fn data_fault(fault: DataFault) -> Reply {
    Reply::new(
        554,
        Enhanced(5, 6, 0),
        format!("the message holds {fault} (RFC 5321 section 2.3.8)"),
    )
}

/// The header section is longer than anybody's.
pub fn header_too_long() -> Reply {
    Reply::new(
        552,
        Enhanced(5, 3, 4),
        format!(
            "the header section has more than {} KiB; send fewer recipients or references in it",
            header::LONGEST / 1024
        ),
    )
}

/// The message goes in circles.
pub fn circle(circle: Circle) -> Reply {
    let why = match circle {
        Circle::Own => "a loop: this relay had this message before".to_owned(),
        Circle::Long => "a loop: the message has passed more than 100 servers".to_owned(),
    };
    let what = "end the forwarding that sends it here again (see its Received fields)";
    Reply::new(554, Enhanced(5, 4, 6), format!("{why}; {what}"))
}

/// The device's address is not on the list.
pub fn not_allowed() -> Reply {
    Reply::new(
        554,
        Enhanced(5, 7, 1),
        "this address is not allowed to connect; ask whoever runs the relay",
    )
}

/// The device may not send as this sender.
pub fn sender_not_allowed(device: &str, sender: &str) -> Reply {
    not_permitted(device, &format!("may not send as {}", visible(sender)), "senders")
}

/// The device may not send there.
pub fn recipient_not_allowed(device: &str, recipient: &str) -> Reply {
    not_permitted(device, &format!("may not send to {}", visible(recipient)), "recipients")
}

fn not_permitted(device: &str, what: &str, key: &str) -> Reply {
    let next = format!("whoever runs the relay can add it to {key} of [[device]]");
    Reply::new(550, Enhanced(5, 7, 1), format!("{} {what}; {next}", visible(device)))
}

/// As much of a name as a reply has room for.
fn visible(name: &str) -> String {
    name.chars().take(64).map(|c| if c.is_ascii_graphic() { c } else { '_' }).collect()
}

/// The device has sent its messages.
pub fn messages_spent(exceeded: &Exceeded) -> Reply {
    Reply::new(451, Enhanced(4, 7, 0), spent(exceeded, "messages"))
}

/// The device has sent to its recipients.
pub fn recipients_spent(exceeded: &Exceeded) -> Reply {
    Reply::new(452, Enhanced(4, 5, 3), spent(exceeded, "recipients"))
}

fn spent(Exceeded { quota, left }: &Exceeded, what: &str) -> String {
    let left = Duration::from_secs(left.as_secs() + 1);
    format!(
        "this device has used its {} {what} of {} {}; try again in {}",
        quota.count,
        if quota.span == crate::policy::Span::Hour { "an" } else { "a" },
        quota.span.as_str(),
        humantime::format_duration(left)
    )
}

/// The session goes on and on without a message.
pub fn too_many_commands() -> Reply {
    Reply::new(421, Enhanced(4, 7, 0), "too many commands without a message, closing")
}

/// There is no place for a TLS handshake (RFC 3207 section 4).
pub fn too_many_handshakes() -> Reply {
    Reply::new(454, Enhanced(4, 7, 0), "too many TLS handshakes just now; try again later")
}

/// There is no seat for one more session.
pub fn too_many_sessions() -> Reply {
    Reply::new(421, Enhanced(4, 7, 0), "too many sessions; try again later")
}

/// The device was silent or slow for too long.
pub fn timed_out() -> Reply {
    Reply::new(421, Enhanced(4, 4, 2), "nothing came for too long, closing")
}

/// The relay stops.
pub fn stopping() -> Reply {
    Reply::new(421, Enhanced(4, 3, 2), "the relay is stopping, closing")
}

fn waiting_for_operator(text: &str) -> Reply {
    Reply::new(451, Enhanced(4, 7, 0), format!("waiting for the relay's operator: {text}"))
}

/// The smarthost's own id of a message, from its answer to the dot: `<id@host>`.
pub fn message_id(verdict: &Reply) -> Option<String> {
    let text = verdict.text();
    let (_, rest) = text.split_once('<')?;
    let (id, _) = rest.split_once('>')?;
    Some(format!("<{}>", id.chars().filter(char::is_ascii_graphic).take(200).collect::<String>()))
}

/// The smarthost's text as it may leave the house: visible ASCII, bounded, without bracketed diagnostics,
/// message ids and host names.
fn presentable(text: &str) -> String {
    let mut out = String::new();
    let mut depth = 0u32;
    for c in text.chars() {
        match c {
            '[' => depth += 1,
            ']' if depth > 0 => depth -= 1,
            c if depth == 0 => out.push(if c.is_ascii_graphic() || c == ' ' { c } else { '?' }),
            _ => {}
        }
    }
    let words: Vec<&str> = out.split_whitespace().filter(|word| !names_a_host(word)).collect();
    words.join(" ").chars().take(TEXT).collect()
}

/// `MW4PR03.prod.outlook.com`, `<id@MW4PR03.prod.outlook.com>`, but neither a URL nor a number with dots.
fn names_a_host(word: &str) -> bool {
    let word = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    let is_host =
        |part: &str| part.split('.').count() > 2 && part.chars().any(|c| c.is_ascii_alphabetic());
    !word.contains("://") && word.split(['@', '=']).any(is_host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smarthost::classify::{self, catalogue::Catalogue};

    fn heard(code: u16, enhanced: Option<Enhanced>, text: &str) -> String {
        let reply = Reply::new(code, enhanced, text);
        let verdict = classify::reply(Catalogue::built_in(), Some(Stage::Rcpt), &reply);
        refused(Stage::Rcpt, &reply, &verdict).to_string()
    }

    #[test]
    fn refusals_pass_on_without_the_smarthosts_names() {
        let text = "Mailbox unavailable, see https://aka.ms/x.y.z [MN2PR05CA0004.namprd05.prod.outlook.com 2023-09-12T20:59:57.214Z 08DB]";
        assert_eq!(
            heard(550, Some(Enhanced(5, 1, 1)), text),
            "550 5.1.1 Mailbox unavailable, see https://aka.ms/x.y.z"
        );
        assert_eq!(heard(452, None, "too many\u{7}"), "452 4.0.0 too many?");
        assert_eq!(heard(550, Some(Enhanced(4, 1, 1)), "no such user"), "550 5.1.1 no such user");
        assert_eq!(heard(432, Some(Enhanced(5, 3, 2)), "too many"), "451 4.3.2 too many");
        assert_eq!(heard(432, None, "5.3.2 too many"), "451 4.0.0 5.3.2 too many");
        assert_eq!(
            heard(550, None, "no: a.prod.outlook.com=x b@c.prod.outlook.com@d"),
            "550 5.0.0 no:"
        );
        assert_eq!(heard(550, None, &"long ".repeat(200)).len(), "550 5.0.0 ".len() + TEXT);
    }

    #[test]
    fn what_is_ours_to_mend_is_no_fault_of_the_device() {
        assert_eq!(
            heard(530, Some(Enhanced(5, 7, 57)), "Client not authenticated"),
            "451 4.7.0 waiting for the relay's operator: Client not authenticated"
        );
        assert!(heard(421, None, "bye").starts_with("451 4.4.2"));
        assert!(
            heard(502, Some(Enhanced(5, 3, 3)), "Command not implemented").starts_with("451 4.5.0")
        );
        assert!(heard(501, Some(Enhanced(5, 1, 3)), "Invalid address").starts_with("501 5.1.3"));
        let too_large =
            "MapiExceptionSendSizeLimit.Sender; message size exceeds fixed maximum size";
        assert!(heard(500, Some(Enhanced(5, 2, 11)), too_large).starts_with("554 5.2.11 "));
        assert!(heard(550, Some(Enhanced(5, 7, 1)), "Virus found").starts_with("550 5.7.1 "));
        assert!(
            heard(251, None, "forwarding").starts_with("451 4.5.0"),
            "a yes that nobody expects is no yes"
        );
        assert!(heard(354, None, "go").starts_with("451 4.5.0"));
    }

    #[test]
    fn acceptance_carries_our_id_and_the_smarthosts_text() {
        let verdict = Reply::new(
            250,
            Enhanced(2, 0, 0),
            "OK <0123@SYBP282.PROD.OUTLOOK.COM> [Hostname=SYBP282.PROD.OUTLOOK.COM]",
        );
        assert_eq!(
            accepted("k3v9.1", &verdict).to_string(),
            "250 2.0.0 ok, id k3v9.1; smarthost: 250 OK"
        );
        assert_eq!(message_id(&verdict).as_deref(), Some("<0123@SYBP282.PROD.OUTLOOK.COM>"));
        assert_eq!(message_id(&Reply::new(250, None, "queued")), None);
    }
}
