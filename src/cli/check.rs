//! `smtp-uplift check`

use super::{CONFIGURATION, ConfigFile, OK, complain, container, warn};
use crate::{config, service::Service};

#[derive(clap::Args)]
#[command(
    after_help = "Exits with 0, or with 78 and each problem in a line: file, line, key, reason, next step."
)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigFile,
    /// Print the configuration as it acts: every default spelled out, secrets left out
    #[arg(long)]
    effective: bool,
}

pub(super) async fn run(args: Args) -> u8 {
    let path = args.config.path();
    let loaded = match config::load(&path) {
        Ok(loaded) => loaded,
        Err(config::Problems { problems, warnings }) => {
            for problem in &problems {
                warn(problem);
            }
            for warning in &warnings {
                warn(&format_args!("warning: {warning}"));
            }
            let count = problems.len();
            let noun = if count == 1 { "problem" } else { "problems" };
            return complain(&format!("{count} {noun} in the configuration"), CONFIGURATION);
        }
    };
    let nat = container::warnings(&loaded.config);
    for warning in loaded.warnings.iter().map(ToString::to_string).chain(nat) {
        // With --effective there is nothing but TOML on stdout.
        if args.effective {
            warn(&format_args!("warning: {warning}"));
        } else {
            say!("warning: {warning}");
        }
    }
    if args.effective {
        say!("# {path:?} as smtp-uplift {} acts on it", env!("CARGO_PKG_VERSION"));
        say!("{}", loaded.config.effective().trim_end());
    }
    if let Err(error) = Service::check(&loaded.config).await {
        return complain(&error, CONFIGURATION);
    }
    if !args.effective {
        say!("{}: ok", path.display());
    }
    OK
}
