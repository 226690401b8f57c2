//! The configuration: what is taken, what is refused, where and why.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

#[path = "config/effective.rs"]
mod effective;
#[path = "config/oauth.rs"]
mod oauth;
#[path = "config/refused.rs"]
mod refused;
#[path = "config/smarthost.rs"]
mod smarthost;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
    time::Duration,
};

use secrecy::ExposeSecret;
use smtp_uplift::{
    config::{self, *},
    policy::{AccessList, DeviceAuth, ListenerTls, Overrides, Profile, Quota, Span, TlsProfile},
    proto::limits::LineEndings,
    transport::certificate::Identity,
};
use tempfile::TempDir;

const MINIMAL: &str = r#"
hostname = "relay.example.test"
[[listener]]
address = "127.0.0.1:2525"
[[mailbox]]
address = "scanner@office.test"
password = { file = "pw" }
"#;

/// Every key that this version takes.
const MAXIMAL: &str = r#"
hostname = "relay.example.lan"
state_dir = "state"
drain_timeout = "1m 30s"
received = "no-client"

[[listener]]
name = "lan"
address = "[::]:2525"
tls = "require-starttls"
tls_profile = "ancient"
starttls_fallback = "0s"
auth = "require"
auth_without_tls = true
accept_any_credentials = false
line_endings = "strict"
hide = ["pipelining", "8BITMIME"]
proxy_protocol_from = []
allow = ["10.0.0.0/8", "192.168.7.7", "::ffff:172.16.0.0/108"]
mailbox = "Scanner@Example.com"

[[listener]]
name = "smtps"
address = "0.0.0.0:465"
tls = "implicit"
tls_profile = "modern"
hide = ["STARTTLS"]

[[listener]]
name = "plain"
address = "127.0.0.1:0"
tls = "none"
auth = "offer"
auth_without_tls = true
accept_any_credentials = true

[[listener]]
address = "127.0.0.1:0"
name = "another free port"

[tls]
certificate = "relay.crt"
private_key = "relay.key"

[limits]
message_size = "35MB"
recipients = 1
sessions = 20_000
sessions_per_device = 0x10
command_timeout = "500ms"
idle_timeout = "1h"
data_min_rate = "2KiB/s"
handshakes = 30
commands = 5000
transaction_timeout = "1m"
messages_per_device = "100/h"
recipients_per_device = "500/d"

[auth]
users_file = "users.txt"

[smarthost]
host = "127.0.0.1"
port = 25
tls = "none"
tls_min = "1.3"
tls_backend = "native"
ca_file = "ca.pem"
replies_file = "replies.toml"
lease_wait = "2s"
client_certificate = "client.crt"
client_key = "client.key"

[[mailbox]]
address = "scanner@example.com"
username = "scanner@example.onmicrosoft.com"
auth = "xoauth2"
max_connections = 20
messages_per_minute = 100_000
recipients_per_day = 0
message_size = "35MB"
send_as = ["*@example.com", "boss@example.com"]

[mailbox.oauth]
token = { file = "token" }

[[mailbox]]
address = "second@example.com"
auth = "none"

[mailbox.smarthost]
host = "::1"
tls_backend = "rustls"

[[mailbox]]
address = "third@example.com"

[mailbox.oauth]
flow = "client-credentials"
tenant = "contoso.example.com"
client_id = "app"
client_secret = { file = "token" }
client_secret_expires = 2999-05-31
cloud = "dod"
token_url = "https://login.example.com/token"
scope = "https://outlook-dod.office365.us/.default"

[[device]]
name = "copier"
address = "::ffff:10.1.2.3"
mailbox = "second@example.com"

[[device]]
address = "10.1.0.0/16"

[[device]]
login = "alarm"
mailbox = "SECOND@example.com"

[sender]
rewrite = "keep"

[delivery]
mode = "spool"
device_patience = "15s"
replay_memory = "1MiB"
replay_memory_total = "8MiB"

[spool]
directory = "kept"
max_size = "20GiB"
expire = "1h"
held_expire = "30d"
retry = "90s,10m"
keep_failed = "0s"

[notices]
to = "helpdesk@example.com"
smtp = "mx.example.com:25"

[admin]
address = ""

[log]
format = "json"
level = "warn,smtp_uplift=debug"
transcripts = "all"
addresses = "full"
"#;

/// A folder with the files that the texts below name.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("pw", "sesame-pw\n"),
        ("token", "sesame-token\n"),
        ("client.crt", &pem().0),
        ("client.key", &pem().1),
        ("relay.crt", ""),
        ("relay.key", ""),
        ("ca.pem", ""),
        ("users.txt", "alarm:hash\n"),
        ("replies.toml", ""),
    ] {
        fs::write(folder.path().join(name), text).unwrap();
        set_mode(&folder.path().join(name), 0o600);
    }
    folder
}

/// A certificate and its key; making one takes time.
fn pem() -> &'static (String, String) {
    static PEM: LazyLock<(String, String)> = LazyLock::new(|| {
        let made = Identity::make(&["relay.example.test"]).unwrap();
        let text = |pem| String::from_utf8(pem).unwrap();
        let key = made.key.private_key_to_pem_pkcs8().unwrap();
        (text(made.certificate.to_pem().unwrap()), text(key))
    });
    &PEM
}

#[cfg(unix)]
fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[cfg(not(unix))]
fn set_mode(_path: &Path, _mode: u32) {}

fn parse_in(folder: &TempDir, text: &str) -> Result<Loaded, Problems> {
    config::parse(text, &folder.path().join("smtp-uplift.toml"))
}

#[track_caller]
fn accepted(text: &str) -> Loaded {
    match parse_in(&folder(), text) {
        Ok(loaded) => loaded,
        Err(problems) => panic!("{problems}"),
    }
}

/// What is odd about it but for the password, which Exchange Online takes for a few more weeks.
fn odd(loaded: &Loaded) -> Vec<&Problem> {
    let ends = |it: &&Problem| it.reason.contains("switches passwords off");
    loaded.warnings.iter().filter(|it| !ends(it)).collect()
}

/// The problems without their file, as `line: key: reason; hint`.
#[track_caller]
fn refused(text: &str) -> Vec<String> {
    let folder = folder();
    let problems = parse_in(&folder, text).expect_err("it should be refused");
    let prefix = format!("{}:", folder.path().join("smtp-uplift.toml").display());
    problems.to_string().lines().map(|line| line.replace(&prefix, "").trim().to_owned()).collect()
}

/// The minimal configuration with lines added to its root, its listener, its mailbox and its end.
fn with(root: &str, listener: &str, mailbox: &str, end: &str) -> String {
    format!(
        "hostname = \"relay.example.test\"\n{root}\n[[listener]]\naddress = \"127.0.0.1:2525\"\n{listener}\n\
         [[mailbox]]\naddress = \"scanner@office.test\"\npassword = {{ file = \"pw\" }}\n{mailbox}\n{end}\n"
    )
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn defaults_are_those_of_the_interface() {
    let folder = folder();
    let loaded = parse_in(&folder, MINIMAL).unwrap();
    assert!(odd(&loaded).is_empty(), "{:?}", loaded.warnings);
    let config = loaded.config;
    assert_eq!(config.state_dir, Path::new("/var/lib/smtp-uplift"));
    assert_eq!(config.drain_timeout, seconds(30));
    assert_eq!(config.received, ReceivedDetail::Full);
    assert_eq!(config.certificate, None);
    assert_eq!(config.users_file, None);
    assert_eq!(config.admin.unwrap().address, "127.0.0.1:9525".parse().unwrap());
    assert_eq!(
        config.log,
        Log { format: LogFormat::Text, level: "info".into(), transcripts: Transcripts::Failed }
    );
    assert_eq!(
        config.delivery,
        Delivery {
            mode: DeliveryMode::StreamThenSpool,
            device_patience: seconds(20),
            replay_memory: 32 << 20,
            replay_memory_total: 256 << 20
        }
    );
    assert_eq!(
        config.spool,
        Spool {
            directory: "/var/lib/smtp-uplift/spool".into(),
            max_size: 10 << 30,
            expire: seconds(48 * 3600),
            held_expire: seconds(14 * 24 * 3600),
            retry: [1, 2, 5, 10, 15, 30].map(|minutes| seconds(60 * minutes)).to_vec(),
            keep_failed: seconds(14 * 24 * 3600)
        }
    );
    assert_eq!(config.notices, None);
    assert_eq!(
        config.listeners,
        [Listener {
            name: "127.0.0.1:2525".into(),
            address: "127.0.0.1:2525".parse().unwrap(),
            profile: Profile::default(),
            allow: AccessList::default(),
            open_relay: false,
            proxy_protocol_from: AccessList::from_iter([]),
            mailbox: None
        }]
    );
    assert_eq!(
        config.limits,
        Limits {
            message_size: 150 << 20,
            recipients: 500,
            sessions: 5_000,
            sessions_per_device: 50,
            handshakes: 200,
            commands: 1_000,
            command_timeout: seconds(300),
            idle_timeout: seconds(600),
            transaction_timeout: seconds(1_800),
            data_min_rate: 256,
            messages_per_device: Quota::unlimited(Span::Hour),
            recipients_per_device: Quota::unlimited(Span::Day)
        }
    );
    assert_eq!(
        config.smarthost,
        Smarthost {
            host: "smtp.office365.com".into(),
            port: 587,
            tls: SmarthostTls::StartTls,
            tls_min: TlsMin::V1_2,
            tls_backend: TlsBackend::Rustls,
            ca_file: None,
            replies_file: None,
            lease_wait: seconds(5),
            client: None
        }
    );
    assert_eq!(config.mailboxes[0].address, "scanner@office.test");
    assert_eq!(config.mailboxes[0].username, "scanner@office.test");
    let Mailbox { max_connections, messages_per_minute, recipients_per_day, message_size, .. } =
        config.mailboxes[0];
    assert_eq!(
        (max_connections, messages_per_minute, recipients_per_day, message_size),
        (3, 28, 10_000, None)
    );
    assert!(config.devices.is_empty());
    let MailboxAuth::Login { password } = config.mailboxes[0].auth.clone() else {
        panic!("password means login")
    };
    assert_eq!(password.path(), Some(folder.path().join("pw").as_path()));
}

#[test]
fn hostname_defaults_to_the_systems_name() {
    let text = MINIMAL.replace("hostname = \"relay.example.test\"\n", "");
    match parse_in(&folder(), &text) {
        Ok(loaded) => assert!(!loaded.config.hostname.is_empty()),
        Err(problems) => {
            assert!(problems.to_string().contains("hostname: the system's name "), "{problems}")
        }
    }
}

#[test]
fn everything_said() {
    let Loaded { config, warnings } = accepted(MAXIMAL);
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(config.hostname, "relay.example.lan");
    assert!(config.state_dir.ends_with("state") && config.state_dir.is_absolute());
    assert_eq!(config.drain_timeout, seconds(90));
    assert_eq!(config.received, ReceivedDetail::NoClient);
    let [lan, smtps, plain, _] = &config.listeners[..] else { panic!("four listeners") };
    assert_eq!(
        (lan.name.as_str(), lan.profile.tls, lan.profile.tls_profile),
        ("lan", ListenerTls::RequireStartTls, TlsProfile::Ancient)
    );
    assert_eq!(
        (lan.profile.auth, lan.profile.line_endings),
        (DeviceAuth::Require, LineEndings::Strict)
    );
    assert_eq!(lan.profile.hide, ["PIPELINING", "8BITMIME"]);
    for inside in ["10.1.1.1", "192.168.7.7", "172.16.3.3", "::ffff:10.1.1.1"] {
        assert!(lan.allow.allows(inside.parse().unwrap()), "{inside}");
    }
    for outside in ["127.0.0.1", "192.168.7.8", "::1"] {
        assert!(!lan.allow.allows(outside.parse().unwrap()), "{outside}");
    }
    assert_eq!(
        (smtps.profile.tls, smtps.profile.tls_profile),
        (ListenerTls::Implicit, TlsProfile::Modern)
    );
    assert_eq!(
        (plain.profile.tls, plain.profile.auth, plain.profile.accept_any_credentials),
        (ListenerTls::None, DeviceAuth::Offer, true)
    );
    let certificate = config.certificate.unwrap();
    assert!(
        certificate.certificate.ends_with("relay.crt")
            && certificate.private_key.ends_with("relay.key")
    );
    assert_eq!(config.limits.message_size, 35_000_000);
    assert_eq!((config.limits.sessions, config.limits.sessions_per_device), (20_000, 16));
    assert_eq!(
        (config.limits.command_timeout, config.limits.data_min_rate),
        (Duration::from_millis(500), 2048)
    );
    assert!(config.users_file.unwrap().ends_with("users.txt"));
    assert_eq!(
        (config.smarthost.tls, config.smarthost.tls_min),
        (SmarthostTls::None, TlsMin::V1_3)
    );
    assert_eq!(config.mailboxes[0].username, "scanner@example.onmicrosoft.com");
    let MailboxAuth::XOAuth2 { token: TokenSource::Ready(token) } = &config.mailboxes[0].auth
    else {
        panic!("xoauth2")
    };
    assert_eq!(token.path().unwrap().file_name().unwrap(), "token");
    let [first, second, _] = &config.mailboxes[..] else { panic!("three mailboxes") };
    assert_eq!((first.messages_per_minute, first.message_size), (100_000, Some(35_000_000)));
    // Without a login nobody counts.
    assert_eq!(
        (second.max_connections, second.messages_per_minute, second.recipients_per_day),
        (10, 0, 0)
    );
    // As the mailbox's own section spells it.
    assert_eq!(lan.mailbox.as_deref(), Some("scanner@example.com"));
    let device = |name: &str, who, mailbox: Option<&str>| Device {
        name: name.into(),
        who,
        profile: Overrides::default(),
        mailbox: mailbox.map(Into::into),
        delivery: None,
        senders: None,
        recipients: None,
    };
    let network = |text: &str| DeviceMatch::Network(text.parse().unwrap());
    assert_eq!(
        config.devices,
        [
            device("copier", network("10.1.2.3/32"), Some("second@example.com")),
            device("10.1.0.0/16", network("10.1.0.0/16"), None),
            device("alarm", DeviceMatch::Login("alarm".into()), Some("second@example.com")),
        ]
    );
    assert_eq!(
        config.delivery,
        Delivery {
            mode: DeliveryMode::Spool,
            device_patience: seconds(15),
            replay_memory: 1 << 20,
            replay_memory_total: 8 << 20
        }
    );
    assert_eq!(
        config.spool,
        Spool {
            directory: config.state_dir.join("kept"),
            max_size: 20 << 30,
            expire: seconds(3600),
            held_expire: seconds(30 * 24 * 3600),
            retry: vec![seconds(90), seconds(600)],
            keep_failed: seconds(0)
        }
    );
    let way = NoticeWay::Smtp { host: "mx.example.com".into(), port: 25 };
    assert_eq!(config.notices, Some(Notices { to: "helpdesk@example.com".into(), way }));
    assert!(config.admin.is_none());
    assert_eq!(
        config.log,
        Log {
            format: LogFormat::Json,
            level: "warn,smtp_uplift=debug".into(),
            transcripts: Transcripts::All
        }
    );
}

#[test]
fn paths_start_at_the_folder_of_the_file() {
    let folder = folder();
    let file = folder.path().join("smtp-uplift.toml");
    fs::write(&file, format!("state_dir = \"var\"\n{MINIMAL}")).unwrap();
    assert_eq!(config::load(&file).unwrap().config.state_dir, folder.path().join("var"));
    // Beside the working directory nothing is put in front.
    let text = format!("state_dir = \"var\"\n{}", MINIMAL.replace("{ file = \"pw\" }", "\"x\""));
    let loaded = config::parse(&text, Path::new("smtp-uplift.toml")).unwrap();
    assert_eq!(loaded.config.state_dir, PathBuf::from("var"));
}

/// The spool is the relay's alone, and so it lies where the relay's other belongings do.
#[test]
fn the_spool_starts_at_the_state_directory() {
    for (directory, whole) in
        [("deep/spool", "/srv/relay/deep/spool"), ("/mnt/spool", "/mnt/spool")]
    {
        let text = with(
            "state_dir = \"/srv/relay\"",
            "",
            "",
            &format!("[spool]\ndirectory = \"{directory}\""),
        );
        assert_eq!(accepted(&text).config.spool.directory, Path::new(whole));
    }
}

#[test]
fn ways_of_notices() {
    let way = |line: &str| {
        let text = with("", "", "", &format!("[notices]\nto = \"it@example.com\"\n{line}"));
        accepted(&text).config.notices.unwrap().way
    };
    let smtp = |host: &str, port| NoticeWay::Smtp { host: host.into(), port };
    assert_eq!(way(""), NoticeWay::Mailbox);
    assert_eq!(way("smtp = \"10.1.2.3:2525\""), smtp("10.1.2.3", 2525));
    assert_eq!(way("smtp = \"[fd00::25]:25\""), smtp("fd00::25", 25));
    let command =
        |words: &[&str]| NoticeWay::Command(words.iter().map(|it| (*it).into()).collect());
    assert_eq!(way("command = [\"logger\", \"-t\", \"\"]"), command(&["logger", "-t", ""]));
    assert_eq!(way("command = [\"/bin/sh\"]"), command(&["/bin/sh"]));
    // A program of the configuration's folder.
    let folder = folder();
    set_mode(&folder.path().join("pw"), 0o700);
    let text = with("", "", "", "[notices]\nto = \"it@example.com\"\ncommand = [\"./pw\"]");
    let notices = parse_in(&folder, &text).unwrap().config.notices.unwrap();
    assert_eq!(notices.way, command(&[folder.path().join("./pw").to_str().unwrap()]));
}

#[test]
fn secrets_never_show() {
    for (source, secret) in [
        ("password = \"sesame-literal\"", "sesame-literal"),
        ("password = { file = \"pw\" }", "sesame-pw"),
        ("auth = \"plain\"\npassword = { file = \"pw\" }", "sesame-pw"),
        ("[mailbox.oauth]\ntoken = { file = \"token\" }", "sesame-token"),
        ("[mailbox.oauth]\ntoken = \"sesame-literal\"", "sesame-literal"),
    ] {
        let loaded = accepted(&MINIMAL.replace("password = { file = \"pw\" }", source));
        let shown = format!("{loaded:?} {loaded:#?}");
        assert!(!shown.contains("sesame"), "{shown}");
        let (MailboxAuth::Login { password: held }
        | MailboxAuth::Plain { password: held }
        | MailboxAuth::XOAuth2 { token: TokenSource::Ready(held) }) =
            &loaded.config.mailboxes[0].auth
        else {
            panic!("it logs in")
        };
        assert!(!format!("{held} {held:?}").contains("sesame"));
        // The folder is gone by now, so only a literal can still be had.
        match held.load() {
            Ok(value) => assert_eq!(value.expose_secret(), secret),
            Err(error) => assert!(
                matches!(error, SecretError::Unreadable { .. }) && secret != "sesame-literal"
            ),
        }
    }
    for wrong in [
        "password = 5317",
        "password = [\"sesame\"]",
        "password = { value = \"sesame\" }",
        "password = { file = \"pw\", env = \"PATH\" }",
    ] {
        let problems = refused(&MINIMAL.replace("password = { file = \"pw\" }", wrong));
        let shown = problems.join("\n");
        assert!(shown.contains("7: mailbox.password: "), "{shown}");
        assert!(!shown.contains("sesame") && !shown.contains("5317"), "{shown}");
    }
}

#[test]
fn secrets_are_read_anew_each_time() {
    let folder = folder();
    let loaded = parse_in(&folder, MINIMAL).unwrap();
    let MailboxAuth::Login { password } = loaded.config.mailboxes[0].auth.clone() else {
        panic!("login")
    };
    assert_eq!(password.load().unwrap().expose_secret(), "sesame-pw");
    fs::write(folder.path().join("pw"), "changed\r\n").unwrap();
    assert_eq!(password.load().unwrap().expose_secret(), "changed");
    fs::write(folder.path().join("pw"), "\n").unwrap();
    assert!(matches!(password.load(), Err(SecretError::Empty)));
}

#[test]
#[rustfmt::skip] // a table, a row a line
fn warnings() {
    for (text, line, key, reason) in [
        (MINIMAL.replace("{ file = \"pw\" }", "\"sesame\""), 7, "mailbox.password", "the secret stands in the configuration itself"),
        (with("", "", "max_connections = 20", ""), 9, "mailbox.max_connections", "Exchange Online takes three at a time"),
        (with("", "", "messages_per_minute = 0", ""), 9, "mailbox.messages_per_minute", "Exchange Online takes 30 in a minute, and slows down or refuses what is beyond"),
        (with("", "", "messages_per_minute = 31", ""), 9, "mailbox.messages_per_minute", "Exchange Online takes 30 in a minute, and slows down or refuses what is beyond"),
        (with("", "", "", "[[device]]\nlogin = \"alarm\""), 11, "device.login", "no listener offers AUTH, so nobody logs in with it"),
        (with("", "", "", "[[device]]\nname = \"all\"\naddress = \"10.0.0.0/8\"\n[[device]]\naddress = \"10.1.2.3\""), 14, "device.address", "the device \"all\" above has it, and the first that matches counts"),
        (with("", "", "auth = \"none\"", ""), 8, "mailbox.password", "not used with this auth"),
        (MINIMAL.replace("office.test", "example.com"), 6, "mailbox.address", "scanner@example.com is a placeholder"),
        (MINIMAL.replace("office.test", "mail.EXAMPLE.net"), 6, "mailbox.address", "scanner@mail.EXAMPLE.net is a placeholder"),
        (MINIMAL.replace("office.test", "office.example"), 6, "mailbox.address", "scanner@office.example is a placeholder"),
        (with("", "", "", "[delivery]\nreplay_memory_total = \"1MiB\""), 11, "delivery.replay_memory_total", "all messages together have less memory than a single one may have"),
        (with("", "", "", "[delivery]\nreplay_memory = \"1GiB\""), 11, "delivery.replay_memory", "all messages together have less memory than a single one may have"),
        (with("", "allow = [\"10.0.0.0/8\", \"193.99.144.0/24\"]", "", ""), 5, "listener.allow", "public addresses are on it, and need no login to send as your mailbox"),
        (with("", "allow = [\"0.0.0.0/0\"]\nopen_relay = true", "", ""), 6, "listener.open_relay", "THIS IS AN OPEN RELAY: everybody who reaches this port can send as your mailbox"),
        (with("", "open_relay = true", "", ""), 5, "listener.open_relay", "allow is not open, so it changes nothing"),
        (with("", "auth = \"require\"", "", "[auth]\nusers_file = \"ca.pem\""), 11, "auth.users_file", "it has no login yet, so no device can send where auth = \"require\""),
        (with("", "auth = \"require\"\nopen_relay = true", "", "[auth]\nusers_file = \"users.txt\""), 6, "listener.open_relay", "mail is taken after a login only, so it has no effect"),
        (with("", "auth = \"require\"\nallow = [\"::/0\"]\nopen_relay = true", "", "[auth]\nusers_file = \"users.txt\""), 7, "listener.open_relay", "mail is taken after a login only, so it has no effect"),
        (with("", "proxy_protocol_from = [\"10.0.0.1\", \"10.0.0.0/23\"]", "", ""), 5, "listener.proxy_protocol_from", "whoever is in 10.0.0.0/23 may claim any address"),
        (with("", "auth = \"require\"\nproxy_protocol_from = [\"2001:678::/64\"]", "", "[auth]\nusers_file = \"users.txt\""), 6, "listener.proxy_protocol_from", "whoever is in 2001:678::/64 may claim any address"),
        (with("", "auth = \"offer\"\naccept_any_credentials = true", "", "[[device]]\nlogin = \"alarm\""), 12, "device.login", "accept_any_credentials takes any name, which proves nothing: the entry never counts"),
        (with("", "auth = \"require\"\nallow = [\"::/0\"]", "", "[auth]\nusers_file = \"users.txt\"\n[[device]]\naddress = \"2001:678::/48\"\nauth = \"none\""), 14, "device.address", "public addresses are in it, and need no login at the listener \"127.0.0.1:2525\""),
    ] {
        let loaded = accepted(&text);
        let warnings = odd(&loaded);
        assert_eq!(warnings.len(), 1, "{warnings:#?}");
        let Problem { line: at, key: of, reason: why, hint, .. } = warnings[0];
        assert_eq!((*at, of.as_str(), why.as_str()), (Some(line), key, reason));
        assert!(hint.is_some());
    }
}

#[test]
#[rustfmt::skip] // a table, a row a line
fn what_is_no_reason_to_warn() {
    let login = "auth = \"require\"\nproxy_protocol_from = [\"193.99.144.0/24\"]";
    let users = "[auth]\nusers_file = \"users.txt\"";
    for (listener, end) in [
        ("proxy_protocol_from = [\"10.0.0.0/24\", \"fd00::/120\", \"193.99.144.85\", \"2001:678::1\"]", String::new()),
        (login, users.to_owned()),
        // The login is met at one address.
        ("auth = \"offer\"\naccept_any_credentials = true", format!("{users}\n[[device]]\nlogin = \"alarm\"\n[[device]]\naddress = \"10.0.0.1\"\naccept_any_credentials = false")),
    ] {
        let loaded = accepted(&with("", listener, "", &end));
        assert!(odd(&loaded).is_empty(), "{:?}", loaded.warnings);
    }
}

#[test]
fn passwords_end_at_exchange_online() {
    for (end, ends) in [
        ("", true),
        ("[smarthost]\nhost = \"smtp.office365.us\"", true),
        ("[smarthost]\nhost = \"smtp-hve.office365.com\"", false),
        ("[smarthost]\nhost = \"mail.office.test\"", false),
    ] {
        let warnings = accepted(&with("", "", "", end)).warnings;
        assert_eq!(warnings.len(), usize::from(ends), "{warnings:?}");
        if let [warning] = &warnings[..] {
            assert_eq!((warning.line, warning.key.as_str()), (Some(8), "mailbox.password"));
            assert!(warning.to_string().contains("[mailbox.oauth]: docs/howto/oauth.md"));
        }
    }
}

#[cfg(unix)]
#[test]
fn secret_files_that_others_can_read_are_warned_of() {
    for (mode, shown) in [(0o640, "0640"), (0o604, "0604"), (0o644, "0644")] {
        let folder = folder();
        let path = folder.path().join("pw");
        set_mode(&path, mode);
        let loaded = parse_in(&folder, MINIMAL).unwrap();
        let warnings = odd(&loaded);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].reason.contains(&format!("mode {shown}")), "{}", warnings[0]);
        assert_eq!(warnings[0].hint, Some(format!("chmod 600 {}", path.display())));
    }
}

/// As `class Relay` of the rig writes it.
#[test]
fn the_rigs_configuration() {
    let folder = folder();
    let dir = folder.path().display();
    let text = format!(
        r#"
hostname = "relay.example.test"
state_dir = "{dir}/state"

[[listener]]
name = "lan"
address = "127.0.0.1:40001"
tls = "starttls"
tls_profile = "legacy"

[[listener]]
name = "smtps"
address = "127.0.0.1:40002"
tls = "implicit"
tls_profile = "legacy"

[tls]
certificate = "{dir}/relay.crt"
private_key = "{dir}/relay.key"
[limits]
message_size = "150MiB"
sessions = 20000
sessions_per_device = 20000
[smarthost]
host = "localhost"
port = 40003
tls = "starttls"
ca_file = "{dir}/ca.pem"

[[mailbox]]
address = "relay@example.test"
auth = "login"
password = {{ file = "{dir}/pw" }}
max_connections = 20
messages_per_minute = 0
recipients_per_day = 0
send_as = ["*@example.test"]

[delivery]
mode = "stream"

[admin]
address = "127.0.0.1:40004"
[log]
level = "warn"
"#
    );
    let Loaded { config, warnings } = parse_in(&folder, &text).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!((config.listeners.len(), config.mailboxes[0].max_connections), (2, 20));
}

/// A placeholder is no fault where nothing real is sent to, nor is a name that only looks like one.
#[test]
fn addresses_that_are_no_placeholders() {
    for address in ["scanner@myexample.com", "scanner@example.com.mx", "example.com@office.test"] {
        let loaded = accepted(&MINIMAL.replace("scanner@office.test", address));
        assert!(odd(&loaded).is_empty(), "{:?}", loaded.warnings);
    }
    let text = with("", "", "", "[smarthost]\nhost = \"127.0.0.1\"");
    let loaded = accepted(&text.replace("office.test", "example.com"));
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
}

#[test]
fn warnings_come_with_problems_too() {
    let folder = folder();
    let text = MINIMAL.replace("office.test", "example.com").replace("\"pw\"", "\"ca.pem\"");
    let Problems { problems, warnings } = parse_in(&folder, &text).unwrap_err();
    let keys = |list: &[Problem]| list.iter().map(|it| it.key.clone()).collect::<Vec<_>>();
    assert_eq!(
        (keys(&problems), keys(&warnings)),
        (vec!["mailbox.password".into()], vec!["mailbox.address".into()])
    );
}

#[test]
fn places_need_nothing_else_to_be_right() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("smtp-uplift.toml");
    let places = |text: &str| {
        fs::write(&file, text).unwrap();
        config::places(&file)
    };
    let whole = |name: &str| folder.path().join(name);
    assert_eq!(
        places(
            "hostname = 3\nnonsense = true\nstate_dir = \"state\"\n[tls]\ncertificate = \"a.crt\"\nprivate_key = \"a.key\"\n\
             [auth]\nusers_file = \"users.txt\"\n[spool]\ndirectory = \"kept\"\nexpire = 3\n[smarthost]\nport = 0\nreplies_file = \"none.toml\"\n[admin]\naddress = \"\"\ntoken = \"x\"\n[[mailbox]]\npassword = { file = \"none\" }\n"
        )
        .unwrap(),
        Places {
            state_dir: whole("state"),
            certificate: Some(CertificateFiles {
                certificate: whole("a.crt"),
                private_key: whole("a.key")
            }),
            users_file: Some(whole("users.txt")),
            spool: whole("state/kept"),
            replies_file: Some(whole("none.toml")),
            admin: None,
        }
    );
    let Places { state_dir, certificate, users_file, spool, replies_file, admin } =
        places("").unwrap();
    assert_eq!((certificate, users_file, replies_file), (None, None, None));
    assert_eq!(spool, Path::new("/var/lib/smtp-uplift/spool"));
    assert_eq!(
        (state_dir.to_str(), admin),
        (Some("/var/lib/smtp-uplift"), "127.0.0.1:9525".parse().ok())
    );
    let refused = places("[admin]\naddress = \"localhost\"\n").unwrap_err().to_string();
    assert!(refused.contains(":2: admin.address: \"localhost\" is not an address"), "{refused}");
    assert!(places("[admin").unwrap_err().problems[0].line.is_some());
}
