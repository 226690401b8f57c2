//! `smtp-uplift login`

use std::{
    env,
    io::{self, IsTerminal as _},
    process::Stdio,
};

use tokio::process::Command;

use super::{CONFIGURATION, ConfigFile, FAILED, OK, TEMPORARY, USAGE, complain, warn};
use crate::{
    config::{self, Config, Mailbox, MailboxAuth, OAuth, OAuthFlow, TokenSource},
    smarthost::{
        examination::Outcome,
        oauth::{
            Kind, TokenError, Tokens,
            fault::{self, Code},
            sign_in::{self, Prompt, SignedIn},
        },
    },
};

#[derive(clap::Args)]
#[command(
    after_help = "Somebody who may read the mailbox's password, or has one of an administrator, signs in once; the relay renews that by \
    itself. Run it as the relay's user, or as root."
)]
pub(super) struct Args {
    /// The address of the mailbox, as it stands in the configuration
    mailbox: String,
    /// Sign in with a browser on this machine: many tenants do not let people sign in with a code
    #[arg(long)]
    browser: bool,
    #[command(flatten)]
    config: ConfigFile,
}

pub(super) async fn run(args: Args) -> u8 {
    let path = args.config.path();
    let config = match config::load(&path) {
        Ok(loaded) => loaded.config,
        Err(problems) => return complain(&problems, CONFIGURATION),
    };
    let (mailbox, oauth) = match find(&config, &args.mailbox) {
        Ok(found) => found,
        Err((error, code)) => return complain(&format!("{}: {error}", path.display()), code),
    };
    let tokens = match Tokens::new(&config, mailbox, oauth) {
        Ok(tokens) => tokens,
        Err(error) => return complain(&error, CONFIGURATION),
    };
    let mut tell = |prompt: &Prompt| show(prompt, &mailbox.username);
    let signed_in = if args.browser {
        sign_in::with_browser(&tokens, &mut tell).await
    } else {
        sign_in::with_device_code(&tokens, &mut tell).await
    };
    match signed_in {
        Ok(signed_in) => conclude(mailbox, &signed_in),
        Err(error) => refuse(&error, &args),
    }
}

/// The mailbox that somebody is to sign in for.
fn find<'a>(config: &'a Config, wanted: &str) -> Result<(&'a Mailbox, &'a OAuth), (String, u8)> {
    let found =
        config.mailboxes.iter().find(|mailbox| mailbox.address.eq_ignore_ascii_case(wanted));
    let Some(mailbox) = found else {
        let known: Vec<_> =
            config.mailboxes.iter().map(|mailbox| mailbox.address.as_str()).collect();
        return Err((
            format!("there is no mailbox {wanted:?}; name one of {}", known.join(", ")),
            USAGE,
        ));
    };
    let nobody = |why: &str| {
        let next = "write flow = \"device-code\" in its [mailbox.oauth] for somebody to sign in";
        Err((format!("nobody signs in for {}: {why}; {next}", mailbox.address), CONFIGURATION))
    };
    match &mailbox.auth {
        MailboxAuth::XOAuth2 { token: TokenSource::OAuth(oauth) } => match oauth.flow {
            OAuthFlow::DeviceCode | OAuthFlow::RefreshToken => Ok((mailbox, oauth)),
            OAuthFlow::ClientCredentials => nobody("the application acts for itself (flow)"),
        },
        MailboxAuth::XOAuth2 { token: TokenSource::Ready(_) } => nobody("it is given ready tokens"),
        _ => nobody("it does not log in with tokens"),
    }
}

fn show(prompt: &Prompt, username: &str) {
    let minutes = prompt.within.as_secs().div_ceil(60);
    match &prompt.code {
        Some(code) => {
            say!("Open {} in a browser, on any device,", prompt.url);
            say!(
                "enter the code {code} and sign in as {username}. There are {minutes} minutes for it."
            );
        }
        None => {
            say!(
                "Open this page in a browser on this machine and sign in as {username}. There are {minutes} minutes for it."
            );
            say!("{}", prompt.url);
            open(&prompt.url);
        }
    }
}

/// Opens a page where somebody sits in front of a screen; the page was told of anyway.
fn open(url: &str) {
    let screen = ["DISPLAY", "WAYLAND_DISPLAY"].iter().any(|name| env::var_os(name).is_some());
    if screen && io::stdout().is_terminal() {
        let mut command = Command::new("xdg-open");
        command.arg(url).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let _ = command.spawn();
    }
}

fn conclude(mailbox: &Mailbox, signed_in: &SignedIn) -> u8 {
    let who = signed_in.who.as_deref().unwrap_or("somebody whom the token does not name");
    say!();
    say!("{}: signed in as {who}.", mailbox.address);
    say!("The token is {}.", signed_in.token.found);
    say!("The sign-in is kept in {} and ends", signed_in.path.display());
    say!(
        "at {:.0}, later each time it is used. A running relay takes it up by itself.",
        signed_in.expires
    );
    if signed_in.token.outcome != Outcome::Ok {
        for step in &signed_in.token.remedy {
            warn(&format_args!("warning: {step}"));
        }
    }
    if signed_in.who.as_ref().is_some_and(|who| !who.eq_ignore_ascii_case(&mailbox.username)) {
        warn(&format_args!(
            "warning: the mailbox logs in as {}: {who} needs full access to it, and the right to send as it",
            mailbox.username
        ));
    }
    OK
}

/// Says why nobody has signed in. Whatever was kept before is kept still.
fn refuse(error: &TokenError, args: &Args) -> u8 {
    let code = match (error.kind, error.code) {
        (Kind::Passing, _) => TEMPORARY,
        (
            Kind::Setting,
            Some(
                Code::AccessDenied
                | Code::ExpiredToken
                | Code::InvalidGrant
                | Code::InteractionRequired,
            ),
        )
        | (Kind::Local, _) => FAILED,
        (Kind::Setting, _) => CONFIGURATION,
    };
    let blocked = !args.browser
        && error.code.is_some_and(|code| fault::blocks_device_codes(code, error.aadsts));
    let also = if blocked {
        format!(
            "; many tenants block sign-ins with a code: try smtp-uplift login {} --browser",
            args.mailbox
        )
    } else {
        String::new()
    };
    complain(&format!("{error}{also}"), code)
}
