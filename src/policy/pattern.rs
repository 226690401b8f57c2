//! Kinds of addresses: senders that a mailbox or a device may use, recipients that it may send to.

/// Addresses, each by itself or as `*@domain`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Patterns(Vec<String>);

impl Patterns {
    /// These.
    pub fn new(patterns: Vec<String>) -> Self {
        Self(patterns)
    }

    /// Whether an address is one of them; the case of letters does not count.
    pub fn hold(&self, address: &str) -> bool {
        self.0.iter().any(|pattern| is_of(pattern, address))
    }

    /// As they were given.
    pub fn as_slice(&self) -> &[String] {
        &self.0
    }
}

fn is_of(pattern: &str, address: &str) -> bool {
    match (pattern.strip_prefix("*@"), address.rsplit_once('@')) {
        (Some(wanted), Some((_, domain))) => wanted.eq_ignore_ascii_case(domain),
        _ => pattern.eq_ignore_ascii_case(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_addresses_or_whole_domains() {
        for (pattern, address, holds) in [
            ("scan@example.com", "Scan@Example.COM", true),
            ("scan@example.com", "scan@example.org", false),
            ("*@example.com", "anybody@EXAMPLE.com", true),
            ("*@example.com", "anybody@sub.example.com", false),
            ("*@example.com", "\"a@b\"@example.com", true),
            ("*@example.com", "", false),
        ] {
            let patterns = Patterns::new(vec![pattern.to_owned()]);
            assert_eq!(patterns.hold(address), holds, "{pattern} {address}");
        }
    }
}
