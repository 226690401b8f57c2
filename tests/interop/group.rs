//! The processes of a server that a test has started: all of them end with it.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::TcpStream,
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use crate::needs::command;

const TICK: Duration = Duration::from_millis(10);
/// How many ticks a start or a stop may take: 20 s.
const TICKS: u32 = 2_000;

/// Ends a daemon when stdin does: when it is dropped, and also when the tests are killed. The master leads a
/// process group, and takes it along.
const GUARD: &str = "\
setsid \"$@\" </dev/null >/dev/null 2>&1 &
echo $!
read -r _
kill -s TERM $!
wait $!
kill -s KILL -- -$! 2>/dev/null
";

/// A running daemon with what it has started. Dropping it ends them all.
pub(crate) struct Group {
    guard: Child,
    /// The process group.
    pub(crate) id: String,
}

impl Group {
    /// Starts a daemon.
    pub(crate) fn start(daemon: &Command) -> Self {
        let mut guard = command("sh")
            .args(["-c", GUARD, "sh"])
            .arg(daemon.get_program())
            .args(daemon.get_args())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let mut id = String::new();
        BufReader::new(guard.stdout.take().unwrap()).read_line(&mut id).unwrap();
        Self { guard, id: id.trim().to_owned() }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
        for _ in 0..TICKS {
            if alive(&self.id) == 0 {
                return;
            }
            thread::sleep(TICK);
        }
    }
}

/// How a smarthost greets.
pub(crate) const OFFICE: &str = "220 office.example ";

/// Waits until a server greets as it should; false if somebody else has its port.
pub(crate) fn greets(name: &str, port: u16, greeting: &str, log: impl Fn() -> String) -> bool {
    for _ in 0..TICKS {
        if let Ok(stream) = TcpStream::connect(("127.0.0.1", port)) {
            stream.set_read_timeout(Some(TICK * TICKS)).unwrap();
            let mut heard = String::new();
            let _ = BufReader::new(stream).read_line(&mut heard);
            return heard.starts_with(greeting);
        }
        if log().contains("Address already in use") {
            return false;
        }
        thread::sleep(TICK);
    }
    panic!("{name} does not listen: {}", log());
}

/// How many processes of a group still run; those that are over and wait for their parent's notice do not.
pub(crate) fn alive(group: &str) -> usize {
    let running = |stat: &String| {
        // proc_pid_stat(5): behind the name, which ends in the last bracket, stand state, parent and group.
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_whitespace();
        let state = fields.next()?;
        Some(state != "Z" && state != "X" && fields.nth(1)? == group)
    };
    let stats = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        // A process that ends meanwhile has no such file.
        fs::read_to_string(entry.ok()?.path().join("stat")).ok()
    });
    stats.filter(|stat| running(stat) == Some(true)).count()
}
