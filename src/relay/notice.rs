//! What people are told of messages: in plain words what happened, what it means, what to do, and the header section
//! of the message that it is about.

use std::fmt::Write as _;

use jiff::Timestamp;

use super::aftermath::Fate;
use crate::spool::queue::{Hold, NewNotice};

/// Octets of a header section that are shown.
pub const HEADER: usize = 8 * 1024;

/// The message that something happened to.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    /// Its id.
    pub id: &'a str,
    /// The device's name or address.
    pub device: &'a str,
    /// The mailbox that it goes through.
    pub mailbox: &'a str,
    /// As the device gave it; empty for the null path.
    pub from: &'a str,
    /// When it was received.
    pub received: Timestamp,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Happened {
    /// It was refused for good by somebody.
    Refused {
        /// By whom.
        recipients: Vec<String>,
        /// With what.
        fate: Fate,
    },
    /// It has waited long enough.
    Expired {
        /// Who does not get it.
        recipients: Vec<String>,
        /// The last trouble.
        reason: String,
    },
    /// It is held by itself.
    Held {
        /// The reply.
        fate: Fate,
    },
    /// All mail of this kind is held.
    Stopped {
        /// What is stopped.
        hold: Hold,
        /// At which mailbox.
        mailbox: String,
        /// Other mailboxes send what is not bound to this one.
        others: bool,
        /// The reply.
        fate: Fate,
    },
}

/// The notice, or none if nothing happened. A null reverse-path makes none, except when more than the message is
/// stopped.
pub fn compose(
    case: &Case<'_>,
    happened: &[Happened],
    header: &str,
    now: Timestamp,
) -> Option<NewNotice> {
    let about: Vec<&Happened> = happened
        .iter()
        .filter(|event| !case.from.is_empty() || matches!(event, Happened::Stopped { .. }))
        .collect();
    let subject = one_line(&about.first()?.subject(case));
    let mut text = String::new();
    for event in about {
        event.describe(case, &mut text);
    }
    let from = if case.from.is_empty() { "nobody (<>)" } else { case.from };
    let _ = write!(
        text,
        "The message\n  id        {}\n  device    {}\n  from      {from}\n  received  {}\n  mailbox   {}\n",
        case.id,
        case.device,
        case.received.strftime("%Y-%m-%d %H:%M:%S UTC"),
        case.mailbox
    );
    if !header.is_empty() {
        text.push_str("\nIts header section\n");
        for line in header.lines() {
            let _ = writeln!(text, "  {line}");
        }
    }
    Some(NewNotice { subject, text, time: now })
}

impl Happened {
    fn subject(&self, case: &Case<'_>) -> String {
        let device = case.device;
        match self {
            Self::Refused { recipients, .. } => {
                format!("Not delivered: mail of {device} to {}", recipients.join(", "))
            }
            Self::Expired { recipients, .. } => {
                format!("Given up: mail of {device} to {}", recipients.join(", "))
            }
            Self::Held { .. } => format!("Held: a message of {device}"),
            Self::Stopped { hold: Hold::Sender(address), .. } => {
                format!("Held: all mail from {address}")
            }
            Self::Stopped { mailbox, .. } => format!("Held: all mail of {mailbox}"),
        }
    }

    fn describe(&self, case: &Case<'_>, text: &mut String) {
        // Writing to a String does not fail.
        let _ = match self {
            Self::Refused { recipients, fate } => writeln!(
                text,
                "A message was not delivered to\n  {}\nand will not be: the mail server has refused it for good.\n{}",
                recipients.join("\n  "),
                explained(fate)
            ),
            Self::Expired { recipients, reason } => writeln!(
                text,
                "A message could not be delivered in time to\n  {}\nand is not tried any more. The last that happened:\n  {}\n\n\
                 The relay keeps it for a while: smtp-uplift queue retry {} tries again, \
                 smtp-uplift queue export {} writes it to a file.\n",
                recipients.join("\n  "),
                one_line(reason),
                case.id,
                case.id
            ),
            Self::Held { fate } => writeln!(
                text,
                "A message is held until somebody has acted. It is tried again seldom by itself; when the cause is \
                 gone, smtp-uplift queue release {} sends it.\n{}",
                case.id,
                explained(fate)
            ),
            Self::Stopped { hold, mailbox, others, fate } => writeln!(
                text,
                "{} is held until somebody has acted; nothing is lost. {}, and when one is accepted all the others \
                 follow. After you have acted, smtp-uplift queue release {} or SIGHUP to the relay (systemctl reload) \
                 has it tried at once.\n{}",
                reach(hold, mailbox, *others),
                if *hold == Hold::Credential {
                    "A changed password or token is noticed within seconds, and a refused password is not tried again \
                     before it has changed"
                } else {
                    "One message is tried again after 15, 30 and 60 minutes"
                },
                case.id,
                explained(fate)
            ),
        };
    }
}

fn reach(hold: &Hold, mailbox: &str, others: bool) -> String {
    match hold {
        Hold::Sender(address) if others => {
            format!("All mail from {address} that only {mailbox} may send")
        }
        _ if others => format!("All mail that only {mailbox} may send"),
        Hold::Sender(address) => format!("All mail from {address}"),
        Hold::Smarthost => "All mail".to_owned(),
        _ => format!("All mail that goes through {mailbox}"),
    }
}

fn explained(fate: &Fate) -> String {
    let mut text = format!("\nWhat was said\n  {}\n", one_line(&fate.said));
    if let Some(verdict) = &fate.verdict {
        let _ = write!(text, "\nWhat it means\n  {}\n\nWhat to do\n", verdict.meaning);
        for step in verdict.remedy.iter() {
            let _ = writeln!(text, "  * {step}");
        }
    }
    text
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect()
}

/// The header section at the start of mail data in wire form, as far as it is shown.
pub fn header_of(data: &[u8]) -> String {
    if data.starts_with(b"\r\n") {
        return String::new();
    }
    let end = data.windows(4).position(|four| four == b"\r\n\r\n").map_or(data.len(), |at| at + 2);
    let header = &data[..end.min(HEADER)];
    let text = String::from_utf8_lossy(header);
    let lines = text.split("\r\n").map(|line| {
        let line = if line.starts_with("..") { &line[1..] } else { line };
        line.chars().map(|c| if c.is_control() && c != '\t' { '?' } else { c }).collect::<String>()
    });
    lines.collect::<Vec<_>>().join("\n").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        proto::{client::Stage, reply::Reply},
        relay::{aftermath::End, course::Course},
        smarthost::classify::{self, catalogue::Catalogue},
    };

    fn case(from: &str) -> Case<'_> {
        Case {
            id: "k3.1",
            device: "192.0.2.7",
            mailbox: "scanner@example.com",
            from,
            received: Timestamp::from_second(1_800_000_000).unwrap(),
        }
    }

    fn fate(code: u16, text: &str) -> Fate {
        let reply = Reply::new(code, None, text);
        let verdict = classify::reply(Catalogue::built_in(), Some(Stage::Eod), &reply);
        Fate {
            end: End::Not(Course::Refuse),
            said: reply.to_string(),
            reply: Some((Stage::Eod, reply)),
            verdict: Some(verdict),
        }
    }

    #[test]
    fn a_notice_says_what_happened_what_it_means_and_what_to_do() {
        let recipients = vec!["office@example.com".to_owned()];
        let refused = Happened::Refused { recipients, fate: fate(550, "5.1.1 no such user") };
        let header = header_of(b"From: a@b\r\nSubject: scan\r\n..x: y\r\n\r\nwages");
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let notice = compose(&case("copier@example.com"), &[refused], &header, now).unwrap();
        assert_eq!(notice.subject, "Not delivered: mail of 192.0.2.7 to office@example.com");
        for part in [
            "refused it for good",
            "What was said\n  550 5.1.1 no such user\n",
            "What it means\n",
            "What to do\n  * ",
            "  id        k3.1\n",
            "Its header section\n  From: a@b\n  Subject: scan\n  .x: y\n",
        ] {
            assert!(notice.text.contains(part), "{part:?} in {}", notice.text);
        }
        assert!(!notice.text.contains("wages"));
    }

    #[test]
    fn a_null_reverse_path_makes_a_notice_only_when_more_is_stopped() {
        let now = Timestamp::from_second(0).unwrap();
        let held = || Happened::Held { fate: fate(550, "no") };
        assert_eq!(compose(&case(""), &[held()], "", now), None);
        assert_eq!(compose(&case("a@b"), &[], "", now), None);
        let stopped = |others| Happened::Stopped {
            hold: Hold::Mailbox,
            mailbox: "box@example.com".to_owned(),
            others,
            fate: fate(550, "no"),
        };
        let notice = compose(&case(""), &[held(), stopped(false)], "", now).unwrap();
        assert_eq!(notice.subject, "Held: all mail of box@example.com");
        let notice = compose(&case(""), &[stopped(true)], "", now).unwrap();
        assert!(notice.text.starts_with("All mail that only box@example.com may send is held "));
    }

    #[test]
    fn a_header_section_is_shown_bounded_and_without_controls() {
        let long = [b"Subject: \x1b[31m".as_slice(), &b"x".repeat(20_000)].concat();
        let shown = header_of(&long);
        assert!(shown.len() <= HEADER && shown.starts_with("Subject: ?[31m"), "{}", &shown[..40]);
        assert_eq!(header_of(b""), "");
        assert_eq!(header_of(b"\r\nwages\r\n\r\nmore"), "", "there is none");
    }
}
