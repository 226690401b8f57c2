//! Whom a message is from when it goes up: the reverse-path, and the From, Sender and Reply-To fields.
//!
//! Exchange Online lets a mailbox send as nobody else unless somebody has granted that. So whatever a mailbox may
//! not use becomes the mailbox, and who it was stays to be seen, and to be answered where that is possible.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::Patterns;
use crate::proto::{
    header::{Field, Section},
    mailbox_list::{Entry, Name, entries, is_plain, is_plain_address},
    path::{Address, ReversePath},
};

/// Whether senders are rewritten that a mailbox may not use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rewrite {
    /// They become the mailbox.
    #[default]
    Mailbox,
    /// They stay as they are.
    Keep,
}

/// What one device may call itself at one mailbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What becomes of other senders.
    pub rewrite: Rewrite,
    /// The mailbox's address.
    pub mailbox: String,
    /// Senders that the mailbox may use besides its own address.
    pub send_as: Patterns,
    /// What the device may send as, of these; `None`: anything.
    pub senders: Option<Patterns>,
}

/// Octets of a display name that had to be quoted.
const NAME: usize = 200;
/// Addresses of a From field that go into Reply-To.
const ANSWERS: usize = 5;
/// Columns of a line (RFC 5322 section 2.1.1).
const LINE: usize = 78;

/// Domains that no mail gets to from elsewhere: RFC 6761 and RFC 7686, RFC 6762 with its appendix G, RFC 8375, and
/// what routers and Windows make up. `test` and `example` are left out: who uses them means to see them work.
const HOUSE: [&str; 12] = [
    "local",
    "localhost",
    "localdomain",
    "invalid",
    "internal",
    "intranet",
    "private",
    "corp",
    "home",
    "lan",
    "onion",
    "home.arpa",
];

impl Rule {
    /// Whoever a message is from, it stays; only a null reverse-path becomes the mailbox.
    pub fn keep(mailbox: &str) -> Self {
        Self {
            rewrite: Rewrite::Keep,
            mailbox: mailbox.to_owned(),
            send_as: Patterns::default(),
            senders: None,
        }
    }

    /// Whether mail goes up from this address as it is.
    pub fn allows(&self, address: &str) -> bool {
        self.rewrite == Rewrite::Keep
            || self.is_mailbox(address)
            || self.send_as.hold(address)
                && self.senders.as_ref().is_none_or(|senders| senders.hold(address))
    }

    /// The reverse-path as it is sent. Exchange Online takes no null one from a mailbox.
    pub fn reverse_path(&self, received: &ReversePath) -> ReversePath {
        match received {
            ReversePath::Address(address) if self.allows(address.as_str()) => received.clone(),
            _ => match Address::parse(&self.mailbox) {
                Ok(mailbox) => ReversePath::Address(mailbox),
                Err(_) => received.clone(),
            },
        }
    }

    /// What goes up in place of the header section: `head`, which has fields of ours, and the section's own, edited.
    /// `received` is the reverse-path as it was received.
    pub fn front(&self, received: &ReversePath, head: &[u8], section: &Section) -> Bytes {
        let mut front = BytesMut::with_capacity(head.len() + section.fields.len() + 256);
        front.put_slice(head);
        match self.rewrite {
            Rewrite::Keep => front.put_slice(&section.fields),
            Rewrite::Mailbox => self.edit(received, section, &mut front),
        }
        if section.is_missing {
            front.put_slice(b"\r\n");
        }
        front.freeze()
    }

    fn edit(&self, received: &ReversePath, section: &Section, out: &mut BytesMut) {
        let authors = Authors::of(section);
        let from = authors.from.as_ref().filter(|field| self.may_stand(field.value));
        let author = match from {
            Some(field) => {
                let mut all = entries(field.value).filter_map(|entry| entry.address);
                all.next().filter(|_| all.next().is_none())
            }
            None => Some(self.write_from(received, &authors, out).into()),
        };
        let sender =
            authors.sender.as_ref().filter(|field| self.is_one_that_may_stand(field.value));
        let is_needed = match &author {
            // RFC 5322 section 3.6.2: one who is the author as well is not named again.
            Some(author) => authors.sender.is_some() && !self.is_mailbox(author),
            None => true,
        };
        if sender.is_none() && is_needed {
            out.put_slice(format!("Sender: <{}>\r\n", self.mailbox).as_bytes());
        }
        let answers = match (from, authors.is_answered) {
            (None, false) => self.write_reply_to(received, &authors, author.as_deref(), out),
            _ => false,
        };
        let stays = |field: &Field<'_>| {
            let is_this = |one: Option<&Field<'_>>| one.is_some_and(|one| one.place == field.place);
            match () {
                () if field.is("From") => is_this(from),
                () if field.is("Sender") => is_this(sender),
                () if field.is("Reply-To") => !answers,
                () => true,
            }
        };
        // Runs of fields that stay are copied at once.
        let mut run = 0;
        for field in section.fields() {
            if !stays(&field) {
                out.put_slice(&section.fields[run..field.place.start]);
                run = field.place.end;
            }
        }
        out.put_slice(&section.fields[run..]);
    }

    /// Whether a From field may stay: a list of mailboxes that all readers read alike, each of which may be used.
    fn may_stand(&self, value: &[u8]) -> bool {
        is_plain(value) && entries(value).all(|entry| self.may(&entry))
    }

    fn is_one_that_may_stand(&self, value: &[u8]) -> bool {
        self.may_stand(value) && entries(value).nth(1).is_none()
    }

    fn may(&self, entry: &Entry<'_>) -> bool {
        !entry.is_grouped && entry.address.as_ref().is_some_and(|address| self.allows(address))
    }

    fn is_mailbox(&self, address: &str) -> bool {
        address.eq_ignore_ascii_case(&self.mailbox)
    }

    /// Writes a From field; returns its address.
    fn write_from(
        &self,
        received: &ReversePath,
        authors: &Authors<'_>,
        out: &mut BytesMut,
    ) -> String {
        let author = authors.author();
        let original = author.as_ref().and_then(|author| author.address.as_deref());
        let address = match (original, &author) {
            (Some(address), Some(author)) if authors.is_one() && self.may(author) => {
                address.to_owned()
            }
            (Some(_), _) => self.mailbox.clone(),
            // Where From says nobody, the envelope does.
            (None, _) => self.reverse_path(received).as_str().to_owned(),
        };
        let is_plain = is_plain_address(address.as_bytes());
        let address = if is_plain { address } else { self.mailbox.clone() };
        let begin = out.len();
        out.put_slice(b"From: ");
        let is_named = match author.as_ref().map_or(Name::None, |author| author.name) {
            Name::Phrase(name) => {
                out.put_slice(name);
                true
            }
            Name::Text(text) => quote(text, out),
            Name::None => false,
        };
        let original = original.unwrap_or(received.as_str());
        let is_named =
            is_named || !original.eq_ignore_ascii_case(&address) && quote(original.as_bytes(), out);
        if is_named {
            let line = out[begin..].iter().rev().take_while(|octet| **octet != b'\n').count();
            let fold: &[u8] = if line + address.len() + 3 > LINE { b"\r\n " } else { b" " };
            out.put_slice(fold);
        }
        out.put_slice(format!("<{address}>\r\n").as_bytes());
        address
    }

    /// Writes a Reply-To field with who would have been answered, if anybody can be.
    fn write_reply_to(
        &self,
        received: &ReversePath,
        authors: &Authors<'_>,
        author: Option<&str>,
        out: &mut BytesMut,
    ) -> bool {
        let value = authors.from.as_ref().map_or(&b""[..], |field| field.value);
        let named = entries(value).filter_map(|entry| entry.address);
        let envelope = authors.author().is_none_or(|author| author.address.is_none());
        let envelope = envelope.then(|| received.as_str().into());
        let mut count = 0;
        for address in named.chain(envelope).filter(|address| is_deliverable(address)) {
            if count == ANSWERS
                || author.is_some_and(|author| author.eq_ignore_ascii_case(&address))
            {
                continue;
            }
            out.put_slice(if count == 0 { b"Reply-To: " } else { b",\r\n " });
            out.put_slice(address.as_bytes());
            count += 1;
        }
        if count > 0 {
            out.put_slice(b"\r\n");
        }
        count > 0
    }
}

/// Whom a message says that it is from, where that is nobody whom its device may send as. Of a field that readers may
/// read differently every word with an `@` counts, quoted ones and comments too.
pub fn outside(senders: &Patterns, section: &Section) -> Option<String> {
    let from = section.fields().filter(|field| field.is("From"));
    from.flat_map(|field| named(field.value)).find(|address| !senders.hold(address))
}

fn named(value: &[u8]) -> Vec<String> {
    let addresses = entries(value).filter_map(|entry| entry.address);
    let mut all: Vec<String> = addresses.map(|address| address.into_owned()).collect();
    if is_plain(value) {
        return all;
    }
    let is_between = |octet: &u8| octet.is_ascii_whitespace() || b"()<>[],:;\"\\".contains(octet);
    let words = value.split(is_between).filter(|word| word.contains(&b'@'));
    all.extend(words.map(|word| String::from_utf8_lossy(word).into_owned()));
    // Whole addresses say more in a refusal.
    all.sort_by_key(|word| word.starts_with('@'));
    all
}

/// The fields that say whom a message is from.
#[derive(Default)]
struct Authors<'a> {
    /// The From field that counts: the first with an address, or else the first.
    from: Option<Field<'a>>,
    /// The first Sender field.
    sender: Option<Field<'a>>,
    /// A Reply-To field has an address.
    is_answered: bool,
}

impl<'a> Authors<'a> {
    fn of(section: &'a Section) -> Self {
        let mut authors = Self::default();
        let has_address = |value| entries(value).any(|entry| entry.address.is_some());
        let mut has_from = false;
        for field in section.fields() {
            if field.is("From") && !has_from {
                has_from = has_address(field.value);
                if has_from || authors.from.is_none() {
                    authors.from = Some(field);
                }
            } else if field.is("Sender") {
                authors.sender.get_or_insert(field);
            } else if field.is("Reply-To") {
                authors.is_answered = authors.is_answered || has_address(field.value);
            }
        }
        authors
    }

    /// From names one.
    fn is_one(&self) -> bool {
        self.from.as_ref().is_some_and(|from| entries(from.value).count() == 1)
    }

    /// Who is named first, with an address if anybody has one.
    fn author(&self) -> Option<Entry<'a>> {
        let value = self.from.as_ref()?.value;
        entries(value).find(|entry| entry.address.is_some()).or_else(|| entries(value).next())
    }
}

/// Writes text as a quoted string (RFC 5322 section 3.2.4) without what would have to be escaped; false if nothing
/// is left of it.
fn quote(text: &[u8], out: &mut BytesMut) -> bool {
    if !text.iter().any(|octet| octet.is_ascii_alphanumeric() || !octet.is_ascii()) {
        return false;
    }
    let begin = out.len();
    out.put_u8(b'"');
    let mut last = b' ';
    for &octet in text {
        // A character outside ASCII is not cut.
        let is_inside = (0x80..0xC0).contains(&octet);
        if out.len() - begin > NAME && !is_inside {
            break;
        }
        let stuffing = last == b'\n' && octet == b'.';
        last = octet;
        match octet {
            b'"' | b'\\' | b'\r' | b'\n' => {}
            _ if stuffing => {}
            0..=31 | 127 => out.put_u8(b' '),
            _ => out.put_u8(octet),
        }
    }
    out.put_u8(b'"');
    true
}

/// Whether mail to this address gets anywhere from outside the house, as far as the name tells.
fn is_deliverable(address: &str) -> bool {
    let Some((_, domain)) = address.rsplit_once('@') else { return false };
    let is_below = |house: &&str| {
        let domain = domain.as_bytes();
        domain.len() > house.len()
            && domain[domain.len() - house.len()..].eq_ignore_ascii_case(house.as_bytes())
            && domain[domain.len() - house.len() - 1] == b'.'
    };
    !domain.starts_with('[')
        && domain.contains('.')
        && domain.split('.').all(|label| !label.is_empty())
        && !HOUSE.iter().any(|house| domain.eq_ignore_ascii_case(house) || is_below(house))
}

#[cfg(test)]
#[path = "sender/tests.rs"]
mod tests;
