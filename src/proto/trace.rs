//! The Received header field (RFC 5321 section 4.4).

use std::net::IpAddr;

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
        field.push_str(&format!("by {} (smtp-uplift)", self.by));
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

#[cfg(test)]
mod tests {
    use super::*;

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
