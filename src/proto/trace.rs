//! The Received header field (RFC 5321 section 4.4): ours, and what those of others tell.

use std::net::IpAddr;

use super::header::Section;

/// What our Received fields call us, in a comment.
const US: &str = "(smtp-uplift)";
/// Servers that a message may have passed (RFC 5321 section 6.3).
const HOPS: usize = 100;

/// What the relay knows of how a message came to it.
#[derive(Clone, Debug)]
pub struct Received<'a> {
    /// The name that the device gave in EHLO or HELO and its address; `None` keeps both in the house.
    pub client: Option<(&'a str, IpAddr)>,
    /// Version and cipher of the device's TLS.
    pub tls: Option<(&'a str, &'a str)>,
    /// Our name.
    pub by: &'a str,
    /// Whether the device said EHLO.
    pub extended: bool,
    /// Whether the device logged in.
    pub authenticated: bool,
    /// Whether an address needs SMTPUTF8.
    pub utf8: bool,
    /// The transaction's id.
    pub id: &'a str,
    /// The time in RFC 5322's form.
    pub date: &'a str,
}

impl Received<'_> {
    /// The header field, folded, with its last CR LF.
    pub fn header(&self) -> String {
        let mut field = String::from("Received: ");
        if let Some((name, address)) = self.client {
            let name = if name.is_empty() { "unknown" } else { name };
            let literal = match address {
                IpAddr::V4(v4) => format!("[{v4}]"),
                IpAddr::V6(v6) => format!("[IPv6:{v6}]"),
            };
            field.push_str(&format!("from {name} ({literal})\r\n "));
        }
        field.push_str(&format!("by {} {US}", self.by));
        if let Some((version, cipher)) = self.tls {
            field.push_str(&format!("\r\n (version={version} cipher={cipher})"));
        }
        field.push_str(&format!(
            "\r\n with {} id {};\r\n {}\r\n",
            self.protocol(),
            self.id,
            self.date
        ));
        field
    }

    /// The name of the protocol (RFC 3848, RFC 6531 section 4.3).
    fn protocol(&self) -> String {
        let base = if self.utf8 { "UTF8SMTP" } else { "ESMTP" };
        match (self.tls.is_some(), self.authenticated) {
            (false, false) if !self.extended => "SMTP".to_owned(),
            (tls, authenticated) => {
                format!(
                    "{base}{}{}",
                    if tls { "S" } else { "" },
                    if authenticated { "A" } else { "" }
                )
            }
        }
    }
}

/// What a header section tells of the way so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// It goes in circles.
    pub circle: Option<Circle>,
    /// It has a date.
    pub has_date: bool,
    /// It has a Message-ID.
    pub has_message_id: bool,
}

/// How a message that goes in circles is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Circle {
    /// It was here before.
    Own,
    /// It has passed more servers than any way has.
    Long,
}

impl Trace {
    /// Reads a section; `by` is our name.
    pub fn of(section: &Section, by: &str) -> Self {
        let (mut trace, mut hops) = (Self::default(), 0);
        for field in section.fields() {
            if field.is("Received") {
                hops += 1;
                if is_ours(field.value, by) {
                    trace.circle = Some(Circle::Own);
                }
            }
            trace.has_date |= field.is("Date");
            trace.has_message_id |= field.is("Message-ID");
        }
        if hops > HOPS {
            trace.circle.get_or_insert(Circle::Long);
        }
        trace
    }
}

fn is_ours(received: &[u8], by: &str) -> bool {
    let mut words = received.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let (mut first, mut second): (&[u8], &[u8]) = (b"", b"");
    words.any(|third| {
        let is_ours = first.eq_ignore_ascii_case(b"by")
            && second.eq_ignore_ascii_case(by.as_bytes())
            && third == US.as_bytes();
        (first, second) = (second, third);
        is_ours
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_here_before_or_has_gone_too_far_goes_in_circles() {
        let of = |fields: String| {
            Trace::of(&Section { fields: fields.into(), ..Section::default() }, "relay.example")
        };
        let received = Received {
            client: Some(("copier", IpAddr::from([192, 0, 2, 7]))),
            tls: None,
            by: "Relay.Example",
            extended: true,
            authenticated: false,
            utf8: false,
            id: "k3v9.1",
            date: DATE,
        };
        let other = Received { by: "other.example", ..received.clone() }.header();
        let ours = received.header();
        let circle = |fields| of(fields).circle;
        assert_eq!(circle(ours.clone()), Some(Circle::Own));
        assert_eq!(circle(ours.replace("by Relay", "by\r\n\tRelay")), Some(Circle::Own));
        assert_eq!(circle(other.clone()), None, "another relay like this");
        assert_eq!(circle(ours.replace("Received", "X-Received")), None);
        assert_eq!(circle(ours.replace("by Relay", "for Relay")), None);
        assert_eq!(circle(other.repeat(100)), None);
        assert_eq!(circle(other.repeat(101)), Some(Circle::Long));
        assert_eq!(circle(other.repeat(101) + &ours), Some(Circle::Own));
        let both = of("DATE: x\r\nmessage-id : <a@b>\r\n".to_owned());
        assert!(both.has_date && both.has_message_id && both.circle.is_none());
        assert_eq!(of("Dated: x\r\n".to_owned()), Trace::default());
    }

    const DATE: &str = "Sun, 22 Nov 2026 10:00:00 +0000";

    #[test]
    fn it_tells_who_how_and_when() {
        let mut received = Received {
            client: Some(("copier", IpAddr::from([192, 0, 2, 7]))),
            tls: Some(("TLSv1", "AES128-SHA")),
            by: "relay.example",
            extended: true,
            authenticated: true,
            utf8: false,
            id: "k3v9.1",
            date: DATE,
        };
        let expected = "Received: from copier ([192.0.2.7])\r\n by relay.example (smtp-uplift)\r\n \
                        (version=TLSv1 cipher=AES128-SHA)\r\n with ESMTPSA id k3v9.1;\r\n Sun, 22 Nov 2026 10:00:00 +0000\r\n";
        assert_eq!(received.header(), expected);
        received.client = None;
        received.tls = None;
        received.extended = false;
        received.authenticated = false;
        assert_eq!(
            received.header(),
            "Received: by relay.example (smtp-uplift)\r\n with SMTP id k3v9.1;\r\n Sun, 22 Nov 2026 10:00:00 +0000\r\n"
        );
    }
}
