//! Parameters of MAIL (RFC 5321 section 4.1.1.11). Those of RCPT are all of DSN, which is not offered.

/// What a MAIL command says of its message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MailParams {
    /// `SIZE=`, octets of the message (RFC 1870).
    pub size: Option<u64>,
    /// `BODY=8BITMIME` (RFC 6152).
    pub eight_bit: bool,
    /// `SMTPUTF8` (RFC 6531).
    pub smtputf8: bool,
}

impl MailParams {
    /// Reads what follows the path. Devices send parameters that nobody offered them (`AUTH=<>`, an empty
    /// `SIZE=`); what is not understood is ignored.
    pub(super) fn parse(text: &str) -> Self {
        let mut params = Self::default();
        for word in text.split_ascii_whitespace() {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            if key.eq_ignore_ascii_case("SIZE") {
                params.size = octets(value);
            } else if key.eq_ignore_ascii_case("BODY") {
                params.eight_bit = value.eq_ignore_ascii_case("8BITMIME");
            } else if key.eq_ignore_ascii_case("SMTPUTF8") {
                params.smtputf8 = true;
            }
        }
        params
    }
}

/// Whether a parameter means something here.
pub(super) fn is_understood(word: &str) -> bool {
    let (key, value) = word.split_once('=').unwrap_or((word, ""));
    let is = |known: &str| key.eq_ignore_ascii_case(known);
    let body = || value.eq_ignore_ascii_case("8BITMIME") || value.eq_ignore_ascii_case("7BIT");
    (is("SIZE") && octets(value).is_some()) || (is("BODY") && body()) || is("SMTPUTF8")
}

/// A number too large to hold is still a size: one that nobody takes.
fn octets(value: &str) -> Option<u64> {
    if value.is_empty() || !value.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(value.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_understood_is_ignored() {
        let params = MailParams::parse(" size=1234 BODY=8bitmime AUTH=<> RET=HDRS nonsense");
        assert_eq!(params, MailParams { size: Some(1234), eight_bit: true, smtputf8: false });
        assert_eq!(
            MailParams::parse("SIZE= BODY=7BIT SMTPUTF8"),
            MailParams { smtputf8: true, ..Default::default() }
        );
        assert_eq!(MailParams::parse("SIZE=-1").size, None);
        assert_eq!(MailParams::parse("SIZE=99999999999999999999999").size, Some(u64::MAX));
    }
}
