//! `smtp-uplift sandbox`

use std::{fs, net::SocketAddr, path::PathBuf};

use super::{CONFIGURATION, OK, TEMPORARY, complain};
use crate::{
    sandbox::{Sandbox, scenario::Scenario},
    transport::certificate::Identity,
};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Where to listen
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:2587")]
    listen: SocketAddr,
    /// What goes wrong, and who may log in (TOML; config/scenario.toml is an example)
    #[arg(long, value_name = "FILE")]
    scenario: Option<PathBuf>,
    /// The folder for its certificate, which is made once
    #[arg(long, value_name = "DIR", default_value = "sandbox-state")]
    dir: PathBuf,
}

pub(super) async fn run(args: Args) -> u8 {
    let scenario = match args.scenario.as_deref().map(read).transpose() {
        Ok(scenario) => scenario.unwrap_or_default(),
        Err(error) => return complain(&error, CONFIGURATION),
    };
    let identity = match Identity::read_or_make(&args.dir, &["localhost", "127.0.0.1", "::1"]) {
        Ok(identity) => identity,
        Err(error) => return complain(&error, TEMPORARY),
    };
    let sandbox = match Sandbox::start_as(args.listen, scenario, &identity).await {
        Ok(sandbox) => sandbox,
        Err(error) => return complain(&error, TEMPORARY),
    };
    say!("An Exchange Online stand-in listens on {}. Point a relay at it with", sandbox.address());
    say!();
    say!("[smarthost]");
    say!("host = \"localhost\"");
    say!("port = {}", sandbox.address().port());
    let certificate = args.dir.join("self-made.crt");
    say!("ca_file = {:?}", fs::canonicalize(&certificate).unwrap_or(certificate));
    say!();
    say!("[[mailbox]]");
    say!("address = \"scanner@example.com\"");
    say!("password = \"any will do, unless the scenario names one\"");
    say!();
    say!("Ctrl-C ends it. Messages that it takes:");
    let mut shown = 0;
    loop {
        tokio::select! {
            () = sandbox.delivered(shown + 1) => {}
            _ = tokio::signal::ctrl_c() => return OK,
        }
        let (unseen, accepted) = sandbox.deliveries_after(shown);
        for delivery in unseen {
            let recipients = delivery.recipients.join(", ");
            say!(
                "from <{}> to {recipients}: {} octets, logged in as {}",
                delivery.from,
                delivery.size,
                delivery.user
            );
        }
        shown = accepted;
    }
}

fn read(path: &std::path::Path) -> Result<Scenario, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Scenario::parse(&text).map_err(|error| format!("{}: {error}", path.display()))
}
