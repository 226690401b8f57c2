//! `smtp-uplift doctor`

use super::{CONFIGURATION, ConfigFile, FAILED, OK, complain, container, healthcheck};
use crate::{
    config::{self, Config, Device, Mailbox},
    policy::sender::{Rewrite, Rule},
    proto::command::Command,
    smarthost::{
        Target,
        examination::{self, Finding, Outcome},
    },
};

/// A finding, and the mailbox that it is about where there are several.
#[derive(serde::Serialize)]
struct Step {
    #[serde(skip_serializing_if = "Option::is_none")]
    mailbox: Option<String>,
    #[serde(flatten)]
    finding: Finding,
}

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigFile,
    /// Send one real message of each mailbox to this address: some refusals come only after the message
    #[arg(long, value_name = "ADDRESS")]
    send_test: Option<String>,
    /// Print one JSON document, when all is done
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args) -> u8 {
    let path = args.config.path();
    let loaded = match config::load(&path) {
        Ok(loaded) => loaded,
        Err(problems) => return complain(&problems, CONFIGURATION),
    };
    if let Some(address) = &args.send_test
        && Command::parse(format!("RCPT TO:<{address}>").as_bytes()).is_err()
    {
        let wrong =
            format!("--send-test {address:?} is not an address; for example you@example.com");
        return complain(&wrong, super::USAGE);
    }
    let mut steps = Vec::new();
    let mut tell = |mailbox: Option<&str>, finding: Finding| {
        let step = Step { mailbox: mailbox.map(str::to_owned), finding };
        if !args.json {
            print(&step);
        }
        steps.push(step);
    };
    let warnings = loaded.warnings.iter().map(ToString::to_string);
    let warnings = warnings.chain(container::warnings(&loaded.config)).collect();
    tell(None, configuration(&path.display().to_string(), warnings));
    if let Some(warnings) = healthcheck::warnings(loaded.config.admin.as_ref()).await {
        tell(None, running(warnings));
    }
    let mailboxes = &loaded.config.mailboxes;
    let mut complete = true;
    for mailbox in mailboxes {
        let mut target = match Target::new(&loaded.config, mailbox) {
            Ok(target) => target,
            Err(error) => return complain(&error, CONFIGURATION),
        };
        let senders = senders(&loaded.config, mailbox);
        let which = (mailboxes.len() > 1).then_some(mailbox.address.as_str());
        let mut tell = |finding| tell(which, finding);
        tell(rewriting(&loaded.config, mailbox));
        let test = args.send_test.as_deref();
        complete &= examination::examine(&mut target, &senders, test, &mut tell).await;
    }

    let count = |outcome| steps.iter().filter(|step| step.finding.outcome == outcome).count();
    let (failed, warnings) = (count(Outcome::Failed), count(Outcome::Warning));
    if args.json {
        let document = serde_json::json!({
            "steps": steps, "failed": failed, "warnings": warnings, "complete": complete
        });
        say!("{document:#}");
    } else {
        say!();
        say!("{}", conclusion(failed, warnings, args.send_test.is_some(), complete));
    }
    if failed > 0 { FAILED } else { OK }
}

/// Whom mail of a mailbox may be from as it is sent, where that is known by name.
fn senders(config: &Config, mailbox: &Mailbox) -> Vec<String> {
    let rule = Rule {
        rewrite: config.rewrite,
        mailbox: mailbox.address.clone(),
        send_as: mailbox.send_as.clone(),
        senders: None,
    };
    let is_here = |device: &&Device| {
        let bound = device.mailbox.as_ref();
        bound.is_none_or(|bound| bound.eq_ignore_ascii_case(&mailbox.address))
    };
    let of_devices =
        config.devices.iter().filter(is_here).filter_map(|device| device.senders.as_ref());
    let of_devices = of_devices.flat_map(|senders| senders.as_slice());
    let mut senders: Vec<String> = vec![mailbox.address.clone()];
    for sender in mailbox.send_as.as_slice().iter().chain(of_devices) {
        let is_known = senders.iter().any(|known| known.eq_ignore_ascii_case(sender));
        if !sender.contains('*') && rule.allows(sender) && !is_known {
            senders.push(sender.clone());
        }
    }
    senders
}

fn rewriting(config: &Config, mailbox: &Mailbox) -> Finding {
    let address = &mailbox.address;
    let others = mailbox.send_as.as_slice().join(", ");
    let found = match (config.rewrite, others.as_str()) {
        (Rewrite::Keep, _) => {
            "every sender goes up as it comes (rewrite = \"keep\"): the smarthost has to allow each"
                .to_owned()
        }
        (Rewrite::Mailbox, "") => format!("mail goes up from {address}, whoever sends it"),
        (Rewrite::Mailbox, others) => {
            format!("mail goes up from {address}, unless its sender is in send_as: {others}")
        }
    };
    let step = "senders".to_owned();
    Finding { step, outcome: Outcome::Ok, found, rule: None, remedy: Vec::new() }
}

/// What the relay that runs says of itself.
fn running(warnings: Vec<String>) -> Finding {
    Finding {
        step: "running relay".to_owned(),
        outcome: if warnings.is_empty() { Outcome::Ok } else { Outcome::Warning },
        found: "it answers at its admin address".to_owned(),
        rule: None,
        remedy: warnings,
    }
}

fn configuration(path: &str, warnings: Vec<String>) -> Finding {
    let outcome = if warnings.is_empty() { Outcome::Ok } else { Outcome::Warning };
    Finding {
        step: "configuration".to_owned(),
        outcome,
        found: format!("{path} can be acted on"),
        rule: None,
        remedy: warnings,
    }
}

fn print(Step { mailbox, finding }: &Step) {
    let outcome = match finding.outcome {
        Outcome::Ok => "ok",
        Outcome::Warning => "warning",
        Outcome::Failed => "FAILED",
    };
    let which = mailbox.as_ref().map(|mailbox| format!("{mailbox}: ")).unwrap_or_default();
    say!("{outcome:<8} {which}{}: {}", finding.step, finding.found);
    for step in &finding.remedy {
        say!("         -> {step}");
    }
}

fn conclusion(failed: usize, warnings: usize, sent: bool, complete: bool) -> String {
    let warned = match warnings {
        0 => String::new(),
        1 => " 1 warning.".to_owned(),
        many => format!(" {many} warnings."),
    };
    let rest = if complete { "" } else { " What comes behind it could not be tried." };
    match (failed, sent) {
        (0, true) => format!("All steps are in order, and a message was taken.{warned}"),
        (0, false) => format!(
            "All steps are in order.{warned} Whether senders are allowed shows only with a real message: --send-test ADDRESS."
        ),
        (1, _) => format!("1 step failed: what to do stands below it.{rest}{warned}"),
        (many, _) => format!("{many} steps failed: what to do stands below each.{warned}"),
    }
}
