//! The header section of mail data (RFC 5322 section 2.2): where it ends, and which fields it has.
//!
//! Everything here is in wire form: lines end with CR LF, and a line that begins with a dot has one in front that
//! the next server takes away (RFC 5321 section 4.5.2). Lines that are no field are stepped over, and nothing takes
//! longer than the length of its input.

use bytes::{Buf as _, Bytes, BytesMut};
use memchr::memchr;

/// Octets that a header section may have.
pub const LONGEST: usize = 256 * 1024;

/// The header section of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Section {
    /// Octets in front of its fields that are dropped: a byte order mark, a mail file's line. Fields of ours go in
    /// front, and behind these it would end the header section for some servers.
    pub front: usize,
    /// Its fields, each with its CR LF, without the blank line behind them.
    pub fields: Bytes,
    /// The data do not begin with a field: there is no header section, nor a blank line that ends it.
    pub is_missing: bool,
}

/// What is told from the beginning of mail data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The header section has so many octets.
    Section(usize),
    /// There is none.
    Missing,
    /// It has more than [`LONGEST`].
    TooLong,
}

/// A byte order mark in UTF-8.
const MARK: &[u8] = b"\xEF\xBB\xBF";

/// Finds the end of the header section while the data stream in.
#[derive(Debug, Default)]
pub struct Finder {
    /// Octets so far.
    seen: usize,
    /// Where the line begins that is being read.
    line: usize,
    /// Octets in front of the first field.
    front: usize,
    last: u8,
    first: FirstLine,
}

/// What the first line is, or the one behind a mail file's.
#[derive(Debug, PartialEq, Eq)]
enum FirstLine {
    /// A name so far; its first octets.
    Name(Vec<u8>),
    /// A name with blanks behind it, which may be a mail file's `From`.
    Blank(bool),
    /// The line that a mail file has in front of each message, if a field follows.
    Separator,
    /// A field.
    Field,
    /// None.
    Other,
}

impl Default for FirstLine {
    fn default() -> Self {
        Self::Name(Vec::new())
    }
}

/// Gathers the header section while the data stream in.
#[derive(Debug, Default)]
pub struct Gatherer {
    finder: Finder,
    /// The only chunk so far, or nothing.
    first: Bytes,
    /// All chunks, from the second on.
    held: BytesMut,
}

/// What a [`Gatherer`] has come to.
#[derive(Debug, PartialEq, Eq)]
pub enum Gathered {
    /// The section, and the data behind it so far.
    Whole(Section, Bytes),
    /// It has more than [`LONGEST`] octets.
    TooLong,
}

impl Finder {
    /// Looks at the next chunk; answers once.
    pub fn look(&mut self, chunk: &[u8]) -> Option<Found> {
        let mut at = 0;
        while let Some(found) = memchr(b'\n', &chunk[at..]) {
            self.read(&chunk[at..at + found]);
            if self.first == FirstLine::Other {
                return Some(Found::Missing);
            }
            let length = self.seen - self.line;
            let is_blank = length == 0 || length == 1 && self.last == b'\r';
            if is_blank && (self.line == 0 || self.first == FirstLine::Field) {
                return Some(self.ends_at(self.line));
            }
            (self.seen, self.last) = (self.seen + 1, b'\n');
            self.line = self.seen;
            at += found + 1;
            match self.first {
                FirstLine::Field => {}
                // One is enough.
                FirstLine::Separator if self.front <= MARK.len() => {
                    (self.front, self.first) = (self.line, FirstLine::default());
                }
                _ => return Some(Found::Missing),
            }
        }
        self.read(&chunk[at..]);
        match self.first {
            FirstLine::Other => Some(Found::Missing),
            FirstLine::Field if self.line > LONGEST || self.seen > LONGEST + 1 => {
                Some(Found::TooLong)
            }
            _ => None,
        }
    }

    /// The data end without a blank line.
    pub fn end(&self) -> Found {
        match self.first {
            FirstLine::Field => self.ends_at(self.seen),
            _ if self.seen == 0 => Found::Section(0),
            _ => Found::Missing,
        }
    }

    fn ends_at(&self, octets: usize) -> Found {
        if octets > LONGEST { Found::TooLong } else { Found::Section(octets) }
    }

    /// Octets of one line.
    fn read(&mut self, octets: &[u8]) {
        for (place, octet) in (self.seen..).zip(octets) {
            match self.first {
                FirstLine::Field | FirstLine::Other => break,
                // The same for all pieces that the data may come in.
                _ if place >= LONGEST => self.first = FirstLine::Other,
                FirstLine::Separator => {}
                _ if place == self.front && MARK.get(place) == Some(octet) => self.front += 1,
                // Half a mark is text; and a dot behind one would become stuffing.
                _ if (1..MARK.len()).contains(&self.front)
                    || place == MARK.len() && self.front == place && *octet == b'.' =>
                {
                    self.first = FirstLine::Other;
                }
                // Stuffing, and what a blank line begins with.
                _ if place == self.line && matches!(octet, b'.' | b'\r') => {}
                _ => self.first.read(*octet),
            }
        }
        self.seen += octets.len();
        self.last = octets.last().copied().unwrap_or(self.last);
    }
}

impl FirstLine {
    fn read(&mut self, octet: u8) {
        let next = match (&mut *self, octet) {
            (Self::Name(name), b':') if !name.is_empty() => Self::Field,
            (Self::Name(name), b' ' | b'\t') if !name.is_empty() => Self::Blank(is_separator(name)),
            (Self::Name(name), octet) if is_name(octet) => {
                // Enough to know a separator by.
                if name.len() < 8 {
                    name.push(octet);
                }
                return;
            }
            (Self::Blank(_), b' ' | b'\t') => return,
            (Self::Blank(_), b':') => Self::Field,
            (Self::Blank(true), octet) if octet != b'\r' => Self::Separator,
            _ => Self::Other,
        };
        *self = next;
    }
}

/// `From_` (RFC 4155), perhaps quoted once.
fn is_separator(name: &[u8]) -> bool {
    name == b"From" || name == b">From"
}

/// `ftext` (RFC 5322 section 3.6.8).
fn is_name(octet: u8) -> bool {
    matches!(octet, 33..=126) && octet != b':'
}

impl Gatherer {
    /// Takes the next chunk. Once it has answered it is done.
    pub fn push(&mut self, chunk: Bytes) -> Option<Gathered> {
        let found = self.finder.look(&chunk);
        if self.first.is_empty() && self.held.is_empty() {
            self.first = chunk;
        } else {
            if self.held.is_empty() {
                self.held.extend_from_slice(&self.first);
            }
            self.held.extend_from_slice(&chunk);
        }
        found.map(|found| self.split(found))
    }

    /// The data have ended.
    pub fn end(&mut self) -> Gathered {
        let found = self.finder.end();
        self.split(found)
    }

    fn split(&mut self, found: Found) -> Gathered {
        let first = std::mem::take(&mut self.first);
        let held = std::mem::take(&mut self.held);
        let mut all = if held.is_empty() { first } else { held.freeze() };
        match found {
            Found::TooLong => Gathered::TooLong,
            Found::Missing => {
                Gathered::Whole(Section { is_missing: true, ..Section::default() }, all)
            }
            Found::Section(octets) => {
                let mut fields = all.split_to(octets.min(all.len()));
                let front = self.finder.front.min(fields.len());
                fields.advance(front);
                Gathered::Whole(Section { front, fields, is_missing: false }, all)
            }
        }
    }
}

/// One field as it stands in the section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// Where it stands, its CR LF included.
    pub place: std::ops::Range<usize>,
    /// Its name; empty for lines that are no field.
    pub name: &'a [u8],
    /// What follows the colon, its CR LF included.
    pub value: &'a [u8],
}

impl Field<'_> {
    /// Whether it has this name; the case of letters does not count.
    pub fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name.as_bytes())
    }
}

/// The fields of a section, in order.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    section: &'a [u8],
    at: usize,
}

impl Section {
    /// Its fields, and what else stands among them.
    pub fn fields(&self) -> Fields<'_> {
        fields(&self.fields)
    }
}

/// The fields of a header section, and what else stands among them.
pub fn fields(section: &[u8]) -> Fields<'_> {
    Fields { section, at: 0 }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        let start = self.at;
        if start >= self.section.len() {
            return None;
        }
        let mut end = line_end(self.section, start);
        while is_continued(&self.section[end..]) {
            end = line_end(self.section, end);
        }
        self.at = end;
        let (name, value) = split(&self.section[start..end]);
        Some(Field { place: start..end, name, value })
    }
}

fn line_end(section: &[u8], from: usize) -> usize {
    memchr(b'\n', &section[from..]).map_or(section.len(), |at| from + at + 1)
}

/// Whether the next line belongs to the field before it (RFC 5322 section 2.2.3).
fn is_continued(rest: &[u8]) -> bool {
    matches!(rest, [b' ' | b'\t', ..] | [b'.', b' ' | b'\t', ..])
}

/// Name and value. Blanks may stand in front of the colon (RFC 5322 section 4.5), and a fold is one to whoever
/// unfolds first.
fn split(field: &[u8]) -> (&[u8], &[u8]) {
    let field = field.strip_prefix(b".").unwrap_or(field);
    let name = field.iter().position(|octet| !is_name(*octet)).unwrap_or(field.len());
    let mut colon = name;
    while let Some(b' ' | b'\t' | b'\r' | b'\n') = field.get(colon) {
        colon += 1;
        if field[colon - 1] == b'\n' && field.get(colon) == Some(&b'.') {
            colon += 1;
        }
    }
    match field.get(colon) {
        Some(b':') if name > 0 => (&field[..name], &field[colon + 1..]),
        _ => (b"", field),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The section of data that come in such pieces, and whether there is one; `None` if it is too long.
    fn found(data: &[u8], piece: usize) -> Option<(Vec<u8>, bool)> {
        let mut gatherer = Gatherer::default();
        let mut behind = Vec::new();
        let mut gathered = None;
        for chunk in data.chunks(piece.max(1)) {
            match gathered {
                None => gathered = gatherer.push(Bytes::copy_from_slice(chunk)),
                Some(_) => behind.extend_from_slice(chunk),
            }
        }
        match gathered.unwrap_or_else(|| gatherer.end()) {
            Gathered::TooLong => None,
            Gathered::Whole(section, rest) => {
                let all = [&data[..section.front], &section.fields, &rest, &behind].concat();
                assert_eq!(all, data, "all is there");
                Some((section.fields.to_vec(), section.is_missing))
            }
        }
    }

    #[test]
    fn the_section_ends_where_the_blank_line_begins() {
        for (data, section, is_missing) in [
            ("A: b\r\n\r\nbody", "A: b\r\n", false),
            ("A: b\r\nC: d\r\n e\r\n\r\n\r\n\r\n", "A: b\r\nC: d\r\n e\r\n", false),
            ("A : b\r\n\r\nbody", "A : b\r\n", false),
            ("..A: b\r\n\r\nbody", "..A: b\r\n", false),
            (".A: b\r\n\r\nbody", ".A: b\r\n", false),
            ("A: b\r\nno field\r\nC: d\r\n\r\nbody", "A: b\r\nno field\r\nC: d\r\n", false),
            // A mail file's line, and a byte order mark, are dropped in front of a field.
            ("From a@b Mon Jan  1 2026\r\nA: b\r\n\r\n", "A: b\r\n", false),
            (">From a@b Mon\r\n.A : b\r\n\r\n", ".A : b\r\n", false),
            ("\u{feff}A: b\r\n\r\nbody", "A: b\r\n", false),
            ("\u{feff}From a@b Mon\r\nA: b", "A: b", false),
            ("From : b\r\n\r\n", "From : b\r\n", false),
            ("From a@b Mon\r\nthe door\r\n\r\n", "", true),
            ("From a@b Mon\r\n\r\nA: b\r\n", "", true),
            ("From a@b Mon\r\nFrom c@d Mon\r\nA: b\r\n", "", true),
            ("From a@b Mon\r\n", "", true),
            ("From a@b Mon", "", true),
            ("From \r\nA: b\r\n", "", true),
            ("\u{feff}the door\r\nA: b\r\n", "", true),
            ("\u{feff}.A: b\r\n", "", true),
            ("\u{feff}\r\nA: b\r\n", "", true),
            ("\u{feff}", "", true),
            ("\u{f000}A: b\r\n", "", true),
            // Header only.
            ("A: b\r\nC: d\r\n", "A: b\r\nC: d\r\n", false),
            // No header section.
            ("", "", false),
            ("\r\nbody\r\n", "", false),
            ("\r\n", "", false),
            ("door 4 is open\r\nA: b\r\n\r\nbody", "", true),
            ("door\r\nA: b\r\n\r\nbody", "", true),
            ("door \r\n: b\r\n", "", true),
            (": b\r\n\r\n", "", true),
            (" A: b\r\n\r\n", "", true),
            ("T\u{fc}r 4: offen\r\n\r\nbody", "", true),
            ("QUJD\r\nQUJD\r\n", "", true),
            ("A", "", true),
            ("\rA: b\r\n\r\n", "\rA: b\r\n", false),
        ] {
            for piece in [1, 2, 3, 5, 1_000] {
                let expected = Some((section.as_bytes().to_vec(), is_missing));
                assert_eq!(found(data.as_bytes(), piece), expected, "{data:?} by {piece}");
            }
        }
    }

    #[test]
    fn a_section_has_a_bound_and_data_without_one_have_none() {
        let of = |octets: usize| [&b"A: "[..], &vec![b'x'; octets - 5], b"\r\n"].concat();
        let with_body = |octets| [&of(octets), &b"\r\nbody\r\n"[..]].concat();
        for piece in [1_000, 60_000, 10_000_000] {
            assert!(found(&with_body(LONGEST), piece).is_some());
            assert!(found(&of(LONGEST), piece).is_some());
            assert!(found(&with_body(LONGEST + 1), piece).is_none());
            assert!(found(&of(LONGEST + 1), piece).is_none());
            let many = [b"A: b\r\n".repeat(LONGEST), b"\r\nbody".to_vec()].concat();
            assert!(found(&many, piece).is_none());
            // The colon is the last octet that counts, or comes too late.
            let named = |octets: usize| [&vec![b'x'; octets], &b": y\r\n\r\n"[..]].concat();
            assert_eq!(found(&named(LONGEST - 1), piece), None);
            assert_eq!(found(&named(LONGEST), piece), Some((Vec::new(), true)));
            let text = vec![b'x'; LONGEST + 70_000];
            assert_eq!(found(&text, piece), Some((Vec::new(), true)));
        }
    }

    #[test]
    fn one_chunk_is_not_copied() {
        let chunk = Bytes::from_static(b"A: b\r\n\r\nbody");
        let Some(Gathered::Whole(section, rest)) = Gatherer::default().push(chunk.clone()) else {
            panic!("not whole")
        };
        assert_eq!(section.fields.as_ptr(), chunk.as_ptr());
        assert_eq!(rest.as_ptr(), chunk[6..].as_ptr());
    }

    #[test]
    fn fields_are_told_by_their_names() {
        let section = b"From: a\r\nfrom : b\r\n c\r\n..From: dot\r\n.From: wire\r\nno field\r\n\tfrom: more\r\n\
                        From\r\n : folded\r\n: none\r\nX\x01Y: z\r\nLast:";
        let all: Vec<_> = fields(section)
            .map(|field| {
                let text = |octets| String::from_utf8_lossy(octets).into_owned();
                (text(field.name), text(field.value))
            })
            .collect();
        let expected = [
            ("From", " a\r\n"),
            ("from", " b\r\n c\r\n"),
            (".From", " dot\r\n"),
            ("From", " wire\r\n"),
            ("", "no field\r\n\tfrom: more\r\n"),
            ("From", " folded\r\n"),
            ("", ": none\r\n"),
            ("", "X\u{1}Y: z\r\n"),
            ("Last", ""),
        ];
        let expected: Vec<_> = expected.map(|(n, v)| (n.to_owned(), v.to_owned())).into();
        assert_eq!(all, expected);
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_section(data in "[A:. b\r\n]{0,40}", piece in 1usize..9) {
            let whole = found(data.as_bytes(), data.len());
            prop_assert_eq!(found(data.as_bytes(), piece), whole);
        }

    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_split_gives_the_same_verdict_on_long_ones(
            begin in "(\u{feff})?(From a@b\r\n)?(A:|A ?| ?)",
            octet in "[x :]",
            short in 0usize..9,
            end in "[x:. \r\n]{0,9}",
            piece in 1usize..9,
        ) {
            let filler = octet.repeat(LONGEST - begin.len() - short);
            let data = [&begin[..], &filler, &end].concat();
            let whole = found(data.as_bytes(), data.len());
            for piece in [LONGEST / 8 + piece, LONGEST - 9 + piece, LONGEST + 5 - piece] {
                prop_assert_eq!(found(data.as_bytes(), piece), whole.clone());
            }
        }
    }

    proptest! {
        #[test]
        fn fields_cover_the_section(data in "[A:. \tb\r\n]{0,40}") {
            let mut at = 0;
            for field in fields(data.as_bytes()) {
                prop_assert_eq!(field.place.start, at);
                prop_assert!(field.place.end > at);
                at = field.place.end;
            }
            prop_assert_eq!(at, data.len());
        }
    }
}
