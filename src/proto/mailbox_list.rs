//! The mailboxes of a From, Sender or Reply-To field (RFC 5322 section 3.4), with the forms of section 4.4 and what
//! devices make of them. Nothing is copied unless an address has blanks or comments inside.
//!
//! What is not understood to its end has no address here: whoever asks whether it may be used then says no.

use std::borrow::Cow;

use super::path::Address;

/// One entry of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Who that is.
    pub name: Name<'a>,
    /// `local-part@domain`, if there is one.
    pub address: Option<Cow<'a, str>>,
    /// It is in a group, or behind one.
    pub is_grouped: bool,
}

/// The display name of an entry, in wire form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name<'a> {
    /// There is none.
    None,
    /// A phrase that may stand in front of any address.
    Phrase(&'a [u8]),
    /// Text that is none: it has to be quoted.
    Text(&'a [u8]),
}

/// The entries of a list, in order; what is between two commas and says nothing is none.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    value: &'a [u8],
    at: usize,
    in_group: bool,
}

/// Whether every reader finds the same addresses in a field's value: one mailbox or several (RFC 5322 section 3.4), none
/// of them with what some parsers stumble over, as escapes, nested comments, routes, groups or empty list items.
pub fn is_plain(value: &[u8]) -> bool {
    let mut is_quoted = false;
    let is_comma = |octet: &u8| {
        is_quoted ^= *octet == b'"';
        *octet == b',' && !is_quoted
    };
    value.split(is_comma).all(is_plain_mailbox)
}

/// `[phrase] <local-part@domain>` or `local-part@domain`, perhaps with a comment behind it.
fn is_plain_mailbox(text: &[u8]) -> bool {
    let mut text = trim(text);
    if let Some(rest) = text.strip_suffix(b")") {
        let Some(open) = memchr::memrchr(b'(', rest) else { return false };
        if !rest[open + 1..].iter().all(is_comment) {
            return false;
        }
        text = trim(&rest[..open]);
    }
    let Some(rest) = text.strip_suffix(b">") else { return is_plain_address(text) };
    let Some(open) = memchr::memrchr(b'<', rest) else { return false };
    let name = trim(&rest[..open]);
    (name.is_empty() || is_phrase(name)) && is_plain_address(&rest[open + 1..])
}

/// Whether everybody reads this as the same address: dots and atoms, no encoded word among them, which some decode.
pub fn is_plain_address(text: &[u8]) -> bool {
    let is_part = |octet: &u8| is_atext(*octet) || matches!(octet, b'.' | b'@');
    text.iter().all(is_part)
        && text.iter().filter(|octet| **octet == b'@').count() == 1
        && !text.windows(2).any(|two| two == b"=?")
        && std::str::from_utf8(text).is_ok_and(Address::is)
}

/// What may be in a comment that everybody reads alike.
fn is_comment(octet: &u8) -> bool {
    is_atext(*octet) || matches!(octet, b'.' | b' ' | b'\t' | b'\r' | b'\n')
}

/// `atext` (RFC 5322 section 3.2.3, RFC 6532 section 3.2).
fn is_atext(octet: u8) -> bool {
    octet.is_ascii_alphanumeric() || !octet.is_ascii() || b"!#$%&'*+-/=?^_`{|}~".contains(&octet)
}

/// The entries of a field's value.
pub fn entries(value: &[u8]) -> Entries<'_> {
    Entries { value, at: 0, in_group: false }
}

/// What was seen of an entry on the way to its end.
#[derive(Default)]
struct Seen {
    open: Option<usize>,
    close: Option<usize>,
    /// Inside of the last comment outside the brackets.
    comment: Option<(usize, usize)>,
    /// Anything but blanks and comments in front of the brackets.
    has_text: bool,
    /// An `@` outside of quotes and brackets.
    has_at: bool,
    is_broken: bool,
}

impl<'a> Iterator for Entries<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        while self.at < self.value.len() {
            let is_grouped = self.in_group;
            let (start, mut seen) = (self.at, Seen::default());
            let end = self.walk(&mut seen);
            // An empty list item, or a group's name.
            if let Some(end) = end
                && (seen.has_text || seen.open.is_some() || seen.is_broken)
            {
                let is_grouped = is_grouped || self.in_group;
                return Some(entry(self.value, start, end, &seen, is_grouped));
            }
        }
        None
    }
}

impl Entries<'_> {
    /// Steps behind the next entry and what ends it. Returns where it ends, or nothing if it was a group's name.
    fn walk(&mut self, seen: &mut Seen) -> Option<usize> {
        let value = self.value;
        loop {
            let at = self.at;
            let Some(octet) = value.get(at) else { return Some(at) };
            self.at += 1;
            let in_brackets = seen.open.is_some() && seen.close.is_none();
            match octet {
                b',' if !in_brackets => return Some(at),
                b';' if !in_brackets => {
                    // Some devices separate with it.
                    self.in_group = true;
                    return Some(at);
                }
                b':' if !in_brackets => {
                    self.in_group = true;
                    return None;
                }
                b'<' if seen.open.is_none() => seen.open = Some(at),
                b'>' if in_brackets => seen.close = Some(at),
                b'<' | b'>' => seen.is_broken = true,
                b'"' => {
                    seen.text();
                    self.step_behind(b'"', seen);
                }
                b'[' => {
                    seen.text();
                    self.step_behind(b']', seen);
                }
                b'(' => {
                    self.step_behind_comment(seen);
                    if !in_brackets {
                        seen.comment = Some((at + 1, self.at.saturating_sub(1).max(at + 1)));
                    }
                }
                b'@' => {
                    seen.has_at |= seen.open.is_none();
                    seen.text();
                }
                b'\n' => self.step_over_dot(),
                b' ' | b'\t' | b'\r' => {}
                _ => seen.text(),
            }
        }
    }

    /// The dot that a line begins with is stuffing.
    fn step_over_dot(&mut self) {
        if self.value.get(self.at) == Some(&b'.') {
            self.at += 1;
        }
    }

    fn step_behind(&mut self, end: u8, seen: &mut Seen) {
        while let Some(octet) = self.value.get(self.at) {
            self.at += 1;
            match octet {
                b'\\' => self.at = (self.at + 1).min(self.value.len()),
                octet if *octet == end => return,
                _ => {}
            }
        }
        seen.is_broken = true;
    }

    fn step_behind_comment(&mut self, seen: &mut Seen) {
        let mut depth = 1;
        while let Some(octet) = self.value.get(self.at) {
            self.at += 1;
            match octet {
                b'\\' => self.at = (self.at + 1).min(self.value.len()),
                b'(' => depth += 1,
                b')' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return;
            }
        }
        seen.is_broken = true;
    }
}

impl Seen {
    /// Text outside of comments.
    fn text(&mut self) {
        match (self.open, self.close) {
            (None, _) => self.has_text = true,
            (Some(_), Some(_)) => self.is_broken = true,
            (Some(_), None) => {}
        }
    }
}

fn entry<'a>(
    value: &'a [u8],
    start: usize,
    end: usize,
    seen: &Seen,
    is_grouped: bool,
) -> Entry<'a> {
    let (before, inside) = match (seen.open, seen.close) {
        (Some(open), Some(close)) => (&value[start..open], Some(&value[open + 1..close])),
        (Some(open), None) => (&value[start..open], None),
        (None, _) if seen.has_at => (&value[start..start], Some(&value[start..end])),
        (None, _) => (&value[start..end], None),
    };
    let address = inside.filter(|_| !seen.is_broken).and_then(address);
    let text = trim(before);
    let comment = seen.comment.map(|(from, to)| trim(&value[from..to]));
    let name = if seen.has_text && !text.is_empty() {
        if is_phrase(text) { Name::Phrase(text) } else { Name::Text(text) }
    } else if let Some(comment) = comment.filter(|comment| !comment.is_empty()) {
        Name::Text(comment)
    } else if address.is_none() {
        // Whatever it is, it may say who sent this.
        Name::Text(trim(&value[start..end]))
    } else {
        Name::None
    };
    Entry { name, address, is_grouped }
}

/// Without blanks and folds around it.
fn trim(mut text: &[u8]) -> &[u8] {
    loop {
        text = match text {
            [b'\n', b'.', rest @ ..] | [b' ' | b'\t' | b'\r' | b'\n', rest @ ..] => rest,
            [rest @ .., b'\n', b'.'] | [rest @ .., b' ' | b'\t' | b'\r' | b'\n'] => rest,
            _ => return text,
        }
    }
}

/// What stands between angle brackets, or without any.
fn address(text: &[u8]) -> Option<Cow<'_, str>> {
    let mut text = trim(text);
    if text.first() == Some(&b'@') {
        // A source route (RFC 5322 section 4.4).
        let colon = memchr::memchr(b':', text)?;
        text = trim(&text[colon + 1..]);
    }
    let is_plain =
        |octet: &u8| !matches!(octet, b' ' | b'\t' | b'\r' | b'\n' | b'(' | b')' | b'"' | b'\\');
    let address = if text.iter().all(is_plain) {
        Cow::Borrowed(std::str::from_utf8(text).ok()?)
    } else {
        Cow::Owned(without_blanks(text)?)
    };
    Address::is(&address).then_some(address)
}

/// An address whose parts have blanks, folds and comments between them.
fn without_blanks(text: &[u8]) -> Option<String> {
    let mut plain: Vec<u8> = Vec::with_capacity(text.len());
    let (mut at, mut gap) = (0, false);
    let (mut is_quoted, mut depth) = (false, 0_usize);
    while let Some(&octet) = text.get(at) {
        at += 1;
        match octet {
            b'\r' => {}
            b'\n' => at += usize::from(text.get(at) == Some(&b'.')),
            b'\\' if depth > 0 => at += 1,
            b'\\' if is_quoted => {
                plain.push(octet);
                plain.push(*text.get(at)?);
                at += 1;
            }
            b'(' if !is_quoted => (depth, gap) = (depth + 1, true),
            b')' if depth > 0 => depth -= 1,
            _ if depth > 0 => {}
            b' ' | b'\t' if !is_quoted => gap = true,
            octet => {
                let joins = |octet: &u8| matches!(octet, b'.' | b'@');
                let between = gap && !is_quoted;
                if between && !joins(&octet) && plain.last().is_some_and(|last| !joins(last)) {
                    return None;
                }
                gap = false;
                is_quoted ^= octet == b'"';
                plain.push(octet);
            }
        }
    }
    String::from_utf8(plain).ok()
}

/// Whether this is a phrase as it may stand in front of an address (RFC 5322 sections 3.2.5 and 4.1), and everybody
/// finds its end. Octets outside ASCII are taken for letters (RFC 6532 section 3.2).
fn is_phrase(text: &[u8]) -> bool {
    let (mut is_quoted, mut in_comment, mut has_word) = (false, false, false);
    let mut last = b' ';
    for &octet in text {
        // Stuffing, at the begin of a line.
        let is_stuffing = octet == b'.' && last == b'\n';
        last = octet;
        match octet {
            _ if is_stuffing => {}
            b' ' | b'\t' | b'\r' | b'\n' => {}
            0..=31 | 127 | b'\\' => return false,
            b'"' if !in_comment => (is_quoted, has_word) = (!is_quoted, true),
            _ if is_quoted => {}
            b')' if in_comment => in_comment = false,
            octet if in_comment && is_comment(&octet) => {}
            b'(' if !in_comment => in_comment = true,
            b'.' if has_word => {}
            octet if is_atext(octet) => has_word = true,
            _ => return false,
        }
    }
    has_word && !is_quoted && !in_comment
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(value: &str) -> Vec<String> {
        let show = |entry: Entry<'_>| {
            let name = match entry.name {
                Name::None => String::new(),
                Name::Phrase(text) => String::from_utf8_lossy(text).into_owned(),
                Name::Text(text) => format!("text {}", String::from_utf8_lossy(text)),
            };
            let group = if entry.is_grouped { " grouped" } else { "" };
            format!("{name}|{}{group}", entry.address.unwrap_or_default())
        };
        entries(value.as_bytes()).map(show).collect()
    }

    #[test]
    fn lists_are_read_as_devices_write_them() {
        let table: &[(&str, &[&str])] = &[
            // RFC 5322 section 3.4.
            (" a@b.example\r\n", &["|a@b.example"]),
            (" <a@b.example>\r\n", &["|a@b.example"]),
            (" Copier <a@b.example>\r\n", &["Copier|a@b.example"]),
            (" Copier 3rd floor <a@b>\r\n", &["Copier 3rd floor|a@b"]),
            (" \"Doe, John <x@y>\" <a@b>\r\n", &["\"Doe, John <x@y>\"|a@b"]),
            (" \"a \\\" b\" <a@b>, c@d\r\n", &["text \"a \\\" b\"|a@b", "|c@d"]),
            (" =?utf-8?Q?B=C3=BCro?= <a@b>\r\n", &["=?utf-8?Q?B=C3=BCro?=|a@b"]),
            (" Büro <a@b>\r\n", &["Büro|a@b"]),
            (" A (x y) <a@b>\r\n", &["A (x y)|a@b"]),
            (" A (x, y) <a@b>\r\n", &["text A (x, y)|a@b"]),
            (" a@b (Copier (new) 3)\r\n", &["text Copier (new) 3|a@b"]),
            (" (Copier) <a@b>\r\n", &["text Copier|a@b"]),
            (" \"odd name\"@b.example\r\n", &["|\"odd name\"@b.example"]),
            (" a@[192.0.2.1]\r\n", &["|a@[192.0.2.1]"]),
            (" müller@bücher.example\r\n", &["|müller@bücher.example"]),
            (" A <a@b>,\r\n B <c@d>\r\n", &["A|a@b", "B|c@d"]),
            // Section 4.4.
            (" John Q. Public <a@b>\r\n", &["John Q. Public|a@b"]),
            (" <@hop,@next:a@b>\r\n", &["|a@b"]),
            (" a (one) @ (two) b . example\r\n", &["text two|a@b.example"]),
            (" < a@\r\n b.example >\r\n", &["|a@b.example"]),
            (" ,, a@b,, c@d ,\r\n", &["|a@b", "|c@d"]),
            // Folds, with stuffed dots and without.
            (" Copier\r\n 3\r\n <a@b>\r\n", &["Copier\r\n 3|a@b"]),
            (" Copier\r\n. <a@b>\r\n", &["Copier|a@b"]),
            (" \"x\"\r\n.\t<a@\r\n. b>\r\n", &["\"x\"|a@b"]),
            // Groups.
            (" Team: A <a@b>, c@d;\r\n", &["A|a@b grouped", "|c@d grouped"]),
            (" undisclosed:;\r\n", &[]),
            (" Team:;, a@b\r\n", &["|a@b grouped"]),
            // What is none of it.
            ("", &[]),
            ("\r\n", &[]),
            (" , \r\n", &[]),
            (" (nobody)\r\n", &[]),
            (" <>\r\n", &["text <>|"]),
            (" copier\r\n", &["copier|"]),
            (" Copier 3 <copier>\r\n", &["Copier 3|"]),
            (" Doe, John <a@b>\r\n", &["Doe|", "John|a@b"]),
            (" Ricoh [MP] <a@b>\r\n", &["text Ricoh [MP]|a@b"]),
            (" scan@floor3 <a@b>\r\n", &["text scan@floor3|a@b"]),
            (" .dot <a@b>\r\n", &["text .dot|a@b"]),
            (" \"open <a@b>\r\n", &["text \"open <a@b>|"]),
            (" (open <a@b>\r\n", &["text open <a@b>|"]),
            (" <a@b\r\n", &["text <a@b|"]),
            (" A <a@b> <c@d>\r\n", &["A|"]),
            (" A <a@b> c@d\r\n", &["A|"]),
            (" a@b>\r\n", &["text a@b>|"]),
            (" two words@b\r\n", &["text two words@b|"]),
            (" a@b c@d\r\n", &["text a@b c@d|"]),
            (" a@b; c@d\r\n", &["|a@b grouped", "|c@d grouped"]),
            (" [, <a@b>\r\n", &["text [, <a@b>|"]),
            (" <a@b,c@d>\r\n", &["text <a@b,c@d>|"]),
        ];
        for (value, expected) in table {
            assert_eq!(shown(value), *expected, "{value:?}");
        }
        let latin = b" B\xfcro <a@b>\r\n";
        let entry = entries(latin).next().unwrap();
        assert_eq!((entry.name, entry.address), (Name::Phrase(b"B\xfcro"), Some("a@b".into())));
        assert_eq!(entries(b" <\xfc@b>\r\n").next().unwrap().address, None);
    }

    #[test]
    fn a_list_is_plain_if_everybody_reads_it_alike() {
        for plain in [
            " a@b.example\r\n",
            " <a@b>\r\n",
            " A <a@b>,\r\n \"B, <C>\" <c@d>\r\n",
            " John Q. Public <a@b>\r\n",
            " Copier\r\n. 3 (new)\r\n\t<a@b>\r\n",
            " a@b (Copier 3)\r\n",
            " =?utf-8?Q?B=C3=BCro?= <m\u{fc}ller@b\u{fc}cher.example>\r\n",
        ] {
            assert!(is_plain(plain.as_bytes()), "{plain:?}");
        }
        for odd in [
            "\r\n",
            " a@b,\r\n",
            " ,a@b\r\n",
            " (c), a@b\r\n",
            " a@b, (c)\r\n",
            " a@b; c@d\r\n",
            " Team: a@b;\r\n",
            " < a@b>\r\n",
            " a @ b\r\n",
            " (x) a@b\r\n",
            " \"a\"@b\r\n",
            " =?utf-8?Q?c=40d?=@b\r\n",
            " a@[192.0.2.1]\r\n",
            " c@d <a@b>\r\n",
            " [,<c@d>,] <a@b>\r\n",
            " [<c@d>] <a@b>\r\n",
            " x [<c@d>, y] <a@b>\r\n",
            " <c@d> <a@b>\r\n",
            " <a@b> <c@d>\r\n",
            " <@\"c@d> x\":a@b>\r\n",
            " <@x:a@b>\r\n",
            " a@b (c@d)\r\n",
            " a@b (x(y) <c@d>)\r\n",
            " A (x(y) <c@d>) <a@b>\r\n",
            " \"x\\\" <c@d>, \\\"y\" <a@b>\r\n",
            " \"x\0\" <a@b>\r\n",
            " \"open <a@b>\r\n",
            " (open <a@b>\r\n",
            " \"x <y\" a@b>\r\n",
        ] {
            assert!(!is_plain(odd.as_bytes()), "{odd:?}");
        }
    }

    #[test]
    fn a_plain_address_is_not_copied() {
        let entry = entries(b" \"Copier\" <a@b.example>\r\n").next().unwrap();
        assert!(matches!(entry.address, Some(Cow::Borrowed("a@b.example"))));
    }

    #[test]
    fn time_goes_with_the_length() {
        for piece in ["[", "(", "\"", "<", "\\", ",", "a@b,", "[]", "()", "<>", ":", "\r\n ."] {
            let value = piece.repeat(256 * 1024 / piece.len());
            is_plain(value.as_bytes());
            assert!(entries(value.as_bytes()).count() <= value.len());
        }
    }

    proptest! {
        #[test]
        fn every_address_is_one_and_every_name_is_a_part(value in "[a@b.<>()\"\\\\,;: \r\n\\[\\]é]{0,30}") {
            let whole = value.as_bytes().as_ptr_range();
            for entry in entries(value.as_bytes()) {
                prop_assert!(entry.address.is_none_or(|address| Address::is(&address)));
                if let Name::Phrase(text) | Name::Text(text) = entry.name {
                    prop_assert!(text.is_empty() || whole.contains(&text.as_ptr()));
                }
            }
        }
    }
}
