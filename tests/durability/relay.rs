//! The program as a child, on a folder and a port that outlive it, before a sandbox that does too.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use smtp_uplift::{sandbox::Sandbox, spool::queue::State};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::common::{self, Plan};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_smtp-uplift");
/// Long enough for a machine that is busy; nothing here waits for its end.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Everything that a killed relay leaves behind.
pub(crate) struct House {
    pub(crate) sandbox: Sandbox,
    pub(crate) address: SocketAddr,
    pub(crate) spool: PathBuf,
    pub(crate) config: PathBuf,
    _folder: TempDir,
}

/// A relay that runs.
pub(crate) struct Relay {
    child: Child,
    log: Receiver<String>,
    said: Vec<String>,
    /// Its admin address, once it is ready.
    admin: Option<SocketAddr>,
}

impl House {
    /// A house whose relay is not started yet.
    pub(crate) async fn build(plan: Plan<'_>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let sandbox =
            Sandbox::start(([127, 0, 0, 1], 0).into(), plan.scenario.clone()).await.unwrap();
        let address = free_address();
        let more = format!("[spool]\nretry = \"1s, 1s\"\n{}", plan.more);
        let listener = if plan.listener.is_empty() { "tls = \"none\"" } else { plan.listener };
        let plan = Plan { more: &more, listener, ..plan };
        let text = common::configuration(
            &plan,
            sandbox.address().port(),
            sandbox.certificate(),
            folder.path(),
        );
        let config = folder.path().join("smtp-uplift.toml");
        fs::write(&config, text.replacen("127.0.0.1:0", &address.to_string(), 1)).unwrap();
        let spool = folder.path().join("state/spool");
        Self { sandbox, address, spool, config, _folder: folder }
    }

    /// How it is run.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(["run", "--config"]).arg(&self.config);
        command
    }

    pub(crate) fn start(&self) -> Relay {
        Relay::start(self.command())
    }
}

impl Relay {
    pub(crate) fn start(mut command: Command) -> Self {
        command.env("SMTP_UPLIFT_LOG", "info").stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (lines, log) = mpsc::channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        // Read to its end, so that the program never waits for room in the pipe.
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = lines.send(line);
            }
        });
        Self { child, log, said: Vec::new(), admin: None }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until devices are served.
    pub(crate) async fn ready(mut self) -> Self {
        let end = Instant::now() + PATIENCE;
        while self.admin.is_none() {
            self.listen();
            assert!(Instant::now() < end, "not ready: {:#?}", self.said);
            if let Some(status) = self.child.try_wait().unwrap() {
                self.listen();
                panic!("it ended before it was ready: {status}: {:#?}", self.said);
            }
            let ready = self.said.iter().find_map(|line| line.split_once(" admin=\""));
            self.admin = ready.and_then(|(_, rest)| rest.split('"').next()?.parse().ok());
            sleep(Duration::from_millis(2)).await;
        }
        self
    }

    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin.unwrap()
    }

    fn listen(&mut self) {
        self.said.extend(self.log.try_iter());
    }

    /// What it has said so far.
    pub(crate) fn said(&mut self) -> String {
        self.listen();
        self.said.join("\n")
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits for its end, whatever brings that about.
    pub(crate) async fn ended(&mut self, patience: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            if Instant::now() >= end {
                return None;
            }
            sleep(Duration::from_millis(2)).await;
        }
    }

    pub(crate) async fn kill(mut self) {
        self.signal(Signal::KILL);
        self.ended(PATIENCE).await.unwrap();
    }

    /// Asks it to stop, which it does well.
    pub(crate) async fn stop(mut self) {
        self.signal(Signal::TERM);
        let status = self.ended(PATIENCE).await;
        assert_eq!(status.and_then(|status| status.code()), Some(0), "{}", self.said());
    }

    /// How many messages of its spool are in which state, *done* aside.
    pub(crate) async fn spool(&self) -> Vec<(State, u64)> {
        let answer = common::get(self.admin(), "/status", "").await;
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let status: serde_json::Value = serde_json::from_str(body).unwrap();
        let count = |state: State| status["spool"][state.as_str()].as_u64().unwrap();
        let states = State::ALL.into_iter().filter(|state| *state != State::Done);
        states.map(|state| (state, count(state))).filter(|(_, count)| *count > 0).collect()
    }

    /// Whether `/readyz` says so, with its words.
    pub(crate) async fn is_ready(&self) -> (bool, String) {
        let answer = common::get(self.admin(), "/readyz", "").await;
        (answer.starts_with("HTTP/1.1 200 "), answer.lines().last().unwrap_or_default().to_owned())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            self.listen();
            let wrong = |line: &&String| line.contains("ERROR") || line.contains("WARN");
            let wrong: Vec<_> = self.said.iter().filter(wrong).rev().take(20).collect();
            eprintln!("the relay had said, youngest first: {wrong:#?}");
        }
    }
}

/// An address for a relay that comes back to it: below the ports that outgoing connections are given.
fn free_address() -> SocketAddr {
    loop {
        let address = SocketAddr::from(([127, 0, 0, 1], fastrand::u16(20_000..32_000)));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}
