//! What is refused, at which line and why.

use std::path::Path;

use secrecy::ExposeSecret;
use smtp_uplift::config::{self, MailboxAuth};

use super::{MINIMAL, accepted, folder, parse_in, refused, with};

#[test]
#[rustfmt::skip] // a table, a row a line
fn every_problem_at_once_each_at_its_line() {
    let problems = refused(
        r#"hostname = "not a name"
drain_timout = "30s"
received = "fulll"

[[listener]]
address = "0.0.0.0"
tls_profile = 3
hide = [
  "SIZE",
  "VRFY",
]
allow = ["10.0.0.0/8", "10.0.0.0/33"]
"two
lines" = 1
[[listener]]
auth = "require"

[tls]
certificate = "nowhere.crt"

[limits]
message_size = "big"
recipients = 0
sessions = "many"
command_timeout = 5
data_min_rate = "256"

[smarthost]
port = 70000

[[mailbox]]
address = "scanner"
auth = "login"

[logs]
level = "info"
"#
        .replace("\"two\nlines\"", "\"two\\nlines\"")
        .as_str(),
    );
    let wanted = [
        "1: hostname: \"not a name\" is not a domain name; for example hostname = \"relay.example.lan\"",
        "2: drain_timout: unknown key; did you mean drain_timeout?",
        "3: received: \"fulll\" is not one of full, no-client; did you mean \"full\"?",
        "6: listener.address: \"0.0.0.0\" is not an address with a port; for example address = \"0.0.0.0:2525\"",
        "7: listener.tls_profile: expected a string, found an integer; write tls_profile = \"modern\" or \"legacy\" or \"ancient\"",
        "10: listener.hide: \"VRFY\" is not an EHLO keyword that we offer; known are SIZE, PIPELINING, 8BITMIME, ENHANCEDSTATUSCODES, SMTPUTF8, STARTTLS, AUTH",
        "12: listener.allow: \"10.0.0.0/33\" is not a network; for example \"10.0.0.0/8\" or \"10.1.2.3\"",
        "13: listener.\"two\\nlines\": unknown key; known here: address, name, tls, tls_profile, auth, line_endings, hide, auto_wait, starttls_fallback, auth_without_tls, accept_any_credentials, allow, open_relay, mailbox, proxy_protocol_from, systemd",
        "14: listener.address: missing; for example address = \"0.0.0.0:2525\"",
        "15: listener.auth: there are no logins that a device could use; name the logins in [auth] users_file, or write accept_any_credentials = true",
        "17: tls.private_key: missing; for example private_key = \"certs/relay.key\"",
        "18: tls.certificate: FOLDER/nowhere.crt cannot be read: No such file or directory (os error 2); the relay's user must be able to read it; relative paths start at this file's folder",
        "21: limits.message_size: \"big\" is not a size; for example message_size = \"150MiB\"",
        "22: limits.recipients: 0 is not between 1 and 100000; for example recipients = 500",
        "23: limits.sessions: expected an integer, found a string; for example sessions = 5000",
        "24: limits.command_timeout: expected a duration in quotes, found an integer; for example command_timeout = \"5m\"",
        "25: limits.data_min_rate: \"256\" is not a rate; for example data_min_rate = \"256B/s\"",
        "28: smarthost.port: 70000 is not between 1 and 65535; for example port = 587",
        "30: mailbox.password: missing: this auth logs in with a password; for example password = { file = \"/run/secrets/pw\" }",
        "31: mailbox.address: \"scanner\" is not an address; for example address = \"scanner@example.com\"",
        "34: logs: unknown section; did you mean log?",
    ];
    let problems: Vec<_> = problems
        .iter()
        .map(|problem| match problem.find("nowhere.crt") {
            Some(end) => {
                let start = problem.find("certificate: ").unwrap() + "certificate: ".len();
                format!("{}FOLDER/{}", &problem[..start], &problem[end..])
            }
            None => problem.clone(),
        })
        .collect();
    for (got, wanted) in problems.iter().zip(wanted) {
        assert_eq!(got, wanted);
    }
    assert_eq!(problems.len(), wanted.len(), "{problems:#?}");
}

#[test]
#[rustfmt::skip] // a table, a row a line
fn what_this_version_does_not_do_is_refused_with_the_value_to_write() {
    let later = "not in this version yet";
    for (root, listener, mailbox, end, key, reason, hint) in [
        ("", "systemd = \"smtp\"", "", "", "listener.systemd", later, "address = "),
        ("limits.messages_per_device = 100", "", "", "", "limits.messages_per_device", "expected a count for each span", "\"100/h\""),
        ("limits.recipients_per_device = \"10\"", "", "", "", "limits.recipients_per_device", "is not a count", "\"100/d\""),
        ("limits.commands = 999", "", "", "", "limits.commands", "too few for a message to 500 recipients", "commands = 1000"),
        ("smarthost.tls_backend = \"openssl\"", "", "", "", "smarthost.tls_backend", "is not one of rustls, native", "\"native\""),
        ("smarthost.tls = \"none\"", "", "", "", "smarthost.tls", "for loopback addresses only", "\"starttls\""),
        ("smarthost.tls_min = \"1.1\"", "", "", "", "smarthost.tls_min", "nothing older than TLS 1.2", "\"1.2\""),
        ("smarthost.tls_min = 1.2", "", "", "", "smarthost.tls_min", "expected a string, found a number with a point", "\"1.2\""),
        ("sender.rewrite = \"drop\"", "", "", "", "sender.rewrite", "is not one of mailbox, keep", "\"mailbox\" or \"keep\""),
        ("log.addresses = \"hash\"", "", "", "", "log.addresses", later, "\"full\""),
        ("admin.token = 7", "", "", "", "admin.token", "expected a source of a secret, found an integer", "file = "),
    ] {
        let problems = refused(&with(root, listener, mailbox, end));
        assert_eq!(problems.len(), 1, "{problems:#?}");
        let problem = &problems[0];
        assert!(problem.contains(&format!(": {key}: ")), "{key} in {problem}");
        assert!(problem.contains(reason), "{reason} in {problem}");
        assert!(problem.split_once("; ").unwrap().1.contains(hint), "{hint} in {problem}");
    }
}

#[test]
#[rustfmt::skip] // a table, a row a line
fn listeners_and_mailboxes_that_make_no_sense() {
    for (listener, mailbox, end, wanted) in [
        ("auth = \"offer\"", "", "", "listener.auth: there are no logins"),
        ("auth = \"offer\"\ntls = \"none\"\naccept_any_credentials = true", "", "", "listener.auth: AUTH is offered under TLS only"),
        ("allow = []", "", "", "listener.allow: an empty list refuses everybody"),
        ("", "", "[[listener]]\naddress = \"127.0.0.1:2525\"\nname = \"b\"", "listener.address: 127.0.0.1:2525 is taken already"),
        ("name = \"a\"", "", "[[listener]]\naddress = \"127.0.0.1:2526\"\nname = \"a\"", "listener.name: another listener is called \"a\""),
        ("", "", "[admin]\naddress = \"127.0.0.1:2525\"", "listener.address: 127.0.0.1:2525 is taken already"),
        ("", "auth = \"xoauth2\"", "", "6: mailbox.oauth: missing: xoauth2 logs in with a token; add [mailbox.oauth] with tenant"),
        ("", "auth = \"cram-md5\"", "", "mailbox.auth: \"cram-md5\" is not one of xoauth2, login, plain, none"),
        ("", "send_as = [\"example.com\"]", "", "mailbox.send_as: \"example.com\" is not an address"),
        ("", "messages_per_minute = -1", "", "mailbox.messages_per_minute: -1 is not between 0 and 100000; for example messages_per_minute = 28"),
        ("", "message_size = 0", "", "mailbox.message_size: 0B is not between 1B and 16GiB"),
        ("", "", "[[mailbox]]\naddress = \"Scanner@office.test\"\nauth = \"none\"", "11: mailbox.address: another mailbox has Scanner@office.test already; give each its own"),
        ("", "", "[[mailbox]]\naddress = \"second@office.test\"\nusername = \"Scanner@office.test\"\npassword = { file = \"pw\" }", "12: mailbox.username: another mailbox logs in as Scanner@office.test at smtp.office365.com already: the two would share its limits, and each count them alone; keep one of the two, and name the other's address in its send_as; "),
        ("mailbox = \"scaner@office.test\"", "", "", "5: listener.mailbox: there is no [[mailbox]] \"scaner@office.test\"; did you mean \"scanner@office.test\"?"),
        ("", "", "[[device]]\naddress = \"10.1.2.3\"\nmailbox = \"x\"", "12: device.mailbox: there is no [[mailbox]] \"x\"; for example mailbox = \"scanner@office.test\""),
        ("", "", "[smarthost]\nhost = \"localhost\"\nport = 2525", "10: smarthost: the smarthost of scanner@office.test is localhost:2525, where the listener \"127.0.0.1:2525\" is: mail would go in circles; name the server"),
        ("", "", "[[device]]\nname = \"c\"\naddress = \"10.1.2.3\"\n[[device]]\nname = \"c\"\naddress = \"10.1.2.4\"", "14: device.name: another [[device]] above is called \"c\"; give each device a name of its own"),
        ("", "", "[[device]]\nname = \"copier\"", "10: device.address: missing; for example address = \"10.1.2.3\", or login = \"copier3\""),
        ("", "", "[[device]]\naddress = \"10.1.2.3\"\nlogin = \"c\"", "12: device.login: a device is told by its address or its login; remove one of the two"),
        ("", "", "[[device]]\naddress = \"10.1.2\"", "11: device.address: \"10.1.2\" is not a network; "),
        ("", "", "[[device]]\nlogin = \"\"", "11: device.login: it is empty; for example login = \"copier3\""),
        ("", "max_connections = 0", "", "mailbox.max_connections: 0 is not between 1 and 1000"),
        ("", "", "[auth]\nusers_file = \"nobody.txt\"", "auth.users_file: "),
        ("", "", "[log]\nlevel = \"loud\"", "log.level: \"loud\" is not a level"),
        ("", "", "[log]\nlevel = \"[a=info\"", "log.level: \"[a=info\" is not a level"),
        ("", "", "[admin]\naddress = \"localhost\"", "admin.address: \"localhost\" is not an address with a port"),
        ("", "", "[limits]\nidle_timeout = \"3 days\"", "limits.idle_timeout: \"3 days\" is not between 1ms and 1day"),
        ("", "", "[limits]\nmessage_size = \"99999999TiB\"", "limits.message_size: "),
        ("", "", "[limits]\nmessage_size = 0", "limits.message_size: 0B is not between 1B and 16GiB"),
        ("", "", "[limits]\nmessage_size = -1", "limits.message_size: -1 is not a size"),
        ("", "", "[limits]\nrecipients = 99999999999999999999", "limits.recipients: "),
        ("", "", "[limits]\nrecipients = 1_0\u{7}", "limits.recipients: \"10\\u{7}\" is not between"),
        ("", "", "[limits]\nmessage_size = 1_0\u{7}", "limits.message_size: \"10\\u{7}\" is not a size"),
    ] {
        let problems = refused(&with("", listener, mailbox, end));
        assert_eq!(problems.len(), 1, "{problems:#?}");
        assert!(problems[0].contains(wanted), "{wanted} in {}", problems[0]);
    }
}

#[test]
#[rustfmt::skip] // a table, a row a line
fn what_is_kept_and_who_is_told() {
    for (end, wanted) in [
        ("[delivery]\nmode = \"spol\"", "11: delivery.mode: \"spol\" is not one of stream, stream-then-spool, spool; did you mean \"spool\"?"),
        ("[delivery]\nreplay_memory = \"much\"", "11: delivery.replay_memory: \"much\" is not a size; for example replay_memory = \"32MiB\""),
        ("[spool]\ndirectory = \"\"", "11: spool.directory: it is empty; for example directory = \"spool\""),
        ("[spool]\ndirectory = \"/dev/null\"", "11: spool.directory: /dev/null is no folder; name a folder; the relay makes it if it is not there"),
        ("[spool]\nmax_size = 0", "11: spool.max_size: 0B is not between 1B and 1PiB; for example max_size = \"10GiB\""),
        ("[spool]\nexpire = \"0s\"", "11: spool.expire: \"0s\" is not between 1s and 1year 18h; for example expire = \"2days\""),
        ("[spool]\nheld_expire = \"2 years\"", "11: spool.held_expire: \"2 years\" is not between 1s and "),
        ("[spool]\nkeep_failed = 14", "11: spool.keep_failed: expected a duration in quotes, found an integer"),
        ("[spool]\nretry = \" \"", "11: spool.retry: there is no wait in it; for example retry = \"1m, 2m, 5m, 10m, 15m, 30m\""),
        ("[spool]\nretry = \"1m, soon\"", "11: spool.retry: \"soon\" is not a duration; "),
        ("[spool]\nretry = \"1m,,2m\"", "11: spool.retry: \"\" is not a duration; "),
        ("[spool]\nretry = \"1m, 999ms\"", "11: spool.retry: \"999ms\" is not between 1s and 1day; "),
        ("[spool]\nretry = \"25h\"", "11: spool.retry: \"25h\" is not between 1s and 1day; "),
        ("[spool]\nretry = [\"1m\"]", "11: spool.retry: expected durations in quotes, found a list; "),
        ("[spool]\nexpires = \"1h\"", "11: spool.expires: unknown key; did you mean expire?"),
        ("[notices]", "10: notices.to: missing; for example to = \"it-helpdesk@example.com\""),
        ("[notices]\nto = \"helpdesk\"", "11: notices.to: \"helpdesk\" is not an address: the address has no domain; "),
        ("[notices]\nto = \"a@example.com, b@example.com\"", "11: notices.to: "),
        ("[notices]\nto = \"a@b\"\nsmtp = \"mx.example.com\"", "12: notices.smtp: \"mx.example.com\" is not a server with a port; for example smtp = \"mx.example.com:25\""),
        ("[notices]\nto = \"a@b\"\nsmtp = \"::1:25\"", "12: notices.smtp: \"::1:25\" is not a server with a port; "),
        ("[notices]\nto = \"a@b\"\nsmtp = \"[mx]:25\"", "12: notices.smtp: "),
        ("[notices]\nto = \"a@b\"\nsmtp = \"mx:0\"", "12: notices.smtp: "),
        ("[notices]\nto = \"a@b\"\ncommand = []", "12: notices.command: it names no program; for example command = ["),
        ("[notices]\nto = \"a@b\"\ncommand = [\" \", \"-v\"]", "12: notices.command: it names no program; "),
        ("[notices]\nto = \"a@b\"\ncommand = \"mail\"", "12: notices.command: expected a list, found a string; "),
        ("[notices]\nto = \"a@b\"\ncommand = [\"mail\", 1]", "12: notices.command: expected a string, found an integer; "),
        ("[notices]\nto = \"a@b\"\ncommand = [\"mail\", \"\\u0000\"]", "12: notices.command: it has a NUL, which no program can be given; "),
        ("[notices]\nto = \"a@b\"\ncommand = [\"/nowhere/notify\"]", "12: notices.command: /nowhere/notify cannot be run: No such file or directory"),
        ("[notices]\nto = \"a@b\"\ncommand = [\"./pw\"]", "cannot be run: nobody may execute it; relative paths start at "),
        ("[notices]\nto = \"a@b\"\ncommand = [\"/\"]", "12: notices.command: / cannot be run: it is not a file; "),
        ("[notices]\nto = \"a@b\"\nsmtp = \"mx:25\"\ncommand = [\"mail\"]", "13: notices.command: notices go by smtp already; remove one of the two"),
    ] {
        let problems = refused(&with("", "", "", end));
        assert_eq!(problems.len(), 1, "{problems:#?}");
        assert!(problems[0].contains(wanted), "{wanted} in {}", problems[0]);
    }
}

/// No configuration opens the relay by mistake.
#[test]
#[rustfmt::skip] // a table, a row a line
fn an_open_relay_has_a_name_of_its_own() {
    let all = "allow = [\"0.0.0.0/0\"]";
    let login = "auth = \"require\"\nallow = [\"0.0.0.0/1\", \"128.0.0.0/1\"]";
    let users = "[auth]\nusers_file = \"users.txt\"";
    let device = |lines: &str| format!("{users}\n[[device]]\n{lines}");
    for (listener, end, wanted) in [
        (all, "", "5: listener.allow: an open relay: everybody who reaches this port could send as your mailbox; list the networks"),
        ("allow = [\"::/0\"]", "", "listener.allow: an open relay"),
        ("allow = [\"2000::/3\"]", "", "listener.allow: an open relay"),
        ("allow = [\"::ffff:0.0.0.0/96\"]", "", "listener.allow: an open relay"),
        ("allow = [\"64:ff9b::/96\"]", "", "listener.allow: an open relay"),
        ("allow = [\"0.0.0.0/1\", \"128.0.0.0/1\"]", "", "listener.allow: an open relay"),
        ("allow = [\"16.0.0.0/6\"]", "", "listener.allow: an open relay"),
        (&format!("auth = \"offer\"\n{all}"), users, "listener.allow: an open relay"),
        (&format!("auth = \"require\"\naccept_any_credentials = true\n{all}"), users, "listener.allow: an open relay"),
        (login, &device("address = \"0.0.0.0/0\"\nauth = \"none\""), "14: device.address: an open relay: without a login everybody who reaches the listener \"127.0.0.1:2525\""),
        (login, &device("address = \"0.0.0.0/1\"\naccept_any_credentials = true"), "device.address: an open relay"),
        (login, &device("address = \"20.0.0.0/8\"\nauth = \"offer\"\n[[device]]\naddress = \"31.0.0.0/9\"\nauth = \"none\""), "device.address: an open relay"),
        (&format!("{login}\nopen_relay = true"), &device("address = \"0.0.0.0/0\"\nauth = \"none\""), "device.address: an open relay"),
        ("allow = [\"64:ff9b:1::/48\"]", "", "listener.allow: an open relay"),
        ("allow = [\"2001::/32\"]", "", "listener.allow: an open relay"),
        ("proxy_protocol_from = [\"10.0.0.1\", \"193.99.144.84/31\"]", "", "5: listener.proxy_protocol_from: whoever is in 193.99.144.84/31 may claim any address, and it is public; list your balancers' own addresses, or"),
        ("auth = \"require\"\naccept_any_credentials = true\nproxy_protocol_from = [\"2001:678::/127\"]", "", "listener.proxy_protocol_from: whoever is in 2001:678::/127 may"),
        ("proxy_protocol_from = [\"0.0.0.0/0\"]", "", "5: listener.proxy_protocol_from: whoever may send a PROXY header may claim any address"),
    ] {
        let problems = refused(&with("", listener, "", end));
        let opened: Vec<_> = problems.iter().filter(|it| it.contains(wanted)).collect();
        assert_eq!((opened.len(), problems.len()), (1, 1), "{wanted} in {problems:#?}");
    }
    for (listener, end) in [
        (format!("{all}\nopen_relay = true"), String::new()),
        (login.to_owned(), users.to_owned()),
        (login.to_owned(), device("address = \"193.99.144.85\"\nauth = \"none\"")),
        (login.to_owned(), device("address = \"0.0.0.0/0\"\ntls_profile = \"ancient\"")),
    ] {
        accepted(&with("", &listener, "", &end));
    }
}

#[test]
fn nothing_at_all() {
    let problems = refused("hostname = \"relay\"");
    assert_eq!(problems.len(), 2, "{problems:#?}");
    assert!(
        problems[0].contains("mailbox: there is none")
            && problems[1].contains("listener: there is none")
    );
    let single = MINIMAL.replace("[[listener]]", "[listener]");
    assert_eq!(
        refused(&single),
        ["3: listener: expected a list of sections, found a section; write [[listener]]"]
    );
}

#[test]
fn text_that_is_not_toml_is_one_problem() {
    let problems = refused("hostname = \"a\"\n\n[[mailbox]]\npassword = \"hunter2\" hunter3\n");
    assert_eq!(problems.len(), 1);
    assert!(problems[0].starts_with("4: "), "{problems:?}");
    assert!(!problems[0].contains("hunter"), "{problems:?}");
    assert!(refused("a = 1\na = 2")[0].starts_with("2: "));
}

#[test]
fn a_file_that_is_not_there() {
    let problems = config::load(Path::new("/nowhere/smtp-uplift.toml")).unwrap_err().to_string();
    assert!(
        problems.starts_with("/nowhere/smtp-uplift.toml: the configuration cannot be read: "),
        "{problems}"
    );
}

#[test]
#[rustfmt::skip] // a table, a row a line
fn secret_sources_that_do_not_work_are_problems_at_their_line() {
    for (source, wanted) in [
        ("{ file = \"none\" }", "/none cannot be read: "),
        ("{ env = \"SMTP_UPLIFT_TEST_UNSET\" }", "the environment variable SMTP_UPLIFT_TEST_UNSET is not set"),
        ("{ credential = \"pw\" }", "systemd has passed no credentials"),
        ("{ credential = \"../pw\" }", "a credential has a name, not a path"),
        ("\"\"", "password: the secret is empty"),
        ("{ file = \"ca.pem\" }", "/ca.pem: the secret is empty"),
        ("{ redacted = true }", "the secret was left out by check --effective"),
        ("{ redacted = false }", "the secret was left out by check --effective"),
        ("{ redacted = true, file = \"pw\" }", "the secret was left out by check --effective"),
        ("\"a\\nb\"", "the secret is not one line of text"),
        ("{}", "a secret has one source"),
    ] {
        let problems = refused(&MINIMAL.replace("{ file = \"pw\" }", source));
        assert_eq!(problems.len(), 1, "{problems:#?}");
        assert!(problems[0].starts_with("7: mailbox.password: ") && problems[0].contains(wanted), "{problems:?}");
    }
    // Cargo sets this one for every test.
    let loaded = accepted(&MINIMAL.replace("{ file = \"pw\" }", "{ env = \"CARGO_MANIFEST_DIR\" }"));
    let MailboxAuth::Login { password } = loaded.config.mailboxes[0].auth.clone() else { panic!("login") };
    assert_eq!(password.load().unwrap().expose_secret(), env!("CARGO_MANIFEST_DIR"));
}

#[test]
fn an_empty_list_is_no_listener_and_no_mailbox() {
    for (key, rest) in [
        ("listener", "[[mailbox]]\naddress = \"a@b\"\nauth = \"none\""),
        ("mailbox", "[[listener]]\naddress = \"127.0.0.1:25\""),
    ] {
        let problems = refused(&format!("hostname = \"relay\"\n{key} = []\n{rest}\n"));
        assert_eq!(problems, [format!("2: {key}: it is empty; write [[{key}]]")]);
    }
}

/// No text may make the reader panic; the worst that a text can do is to be refused.
#[test]
#[rustfmt::skip] // a table, a row a line
fn any_cut_and_any_swap_of_a_good_file_is_an_answer() {
    let folder = folder();
    for cut in 0..MINIMAL.len() {
        let _ = parse_in(&folder, &MINIMAL[..cut]);
        let _ = parse_in(&folder, &MINIMAL[cut..]);
    }
    let values = ["1", "-1", "1.5", "inf", "true", "\"\"", "\"/\"", "[]", "[1, [2]]", "{}", "{ a = 1 }", "1979-05-27"];
    let keys = ["hostname", "state_dir", "drain_timeout", "received", "listener", "tls", "limits", "auth", "smarthost", "mailbox", "sender", "delivery", "spool", "notices", "delivery.replay_memory", "spool.directory", "spool.retry", "notices.to", "notices.smtp", "notices.command", "admin", "log", "limits.message_size", "limits.data_min_rate", "limits.messages_per_device", "limits.recipients", "smarthost.host", "smarthost.ca_file", "admin.address", "log.level", "tls.certificate"];
    for key in keys {
        for value in values {
            let _ = parse_in(&folder, &format!("{key} = {value}\n{MINIMAL}"));
            let _ = parse_in(&folder, &format!("{key} = {value}\n"));
        }
    }
    let inner = ["address", "name", "tls", "auth", "hide", "allow", "password", "oauth", "oauth.token", "oauth.flow", "oauth.tenant", "oauth.client_id", "oauth.client_secret", "oauth.client_secret_expires", "oauth.certificate", "oauth.private_key", "oauth.token_url", "oauth.scope", "smarthost", "smarthost.host", "smarthost.client_key", "send_as", "max_connections", "mailbox", "login", "messages_per_minute", "message_size"];
    for section in ["listener", "mailbox", "device"] {
        for key in inner {
            for value in values {
                let _ = parse_in(&folder, &format!("[[{section}]]\n{key} = {value}\n"));
            }
        }
    }
}
