//! What is said of messages, in the words of a terminal and of JSON.

use bytesize::ByteSize;
use jiff::Timestamp;
use serde::Serialize;

use crate::spool::queue::{Hold, State, Summary};

/// A message as `--json` has it; these names are relied on.
#[derive(Serialize)]
pub(super) struct Row<'a> {
    id: &'a str,
    state: State,
    device: &'a str,
    mailbox: &'a str,
    from: &'a str,
    to: &'a str,
    recipients: usize,
    bytes: u64,
    received: String,
    due: Option<String>,
    hold: Option<String>,
    reason: &'a str,
    rule: &'a str,
    attempts: u32,
    maybe_sent: u32,
}

impl<'a> Row<'a> {
    pub(super) fn of(summary: &'a Summary) -> Self {
        let Summary {
            id,
            state,
            device,
            mailbox,
            from,
            to,
            recipients,
            size,
            received,
            due,
            hold,
            reason,
            rule,
            attempts,
            maybe_sent,
        } = summary;
        Self {
            id,
            state: *state,
            device,
            mailbox,
            from,
            to,
            recipients: *recipients,
            bytes: *size,
            received: received.to_string(),
            due: due.map(|due| due.to_string()),
            hold: hold.as_ref().map(Hold::name),
            reason,
            rule,
            attempts: *attempts,
            maybe_sent: *maybe_sent,
        }
    }
}

/// Without what could move a terminal's cursor: devices and servers write what they like.
pub(super) fn clean(text: &str) -> String {
    text.replace(char::is_control, "?")
}

/// The time between two moments in its largest unit; negative ones are none.
pub(super) fn span(from: Timestamp, to: Timestamp) -> String {
    let seconds = to.as_second().saturating_sub(from.as_second()).max(0);
    match seconds {
        0..100 => format!("{seconds}s"),
        100..6_000 => format!("{}m", seconds / 60),
        6_000..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// When a message is due, seen from now.
pub(super) fn due(due: Option<Timestamp>, now: Timestamp) -> String {
    match due {
        None => "-".to_owned(),
        Some(due) if due <= now => "now".to_owned(),
        Some(due) => span(now, due),
    }
}

/// `12.5KiB`
pub(super) fn size(octets: u64) -> String {
    ByteSize::b(octets).to_string().replace(".0 ", "").replace(' ', "")
}

/// A reverse-path, the null one too.
pub(super) fn sender(from: &str) -> String {
    if from.is_empty() { "<>".to_owned() } else { clean(from) }
}

/// `1 message`, `2 messages`
pub(super) fn messages(count: u64) -> String {
    if count == 1 { "1 message".to_owned() } else { format!("{count} messages") }
}

/// A word as a shell takes it.
pub(super) fn shell(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", clean(word).replace('\'', r"'\''"))
    }
}

/// No more than so many characters, with a mark where some are missing.
pub(super) fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let kept: String = text.chars().take(most.saturating_sub(1)).collect();
    format!("{kept}…")
}

/// What holds a message.
pub(super) fn hold(hold: &Hold) -> String {
    match hold {
        Hold::Operator => "an operator holds it; smtp-uplift queue release lets it go".to_owned(),
        Hold::Message => "something about this message has to be changed".to_owned(),
        Hold::Sender(address) => format!("the mailbox may not send as {}", sender(address)),
        Hold::Mailbox => "the mailbox may not send".to_owned(),
        Hold::Credential => "the mailbox cannot log in".to_owned(),
        Hold::Smarthost => "the smarthost takes nothing from here".to_owned(),
        Hold::MailboxGone => "its mailbox is not in the configuration any more".to_owned(),
    }
}

/// Where a message stands, in a sentence.
pub(super) fn standing(summary: &Summary, now: Timestamp) -> String {
    let next = match due(summary.due, now).as_str() {
        "-" => String::new(),
        "now" => "; it is due now".to_owned(),
        span => format!("; it is due in {span}"),
    };
    let state = summary.state.as_str();
    match summary.state {
        State::Ready => format!("{state}: it waits for its time{next}"),
        State::Leased => format!("{state}: it is being delivered"),
        State::Awaiting => {
            format!("{state}: its end was sent, and the smarthost's answer is waited for")
        }
        State::MaybeSent => format!(
            "{state}: the connection was lost before the smarthost's answer, so it may have arrived{next}"
        ),
        State::Held => match &summary.hold {
            Some(by) => format!("{state}: {}{next}", hold(by)),
            None => format!("{state}{next}"),
        },
        State::Failed => format!("{state}: it will not be delivered, to some recipient at least"),
        State::Done => format!("{state}: it was delivered"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_one_unit() {
        let from = Timestamp::UNIX_EPOCH;
        for (seconds, shown) in [
            (-5, "0s"),
            (0, "0s"),
            (99, "99s"),
            (100, "1m"),
            (5_999, "99m"),
            (6_000, "1h"),
            (172_799, "47h"),
            (172_800, "2d"),
            (1_209_600, "14d"),
        ] {
            assert_eq!(span(from, Timestamp::from_second(seconds).unwrap()), shown);
        }
    }

    #[test]
    fn words_for_a_shell() {
        for (word, shown) in [
            ("10.1.2.3", "10.1.2.3"),
            ("copier 3", "'copier 3'"),
            ("it's", r"'it'\''s'"),
            ("", "''"),
            ("a\nb", "'a?b'"),
        ] {
            assert_eq!(shell(word), shown);
        }
    }

    #[test]
    fn what_is_cut_has_a_mark() {
        assert_eq!(cut("four", 4), "four");
        assert_eq!(cut("größer", 4), "grö…");
        assert_eq!(cut("x", 0), "…");
    }
}
