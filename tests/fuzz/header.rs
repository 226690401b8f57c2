//! Header sections, and what becomes of their senders.

use bytes::Bytes;
use smtp_uplift::{
    policy::{
        Patterns,
        sender::{Rewrite, Rule},
    },
    proto::{
        header::{Gathered, Gatherer, LONGEST, Section, fields},
        limits::LineEndings,
        mailbox_list::entries,
        path::{Address, ReversePath},
    },
};

use super::{oracle::oracle, splits};

/// * Any split gives the same section, and nothing of the data is lost but a byte order mark and one mail file's line in
///   front of the first field.
/// * Fields cover the section without gaps, and every address in them is one.
/// * With `keep` the section goes up as it is.
/// * With `mailbox` there is one From field then, of addresses that may be used, at most one Sender, and every other
///   field as it was; a second edit changes nothing. A naive reader finds nobody else there.
/// * Where there is no header section a blank line ends ours.
pub fn header(input: &[u8]) {
    // As the codec hands it over.
    let wire = [input, b"\r\n.\r\n"].concat();
    let data = oracle(&wire, LineEndings::Normalise).output;
    let gathered = splits(&data).map(|chunks| gather(&chunks));
    assert_eq!(gathered[0], gathered[1]);
    assert_eq!(gathered[0], gathered[2]);
    let [Some(section), ..] = gathered else { return };
    assert!(section.front + section.fields.len() <= LONGEST);
    let mut at = 0;
    for field in section.fields() {
        assert!(field.place.start == at && field.place.end > at);
        at = field.place.end;
        let is_one = |address: &str| Address::is(address);
        assert!(entries(field.value).all(|entry| entry.address.is_none_or(|it| is_one(&it))));
    }
    assert_eq!(at, section.fields.len());
    let blank: &[u8] = if section.is_missing { b"\r\n" } else { b"" };
    let keep = Rule::keep("scanner@example.com").front(&ReversePath::Null, b"A: b\r\n", &section);
    assert_eq!(keep, [b"A: b\r\n", &section.fields[..], blank].concat());
    rewritten(&section, blank);
}

fn gather(chunks: &[&[u8]]) -> Option<Section> {
    let (mut gatherer, mut gathered, mut all) = (Gatherer::default(), None, Vec::new());
    for chunk in chunks {
        match gathered {
            None => gathered = gatherer.push(Bytes::copy_from_slice(chunk)),
            Some(_) => all.extend_from_slice(chunk),
        }
    }
    match gathered.unwrap_or_else(|| gatherer.end()) {
        Gathered::TooLong => None,
        Gathered::Whole(section, rest) => {
            let whole = chunks.concat();
            let dropped = &whole[..section.front];
            assert_eq!([dropped, &section.fields, &rest, &all].concat(), whole);
            let dropped = dropped.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(dropped);
            assert!(dropped.iter().filter(|octet| **octet == b'\n').count() <= 1);
            let begin = dropped.strip_prefix(b".").unwrap_or(dropped);
            let begin = begin.strip_prefix(b">").unwrap_or(begin);
            assert!(dropped.is_empty() || begin.starts_with(b"From") && dropped.ends_with(b"\n"));
            Some(section)
        }
    }
}

/// What a reader takes for addresses that knows nothing of lists: each word with an `@`, outside of quotes and
/// comments.
fn naive(value: &[u8]) -> Vec<String> {
    let (mut is_quoted, mut in_comment) = (false, false);
    let mut words = vec![Vec::new()];
    for &octet in value {
        match octet {
            b'"' if !in_comment => is_quoted = !is_quoted,
            _ if is_quoted => {}
            b'(' => in_comment = true,
            b')' => in_comment = false,
            _ if in_comment => {}
            b'<' | b'>' | b'[' | b']' | b',' | b':' | b';' | b' ' | b'\t' | b'\r' | b'\n' => {
                words.push(Vec::new());
            }
            octet => words.last_mut().unwrap().push(octet),
        }
    }
    words.retain(|word| word.contains(&b'@'));
    words.iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

fn rewritten(section: &Section, blank: &[u8]) {
    let rule = Rule {
        rewrite: Rewrite::Mailbox,
        mailbox: "scanner@example.com".to_owned(),
        send_as: Patterns::new(vec!["*@b".to_owned()]),
        senders: None,
    };
    let from = ReversePath::Address(Address::parse("copier@printer.lan").unwrap());
    let front = rule.front(&from, b"A: b\r\n", section);
    let edited = front.strip_suffix(blank).expect("a blank line");
    let edited = edited.strip_prefix(b"A: b\r\n").expect("fields of ours first");
    let (mut authors, mut senders) = (0, 0);
    for field in fields(edited) {
        authors += usize::from(field.is("From"));
        senders += usize::from(field.is("Sender"));
        if field.is("From") || field.is("Sender") {
            let may = |address: &str| rule.allows(address);
            assert!(entries(field.value).all(|entry| entry.address.is_some_and(|it| may(&it))));
            assert!(entries(field.value).next().is_some());
            assert!(naive(field.value).iter().all(|address| may(address)), "{:?}", field.value);
        }
    }
    assert!(authors == 1 && senders <= 1, "{authors} From, {senders} Sender");
    let others = |octets: &[u8]| -> Vec<u8> {
        let is_other = |name: &[u8]| {
            let named = [&b"from"[..], b"sender", b"reply-to"];
            !named.iter().any(|one| name.eq_ignore_ascii_case(one))
        };
        let others = fields(octets).filter(|field| is_other(field.name));
        others.flat_map(|field| octets[field.place].to_vec()).collect()
    };
    assert_eq!(others(edited), others(&section.fields));
    let again = Section { fields: Bytes::copy_from_slice(edited), ..Section::default() };
    assert_eq!(rule.front(&from, b"", &again), edited);
}
