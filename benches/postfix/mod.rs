//! A Postfix that takes mail in plaintext from loopback and throws it away once it is queued: another server's way
//! to keep messages, to be compared with.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use tempfile::TempDir;

/// A running Postfix. Dropping it ends all of its processes.
pub struct Postfix {
    pub address: SocketAddr,
    master: Child,
    _folder: TempDir,
}

/// Starts one, if it is installed and we may.
pub fn start() -> Option<Postfix> {
    let etc = |folder: &Path| folder.join("etc");
    let program = |name: &str| {
        let mut command = Command::new(name);
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
    };
    if !is_root() || program("postconf").arg("-V").output().is_err() {
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let place = folder.path().display();
    fs::create_dir(etc(folder.path())).unwrap();
    fs::create_dir(folder.path().join("data")).unwrap();
    let owned =
        Command::new("chown").arg("postfix").arg(folder.path().join("data")).status().unwrap();
    assert!(owned.success());
    Command::new("chmod").arg("755").arg(folder.path()).status().unwrap();
    fs::write(
        etc(folder.path()).join("main.cf"),
        format!(
            "compatibility_level = 3.6\nqueue_directory = {place}/queue\ndata_directory = {place}/data\n\
             myhostname = bench.example\nmydestination =\nmynetworks = 127.0.0.0/8\ninet_interfaces = 127.0.0.1\n\
             inet_protocols = ipv4\ndefault_transport = discard\nrelay_transport = discard\nmaillog_file =\n\
             default_process_limit = 100\nsmtpd_client_connection_count_limit = 0\nsmtpd_peername_lookup = no\n\
             smtp_dns_support_level = disabled\nalias_maps =\nlocal_recipient_maps =\nbiff = no\n"
        ),
    )
    .unwrap();
    fs::write(
        etc(folder.path()).join("master.cf"),
        format!(
            "{port} inet n - n - 100 smtpd\ncleanup unix n - n - 0 cleanup\nqmgr unix n - n 300 1 qmgr\n\
             rewrite unix - - n - - trivial-rewrite\nbounce unix - - n - 0 bounce\ndefer unix - - n - 0 bounce\n\
             trace unix - - n - 0 bounce\nanvil unix - - n - 1 anvil\ndiscard unix - - n - - discard\n\
             error unix - - n - - error\nretry unix - - n - - error\nscache unix - - n - 1 scache\n"
        ),
    )
    .unwrap();
    fs::create_dir(folder.path().join("queue")).unwrap();
    let checked =
        program("postfix").arg("-c").arg(etc(folder.path())).arg("check").output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    let daemons = program("postconf")
        .arg("-c")
        .arg(etc(folder.path()))
        .args(["-h", "daemon_directory"])
        .output()
        .unwrap();
    let daemons = String::from_utf8_lossy(&daemons.stdout).trim().to_owned();
    let master = program(&format!("{daemons}/master"))
        .arg("-c")
        .arg(etc(folder.path()))
        .arg("-d")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let postfix = Postfix { address, master, _folder: folder };
    for _ in 0..500 {
        if TcpStream::connect(address).is_ok() {
            return Some(postfix);
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("Postfix does not listen");
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

impl Drop for Postfix {
    fn drop(&mut self) {
        let group = format!("-{}", self.master.id());
        let _ = Command::new("kill").args(["-TERM", "--", &group]).status();
        let _ = self.master.wait();
    }
}
