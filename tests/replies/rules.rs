//! What the catalogue must hold to, and what an operator can add to it.

use std::path::Path;

use smtp_uplift::{
    proto::{client::Stage, reply::Reply},
    smarthost::classify::{
        self, Verdict,
        catalogue::Catalogue,
        class::{Class, Retry, Scope},
        scan,
    },
};

fn pasted(text: &str) -> Verdict {
    classify::pasted(Catalogue::built_in(), None, text)
}

fn at(stage: Stage, text: &str) -> Verdict {
    let scan::Scan { code, enhanced, .. } = scan::scan(text);
    let words = text.splitn(if enhanced.is_some() { 3 } else { 2 }, ' ').last().unwrap_or_default();
    let reply =
        Reply { code: code.expect("a reply with a code"), enhanced, lines: vec![words.to_owned()] };
    classify::reply(Catalogue::built_in(), Some(stage), &reply)
}

fn three(verdict: &Verdict) -> String {
    format!("{} {} {}", verdict.class, verdict.retry, verdict.scope)
}

#[test]
fn no_remedy_promises_what_this_version_does_not_do() {
    for rule in Catalogue::built_in().rules() {
        for text in rule.remedy.iter().chain([&rule.meaning.to_string()]) {
            let promised = [
                "relay keeps",
                "relay tries again",
                "rewrite =",
                "queue list",
                "smtp-uplift login",
            ]
            .into_iter()
            .find(|promise| text.contains(promise));
            assert_eq!(promised, None, "{}: {text}", rule.id);
        }
    }
}

#[test]
fn no_remedy_switches_authenticated_submission_off() {
    // A widely copied support article does.
    for rule in Catalogue::built_in().rules() {
        for text in rule.remedy.iter().chain([&rule.meaning.to_string(), &rule.example]) {
            let squeezed: String = text
                .to_lowercase()
                .chars()
                .filter(|c| c.is_ascii_alphanumeric() || *c == '$')
                .collect();
            assert!(
                !squeezed.contains("smtpclientauthenticationdisabled$true"),
                "{}: {text}",
                rule.id
            );
        }
    }
    for off in ["Tenant", "Mailbox"] {
        let verdict = pasted(&format!(
            "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the {off}."
        ));
        let switch = "Set-CASMailbox <mailbox> -SmtpClientAuthenticationDisabled $false";
        assert!(verdict.remedy.iter().any(|step| step.contains(switch)), "{:?}", verdict.remedy);
    }
}

#[test]
fn each_rule_knows_its_own_example() {
    for rule in Catalogue::built_in().rules() {
        assert!(!rule.example.is_empty() && !rule.source.is_empty(), "{}", rule.id);
        assert_eq!(pasted(&rule.example).rule, rule.id, "{}", rule.example);
    }
}

#[test]
fn each_trouble_has_a_meaning_and_a_remedy_in_sentences() {
    for rule in Catalogue::built_in().rules() {
        assert!(rule.meaning.ends_with('.'), "{}: {}", rule.id, rule.meaning);
        let positive = pasted(&rule.example).code.is_some_and(|code| code.get() < 400);
        assert!(positive || !rule.remedy.is_empty(), "{}", rule.id);
        assert!(rule.remedy.iter().all(|step| !step.trim().is_empty()), "{}", rule.id);
    }
}

// Section 5.1 of the reference, rule by rule.

#[test]
fn rule_1_words_then_enhanced_code_then_reply_code() {
    for (text, expected) in [
        ("451 5.7.3 STARTTLS is required to send mail", "tls after-config smarthost"),
        ("554 4.3.2 mailbox busy; STOREDRV.Deliver.Exception:X", "transient yes connection"),
        (
            "550 4.4.4 Mail received as unauthenticated, incoming to a recipient domain configured in a hosted tenant which has no mail-enabled subscriptions. ATTR5",
            "recipient no recipient",
        ),
        ("550 4.4.7 QUEUE.Expired; message expired", "permanent no message"),
        ("500 5.2.11 RESOLVER.RST.SendSizeLimit.Sender; too large", "size no message"),
        // Words before the enhanced code, the enhanced code before the reply code.
        (
            "550 5.7.1 Client does not have permissions to send as this sender",
            "sender-permission after-config sender",
        ),
        ("599 5.7.60 words that nobody knows", "sender-permission after-config sender"),
        ("535 9.9 words that nobody knows", "auth-config after-config credential"),
    ] {
        assert_eq!(three(&pasted(text)), expected, "{text}");
    }
}

#[test]
fn rule_2_what_looks_temporary_and_waits_for_a_person() {
    for (stage, text) in [
        (Stage::Auth, "421 4.7.66 TLS 1.0 and 1.1 are not supported."),
        (Stage::Mail, "451 5.7.3 Must issue a STARTTLS command first"),
        (
            Stage::Eod,
            "430 4.2.0 STOREDRV; mailbox logon failure; failure category: MapiExceptionLogonFailed",
        ),
        (Stage::Rcpt, "451 4.4.62 Mail sent to the wrong Office 365 region. ATTR35"),
    ] {
        let verdict = at(stage, text);
        assert_eq!(verdict.retry, Retry::AfterConfig, "{text}");
        assert!(verdict.needs_a_person(), "{text}");
    }
    let prx4 = at(Stage::Auth, "451 4.7.0 Temporary server error. Please try again later. PRX4");
    assert_eq!(three(&prx4), "auth-config yes credential");
    assert!(prx4.needs_a_person(), "retried, but with an alarm");
}

#[test]
fn rule_3_what_looks_final_and_heals_with_time() {
    for (text, expected) in [
        (
            "550 5.1.90 Your message can't be sent because you've reached your daily limit",
            "throttling yes mailbox",
        ),
        (
            "554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException.X",
            "throttling yes mailbox",
        ),
        ("550 5.2.2 Submission quota exceeded", "throttling yes mailbox"),
        ("550 5.7.232 words that nobody knows", "throttling yes smarthost"),
        ("550 5.7.233 words that nobody knows", "throttling yes smarthost"),
        (
            "554 5.2.0 STOREDRV.Submission.Exception:OutboundSpamException; x [BeginDiagnosticData]WASCL UserAction verdict is not None. Actual verdict is RefuseQuota[EndDiagnosticData]",
            "throttling yes mailbox",
        ),
        (
            "554 5.2.0 STOREDRV.Submission.Exception:OutboundSpamException; x WASCL UserAction verdict is not None. Actual verdict is Throttle",
            "throttling yes mailbox",
        ),
        ("550 5.2.121 words that nobody knows", "throttling yes recipient"),
        ("554 5.2.122 words that nobody knows", "throttling yes recipient"),
        (
            "535 5.7.139 Authentication unsuccessful, federated STS service was unreachable.",
            "auth-config yes credential",
        ),
    ] {
        assert_eq!(three(&pasted(text)), expected, "{text}");
    }
}

#[test]
fn rule_4_what_a_setting_heals_holds_no_more_than_it_reaches() {
    for (scope, texts) in [
        (
            Scope::Credential,
            &[
                "535 5.7.3 Authentication unsuccessful",
                "550 5.7.30 Basic authentication is not supported for Client Submission.",
                "530 5.7.57 Client not authenticated to send mail.",
            ][..],
        ),
        (
            Scope::Mailbox,
            &[
                "550 5.1.8 Access denied, bad outbound sender",
                "554 5.2.2 mailbox full; STOREDRV.Submission.Exception:QuotaExceededException.MapiExceptionQuotaExceeded",
                "430 4.2.0 STOREDRV; mailbox logon failure",
            ],
        ),
        (
            Scope::Sender,
            &[
                "550 5.7.60 SMTP; Client does not have permissions to send as this sender",
                "554 5.2.252 SendAsDenied; a@b.example not allowed to send as c@b.example",
            ],
        ),
        (
            Scope::Smarthost,
            &[
                "550 5.7.705 Access denied, tenant has exceeded threshold",
                "550 5.7.708 Access denied, traffic not accepted from this IP",
                "550 5.7.750 Service unavailable. Client blocked from sending from unregistered domains",
            ],
        ),
    ] {
        for text in texts {
            let verdict = pasted(text);
            assert_eq!((verdict.scope, verdict.retry), (scope, Retry::AfterConfig), "{text}");
        }
    }
    // A recipient's full mailbox is no business of the sender's.
    let deliver =
        pasted("554 5.2.2 mailbox full; STOREDRV.Deliver.Exception:QuotaExceededException");
    assert_eq!(three(&deliver), "recipient no recipient");
    assert_eq!(three(&at(Stage::Rcpt, "552 5.2.2 mailbox full")), "recipient no recipient");
}

#[test]
fn rule_5_one_code_has_many_meanings() {
    let tails = [
        "SmtpClientAuthentication is disabled for the Tenant.",
        "SmtpClientAuthentication is disabled for the Mailbox.",
        "the user credentials were incorrect.",
        "user is locked by your organization's security defaults policy.",
        "the request did not meet the criteria to be authenticated successfully.",
        "basic authentication is disabled.",
        "federated STS service was unreachable.",
        "the federated STS URL does not support HTTPS.",
        "the organization configuration doesn't allow this authentication request.",
        "account has an issue. Contact your administrator.",
        "a tail that nobody has seen.",
    ];
    let ids: std::collections::BTreeSet<_> = tails
        .iter()
        .map(|tail| {
            let verdict = pasted(&format!("535 5.7.139 Authentication unsuccessful, {tail}"));
            assert_eq!(verdict.class, Class::AuthConfig, "{tail}");
            verdict.rule.to_string()
        })
        .collect();
    assert_eq!(ids.len(), tails.len(), "{ids:?}");
    // 5.7.30 means something else to others (RFC 8689): only Exchange's words count.
    assert!(pasted("550 5.7.30 REQUIRETLS support required").is_unknown());
}

#[test]
fn rule_6_old_and_new_words_mean_the_same() {
    for [old, new] in [
        [
            "530 5.7.57 SMTP; Client was not authenticated to send anonymous mail during MAIL FROM",
            "530 5.7.57 Client not authenticated to send mail.",
        ],
        [
            "432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded",
            "432 4.3.2 Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending",
        ],
    ] {
        assert_eq!(pasted(old).rule, pasted(new).rule, "{old}");
    }
    let offline = pasted("432 4.3.2 STOREDRV.Deliver; mailbox server is offline");
    assert_eq!(three(&offline), "transient yes connection");
}

#[test]
fn rule_7_the_stage_matters() {
    let prx4 = "451 4.7.0 Temporary server error. Please try again later. PRX4";
    assert_eq!(at(Stage::Auth, prx4).class, Class::AuthConfig);
    for stage in [Stage::Mail, Stage::Rcpt, Stage::Data, Stage::Eod] {
        assert_eq!(three(&at(stage, prx4)), "transient yes connection");
    }
    assert_eq!(pasted(prx4).class, Class::AuthConfig, "mostly it is asked about at AUTH");
    let after_data =
        format!("SMTP error from remote mail server after end of data: host x: {prx4}");
    assert_eq!(pasted(&after_data).class, Class::Transient);
    let disabled = "550 5.2.1 words that nobody knows";
    assert_eq!(three(&at(Stage::Auth, disabled)), "auth-config after-config mailbox");
    assert_eq!(three(&at(Stage::Rcpt, disabled)), "recipient no recipient");
    assert_eq!(three(&at(Stage::Mail, "501 Invalid address")), "content no message");
    assert_eq!(three(&at(Stage::Rcpt, "501 Invalid address")), "recipient no recipient");
}

#[test]
fn rule_8_a_refused_login_is_told_from_one_that_was_not_judged() {
    assert_eq!(at(Stage::Auth, "535 5.7.3 Authentication unsuccessful").retry, Retry::AfterConfig);
    for text in ["454 4.7.0 Temporary authentication failure", "421 4.3.2 Service not available"] {
        let verdict = at(Stage::Auth, text);
        assert_eq!((verdict.retry, verdict.scope), (Retry::Yes, Scope::Connection), "{text}");
        assert!(!verdict.needs_a_person(), "{text}");
    }
}

#[test]
fn rule_9_a_connection_lost_after_the_dot_has_a_name_of_its_own() {
    let after = pasted(
        "lost connection with smtp.office365.com[192.0.2.1] while sending end of data -- message may be sent more than once",
    );
    assert_eq!(after.rule.as_str(), "lost-after-dot");
    let before = pasted("lost connection with smtp.office365.com[192.0.2.1] while sending RCPT TO");
    assert_eq!(before.rule.as_str(), "connection-lost");
}

#[test]
fn rule_10_what_nobody_knows_falls_back_to_the_rfcs_and_says_so() {
    for (stage, text, expected) in [
        (Stage::Auth, "599 5.9.9 xyzzy", "auth-config after-config credential"),
        (Stage::Auth, "499 4.9.9 xyzzy", "transient yes connection"),
        (Stage::Rcpt, "550 5.1.99 xyzzy", "recipient no recipient"),
        (Stage::Rcpt, "550 xyzzy", "recipient no recipient"),
        (Stage::Eod, "550 xyzzy", "permanent no message"),
        (Stage::Eod, "550 5.6.99 xyzzy", "content no message"),
        (Stage::Eod, "550 5.7.1 xyzzy", "policy no message"),
        (Stage::Eod, "451 4.7.888 xyzzy", "throttling yes smarthost"),
        (Stage::Mail, "451 xyzzy", "transient yes connection"),
        (Stage::Connect, "554 xyzzy", "policy after-config smarthost"),
        // The enhanced code goes before the first digit.
        (Stage::Eod, "554 4.4.1 xyzzy", "transient yes connection"),
        (Stage::Eod, "451 5.6.99 xyzzy", "content no message"),
    ] {
        let verdict = at(stage, text);
        assert_eq!(three(&verdict), expected, "{text}");
        assert!(
            verdict.is_unknown() || text.contains("4.4.1") || text.contains("4.7.888"),
            "{text}"
        );
    }
}

#[test]
fn a_reply_inside_another_one_counts() {
    let verdict = pasted(
        "530 5.7.57 Client not authenticated to send mail. Error: 535 5.7.3 Authentication unsuccessful [X.PROD.OUTLOOK.COM]",
    );
    assert_eq!(verdict.rule.as_str(), "login-refused");
    assert_eq!(verdict.code.unwrap().get(), 530, "the codes are those that came");
    let unknown = at(
        Stage::Mail,
        "530 5.7.57 Client not authenticated to send mail. Error: 535 5.7.139 Authentication unsuccessful, xyzzy",
    );
    assert_eq!(unknown.rule.as_str(), "login-refused-other");
    let proxied = pasted(
        "450 4.7.0 Proxy session setup failed on Frontend with '554 5.4.4 SMTPSEND.DNS.NonExistentDomain; nonexistent domain'",
    );
    assert_eq!(three(&proxied), "recipient no recipient");
}

#[test]
fn names_that_a_device_chooses_decide_nothing() {
    for rule in Catalogue::built_in().rules() {
        if !matches!(rule.scope, Scope::Credential | Scope::Mailbox | Scope::Smarthost) {
            continue;
        }
        for phrase in &rule.text {
            let name =
                phrase.source.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
            for (stage, text) in [
                (Stage::Rcpt, format!("550 5.1.1 <{name}@example.org>: user unknown")),
                (
                    Stage::Rcpt,
                    format!(
                        "550 5.4.1 [{name}@x.example]: Recipient address rejected: Access denied"
                    ),
                ),
                (
                    Stage::Eod,
                    format!(
                        "554 5.2.252 SendAsDenied; a@b.example not allowed to send as {name}@b.example; STOREDRV.Submission.Exception:SendAsDeniedException.X"
                    ),
                ),
                (
                    Stage::Eod,
                    format!(
                        "550 5.7.509 Access denied, sending domain [{name}.example.org] does not pass DMARC verification"
                    ),
                ),
                (
                    Stage::Eod,
                    format!(
                        "554 5.6.211 Invalid MIME Content: Single text value size (33061) exceeded allowed maximum (32768) for the '{name}' header."
                    ),
                ),
            ] {
                let verdict = at(stage, &text);
                assert!(
                    matches!(verdict.scope, Scope::Recipient | Scope::Sender | Scope::Message),
                    "{text} is judged as {} by {}",
                    three(&verdict),
                    verdict.rule
                );
            }
        }
    }
}

#[test]
fn cut_to_a_printers_panel_the_class_stays() {
    let rows: Vec<(&str, &str)> = include_str!("../data/replies.tsv")
        .lines()
        .skip(1)
        .map(|line| line.split('\t').collect::<Vec<_>>())
        .map(|columns| (columns[0], columns[4]))
        .collect();
    for length in [80, 60] {
        let wrong: Vec<_> = rows
            .iter()
            .filter_map(|(text, class)| {
                let cut: String = text.chars().take(length).collect();
                let verdict = pasted(&cut);
                let got = verdict.class.as_str();
                (got != *class).then(|| format!("{got} by {}, not {class}: {cut}", verdict.rule))
            })
            .collect();
        assert!(wrong.len() * 20 <= rows.len(), "cut to {length}:\n{}", wrong.join("\n"));
    }
}

#[test]
fn an_operators_rules_go_first() {
    let own = r#"
        [[rule]]
        id = "our-gateway"
        enhanced = ["5.7.60"]
        class = "policy"
        retry = "no"
        scope = "message"
        meaning = "Our gateway does not like it."
        remedy = ["Ask Jo."]
    "#;
    let catalogue = Catalogue::with_own(own, Path::new("own.toml")).unwrap();
    let text = "550 5.7.60 SMTP; Client does not have permissions to send as this sender";
    let verdict = classify::pasted(&catalogue, None, text);
    assert_eq!(
        (verdict.rule.as_str(), &verdict.remedy[..]),
        ("our-gateway", &["Ask Jo.".to_owned()][..])
    );
    let other = classify::pasted(&catalogue, None, "535 5.7.3 Authentication unsuccessful");
    assert_eq!(other.rule.as_str(), "login-refused");
}

#[test]
fn every_problem_of_an_operators_file_is_named_with_its_line() {
    let own = r#"title = "x"

[[rule]]
id = "good"
code = ["599"]
class = "policy"
retry = "no"
scope = "message"
meaning = "m"
remedy = []

[[rule]]
id = "Bad Id"
code = ["599"]
class = "policy"
retry = "no"
scope = "message"
meaning = "m"
remedy = []

[[rule]]
id = "class"
code = ["599"]
class = "polcy"
retry = "no"
scope = "message"
meaning = "m"
remedy = []

[[rule]]
id = "nothing"
class = "policy"
retry = "no"
scope = "message"
meaning = "m"
remedy = []

[[rule]]
id = "unknown"
enhanced = ["5.7"]
class = "policy"
retry = "no"
scope = "message"
meaning = "m"
remedy = []

[[rule]]
id = "typo"
code = ["599"]
clas = "policy"
"#;
    let problems = Catalogue::with_own(own, Path::new("own.toml")).unwrap_err();
    let shown = problems.to_string();
    for part in [
        "own.toml:1: title: not known here",
        "own.toml:13: rule 2: \"Bad Id\" is no rule id",
        "own.toml:24: rule 3: unknown variant `polcy`, expected one of `permanent`",
        "own.toml:30: rule 4 (nothing): nothing to know a reply by",
        "own.toml:40: rule 5: \"5.7\" is no enhanced code",
        "own.toml:50: rule 6: unknown field `clas`",
    ] {
        assert!(shown.contains(part), "{part}\nis not in\n{shown}");
    }
    assert_eq!(problems.problems.len(), 6, "{shown}");
    assert!(problems.problems.iter().all(|problem| problem.hint.is_some()));
    let no_toml = Catalogue::with_own("[[rule", Path::new("own.toml")).unwrap_err();
    assert!(no_toml.to_string().starts_with("own.toml:1: "), "{no_toml}");
}
