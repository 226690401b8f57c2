//! The commands. Errors go to stderr in one line with the next step; exit codes are those of sysexits.h
//! where it has one.

#![warn(clippy::print_stderr, reason = "it panics when nobody reads: say! and complain do not")]

/// `println!` for commands: it panics when whoever reads stdout has gone, this does not.
macro_rules! say {
    () => { say!("") };
    ($($text:tt)*) => { $crate::cli::say(format_args!($($text)*)) };
}

mod cert;
mod check;
mod completions;
mod container;
mod demo;
mod doctor;
mod explain;
mod file;
mod healthcheck;
mod init;
mod login;
mod man;
mod passwd;
mod queue;
mod run;
mod sandbox;

use std::{
    fmt,
    future::Future,
    io::{self, Write as _},
    path::PathBuf,
    sync::OnceLock,
};

use clap::{Parser, Subcommand};

/// All went well.
const OK: u8 = 0;
/// A check failed, or what was asked for could not be done.
const FAILED: u8 = 1;
/// The command line is wrong.
const USAGE: u8 = 64;
/// Something that may be better later.
const TEMPORARY: u8 = 75;
/// The configuration is wrong.
const CONFIGURATION: u8 = 78;

/// A smarthost for devices that only speak old TLS: takes their mail and submits it to Exchange Online over
/// TLS 1.2+.
#[derive(Parser)]
#[command(name = "smtp-uplift", version, disable_help_subcommand = true)]
#[command(after_help = FIRST_STEPS, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const FIRST_STEPS: &str = "\
First steps:
  smtp-uplift demo --once  shows on this machine what it does, without configuration and network
  smtp-uplift init         writes a configuration, and says what to do next

Exit codes: 0, 1 a check failed, 64 usage, 75 temporary, 78 configuration.";

#[derive(Subcommand)]
enum Command {
    /// Write a first configuration with remarks, and a certificate for devices
    Init(init::Args),
    /// Check a configuration and say every problem at once
    Check(check::Args),
    /// Run the relay
    Run(run::Args),
    /// Show the whole thing on this machine: an old printer, the relay, an Exchange Online stand-in
    Demo(demo::Args),
    /// Walk the way to the smarthost step by step, and say what is wrong and what to do
    Doctor(doctor::Args),
    /// Sign in for a mailbox that logs in with tokens
    Login(login::Args),
    /// Say what a reply means that a printer, a log or a bounce shows, and what to do
    Explain(explain::Args),
    /// List what the spool keeps, and retry, hold, release, delete or export it
    Queue(queue::Args),
    /// Run the Exchange Online stand-in alone, to rehearse against
    Sandbox(sandbox::Args),
    /// Add, change or delete the login of a device
    Passwd(passwd::Args),
    /// Make or show the certificate that devices see
    Cert(cert::Args),
    /// Ask a running relay whether it is ready, for containers
    Healthcheck(healthcheck::Args),
    /// Print the versions of the program and of its TLS libraries
    Version,
    /// Print a script for a shell that completes what is typed
    Completions(completions::Args),
    /// Write manual pages, one a command
    Man(man::Args),
}

/// Where the configuration is.
#[derive(clap::Args)]
struct ConfigFile {
    /// The configuration [default: $SMTP_UPLIFT_CONFIG, ./smtp-uplift.toml, /etc/smtp-uplift/smtp-uplift.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigFile {
    fn path(&self) -> PathBuf {
        let here = PathBuf::from("smtp-uplift.toml");
        self.config
            .clone()
            .or_else(|| std::env::var_os("SMTP_UPLIFT_CONFIG").map(PathBuf::from))
            .unwrap_or_else(|| {
                if here.exists() {
                    here
                } else {
                    PathBuf::from("/etc/smtp-uplift/smtp-uplift.toml")
                }
            })
    }
}

/// Runs the command line; returns the exit code.
pub fn main() -> u8 {
    let code = command();
    match STDOUT.get() {
        // Whoever wanted no more of it, as `head` does, is content.
        Some(error) if error.kind() != io::ErrorKind::BrokenPipe && code == OK => {
            complain(&format!("cannot write to stdout: {error}"), TEMPORARY)
        }
        _ => code,
    }
}

fn command() -> u8 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing can be done about a closed stderr.
            let _ = error.print();
            return if error.use_stderr() { USAGE } else { OK };
        }
    };
    match cli.command {
        Command::Init(args) => init::run(args),
        Command::Check(args) => block_on(check::run(args)),
        Command::Run(args) => block_on(run::run(args)),
        Command::Demo(args) => block_on(demo::run(args)),
        Command::Doctor(args) => block_on(doctor::run(args)),
        Command::Login(args) => block_on(login::run(args)),
        Command::Explain(args) => explain::run(args),
        Command::Queue(args) => block_on(queue::run(args)),
        Command::Sandbox(args) => block_on(sandbox::run(args)),
        Command::Passwd(args) => block_on(passwd::run(args)),
        Command::Cert(args) => cert::run(args),
        Command::Healthcheck(args) => block_on(healthcheck::run(args)),
        Command::Version => {
            say!("smtp-uplift {}", env!("CARGO_PKG_VERSION"));
            say!("devices: {}", crate::transport::server_tls::library_version());
            say!("smarthost: rustls {}", env!("RUSTLS_VERSION"));
            OK
        }
        Command::Completions(args) => completions::run(args),
        Command::Man(args) => man::run(args),
    }
}

fn block_on(command: impl Future<Output = u8>) -> u8 {
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(command),
        Err(error) => complain(&format!("cannot start threads: {error}"), TEMPORARY),
    }
}

/// Why stdout has not taken all that was said, if so.
static STDOUT: OnceLock<io::Error> = OnceLock::new();

/// Prints a line. A command ends as it would have ended, however little of it is read.
fn say(line: fmt::Arguments<'_>) {
    stdout(writeln!(io::stdout(), "{line}"));
}

/// Keeps in mind what stdout did not take.
fn stdout(written: io::Result<()>) {
    if let Err(error) = written {
        let _ = STDOUT.set(error);
    }
}

/// Prints a line for people who watch stderr.
fn warn(line: &dyn fmt::Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Says what is wrong; returns the exit code.
fn complain(error: &dyn fmt::Display, code: u8) -> u8 {
    warn(&format_args!("smtp-uplift: {error}"));
    code
}
