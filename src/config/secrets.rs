//! Where passwords and tokens come from.
//!
//! A [`Secret`] is a place, not a value: what stands there is read anew each time, so that a rotated
//! password needs no restart. Debug and Display name the place only.

use std::{
    env,
    ffi::OsString,
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use secrecy::{ExposeSecret, SecretString};

use super::{
    effective::{quoted, quoted_path},
    file::{open_mode, unreadable},
    raw::{Table, mismatch},
};

/// Longer than any token that a tenant issues, and a stop for `/dev/zero`.
const MAX_OCTETS: u64 = 64 * 1024;

/// Where systemd puts what `LoadCredential=` names.
const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";

/// The source of a password or token.
#[derive(Clone)]
pub struct Secret(Source);

#[derive(Clone)]
enum Source {
    Literal(SecretString),
    File(PathBuf),
    Env(String),
    Credential(String),
}

/// Why a secret could not be had. Never holds any of it.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file, or the credential's file, cannot be read.
    #[error("{} cannot be read: {}", path.display(), unreadable(path, cause))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The environment has no such variable.
    #[error("the environment variable {0} is not set")]
    NoVariable(String),
    /// A systemd credential outside of a unit that loads it.
    #[error("systemd has passed no credentials: {CREDENTIALS_DIRECTORY} is not set")]
    NoCredentials,
    /// Nothing but a line end at most.
    #[error("the secret is empty")]
    Empty,
    /// More than any password or token.
    #[error("the secret is longer than {MAX_OCTETS} octets")]
    TooLong,
    /// Not UTF-8, or with line ends or other control characters within.
    #[error("the secret is not one line of text")]
    NotLine,
    /// Not UTF-8, or with control characters other than line ends within.
    #[error("the secret is not text")]
    NotText,
}

impl Secret {
    /// A secret that is known already.
    pub fn literal(value: SecretString) -> Self {
        Self(Source::Literal(value))
    }

    /// A secret in a file.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self(Source::File(path.into()))
    }

    /// A secret in an environment variable.
    pub fn env(name: impl Into<String>) -> Self {
        Self(Source::Env(name.into()))
    }

    /// A systemd credential.
    pub fn credential(name: impl Into<String>) -> Self {
        Self(Source::Credential(name.into()))
    }

    /// Reads the secret as it is now. One line end after it does not belong to it.
    pub fn load(&self) -> Result<SecretString, SecretError> {
        self.load_with(Shape::Line, |name| env::var_os(name))
    }

    /// As [`Secret::load`], of one that may have several lines: a key in PEM form. Its line ends are part of it.
    pub fn load_text(&self) -> Result<SecretString, SecretError> {
        self.load_with(Shape::Text, |name| env::var_os(name))
    }

    /// The file that is read, if it is one: for watching it.
    pub fn path(&self) -> Option<&Path> {
        match &self.0 {
            Source::File(path) => Some(path),
            _ => None,
        }
    }

    /// The source as a configuration writes it. A literal is left out, in a form that is refused when read.
    pub(super) fn to_toml(&self) -> String {
        match &self.0 {
            Source::Literal(_) => {
                "{ redacted = true }  # it stands in the configuration".to_owned()
            }
            Source::File(path) => format!("{{ file = {} }}", quoted_path(path)),
            Source::Env(name) => format!("{{ env = {} }}", quoted(name)),
            Source::Credential(name) => format!("{{ credential = {} }}", quoted(name)),
        }
    }

    fn load_with(
        &self,
        shape: Shape,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<SecretString, SecretError> {
        let octets = match &self.0 {
            Source::Literal(value) => value.expose_secret().as_bytes().to_vec(),
            Source::File(path) => read(path)?,
            Source::Env(name) => variable(name)
                .ok_or_else(|| SecretError::NoVariable(name.clone()))?
                .into_encoded_bytes(),
            Source::Credential(name) => {
                let folder = variable(CREDENTIALS_DIRECTORY).ok_or(SecretError::NoCredentials)?;
                read(&Path::new(&folder).join(name))?
            }
        };
        shape.of(octets)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Literal(_) => f.write_str("literal"),
            Source::File(path) => write!(f, "file {}", path.display()),
            Source::Env(name) => write!(f, "environment variable {name}"),
            Source::Credential(name) => write!(f, "systemd credential {name}"),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({self})")
    }
}

/// A secret of the configuration, read once so that what is missing shows at its line.
pub(super) fn secret(table: &mut Table<'_>, key: &'static str) -> Option<Secret> {
    shaped(table, key, Shape::Line)
}

/// As [`secret`], of one that may have several lines.
pub(super) fn secret_text(table: &mut Table<'_>, key: &'static str) -> Option<Secret> {
    shaped(table, key, Shape::Text)
}

fn shaped(table: &mut Table<'_>, key: &'static str, shape: Shape) -> Option<Secret> {
    let hint = format!(
        "write {key} = {{ file = \"/run/secrets/name\" }}, {{ env = \"NAME\" }} or {{ credential = \"name\" }}"
    );
    let value = table.take(key)?;
    let secret = if let Some(literal) = value.as_str() {
        table.warning(key, "the secret stands in the configuration itself", hint);
        Secret::literal(literal.into())
    } else if let Some(mut source) = table.inline(key, value) {
        let file = source.path("file", "/run/secrets/name").map(Secret::file);
        let env = source.text("env", "NAME").map(Secret::env);
        let credential = source.text("credential", "name").map(Secret::credential);
        let given = ["file", "env", "credential"].iter().filter(|key| source.has(key)).count();
        source.flag("redacted");
        let redacted = source.has("redacted");
        source.finish();
        if redacted {
            table.problem(key, "the secret was left out by check --effective", hint);
            return None;
        }
        if given != 1 {
            table.problem(key, "a secret has one source", hint);
            return None;
        }
        file.or(env).or(credential)?
    } else {
        table.complain(key, mismatch("a source of a secret", value, &hint));
        return None;
    };
    check(table, key, &secret, shape).then_some(secret)
}

fn check(table: &Table<'_>, key: &str, secret: &Secret, shape: Shape) -> bool {
    if let Source::Credential(name) = &secret.0
        && (name.contains('/') || name == "..")
    {
        table.problem(
            key,
            "a credential has a name, not a path",
            "write the name that LoadCredential= gives it",
        );
        return false;
    }
    if let Err(error) = secret.load_with(shape, |name| env::var_os(name)) {
        let reason = match (&error, secret.path()) {
            (SecretError::Unreadable { .. }, _) | (_, None) => error.to_string(),
            (_, Some(path)) => format!("{}: {error}", path.display()),
        };
        let hint = match error {
            SecretError::Unreadable { .. } => "the relay's user must be able to read it",
            SecretError::NoVariable(_) => "set it in the environment of the relay",
            SecretError::NoCredentials => {
                "load it with LoadCredential= in the unit, or use { file = \"…\" }"
            }
            SecretError::NotText => "a key in PEM form begins with -----BEGIN",
            _ if matches!(shape, Shape::Text) => "write the secret alone",
            _ => "write the secret alone, in one line",
        };
        table.problem(key, reason, hint);
        return false;
    }
    if let Some(path) = secret.path()
        && let Some(mode) = open_mode(path, 0o077)
    {
        let reason = format!(
            "{} has mode {mode:04o}: more users than its owner can get at it",
            path.display()
        );
        table.warning(key, reason, format!("chmod 600 {}", path.display()));
    }
    true
}

fn read(path: &Path) -> Result<Vec<u8>, SecretError> {
    let unreadable = |cause| SecretError::Unreadable { path: path.to_owned(), cause };
    let mut octets = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(MAX_OCTETS + 3).read_to_end(&mut octets).map_err(unreadable)?;
    Ok(octets)
}

/// What a secret may look like.
#[derive(Clone, Copy)]
enum Shape {
    /// One line, whose end does not belong to it.
    Line,
    /// Any text.
    Text,
}

impl Shape {
    fn of(self, octets: Vec<u8>) -> Result<SecretString, SecretError> {
        let misshapen = || match self {
            Self::Line => SecretError::NotLine,
            Self::Text => SecretError::NotText,
        };
        let mut text = String::from_utf8(octets).map_err(|_| misshapen())?;
        // What some editors put in front of every text.
        if text.starts_with('\u{feff}') {
            text.drain(..'\u{feff}'.len_utf8());
        }
        if matches!(self, Self::Line) && text.ends_with('\n') {
            text.pop();
            if text.ends_with('\r') {
                text.pop();
            }
        }
        if text.trim_end_matches(['\r', '\n']).is_empty() {
            return Err(SecretError::Empty);
        }
        if text.len() as u64 > MAX_OCTETS {
            return Err(SecretError::TooLong);
        }
        // A NUL or Ctrl-A would be read as a separator by PLAIN and XOAUTH2.
        let foreign = |c: char| match self {
            Self::Line => c.is_control(),
            Self::Text => c.is_control() && !matches!(c, '\r' | '\n'),
        };
        if text.contains(foreign) {
            return Err(misshapen());
        }
        Ok(text.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(secret: &Secret, variables: &[(&str, &str)]) -> Result<String, String> {
        let variable = |wanted: &str| {
            variables
                .iter()
                .find(|(name, _)| *name == wanted)
                .map(|(_, value)| OsString::from(value))
        };
        told(secret.load_with(Shape::Line, variable))
    }

    fn told(loaded: Result<SecretString, SecretError>) -> Result<String, String> {
        match loaded {
            Ok(secret) => Ok(secret.expose_secret().to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn credential_is_a_file_in_the_folder_that_systemd_names() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("pw"), "sesame\n").unwrap();
        let secret = Secret::credential("pw");
        let passed = [("CREDENTIALS_DIRECTORY", folder.path().to_str().unwrap())];
        assert_eq!(value(&secret, &passed).unwrap(), "sesame");
        assert!(value(&secret, &[]).unwrap_err().contains("CREDENTIALS_DIRECTORY is not set"));
        assert!(
            value(&Secret::credential("other"), &passed).unwrap_err().contains("cannot be read")
        );
    }

    #[test]
    fn variable() {
        assert_eq!(value(&Secret::env("PW"), &[("PW", "sesame")]).unwrap(), "sesame");
        assert_eq!(
            value(&Secret::env("PW"), &[]).unwrap_err(),
            "the environment variable PW is not set"
        );
        assert_eq!(value(&Secret::env("PW"), &[("PW", "")]).unwrap_err(), "the secret is empty");
    }

    #[test]
    fn one_line_end_is_not_part_of_it() {
        for (text, wanted) in [
            ("a", Ok("a")),
            ("a\n", Ok("a")),
            ("a\r\n", Ok("a")),
            ("\u{feff}a\n", Ok("a")),
            (" a ", Ok(" a ")),
            ("a\n\n", Err("the secret is not one line of text")),
            ("a\nb", Err("the secret is not one line of text")),
            ("a\0b", Err("the secret is not one line of text")),
            ("\n", Err("the secret is empty")),
            ("", Err("the secret is empty")),
        ] {
            let got = value(&Secret::literal(text.into()), &[]);
            assert_eq!(got.as_deref().map_err(String::as_str), wanted, "{text:?}");
        }
    }

    #[test]
    fn text_keeps_its_lines() {
        for (text, wanted) in [
            ("-----BEGIN\na\r\n-----END\n", Ok("-----BEGIN\na\r\n-----END\n")),
            ("\u{feff}a\n", Ok("a\n")),
            ("a\tb\n", Err("the secret is not text")),
            ("a\n\0", Err("the secret is not text")),
            ("\n\r\n", Err("the secret is empty")),
        ] {
            let got = told(Secret::literal(text.into()).load_text());
            assert_eq!(got.as_deref().map_err(String::as_str), wanted, "{text:?}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, [0x30, 0x82]).unwrap();
        let got = told(Secret::file(&path).load_text());
        assert_eq!(got.unwrap_err(), "the secret is not text");
        std::fs::write(&path, "x\n".repeat(40_000)).unwrap();
        let got = told(Secret::file(&path).load_text());
        assert_eq!(got.unwrap_err(), "the secret is longer than 65536 octets");
    }

    #[test]
    fn a_file_without_end_is_too_long() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pw");
        std::fs::write(&path, "x".repeat(70_000)).unwrap();
        assert_eq!(
            value(&Secret::file(&path), &[]).unwrap_err(),
            "the secret is longer than 65536 octets"
        );
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        assert_eq!(
            value(&Secret::file(&path), &[]).unwrap_err(),
            "the secret is not one line of text"
        );
    }
}
