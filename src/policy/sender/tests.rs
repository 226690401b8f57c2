use proptest::prelude::*;

use super::*;
use crate::proto::header::fields;

const MAILBOX: &str = "scanner@example.com";

fn rule(send_as: &[&str], senders: Option<&[&str]>) -> Rule {
    let patterns =
        |list: &[&str]| Patterns::new(list.iter().map(|one| (*one).to_owned()).collect());
    Rule {
        rewrite: Rewrite::Mailbox,
        mailbox: MAILBOX.to_owned(),
        send_as: patterns(send_as),
        senders: senders.map(patterns),
    }
}

fn path(address: &str) -> ReversePath {
    if address.is_empty() {
        return ReversePath::Null;
    }
    ReversePath::Address(Address::parse(address).unwrap())
}

fn section(text: &[u8]) -> Section {
    Section { fields: Bytes::copy_from_slice(text), ..Section::default() }
}

fn edited(rule: &Rule, received: &str, text: &[u8]) -> String {
    let front = rule.front(&path(received), b"", &section(text));
    String::from_utf8_lossy(&front).into_owned()
}

#[test]
fn reverse_paths_become_the_mailbox_unless_they_may_be_used() {
    let helpdesk = &["helpdesk@example.com", "*@alarms.example.com"];
    let any = rule(helpdesk, None);
    let bound = rule(helpdesk, Some(&["helpdesk@example.com"]));
    let keep = Rule { rewrite: Rewrite::Keep, ..any.clone() };
    for (received, by_any, by_bound, kept) in [
        ("copier@example.com", MAILBOX, MAILBOX, "copier@example.com"),
        (
            "Scanner@Example.com",
            "Scanner@Example.com",
            "Scanner@Example.com",
            "Scanner@Example.com",
        ),
        (
            "HelpDesk@example.com",
            "HelpDesk@example.com",
            "HelpDesk@example.com",
            "HelpDesk@example.com",
        ),
        ("door@alarms.example.com", "door@alarms.example.com", MAILBOX, "door@alarms.example.com"),
        ("müller@bücher.example", MAILBOX, MAILBOX, "müller@bücher.example"),
        ("copier@printer.local", MAILBOX, MAILBOX, "copier@printer.local"),
        ("", MAILBOX, MAILBOX, MAILBOX),
    ] {
        let sent = |rule: &Rule| rule.reverse_path(&path(received)).as_str().to_owned();
        assert_eq!((&*sent(&any), &*sent(&bound), &*sent(&keep)), (by_any, by_bound, kept));
    }
}

/// Header sections as devices send them, and as they go up from a mailbox that may send as helpdesk@example.com and
/// all of alarms.example.com; the reverse-path is copier@printer.local.
#[test]
fn row_24_headers_say_the_mailbox_and_keep_who_it_was() {
    let table: &[(&str, &str)] = &[
        // Nothing to do.
        ("From: scanner@example.com\r\nTo: a@b\r\n", "From: scanner@example.com\r\nTo: a@b\r\n"),
        ("From: Desk <HELPDESK@example.com>\r\n", "From: Desk <HELPDESK@example.com>\r\n"),
        (
            "From: D <d@alarms.example.com>\r\nReply-To:\r\nSender: helpdesk@example.com\r\n",
            "From: D <d@alarms.example.com>\r\nReply-To:\r\nSender: helpdesk@example.com\r\n",
        ),
        // The original is an answer's address where it can be.
        (
            "Subject: x\r\nFrom: Copier 3 <copier3@example.com>\r\nTo: a@b\r\n",
            "From: Copier 3 <scanner@example.com>\r\nReply-To: copier3@example.com\r\nSubject: x\r\nTo: a@b\r\n",
        ),
        (
            "From: copier3@example.com\r\n",
            "From: \"copier3@example.com\" <scanner@example.com>\r\nReply-To: copier3@example.com\r\n",
        ),
        ("From: Copier <scanner@printer.local>\r\n", "From: Copier <scanner@example.com>\r\n"),
        ("From: copier@\r\n", "From: \"copier@\" <scanner@example.com>\r\n"),
        ("From: copier\r\n", "From: copier <scanner@example.com>\r\n"),
        ("From: a@[192.0.2.1]\r\n", "From: \"a@[192.0.2.1]\" <scanner@example.com>\r\n"),
        (
            "From: A <a@example.org>\r\nReply-To: boss@example.org\r\n",
            "From: A <scanner@example.com>\r\nReply-To: boss@example.org\r\n",
        ),
        (
            "From: A <a@example.org>\r\nReply-To: \r\n",
            "From: A <scanner@example.com>\r\nReply-To: a@example.org\r\n",
        ),
        (
            "From: A <a@printer.lan>\r\nReply-To: <>\r\n",
            "From: A <scanner@example.com>\r\nReply-To: <>\r\n",
        ),
        // Names survive as they are.
        (
            "From: \"Doe, <John>\"\r\n\t=?utf-8?Q?B=C3=BCro?= (x) <a@example.org>\r\n",
            "From: \"Doe, <John>\"\r\n\t=?utf-8?Q?B=C3=BCro?= (x) <scanner@example.com>\r\nReply-To: a@example.org\r\n",
        ),
        ("From: Büro <a@x.lan>\r\n", "From: Büro <scanner@example.com>\r\n"),
        (
            "From: a@x.lan (Copier \\(new\\))\r\n",
            "From: \"Copier (new)\" <scanner@example.com>\r\n",
        ),
        (
            "From: Ricoh [MP \"3\"] <a@x.lan>\r\n",
            "From: \"Ricoh [MP 3]\" <scanner@example.com>\r\n",
        ),
        (
            "From: A copier with such a name that address and name take more than one line <a@x.lan>\r\n",
            "From: A copier with such a name that address and name take more than one line\r\n <scanner@example.com>\r\n",
        ),
        // From is repaired: there is one, and it says somebody.
        (
            "Subject: x\r\n",
            "From: \"copier@printer.local\" <scanner@example.com>\r\nSubject: x\r\n",
        ),
        (
            "From:\r\nTo: a@b\r\n",
            "From: \"copier@printer.local\" <scanner@example.com>\r\nTo: a@b\r\n",
        ),
        ("From: <>\r\n", "From: \"copier@printer.local\" <scanner@example.com>\r\n"),
        (
            "From: A <helpdesk@example.com>\r\nX: y\r\nfrom : B <b@example.org>\r\n",
            "From: A <helpdesk@example.com>\r\nX: y\r\n",
        ),
        (
            "From: <>\r\nFrom: B <helpdesk@example.com>\r\nFrom: C <c@example.org>\r\n",
            "From: B <helpdesk@example.com>\r\n",
        ),
        (
            "From: A <a@example.org>\r\nno field\r\n.FROM: B <b@example.org>\r\nX: y\r\n",
            "From: A <scanner@example.com>\r\nReply-To: a@example.org\r\nno field\r\nX: y\r\n",
        ),
        ("From: A <helpdesk@example.com> <x@y>\r\n", "From: A <scanner@example.com>\r\n"),
        (
            "From: Team: helpdesk@example.com;\r\n",
            "From: \"helpdesk@example.com\" <scanner@example.com>\r\nReply-To: helpdesk@example.com\r\n",
        ),
        // What some readers would find somebody else in is written anew.
        (
            "From: ceo@other.example <scanner@example.com>\r\n",
            "From: \"ceo@other.example\" <scanner@example.com>\r\n",
        ),
        (
            "From: [,<ceo@other.example>,] <scanner@example.com>\r\n",
            "From: \"[,<ceo@other.example>,]\" <scanner@example.com>\r\n",
        ),
        (
            "From: x [<ceo@other.example>, y] <helpdesk@example.com>\r\n",
            "From: \"x [<ceo@other.example>, y]\" <helpdesk@example.com>\r\n",
        ),
        (
            "From: <@\"ceo@other.example> x\":scanner@example.com>\r\n",
            "From: <scanner@example.com>\r\n",
        ),
        (
            "From: A <\"ceo@other.example> x\"@alarms.example.com>\r\n",
            "From: A <scanner@example.com>\r\nReply-To: \"ceo@other.example> x\"@alarms.example.com\r\n",
        ),
        (
            "From: scanner@example.com (a (b) <ceo@other.example>)\r\n",
            "From: \"a (b) <ceo@other.example>\" <scanner@example.com>\r\n",
        ),
        (
            "From: scanner@example.com, (a (b) <ceo@other.example>)\r\n",
            "From: <scanner@example.com>\r\n",
        ),
        ("From: scanner@example.com (Copier)\r\n", "From: scanner@example.com (Copier)\r\n"),
        (
            "Sender: x@y <helpdesk@example.com>\r\nFrom: helpdesk@example.com\r\n",
            "Sender: <scanner@example.com>\r\nFrom: helpdesk@example.com\r\n",
        ),
        // RFC 5322 section 3.6.2: who sends for several is named.
        (
            "From: helpdesk@example.com, d@alarms.example.com\r\n",
            "Sender: <scanner@example.com>\r\nFrom: helpdesk@example.com, d@alarms.example.com\r\n",
        ),
        (
            "From: helpdesk@example.com, d@alarms.example.com\r\nSender: scanner@example.com\r\n",
            "From: helpdesk@example.com, d@alarms.example.com\r\nSender: scanner@example.com\r\n",
        ),
        (
            "From: helpdesk@example.com, Boss <boss@example.com>\r\n",
            "From: \"helpdesk@example.com\" <scanner@example.com>\r\nReply-To: helpdesk@example.com,\r\n boss@example.com\r\n",
        ),
        (
            "From: scanner@example.com\r\nSender: x@printer.local\r\n",
            "From: scanner@example.com\r\n",
        ),
        (
            "Sender: x@y.lan\r\nFrom: A <a@x.lan>\r\nSender:\r\n",
            "From: A <scanner@example.com>\r\n",
        ),
        (
            "Sender: x@y\r\nFrom: helpdesk@example.com\r\n",
            "Sender: <scanner@example.com>\r\nFrom: helpdesk@example.com\r\n",
        ),
        (
            "Sender: helpdesk@example.com\r\nSender: x@y\r\nFrom: A <a@x.lan>\r\n",
            "From: A <scanner@example.com>\r\nSender: helpdesk@example.com\r\n",
        ),
        // Nothing else is touched.
        (
            "From: A <a@x.lan>\r\nBcc: secret@example.com\r\n..x: y\r\nResent-From: a@x.lan\r\n",
            "From: A <scanner@example.com>\r\nBcc: secret@example.com\r\n..x: y\r\nResent-From: a@x.lan\r\n",
        ),
    ];
    let rule = rule(&["helpdesk@example.com", "*@alarms.example.com"], None);
    let keep = Rule { rewrite: Rewrite::Keep, ..rule.clone() };
    for (sent, arrives) in table {
        let sent = sent.as_bytes();
        assert_eq!(edited(&rule, "copier@printer.local", sent), *arrives);
        assert_eq!(edited(&keep, "copier@printer.local", sent).as_bytes(), sent, "kept");
    }
}

#[test]
fn octets_outside_ascii_survive() {
    let rule = rule(&[], None);
    let latin = b"From: B\xfcro <a@x.lan>\r\nSubject: \xe9t\xe9\r\n";
    let front = rule.front(&ReversePath::Null, b"", &section(latin));
    assert_eq!(&front[..], b"From: B\xfcro <scanner@example.com>\r\nSubject: \xe9t\xe9\r\n");
    let long = format!("From: [{}]\r\n", "é".repeat(300));
    let short = edited(&rule, "", long.as_bytes());
    assert!(short.starts_with("From: \"[ééé") && short.contains("é\"\r\n <scanner"), "{short}");
}

#[test]
fn a_device_may_be_held_to_fewer_senders() {
    let rule = rule(&["*@example.com"], Some(&["copier3@example.com"]));
    let from = |address: &str| edited(&rule, "", format!("From: X <{address}>\r\n").as_bytes());
    assert_eq!(from("copier3@example.com"), "From: X <copier3@example.com>\r\n");
    assert_eq!(from("scanner@example.com"), "From: X <scanner@example.com>\r\n");
    assert_eq!(
        from("boss@example.com"),
        "From: X <scanner@example.com>\r\nReply-To: boss@example.com\r\n"
    );
}

#[test]
fn where_nobody_rewrites_a_from_outside_of_the_senders_is_found() {
    let senders = Patterns::new(vec!["copier@example.com".to_owned()]);
    for (fields, expected) in [
        ("", None),
        ("From:\r\nSender: x@y\r\n", None),
        ("From: C <Copier@example.com>\r\n", None),
        ("From: \"x@y\" <copier@example.com>\r\n", None),
        ("From: Ricoh [MP] <copier@example.com>\r\n", None),
        ("From: C <boss@example.com>\r\n", Some("boss@example.com")),
        ("From: copier@example.com, boss@example.com\r\n", Some("boss@example.com")),
        ("From: copier@example.com\r\nfrom : x@y\r\n", Some("x@y")),
        ("From: Team: boss@example.com;\r\n", Some("boss@example.com")),
        ("From: [<x@y>] <copier@example.com>\r\n", Some("x@y")),
        ("From: <@\"x@y> z\":copier@example.com>\r\n", Some("x@y")),
        ("From: (a (b) <x@y>) copier@example.com\r\n", Some("x@y")),
        ("From: boss @ example.com\r\n", Some("boss@example.com")),
        ("From: x @ y <copier@example.com>\r\n", Some("@")),
    ] {
        let found = outside(&senders, &section(fields.as_bytes()));
        assert_eq!(found.as_deref(), expected, "{fields:?}");
    }
}

#[test]
fn a_missing_from_is_who_the_envelope_says_as_it_is_sent() {
    let rule = rule(&["helpdesk@example.com"], None);
    for (received, from) in [
        ("helpdesk@example.com", "From: <helpdesk@example.com>\r\n"),
        (MAILBOX, "From: <scanner@example.com>\r\n"),
        ("", "From: <scanner@example.com>\r\n"),
        (
            "copier@example.org",
            "From: \"copier@example.org\" <scanner@example.com>\r\nReply-To: copier@example.org\r\n",
        ),
    ] {
        assert_eq!(edited(&rule, received, b""), from, "{received}");
    }
}

#[test]
fn where_there_is_no_header_section_ours_is_one() {
    let missing = Section { is_missing: true, ..Section::default() };
    let front = |rule: &Rule, section| rule.front(&path(MAILBOX), b"Date: x\r\n", section);
    let (rule, keep) = (rule(&[], None), Rule::keep(MAILBOX));
    assert_eq!(front(&rule, &missing), "Date: x\r\nFrom: <scanner@example.com>\r\n\r\n");
    assert_eq!(front(&keep, &missing), "Date: x\r\n\r\n");
    assert_eq!(front(&keep, &Section::default()), "Date: x\r\n", "a blank line follows");
}

#[test]
fn addresses_of_the_house_are_not_deliverable() {
    for (address, deliverable) in [
        ("a@example.com", true),
        ("a@example.test", true),
        ("a@printer.example", true),
        ("a@bücher.example", true),
        ("a@notlocal.com", true),
        ("a@home.example", true),
        ("a@copier", false),
        ("a@localhost", false),
        ("a@printer.local", false),
        ("a@Printer.LOCAL", false),
        ("a@x.lan", false),
        ("a@x.internal", false),
        ("a@localhost.localdomain", false),
        ("a@x.invalid", false),
        ("a@x.home.arpa", false),
        ("a@home.arpa", false),
        ("a@[192.0.2.1]", false),
        ("a@example.com.", false),
        ("a@é", false),
        ("", false),
    ] {
        assert_eq!(is_deliverable(address), deliverable, "{address}");
    }
}

proptest! {
    /// Whatever stands there, afterwards From is one field of one or several that may be used, and a second edit
    /// finds nothing to do.
    #[test]
    fn afterwards_there_is_one_from_that_may_be_used(
        lines in prop::collection::vec("(From|fRom |Sender|Reply-To|X|.From|)(:| :)?[a@b.<>(\"\\\\,;:é]{0,12}(\r\n [<>a@b\"]{0,6})?\r\n", 0..6),
    ) {
        let rule = rule(&["a@b", "b@a"], None);
        let text = format!("A: b\r\n{}", lines.concat());
        let front = rule.front(&path("a@x.lan"), b"", &section(text.as_bytes()));
        let from: Vec<_> = fields(&front).filter(|field| field.is("From")).collect();
        prop_assert_eq!(from.len(), 1, "{}", String::from_utf8_lossy(&front));
        prop_assert!(rule.may_stand(from[0].value), "{}", String::from_utf8_lossy(&front));
        prop_assert!(fields(&front).filter(|field| field.is("Sender")).count() <= 1);
        let again = rule.front(&path("a@x.lan"), b"", &section(&front));
        prop_assert_eq!(&again, &front);
    }
}
