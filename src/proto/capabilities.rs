//! What a server offers in its answer to EHLO (RFC 5321 section 4.1.1.1).

use super::{reply::Reply, sasl::Mechanism};

/// The extensions of a server that this relay acts on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// `SIZE` (RFC 1870): the limit in octets; `None` if none was named.
    pub size: Option<u64>,
    /// `PIPELINING` (RFC 2920).
    pub pipelining: bool,
    /// `8BITMIME` (RFC 6152).
    pub eight_bit_mime: bool,
    /// `SMTPUTF8` (RFC 6531).
    pub smtputf8: bool,
    /// `STARTTLS` (RFC 3207).
    pub starttls: bool,
    /// The mechanisms behind `AUTH` (RFC 4954) that this relay knows.
    pub mechanisms: Vec<Mechanism>,
}

impl Capabilities {
    /// Reads the reply to EHLO: its first line greets, each other line names one extension.
    pub fn parse(reply: &Reply) -> Self {
        let mut found = Self::default();
        for line in reply.lines.iter().skip(1) {
            // `AUTH=LOGIN` is how servers wrote it before RFC 2554.
            let mut words = line.split([' ', '\t', '=']).filter(|word| !word.is_empty());
            let keyword = words.next().unwrap_or_default().to_ascii_uppercase();
            match keyword.as_str() {
                "SIZE" => {
                    found.size = words.next().and_then(|n| n.parse().ok()).filter(|size| *size > 0)
                }
                "PIPELINING" => found.pipelining = true,
                "8BITMIME" => found.eight_bit_mime = true,
                "SMTPUTF8" => found.smtputf8 = true,
                "STARTTLS" => found.starttls = true,
                "AUTH" => found.mechanisms = words.filter_map(Mechanism::parse).collect(),
                _ => {}
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exchange_online_after_tls() {
        let lines = [
            "h Hello",
            "SIZE 157286400",
            "PIPELINING",
            "DSN",
            "AUTH LOGIN XOAUTH2",
            "8BITMIME",
            "CHUNKING",
            "SMTPUTF8",
        ];
        let mut reply = Reply::new(250, None, "");
        reply.lines = lines.map(str::to_owned).to_vec();
        assert_eq!(
            Capabilities::parse(&reply),
            Capabilities {
                size: Some(157_286_400),
                pipelining: true,
                eight_bit_mime: true,
                smtputf8: true,
                starttls: false,
                mechanisms: vec![Mechanism::Login, Mechanism::XOAuth2],
            }
        );
    }

    #[test]
    fn a_greeting_is_no_extension_and_size_zero_no_limit() {
        let mut reply = Reply::new(250, None, "STARTTLS");
        reply.lines.extend(["SIZE 0".to_owned(), "auth=login plain".to_owned()]);
        let found = Capabilities::parse(&reply);
        assert_eq!((found.starttls, found.size), (false, None));
        assert_eq!(found.mechanisms, [Mechanism::Login, Mechanism::Plain]);
    }
}
