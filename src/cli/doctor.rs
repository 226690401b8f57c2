//! `smtp-uplift doctor`

use super::{CONFIGURATION, ConfigFile, FAILED, OK, complain, container, healthcheck};
use crate::{
    config,
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
        let named = mailbox.send_as.as_slice().iter().filter(|sender| !sender.contains('*'));
        let senders: Vec<String> =
            std::iter::once(&mailbox.address).chain(named).cloned().collect();
        let which = (mailboxes.len() > 1).then_some(mailbox.address.as_str());
        let mut tell = |finding| tell(which, finding);
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
