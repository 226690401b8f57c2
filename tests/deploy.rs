//! What stands in `deploy/`: it fits the program, and the program behaves as it says there.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use std::{
    env, fs,
    io::{self, BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

use common::{MESSAGE, PASSWORD, Plan};
use smtp_uplift::{
    config,
    sandbox::{Sandbox, device::Device},
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

const PROGRAM: &str = env!("CARGO_BIN_EXE_smtp-uplift");
/// Long enough for a machine that is busy; nothing here waits for its end.
const PATIENCE: Duration = Duration::from_secs(60);

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

fn unit() -> String {
    read("deploy/systemd/smtp-uplift.service")
}

fn drop_in() -> String {
    read("deploy/systemd/smtp-uplift.service.d/10-local.conf")
}

/// The only value of a setting.
fn setting<'a>(unit: &'a str, key: &str) -> &'a str {
    let mut values = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let value = values.next().unwrap_or_else(|| panic!("no {key}="));
    assert_eq!(values.next(), None, "{key}= stands there once");
    value
}

fn duration(text: &str) -> Duration {
    humantime::parse_duration(text).unwrap()
}

/// The configuration that exchange-online.toml comes down to, with a password that can be read.
fn defaults() -> config::Config {
    let text = read("config/exchange-online.toml")
        .replace("{ file = \"/etc/smtp-uplift/mailbox-password\" }", "\"x\"");
    config::parse(&text, Path::new("smtp-uplift.toml")).unwrap().config
}

/// Output of a program, or `None` where it is not installed: said aloud, and a failure with
/// UPLIFT_INTEROP=require.
fn tool(command: &mut Command) -> Option<(bool, String)> {
    match command.output() {
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            Some((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
        }
        Err(error) if env::var_os("UPLIFT_INTEROP").is_some_and(|value| value == "require") => {
            panic!("{command:?}: {error}")
        }
        Err(error) => {
            // Past the test harness, which shows the words of failed tests only.
            let mut stderr = io::stderr();
            writeln!(stderr, "SKIPPED: {command:?}: {error}").unwrap();
            None
        }
    }
}

/// A unit in a folder, with a program that is there.
fn installed(unit: &str, drop_in: Option<&str>) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("smtp-uplift.service");
    fs::write(&path, unit.replace("/usr/local/bin/smtp-uplift", PROGRAM)).unwrap();
    if let Some(drop_in) = drop_in {
        let local = folder.path().join("smtp-uplift.service.d");
        fs::create_dir(&local).unwrap();
        fs::write(local.join("10-local.conf"), drop_in).unwrap();
    }
    (folder, path)
}

#[test]
fn systemd_takes_the_unit_and_finds_little_exposed() {
    // Everything that the example offers, in force.
    let all: String = drop_in()
        .lines()
        .map(|line| {
            line.strip_prefix('#').filter(|rest| rest.contains('=') && !rest.starts_with(' '))
        })
        .map(|setting| format!("{}\n", setting.unwrap_or_default()))
        .collect();
    assert_eq!(all.lines().filter(|line| !line.is_empty()).count(), 10, "{all}");
    for drop_in in [None, Some(format!("[Service]\n{all}"))] {
        let (_folder, path) = installed(&unit(), drop_in.as_deref());
        let verify = tool(
            Command::new("systemd-analyze").args(["verify", "--recursive-errors=no"]).arg(&path),
        );
        let Some(verified) = verify else { return };
        assert_eq!(verified, (true, String::new()), "{drop_in:?}");
        // In tenths: 2.0 of 10.0 at the most.
        let security = tool(
            Command::new("systemd-analyze")
                .args(["security", "--offline=true", "--threshold=20", "--no-pager"])
                .arg(&path),
        );
        let (well, said) = security.unwrap();
        assert!(well && said.contains("Overall exposure level"), "{said}");
    }
}

#[test]
fn the_unit_starts_the_program_again_only_where_that_may_help() {
    let unit = unit();
    let command: Vec<_> = setting(&unit, "ExecStart").split(' ').collect();
    assert_eq!(command[0], "/usr/local/bin/smtp-uplift");
    let folder = tempfile::tempdir().unwrap();
    let ends = |change: &dyn Fn(&mut Command)| {
        let mut program = Command::new(PROGRAM);
        program.args(&command[1..]);
        change(&mut program);
        program.output().unwrap().status.code().unwrap()
    };
    assert_eq!(ends(&|program| _ = program.arg("--help")), 0);

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let temporary = folder.path().join("taken.toml");
    let text = format!(
        "hostname = \"relay.example\"\n[[listener]]\naddress = \"{}\"\ntls = \"none\"\n\
         [[mailbox]]\naddress = \"a@b.example\"\nauth = \"none\"\n",
        taken.local_addr().unwrap()
    );
    fs::write(&temporary, text).unwrap();
    let run = |file: &Path| {
        let mut program = Command::new(PROGRAM);
        program.args(["run", "--config"]).arg(file).output().unwrap().status.code().unwrap()
    };
    assert_eq!(run(&temporary), 75, "an address that is taken may be free later");
    let hopeless = [ends(&|program| _ = program.arg("--bogus")), run(&folder.path().join("none"))];
    assert_eq!(
        setting(&unit, "RestartPreventExitStatus"),
        hopeless.map(|code| code.to_string()).join(" ")
    );
    assert_eq!(setting(&unit, "Restart"), "on-failure");
}

#[test]
fn there_is_time_and_room_for_what_the_configuration_says() {
    let (unit, compose) = (unit(), read("deploy/container/compose.yaml"));
    let config = defaults();
    let drain = config.drain_timeout + Duration::from_secs(5);
    assert!(duration(setting(&unit, "TimeoutStopSec")) > drain);
    let grace = compose.lines().find_map(|line| line.trim().strip_prefix("stop_grace_period: "));
    assert!(duration(grace.unwrap()) > drain);
    let files = compose.lines().find_map(|line| line.trim().strip_prefix("nofile: ")).unwrap();
    let files = files.split(' ').next().unwrap();
    assert_eq!(setting(&unit, "LimitNOFILE"), files);
    assert!(files.parse::<usize>().unwrap() > 2 * config.limits.sessions + 64);
    let state = setting(&unit, "StateDirectory");
    assert_eq!(config.state_dir, Path::new("/var/lib").join(state));
    // The one of the example is long enough for the drain timeout that it speaks of.
    let drop_in = drop_in();
    let longer = drop_in.split_once("drain_timeout = \"").unwrap().1.split_once('"').unwrap().0;
    let stop = setting(&drop_in, "#TimeoutStopSec");
    assert!(duration(stop) > duration(longer) + Duration::from_secs(5));
}

#[test]
fn the_image_is_made_of_what_is_there() {
    let containerfile = read("deploy/container/Containerfile");
    let words = |keyword: &str| {
        let line = containerfile.lines().filter_map(|line| line.strip_prefix(keyword));
        line.flat_map(|line| line.split_whitespace().map(str::to_owned)).collect::<Vec<_>>()
    };
    let config = defaults();
    let mut ports: Vec<_> = config.listeners.iter().map(|listener| listener.address).collect();
    ports.extend(config.admin.map(|admin| admin.address));
    let ports: Vec<_> = ports.iter().map(|address| address.port().to_string()).collect();
    assert_eq!(words("EXPOSE "), ports);
    assert_eq!(words("VOLUME "), [config.state_dir.to_str().unwrap()]);
    // The context is what .dockerignore lets in, and each source is in it.
    let ignore = read(".dockerignore");
    let let_in: Vec<_> = ignore.lines().filter_map(|line| line.strip_prefix('!')).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for line in containerfile.lines().filter_map(|line| line.strip_prefix("COPY ")) {
        let mut sources: Vec<_> = line.split(' ').collect();
        sources.pop();
        for source in sources.into_iter().filter(|_| !line.starts_with("--from=")) {
            assert!(root.join(source).exists(), "{source}");
            let covers = |pattern: &&&str| match pattern.strip_suffix('*') {
                Some(start) => source.starts_with(start),
                None => source == **pattern,
            };
            assert!(let_in.iter().find(covers).is_some(), "{source} is kept out by .dockerignore");
        }
    }
    // What the sources take in from elsewhere has to be there as well.
    let copied = |folder: &str| {
        containerfile
            .lines()
            .any(|line| line.starts_with("COPY ") && line.contains(&format!(" {folder} ")))
    };
    for (file, text) in sources(&root.join("src")) {
        for taken in text.split("include_str!(\"").skip(1).filter_map(|rest| rest.split('"').next())
        {
            let path = fs::canonicalize(file.parent().unwrap().join(taken)).unwrap();
            let inside = path.strip_prefix(fs::canonicalize(root).unwrap()).unwrap();
            let folder = inside.iter().next().unwrap().to_str().unwrap();
            assert!(copied(folder), "{} is taken in and not copied", inside.display());
        }
    }
    let entry: Vec<_> = ["ENTRYPOINT ", "CMD "].iter().flat_map(|keyword| words(keyword)).collect();
    assert_eq!(entry, ["[\"smtp-uplift\"]", "[\"run\"]"]);
}

/// The real program before a smarthost on loopback, started as the unit does.
struct Relay {
    child: Child,
    log: Receiver<String>,
    address: SocketAddr,
    sandbox: Sandbox,
    _folder: TempDir,
}

impl Relay {
    async fn start(drain_timeout: &str) -> Self {
        let unit = unit();
        let (credential, _) = setting(&unit, "LoadCredential").split_once(':').unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(credential), PASSWORD).unwrap();
        let mailbox = format!("password = {{ credential = \"{credential}\" }}");
        let plan = Plan { mailbox: &mailbox, ..Plan::default() };
        let sandbox =
            Sandbox::start(([127, 0, 0, 1], 0).into(), plan.scenario.clone()).await.unwrap();
        let text = common::configuration(
            &plan,
            sandbox.address().port(),
            sandbox.certificate(),
            folder.path(),
        );
        let file = folder.path().join("smtp-uplift.toml");
        fs::write(&file, format!("drain_timeout = \"{drain_timeout}\"\n{text}")).unwrap();
        let mut child = Command::new(PROGRAM)
            .args(["run", "--config"])
            .arg(file)
            .env("CREDENTIALS_DIRECTORY", folder.path())
            .env_remove("SMTP_UPLIFT_LOG")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (lines, log) = mpsc::channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        // Read to its end, so that the program never waits for room in the pipe.
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = lines.send(line);
            }
        });
        let mut relay = Self { child, log, address: sandbox.address(), sandbox, _folder: folder };
        let listening = relay.says(" listening ");
        let address = listening.split_once(" address=").unwrap().1.split(' ').next().unwrap();
        relay.address = address.parse().unwrap();
        relay.says(" ready ");
        relay
    }

    /// The next line of the log that holds some words.
    fn says(&mut self, words: &str) -> String {
        let mut before = Vec::new();
        loop {
            match self.log.recv_timeout(PATIENCE) {
                Ok(line) if line.contains(words) => return line,
                Ok(line) => before.push(line),
                Err(error) => panic!("{words:?}: {error} after {before:#?}"),
            }
        }
    }

    fn terminate(&self) {
        let pid = self.child.id().to_string();
        // The shell's own: a machine without procps has it too.
        let kill = Command::new("sh").args(["-c", "kill -TERM $0", &pid]).status().unwrap();
        assert!(kill.success());
    }

    async fn ended(&mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "still running");
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// A device that is in the middle of its mail data, and one that has said nothing.
    async fn busy_and_idle(&self) -> (Device, Device) {
        let idle = Device::connect(self.address).await.unwrap();
        let mut busy = Device::connect(self.address).await.unwrap();
        busy.say("EHLO copier").await.unwrap();
        for (line, code) in [("MAIL FROM:<a@x>", 250), ("RCPT TO:<b@x>", 250), ("DATA", 354)] {
            assert_eq!(busy.say(line).await.unwrap().code.get(), code, "{line}");
        }
        busy.write("Subject: half\r\n\r\n").await.unwrap();
        (busy, idle)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The idle one hears that the relay stops, and so draining has begun.
async fn is_sent_away(mut idle: Device) {
    let said = timeout(PATIENCE, idle.read()).await.unwrap().unwrap();
    assert_eq!(said.to_string(), "421 4.3.2 the relay is stopping, closing");
    assert!(idle.is_closed().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_lets_a_message_finish_and_ends_well() {
    let mut relay = Relay::start("1h").await;
    let (mut busy, idle) = relay.busy_and_idle().await;
    relay.terminate();
    is_sent_away(idle).await;
    // Nobody is let in any more; who slips in just now hears 421 as well.
    let end = Instant::now() + PATIENCE;
    while let Ok(late) = Device::connect(relay.address).await {
        is_sent_away(late).await;
        assert!(Instant::now() < end, "the door is still open");
    }
    busy.write(MESSAGE).await.unwrap();
    assert!(busy.say(".").await.unwrap().to_string().starts_with("250 2.0.0"));
    assert_eq!(busy.read().await.unwrap().code.get(), 421);
    // Long before the drain timeout: nothing is left to wait for.
    assert_eq!(relay.ended().await.code(), Some(0));
    assert_eq!(relay.sandbox.deliveries().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sigterm_does_not_wait() {
    let mut relay = Relay::start("1h").await;
    let (mut busy, idle) = relay.busy_and_idle().await;
    relay.terminate();
    is_sent_away(idle).await;
    relay.terminate();
    assert!(timeout(PATIENCE, busy.is_closed()).await.unwrap(), "cut off without a word");
    assert_eq!(relay.ended().await.code(), Some(0));
    assert_eq!(relay.sandbox.deliveries().len(), 0, "half a message is never sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_holds_up_the_end_beyond_the_drain_timeout() {
    let mut relay = Relay::start("200ms").await;
    let (mut busy, idle) = relay.busy_and_idle().await;
    relay.terminate();
    is_sent_away(idle).await;
    relay.says("drain timeout: what is left is dropped");
    assert!(timeout(PATIENCE, busy.is_closed()).await.unwrap());
    assert_eq!(relay.ended().await.code(), Some(0));
    assert_eq!(relay.sandbox.deliveries().len(), 0);
}

/// Every source file of a folder with its text.
fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            found.push((path, text));
        }
    }
    found
}
