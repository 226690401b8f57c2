//! The commands. Errors go to stderr in one line with the next step; exit codes are those of sysexits.h
//! where it has one.

#![allow(clippy::print_stdout, reason = "printing is what commands do")]

mod check;
mod demo;
mod doctor;
mod explain;
mod run;
mod sandbox;

use std::{future::Future, path::PathBuf};

use clap::{Parser, Subcommand};

/// All went well.
const OK: u8 = 0;
/// A check failed.
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
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the relay
    Run(run::Args),
    /// Check a configuration and say every problem at once
    Check(check::Args),
    /// Show the whole thing on this machine: an old printer, the relay, an Exchange Online stand-in
    Demo(demo::Args),
    /// Walk the way to the smarthost step by step, and say what is wrong and what to do
    Doctor(doctor::Args),
    /// Say what a reply means that a printer, a log or a bounce shows, and what to do
    Explain(explain::Args),
    /// Run the Exchange Online stand-in alone, to rehearse against
    Sandbox(sandbox::Args),
    /// Print the versions of the program and of its TLS libraries
    Version,
}

/// Where the configuration is.
#[derive(clap::Args)]
struct ConfigFile {
    /// The configuration [default: $SMTP_UPLIFT_CONFIG, ./smtp-uplift.toml, /etc/smtp-uplift/smtp-uplift.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigFile {
    fn path(self) -> PathBuf {
        let here = PathBuf::from("smtp-uplift.toml");
        self.config
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
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing can be done about a closed stderr.
            let _ = error.print();
            return if error.use_stderr() { USAGE } else { OK };
        }
    };
    match cli.command {
        Command::Run(args) => block_on(run::run(args)),
        Command::Check(args) => block_on(check::run(args)),
        Command::Demo(args) => block_on(demo::run(args)),
        Command::Doctor(args) => block_on(doctor::run(args)),
        Command::Explain(args) => explain::run(args),
        Command::Sandbox(args) => block_on(sandbox::run(args)),
        Command::Version => {
            println!("smtp-uplift {}", env!("CARGO_PKG_VERSION"));
            println!("devices: {}", crate::transport::server_tls::library_version());
            println!("smarthost: rustls {}", env!("RUSTLS_VERSION"));
            OK
        }
    }
}

fn block_on(command: impl Future<Output = u8>) -> u8 {
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(command),
        Err(error) => complain(&format!("cannot start threads: {error}"), TEMPORARY),
    }
}

/// Says what is wrong; returns the exit code.
fn complain(error: &dyn std::fmt::Display, code: u8) -> u8 {
    eprintln!("smtp-uplift: {error}");
    code
}
