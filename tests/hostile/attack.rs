//! The others.

use std::{
    env, io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use openssl::ssl::SslVersion;
use smtp_uplift::{sandbox::device::Device, transport::device_tls::DeviceTls};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    runtime::{Builder, Runtime},
    time::sleep,
};

/// Sessions that come from one address.
const EACH: usize = 20;
/// Octets written at a time by who floods: with the pause, some gigabits a second of all together.
const CHUNK: usize = 16 * 1024;
const PAUSE: Duration = Duration::from_millis(50);
/// Wrong logins in all.
const LOGINS: u64 = 1_000;
/// Every so many of them floods with mail data.
const DATA: usize = 50;

/// What was done, by the time that it is over.
#[derive(Debug, Default)]
pub(crate) struct Struck {
    pub(crate) connections: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) handshakes: AtomicU64,
    pub(crate) wrong_logins: AtomicU64,
    pub(crate) recipients: AtomicU64,
    pub(crate) mebibytes: AtomicU64,
}

/// Attackers at work.
pub(crate) struct Attack {
    runtime: Runtime,
    struck: Arc<Struck>,
}

/// A way to do harm.
#[derive(Clone, Copy, Debug)]
enum Way {
    Silence,
    HalfHandshake,
    Handshakes,
    OneOctetASecond,
    OneOctetOfDataASecond,
    EndlessLine,
    EndlessRecipients,
    Flood,
    WrongLogins,
    Data,
}

const WAYS: [Way; 9] = [
    Way::Silence,
    Way::HalfHandshake,
    Way::Handshakes,
    Way::OneOctetASecond,
    Way::OneOctetOfDataASecond,
    Way::EndlessLine,
    Way::EndlessRecipients,
    Way::Flood,
    Way::WrongLogins,
];

impl Attack {
    /// So many sessions, each of which comes back when it is thrown out.
    pub(crate) fn begin(relay: SocketAddr, sessions: usize) -> Self {
        let mut builder = Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().unwrap();
        let struck = Arc::new(Struck::default());
        let tls = Arc::new(DeviceTls::new(SslVersion::TLS1_2, None).unwrap());
        // All in the same way, to find out which of them does the harm.
        let only = env::var("UPLIFT_ATTACK").ok();
        let named = |only: &String| WAYS.into_iter().find(|way| format!("{way:?}") == *only);
        let only = only.map(|only| named(&only).unwrap_or(Way::Data));
        for number in 0..sessions {
            let way = if number % DATA == 0 { Way::Data } else { WAYS[number % WAYS.len()] };
            let way = only.unwrap_or(way);
            let attacker =
                Attacker { relay, number, way, struck: Arc::clone(&struck), tls: Arc::clone(&tls) };
            runtime.spawn(attacker.work());
        }
        Self { runtime, struck }
    }

    /// They are gone at once.
    pub(crate) fn end(self) -> Arc<Struck> {
        self.runtime.shutdown_background();
        self.struck
    }
}

struct Attacker {
    relay: SocketAddr,
    number: usize,
    way: Way,
    struck: Arc<Struck>,
    tls: Arc<DeviceTls>,
}

impl Attacker {
    async fn work(self) {
        loop {
            if Box::pin(self.strike()).await.is_err() {
                self.struck.refused.fetch_add(1, Ordering::Relaxed);
            }
            sleep(Duration::from_millis(fastrand::u64(50..500))).await;
        }
    }

    /// From an address that it shares with some others, and with no printer.
    async fn connect(&self) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        let place = self.number / EACH;
        socket.bind(([127, 1, (place / 250) as u8, (place % 250) as u8 + 1], 0).into())?;
        let stream = socket.connect(self.relay).await?;
        self.struck.connections.fetch_add(1, Ordering::Relaxed);
        Ok(stream)
    }

    /// One connection, until it is closed.
    async fn strike(&self) -> io::Result<()> {
        let mut stream = self.connect().await?;
        match self.way {
            Way::Silence => until_closed(&mut stream).await,
            Way::HalfHandshake => {
                stream.write_all(b"STARTTLS\r\n").await?;
                let mut said = [0; 256];
                // The greeting, and what STARTTLS is answered.
                for _ in 0..2 {
                    if stream.read(&mut said).await? == 0 {
                        return Ok(());
                    }
                }
                stream.write_all(&[0x16, 3, 1, 2, 0, 1]).await?;
                until_closed(&mut stream).await
            }
            Way::Handshakes => {
                let device = Device::over(Box::new(stream)).await?;
                let secured = device.starttls(&self.tls).await?;
                self.struck.handshakes.fetch_add(1, Ordering::Relaxed);
                drop(secured);
                Ok(())
            }
            Way::OneOctetASecond => trickle(&mut stream).await,
            Way::OneOctetOfDataASecond => {
                begin_data(&mut stream).await?;
                trickle(&mut stream).await
            }
            Way::EndlessLine => self.flood(&mut stream, b"x").await,
            Way::EndlessRecipients => {
                stream.write_all(b"HELO x\r\nMAIL FROM:<a@x>\r\n").await?;
                let recipients = b"RCPT TO:<somebody.with.a.long.name@example.com>\r\n".repeat(100);
                let mut said = [0; CHUNK];
                loop {
                    stream.write_all(&recipients).await?;
                    self.struck.recipients.fetch_add(100, Ordering::Relaxed);
                    if stream.read(&mut said).await? == 0 {
                        return Ok(());
                    }
                    sleep(PAUSE).await;
                }
            }
            Way::Flood => self.flood(&mut stream, b"EHLO somebody.who.does.not.listen\r\n").await,
            Way::WrongLogins => {
                stream.write_all(b"EHLO x\r\n").await?;
                let mut said = [0; CHUNK];
                while self.struck.wrong_logins.fetch_add(1, Ordering::Relaxed) < LOGINS {
                    let secret = BASE64_STANDARD.encode(format!("\0scan{}\0wrong", self.number));
                    stream.write_all(format!("AUTH PLAIN {secret}\r\n").as_bytes()).await?;
                    loop {
                        let count = stream.read(&mut said).await?;
                        if count == 0 {
                            return Ok(());
                        }
                        if said[..count].windows(3).any(|code| code == b"535" || code == b"421") {
                            break;
                        }
                    }
                }
                until_closed(&mut stream).await
            }
            Way::Data => {
                begin_data(&mut stream).await?;
                let line = [&[b'x'; 76][..], b"\r\n"].concat().repeat(CHUNK / 78);
                for _ in 0..(20 << 20) / CHUNK {
                    stream.write_all(&line).await?;
                    sleep(PAUSE / 5).await;
                }
                sleep(Duration::from_secs(5)).await;
                Ok(())
            }
        }
    }

    /// Writes without reading, until nothing is taken any more.
    async fn flood(&self, stream: &mut TcpStream, words: &[u8]) -> io::Result<()> {
        let octets = words.repeat(CHUNK / words.len());
        for count in 1.. {
            stream.write_all(&octets).await?;
            if count % 64 == 0 {
                self.struck.mebibytes.fetch_add(1, Ordering::Relaxed);
            }
            sleep(PAUSE).await;
        }
        Ok(())
    }
}

async fn begin_data(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"HELO x\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@x>\r\nDATA\r\n").await?;
    let mut said = Vec::new();
    while !said.windows(4).any(|code| code == b"354 ") {
        if stream.read_buf(&mut said).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

async fn trickle(stream: &mut TcpStream) -> io::Result<()> {
    loop {
        stream.write_all(b"x").await?;
        sleep(Duration::from_secs(1)).await;
    }
}

async fn until_closed(stream: &mut TcpStream) -> io::Result<()> {
    let mut said = [0; 1024];
    while stream.read(&mut said).await? > 0 {}
    Ok(())
}
