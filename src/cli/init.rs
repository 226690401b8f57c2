//! `smtp-uplift init`

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    FAILED, OK, USAGE,
    cert::{CERTIFICATE, KEY, Pair, day},
    complain, file,
};
use crate::{config, transport::certificate};

const CONFIG: &str = "smtp-uplift.toml";
const PASSWORD: &str = "mailbox-password";

/// What a new configuration is made of.
const EXAMPLE: &str = include_str!("../../config/exchange-online.toml");

/// The mailbox that stands there until somebody writes another.
const PLACEHOLDER: &str = "scanner@example.com";

#[derive(clap::Args)]
#[command(
    after_help = "Nothing that is there already is overwritten: then it says so and exits with 1."
)]
pub(super) struct Args {
    /// The folder to write to; made if it is not there
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// The mailbox that everything is submitted with
    #[arg(long, value_name = "ADDRESS", default_value = PLACEHOLDER, hide_default_value = true)]
    mailbox: String,
    /// The name that devices reach this machine by [default: the system's name]
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
}

pub(super) fn run(args: Args) -> u8 {
    let dir = &args.dir;
    let hostname = args
        .hostname
        .clone()
        .unwrap_or_else(|| gethostname::gethostname().to_string_lossy().into_owned());
    let text = configuration(&hostname, &args.mailbox);
    if let Err(error) = well_formed(&text) {
        return complain(&error, USAGE);
    }
    // In the remark too, now that it is known to be one line.
    let remark = |mailbox| format!("Set-CASMailbox {mailbox} ");
    let text = text.replacen(&remark(PLACEHOLDER), &remark(&args.mailbox), 1);
    let files = [CONFIG, CERTIFICATE, KEY, PASSWORD];
    let there: Vec<_> =
        files.into_iter().filter(|name| dir.join(name).symlink_metadata().is_ok()).collect();
    if !there.is_empty() {
        let error = format!(
            "{} has {} already, and nothing is overwritten; name another folder with --dir, or move them away",
            dir.display(),
            there.join(", ")
        );
        return complain(&error, FAILED);
    }
    let until = match Pair::make(&[&hostname], certificate::DAYS)
        .and_then(|pair| pair.create(dir).map(|()| pair.until))
    {
        Ok(until) => until,
        Err(error) => return complain(&format!("{error}; name another folder with --dir"), FAILED),
    };
    // The configuration goes last: where it is, all is.
    for (name, text, mode) in [(PASSWORD, "", file::PRIVATE), (CONFIG, &text, file::PUBLIC)] {
        if let Err(error) = file::create(&dir.join(name), text.as_bytes(), mode) {
            return complain(&format!("{}: {error}", dir.join(name).display()), FAILED);
        }
    }
    tell(&args, &hostname, until);
    OK
}

fn tell(args: &Args, hostname: &str, until: i64) {
    let folder = fs::canonicalize(&args.dir).unwrap_or_else(|_| args.dir.clone());
    say!("Written to {}:", folder.display());
    say!("  {CONFIG}  the configuration, with remarks");
    say!(
        "  {CERTIFICATE}         the certificate that devices see, for {hostname}, until {}",
        day(until)
    );
    say!("  {KEY}         its key; only you can read it");
    say!("  {PASSWORD}  empty, for the mailbox's password; only you can read it");
    say!();
    say!("Next:");
    let here = args.dir == Path::new(".");
    let path = |name: &str| if here { PathBuf::from(name) } else { args.dir.join(name) };
    let config = if here { String::new() } else { format!(" --config {}", path(CONFIG).display()) };
    let mailbox = if args.mailbox == PLACEHOLDER {
        format!("In {} write your mailbox in place of {PLACEHOLDER}.", path(CONFIG).display())
    } else {
        format!("Look through {}: which networks are your devices in?", path(CONFIG).display())
    };
    let steps = [
        mailbox,
        format!("Write the mailbox's password into {}, in one line.", path(PASSWORD).display()),
        format!("smtp-uplift check{config}\n     says what is still missing."),
        format!(
            "smtp-uplift doctor{config}\n     walks the way to Exchange Online, and says of each step what is wrong."
        ),
        format!(
            "smtp-uplift run{config}\n     starts the relay, which logs in at once and says so. Ctrl-C ends it."
        ),
        format!(
            "Enter {hostname} as SMTP server at a device: port 2525 for STARTTLS or no encryption,\n     \
             port 4465 for SSL. It may send as whoever it likes: mail goes up from the mailbox."
        ),
    ];
    for (index, step) in steps.iter().enumerate() {
        say!("  {}. {step}", index + 1);
    }
    say!();
    say!("If the relay is to run as another user, give these files to that user: chown.");
}

/// The example with what is known already.
fn configuration(hostname: &str, mailbox: &str) -> String {
    let quoted = |text: &str| toml::Value::from(text).to_string();
    let mut text = EXAMPLE.to_owned();
    for (old, new) in [
        ("exchange-online.toml", CONFIG.to_owned()),
        ("\"relay.example.lan\"", quoted(hostname)),
        ("\"/var/lib/smtp-uplift\"", quoted("state")),
        ("# [tls]", "[tls]".to_owned()),
        (
            "# certificate = \"/etc/smtp-uplift/relay.crt\"",
            format!("certificate = \"{CERTIFICATE}\""),
        ),
        ("# private_key = \"/etc/smtp-uplift/relay.key\"", format!("private_key = \"{KEY}\"")),
        ("\"scanner@example.com\"", quoted(mailbox)),
        ("\"/etc/smtp-uplift/mailbox-password\"", quoted(PASSWORD)),
    ] {
        put(&mut text, old, &new);
    }
    text
}

/// Puts words in the place of others; a remark behind them stays in its column if it can.
fn put(text: &mut String, old: &str, new: &str) {
    let Some(at) = text.find(old) else {
        debug_assert!(false, "{old} is not in the example any more");
        return;
    };
    let behind = &text[at + old.len()..];
    let (mut blanks, mut gap) = (behind.len() - behind.trim_start_matches(' ').len(), 0);
    if blanks > 1 {
        gap = (old.len() + blanks).saturating_sub(new.len()).max(1);
    } else {
        blanks = 0;
    }
    text.replace_range(at..at + old.len() + blanks, &format!("{new}{:gap$}", ""));
}

/// Whether the reader takes what came from the command line; the files need not be there yet.
fn well_formed(text: &str) -> Result<(), String> {
    let Err(config::Problems { problems, .. }) = config::parse(text, Path::new(CONFIG)) else {
        return Ok(());
    };
    for (key, option) in [("hostname", "--hostname"), ("mailbox.address", "--mailbox")] {
        if let Some(problem) = problems.iter().find(|problem| problem.key == key) {
            return Err(format!("{}; give another with {option}", problem.reason));
        }
    }
    Ok(())
}
