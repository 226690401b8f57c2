//! What a configuration is when it is written back.

use std::path::Path;

use smtp_uplift::config::{self, Loaded};
use tempfile::TempDir;

use super::{MAXIMAL, MINIMAL, folder, parse_in, with};

/// Writes a configuration back, and demands that it reads as the same.
#[track_caller]
pub(super) fn written_back(folder: &TempDir, text: &str) -> String {
    let Loaded { config, .. } = parse_in(folder, text).unwrap_or_else(|it| panic!("{it}\n{text}"));
    let effective = config.effective();
    let again = parse_in(folder, &effective).unwrap_or_else(|it| panic!("{it}\n{effective}"));
    // Debug tells all but the secrets, and of those the places.
    assert_eq!(format!("{config:#?}"), format!("{:#?}", again.config));
    assert_eq!(again.config.effective(), effective);
    effective
}

#[test]
fn it_reads_back_as_it_was() {
    let folder = folder();
    written_back(&folder, MINIMAL);
    written_back(&folder, MAXIMAL);
    for way in ["", "smtp = \"[::1]:25\"", "command = [\"/bin/sh\", \"-c\", \"\\u0007 \\\" \"]"] {
        let notices = format!("[notices]\nto = \"it@example.com\"\n{way}");
        let effective = written_back(&folder, &with("", "", "", &notices));
        assert!(effective.contains("\n[notices]\nto = \"it@example.com\"\n"), "{effective}");
    }
}

#[test]
fn every_word_reads_back_as_it_was() {
    let folder = folder();
    for (section, key, words) in [
        ("listener", "tls", "none starttls require-starttls implicit"),
        ("listener", "tls_profile", "modern legacy ancient"),
        ("listener", "auth", "none offer require"),
        ("listener", "line_endings", "normalise strict"),
        ("smarthost", "tls", "none starttls implicit"),
        ("smarthost", "tls_min", "1.2 1.3"),
        ("smarthost", "tls_backend", "rustls native"),
        ("mailbox", "auth", "login plain none"),
        ("delivery", "mode", "stream stream-then-spool spool"),
        ("log", "format", "text json"),
        ("root", "received", "full no-client"),
    ] {
        for word in words.split(' ') {
            let line = format!("{key} = \"{word}\"");
            let text = match section {
                "root" => with(&line, "", "", ""),
                "listener" => with(
                    "",
                    &format!("accept_any_credentials = true\nauth_without_tls = true\n{line}"),
                    "",
                    "",
                ),
                "mailbox" => with("", "", &line, ""),
                "smarthost" => with("", "", "", &format!("[smarthost]\nhost = \"::1\"\n{line}")),
                section => with("", "", "", &format!("[{section}]\n{line}")),
            };
            let effective = written_back(&folder, &text);
            assert!(effective.contains(&format!("\n{line}\n")), "{line} in {effective}");
        }
    }
}

#[test]
fn sizes_and_times_are_exact() {
    let folder = folder();
    for (given, written) in [
        ("1", "1B"),
        ("1023", "1023B"),
        ("1024", "1KiB"),
        ("\"35MB\"", "35000000B"),
        ("\"1.5 MiB\"", "1536KiB"),
        ("\"16GiB\"", "16GiB"),
        ("17179869183", "17179869183B"),
    ] {
        let text = with("", "", "", &format!("[limits]\nmessage_size = {given}"));
        let effective = written_back(&folder, &text);
        assert!(effective.contains(&format!("message_size = \"{written}\"\n")), "{effective}");
    }
    for (given, written) in [("1m", "1m"), (" 1s,1day ", "1s, 1day"), ("90s, 5m", "1m 30s, 5m")] {
        let effective =
            written_back(&folder, &with("", "", "", &format!("[spool]\nretry = \"{given}\"")));
        assert!(effective.contains(&format!("retry = \"{written}\"\n")), "{effective}");
    }
    for (given, written) in [("0B/s", "0B/s"), ("2048/s", "2KiB/s"), ("1.5KB/s", "1500B/s")] {
        let text = with("", "", "", &format!("[limits]\ndata_min_rate = \"{given}\""));
        let effective = written_back(&folder, &text);
        assert!(effective.contains(&format!("data_min_rate = \"{written}\"\n")), "{effective}");
    }
    for (given, written) in
        [("0s", "0s"), ("90s", "1m 30s"), ("1day", "1day"), ("1001us", "1ms 1us")]
    {
        let effective =
            written_back(&folder, &with(&format!("drain_timeout = \"{given}\""), "", "", ""));
        assert!(effective.contains(&format!("drain_timeout = \"{written}\"\n")), "{effective}");
    }
}

#[test]
fn odd_text_reads_back_as_it_was() {
    let folder = folder();
    for name in ["a\\\"b", "it's \\\"both\\\"", "back\\\\slash", "ä 漢", "# no remark", "a = b"] {
        written_back(&folder, &with("", &format!("name = \"{name}\""), "", ""));
    }
}

#[test]
fn each_source_of_a_secret_is_named_and_none_is_told() {
    let folder = folder();
    let replaced = |source: &str| MINIMAL.replace("{ file = \"pw\" }", source);
    // Cargo sets this one for every test.
    let effective = written_back(&folder, &replaced("{ env = \"CARGO_MANIFEST_DIR\" }"));
    assert!(effective.contains("password = { env = \"CARGO_MANIFEST_DIR\" }\n"), "{effective}");
    assert!(!effective.contains(env!("CARGO_MANIFEST_DIR")), "{effective}");
    for (text, key) in [
        (replaced("\"sesame\""), "password"),
        (
            MINIMAL.replace("password = { file = \"pw\" }", "[mailbox.oauth]\ntoken = \"sesame\""),
            "token",
        ),
    ] {
        let Loaded { config, .. } = parse_in(&folder, &text).unwrap();
        let effective = config.effective();
        assert!(!effective.contains("sesame"), "{effective}");
        // Who forgets to put the secret back is told so, and does not log in with something else.
        let refused = parse_in(&folder, &effective).unwrap_err().to_string();
        assert!(
            refused.contains(&format!("{key}: the secret was left out by check --effective")),
            "{refused}"
        );
        let placeholder = "{ redacted = true }  # it stands in the configuration";
        assert!(effective.contains(&format!("{key} = {placeholder}\n")), "{effective}");
        let again = parse_in(&folder, &effective.replace(placeholder, "\"sesame\"")).unwrap();
        assert_eq!(format!("{config:?}"), format!("{:?}", again.config));
    }
}

#[test]
fn relative_paths_become_whole() {
    let text = MINIMAL.replace("{ file = \"pw\" }", "\"x\"");
    let text = format!("state_dir = \"state\"\n{text}");
    let config = config::parse(&text, Path::new("smtp-uplift.toml")).unwrap().config;
    let here = std::env::current_dir().unwrap().join("state");
    assert!(config.effective().contains(&format!("state_dir = {here:?}\n")));
    assert!(config.effective().contains(&format!("directory = {:?}\n", here.join("spool"))));
}
