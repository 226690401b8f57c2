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
        (Retry::AfterConfig, scope) => Course::Hold(hold(scope, stage, verdict, sender)),
        (Retry::Yes, _) if verdict.class == Class::Throttling => Course::Wait(throttled(verdict)),
        _ if code == 421 => Course::Reconnect,
        // Of one recipient among others; what is wrong with the connection shows at the others.
        (Retry::Yes, Scope::Connection) if stage == Stage::Rcpt && !is_proxy_fault(verdict) => {
            Course::Wait(Trouble::Passing)
        }
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
        (LeaseError::LoginRefused(..), _) => Course::Hold(Hold::Credential),
        (_, Some(verdict)) if verdict.retry == Retry::AfterConfig => {
            Course::Hold(match verdict.scope {
                Scope::Credential | Scope::Mailbox | Scope::Sender => Hold::Credential,
                _ => Hold::Smarthost,
            })
        }
        (LeaseError::Open(error), None) => match &**error {
            OpenError::Login(error) if error.is_temporary() => Course::Wait(Trouble::Passing),
            OpenError::Login(_) => Course::Hold(Hold::Credential),
            OpenError::Refused(_) => Course::Hold(Hold::Smarthost),
            OpenError::Dial(_) | OpenError::Tls(_) | OpenError::Lost(_) => {
                Course::Wait(Trouble::Passing)
            }
        },
        _ => Course::Wait(Trouble::Passing),
    }
}

/// Rules that speak of everybody, but that one message can ask for by whom it goes to, by whom it comes from, or by
/// what it says.
const PROVOKED: [&str; 4] = ["far-certificate", "ip-listed", "relay-denied", "unregistered-domain"];

/// What is stopped. What a device has a hand in never stops more than its sender.
fn hold(scope: Scope, stage: Stage, verdict: &Verdict, sender: &str) -> Hold {
    let from_sender = || Hold::Sender(sender.to_ascii_lowercase());
    match scope {
        Scope::Recipient | Scope::Message => Hold::Message,
        // Whom a message goes to says nothing of others, whatever the reply does.
        _ if stage == Stage::Rcpt => Hold::Message,
        Scope::Sender => from_sender(),
        _ if verdict.rule.as_str() == "unregistered-domain" => from_sender(),
        _ if PROVOKED.contains(&verdict.rule.as_str()) => Hold::Message,
        Scope::Mailbox => Hold::Mailbox,
        Scope::Credential => Hold::Credential,
        Scope::Smarthost => Hold::Smarthost,
        Scope::Connection if stage >= Stage::Mail => Hold::Message,
        Scope::Connection => Hold::Smarthost,
    }
}

/// `PRX1` and the like: the front end has lost its back end, and another one may not.
fn is_proxy_fault(verdict: &Verdict) -> bool {
    matches!(verdict.rule.as_str(), "backend" | "prx4-backend")
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        proto::client::Refusal,
        smarthost::{
            classify::{self, catalogue::Catalogue},
            connection::{Lost, LostCause},
        },
    };

    fn reply(text: &str) -> Reply {
        let (enhanced, words) = crate::proto::reply::Enhanced::split(&text[4..]);
        Reply::new(text[..3].parse().unwrap(), enhanced, words)
    }

    fn of(stage: Stage, text: &str) -> Course {
        let reply = reply(text);
        let verdict = classify::reply(Catalogue::built_in(), Some(stage), &reply);
        of_reply(stage, &reply, &verdict, "Copier@Example.com")
    }

    #[test]
    fn what_is_said_decides_not_its_first_digit() {
        use Course::*;
        let copier = || Hold(super::Hold::Sender("copier@example.com".to_owned()));
        for (stage, text, course) in [
            (
                Stage::Eod,
                "432 4.3.2 Concurrent connections limit exceeded.",
                Wait(Trouble::Concurrency),
            ),
            (
                Stage::Mail,
                "421 4.4.2 Message submission rate for this client has exceeded the configured limit",
                Wait(Trouble::Rate),
            ),
            (
                Stage::Eod,
                "554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException; Failed",
                Wait(Trouble::Quota),
            ),
            (Stage::Rcpt, "550 5.7.233 Message rate limited", Wait(Trouble::Quota)),
            (
                Stage::Mail,
                "451 4.7.500 Server busy. Please try again later",
                Wait(Trouble::Reputation),
            ),
            (
                Stage::Eod,
                "451 4.7.0 Temporary server error. Please try again later. PRX5",
                Reconnect,
            ),
            (Stage::Rcpt, "421 4.3.2 Service not available", Reconnect),
            (
                Stage::Rcpt,
                "451 4.7.0 Temporary server error. Please try again later. PRX5",
                Reconnect,
            ),
            (Stage::Eod, "451 later", Reconnect),
            (Stage::Eod, "354 go on", Reconnect),
            (Stage::Rcpt, "452 4.5.3 Too many recipients", Wait(Trouble::Passing)),
            (Stage::Rcpt, "450 4.2.1 mailbox busy", Wait(Trouble::Passing)),
            (
                Stage::Eod,
                "554 5.2.252 SendAsDenied; scanner@example.com not allowed to send as copier@example.com",
                copier(),
            ),
            (Stage::Eod, "430 4.2.0 STOREDRV; mailbox logon failure", Hold(super::Hold::Mailbox)),
            (
                Stage::Eod,
                "550 5.7.708 Service unavailable. Access denied",
                Hold(super::Hold::Smarthost),
            ),
            (
                Stage::Mail,
                "530 5.7.57 Client not authenticated to send mail.",
                Hold(super::Hold::Credential),
            ),
            (Stage::Rcpt, "550 5.1.1 no such user", Refuse),
            (Stage::Rcpt, "501 5.1.3 Invalid address", Refuse),
            (Stage::Eod, "552 5.3.4 Message size exceeds fixed maximum message size", Refuse),
            (Stage::Eod, "550 5.6.11 bare linefeeds", Refuse),
            (Stage::Data, "503 5.5.1 Bad sequence of commands", OneByOne),
        ] {
            assert_eq!(of(stage, text), course, "{stage} {text}");
        }
    }

    #[test]
    fn what_a_device_can_ask_for_stops_nobody_else() {
        for (stage, text, hold) in [
            (Stage::Rcpt, "550 5.7.64 TenantAttribution; Relay Access Denied", Hold::Message),
            (Stage::Eod, "550 5.7.64 TenantAttribution; Relay Access Denied", Hold::Message),
            (Stage::Rcpt, "550 5.7.708 Service unavailable. Access denied", Hold::Message),
            (Stage::Rcpt, "554 5.2.2 mailbox full", Hold::Message),
            (Stage::Eod, "554 5.7.1 URL on our blocklist", Hold::Message),
            (Stage::Eod, "451 4.7.323 tlsa-invalid", Hold::Message),
            (
                Stage::Eod,
                "550 5.7.750 Service unavailable. Client blocked from sending from unregistered domains",
                Hold::Sender("copier@example.com".to_owned()),
            ),
        ] {
            match of(stage, text) {
                Course::Hold(found) => assert_eq!(found, hold, "{stage} {text}"),
                Course::Refuse | Course::Wait(_) if hold == Hold::Message => {}
                other => panic!("{stage} {text}: {other:?}"),
            }
        }
    }

    #[test]
    fn without_a_connection_the_reason_decides() {
        let open = |error: OpenError| LeaseError::Open(Box::new(error));
        let refused = |stage: Stage, text: &str| {
            let reply = reply(text);
            let verdict = classify::reply(Catalogue::built_in(), Some(stage), &reply);
            let error = open(OpenError::Refused(Refusal::Reply(stage, reply)));
            of_no_lease(&error, Some(&verdict))
        };
        let later = Course::Wait(Trouble::Passing);
        assert_eq!(
            refused(Stage::Auth, "535 5.7.3 Authentication unsuccessful"),
            Course::Hold(Hold::Credential)
        );
        assert_eq!(refused(Stage::Connect, "421 4.3.2 Service not available"), later);
        assert_eq!(refused(Stage::Connect, "554 go away"), Course::Hold(Hold::Smarthost));
        let lost = Lost { stage: Stage::Ehlo, cause: LostCause::Closed };
        for (error, course) in [
            (LeaseError::Busy(std::time::Duration::from_secs(5)), later.clone()),
            (LeaseError::LoginRefused(None, None), Course::Hold(Hold::Credential)),
            (open(OpenError::Refused(Refusal::NoStartTls)), Course::Hold(Hold::Smarthost)),
            (open(OpenError::Lost(lost)), later),
        ] {
            assert_eq!(of_no_lease(&error, None), course, "{error}");
        }
    }

    #[test]
    fn the_rules_that_are_told_apart_by_name_are_in_the_catalogue() {
        let ids: Vec<&str> =
            Catalogue::built_in().rules().iter().map(|rule| rule.id.as_str()).collect();
        for id in [
            "mailbox-connections",
            "message-rate",
            "daily-quota",
            "outbound-quota",
            "tenant-trial-limit",
            "tenant-external-limit",
            "continuous-errors",
            "too-many-recipients",
            "backend",
            "prx4-backend",
        ]
        .iter()
        .chain(&PROVOKED)
        {
            assert!(ids.contains(id), "{id}");
        }
    }
}
