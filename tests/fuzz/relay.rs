//! The relay as a whole, between a device and a smarthost that say whatever they like, over loopback:
//!
//! ```text
//! pu8                  what the smarthost offers: PIPELINING, SMTPUTF8, 8BITMIME
//! 250 ok               what it answers to RSET, MAIL, RCPT, DATA and the dot, a line each. "!" closes instead;
//! 354 go|250 stray     behind "|" there is one more answer to DATA or the dot, which nobody asked for.
//!                      When they are used up it takes everything. An empty line ends them; then
//! EHLO copier          comes all that the device says, at once
//! ```

use std::{
    collections::VecDeque,
    io,
    path::Path,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};

use bytes::BytesMut;
use smtp_uplift::{
    codec::client::ClientCodec,
    config,
    proto::{command::Command, limits::LineEndings, reply::Reply},
    service::Service,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
    time::timeout,
};
use tokio_util::{codec::Decoder, sync::CancellationToken, task::TaskTracker};

use super::{oracle::oracle, well_formed};

/// Far longer than any conversation takes: nothing is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// * A device hears that a message was taken if the smarthost has said 250 to its dot, and only then.
/// * What arrives is what a naive reader finds in the device's octets, behind fields of ours.
/// * The smarthost hears commands in their strict form, one by one unless it offers PIPELINING, and no octet of
///   mail data as one.
/// * Each line of the device has one answer in form, until the session is closed; behind a DATA that is refused
///   none is read.
pub fn relay(input: &[u8]) {
    let house = HOUSE.lock().unwrap_or_else(PoisonError::into_inner);
    let (script, said) = Script::parse(input);
    *house.script.lock().unwrap() = script;
    // Data that the input does not end are ended here.
    let said = [said, b"\r\n.\r\nQUIT\r\n"].concat();
    let replies = house.runtime.block_on(house.converse(&said));
    let script = std::mem::take(&mut *house.script.lock().unwrap());
    assert!(script.complaints.is_empty(), "{:#?}", script.complaints);
    let taken = taken(&said, &replies);
    assert_eq!(taken.len(), script.delivered.len());
    for (sent, arrived) in taken.iter().zip(&script.delivered) {
        let front = arrived.strip_suffix(&sent[..]).expect("the data themselves are untouched");
        assert!(is_ours(front), "{:?}", String::from_utf8_lossy(front));
    }
}

/// Date and Message-ID, and a blank line where the data have no header section.
fn is_ours(mut front: &[u8]) -> bool {
    for name in [&b"Date: "[..], b"Message-ID: <", b"\r\n"] {
        if front.starts_with(name)
            && let Some(end) = front.iter().position(|octet| *octet == b'\n')
        {
            front = &front[end + 1..];
        }
    }
    front.is_empty()
}

/// One for all inputs: the start of a relay is not what is looked at.
static HOUSE: LazyLock<Mutex<House>> = LazyLock::new(|| Mutex::new(House::new()));

struct House {
    runtime: Runtime,
    service: Service,
    script: Shared,
    connections: TaskTracker,
}

type Shared = Arc<Mutex<Script>>;

/// What the smarthost answers, and what it heard.
#[derive(Default)]
struct Script {
    offers: Vec<&'static str>,
    answers: VecDeque<Vec<u8>>,
    /// The data of messages that it has said 250 to.
    delivered: Vec<Vec<u8>>,
    complaints: Vec<String>,
    over: CancellationToken,
}

impl House {
    fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let (script, connections) = (Shared::default(), TaskTracker::new());
        let socket = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let text = format!(
            r#"
            hostname = "relay.example"
            [[listener]]
            name = "lan"
            address = "127.0.0.1:0"
            tls = "none"
            [smarthost]
            host = "127.0.0.1"
            port = {}
            tls = "none"
            [[mailbox]]
            address = "scanner@example.com"
            auth = "none"
            [delivery]
            mode = "stream"
            [sender]
            rewrite = "keep"
            [admin]
            address = ""
            "#,
            socket.local_addr().unwrap().port()
        );
        let config = config::parse(&text, Path::new("fuzz.toml")).unwrap().config;
        runtime.spawn(accept(socket, Arc::clone(&script), connections.clone()));
        let service = runtime.block_on(Service::start(config)).unwrap();
        Self { runtime, service, script, connections }
    }

    /// Says everything once it is greeted, and hears what there is to hear.
    async fn converse(&self, said: &[u8]) -> Vec<Reply> {
        let mut device = TcpStream::connect(self.service.address("lan").unwrap()).await.unwrap();
        let (mut ear, mut mouth) = device.split();
        let (mut heard, mut octets) = (BytesMut::new(), [0; 4096]);
        while !heard.ends_with(b"\n") {
            ear.read_buf(&mut heard).await.unwrap();
        }
        let say = async {
            // The relay may close before it has heard all.
            let _ = mouth.write_all(said).await;
            let _ = mouth.shutdown().await;
        };
        let hear = async {
            while let Ok(count @ 1..) = ear.read(&mut octets).await {
                heard.extend_from_slice(&octets[..count]);
            }
        };
        let talk = async { tokio::join!(say, hear) };
        timeout(PATIENCE, talk).await.expect("nobody waits for the other");
        // The next input begins with a connection of its own.
        self.script.lock().unwrap().over.cancel();
        self.connections.close();
        self.connections.wait().await;
        self.connections.reopen();
        let mut codec = ClientCodec::new();
        let reply = || codec.decode(&mut heard).unwrap().map(|reply| reply.expect("a reply"));
        let replies: Vec<Reply> = std::iter::from_fn(reply).collect();
        assert!(heard.is_empty(), "half a reply: {heard:?}");
        replies.iter().for_each(well_formed);
        replies
    }
}

impl Script {
    /// The script and what the device says.
    fn parse(input: &[u8]) -> (Self, &[u8]) {
        let (mut script, mut rest, mut first) = (Self::default(), input, true);
        while let Some(end) = rest.iter().position(|octet| *octet == b'\n') {
            let line = &rest[..end];
            rest = &rest[end + 1..];
            if first {
                let all = [(b'p', "PIPELINING"), (b'u', "SMTPUTF8"), (b'8', "8BITMIME")];
                let offered = all.into_iter().filter(|(letter, _)| line.contains(letter));
                script.offers = offered.map(|(_, keyword)| keyword).collect();
                first = false;
            } else if line.is_empty() {
                break;
            } else {
                script.answers.push_back(line.to_vec());
            }
        }
        (script, rest)
    }

    /// What comes next, with CR LF, and its first code; `None` closes the connection. Only where `stray` an
    /// answer that nobody asked for may follow.
    fn answer(&mut self, usual: &str, stray: bool) -> Option<(BytesMut, Option<u16>)> {
        let scripted = self.answers.pop_front().unwrap_or_else(|| usual.into());
        if scripted == b"!" {
            return None;
        }
        let mut written = BytesMut::new();
        for part in scripted.split(|octet| *octet == b'|').take(if stray { 2 } else { 1 }) {
            written.extend_from_slice(part);
            // A reply without end would be waited for.
            if part.get(3) == Some(&b'-') {
                written.extend_from_slice(b"\r\n");
                written.extend_from_slice(&part[..3]);
            }
            written.extend_from_slice(b"\r\n");
        }
        let first = ClientCodec::new().decode(&mut written.clone()).unwrap();
        let code = first.and_then(Result::ok).map(|reply| reply.code.get());
        Some((written, code))
    }
}

/// The messages that the device was told are taken, as a naive reader finds them in what it said.
fn taken(said: &[u8], replies: &[Reply]) -> Vec<Vec<u8>> {
    let is_acceptance =
        |reply: &Reply| reply.code.get() == 250 && reply.text().starts_with("ok, id ");
    let (mut rest, mut found, mut replies) = (said, Vec::new(), replies.iter());
    assert_eq!(replies.next().map(|greeting| greeting.code.get()), Some(220));
    while let Some(reply) = replies.next() {
        let end = rest.iter().position(|octet| *octet == b'\n').expect("a line for each reply");
        let line = rest[..end].trim_ascii();
        rest = &rest[end + 1..];
        assert!(!is_acceptance(reply), "no command is a message: {reply}");
        if line.eq_ignore_ascii_case(b"DATA") && reply.code.get() != 354 {
            assert_eq!(replies.next(), None, "what stands behind may be mail data");
        }
        if reply.code.get() == 354 {
            let message = oracle(rest, LineEndings::Normalise);
            rest = &rest[rest.len() - message.left.len()..];
            if replies.next().is_some_and(is_acceptance) {
                found.push(message.output);
            }
        }
    }
    found
}

/// The smarthost.
async fn accept(socket: TcpListener, script: Shared, connections: TaskTracker) {
    while let Ok((stream, _)) = socket.accept().await {
        let _ = stream.set_nodelay(true);
        let script = Arc::clone(&script);
        let over = script.lock().unwrap().over.clone();
        connections.spawn(async move {
            let talk = serve(BufReader::new(stream), &script);
            let _ = over.run_until_cancelled(talk).await;
        });
    }
}

/// One connection of the smarthost, to its end.
async fn serve(mut io: BufReader<TcpStream>, script: &Mutex<Script>) -> io::Result<()> {
    let complain = |what: &str, octets: &[u8]| {
        let complaint = format!("{what}: {:?}", String::from_utf8_lossy(octets));
        script.lock().unwrap().complaints.push(complaint);
    };
    let answer = |usual, stray| script.lock().unwrap().answer(usual, stray);
    let offers = script.lock().unwrap().offers.clone();
    io.write_all(b"220 smarthost\r\n").await?;
    loop {
        let mut line = Vec::new();
        if io.read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        let command = Command::parse(line.strip_suffix(b"\r\n").unwrap_or_default());
        let mut strict = BytesMut::new();
        command.iter().for_each(|command| command.encode(&mut strict));
        if strict != line {
            complain("no command in strict form", &line);
        }
        if !offers.contains(&"PIPELINING") && !io.buffer().is_empty() {
            complain("more than one command", io.buffer());
        }
        if !offers.contains(&"SMTPUTF8") && !line.is_ascii() {
            complain("outside ASCII", &line);
        }
        match command {
            Ok(Command::Ehlo(_)) => {
                let offered: String =
                    offers.iter().map(|keyword| format!("250-{keyword}\r\n")).collect();
                let reply = format!("250-smarthost\r\n{offered}250 HELP\r\n");
                io.write_all(reply.as_bytes()).await?;
            }
            Ok(Command::Rset | Command::Mail(..) | Command::Rcpt(_)) => {
                let Some((written, _)) = answer("250 ok", false) else { return Ok(()) };
                io.write_all(&written).await?;
            }
            Ok(Command::Data) => {
                let Some((written, code)) = answer("354 go", true) else { return Ok(()) };
                io.write_all(&written).await?;
                if code != Some(354) {
                    continue;
                }
                let Some(data) = data(&mut io).await? else { return Ok(()) };
                if !io.buffer().is_empty() {
                    complain("more behind the dot", io.buffer());
                }
                let Some((written, code)) = answer("250 taken", true) else { return Ok(()) };
                match without_received(&data) {
                    Some(data) if code == Some(250) => {
                        script.lock().unwrap().delivered.push(data.to_vec());
                    }
                    Some(_) => {}
                    None => complain("no Received field", &data),
                }
                io.write_all(&written).await?;
            }
            Ok(Command::Quit) => return Ok(()),
            _ => {
                complain("not expected", &line);
                return Ok(());
            }
        }
    }
}

/// Mail data up to their dot, `None` if the connection ends before.
async fn data(io: &mut BufReader<TcpStream>) -> io::Result<Option<Vec<u8>>> {
    let mut data = Vec::new();
    loop {
        let begin = data.len();
        if io.read_until(b'\n', &mut data).await? == 0 {
            return Ok(None);
        }
        if data[begin..] == *b".\r\n" {
            data.truncate(begin);
            return Ok(Some(data));
        }
    }
}

/// What stands behind the four lines of the relay's Received field.
fn without_received(data: &[u8]) -> Option<&[u8]> {
    let mut rest = data.strip_prefix(b"Received: from ")?;
    for next in [" by relay.example ", " with ", " ", ""] {
        let end = rest.iter().position(|octet| *octet == b'\n')?;
        rest = rest[end + 1..].strip_prefix(next.as_bytes())?;
    }
    Some(rest)
}
