//! `smtp-uplift passwd`

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink},
    path::Path,
};

use smtp_uplift::{auth::accounts::Accounts, proto::sasl::Credentials};
use tempfile::TempDir;

use super::{filters, smtp_uplift, told};

fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("smtp-uplift.toml"), "[auth]\nusers_file = \"users.txt\"\n")
        .unwrap();
    folder
}

fn passwd(folder: &TempDir, args: &[&str], stdin: &str) -> String {
    told(smtp_uplift().arg("passwd").args(args).current_dir(folder).write_stdin(stdin))
}

pub(super) fn accepts(file: &Path, user: &str, secret: &str) -> bool {
    let credentials = Credentials { user: user.to_owned(), secret: secret.to_owned() };
    Accounts::File(file.to_owned()).accept(&credentials).unwrap().is_some()
}

#[test]
fn a_login_is_added_changed_and_deleted() {
    let folder = folder();
    let _filters = filters(folder.path());
    let users = folder.path().join("users.txt");
    let text = || fs::read_to_string(&users).unwrap();

    let mut story = passwd(&folder, &["scan"], "geheim\n");
    story.push_str(&text());
    assert!(accepts(&users, "scan", "geheim"));
    assert_eq!(users.metadata().unwrap().permissions().mode() & 0o777, 0o600);

    story.push_str(&passwd(&folder, &["copier 3"], "mit Blank \r\n"));
    story.push_str(&passwd(&folder, &["scan"], "anders"));
    story.push_str(&text());
    assert!(accepts(&users, "copier 3", "mit Blank "));
    assert!(accepts(&users, "scan", "anders") && !accepts(&users, "scan", "geheim"));

    story.push_str(&passwd(&folder, &["scan", "--delete"], ""));
    story.push_str(&text());
    story.push_str(&passwd(&folder, &["scan", "--delete"], ""));
    insta::assert_snapshot!("passwd", story);
}

#[test]
fn everything_else_in_the_file_stays() {
    let folder = folder();
    let _filters = filters(folder.path());
    let users = folder.path().join("real.txt");
    fs::write(&users, "# floor 3\n\nscan:old:box@office.test\nbroken\n#end").unwrap();
    fs::set_permissions(&users, fs::Permissions::from_mode(0o640)).unwrap();
    symlink("real.txt", folder.path().join("users.txt")).unwrap();
    insta::assert_snapshot!(passwd(&folder, &["scan"], "geheim\n"), @r"
    exit code 0
    --- stdout
    users.txt: scan has a new password, which counts at the next login
    --- stderr
    warning: users_file users.txt:4: expected name:argon2 hash, as in scanner:HASH
    ");
    insta::assert_snapshot!(fs::read_to_string(&users).unwrap(), @r"
    # floor 3

    scan:HASH:box@office.test
    broken
    #end
    ");
    assert!(accepts(&users, "scan", "geheim"));
    assert_eq!(users.metadata().unwrap().permissions().mode() & 0o777, 0o640);
    assert!(folder.path().join("users.txt").is_symlink());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3, "nothing is left behind");
}

/// Root does it for the relay's user, who must be able to read the file afterwards.
#[test]
fn the_owner_stays() {
    let folder = folder();
    let users = folder.path().join("users.txt");
    fs::write(&users, "").unwrap();
    // Fails for who is not root: then it is the owner's file anyway.
    let _ = chown(&users, Some(65_534), Some(65_534));
    let owner = |path: &Path| path.metadata().map(|it| (it.uid(), it.gid())).unwrap();
    let before = owner(&users);
    assert!(passwd(&folder, &["scan"], "x\n").starts_with("exit code 0\n"));
    assert_eq!(owner(&users), before);
}

#[test]
fn what_cannot_be_a_login_changes_nothing() {
    let folder = folder();
    let _filters = filters(folder.path());
    let long = "x".repeat(1025);
    let mut said = Vec::new();
    for (args, stdin) in [
        (&["a:b"][..], "x\n"),
        (&["#a"], "x\n"),
        (&["a\nb"], "x\n"),
        (&[" a"], "x\n"),
        (&[""], "x\n"),
        (&["scan"], ""),
        (&["scan"], "\nx\n"),
        (&["scan"], "a\tb\n"),
        (&["scan"], &long),
        (&["scan", "--file", "none/users.txt"], "x\n"),
        (&["scan", "--file", "."], "x\n"),
        (&["scan", "--delete", "--file", "none.txt"], ""),
        (&["scan", "--file", "a", "--config", "b"], ""),
        (&[], ""),
    ] {
        said.push(passwd(&folder, args, stdin));
    }
    insta::assert_snapshot!("passwd-refused", said.join("\n"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    assert!(passwd(&folder, &["scan"], &format!("{}\n", &long[1..])).starts_with("exit code 0\n"));
}

#[test]
fn without_a_users_file_it_says_where_to_name_one() {
    let folder = folder();
    let _filters = filters(folder.path());
    fs::write(folder.path().join("smtp-uplift.toml"), "[auth]\n").unwrap();
    insta::assert_snapshot!(passwd(&folder, &["scan"], "x\n"), @r#"
    exit code 78
    --- stderr
    smtp-uplift: smtp-uplift.toml: there is no users_file; write users_file = "users.txt" under [auth], or name one with --file
    "#);
    fs::write(folder.path().join("smtp-uplift.toml"), "[auth]\nusers_file = 3\n").unwrap();
    insta::assert_snapshot!(passwd(&folder, &["scan"], "x\n"), @r#"
    exit code 78
    --- stderr
    smtp-uplift: smtp-uplift.toml:2: auth.users_file: expected a string, found an integer; for example users_file = "users.txt"
    "#);
    assert!(passwd(&folder, &["scan", "--file", "other.txt"], "x\n").starts_with("exit code 0\n"));
    assert!(accepts(&folder.path().join("other.txt"), "scan", "x"));
}
