//! `smtp-uplift demo`: the whole way of a message on this machine, in words.

use std::{fmt::Write as _, fs, net::SocketAddr};

use anyhow::{Context as _, bail};
use openssl::ssl::SslVersion;

use super::{FAILED, OK, complain};
use crate::{
    config,
    sandbox::{Delivery, Sandbox, device::Device, scenario::Scenario},
    service::Service,
    telemetry::log,
    transport::device_tls::DeviceTls,
};

const MAILBOX: &str = "scanner@example.com";
const PASSWORD: &str = "demo-only";
const RECIPIENT: &str = "office@example.com";

#[derive(clap::Args)]
pub(super) struct Args {
    /// End when both messages have arrived
    #[arg(long)]
    once: bool,
}

pub(super) async fn run(args: Args) -> u8 {
    // The story is told on stdout; the log only speaks up when something is wrong.
    let _ = log::start(false, "warn");
    match demo(args.once).await {
        Ok(()) => OK,
        Err(error) => complain(&format!("the demo failed: {error:#}"), FAILED),
    }
}

async fn demo(once: bool) -> anyhow::Result<()> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    say!(
        "smtp-uplift demo: an old copier, the relay, and a stand-in for Exchange Online, all on this machine."
    );
    say!();

    let scenario = Scenario {
        user: Some(MAILBOX.to_owned()),
        password: Some(PASSWORD.to_owned()),
        ..Scenario::default()
    };
    let sandbox = Sandbox::start(loopback, scenario).await.context("cannot start the stand-in")?;
    say!("1. The stand-in for Exchange Online listens on {}.", sandbox.address());
    say!(
        "   Like smtp.office365.com it takes mail only over TLS 1.2 or newer, and only after a login."
    );
    say!();

    let file = folder.path().join("smtp-uplift.toml");
    fs::write(folder.path().join("sandbox.crt"), sandbox.certificate())?;
    fs::write(folder.path().join("password"), PASSWORD)?;
    let text = configuration(&sandbox, folder.path());
    let config = config::parse(&text, &file)?.config;
    let service = Service::start(config).await.context("cannot start the relay")?;
    let relay = service.address("lan").context("the relay has no listener")?;
    say!("2. The relay listens on {relay} for devices that speak plaintext or TLS 1.0 to 1.3.");
    say!("   It logs in to the stand-in as {MAILBOX}.");
    say!();

    let scan = scan();
    say!(
        "3. A copier that knows nothing newer than TLS 1.0 sends a scan of {} kB.",
        scan.len() / 1000
    );
    let tls = DeviceTls::new(SslVersion::TLS1, None).context("this OpenSSL has no TLS 1.0")?;
    let mut copier = Device::connect(relay).await?;
    copier.say("EHLO copier").await?;
    let mut copier = copier.starttls(&tls).await.context("the TLS 1.0 handshake failed")?;
    if let Some(tls) = &copier.tls {
        say!("   To the relay it speaks {} with {}.", tls.version, tls.cipher);
    }
    copier.say("EHLO copier").await?;
    deliver(&mut copier, &sandbox, &scan, 1).await?;

    say!("4. An alarm panel that knows no TLS at all sends a short message in plaintext.");
    let mut panel = Device::connect(relay).await?;
    panel.say("HELO panel").await?;
    deliver(&mut panel, &sandbox, &alarm(), 2).await?;

    say!("Both arrived unaltered.");
    if once {
        service.stop(std::future::pending()).await;
        return Ok(());
    }
    say!();
    say!("The relay and the stand-in stay up until Ctrl-C. Try them:");
    say!(
        "   openssl s_client -connect {relay} -starttls smtp -tls1 -cipher DEFAULT@SECLEVEL=0 -quiet -crlf"
    );
    say!("   swaks --server {relay} --from copier@example.com --to {RECIPIENT}");
    if let Some(admin) = service.admin() {
        say!("   curl http://{admin}/metrics");
    }
    tokio::signal::ctrl_c().await?;
    service.stop(std::future::pending()).await;
    Ok(())
}

fn configuration(sandbox: &Sandbox, folder: &std::path::Path) -> String {
    format!(
        "hostname = \"relay.example.com\"\n\
         state_dir = {folder:?}\n\
         [[listener]]\n\
         name = \"lan\"\n\
         address = \"127.0.0.1:0\"\n\
         tls = \"starttls\"\n\
         [smarthost]\n\
         host = \"localhost\"\n\
         port = {}\n\
         ca_file = \"sandbox.crt\"\n\
         [[mailbox]]\n\
         address = \"{MAILBOX}\"\n\
         password = {{ file = \"password\" }}\n\
         send_as = [\"*@example.com\"]\n\
         [admin]\n\
         address = \"127.0.0.1:0\"\n",
        sandbox.address().port(),
    )
}

/// Sends a message and compares what arrived with what was sent.
async fn deliver(
    device: &mut Device,
    sandbox: &Sandbox,
    message: &str,
    count: u64,
) -> anyhow::Result<()> {
    let reply = device.send("copier@example.com", &[RECIPIENT], message.to_owned()).await?;
    say!("   The relay answers: {reply}");
    if reply.code.get() != 250 {
        bail!("the message was refused");
    }
    sandbox.delivered(count).await;
    let delivery = sandbox.deliveries().pop().context("nothing arrived")?;
    let added = compare(message, &delivery)?;
    say!("   It arrived at the stand-in, submitted by {}:", delivery.user);
    say!(
        "   the {} octets behind the header section are the same, every header field is there,",
        body(message).len()
    );
    say!("   and the relay has added how it came in:");
    for line in added.lines() {
        say!("      {line}");
    }
    say!();
    let _ = device.say("QUIT").await;
    Ok(())
}

/// The header fields that were added; an error if anything else differs.
fn compare(sent: &str, delivery: &Delivery) -> anyhow::Result<String> {
    let arrived =
        std::str::from_utf8(&delivery.data).context("the message is not what was sent")?;
    if body(arrived) != body(sent) {
        bail!("the data behind the header section were altered");
    }
    let (kept, mut added) = (fields(sent), String::new());
    for field in fields(arrived) {
        if !kept.contains(&field) {
            added.push_str(field);
        }
    }
    for field in kept {
        if !fields(arrived).contains(&field) {
            bail!("the header field {field:?} is missing");
        }
    }
    Ok(added)
}

/// What stands behind the header section.
fn body(message: &str) -> &str {
    message.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

/// The header fields, each with its folded lines.
fn fields(message: &str) -> Vec<&str> {
    let section = message.split_inclusive("\r\n").take_while(|line| *line != "\r\n");
    let mut fields: Vec<(usize, usize)> = Vec::new();
    let mut at = 0;
    for line in section {
        match fields.last_mut() {
            Some((_, end)) if line.starts_with([' ', '\t']) => *end = at + line.len(),
            _ => fields.push((at, at + line.len())),
        }
        at += line.len();
    }
    fields.into_iter().map(|(from, to)| &message[from..to]).collect()
}

/// A scan as copiers send it: a PDF's worth of base64, in wire form.
fn scan() -> String {
    let mut message = String::from(
        "From: Copier 3rd floor <copier@example.com>\r\n\
         To: office@example.com\r\n\
         Subject: Scan from the copier on the 3rd floor,\r\n\
         \x20two pages\r\n\
         Date: Sun, 22 Nov 2026 10:00:00 +0000\r\n\
         Message-ID: <scan-1@copier.example.com>\r\n\
         MIME-Version: 1.0\r\n\
         Content-Type: application/pdf; name=\"scan.pdf\"\r\n\
         Content-Transfer-Encoding: base64\r\n\
         \r\n",
    );
    for line in 0..4_000u32 {
        let _ = write!(message, "{:A<76}\r\n", line.wrapping_mul(2_654_435_761));
    }
    message
}

/// A short message with a line that begins with a dot.
fn alarm() -> String {
    "From: panel@example.com\r\nTo: office@example.com\r\nSubject: Door 4 is open\r\n\r\n\
     Door 4 is open.\r\n..and so is door 5.\r\n"
        .to_owned()
}
