//! The rows of the matrix: where something goes wrong, and what.

/// Something that goes wrong.
pub(super) struct Case {
    /// Where, as the document names it.
    pub stage: &'static str,
    /// What kind of trouble it is.
    pub kind: &'static str,
    /// What the smarthost does.
    pub does: String,
    pub trouble: Trouble,
    /// More than 64 KiB: a connection is asked for before the dot.
    pub large: bool,
    /// It strikes when a message is through; the row is about the next one.
    pub follows: bool,
}

pub(super) enum Trouble {
    /// There is no such thing.
    Impossible,
    /// Nobody is let in.
    Away,
    /// Lines of a `[[fault]]`.
    Fault(String),
}

/// A kind of trouble, and a reply that means it.
type Said = (&'static str, &'static str);

/// The stages where something is said: the document's name, the sandbox's, and replies that are right there.
const STAGES: [(&str, &str, &[Said]); 10] = [
    (
        "greeting",
        "connect",
        &[
            ("4xx", "421 4.3.2 Service not available"),
            ("5xx", "554 No SMTP service here"),
            (
                "config",
                "550 5.7.708 Service unavailable. Access denied, traffic not accepted from this IP",
            ),
        ],
    ),
    (
        "EHLO",
        "ehlo",
        &[
            ("4xx", "421 4.3.2 Service not available"),
            ("5xx", "554 5.0.0 Transaction failed"),
            ("config", "501 5.5.4 Invalid domain name"),
        ],
    ),
    (
        "STARTTLS",
        "starttls",
        &[
            ("4xx", "454 4.7.0 TLS not available due to temporary reason"),
            ("5xx", "554 5.0.0 Transaction failed"),
            (
                "config",
                "454 4.7.0 Failed to establish appropriate TLS channel: UntrustedRoot: Access Denied",
            ),
        ],
    ),
    ("handshake", "tls", &[]),
    (
        "AUTH",
        "auth",
        &[
            ("4xx", "454 4.7.0 Temporary authentication failure"),
            ("5xx", "535 5.7.3 Authentication unsuccessful"),
            (
                "config",
                "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox.",
            ),
        ],
    ),
    (
        "MAIL",
        "mail",
        &[
            ("4xx", "451 4.7.0 Temporary server error. Please try again later. PRX5"),
            (
                "throttled",
                "421 4.4.2 Message submission rate for this client has exceeded the configured limit",
            ),
            ("5xx", "552 5.3.4 Message size exceeds fixed maximum message size"),
            ("config", "530 5.7.57 Client not authenticated to send mail."),
        ],
    ),
    (
        "RCPT",
        "rcpt",
        &[
            ("4xx", "450 4.2.1 Mailbox busy"),
            ("throttled", "452 4.5.3 Too many recipients"),
            (
                "5xx",
                "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found by SMTP address lookup",
            ),
            ("config", "550 5.7.133 Sender not authenticated for group"),
        ],
    ),
    (
        "DATA",
        "data",
        &[
            ("4xx", "421 4.3.2 Service not available"),
            ("5xx", "503 5.5.1 Bad sequence of commands"),
            ("config", "530 5.7.57 Client not authenticated to send mail."),
        ],
    ),
    (
        "in the data",
        "in-data",
        &[
            ("4xx", "421 4.3.2 Service not available"),
            ("5xx", "552 5.3.4 Message size exceeds fixed maximum message size"),
            (
                "config",
                "550 5.7.708 Service unavailable. Access denied, traffic not accepted from this IP",
            ),
        ],
    ),
    (
        "final dot",
        "dot",
        &[
            ("4xx", "451 4.7.0 Temporary server error. Please try again later. PRX5"),
            ("throttled", "432 4.3.2 Concurrent connections limit exceeded."),
            ("5xx", "554 5.6.0 Invalid message content"),
            (
                "config",
                "554 5.2.252 SendAsDenied; scanner@example.com not allowed to send as copier@example.com",
            ),
            ("config", "430 4.2.0 STOREDRV; mailbox logon failure"),
            (
                "config",
                "550 5.7.708 Service unavailable. Access denied, traffic not accepted from this IP",
            ),
        ],
    ),
];

/// When a message is through: said unasked.
const AFTERWARDS: &[Said] =
    &[("4xx", "421 4.4.1 Connection timed out"), ("5xx", "554 5.0.0 Transaction failed")];

/// What may happen anywhere, and the line that does it.
const ANYWHERE: [(&str, &str, &str); 4] = [
    ("close", "closes the connection", "close = true"),
    ("hang", "says nothing more", "hang = true"),
    ("garbage", "says what is no reply", "garbage = true"),
    ("slow", "is 25 s late", "delay = 25.0"),
];

/// Every row, in the document's order.
pub(super) fn all() -> Vec<Case> {
    let row = |stage, kind, does: &str, trouble| Case {
        stage,
        kind,
        does: does.to_owned(),
        trouble,
        large: stage == "in the data",
        follows: stage == "after the dot",
    };
    let impossible = |stage, kind| row(stage, kind, "", Trouble::Impossible);
    let fault = |stage: &str, line: &str| Trouble::Fault(format!("stage = '{stage}'\n{line}"));
    let mut rows = vec![
        row("connect", "close", "refuses connections", Trouble::Away),
        Case {
            large: true,
            ..row("connect", "close", "the same, and the message is large", Trouble::Away)
        },
    ];
    rows.extend(
        ["4xx", "5xx", "config", "hang", "garbage", "slow"].map(|kind| impossible("connect", kind)),
    );
    for (stage, name, replies) in STAGES.into_iter().chain([("after the dot", "idle", AFTERWARDS)])
    {
        for kind in ["4xx", "throttled", "5xx", "config"] {
            let said = replies.iter().filter(|(of, _)| *of == kind);
            let said = said.map(|(_, reply)| {
                let line = format!("reply = \"{reply}\"");
                row(stage, kind, &format!("`{reply}`"), fault(name, &line))
            });
            let before = rows.len();
            rows.extend(said);
            if rows.len() == before && kind != "throttled" {
                rows.push(impossible(stage, kind));
            }
        }
        for (kind, does, line) in ANYWHERE {
            // Nobody waits for anything there, so nothing is late.
            if name == "idle" && kind == "slow" {
                rows.push(impossible(stage, kind));
            } else {
                rows.push(row(stage, kind, does, fault(name, line)));
            }
        }
    }
    rows
}
