//! A Postfix as the smarthost, with everything that it has in a temporary folder. As Exchange Online does, it
//! wants TLS 1.2 or newer and a login. What it takes it delivers into a maildir.

use std::{
    fs,
    io::Write as _,
    net::TcpListener,
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
    process::{Command, Stdio},
};

use memchr::memmem;
use smtp_uplift::transport::certificate::Identity;
use tempfile::TempDir;

use crate::{
    common::{MAILBOX, PASSWORD},
    group::{self, Group, OFFICE},
    needs::{Need, command},
};

/// Debian's user `nobody`. Postfix delivers into maildirs as anybody but root and itself.
const NOBODY: u32 = 65_534;

/// A running Postfix. Dropping it ends all of its processes.
pub(crate) struct Postfix {
    /// All that belongs to it; it ends before its folder goes.
    pub(crate) group: Group,
    folder: TempDir,
    /// Where it listens on loopback.
    pub(crate) port: u16,
    /// Its certificate in PEM form, for `localhost`.
    pub(crate) certificate: Vec<u8>,
}

impl Postfix {
    /// What it takes to start one.
    pub(crate) fn needs() -> [Need; 3] {
        [
            ("command -v postfix", "Postfix is not installed: apt-get install postfix"),
            (
                "command -v saslpasswd2 && saslpluginviewer -m LOGIN && saslpluginviewer -m PLAIN",
                "its logins are not installed: apt-get install sasl2-bin libsasl2-modules",
            ),
            ("test $(id -u) = 0", "only root can start Postfix: run the tests as root"),
        ]
        .map(|(probe, otherwise)| Need { probe: probe.to_owned(), otherwise })
    }

    /// Starts one.
    pub(crate) fn start() -> Self {
        // Postfix cannot choose a free port, and one that is free now may be taken in a moment.
        (0..5).find_map(|_| Self::start_on_a_free_port()).expect("every port was taken meanwhile")
    }

    /// What came for a recipient, with CR LF.
    pub(crate) fn arrived(&self, recipient: &str) -> Option<Vec<u8>> {
        let marker = format!("\nDelivered-To: {recipient}\n");
        // There is no folder before the first message.
        fs::read_dir(self.folder.path().join("mail/inbox/new")).ok()?.find_map(|entry| {
            let message = fs::read(entry.unwrap().path()).unwrap();
            let added = &message[..message.len().min(1_000)];
            memmem::find(added, marker.as_bytes()).map(|_| with_carriage_returns(&message))
        })
    }

    /// Its log so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn start_on_a_free_port() -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = tempfile::tempdir().unwrap();
        let certificate = configure(folder.path(), port);
        let etc = folder.path().join("etc");
        // Makes the folders that are missing, each with its owner.
        run(command("postfix").arg("-c").arg(&etc).arg("check"), "");
        let mut postconf = command("postconf");
        let daemons = run(postconf.arg("-c").arg(&etc).args(["-h", "daemon_directory"]), "");
        let master = Path::new(daemons.trim()).join("master");
        // It tells how the master ended.
        let group = Group::start(command(master.to_str().unwrap()).arg("-c").arg(&etc).arg("-d"));
        let postfix = Self { folder, group, port, certificate };
        group::greets("Postfix", port, OFFICE, || postfix.log()).then_some(postfix)
    }
}

/// Writes all that Postfix reads; returns its certificate.
fn configure(folder: &Path, port: u16) -> Vec<u8> {
    let root = folder.to_str().unwrap();
    // Postfix' processes run as several users, who all have to get in.
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    for name in ["etc", "etc/sasl", "queue", "mail"] {
        fs::create_dir(folder.join(name)).unwrap();
    }
    chown(folder.join("mail"), Some(NOBODY), Some(NOBODY)).unwrap();
    let write = |name: &str, text: &str| fs::write(folder.join("etc").join(name), text).unwrap();
    write("main.cf", &MAIN.replace("ROOT", root));
    write("master.cf", &MASTER.replace("PORT", &port.to_string()));
    write("recipients", "/^[a-z]+-[0-9]+@office\\.example$/ inbox/\n");
    write("sasl/smtpd.conf", &SASL.replace("ROOT", root));
    let (user, realm) = MAILBOX.split_once('@').unwrap();
    let logins = folder.join("etc/logins");
    run(
        command("saslpasswd2").args(["-p", "-c", "-u", realm, "-f"]).arg(&logins).arg(user),
        PASSWORD,
    );
    fs::set_permissions(&logins, fs::Permissions::from_mode(0o644)).unwrap();
    let identity = Identity::make(&["localhost"]).unwrap();
    let certificate = identity.certificate.to_pem().unwrap();
    let key = identity.key.private_key_to_pem_pkcs8().unwrap();
    fs::write(folder.join("etc/chain.pem"), [key, certificate.clone()].concat()).unwrap();
    certificate
}

/// Runs a command to its end; returns what it says on stdout.
fn run(command: &mut Command, input: &str) -> String {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A maildir has the line ends of its system.
fn with_carriage_returns(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + message.len() / 16);
    for line in message.split_inclusive(|octet| *octet == b'\n') {
        match line.strip_suffix(b"\n") {
            Some(text) => out.extend_from_slice(&[text, b"\r\n"].concat()),
            None => out.extend_from_slice(line),
        }
    }
    out
}

const MAIN: &str = "\
compatibility_level = 3.6
queue_directory = ROOT/queue
data_directory = ROOT/data
maillog_file = ROOT/log
maillog_file_prefixes = ROOT
myhostname = office.example
mydestination =
mynetworks = 192.0.2.1
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
alias_maps =
alias_database =
local_recipient_maps =
# The relay connects from an address of Postfix' own, for which it would complete header fields.
local_header_rewrite_clients =
# No pause when mail comes in faster than it goes out.
in_flow_delay = 0
virtual_mailbox_domains = office.example
virtual_mailbox_maps = regexp:ROOT/etc/recipients
virtual_mailbox_base = ROOT/mail
virtual_uid_maps = static:65534
virtual_gid_maps = static:65534
smtpd_tls_chain_files = ROOT/etc/chain.pem
smtpd_tls_security_level = encrypt
smtpd_tls_protocols = >=TLSv1.2
smtpd_tls_mandatory_protocols = >=TLSv1.2
smtpd_tls_auth_only = yes
smtpd_tls_received_header = yes
smtpd_sasl_auth_enable = yes
cyrus_sasl_config_path = ROOT/etc/sasl
smtpd_sasl_authenticated_header = yes
smtpd_relay_restrictions = permit_sasl_authenticated, reject
smtpd_recipient_restrictions = permit_sasl_authenticated, reject
";

const MASTER: &str = "\
127.0.0.1:PORT inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
error unix - - n - - error
retry unix - - n - - error
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
";

/// Debian's Postfix looks for it in `sasl` beside its configuration, whatever `cyrus_sasl_config_path` says.
const SASL: &str = "\
pwcheck_method: auxprop
auxprop_plugin: sasldb
sasldb_path: ROOT/etc/logins
mech_list: PLAIN LOGIN
";
