//! One connection to the smarthost, from the greeting to its end.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, timeout},
};
use tokio_util::codec::Framed;

use super::{LoginError, Target, classify::class::Scope, journal::Journal};
use crate::{
    codec::client::ClientCodec,
    config::SmarthostTls,
    proto::{
        capabilities::Capabilities,
        client::{Next, Opening, Refusal, Security, Stage},
        command::Command,
        reply::{Reply, ReplyFault},
        sasl::Login,
    },
    telemetry::transcript::{Transcript, Voice},
    transport::{
        client_tls::{ClientTls, HandshakeError, Secured, Shown},
        dial::DialError,
        stream::{BoxIo, TlsInfo},
    },
};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(30);
/// How long the smarthost may refuse to take a chunk of data (RFC 5321 section 4.5.3.2.5).
pub const DATA_BLOCK: Duration = Duration::from_secs(180);
/// Commands that are sent at the most before their replies are read: while we write, nobody reads, and both sides
/// would wait for each other once the TCP windows are full (RFC 2920 section 3.2).
const FLIGHT: usize = 100;
/// How long to wait for the smarthost's close: it counts the connection until then.
const CLOSING: Duration = Duration::from_secs(1);

const BUFFER: usize = 1024;

/// A connection that can carry mail.
pub struct Connection {
    framed: Framed<BoxIo, ClientCodec>,
    capabilities: Capabilities,
    tls: Option<TlsInfo>,
    shown: Option<Shown>,
    peer: SocketAddr,
    journal: Arc<Journal>,
    /// Where what is said is written down.
    transcript: Transcript,
    born: Instant,
    /// Transactions that have begun.
    transactions: u32,
    /// The smarthost has said 421, or the dialogue has lost its step.
    finished: bool,
    /// A refusal spoke of the connection, or of who uses it.
    spent: bool,
}

/// Why a connection did not come to carry mail.
#[derive(Debug, Error)]
pub enum OpenError {
    /// No TCP connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The TLS handshake failed.
    #[error("the TLS handshake with the smarthost failed: {0}")]
    Tls(HandshakeError),
    /// The smarthost said no, or does not offer what is needed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The connection broke.
    #[error(transparent)]
    Lost(#[from] Lost),
    /// There is nothing to log in with.
    #[error(transparent)]
    Login(#[from] LoginError),
}

/// A connection that broke, and where.
#[derive(Debug, Error)]
#[error("the connection to the smarthost was lost at {stage}: {cause}")]
pub struct Lost {
    /// What was waited for.
    pub stage: Stage,
    /// What happened.
    pub cause: LostCause,
}

/// How a connection broke.
#[derive(Debug, Error)]
pub enum LostCause {
    /// It was closed.
    #[error("closed by the smarthost")]
    Closed,
    /// A socket error.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// No answer in time.
    #[error("no answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// What came is no reply.
    #[error("{0}")]
    Garbage(#[from] ReplyFault),
    /// Something was said unasked: replies and commands do not match any more.
    #[error("an answer came that nobody had asked for")]
    OutOfStep,
    /// Bytes came in the clear behind the answer to STARTTLS: somebody on the way put them there.
    #[error("bytes were injected before the TLS handshake")]
    Injected,
}

impl Lost {
    /// The same, or what the smarthost has against our certificate.
    fn explained(self, client: Option<&ClientTls>) -> OpenError {
        let LostCause::Io(error) = &self.cause else { return self.into() };
        match client.and_then(|client| client.refused_ours(error)) {
            Some(refused) => OpenError::Tls(refused),
            None => self.into(),
        }
    }
}

impl OpenError {
    /// Where it happened.
    pub fn stage(&self) -> Stage {
        match self {
            Self::Dial(_) => Stage::Connect,
            Self::Tls(_) => Stage::Tls,
            Self::Refused(Refusal::Reply(stage, _)) => *stage,
            Self::Refused(Refusal::NoStartTls) => Stage::StartTls,
            Self::Refused(Refusal::NoMechanism) | Self::Login(_) => Stage::Auth,
            Self::Lost(lost) => lost.stage,
        }
    }
}

impl Connection {
    /// Connects and logs in.
    pub async fn open(
        target: &Target,
        login: Login,
        journal: &Arc<Journal>,
        transcript: &Transcript,
    ) -> Result<Self, OpenError> {
        let way = target.dialler.dial().await?;
        Self::over(way, target, login, journal, transcript).await
    }

    /// Logs in over a connection that has just come about.
    pub async fn over(
        (io, peer): (BoxIo, SocketAddr),
        target: &Target,
        login: Login,
        journal: &Arc<Journal>,
        transcript: &Transcript,
    ) -> Result<Self, OpenError> {
        let client = target.tls();
        let mut connection = Self {
            framed: framed(io),
            capabilities: Capabilities::default(),
            tls: None,
            shown: None,
            peer,
            journal: Arc::clone(journal),
            transcript: transcript.clone(),
            born: Instant::now(),
            transactions: 0,
            finished: false,
            spent: false,
        };
        let security = match (&client, target.smarthost.tls) {
            (Some(client), SmarthostTls::Implicit) => {
                connection = connection.secure(client, target.patience).await?;
                Security::Settled
            }
            (Some(_), _) => Security::StartTls,
            (None, _) => Security::Settled,
        };
        let mut opening = Opening::new(&target.hostname, security, login);
        loop {
            let reply = connection.reply(opening.stage(), target.patience).await;
            let reply = reply.map_err(|lost| lost.explained(client.as_ref()))?;
            let mut next = opening.reply(&reply)?;
            if next == Next::Handshake {
                let Some(client) = &client else { return Err(Refusal::NoStartTls.into()) };
                connection = connection.secure(client, target.patience).await?;
                next = opening.secured();
            }
            match next {
                Next::Send(command) => connection.send(opening.stage(), &[command]).await?,
                Next::Ready | Next::Handshake => break,
            }
        }
        connection.capabilities = opening.capabilities().clone();
        connection.transcript = Transcript::default();
        Ok(connection)
    }

    /// What the smarthost offers.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Version and cipher, if there is TLS.
    pub fn tls(&self) -> Option<&TlsInfo> {
        self.tls.as_ref()
    }

    /// The certificate that the smarthost has shown.
    pub fn shown(&self) -> Option<&Shown> {
        self.shown.as_ref()
    }

    /// The address on the other end.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// How old it is.
    pub fn age(&self) -> Duration {
        self.born.elapsed()
    }

    /// Whether it has carried a transaction before.
    pub fn is_used(&self) -> bool {
        self.transactions > 0
    }

    /// Whether another transaction may begin.
    pub fn is_usable(&self) -> bool {
        !self.finished && !self.spent
    }

    /// Nothing more can be said on it.
    pub(super) fn give_up(&mut self) {
        self.finished = true;
    }

    /// A transaction begins.
    pub(super) fn count_transaction(&mut self) {
        self.transactions += 1;
    }

    /// What is said from now on is written down there.
    pub(super) fn write_down(&mut self, transcript: Transcript) {
        self.transcript = transcript;
    }

    /// Sends the commands of one transaction and reads their replies: in flights if `pipelined` and the smarthost
    /// takes that, else one by one (RFC 2920). `wait` is for each reply. There are fewer replies than commands when
    /// the smarthost closes, or when the rest is not worth asking: after a MAIL or RSET that was refused, and a
    /// DATA of which it is known before that no recipient was taken.
    pub(super) async fn exchange(
        &mut self,
        commands: &[Command],
        pipelined: bool,
        wait: Duration,
    ) -> Result<Vec<Reply>, Lost> {
        let flight = if pipelined && self.capabilities.pipelining { FLIGHT } else { 1 };
        let mut replies = Vec::with_capacity(commands.len());
        let (mut denied, mut named, mut taken) = (false, false, false);
        for group in commands.chunks(flight) {
            if denied || (named && !taken && matches!(group, [Command::Data])) {
                break;
            }
            let stage = group.first().map_or(Stage::Rset, stage_of);
            if self.has_news() {
                return Err(Lost { stage, cause: LostCause::OutOfStep });
            }
            self.send(stage, group).await?;
            for command in group {
                let stage = stage_of(command);
                // Without a sender or a recipient a refusal only says that there is none.
                let follows = denied || (stage == Stage::Data && named && !taken);
                let reply = self.answer(stage, wait, follows).await?;
                match stage {
                    Stage::Rcpt => {
                        named = true;
                        taken |= is_taken(&reply);
                    }
                    Stage::Mail | Stage::Rset => denied |= !reply.code.is_positive(),
                    _ => {}
                }
                let over = reply.code.get() == 421;
                replies.push(reply);
                if over {
                    // The smarthost closes: what else was sent has no answer (RFC 5321 section 3.8).
                    return Ok(replies);
                }
            }
        }
        if !self.framed.read_buffer().is_empty() {
            // More answers than questions: one of them was nobody's.
            let stage = commands.last().map_or(Stage::Rset, stage_of);
            return Err(Lost { stage, cause: LostCause::OutOfStep });
        }
        Ok(replies)
    }

    /// Writes mail data past the codec: the same octets, no copy. `wait` is how long the smarthost may refuse
    /// to take them.
    pub(super) async fn write_data(
        &mut self,
        mut chunk: Bytes,
        wait: Duration,
    ) -> Result<(), Lost> {
        let lost = |cause| Lost { stage: Stage::Data, cause };
        match timeout(wait, self.framed.get_mut().write_all_buf(&mut chunk)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(lost(LostCause::Io(error))),
            Err(_) => Err(lost(LostCause::Timeout(wait))),
        }
    }

    /// Sends the final dot and waits for the verdict.
    pub(super) async fn end_data(&mut self, wait: Duration) -> Result<Reply, Lost> {
        if self.has_news() {
            // An early refusal, or a stray reply that would be taken for the verdict: no dot.
            return Err(Lost { stage: Stage::Data, cause: LostCause::OutOfStep });
        }
        self.transcript.say(Voice::ToSmarthost, "(mail data) and the final dot");
        self.write_data(Bytes::from_static(b".\r\n"), DATA_BLOCK)
            .await
            .map_err(|lost| Lost { stage: Stage::Eod, ..lost })?;
        let lost = |cause| Lost { stage: Stage::Eod, cause };
        timeout(DATA_BLOCK, self.framed.get_mut().flush())
            .await
            .map_err(|_| lost(LostCause::Timeout(DATA_BLOCK)))?
            .map_err(|error| lost(LostCause::Io(error)))?;
        self.reply(Stage::Eod, wait).await
    }

    /// Whether the smarthost has said something unasked (a late 421) or closed.
    pub(super) fn has_news(&mut self) -> bool {
        if !self.framed.read_buffer().is_empty() {
            return true;
        }
        let mut octet = [0; 1];
        self.framed.get_mut().read(&mut octet).now_or_never().is_some()
    }

    /// Ends the connection: with QUIT where the smarthost expects a command. Returns when the smarthost has
    /// closed too, after a second at most.
    pub(super) async fn close(mut self, polite: bool) {
        let farewell = async {
            if polite && !self.finished {
                self.framed.send(&Command::Quit).await?;
            }
            let io = self.framed.get_mut();
            io.shutdown().await?;
            let mut rest = [0; 512];
            while io.read(&mut rest).await? > 0 {}
            io::Result::Ok(())
        };
        let _ = timeout(CLOSING, farewell).await;
    }

    async fn send(&mut self, stage: Stage, commands: &[Command]) -> Result<(), Lost> {
        let lost = |cause| Lost { stage, cause };
        let sending = async {
            for command in commands {
                tracing::trace!(?command, "to the smarthost");
                self.transcript.say(Voice::ToSmarthost, format_args!("{command:?}"));
                self.framed.feed(command).await?;
            }
            self.framed.flush().await
        };
        timeout(DATA_BLOCK, sending)
            .await
            .map_err(|_| lost(LostCause::Timeout(DATA_BLOCK)))?
            .map_err(|error| lost(LostCause::Io(error)))
    }

    async fn reply(&mut self, stage: Stage, wait: Duration) -> Result<Reply, Lost> {
        self.answer(stage, wait, false).await
    }

    /// A reply; one that `follows` a refusal of the same flight says nothing new.
    async fn answer(&mut self, stage: Stage, wait: Duration, follows: bool) -> Result<Reply, Lost> {
        let lost = |cause| Lost { stage, cause };
        let item =
            timeout(wait, self.framed.next()).await.map_err(|_| lost(LostCause::Timeout(wait)))?;
        let reply = match item {
            Some(Ok(Ok(reply))) => reply,
            Some(Ok(Err(fault))) => return Err(lost(LostCause::Garbage(fault))),
            Some(Err(error)) => return Err(lost(LostCause::Io(error))),
            None => return Err(lost(LostCause::Closed)),
        };
        tracing::trace!(%stage, %reply, "from the smarthost");
        self.transcript.say(Voice::Smarthost, &reply);
        self.finished |= reply.code.get() == 421;
        let scope = self.journal.heard(stage, &reply, follows).scope;
        let about_mail =
            matches!(scope, Scope::Recipient | Scope::Message | Scope::Sender | Scope::Mailbox);
        self.spent |= reply.code.get() >= 400 && !about_mail && !follows;
        Ok(reply)
    }

    async fn secure(self, client: &ClientTls, patience: Duration) -> Result<Self, OpenError> {
        let parts = self.framed.into_parts();
        if !parts.read_buf.is_empty() {
            return Err(Lost { stage: Stage::StartTls, cause: LostCause::Injected }.into());
        }
        let patience = patience.min(HANDSHAKE);
        let Secured { io, tls, shown } = match timeout(patience, client.connect(parts.io)).await {
            Ok(secured) => secured.map_err(OpenError::Tls)?,
            Err(_) => return Err(OpenError::Tls(HandshakeError::timed_out(patience))),
        };
        self.transcript.say(Voice::Note, format_args!("TLS with the smarthost: {tls}"));
        Ok(Self { framed: framed(io), tls: Some(tls), shown, ..self })
    }
}

fn framed(io: BoxIo) -> Framed<BoxIo, ClientCodec> {
    Framed::with_capacity(io, ClientCodec::new(), BUFFER)
}

/// Whether a RCPT was accepted (RFC 5321 section 4.3.2). 252 is an answer to VRFY.
pub(super) fn is_taken(reply: &Reply) -> bool {
    matches!(reply.code.get(), 250 | 251)
}

fn stage_of(command: &Command) -> Stage {
    match command {
        Command::Mail(..) => Stage::Mail,
        Command::Rcpt(_) => Stage::Rcpt,
        Command::Data => Stage::Data,
        _ => Stage::Rset,
    }
}
