//! A relay in a process of its own, so that its memory can be told from that of devices and smarthost.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixDatagram,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use smtp_uplift::sandbox::{Sandbox, scenario::Scenario};
use tempfile::TempDir;
use tokio::time::Instant;

use super::house::{self, PASSWORD, Plan, STREAM};

/// A running relay; killed when dropped.
pub struct Relay {
    pub address: SocketAddr,
    /// From the start of the process until it has told systemd that it is ready.
    pub start: Duration,
    admin: SocketAddr,
    process: Child,
    house: Arc<(Sandbox, TempDir)>,
}

impl Relay {
    /// Starts one before a stand-in for the smarthost; `more` is appended to its configuration.
    pub async fn start(more: &str) -> Self {
        Self::build(more, &[], STREAM, "").await
    }

    /// As [`Relay::start`], by another program such as env, with lines for the delivery and the mailbox.
    pub async fn build(more: &str, runner: &[String], delivery: &str, mailbox: &str) -> Self {
        let house = stand_in(right_password()).await;
        let port = house.0.address().port();
        Self::run(house, port, runner.to_vec(), more, delivery, mailbox)
    }

    /// As [`Relay::start`], in another mode and before a smarthost that behaves in its own way.
    pub async fn before(scenario: Scenario, delivery: &str) -> Self {
        let house = stand_in(scenario).await;
        let port = house.0.address().port();
        Self::run(house, port, Vec::new(), "", delivery, "")
    }

    /// In a mode, and with something between it and the smarthost: `way` says where that is reached.
    pub async fn over(way: impl FnOnce(SocketAddr) -> SocketAddr, delivery: &str) -> Self {
        let house = stand_in(right_password()).await;
        let port = way(house.0.address()).port();
        Self::run(house, port, Vec::new(), "", delivery, "")
    }

    /// Another relay in the same folder, in another mode, when this one has been killed.
    pub async fn again(&self, delivery: &str) -> Self {
        let _ = Command::new("kill").args(["-KILL", &self.process.id().to_string()]).status();
        let port = self.house.0.address().port();
        Self::run(Arc::clone(&self.house), port, Vec::new(), "", delivery, "")
    }

    fn run(
        house: Arc<(Sandbox, TempDir)>,
        port: u16,
        runner: Vec<String>,
        more: &str,
        delivery: &str,
        mailbox: &str,
    ) -> Self {
        let (sandbox, folder) = &*house;
        // The relay is not asked where it listens: a port that was free a moment ago will do.
        let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (address, admin) = (free(), free());
        let mailbox = format!("password = {{ file = \"password\" }}\n{mailbox}");
        let plan = Plan {
            more,
            delivery,
            mailbox: &mailbox,
            admin: &admin.to_string(),
            ..Plan::default()
        };
        let text = house::configuration(&plan, port, sandbox.certificate(), folder.path())
            .replacen("127.0.0.1:0", &address.to_string(), 1);
        let file = folder.path().join("relay.toml");
        fs::write(&file, text).unwrap();
        let notify = folder.path().join("notify");
        let _ = fs::remove_file(&notify);
        let socket = UnixDatagram::bind(&notify).unwrap();
        let began = Instant::now();
        let mut words: Vec<&str> = runner.iter().map(String::as_str).collect();
        words.push(env!("CARGO_BIN_EXE_smtp-uplift"));
        let process = Command::new(words[0])
            .args(&words[1..])
            .args(["run", "--config"])
            .arg(&file)
            .env("NOTIFY_SOCKET", &notify)
            .env("SMTP_UPLIFT_LOG", "warn")
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        socket.recv(&mut [0; 64]).unwrap();
        let start = began.elapsed();
        Self { address, start, admin, process, house }
    }

    /// Where its configuration and its state are.
    pub fn folder(&self) -> &Path {
        self.house.1.path()
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.admin).unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.admin);
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// A number that `/status` has once.
    pub fn status(&self, name: &str) -> u64 {
        let answer = self.get("/status");
        let (_, value) = answer.split_once(&format!("\"{name}\":")).unwrap();
        let digits =
            value.trim_start().split(|octet: char| !octet.is_ascii_digit()).next().unwrap();
        digits.parse().unwrap()
    }

    /// The value of a metric without labels.
    pub fn metric(&self, name: &str) -> f64 {
        let answer = self.get("/metrics");
        let line = answer.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.map_or(0.0, |value| value.trim().parse().unwrap())
    }

    /// The processor time that it has used so far.
    pub fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap();
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        // utime and stime (proc(5)), of which the command's name has taken two.
        let ticks =
            |field: usize| fields.split(' ').nth(field - 3).unwrap().parse::<u64>().unwrap();
        Duration::from_millis((ticks(14) + ticks(15)) * 10)
    }

    /// A line of the process' status in KiB, such as `VmRSS`.
    pub fn memory(&self, line: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let value = status.lines().find_map(|text| text.strip_prefix(line)).unwrap();
        value.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Linux: the highest mark of memory starts anew.
    pub fn forget_peak(&self) {
        fs::write(format!("/proc/{}/clear_refs", self.process.id()), "5").unwrap();
    }
}

fn right_password() -> Scenario {
    Scenario { password: Some(PASSWORD.into()), ..Scenario::default() }
}

async fn stand_in(scenario: Scenario) -> Arc<(Sandbox, TempDir)> {
    let sandbox = Sandbox::start(([127, 0, 0, 1], 0).into(), scenario).await.unwrap();
    Arc::new((sandbox, tempfile::tempdir().unwrap()))
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
