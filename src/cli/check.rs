//! `smtp-uplift check`

use super::{CONFIGURATION, ConfigFile, OK, complain};
use crate::{config, service::Service};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigFile,
}

pub(super) async fn run(args: Args) -> u8 {
    let path = args.config.path();
    match config::load(&path) {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                println!("warning: {warning}");
            }
            if let Err(error) = Service::check(&loaded.config).await {
                return complain(&error, CONFIGURATION);
            }
            println!("{}: ok", path.display());
            OK
        }
        Err(problems) => {
            let count = problems.problems.len();
            eprintln!("{problems}");
            eprintln!(
                "smtp-uplift: {count} {} in the configuration",
                if count == 1 { "problem" } else { "problems" }
            );
            CONFIGURATION
        }
    }
}
