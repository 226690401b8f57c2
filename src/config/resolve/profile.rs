//! How devices are served: settings that a `[[listener]]` has, and that a `[[device]]` may have of its own.

use std::time::Duration;

use toml::de::DeValue;

use super::{DAY, TICK};
use crate::{
    config::{
        raw::{Complaint, Table},
        value,
    },
    policy::{Overrides, Profile},
};

/// The EHLO keywords that we offer, and so the ones that can be hidden.
const KEYWORDS: [&str; 7] =
    ["SIZE", "PIPELINING", "8BITMIME", "ENHANCEDSTATUSCODES", "SMTPUTF8", "STARTTLS", "AUTH"];

/// The keys that act before a device has logged in.
pub(super) const BEFORE_LOGIN: [&str; 8] = [
    "tls",
    "tls_profile",
    "auto_wait",
    "starttls_fallback",
    "auth",
    "auth_without_tls",
    "accept_any_credentials",
    "hide",
];

/// What a table says; what it does not say is `None`.
pub(super) fn overrides(table: &mut Table<'_>) -> Overrides {
    let default = Profile::default();
    let mut own = Overrides {
        tls: table.one_of("tls", &[]),
        tls_profile: table.one_of("tls_profile", &[]),
        auth: table.one_of("auth", &[]),
        line_endings: table.one_of("line_endings", &[]),
        hide: table.list("hide", keyword),
        ..Overrides::default()
    };
    let auto_wait = table.duration("auto_wait", default.auto_wait, TICK..=Duration::from_secs(10));
    own.auto_wait = table.has("auto_wait").then_some(auto_wait);
    let fallback =
        table.duration("starttls_fallback", default.starttls_fallback, Duration::ZERO..=DAY);
    own.starttls_fallback = table.has("starttls_fallback").then_some(fallback);
    let flag = |table: &mut Table<'_>, key| {
        let set = table.flag(key);
        table.has(key).then_some(set)
    };
    own.auth_without_tls = flag(table, "auth_without_tls");
    own.accept_any_credentials = flag(table, "accept_any_credentials");
    own
}

fn keyword(value: &DeValue<'_>) -> Result<String, Complaint> {
    let hint = format!("known are {}", KEYWORDS.join(", "));
    let keyword = value::text(value, &hint)?.to_ascii_uppercase();
    if KEYWORDS.contains(&keyword.as_str()) {
        return Ok(keyword);
    }
    Err(Complaint::new(format!("{keyword:?} is not an EHLO keyword that we offer"), hint))
}
