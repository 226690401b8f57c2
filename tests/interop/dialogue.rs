//! Programs that only make the connection: somebody has to type. It is typed as a careful person does,
//! waiting for each answer.

use std::process::Stdio;

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    process::{ChildStdin, ChildStdout, Command},
};

use crate::programs::{Job, Security};

struct Dialogue {
    keyboard: ChildStdin,
    screen: BufReader<ChildStdout>,
}

/// Sends a message through a program that connects stdin and stdout with the relay.
pub(crate) async fn hold(mut command: Command, job: &Job<'_>) -> Result<(), String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let mut diagnostics = child.stderr.take().unwrap();
    let mut dialogue = Dialogue {
        keyboard: child.stdin.take().unwrap(),
        screen: BufReader::new(child.stdout.take().unwrap()),
    };
    let held = dialogue.send(job).await;
    // At the end of what is typed the program ends too, whatever it heard.
    drop(dialogue);
    let mut said = String::new();
    let _ = diagnostics.read_to_string(&mut said).await;
    let status = child.wait().await.map_err(|error| error.to_string())?;
    held.map_err(|error| format!("{error}; {said}"))?;
    if status.success() { Ok(()) } else { Err(format!("{status}: {said}")) }
}

impl Dialogue {
    async fn send(&mut self, job: &Job<'_>) -> Result<(), String> {
        if job.security == Security::Implicit {
            self.hear("220").await?;
        }
        for (line, code) in [
            ("EHLO copier".to_owned(), "250"),
            (format!("MAIL FROM:<{}>", job.from), "250"),
            (format!("RCPT TO:<{}>", job.to), "250"),
            ("DATA".to_owned(), "354"),
        ] {
            self.say(line.as_bytes(), code).await?;
        }
        let mut data = Vec::new();
        for line in job.message.split_inclusive(|octet| *octet == b'\n') {
            if line.starts_with(b".") {
                data.push(b'.');
            }
            data.extend_from_slice(line);
        }
        data.push(b'.');
        self.say(&data, "250").await?;
        self.say(b"QUIT", "221").await
    }

    async fn say(&mut self, text: &[u8], code: &str) -> Result<(), String> {
        let line = [text, b"\r\n"].concat();
        self.keyboard.write_all(&line).await.map_err(|error| error.to_string())?;
        self.hear(code).await
    }

    /// Reads a reply to its last line.
    async fn hear(&mut self, code: &str) -> Result<(), String> {
        let mut reply = String::new();
        loop {
            let start = reply.len();
            let read =
                self.screen.read_line(&mut reply).await.map_err(|error| error.to_string())?;
            let line = &reply[start..];
            if read == 0 || line.as_bytes().get(3) == Some(&b' ') {
                let expected = line.starts_with(code);
                return if expected {
                    Ok(())
                } else {
                    Err(format!("{reply:?} where {code} was due"))
                };
            }
        }
    }
}
