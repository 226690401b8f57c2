//! `smtp-uplift man`

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::{Command, CommandFactory as _};
use clap_mangen::Man;

use super::{Cli, FAILED, OK, complain};

#[derive(clap::Args)]
pub(super) struct Args {
    /// The folder to write them to, for example /usr/local/share/man/man1; made if it is not there
    dir: PathBuf,
}

pub(super) fn run(args: Args) -> u8 {
    let dir = &args.dir;
    let mut whole = Cli::command();
    // Gives each command its full name.
    whole.build();
    let written = fs::create_dir_all(dir).and_then(|()| write(&whole, dir));
    if let Err(error) = written {
        return complain(&format!("{}: {error}; name another folder", dir.display()), FAILED);
    }
    say!(
        "Written to {}; to read them: man -l {}",
        dir.display(),
        dir.join("smtp-uplift.1").display()
    );
    OK
}

/// The page of a command and those of the commands below it.
fn write(command: &Command, dir: &Path) -> io::Result<()> {
    const SOURCE: &str = concat!("smtp-uplift ", env!("CARGO_PKG_VERSION"));
    Man::new(command.clone()).source(SOURCE).generate_to(dir)?;
    command.get_subcommands().try_for_each(|below| write(below, dir))
}
