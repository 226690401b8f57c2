//! One connection to the stand-in. Replies are those of `smtp.office365.com`.

use std::{
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::BytesMut;
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use openssl::sha::Sha256;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::Instant,
};
use tokio_util::codec::Framed;

use super::{
    Delivery, Server,
    record::Seat,
    scenario::{Deed, Stage, Words},
};
use crate::{
    codec::server::{ServerCodec, ServerItem},
    proto::{
        command::Command,
        limits::LineEndings,
        reply::{Enhanced, Reply},
    },
    transport::stream::BoxIo,
};

const HOST: &str = "SANDBOX.PROD.OUTLOOK.COM";
/// Where a fault at `in-data` strikes, in octets.
const IN_DATA: usize = 32 * 1024;
/// What is no reply, in any reading of RFC 5321 section 4.2.
const GARBAGE: &[u8] = b"\xff\x00 hello\r\n";

/// The connection is over.
struct Over;

struct Peer {
    /// Given up before the connection is closed: whoever sees the close finds it gone.
    seat: Option<Seat>,
    framed: Framed<BoxIo, ServerCodec>,
    server: Arc<Server>,
    address: IpAddr,
    tls: bool,
    greeted: bool,
    user: Option<String>,
    /// The refusal that a later MAIL quotes.
    refused_login: Option<Reply>,
    from: Option<String>,
    recipients: Vec<String>,
    /// The number of this submission in the record.
    submission: Option<u64>,
}

/// Where the header section of mail data ends.
#[derive(Default)]
struct Behind {
    /// What was seen of the line end and the empty line behind the last field.
    matched: usize,
    body: Sha256,
}

pub(super) async fn serve(io: BoxIo, address: IpAddr, seat: Seat, server: Arc<Server>) {
    let peer = Peer {
        seat: Some(seat),
        framed: Framed::new(io, ServerCodec::new()),
        server,
        address,
        tls: false,
        greeted: false,
        user: None,
        refused_login: None,
        from: None,
        recipients: Vec::new(),
        submission: None,
    };
    // `Over` is how every connection ends.
    let _ = if peer.server.script.scenario.implicit {
        match peer.secure().await {
            Ok(peer) => peer.run().await,
            Err(over) => Err(over),
        }
    } else {
        peer.run().await
    };
}

impl Peer {
    async fn run(mut self) -> Result<(), Over> {
        let greeting = Reply::new(
            220,
            None,
            format!(
                "{HOST} Microsoft ESMTP MAIL Service ready at Sun, 22 Nov 2026 10:00:00 +0000 [08DE29A0C0FFEE00]"
            ),
        );
        self.answer(Stage::Connect, greeting).await?;
        loop {
            let line = match self.next().await? {
                ServerItem::Line(line) => line,
                ServerItem::LineTooLong => {
                    self.say(&Reply::new(500, Enhanced(5, 3, 3), "Line too long")).await?;
                    continue;
                }
                _ => continue,
            };
            match Command::parse(&line) {
                Ok(Command::StartTls) if self.server.script.scenario.starttls && !self.tls => {
                    let ready = Reply::new(220, Enhanced(2, 0, 0), "SMTP server ready");
                    if self.answered(Stage::Starttls, ready).await? == 220 {
                        self = self.secure().await?;
                    }
                }
                Ok(command) => self.command(command).await?,
                Err(_) => {
                    let verb: String = String::from_utf8_lossy(&line)
                        .chars()
                        .take(20)
                        .filter(char::is_ascii_graphic)
                        .collect();
                    self.say(&Reply::new(
                        500,
                        Enhanced(5, 3, 3),
                        format!("Unrecognized command '{verb}'"),
                    ))
                    .await?;
                }
            }
        }
    }

    async fn command(&mut self, command: Command) -> Result<(), Over> {
        let simple = |code, enhanced: Enhanced, text: &str| Reply::new(code, enhanced, text);
        match command {
            Command::Ehlo(_) => self.ehlo().await,
            Command::Helo(_) => {
                self.greeted = true;
                let hello = format!("{HOST} Hello [{}]", self.address);
                self.answer(Stage::Ehlo, Reply::new(250, None, hello)).await
            }
            Command::Auth(mechanism, initial) => self.auth(&mechanism, initial).await,
            Command::Mail(path, params) => {
                if let Some(refusal) = self.mail_refusal(params.size) {
                    return self.say(&refusal).await;
                }
                let limit = self.server.script.scenario.messages_per_minute;
                self.submission =
                    self.server.record.mail(self.user.as_deref().unwrap_or_default(), limit);
                if self.submission.is_none() {
                    self.say(&simple(
                        421,
                        Enhanced(4, 4, 2),
                        "Message submission rate for this client has exceeded the configured limit",
                    ))
                    .await?;
                    return self.close().await;
                }
                self.from = Some(path.as_str().to_owned());
                if self.answered(Stage::Mail, simple(250, Enhanced(2, 1, 0), "Sender OK")).await?
                    != 250
                {
                    self.reset();
                }
                Ok(())
            }
            Command::Rcpt(path) if self.from.is_some() => {
                self.recipients.push(path.as_str().to_owned());
                // Only the new recipient may ask for a fault at its own RCPT.
                if self
                    .answered(Stage::Rcpt, simple(250, Enhanced(2, 1, 5), "Recipient OK"))
                    .await?
                    != 250
                {
                    self.recipients.pop();
                }
                Ok(())
            }
            Command::Rcpt(_) => {
                self.say(&simple(503, Enhanced(5, 5, 2), "Need mail command")).await
            }
            Command::Data if self.from.is_some() && !self.recipients.is_empty() => {
                self.data().await
            }
            Command::Data => self.say(&simple(503, Enhanced(5, 5, 2), "Need rcpt command")).await,
            Command::Rset => {
                self.reset();
                self.say(&simple(250, Enhanced(2, 0, 0), "Resetting")).await
            }
            Command::Noop => self.say(&simple(250, Enhanced(2, 0, 0), "OK")).await,
            Command::Quit => {
                self.say(&simple(221, Enhanced(2, 0, 0), "Service closing transmission channel"))
                    .await?;
                self.close().await
            }
            Command::StartTls if self.tls => {
                self.say(&simple(
                    503,
                    Enhanced(5, 5, 2),
                    "Only one STARTTLS command can be issued per session",
                ))
                .await
            }
            _ => self.say(&simple(502, Enhanced(5, 3, 3), "Command not implemented")).await,
        }
    }

    async fn ehlo(&mut self) -> Result<(), Over> {
        self.greeted = true;
        self.reset();
        let scenario = &self.server.script.scenario;
        let between = match self.tls {
            false if scenario.starttls => Some("STARTTLS".to_owned()),
            true if !scenario.auth.is_empty() => Some(format!("AUTH {}", scenario.auth.join(" "))),
            _ => None,
        };
        let offers = [
            Some(format!("SIZE {}", scenario.size)),
            Some("PIPELINING".to_owned()),
            Some("DSN".to_owned()),
            Some("ENHANCEDSTATUSCODES".to_owned()),
            between,
            Some("8BITMIME".to_owned()),
            Some("BINARYMIME".to_owned()),
            Some("CHUNKING".to_owned()),
            Some("SMTPUTF8".to_owned()),
        ];
        let hidden = |line: &String| {
            scenario.hide.iter().any(|keyword| line.split(' ').next() == Some(keyword))
        };
        let mut reply = Reply::new(250, None, format!("{HOST} Hello [{}]", self.address));
        reply.lines.extend(offers.into_iter().flatten().filter(|line| !hidden(line)));
        self.answer(Stage::Ehlo, reply).await
    }

    async fn auth(&mut self, mechanism: &str, initial: Option<String>) -> Result<(), Over> {
        let offered = self.server.script.scenario.auth.iter().any(|offered| offered == mechanism);
        if !self.tls || !offered {
            return self
                .say(&Reply::new(504, Enhanced(5, 7, 4), "Unrecognized authentication type"))
                .await;
        }
        if self.user.is_some() {
            return self.say(&Reply::new(503, Enhanced(5, 5, 2), "Already authenticated")).await;
        }
        let (user, password, token) = if mechanism == "LOGIN" {
            let user = match initial {
                Some(user) => decode(&user),
                None => self.ask("VXNlcm5hbWU6").await?,
            };
            (user, Some(self.ask("UGFzc3dvcmQ6").await?), None)
        } else {
            let blob = match initial {
                Some(blob) => decode(&blob),
                None => self.ask("").await?,
            };
            let field = |name: &str| {
                blob.split('\u{1}').find_map(|field| field.strip_prefix(name)).map(str::to_owned)
            };
            match blob.split('\0').collect::<Vec<_>>()[..] {
                [_, user, password] => (user.to_owned(), Some(password.to_owned()), None),
                _ => (field("user=").unwrap_or_default(), None, field("auth=Bearer ")),
            }
        };
        let scenario = &self.server.script.scenario;
        let right = password.is_some_and(|password| matches(&scenario.password, &password))
            || token.is_some_and(|token| match &self.server.authority {
                Some(authority) => authority.accepts(&token, &user),
                None => matches(&scenario.token, &token),
            });
        if right && matches(&self.server.script.scenario.user, &user) {
            let reply = Reply::new(235, Enhanced(2, 7, 0), "Authentication successful");
            if self.answered(Stage::Auth, reply).await? == 235 {
                self.server.counts.logins.fetch_add(1, Ordering::SeqCst);
                if let Some(seat) = &mut self.seat {
                    seat.is_of(&user);
                }
                self.user = Some(user);
                return Ok(());
            }
        } else {
            let reply = if mechanism == "LOGIN" {
                Reply::new(
                    535,
                    Enhanced(5, 7, 139),
                    format!(
                        "Authentication unsuccessful, the user credentials were incorrect. {}",
                        suffix()
                    ),
                )
            } else {
                Reply::new(
                    535,
                    Enhanced(5, 7, 3),
                    format!("Authentication unsuccessful {}", suffix()),
                )
            };
            self.refused_login = Some(reply.clone());
            self.answer(Stage::Auth, reply).await?;
        }
        self.server.counts.refused_logins.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// Sends a challenge and reads the response.
    async fn ask(&mut self, challenge: &str) -> Result<String, Over> {
        self.say(&Reply::new(334, None, challenge)).await?;
        match self.next().await? {
            ServerItem::Line(line) => Ok(decode(&String::from_utf8_lossy(&line))),
            _ => Err(Over),
        }
    }

    fn mail_refusal(&self, size: Option<u64>) -> Option<Reply> {
        let scenario = &self.server.script.scenario;
        if !self.greeted {
            return Some(Reply::new(503, Enhanced(5, 5, 2), "Send hello first"));
        }
        if !self.tls && scenario.starttls {
            return Some(Reply::new(451, Enhanced(5, 7, 3), "STARTTLS is required to send mail"));
        }
        if self.user.is_none() && !scenario.auth.is_empty() {
            let cause = self
                .refused_login
                .as_ref()
                .map_or_else(suffix, |refused| format!("Error: {refused}"));
            return Some(Reply::new(
                530,
                Enhanced(5, 7, 57),
                format!("Client not authenticated to send mail. {cause}"),
            ));
        }
        if self.from.is_some() {
            return Some(Reply::new(503, Enhanced(5, 5, 2), "Sender already specified"));
        }
        size.filter(|size| *size > scenario.size).map(|_| {
            Reply::new(552, Enhanced(5, 3, 4), "Message size exceeds fixed maximum message size")
        })
    }

    async fn data(&mut self) -> Result<(), Over> {
        let go = Reply::new(354, None, "Start mail input; end with <CRLF>.<CRLF>");
        if self.answered(Stage::Data, go).await? != 354 {
            self.reset();
            return Ok(());
        }
        // Exchange Online refuses bare line feeds; it does not mend them.
        self.framed.codec_mut().start_data(LineEndings::Strict);
        let (mut data, mut behind) = (BytesMut::new(), Behind::default());
        let keep = self.server.script.scenario.keep.min(super::KEPT);
        let mut verdict = Reply::new(
            250,
            Enhanced(2, 0, 0),
            format!("OK <{:016x}@{HOST}> [Hostname={HOST}]", fastrand::u64(..)),
        );
        let (mut length, mut passed) = (0, false);
        let size = loop {
            let item = self.next().await.inspect_err(|_| {
                self.server.counts.cut.fetch_add(1, Ordering::SeqCst);
            })?;
            match item {
                ServerItem::Data(chunk) => {
                    data.extend_from_slice(
                        &chunk[..chunk.len().min(keep.saturating_sub(data.len()))],
                    );
                    behind.take(&chunk);
                    length += chunk.len();
                    if length >= IN_DATA && !std::mem::replace(&mut passed, true) {
                        self.strike(Stage::InData).await?;
                    }
                }
                ServerItem::DataFault(_) => {
                    verdict = Reply::new(
                        550,
                        Enhanced(5, 6, 11),
                        "SMTPSEND.BareLinefeedsAreIllegal; message contains bare linefeeds",
                    )
                }
                ServerItem::DataEnd { size, .. } => break size,
                _ => {}
            }
        };
        let scenario = &self.server.script.scenario;
        if size > scenario.size {
            verdict = Reply::new(
                552,
                Enhanced(5, 3, 4),
                "Message size exceeds fixed maximum message size",
            );
        }
        let user = self.user.clone().unwrap_or_default();
        let open = self.server.record.open(&user).0;
        if scenario.max_connections.is_some_and(|most| open > most) {
            verdict = Reply::new(
                432,
                Enhanced(4, 3, 2),
                format!(
                    "Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending for more information. [Hostname={HOST}]"
                ),
            );
        }
        let delivery = Delivery {
            from: self.from.clone().unwrap_or_default(),
            recipients: self.recipients.clone(),
            data: data.freeze(),
            size,
            body: behind.body.finish(),
            user,
            at: Instant::now(),
        };
        let code = self.answered(Stage::Dot, verdict).await?;
        let delivery = Delivery { at: Instant::now(), ..delivery };
        if let Some(number) = self.submission.take() {
            self.server.record.dot(number, code);
        }
        self.reset();
        if code == 250 {
            // Kept before it is said: who has read the 250 finds the message.
            self.server.keep(delivery);
            self.framed.flush().await.map_err(|_| Over)?;
            self.strike(Stage::Idle).await?;
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.from = None;
        self.recipients.clear();
    }

    fn due(&self, stage: Stage) -> Option<Deed> {
        let from = self.from.iter().map(|from| (Stage::Mail, from.as_str()));
        // At RCPT only the newest recipient counts, later all of them do.
        let skip = if stage == Stage::Rcpt { self.recipients.len().saturating_sub(1) } else { 0 };
        let recipients =
            self.recipients.iter().skip(skip).map(|recipient| (Stage::Rcpt, recipient.as_str()));
        self.server.script.due(stage, from.chain(recipients))
    }

    async fn answer(&mut self, stage: Stage, usual: Reply) -> Result<(), Over> {
        self.answered(stage, usual).await.map(drop)
    }

    /// Answers a stage, as usual or as a fault has it; returns the code that was said.
    async fn answered(&mut self, stage: Stage, usual: Reply) -> Result<u16, Over> {
        let deed = self.due(stage).unwrap_or_default();
        if !deed.delay.is_zero() {
            self.framed.flush().await.map_err(|_| Over)?;
            tokio::time::sleep(deed.delay).await;
        }
        match deed.words {
            Words::Usual if deed.close => self.close().await,
            Words::Usual => self.said(usual, false).await,
            Words::Reply(reply) => self.said(reply, deed.close).await,
            Words::Garbage => {
                self.babble().await?;
                // No code at all: nothing was granted.
                if deed.close { self.close().await } else { Ok(0) }
            }
            Words::None => self.hang().await,
        }
    }

    async fn said(&mut self, reply: Reply, close: bool) -> Result<u16, Over> {
        self.say(&reply).await?;
        if close { self.close().await } else { Ok(reply.code.get()) }
    }

    /// A fault where nobody waits for an answer. In the middle of something the connection ends with what is said.
    async fn strike(&mut self, stage: Stage) -> Result<(), Over> {
        let Some(Deed { delay, words, close }) = self.due(stage) else { return Ok(()) };
        let ends = stage != Stage::Idle;
        self.framed.flush().await.map_err(|_| Over)?;
        if stage == Stage::Tls && (close || words != Words::Usual) {
            // The client's first words are read: with octets unread a close is a reset.
            let _ = self.framed.get_mut().read(&mut [0; 512]).await;
        }
        tokio::time::sleep(delay).await;
        let says = words != Words::Usual;
        match words {
            Words::Usual => {}
            Words::Reply(reply) => {
                self.say(&reply).await?;
                self.framed.flush().await.map_err(|_| Over)?;
            }
            Words::Garbage => self.babble().await?,
            // Nothing is read any more, so that the relay's writes come to a stop. Its close is not seen either.
            Words::None if stage == Stage::InData => std::future::pending().await,
            Words::None => return self.hang().await,
        }
        if close || (says && ends) { self.close().await } else { Ok(()) }
    }

    /// Says what is no reply.
    async fn babble(&mut self) -> Result<(), Over> {
        self.framed.flush().await.map_err(|_| Over)?;
        let io = self.framed.get_mut();
        io.write_all(GARBAGE).await.map_err(|_| Over)?;
        io.flush().await.map_err(|_| Over)
    }

    /// Says nothing any more; returns when the other side has closed.
    async fn hang<T>(&mut self) -> Result<T, Over> {
        self.framed.flush().await.map_err(|_| Over)?;
        let mut unheard = [0; 512];
        while self.framed.get_mut().read(&mut unheard).await.is_ok_and(|read| read > 0) {}
        Err(Over)
    }

    async fn close<T>(&mut self) -> Result<T, Over> {
        self.seat = None;
        let _ = self.framed.close().await;
        Err(Over)
    }

    /// The next item; replies go out when there is nothing left to read.
    async fn next(&mut self) -> Result<ServerItem, Over> {
        let read = match self.framed.next().now_or_never() {
            Some(read) => read,
            None => {
                self.framed.flush().await.map_err(|_| Over)?;
                self.framed.next().await
            }
        };
        read.and_then(Result::ok).ok_or(Over)
    }

    async fn say(&mut self, reply: &Reply) -> Result<(), Over> {
        self.framed.feed(reply).await.map_err(|_| Over)
    }

    async fn secure(mut self) -> Result<Self, Over> {
        self.framed.flush().await.map_err(|_| Over)?;
        self.strike(Stage::Tls).await?;
        let accepted =
            self.server.tls.accept(self.framed.into_parts().io).await.map_err(|_| Over)?;
        Ok(Self {
            framed: Framed::new(accepted.io, ServerCodec::new()),
            tls: true,
            greeted: false,
            user: None,
            from: None,
            recipients: Vec::new(),
            ..self
        })
    }
}

impl Behind {
    fn take(&mut self, chunk: &[u8]) {
        const END: &[u8] = b"\r\n\r\n";
        let mut rest = chunk;
        while self.matched < END.len() {
            let Some((octet, after)) = rest.split_first() else { return };
            rest = after;
            self.matched = match *octet {
                octet if octet == END[self.matched] => self.matched + 1,
                b'\r' => 1,
                _ => 0,
            };
        }
        self.body.update(rest);
    }
}

fn decode(response: &str) -> String {
    STANDARD
        .decode(response.trim())
        .map(|octets| String::from_utf8_lossy(&octets).into_owned())
        .unwrap_or_default()
}

fn matches(right: &Option<String>, given: &str) -> bool {
    right.as_deref().is_none_or(|right| right == given)
}

/// What Exchange Online's front end puts behind its refusals.
fn suffix() -> String {
    format!("[{HOST} 2026-11-22T10:00:00.000Z 08DE29A0C0FFEE00]")
}
