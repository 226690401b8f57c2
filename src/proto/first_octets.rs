//! What a connection opens with, told by its first octets: SMTP is text, TLS is not.

/// What the first octets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstOctets {
    /// A ClientHello: TLS begins.
    ClientHello,
    /// What may still become one, or nothing yet.
    Unclear,
    /// Anything else.
    Other,
}

impl FirstOctets {
    /// Octets after which it is clear.
    pub const ENOUGH: usize = 3;

    /// Judges a connection's first octets.
    pub fn of(octets: &[u8]) -> Self {
        match octets {
            // A handshake record of SSLv3 or later (RFC 5246 section 6.2.1).
            [0x16, 0x03, ..] => Self::ClientHello,
            // SSLv2's format: the length with its first bit set, then message 1 (RFC 5246 appendix E.2).
            [0x80..=0xff, _, 1, ..] => Self::ClientHello,
            // More likely a line of rubbish, whose sender waits for an answer, than a hello that was cut just here.
            [0x80..=0xff, b'\n'] => Self::Other,
            [] | [0x16] | [0x80..=0xff] | [0x80..=0xff, _] => Self::Unclear,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_is_told_from_whatever_else_comes() {
        for (octets, expected) in [
            (&b"\x16\x03\x01\x02\x00\x01"[..], FirstOctets::ClientHello),
            (b"\x16\x03\x00", FirstOctets::ClientHello),
            (b"\x80\x2e\x01\x03\x01", FirstOctets::ClientHello),
            (b"\x81\x0a\x01\x03\x01", FirstOctets::ClientHello),
            (b"", FirstOctets::Unclear),
            (b"\x16", FirstOctets::Unclear),
            (b"\x80", FirstOctets::Unclear),
            (b"\x80\x2e", FirstOctets::Unclear),
            (b"\x80\n", FirstOctets::Other),
            (b"\x80\x2e\x02", FirstOctets::Other),
            (b"\x16\x02", FirstOctets::Other),
            (b"\0", FirstOctets::Other),
            (b"E", FirstOctets::Other),
            (b"EHLO printer\r\n", FirstOctets::Other),
            (b"\r\n", FirstOctets::Other),
        ] {
            assert_eq!(FirstOctets::of(octets), expected, "{}", octets.escape_ascii());
        }
        for octets in [[0x16, 0x03, 0x01], [0x80, 0x2e, 0x01], [b'Q', b'U', b'I'], [0xff; 3]] {
            assert_ne!(FirstOctets::of(&octets), FirstOctets::Unclear, "three are enough");
        }
    }
}
