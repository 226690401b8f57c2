//! `smtp-uplift sandbox`

use std::{fs, net::SocketAddr, path::PathBuf};

use super::{CONFIGURATION, OK, TEMPORARY, complain};
use crate::{
    sandbox::{Sandbox, identity::Authority, scenario::Scenario},
    transport::certificate::Identity,
};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Where to listen
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:2587")]
    listen: SocketAddr,
    /// Where to give access tokens too, as Microsoft's identity platform does, to rehearse OAuth
    #[arg(long, value_name = "ADDR")]
    identity: Option<SocketAddr>,
    /// What goes wrong, and who may log in (TOML; config/scenario.toml is an example)
    #[arg(long, value_name = "FILE")]
    scenario: Option<PathBuf>,
    /// The folder for its certificate, which is made once
    #[arg(long, value_name = "DIR", default_value = "sandbox-state")]
    dir: PathBuf,
}

pub(super) async fn run(args: Args) -> u8 {
    let mut scenario = match args.scenario.as_deref().map(read).transpose() {
        Ok(scenario) => scenario.unwrap_or_default(),
        Err(error) => return complain(&error, CONFIGURATION),
    };
    if let Some(address) = args.identity {
        scenario.identity.get_or_insert_default().listen = address;
    }
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
    let user = sandbox.authority().map_or("scanner@example.com", Authority::somebody);
    say!("address = {user:?}");
    match sandbox.authority() {
        Some(authority) => oauth(authority),
        None => say!("password = \"any will do, unless the scenario names one\""),
    }
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

fn oauth(authority: &Authority) {
    let tenant = authority.tenant();
    say!("auth = \"xoauth2\"");
    say!("[mailbox.oauth]");
    say!("flow = \"client-credentials\"");
    say!("tenant = {:?}", tenant.tenant);
    say!("client_id = {:?}", tenant.client_id);
    if let Some(certificate) = &tenant.certificate {
        say!("certificate = {certificate:?}");
        say!("private_key = {{ file = \"the key of that certificate\" }}");
    } else if let Some(secret) = &tenant.client_secret {
        say!("client_secret = {secret:?}");
    }
    say!("token_url = {:?}", authority.token_url());
}

fn read(path: &std::path::Path) -> Result<Scenario, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Scenario::parse(&text).map_err(|error| format!("{}: {error}", path.display()))
}
