//! `smtp-uplift cert`

mod new;
mod show;

pub(super) use new::{CERTIFICATE, KEY, Pair, day};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Make a self-signed certificate with an RSA key of 2,048 bits, which the oldest devices know
    New(new::Args),
    /// Show a certificate as devices see it, how long it lasts, and whether its key belongs to it
    Show(show::Args),
}

pub(super) fn run(args: Args) -> u8 {
    match args.command {
        Command::New(args) => new::run(&args),
        Command::Show(args) => show::run(&args),
    }
}
