//! Every reply that is known of Exchange Online is judged as the table says, as it came over a socket and as
//! people paste it.

use std::collections::BTreeSet;

use smtp_uplift::{
    proto::{
        client::Stage,
        reply::{Enhanced, Reply, ReplyLines},
    },
    smarthost::classify::{self, Verdict, catalogue::Catalogue},
};

struct Row {
    text: &'static str,
    code: &'static str,
    enhanced: &'static str,
    stage: Option<Stage>,
    expected: [&'static str; 3],
}

fn rows() -> Vec<Row> {
    let row = |line: &'static str| {
        let columns: Vec<&str> = line.split('\t').collect();
        let [text, code, enhanced, stage, class, retry, scope, ..] = columns[..] else {
            panic!("at least seven columns: {line}");
        };
        // "any" and "ndr" are no stages of a session.
        let stage = Stage::parse(stage);
        Row { text, code, enhanced, stage, expected: [class, retry, scope] }
    };
    include_str!("../data/replies.tsv").lines().skip(1).map(row).collect()
}

fn judged(verdict: &Verdict) -> [&'static str; 3] {
    [verdict.class.as_str(), verdict.retry.as_str(), verdict.scope.as_str()]
}

fn pasted(stage: Option<Stage>, text: &str) -> Verdict {
    classify::pasted(Catalogue::built_in(), stage, text)
}

/// What a change does to the text of a row; `None` where it cannot be done.
type Change = (&'static str, fn(&Row) -> Option<String>);

const FRONT_END: &str =
    " [MN2PR05CA0004.namprd05.prod.outlook.com 2023-09-12T20:59:57.214Z 08DBB276B7E699C4]";

const CHANGES: &[Change] = &[
    ("nothing", |row| Some(row.text.into())),
    ("front end's suffix", |row| Some(format!("{}{FRONT_END}", row.text))),
    ("old suffix", |row| Some(format!("{} [BN3PR03CA0067.namprd03.prod.outlook.com]", row.text))),
    ("store driver's suffix", |row| {
        Some(format!("{} [Hostname=SYBP282MB2635.AUSP282.PROD.OUTLOOK.COM]", row.text))
    }),
    ("several groups", |row| {
        Some(format!(
            "{} [Name=Protocol Filter Agent][AGT=PFA][MxId=11B989991C72A5F2]{FRONT_END}",
            row.text
        ))
    }),
    ("diagnostic data", |row| {
        Some(format!(
            "{} [BeginDiagnosticData]Cannot submit message. 0.35250:1F009983, 1.36674:0A000000, 4.21921:DC040000, 255.1494:05000000[EndDiagnosticData]",
            row.text
        ))
    }),
    ("smtp; in front", |row| Some(format!("smtp;{}", row.text))),
    ("SMTP; in front", |row| Some(format!("SMTP; {}", row.text))),
    ("lower case", |row| Some(row.text.to_lowercase())),
    ("upper case", |row| Some(row.text.to_uppercase())),
    ("doubled blanks", |row| Some(row.text.replace(' ', "  "))),
    ("no full stops", |row| Some(row.text.trim_end_matches('.').into())),
    ("two lines, both hyphenated", |row| lines(row, "-")),
    ("two lines", |row| lines(row, " ")),
    ("hyphen after the code", |row| {
        (!row.code.is_empty())
            .then(|| row.text.replacen(&format!("{} ", row.code), &format!("{}-", row.code), 1))
    }),
    ("no reply code", |row| {
        row.text
            .strip_prefix(row.code)
            .filter(|_| !row.code.is_empty())
            .map(|rest| rest.trim().into())
    }),
    ("no enhanced code", |row| without_enhanced(row)),
    ("neither code", |row| {
        // An "OK" alone says nothing.
        let text = without_enhanced(row)?;
        text.strip_prefix(row.code)
            .filter(|_| !row.code.starts_with('2'))
            .map(|rest| rest.trim().into())
    }),
    ("a sentence around", |row| {
        Some(format!(
            "Since Monday the printer on floor 3 shows \"{}\" whenever somebody scans, what now?",
            row.text
        ))
    }),
    ("a bounce", |row| {
        Some(format!(
            "Delivery has failed to these recipients or groups:\r\n\r\nGenerating server: DM6PR04MB1234.namprd04.prod.outlook.com\r\n\r\nsomebody@example.com\r\nRemote Server returned '{}'\r\n\r\nOriginal message headers:\r\n",
            row.text
        ))
    }),
    ("Exchange's report", |row| Some(format!("#< #{} smtp;{}> #SMTP#", row.enhanced, row.text))),
    ("a Postfix log", |row| {
        Some(format!(
            "Oct 24 09:08:15 relay postfix/smtp[69929]: 2861D156803A9: to=<user@example.com>, relay=smtp.office365.com[52.97.201.210]:587, delay=5.6, delays=0.08/0.03/0.48/5, dsn={}, status=bounced (host smtp.office365.com[52.97.201.210] said: {}{FRONT_END})",
            row.enhanced, row.text
        ))
    }),
    ("Python's tuple", |row| {
        let rest = row.text.strip_prefix(row.code).filter(|_| !row.code.is_empty())?;
        Some(format!("smtplib.SMTPException: ({}, b\"{}\")", row.code, rest.trim()))
    }),
    ("nodemailer", |row| {
        Some(format!("{{ code: 'EX', response: `{}`, responseCode: {} }}", row.text, row.code))
    }),
    ("swaks", |row| Some(format!("<** {}", row.text))),
    ("wrapped by a mail program", |row| Some(wrapped(row.text))),
    ("smtp;, suffix, doubled blanks, lower case", |row| {
        Some(format!("smtp;{}{FRONT_END}", row.text).replace(' ', "  ").to_lowercase())
    }),
    ("no reply code, suffix, sentence", |row| {
        let rest = row.text.strip_prefix(row.code).filter(|_| !row.code.is_empty())?;
        Some(format!("The server response was: {}{FRONT_END}", rest.trim()))
    }),
    ("two lines, smtp;, upper case", |row| {
        Some(format!("smtp;{}", lines(row, "-")?).to_uppercase())
    }),
    ("no enhanced code, quoted", |row| Some(format!("error: '{}'", without_enhanced(row)?))),
];

const MORE_CHANGES: &[Change] = &[
    (".NET", |row| {
        let rest = row.text.strip_prefix(row.code).filter(|_| !row.code.is_empty())?;
        Some(format!(
            "System.Net.Mail.SmtpException: {}. The server response was: {}\r\n   at System.Net.Mail.MailCommand.CheckResponse(SmtpStatusCode statusCode, String response) in C:\\app\\Mailer.cs:line 250",
            status_text(row.code),
            rest.trim()
        ))
    }),
    (".NET in German", |row| {
        let rest = row.text.strip_prefix(row.code).filter(|_| !row.code.is_empty())?;
        Some(format!("Ausnahme: Postfach nicht verfügbar. Die Serverantwort war: {}", rest.trim()))
    }),
    (".NET in French", |row| {
        let rest = row.text.strip_prefix(row.code).filter(|_| !row.code.is_empty())?;
        Some(format!(
            "Boîte aux lettres non disponible. La réponse du serveur était : {}",
            rest.trim()
        ))
    }),
    ("Exim", |row| {
        Some(format!(
            "2026-11-22 09:08:15 1rZxYz-0003Ab-2C ** user@example.com R=smarthost T=remote_smtp_smarthost H=smtp.office365.com [52.97.201.210] X=TLS1.2:ECDHE_SECP384R1__RSA_SHA256__AES_256_GCM:256 CV=yes: SMTP error from remote mail server: {}",
            row.text
        ))
    }),
    ("sendmail", |row| {
        Some(format!(
            "Nov 22 09:08:15 mta1 sendmail[12566]: u31FFPtp032300: to=<user@example.com>, delay=00:00:15, xdelay=00:00:15, mailer=relay, pri=34527, relay=smtp.office365.com. [52.97.201.210], dsn={}, stat={}",
            row.enhanced, row.text
        ))
    }),
    ("msmtp", |row| {
        Some(format!(
            "msmtp: the server did not accept the mail\nmsmtp: server message: {}\nmsmtp: could not send mail (account default from /etc/msmtprc)",
            row.text
        ))
    }),
    ("PHP", |row| {
        Some(format!(
            "Expected response code 250 but got code \"{}\", with message \"{}\"",
            row.code, row.text
        ))
    }),
    ("HTML", |row| {
        let text = row.text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        Some(format!(
            "<p style=\"font-size: 12px; width: 550px\"><b>{}</b></p>",
            text.replace('\'', "&#39;")
        ))
    }),
    ("JSON", |row| {
        let text = row.text.replace('"', "\\\"");
        Some(format!(
            "{{\"time\":1793351295,\"level\":\"error\",\"msg\":\"mail: {text}\\r\\n\",\"port\":587}}"
        ))
    }),
    ("a message trace", |row| {
        Some(format!(
            "Reason: [{{LED={}}};{{MSG=}};{{FQDN=smtp.office365.com}};{{IP=52.97.201.210}};{{LRT=11/22/2026 9:08:15 AM}}]",
            row.text
        ))
    }),
    ("a quoted mail", |row| {
        Some(format!(
            "> On Sunday you wrote:\n> > {}",
            wrapped(row.text).replace("\n    ", "\n> > ")
        ))
    }),
    ("a printer's journal", |row| {
        Some(format!("2026/11/22 09:08 JOB#0250 E-MAIL NG (SMTP) {}", row.text))
    }),
    ("a session", |row| {
        Some(format!(
            "S: 220 LO4P302CA0005.outlook.office365.com Microsoft ESMTP MAIL Service ready\r\nC: EHLO x\r\nS: 250-LO4P302CA0005.outlook.office365.com Hello [203.0.113.7]\r\nS: 250-SIZE 157286400\r\nS: 250 SMTPUTF8\r\nC: X\r\nS: {}",
            row.text
        ))
        .filter(|_| row.code >= "4")
    }),
];

/// What .NET puts before a reply.
fn status_text(code: &str) -> &'static str {
    match code {
        "421" => "Service not available, closing transmission channel",
        "450" | "550" => "Mailbox unavailable",
        "451" => "Error in processing",
        "452" => "Insufficient system storage",
        "454" | "530" => {
            "The SMTP server requires a secure connection or the client was not authenticated"
        }
        "500" => "Syntax error, command unrecognized",
        "501" => "Syntax error in parameters or arguments",
        "502" => "Command not implemented",
        "503" => "Bad sequence of commands",
        "504" => "Command parameter not implemented",
        "552" => "Exceeded storage allocation",
        "554" => "Transaction failed",
        _ => "Failure sending mail",
    }
}

fn without_enhanced(row: &Row) -> Option<String> {
    let (before, after) = row.text.split_once(row.enhanced).filter(|_| !row.enhanced.is_empty())?;
    let (_, after) = after.split_once(' ')?;
    Some(format!("{before}{after}"))
}

/// The reply in two lines, codes on both; the second with `last` behind its code.
fn lines(row: &Row, last: &str) -> Option<String> {
    let codes = match (row.code, row.enhanced) {
        ("", _) => return None,
        (code, "") => [format!("{code}-"), format!("{code}{last}")],
        (code, enhanced) => [format!("{code}-{enhanced} "), format!("{code}{last}{enhanced} ")],
    };
    let words = row.text.strip_prefix(row.code)?.trim().strip_prefix(row.enhanced)?.trim();
    let middle = words.len() / 2;
    let at = middle + words[middle..].find(' ')?;
    Some(format!("{}{}\r\n{}{}", codes[0], &words[..at], codes[1], &words[at + 1..]))
}

fn wrapped(text: &str) -> String {
    let mut out = String::from("    ");
    for word in text.split(' ') {
        if out.lines().last().map_or(0, str::len) + word.len() > 60 {
            out.push_str("\n    ");
        }
        out.push_str(word);
        out.push(' ');
    }
    out
}

#[test]
fn every_reply_is_judged_as_the_table_says_whatever_is_done_to_it() {
    let rows = rows();
    assert_eq!(rows.len(), 194);
    let mut wrong = Vec::new();
    let mut judgements = 0;
    for (name, change) in CHANGES.iter().chain(MORE_CHANGES) {
        for row in &rows {
            let Some(text) = change(row) else { continue };
            // Without its codes a reply may read like another one; then either verdict will do.
            let possible: BTreeSet<_> = rows
                .iter()
                .filter(|other| change(other).as_deref() == Some(&text))
                .map(|other| other.expected)
                .collect();
            for stage in BTreeSet::from([None, row.stage.map(|stage| stage.as_str())]) {
                let stage = stage.and_then(Stage::parse);
                let verdict = pasted(stage, &text);
                judgements += 1;
                if !possible.contains(&judged(&verdict)) {
                    wrong.push(format!(
                        "{name}: {:?} by {}, not {:?} at {stage:?}: {text:.200}",
                        judged(&verdict),
                        verdict.rule,
                        row.expected
                    ));
                }
            }
        }
    }
    assert!(judgements > 10_000, "{judgements}");
    assert!(wrong.is_empty(), "{} of {judgements} are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_reply_of_a_socket_is_judged_as_the_table_says_and_keeps_its_codes() {
    for row in rows().iter().filter(|row| !row.code.is_empty()) {
        let mut reader = ReplyLines::default();
        let reply = reader.push(row.text.as_bytes()).unwrap().unwrap();
        let mut two = Reply::new(reply.code.get(), reply.enhanced, reply.text());
        if let Some((first, second)) = reply.text().split_once(' ') {
            two.lines = vec![first.to_owned(), second.to_owned()];
        }
        for reply in [&reply, &two] {
            let verdict = classify::reply(Catalogue::built_in(), row.stage, reply);
            assert_eq!(judged(&verdict), row.expected, "by {}: {reply}", verdict.rule);
            assert_eq!(verdict.code, Some(reply.code));
            assert!(!verdict.is_unknown(), "{reply}");
            if let Some(enhanced) = Enhanced::parse(row.enhanced) {
                assert_eq!(verdict.enhanced, Some(enhanced), "{reply}");
            }
        }
    }
}

#[test]
fn a_rule_knows_every_row() {
    for row in rows() {
        let verdict = pasted(row.stage, row.text);
        assert!(!verdict.is_unknown(), "no rule knows {:?}", row.text);
        let code = verdict.code.map_or(String::new(), |code| code.to_string());
        assert_eq!(code, row.code, "{}", row.text);
    }
}
