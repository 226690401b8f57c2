//! From one TOML value to one typed value: each reader says what it expected and gives an example.

use std::{fmt, fs::File, net::SocketAddr, ops::RangeInclusive, path::PathBuf, time::Duration};

use bytesize::ByteSize;
use toml::de::DeValue;

use super::{
    file::unreadable,
    raw::{Complaint, Table, mismatch, nearest, printable},
};
use crate::policy::Quota;

impl Table<'_> {
    /// A string that is neither empty nor holds control characters.
    pub(super) fn text(&mut self, key: &'static str, example: &str) -> Option<String> {
        self.read(key, |value| text(value, &format!("for example {key} = {example:?}")))
    }

    /// `true` or `false`.
    pub(super) fn flag(&mut self, key: &'static str) -> bool {
        let flag = self.read(key, |value| {
            value.as_bool().ok_or_else(|| {
                mismatch("true or false", value, &format!("for example {key} = true"))
            })
        });
        flag.unwrap_or(false)
    }

    /// An integer within a range.
    pub(super) fn number<T>(&mut self, key: &'static str, default: T, range: RangeInclusive<T>) -> T
    where
        T: Copy + fmt::Display + PartialOrd + TryFrom<i128>,
    {
        let number = self.read(key, |value| {
            let hint = format!("for example {key} = {default}");
            let integer = value.as_integer().ok_or_else(|| mismatch("an integer", value, &hint))?;
            i128::from_str_radix(integer.as_str(), integer.radix())
                .ok()
                .and_then(|number| T::try_from(number).ok())
                .filter(|number| range.contains(number))
                .ok_or_else(|| {
                    let (low, high) = (range.start(), range.end());
                    // The parser takes for digits whatever stands there, a password too.
                    let integer = integer.to_string();
                    let has_words = integer.bytes().any(|octet| octet.is_ascii_alphabetic());
                    let integer = if has_words { "this".into() } else { printable(&integer) };
                    Complaint::new(format!("{integer} is not between {low} and {high}"), hint)
                })
        });
        number.unwrap_or(default)
    }

    /// A duration such as `"30s"` within a range.
    pub(super) fn duration(
        &mut self,
        key: &'static str,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        let duration = self.read(key, |value| {
            let hint = format!("for example {key} = \"{}\"", humantime::format_duration(default));
            let text =
                value.as_str().ok_or_else(|| mismatch("a duration in quotes", value, &hint))?;
            let duration = humantime::parse_duration(text)
                .map_err(|_| Complaint::new(format!("{text:?} is not a duration"), &hint))?;
            if range.contains(&duration) {
                return Ok(duration);
            }
            let (low, high) = (
                humantime::format_duration(*range.start()),
                humantime::format_duration(*range.end()),
            );
            Err(Complaint::new(format!("{text:?} is not between {low} and {high}"), hint))
        });
        duration.unwrap_or(default)
    }

    /// A size such as `"150MiB"`, or plain octets, within a range.
    pub(super) fn size(
        &mut self,
        key: &'static str,
        default: ByteSize,
        range: RangeInclusive<ByteSize>,
    ) -> u64 {
        let size = self.read(key, |value| {
            let hint = format!("for example {key} = \"{}\"", short(default));
            let size = match value {
                DeValue::String(text) => text
                    .parse::<ByteSize>()
                    .map_err(|_| Complaint::new(format!("{text:?} is not a size"), &hint))?,
                DeValue::Integer(octets) => u64::from_str_radix(octets.as_str(), octets.radix())
                    .map(ByteSize::b)
                    .map_err(|_| {
                        let octets = printable(&octets.to_string());
                        Complaint::new(format!("{octets} is not a size"), &hint)
                    })?,
                _ => return Err(mismatch("a size in quotes", value, &hint)),
            };
            if range.contains(&size) {
                return Ok(size);
            }
            let (low, high) = (short(*range.start()), short(*range.end()));
            Err(Complaint::new(format!("{} is not between {low} and {high}", short(size)), hint))
        });
        size.unwrap_or(default).as_u64()
    }

    /// Octets a second such as `"256B/s"`.
    pub(super) fn rate(&mut self, key: &'static str, default: ByteSize) -> u64 {
        let rate = self.read(key, |value| {
            let hint = format!("for example {key} = \"{}/s\"", short(default));
            let text = value.as_str().ok_or_else(|| mismatch("a rate in quotes", value, &hint))?;
            text.strip_suffix("/s")
                .and_then(|size| size.trim_end().parse::<ByteSize>().ok())
                .ok_or_else(|| Complaint::new(format!("{text:?} is not a rate"), hint))
        });
        rate.unwrap_or(default).as_u64()
    }

    /// A count for each span of time, such as `"100/h"`.
    pub(super) fn quota(&mut self, key: &'static str, default: Quota) -> Quota {
        let quota = self.read(key, |value| {
            let hint = format!("for example {key} = \"100/{}\"", &default.span.as_str()[..1]);
            let text = value
                .as_str()
                .ok_or_else(|| mismatch("a count for each span of time", value, &hint))?;
            Quota::parse(text).ok_or_else(|| {
                let reason = format!("{text:?} is not a count for each s, m, h or d");
                Complaint::new(reason, hint)
            })
        });
        quota.unwrap_or(default)
    }

    /// One of several words. Those with a reason in place of a value are known but refused.
    pub(super) fn word<T: Clone>(
        &mut self,
        key: &'static str,
        words: &[(&str, Result<T, &str>)],
    ) -> Option<T> {
        let allowed: Vec<_> =
            words.iter().filter(|(_, value)| value.is_ok()).map(|(word, _)| *word).collect();
        self.read(key, |value| {
            let quoted: Vec<_> = allowed.iter().map(|word| format!("{word:?}")).collect();
            let hint = format!("write {key} = {}", quoted.join(" or "));
            let text = value.as_str().ok_or_else(|| mismatch("a string", value, &hint))?;
            match words.iter().find(|(word, _)| *word == text) {
                Some((_, Ok(value))) => Ok(value.clone()),
                Some((_, Err(reason))) => Err(Complaint::new(*reason, hint)),
                None => {
                    let reason = format!("{text:?} is not one of {}", allowed.join(", "));
                    let near =
                        nearest(text, &allowed).map(|near| format!("did you mean {near:?}?"));
                    Err(Complaint { reason, hint: near.or(Some(hint)) })
                }
            }
        })
    }

    /// An address with its port.
    pub(super) fn socket_address(
        &mut self,
        key: &'static str,
        example: &str,
    ) -> Option<SocketAddr> {
        self.read(key, |value| socket_address(value, &format!("for example {key} = {example:?}")))
    }

    /// A path; a relative one starts at the folder of the configuration.
    pub(super) fn path(&mut self, key: &'static str, example: &str) -> Option<PathBuf> {
        let path = self.text(key, example)?;
        Some(self.folder().join(path))
    }

    /// The path of a file that can be read now.
    pub(super) fn file(&mut self, key: &'static str, example: &str) -> Option<PathBuf> {
        let path = self.path(key, example)?;
        let readable = File::open(&path).and_then(|file| file.metadata());
        let reason = match readable {
            Ok(metadata) if metadata.is_dir() => "it is a folder".to_owned(),
            Ok(_) => return Some(path),
            Err(error) => unreadable(&path, &error),
        };
        let hint = match key {
            "users_file" if !path.exists() => "smtp-uplift passwd NAME writes it",
            _ => {
                "the relay's user must be able to read it; relative paths start at this file's folder"
            }
        };
        self.problem(key, format!("{} cannot be read: {reason}", path.display()), hint);
        None
    }
}

/// A string that is neither empty nor holds control characters.
pub(super) fn text(value: &DeValue<'_>, hint: &str) -> Result<String, Complaint> {
    let text = value.as_str().ok_or_else(|| mismatch("a string", value, hint))?;
    if text.trim().is_empty() {
        return Err(Complaint::new("it is empty", hint));
    }
    if text.contains(char::is_control) {
        return Err(Complaint::new("it has control characters", hint));
    }
    Ok(text.to_owned())
}

/// An address with its port.
pub(super) fn socket_address(value: &DeValue<'_>, hint: &str) -> Result<SocketAddr, Complaint> {
    let text = value.as_str().ok_or_else(|| mismatch("an address with a port", value, hint))?;
    text.parse()
        .map_err(|_| Complaint::new(format!("{text:?} is not an address with a port"), hint))
}

/// `150MiB`, where the crate writes `150.0 MiB`.
fn short(size: ByteSize) -> String {
    size.to_string().replace(".0 ", "").replace(' ', "")
}
