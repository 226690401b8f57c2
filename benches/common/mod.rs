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
        let folder = tempfile::tempdir().unwrap();
        let scenario = Scenario { password: Some(PASSWORD.into()), ..Scenario::default() };
        let sandbox = Sandbox::start(([127, 0, 0, 1], 0).into(), scenario).await.unwrap();
        let house = Arc::new((sandbox, folder));
        Self::run(house, runner.to_vec(), more, delivery, mailbox)
    }

    /// Another relay in the same folder, in another mode, when this one has been killed.
    pub async fn again(&self, delivery: &str) -> Self {
        let _ = Command::new("kill").args(["-KILL", &self.process.id().to_string()]).status();
        Self::run(Arc::clone(&self.house), Vec::new(), "", delivery, "")
    }

    fn run(
        house: Arc<(Sandbox, TempDir)>,
        runner: Vec<String>,
        more: &str,
        delivery: &str,
        mailbox: &str,
    ) -> Self {
        let (sandbox, folder) = &*house;
        let port = sandbox.address().port();
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

    /// The value of a metric without labels.
    pub fn metric(&self, name: &str) -> f64 {
        let mut stream = TcpStream::connect(self.admin).unwrap();
        let request =
            format!("GET /metrics HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.admin);
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
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

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
