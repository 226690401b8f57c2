//! Settings that are one of several words: read and written back by the same list.

use super::{
    DeliveryMode, LogFormat, OAuthFlow, ReceivedDetail, SmarthostTls, TlsBackend, TlsMin,
    Transcripts, raw::Table,
};
use crate::{
    policy::{DeviceAuth, ListenerTls, TlsProfile, sender::Rewrite},
    proto::limits::LineEndings,
};

/// A setting that is one of several words.
pub(super) trait Word: Copy + PartialEq + 'static {
    /// Each word with what it means, in the order in which an operator is shown them.
    const WORDS: &'static [(&'static str, Self)];

    /// The word for it.
    fn word(self) -> &'static str {
        let found = Self::WORDS.iter().find(|(_, value)| *value == self);
        found.expect("a test reads each word back").0
    }
}

impl Table<'_> {
    /// One of several words, or none of those that are known and refused with a reason.
    pub(super) fn one_of<T: Word>(
        &mut self,
        key: &'static str,
        refused: &[(&str, &str)],
    ) -> Option<T> {
        let taken = T::WORDS.iter().map(|(word, value)| (*word, Ok(*value)));
        let refused = refused.iter().map(|(word, reason)| (*word, Err(*reason)));
        self.word(key, &taken.chain(refused).collect::<Vec<_>>())
    }
}

impl Word for ReceivedDetail {
    const WORDS: &'static [(&'static str, Self)] =
        &[("full", Self::Full), ("no-client", Self::NoClient)];
}

impl Word for Rewrite {
    const WORDS: &'static [(&'static str, Self)] =
        &[("mailbox", Self::Mailbox), ("keep", Self::Keep)];
}

impl Word for ListenerTls {
    const WORDS: &'static [(&'static str, Self)] = &[
        (Self::StartTls.as_str(), Self::StartTls),
        (Self::RequireStartTls.as_str(), Self::RequireStartTls),
        (Self::Implicit.as_str(), Self::Implicit),
        (Self::Auto.as_str(), Self::Auto),
        (Self::None.as_str(), Self::None),
    ];
}

impl Word for TlsProfile {
    const WORDS: &'static [(&'static str, Self)] = &[
        (Self::Modern.as_str(), Self::Modern),
        (Self::Legacy.as_str(), Self::Legacy),
        (Self::Ancient.as_str(), Self::Ancient),
    ];
}

impl Word for DeviceAuth {
    const WORDS: &'static [(&'static str, Self)] =
        &[("none", Self::None), ("offer", Self::Offer), ("require", Self::Require)];
}

impl Word for LineEndings {
    const WORDS: &'static [(&'static str, Self)] =
        &[("normalise", Self::Normalise), ("strict", Self::Strict)];
}

impl Word for SmarthostTls {
    const WORDS: &'static [(&'static str, Self)] =
        &[("starttls", Self::StartTls), ("implicit", Self::Implicit), ("none", Self::None)];
}

impl Word for TlsMin {
    const WORDS: &'static [(&'static str, Self)] = &[("1.2", Self::V1_2), ("1.3", Self::V1_3)];
}

impl Word for TlsBackend {
    const WORDS: &'static [(&'static str, Self)] =
        &[("rustls", Self::Rustls), ("native", Self::Native)];
}

impl Word for OAuthFlow {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("client-credentials", Self::ClientCredentials),
        ("device-code", Self::DeviceCode),
        ("refresh-token", Self::RefreshToken),
    ];
}

impl Word for DeliveryMode {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("stream", Self::Stream),
        ("stream-then-spool", Self::StreamThenSpool),
        ("spool", Self::Spool),
    ];
}

impl Word for LogFormat {
    const WORDS: &'static [(&'static str, Self)] = &[("text", Self::Text), ("json", Self::Json)];
}

impl Word for Transcripts {
    const WORDS: &'static [(&'static str, Self)] =
        &[("off", Self::Off), ("failed", Self::Failed), ("all", Self::All)];
}
