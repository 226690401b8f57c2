//! `smtp-uplift queue export`

use std::{
    fs::{self, OpenOptions},
    io::{self, BufWriter, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use super::{Refusal, eml};
use crate::{
    cli::{ConfigFile, OK, USAGE, file::PRIVATE, stdout},
    spool::queue::Body,
};

#[derive(clap::Args)]
#[command(
    after_help = "The message stays in the queue. A file that is there already is not overwritten."
)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigFile,
    /// The message
    id: String,
    /// The file to write, only you can read it; - for stdout [default: ID.eml in this folder]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print JSON: what was written where
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args) -> Result<u8, Refusal> {
    let to_stdout = args.output.as_deref() == Some(Path::new("-"));
    if to_stdout && args.json {
        let reason = "--json would stand in the middle of the message; name a file with --output";
        return Err(Refusal { reason: reason.to_owned(), code: USAGE });
    }
    let spool = super::open_existing(&args.config)?;
    let id = &args.id;
    let Some(detail) = spool.queue.show(id.clone()).await? else {
        return Err(Refusal::no_message(id));
    };
    let Some(body) = spool.queue.body(id.clone()).await? else {
        return Err(Refusal::failed(format!(
            "{id}: it is {}, and its mail data are not kept any longer; what is left says smtp-uplift queue show {id}",
            detail.summary.state.as_str()
        )));
    };
    if to_stdout {
        let mut output = BufWriter::new(io::stdout().lock());
        let written = eml::write(&detail.head, &body, &mut output)
            .and_then(|_| output.flush().map_err(eml::Fault::Output));
        match written {
            Ok(()) => {}
            // Whoever reads it may have had enough; what becomes of that is the same for all commands.
            Err(eml::Fault::Output(error)) => stdout(Err(error)),
            Err(fault) => return Err(Refusal::failed(format!("{id}: {fault}"))),
        }
        return Ok(OK);
    }
    // An id is no path, whatever it looks like.
    let path =
        args.output.unwrap_or_else(|| PathBuf::from(format!("{}.eml", id.replace('/', "_"))));
    let octets = create(&path, &detail.head, &body).map_err(Refusal::failed)?;
    if args.json {
        say!("{:#}", serde_json::json!({ "id": id, "file": path, "bytes": octets }));
    } else {
        say!("{}: {octets} octets; only you can read it", path.display());
    }
    Ok(OK)
}

/// Writes a message to a file that is not there yet, whole or not at all.
fn create(path: &Path, head: &str, body: &Body) -> Result<u64, String> {
    let shown = path.display();
    let file = OpenOptions::new().write(true).create_new(true).mode(PRIVATE).open(path).map_err(
        |error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                format!("{shown} is there already, and nothing is overwritten; name another with --output")
            }
            _ => format!("{shown}: {error}; name another with --output"),
        },
    )?;
    let mut output = BufWriter::new(file);
    let written = eml::write(head, body, &mut output).and_then(|octets| {
        let flushed = output.flush().and_then(|()| output.get_ref().sync_all());
        flushed.map(|()| octets).map_err(eml::Fault::Output)
    });
    written.map_err(|fault| {
        // Half a message is worse than none.
        let _ = fs::remove_file(path);
        format!("{shown}: {fault}; nothing was written")
    })
}
