//! What a device does, as a list of operations, at a relay that keeps messages, with its stand-in for the smarthost. A
//! letter each, and for `c` and `G` one more octet that says which or how much:
//!
//! ```text
//! E EHLO   M MAIL    R RCPT               D DATA   c a chunk of data   X RSET   T STARTTLS   A AUTH
//! H HELO   m sloppy  r one that is gone   . a dot  G garbage           N NOOP   L a long line  Q QUIT
//! K hangs up, reads nothing, and calls again     p waits a moment
//! ```

use std::{
    io,
    path::Path,
    sync::{LazyLock, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use bytes::BytesMut;
use smtp_uplift::{
    codec::client::ClientCodec,
    config,
    sandbox::{Sandbox, scenario::Scenario},
    service::Service,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    runtime::{Builder, Runtime},
    time::{sleep, timeout},
};
use tokio_util::codec::Decoder as _;

use super::well_formed;

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// Operations of one input: more of them find nothing more.
const MOST: usize = 200;

const CHUNKS: [&[u8]; 11] = [
    b"Subject: x\r\n\r\n",
    b"line\r\n",
    b"\n.\n",
    b"\n.\r\n",
    b"\r\n..\r\n",
    b"MAIL FROM:<evil@x>\r\nRCPT TO:<evil@x>\r\nDATA\r\n",
    b".",
    b"\r",
    b"\n",
    b"\0\xff",
    b"From: somebody\r\n folded\r\n: none\r\n",
];

/// * Each 250 to a dot is a message that arrives, and none arrives that no dot was answered for: at most as many as
///   those whose answer nobody read.
/// * Each answer is in form, and the session ends when the device is done.
pub fn operations(input: &[u8]) {
    let mut house = HOUSE.lock().unwrap_or_else(PoisonError::into_inner);
    let House { runtime, service, sandbox, promised, doubtful, .. } = &mut *house;
    let address = service.address("lan").unwrap();
    let arrived = || sandbox.counts().accepted.load(Ordering::SeqCst);
    runtime.block_on(async {
        let mut device = Talk::begin(address).await;
        let mut octets = input.iter().take(MOST);
        while let Some(operation) = octets.next() {
            let said: Vec<u8> = match operation {
                b'E' => b"EHLO copier\r\n".to_vec(),
                b'H' => b"helo\n".to_vec(),
                b'M' => b"MAIL FROM:<copier@example.com>\r\n".to_vec(),
                b'm' => b"mail from: copier@example.com auth=<> size= \n".to_vec(),
                b'R' => b"RCPT TO:<office@example.com>\r\n".to_vec(),
                b'r' => b"RCPT TO:<reply-550-5.1.1@example.com>\r\n".to_vec(),
                b'D' => b"DATA\r\n".to_vec(),
                b'.' => b"\r\n.\r\n".to_vec(),
                b'X' => b"RSET\r\n".to_vec(),
                b'N' => b"NOOP\r\n".to_vec(),
                b'Q' => b"QUIT\r\n".to_vec(),
                b'T' => b"STARTTLS\r\n".to_vec(),
                b'A' => b"AUTH PLAIN AHgAeQ==\r\n".to_vec(),
                b'L' => vec![b'x'; 20_000],
                b'c' => {
                    let which = usize::from(octets.next().copied().unwrap_or(0));
                    CHUNKS[which % CHUNKS.len()].to_vec()
                }
                b'G' => {
                    let how = octets.next().copied().unwrap_or(0);
                    (0..how).map(|place| place.wrapping_mul(how)).collect()
                }
                b'K' => {
                    *doubtful += device.dots;
                    device = Talk::begin(address).await;
                    continue;
                }
                b'p' => {
                    sleep(Duration::from_millis(1)).await;
                    continue;
                }
                _ => continue,
            };
            device.say(&said).await;
        }
        device.say(b"\r\n.\r\nQUIT\r\n").await;
        *promised += device.end().await;
        let all_arrive = async {
            while arrived() < *promised {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, all_arrive).await.expect("what was answered for arrives");
    });
    let (arrived, most) = (arrived(), *promised + *doubtful);
    assert!(arrived <= most, "{arrived} messages arrived, {promised} were answered for");
}

/// One for all inputs.
static HOUSE: LazyLock<Mutex<House>> = LazyLock::new(|| Mutex::new(House::new()));

struct House {
    runtime: Runtime,
    service: Service,
    sandbox: Sandbox,
    /// Dots that were answered with 250.
    promised: u64,
    /// Dots whose answer nobody has read.
    doubtful: u64,
    _folder: TempDir,
}

impl House {
    fn new() -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (sandbox, service) = runtime.block_on(async {
            let sandbox =
                Sandbox::start(([127, 0, 0, 1], 0).into(), Scenario::default()).await.unwrap();
            std::fs::write(folder.path().join("sandbox.crt"), sandbox.certificate()).unwrap();
            let text = format!(
                r#"
                hostname = "relay.example"
                state_dir = "state"
                [[listener]]
                name = "lan"
                address = "127.0.0.1:0"
                auth = "offer"
                auth_without_tls = true
                accept_any_credentials = true
                [smarthost]
                host = "localhost"
                port = {}
                ca_file = "sandbox.crt"
                [[mailbox]]
                address = "scanner@example.com"
                messages_per_minute = 0
                recipients_per_day = 0
                auth = "login"
                password = "x"
                [admin]
                address = ""
                "#,
                sandbox.address().port()
            );
            let file = folder.path().join("smtp-uplift.toml");
            let config = config::parse(&text, Path::new(&file)).unwrap().config;
            (sandbox, Service::start(config).await.unwrap())
        });
        Self { runtime, service, sandbox, promised: 0, doubtful: 0, _folder: folder }
    }
}

/// A connection of the device.
struct Talk {
    stream: TcpStream,
    heard: BytesMut,
    /// Ends of data that it may have said.
    dots: u64,
    said: Vec<u8>,
}

impl Talk {
    async fn begin(relay: std::net::SocketAddr) -> Self {
        let stream = TcpStream::connect(relay).await.unwrap();
        Self { stream, heard: BytesMut::new(), dots: 0, said: Vec::new() }
    }

    /// Says it, and takes what has come meanwhile. The relay may have closed.
    async fn say(&mut self, octets: &[u8]) {
        self.said.extend_from_slice(octets);
        self.dots = self.said.windows(3).filter(|octets| *octets == b".\r\n").count() as u64;
        let _ = self.stream.write_all(octets).await;
        let mut room = [0; 4096];
        while let Ok(count @ 1..) = self.stream.try_read(&mut room) {
            self.heard.extend_from_slice(&room[..count]);
        }
    }

    /// Hears the rest; how many dots were answered with 250.
    async fn end(mut self) -> u64 {
        let hear = async {
            let _ = self.stream.shutdown().await;
            while self.stream.read_buf(&mut self.heard).await? > 0 {}
            io::Result::Ok(())
        };
        let _ = timeout(PATIENCE, hear).await.expect("the session ends");
        let mut codec = ClientCodec::new();
        let mut answered = 0;
        while let Some(reply) = codec.decode(&mut self.heard).unwrap() {
            let reply = reply.expect("a reply");
            well_formed(&reply);
            let text = reply.text();
            let of_a_dot = text.starts_with("ok, id ") || text.starts_with("queued, id ");
            answered += u64::from(reply.code.get() == 250 && of_a_dot);
        }
        answered
    }
}
