//! `smtp-uplift completions`

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{Cli, OK};

#[derive(clap::Args)]
pub(super) struct Args {
    /// The shell that is to complete, for example: smtp-uplift completions bash > /etc/bash_completion.d/smtp-uplift
    shell: Shell,
}

pub(super) fn run(args: Args) -> u8 {
    // Into memory first: the generator panics when it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "smtp-uplift", &mut script);
    say!("{}", String::from_utf8_lossy(&script).trim_end());
    OK
}
