//! Whatever a smarthost sends or somebody pastes is judged, soon and without falling over.

#![allow(clippy::disallowed_types, reason = "the wall clock is what is measured")]

use std::time::{Duration, Instant};

use smtp_uplift::{
    proto::reply::Reply,
    smarthost::classify::{self, catalogue::Catalogue, class::Class, explain, scan},
};

/// Generous: the machine may be busy. It takes some milliseconds.
const SOON: Duration = Duration::from_millis(500);

fn judged(text: &str) -> classify::Verdict {
    let begun = Instant::now();
    let verdict = classify::pasted(Catalogue::built_in(), None, text);
    let told = explain::text(&verdict, text);
    assert!(begun.elapsed() < SOON, "{:?} for {} octets: {text:.60}", begun.elapsed(), text.len());
    assert!(!told.is_empty() && told.len() < 100_000);
    verdict
}

#[test]
fn long_texts_of_every_kind_take_no_longer_than_they_must() {
    for piece in [
        "x",
        " ",
        "5",
        "550 ",
        "550-",
        "5.7.1 ",
        "5.7.1.",
        "5.",
        "550 5.7.1 ",
        "[",
        "]",
        "[]",
        "=\n",
        "\n",
        "\\n",
        "550\n",
        "550-5.7.1 no\r\n",
        "ä",
        "\u{1F4E0}",
        "\0",
        "''",
        "@",
        "a@b ",
        "a.b ",
        "535 5.7.139 ",
        "prx",
        "(in reply to ",
        " & ",
        "smtpclientauthentication ",
        "sendasdenied",
    ] {
        for octets in [80, 64 * 1024, 1 << 20] {
            judged(&piece.repeat(octets / piece.len() + 1));
        }
    }
}

#[test]
fn a_verdict_is_found_behind_much_else_and_not_beyond_the_limit() {
    let reply = "535 5.7.139 Authentication unsuccessful, basic authentication is disabled.";
    let noise = "at com.sun.mail.smtp.SMTPTransport.authenticate(SMTPTransport.java)\n";
    let near = noise.repeat(500) + reply;
    assert_eq!(judged(&near).rule.as_str(), "basic-auth-off");
    let far = noise.repeat(scan::LIMIT / noise.len() + 1) + reply;
    assert!(judged(&far).is_unknown());
}

#[test]
fn a_reply_of_64_kib_and_one_of_a_thousand_lines_are_judged() {
    let mut reply =
        Reply::new(550, None, "SMTP; Client does not have permissions to send as this sender");
    reply.lines.extend((0..999).map(|line| format!("{line} {}", "x".repeat(60))));
    assert!(reply.text().len() > 60_000);
    let verdict = classify::reply(Catalogue::built_in(), None, &reply);
    assert_eq!(verdict.class, Class::SenderPermission);
    let pasted: String = (0..1_000).map(|line| format!("550-5.7.60 {line} words\r\n")).collect();
    assert_eq!(judged(&pasted).class, Class::SenderPermission);
}

#[test]
fn lines_that_contradict_each_other_are_a_fault_of_the_protocol() {
    let verdict = judged("550-5.7.1 one thing\r\n451 4.7.0 another\r\n");
    assert_eq!(verdict.rule.as_str(), "protocol-fault");
    assert_eq!(
        verdict,
        classify::Verdict {
            code: verdict.code,
            enhanced: verdict.enhanced,
            ..classify::protocol_fault()
        }
    );
}

#[test]
fn texts_without_any_reply_are_unknown() {
    for text in
        ["", " ", "\r\n", "hello", "1102", "Ошибка", "不明なエラー", "250.13 MB", "\u{FEFF}"]
    {
        let verdict = judged(text);
        assert!(verdict.is_unknown(), "{text:?} is {}", verdict.rule);
        assert_eq!((verdict.code, verdict.enhanced), (None, None), "{text:?}");
    }
}

#[test]
fn whatever_octets_come_nothing_falls_over() {
    // A small generator of its own: the same texts in every run.
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let alphabet: Vec<char> =
        "0123456789.-- \r\n[]()'\"=;:/@<>abcSMTPäßé\u{2019}\u{1F4E0}\\".chars().collect();
    for _ in 0..20_000 {
        let length = next() % 60;
        let text: String =
            (0..length).map(|_| alphabet[(next() % alphabet.len() as u64) as usize]).collect();
        let verdict = classify::pasted(Catalogue::built_in(), None, &text);
        explain::text(&verdict, &text);
        let code = (next() % 400) as u16 + 200;
        classify::reply(Catalogue::built_in(), None, &Reply::new(code, None, text));
    }
}
