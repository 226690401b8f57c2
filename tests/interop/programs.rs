//! The programs that play devices: what each is, how it is called, and the form it wants a message in.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{process::Command, time::timeout};

use crate::{
    dialogue,
    needs::{self, Need},
};

/// How long one program may take. Some of them compute TLS in Python, on a machine that has other work.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program that sends mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    OpenSsl,
    GnuTls,
    Curl,
    Swaks,
    Msmtp,
    Smtplib,
    TlsLite,
}

/// What the connection is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Security {
    Plain,
    StartTls,
    Implicit,
}

/// One message to be sent.
pub(crate) struct Job<'a> {
    pub(crate) port: u16,
    pub(crate) security: Security,
    /// User and password, if the program is to log in.
    pub(crate) login: Option<(&'a str, &'a str)>,
    pub(crate) from: &'a str,
    pub(crate) to: &'a str,
    pub(crate) message: &'a [u8],
    /// The program's own words for version and cipher.
    pub(crate) options: &'a [&'a str],
    /// A folder for files.
    pub(crate) folder: &'a Path,
}

impl Program {
    pub(crate) const ALL: [Self; 7] = [
        Self::OpenSsl,
        Self::GnuTls,
        Self::Curl,
        Self::Swaks,
        Self::Msmtp,
        Self::Smtplib,
        Self::TlsLite,
    ];

    /// The program of that name.
    pub(crate) fn named(name: &str) -> Self {
        Self::ALL.into_iter().find(|program| program.name() == name).unwrap()
    }

    /// What has to be installed.
    pub(crate) fn need(self) -> Need {
        let of_python = |module: &str| format!("\"{}\" -c 'import {module}'", python());
        let (probe, otherwise) = match self {
            Self::OpenSsl => {
                ("openssl version".into(), "openssl is not installed: apt-get install openssl")
            }
            Self::GnuTls => (
                "gnutls-cli --version".into(),
                "gnutls-cli is not installed: apt-get install gnutls-bin",
            ),
            Self::Curl => ("curl --version".into(), "curl is not installed: apt-get install curl"),
            Self::Swaks => (
                "swaks --version && perl -MNet::SSLeay -e 1".into(),
                "swaks with TLS is not installed: apt-get install swaks libnet-ssleay-perl",
            ),
            Self::Msmtp => {
                ("msmtp --version".into(), "msmtp is not installed: apt-get install msmtp")
            }
            Self::Smtplib => (
                of_python("smtplib, ssl"),
                "Python 3 is not installed: apt-get install python3, or name one in UPLIFT_INTEROP_PYTHON",
            ),
            Self::TlsLite => (
                of_python("tlslite"),
                "tlslite-ng is not installed: pip install tlslite-ng in a venv, and name the venv's python in \
                 UPLIFT_INTEROP_PYTHON",
            ),
        };
        Need { probe, otherwise }
    }

    /// Sends a message; an error is what the program said.
    pub(crate) async fn send(self, job: &Job<'_>) -> Result<(), String> {
        let mut command = Command::from(self.command(job));
        command.kill_on_drop(true);
        let sending = async {
            match self {
                Self::OpenSsl | Self::GnuTls => dialogue::hold(command, job).await,
                _ => finish(command).await,
            }
        };
        timeout(PATIENCE, sending)
            .await
            .unwrap_or_else(|_| Err("takes longer than a minute".into()))
    }

    fn command(self, job: &Job<'_>) -> std::process::Command {
        let Job { port, security, login, from, to, .. } = *job;
        let mut command = match self {
            Self::Smtplib | Self::TlsLite => needs::command(&python()),
            _ => needs::command(self.name()),
        };
        // Nobody's own settings.
        command.env("HOME", job.folder).stdin(Stdio::null());
        match self {
            Self::OpenSsl => {
                command.args(["s_client", "-quiet", "-connect", &format!("127.0.0.1:{port}")]);
                if security == Security::StartTls {
                    command.args(["-starttls", "smtp"]);
                }
            }
            Self::GnuTls => {
                command.args(["--insecure", "--logfile=/dev/stderr", &format!("--port={port}")]);
                if security == Security::StartTls {
                    command.arg("--starttls-proto=smtp");
                }
                command.arg("127.0.0.1");
            }
            Self::Curl => {
                let scheme = if security == Security::Implicit { "smtps" } else { "smtp" };
                command.args(["-q", "--silent", "--show-error", "--insecure", "--noproxy", "*"]);
                command.args(["--url", &format!("{scheme}://127.0.0.1:{port}/copier")]);
                command.args(["--mail-from", from, "--mail-rcpt", to]);
                command.arg("--upload-file").arg(self.file(job));
                if security == Security::StartTls {
                    command.arg("--ssl-reqd");
                }
                if let Some((user, password)) = login {
                    command.args(["--user", &format!("{user}:{password}")]);
                }
            }
            Self::Swaks => {
                command.args(["--server", "127.0.0.1", "--port", &port.to_string()]);
                command.args(["--helo", "copier", "--from", from, "--to", to]);
                command.arg("--data").arg(format!("@{}", self.file(job).display()));
                match security {
                    Security::Plain => {}
                    Security::StartTls => _ = command.arg("--tls"),
                    Security::Implicit => _ = command.arg("--tls-on-connect"),
                }
                if let Some((user, password)) = login {
                    command.args(["--auth", "LOGIN", "--auth-user", user]);
                    command.args(["--auth-password", password]);
                }
            }
            Self::Msmtp => {
                command.args(["--host=127.0.0.1", &format!("--port={port}"), "--domain=copier"]);
                let on = |on| if on { "on" } else { "off" };
                command.arg(format!("--tls={}", on(security != Security::Plain)));
                command.arg(format!("--tls-starttls={}", on(security == Security::StartTls)));
                command.args(["--tls-certcheck=off", &format!("--from={from}")]);
                if let Some((user, password)) = login {
                    command.args(["--auth=plain", &format!("--user={user}")]);
                    command.arg(format!("--passwordeval=echo {password}"));
                }
                command.stdin(fs::File::open(self.file(job)).unwrap());
            }
            Self::Smtplib | Self::TlsLite => {
                let script = format!("tests/interop/device_{}.py", self.name());
                // It warns of old versions.
                command.args(["-W", "ignore"]);
                command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join(script));
                command.arg(match security {
                    Security::Plain => "plain",
                    Security::StartTls => "starttls",
                    Security::Implicit => "implicit",
                });
                command.args([&port.to_string(), from, to]).arg(self.file(job));
            }
        }
        command.args(job.options);
        match (self, login) {
            (Self::Smtplib, Some((user, password))) => _ = command.args([user, password]),
            // The recipient stands behind all options.
            (Self::Msmtp, _) => _ = command.arg(to),
            _ => {}
        }
        command
    }

    /// Its name in tables and messages.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::OpenSsl => "openssl",
            Self::GnuTls => "gnutls-cli",
            Self::Curl => "curl",
            Self::Swaks => "swaks",
            Self::Msmtp => "msmtp",
            Self::Smtplib => "smtplib",
            Self::TlsLite => "tlslite",
        }
    }

    /// Writes the message as this program wants it.
    fn file(self, job: &Job<'_>) -> PathBuf {
        let text = match self {
            // A pipe on a Unix system has its line ends.
            Self::Msmtp => job.message.iter().copied().filter(|octet| *octet != b'\r').collect(),
            // It puts a line end behind whatever it is given.
            Self::Swaks => job.message.strip_suffix(b"\r\n").unwrap_or(job.message).to_vec(),
            _ => job.message.to_vec(),
        };
        let path = job.folder.join(job.to);
        fs::write(&path, text).unwrap();
        path
    }
}

async fn finish(mut command: Command) -> Result<(), String> {
    let output = command.output().await.map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(format!("{}: {}", output.status, String::from_utf8_lossy(&said)))
}

fn python() -> String {
    env::var("UPLIFT_INTEROP_PYTHON").unwrap_or_else(|_| "python3".to_owned())
}
