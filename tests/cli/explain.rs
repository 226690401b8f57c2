//! `smtp-uplift explain` as a help desk uses it.

use std::fs;

use serde_json::Value;

use super::{run, smtp_uplift};

const PASTED: &str = "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox.";

#[test]
fn people_get_sentences_and_programs_get_json() {
    let (code, out, err) = run(smtp_uplift().args(["explain", PASTED]));
    assert_eq!((code, err.as_str()), (0, ""));
    for line in [
        "535 5.7.139: The login is refused.",
        "What it means",
        "What to do",
        "Set-CASMailbox <mailbox> -SmtpClientAuthenticationDisabled $false",
    ] {
        assert!(out.contains(line), "{line:?} is not in\n{out}");
    }
    // Unquoted, as it is often typed.
    let (code, out, _) = run(smtp_uplift().args(["explain", "--json"]).args(PASTED.split(' ')));
    let verdict: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, 0);
    let keys: Vec<&String> = verdict.as_object().unwrap().keys().collect();
    let mut wanted =
        ["class", "retry", "scope", "rule", "meaning", "remedy", "code", "enhanced"].to_vec();
    wanted.sort_unstable();
    assert_eq!(keys, wanted);
    assert_eq!(verdict["class"], "auth-config");
    assert_eq!((&verdict["code"], &verdict["enhanced"]), (&535.into(), &"5.7.139".into()));
    assert!(verdict["remedy"].is_array());
}

#[test]
fn the_stage_and_rules_of_ones_own_count() {
    let rule = |arguments: &[&str]| {
        let (code, out, err) = run(smtp_uplift().arg("explain").arg("--json").args(arguments));
        assert_eq!(code, 0, "{err}");
        serde_json::from_str::<Value>(&out).unwrap()["rule"].as_str().unwrap().to_owned()
    };
    let busy = "550 9 lives are spent";
    assert_eq!(rule(&[busy]), "unknown");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rules.toml");
    fs::write(
        &file,
        "[[rule]]\nid = \"cat\"\ntext = [\"lives are spent\"]\nclass = \"policy\"\nretry = \"no\"\nscope = \"message\"\n\
         meaning = \"The cat is gone.\"\nremedy = [\"Get another.\"]\n",
    )
    .unwrap();
    let rules = ["--rules", file.to_str().unwrap()];
    assert_eq!(rule(&[rules[0], rules[1], busy]), "cat");
    let prx4 = "451 4.7.0 Temporary server error. Please try again later. PRX4";
    let login = rule(&["--stage", "auth", prx4]);
    assert!(login != rule(&["--stage", "eod", prx4]), "{login}");

    fs::write(&file, "[[rule]]\nid = \"cat\"\ntxt = [\"x\"]\n").unwrap();
    let (code, _, err) = run(smtp_uplift().args(["explain"]).args(rules).arg(busy));
    assert!(code == 78 && err.contains("rules.toml:"), "{code} {err}");
}

#[test]
fn what_is_no_question_is_said() {
    let (code, _, err) = run(smtp_uplift().args(["explain", " "]));
    assert!(code == 64 && err.contains("there is no reply"), "{err}");
    let (code, _, err) = run(smtp_uplift().args(["explain", "--stage", "bye", "550"]));
    assert!(code == 64 && err.contains("the stages are connect, ehlo"), "{err}");
    let mut command = smtp_uplift();
    let (code, out, _) = run(command.args(["explain", "-"]).write_stdin(PASTED.repeat(2_000)));
    assert!(code == 0 && out.contains("5.7.139"), "{out}");
}
