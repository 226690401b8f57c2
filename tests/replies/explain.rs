//! What `explain` tells, to people and to programs.

use smtp_uplift::smarthost::classify::{self, catalogue::Catalogue, explain};

const PASTED: &str = "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant. Visit https://aka.ms/smtp_auth_disabled for more information. [MN2PR05CA0004.namprd05.prod.outlook.com 2023-09-12T20:59:57.214Z 08DBB276B7E699C4]";

fn told(text: &str) -> String {
    explain::text(&classify::pasted(Catalogue::built_in(), None, text), text)
}

#[test]
fn a_help_desk_can_read_it_aloud() {
    assert_eq!(
        told(PASTED),
        "\
535 5.7.139: The login is refused.

What it means
  Sending by devices that log in (\"Authenticated SMTP\") is switched off for the whole organisation, and this mailbox has no exception. The password is not what is wrong.

What to do
  1. Open only the relay's mailbox: Set-CASMailbox <mailbox> -SmtpClientAuthenticationDisabled $false
  2. Leave the switch of the organisation as it is: that of the mailbox goes before it.
  3. Or by hand: Microsoft 365 admin center, Active users, the mailbox, Mail, Manage email apps, tick \"Authenticated SMTP\".
  4. Give it up to an hour, then test with smtp-uplift doctor. The switch counts for OAuth logins too.

Will it pass by itself?  No. Somebody has to change a setting first.
What is affected?        Everything that logs in with this name.
For Microsoft support    [MN2PR05CA0004.namprd05.prod.outlook.com 2023-09-12T20:59:57.214Z 08DBB276B7E699C4]

Rule smtp-auth-off-tenant: class auth-config, retry after-config, scope credential.
"
    );
}

#[test]
fn good_news_are_told_as_such() {
    let told = told("250 2.0.0 OK <id@example.com> [Hostname=A.PROD.OUTLOOK.COM]");
    assert!(told.starts_with("250 2.0.0: All is well.\n"), "{told}");
    assert!(!told.contains("Will it pass"), "{told}");
}

#[test]
fn a_text_without_a_reply_gets_no_outlook() {
    let told = told("the printer does not scan");
    assert!(told.starts_with("No reply was found in this text.\n"), "{told}");
    assert!(told.contains("Paste the server's reply") && !told.contains("Will it pass"), "{told}");
}

#[test]
fn json_has_the_keys_of_the_interface() {
    let verdict = classify::pasted(Catalogue::built_in(), None, PASTED);
    let json: serde_json::Value = serde_json::from_str(&explain::json(&verdict)).unwrap();
    let keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
    let mut expected =
        ["class", "retry", "scope", "rule", "meaning", "remedy", "code", "enhanced"].to_vec();
    expected.sort_unstable();
    assert_eq!(keys, expected);
    assert_eq!(json["class"], "auth-config");
    assert_eq!(json["retry"], "after-config");
    assert_eq!(json["scope"], "credential");
    assert_eq!(json["rule"], "smtp-auth-off-tenant");
    assert_eq!(json["code"], 535);
    assert_eq!(json["enhanced"], "5.7.139");
    assert!(json["remedy"].as_array().unwrap().len() >= 2);
    let unknown = classify::pasted(Catalogue::built_in(), None, "hello");
    let json: serde_json::Value = serde_json::from_str(&explain::json(&unknown)).unwrap();
    assert_eq!(json["rule"], "unknown");
    assert!(json["code"].is_null() && json["enhanced"].is_null());
}
