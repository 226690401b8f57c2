//! Changes to the text of a users file. Remarks, other lines and a line's further fields stay as they are.

use argon2::{
    Argon2, PasswordHasher as _,
    password_hash::{self, SaltString, rand_core::OsRng},
};

use super::accounts::{account, is_remark};

/// What a new users file begins with.
const HEAD: &str =
    "# Logins of devices, one a line: name:argon2 hash. \"smtp-uplift passwd NAME\" writes them.\n";

/// Why a name cannot be a login.
pub fn fault_of_name(name: &str) -> Option<&'static str> {
    if name.contains(':') {
        Some("it has a colon, which ends names in the users file")
    } else if name.contains(char::is_control) {
        Some("it has control characters")
    } else if is_remark(name) {
        Some("it is empty or begins with #, as remarks do")
    } else if name.trim() != name {
        Some("it begins or ends with a blank")
    } else {
        None
    }
}

/// Why nobody could log in with a password.
pub fn fault_of_password(password: &str) -> Option<&'static str> {
    if password.is_empty() {
        Some("it is empty")
    } else if password.contains(char::is_control) {
        Some("it has control characters")
    } else {
        None
    }
}

/// The argon2id hash of a password. Takes tens of milliseconds on purpose.
pub fn hash(password: &str) -> Result<String, password_hash::Error> {
    let salt = SaltString::generate(&mut OsRng);
    Ok(Argon2::default().hash_password(password.as_bytes(), &salt)?.to_string())
}

/// Whether a name has a line.
pub fn has(text: &str, name: &str) -> bool {
    text.lines().any(|line| is_of(line, name))
}

/// Gives a name this hash, in its line if it has one. Only the first line of a name counts; others go.
pub fn set(text: &str, name: &str, hash: &str) -> String {
    let mut changed = String::with_capacity(text.len() + name.len() + hash.len() + HEAD.len());
    let mut done = false;
    for line in text.split_inclusive('\n') {
        match account(line) {
            Some((known, old)) if known == name => {
                let rest = &line[known.len() + 1 + old.len()..];
                if !done {
                    changed.push_str(&format!("{name}:{hash}{rest}"));
                }
                done = true;
            }
            _ => changed.push_str(line),
        }
    }
    if !done {
        if changed.is_empty() {
            changed.push_str(HEAD);
        } else if !changed.ends_with('\n') {
            changed.push('\n');
        }
        changed.push_str(&format!("{name}:{hash}\n"));
    }
    changed
}

/// Takes every line of a name out.
pub fn remove(text: &str, name: &str) -> String {
    text.split_inclusive('\n').filter(|line| !is_of(line, name)).collect()
}

fn is_of(line: &str, name: &str) -> bool {
    account(line).is_some_and(|(known, _)| known == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_changes_but_the_hash() {
        let text =
            "# floor 3\r\n\r\nscan:OLD:box@example.org \r\nother:X\n scan:Y\nscanner:Z\nbroken";
        assert_eq!(
            set(text, "scan", "NEW"),
            "# floor 3\r\n\r\nscan:NEW:box@example.org \r\nother:X\n scan:Y\nscanner:Z\nbroken"
        );
        assert_eq!(set(text, "new", "H"), format!("{text}\nnew:H\n"));
        assert_eq!(set("", "new", "H"), format!("{HEAD}new:H\n"));
        assert_eq!(set("scan:", "scan", "H"), "scan:H");
        assert_eq!(set(text, "# floor 3", "H"), format!("{text}\n# floor 3:H\n"), "not a login");
    }

    #[test]
    fn a_name_has_one_line_or_none() {
        let twice = "scan:A\nother:X\nscan:B:box\n";
        assert_eq!(set(twice, "scan", "H"), "scan:H\nother:X\n");
        assert_eq!(remove(twice, "scan"), "other:X\n");
        assert!(has(twice, "scan") && !has(twice, "sca"));
        assert_eq!(remove(twice, "nobody"), twice);
    }

    #[test]
    fn names_that_would_be_read_as_something_else_are_refused() {
        for bad in ["", " ", "#scan", "a:b", "a\nb", "a\u{7f}", " a", "a\t"] {
            assert!(fault_of_name(bad).is_some(), "{bad:?}");
        }
        for good in ["scan", "copier 3", "a@b.example", "Müller", "a#b"] {
            assert_eq!(fault_of_name(good), None);
            let text = set("", good, "H");
            assert_eq!(account(text.lines().last().unwrap()), Some((good, "H")));
        }
    }

    #[test]
    fn each_hash_has_its_own_salt() {
        let (one, two) = (hash("geheim").unwrap(), hash("geheim").unwrap());
        assert_ne!(one, two);
        assert!(one.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{one}");
    }
}
