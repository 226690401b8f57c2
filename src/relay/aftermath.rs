//! What an attempt means for each recipient, and for the message as a whole. Pure: who stops what, and the time, are
//! arguments.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    attempt::Outcome,
    course::{self, Course},
};
use crate::{
    proto::{client::Stage, reply::Reply},
    smarthost::classify::Verdict,
    spool::{
        queue::{Hold, RecipientState, Standing, State},
        schedule::{self, Trouble},
    },
};

/// How long to wait before each further attempt when the connection was at fault; then come the configured waits.
pub const AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(4)];
/// Attempts in which the servers did not understand each other, after which a person has to look at it.
const MISUNDERSTANDINGS: u32 = 3;

/// What an attempt means for one recipient.
#[derive(Clone, Debug)]
pub struct Fate {
    /// What follows.
    pub end: End,
    /// The smarthost's reply, or what happened.
    pub said: String,
    /// The reply, where there was one.
    pub reply: Option<(Stage, Reply)>,
    /// What that means.
    pub verdict: Option<Verdict>,
}

/// How far a recipient got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The smarthost has taken the message.
    Delivered,
    /// The dot was sent and no answer came.
    MaybeSent,
    /// Not taken.
    Not(Course),
}

/// What becomes of a message.
#[derive(Clone, Debug)]
pub struct Plan {
    /// At the recipients, in the order of the fates.
    pub recipients: Vec<(RecipientState, String)>,
    /// As a whole.
    pub standing: Standing,
    /// The fate that decided it, by its place.
    pub decisive: usize,
}

/// When and how often a message is tried.
#[derive(Clone, Copy, Debug)]
pub struct Tries<'a> {
    /// Attempts so far, this one included.
    pub count: u32,
    /// The configured waits.
    pub waits: &'a [Duration],
    /// The time.
    pub now: Timestamp,
    /// Between 0 and 1.
    pub chance: f64,
}

impl Fate {
    /// What follows, if it was not taken.
    pub fn course(&self) -> Option<&Course> {
        match &self.end {
            End::Not(course) => Some(course),
            _ => None,
        }
    }

    /// Whether the recipient is still to be delivered to, and no answer is outstanding.
    pub fn is_pending(&self) -> bool {
        matches!(self.end, End::Not(Course::Hold(_) | Course::Wait(_)))
    }

    /// The rule that knew the reply, or nothing.
    pub fn rule(&self) -> &str {
        self.verdict.as_ref().map_or("", |verdict| verdict.rule.as_str())
    }
}

/// What an attempt means for each of `count` recipients; `judge` knows replies, `sender` is the reverse-path used.
pub fn fates(
    outcome: &Outcome,
    count: usize,
    sender: &str,
    judge: impl Fn(Stage, &Reply) -> Verdict,
) -> Vec<Fate> {
    let refused = |stage: Stage, reply: &Reply| {
        let verdict = judge(stage, reply);
        Fate {
            end: End::Not(course::of_reply(stage, reply, &verdict, sender)),
            said: reply.to_string(),
            reply: Some((stage, reply.clone())),
            verdict: Some(verdict),
        }
    };
    let event = |end: End, said: String| Fate { end, said, reply: None, verdict: None };
    let by_recipient = |replies: &[Reply], taken: &dyn Fn() -> Fate| {
        let of = |reply: &Reply| match reply.code.is_positive() {
            true => taken(),
            false => refused(Stage::Rcpt, reply),
        };
        replies.iter().map(of).collect()
    };
    match outcome {
        Outcome::Answered(replies, reply) => by_recipient(replies, &|| match reply.code.get() {
            250 => Fate {
                end: End::Delivered,
                said: reply.to_string(),
                reply: Some((Stage::Eod, reply.clone())),
                verdict: None,
            },
            // 250 is the only yes; whoever says something else may mean it so, or not.
            200..400 => event(End::MaybeSent, format!("an answer that is none: {reply}")),
            _ => refused(Stage::Eod, reply),
        }),
        Outcome::Unknown(replies, lost) => {
            by_recipient(replies, &|| event(End::MaybeSent, lost.to_string()))
        }
        Outcome::Nobody(replies) => {
            by_recipient(replies, &|| event(End::Not(Course::Reconnect), "out of step".to_owned()))
        }
        Outcome::Refused(stage, reply) => vec![refused(*stage, reply); count],
        Outcome::Lost(lost) => {
            vec![event(End::Not(Course::Reconnect), lost.to_string()); count]
        }
        Outcome::Unreadable(error) => {
            let said = format!("the mail data that were kept cannot be read: {error}");
            vec![event(End::Not(Course::Wait(Trouble::Passing)), said); count]
        }
        Outcome::NoLease(error) => {
            let verdict = error.reply().map(|(stage, reply)| judge(stage, reply));
            let fate = Fate {
                end: End::Not(course::of_no_lease(error, verdict.as_ref())),
                said: error
                    .reply()
                    .map_or_else(|| error.to_string(), |(_, reply)| reply.to_string()),
                reply: error.reply().map(|(stage, reply)| (stage, reply.clone())),
                verdict,
            };
            vec![fate; count]
        }
    }
}

/// What becomes of the message; `hold` says what holds it where a fate asks for that.
pub fn plan(fates: &[Fate], tries: Tries<'_>, mut hold: impl FnMut(&Hold, &Fate) -> Hold) -> Plan {
    let mut recipients = Vec::with_capacity(fates.len());
    let mut best: Option<(u8, usize, Standing)> = None;
    let later = |trouble, tried| {
        let wait = schedule::wait(trouble, tried, tries.waits, tries.chance);
        tries.now.saturating_add(wait).unwrap_or(tries.now)
    };
    let wait = |trouble| later(trouble, tries.count);
    let delivered = fates.iter().any(|fate| fate.end == End::Delivered);
    for (place, fate) in fates.iter().enumerate() {
        let (rank, state, due, held) = match &fate.end {
            End::MaybeSent => (0, State::MaybeSent, Some(wait(Trouble::Passing)), None),
            // The others were taken, so there is room for these in a transaction of their own.
            End::Not(Course::Wait(_)) if delivered && fate.rule() == "too-many-recipients" => {
                (1, State::Ready, Some(tries.now), None)
            }
            End::Not(Course::Wait(trouble)) => (2, State::Ready, Some(wait(*trouble)), None),
            // Whatever it is, trying alone does not find it out.
            End::Not(Course::OneByOne) if tries.count >= MISUNDERSTANDINGS => {
                (3, State::Held, Some(wait(Trouble::Setting)), Some(Hold::Message))
            }
            End::Not(Course::Reconnect | Course::OneByOne) => {
                let due = match AGAIN.get((tries.count as usize).saturating_sub(1)) {
                    Some(soon) => tries.now.saturating_add(*soon).unwrap_or(tries.now),
                    None => later(Trouble::Passing, tries.count.saturating_sub(AGAIN.len() as u32)),
                };
                (2, State::Ready, Some(due), None)
            }
            End::Not(Course::Hold(wanted)) => {
                // Others have just got it, so nothing is wrong with more than this.
                let alone = delivered && !matches!(wanted, Hold::Sender(_));
                let hold = if alone { Hold::Message } else { hold(wanted, fate) };
                // What is stopped as a whole is probed as a whole.
                let due = (hold == Hold::Message).then(|| wait(Trouble::Setting));
                (3, State::Held, due, Some(hold))
            }
            End::Not(Course::Refuse) => (4, State::Failed, None, None),
            End::Delivered => (5, State::Done, None, None),
        };
        let at_recipient = match state {
            State::Done => RecipientState::Delivered,
            State::Failed => RecipientState::Failed,
            _ => RecipientState::Pending,
        };
        recipients.push((at_recipient, fate.said.clone()));
        let standing = || Standing {
            state,
            due,
            hold: held.clone(),
            reason: fate.said.clone(),
            rule: fate.rule().to_owned(),
            attempts: tries.count,
            maybe_sent: state == State::MaybeSent,
            transcript: String::new(),
        };
        let better = match &best {
            None => true,
            Some((found, _, other)) => {
                rank < *found || rank == *found && state == State::Ready && due < other.due
            }
        };
        if better {
            best = Some((rank, place, standing()));
        }
    }
    let (_, decisive, standing) = best.expect("an attempt has at least one recipient");
    Plan { recipients, standing, decisive }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        proto::reply::Enhanced,
        smarthost::{
            classify::{self, catalogue::Catalogue},
            connection::{Lost, LostCause},
        },
    };

    const NOW: i64 = 1_800_000_000;

    fn reply(code: u16, enhanced: Enhanced, text: &str) -> Reply {
        Reply::new(code, enhanced, text)
    }

    fn ok() -> Reply {
        reply(250, Enhanced(2, 0, 0), "OK")
    }

    fn planned(outcome: &Outcome, recipients: usize, count: u32) -> (Plan, Vec<Hold>) {
        let judge =
            |stage, reply: &Reply| classify::reply(Catalogue::built_in(), Some(stage), reply);
        let fates = fates(outcome, recipients, "copier@example.com", judge);
        let waits = [Duration::from_secs(60), Duration::from_secs(120)];
        let now = Timestamp::from_second(NOW).unwrap();
        let mut holds = Vec::new();
        let plan = plan(&fates, Tries { count, waits: &waits, now, chance: 0.5 }, |hold, _| {
            holds.push(hold.clone());
            hold.clone()
        });
        (plan, holds)
    }

    fn told(outcome: &Outcome, recipients: usize, count: u32) -> String {
        let (plan, _) = planned(outcome, recipients, count);
        let due = plan.standing.due.map(|due| format!(" in {}", due.as_second() - NOW));
        let hold = plan.standing.hold.map(|hold| format!(" by {}", hold.name()));
        let states: Vec<String> = plan
            .recipients
            .iter()
            .map(|(state, _)| format!("{state:?}").chars().take(1).collect())
            .collect();
        let state = plan.standing.state.as_str();
        format!(
            "{} {state}{}{}",
            states.concat(),
            due.unwrap_or_default(),
            hold.unwrap_or_default()
        )
    }

    #[test]
    fn each_outcome_has_its_consequence() {
        let nobody = || reply(550, Enhanced(5, 1, 1), "no such user");
        let busy = || reply(450, Enhanced(4, 2, 1), "busy");
        let denied = || reply(554, Enhanced(5, 2, 252), "SendAsDenied");
        let more = || reply(452, Enhanced(4, 5, 3), "Too many recipients");
        let lost = |stage| Lost { stage, cause: LostCause::Closed };
        for (outcome, count, expected) in [
            (Outcome::Answered(vec![ok(), ok()], ok()), 1, "DD done"),
            (Outcome::Answered(vec![ok(), nobody()], ok()), 1, "DF failed"),
            (Outcome::Answered(vec![busy(), ok()], ok()), 1, "PD ready in 60"),
            (Outcome::Answered(vec![busy(), ok()], ok()), 2, "PD ready in 120"),
            (Outcome::Answered(vec![ok(), more()], ok()), 1, "DP ready in 0"),
            (Outcome::Nobody(vec![more(), more()]), 1, "PP ready in 60"),
            (Outcome::Nobody(vec![nobody(), nobody()]), 1, "FF failed"),
            (Outcome::Nobody(vec![nobody(), busy()]), 1, "FP ready in 60"),
            (Outcome::Answered(vec![ok(), busy()], denied()), 1, "PP ready in 60"),
            (
                Outcome::Answered(vec![ok(), ok()], denied()),
                1,
                "PP held by sender:copier@example.com",
            ),
            (
                Outcome::Answered(vec![ok(), nobody()], denied()),
                1,
                "PF held by sender:copier@example.com",
            ),
            (Outcome::Unknown(vec![ok(), nobody()], lost(Stage::Eod)), 1, "PF maybe-sent in 60"),
            (
                Outcome::Answered(vec![ok(), ok()], reply(354, Enhanced(2, 0, 0), "?")),
                1,
                "PP maybe-sent in 60",
            ),
            (Outcome::Lost(lost(Stage::Data)), 1, "PP ready in 1"),
            (Outcome::Lost(lost(Stage::Data)), 2, "PP ready in 4"),
            (Outcome::Lost(lost(Stage::Data)), 3, "PP ready in 60"),
            (
                Outcome::Refused(Stage::Data, reply(503, Enhanced(5, 5, 1), "Bad sequence")),
                2,
                "PP ready in 4",
            ),
            (
                Outcome::Refused(Stage::Data, reply(503, Enhanced(5, 5, 1), "Bad sequence")),
                3,
                "PP held in 3600 by message",
            ),
        ] {
            assert_eq!(told(&outcome, 2, count), expected, "{outcome:?}");
        }
    }

    #[test]
    fn a_hold_is_asked_for_once_a_recipient_and_kept_as_it_was_answered() {
        let denied = Outcome::Refused(Stage::Mail, reply(554, Enhanced(5, 2, 252), "SendAsDenied"));
        let (plan, holds) = planned(&denied, 2, 1);
        assert_eq!(holds.len(), 2);
        assert!(plan.standing.due.is_none(), "what is stopped as a whole is probed as a whole");
        assert_eq!(plan.standing.rule, "send-as-denied");
        assert!(plan.standing.reason.starts_with("554 5.2.252"));
    }
}
