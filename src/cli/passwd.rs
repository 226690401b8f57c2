//! `smtp-uplift passwd`

use std::{
    fs,
    io::{self, BufRead as _, ErrorKind, IsTerminal as _, Read as _},
    path::{Path, PathBuf},
};

use secrecy::{ExposeSecret as _, SecretString};
use tokio::signal::unix::{SignalKind, signal};

use super::{CONFIGURATION, ConfigFile, FAILED, OK, USAGE, complain, file, warn};
use crate::{
    auth::{accounts::Accounts, edit},
    config,
};

/// Longer than what any device can be told, and a stop for `/dev/zero`.
const MAX_OCTETS: u64 = 1024;

#[derive(clap::Args)]
#[command(
    after_help = "On a terminal the password is asked for twice, else it is one line from stdin."
)]
pub(super) struct Args {
    /// The name that the device logs in with
    name: String,
    /// Delete the login instead
    #[arg(long)]
    delete: bool,
    /// The users file [default: users_file of the configuration's [auth]]
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    file: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigFile,
}

pub(super) async fn run(args: Args) -> u8 {
    let name = &args.name;
    if let Some(fault) = edit::fault_of_name(name) {
        return complain(&format!("{name:?} cannot be a login: {fault}; choose another"), USAGE);
    }
    let path = match args.file.clone().map_or_else(|| configured(&args.config), Ok) {
        Ok(path) => path,
        Err(error) => return complain(&error, CONFIGURATION),
    };
    match change(&args, &path) {
        Ok(done) => say!("{done}"),
        Err(error) => return complain(&error, FAILED),
    }
    // Not this login's fault, but the relay does not start with it.
    if let Err(error) = Accounts::File(path).check(None) {
        warn(&format_args!("warning: {error}"));
    }
    OK
}

fn configured(config: &ConfigFile) -> Result<PathBuf, String> {
    let path = config.path();
    let places = config::places(&path).map_err(|problems| problems.to_string())?;
    places.users_file.ok_or_else(|| {
        format!(
            "{}: there is no users_file; write users_file = \"users.txt\" under [auth], or name one with --file",
            path.display()
        )
    })
}

/// Returns what was done.
fn change(args: &Args, path: &Path) -> Result<String, String> {
    let (name, shown) = (&args.name, path.display());
    let text = match fs::read_to_string(path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(format!("{shown}: {error}; nothing was changed")),
    };
    let is_new = text.is_none();
    let text = text.unwrap_or_default();
    let known = edit::has(&text, name);
    let changed = if !args.delete {
        let password = password(name)?;
        if let Some(fault) = edit::fault_of_password(password.expose_secret()) {
            return Err(format!("the password cannot be used: {fault}; nothing was changed"));
        }
        let hash = edit::hash(password.expose_secret()).map_err(|error| error.to_string())?;
        edit::set(&text, name, &hash)
    } else if known {
        edit::remove(&text, name)
    } else {
        return Err(format!("{shown}: there is no login {name:?}; nothing was changed"));
    };
    file::replace(path, changed.as_bytes())
        .map_err(|error| format!("{shown}: {error}; nothing was changed"))?;
    Ok(match (args.delete, known) {
        (true, _) => format!("{shown}: {name} is deleted, which counts at the next login"),
        (false, true) => {
            format!("{shown}: {name} has a new password, which counts at the next login")
        }
        (false, false) if is_new => {
            format!(
                "{shown}: made, with {name} in it; only you can read it, and the relay's user must be able to"
            )
        }
        (false, false) => format!("{shown}: {name} is added, which counts at the next login"),
    })
}

/// Asks twice without echo; reads one line where there is no terminal.
fn password(name: &str) -> Result<SecretString, String> {
    if !io::stdin().is_terminal() {
        let mut line = String::new();
        // Room for the line end.
        let read = io::stdin().lock().take(MAX_OCTETS + 2).read_line(&mut line);
        read.map_err(|error| {
            format!("cannot read the password from stdin: {error}; nothing was changed")
        })?;
        let line = line.strip_suffix('\n').unwrap_or(&line);
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.len() as u64 > MAX_OCTETS {
            return Err(format!(
                "the password is longer than {MAX_OCTETS} octets; nothing was changed"
            ));
        }
        return Ok(line.into());
    }
    // Ctrl-C ends the program before the terminal is put right, unless somebody watches for it.
    let _watched = signal(SignalKind::interrupt());
    let ask = |prompt: String| {
        let answer = rpassword::prompt_password(prompt);
        answer
            .map(SecretString::from)
            .map_err(|error| format!("no password came: {error}; nothing was changed"))
    };
    let first = ask(format!("Password of {name}: "))?;
    let again = ask("Once more: ".to_owned())?;
    if first.expose_secret() == again.expose_secret() {
        return Ok(first);
    }
    Err("the two passwords differ; nothing was changed".to_owned())
}
