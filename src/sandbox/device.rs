//! A device, as the relay sees one: for the demo, the tests and the benches.

use std::{io, net::SocketAddr};

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use tokio_util::codec::Framed;

use crate::{
    codec::client::ClientCodec,
    proto::reply::Reply,
    transport::{
        device_tls::DeviceTls,
        stream::{BoxIo, TlsInfo},
    },
};

/// A device that is connected.
pub struct Device {
    framed: Framed<BoxIo, ClientCodec>,
    /// Version and cipher, once there is TLS.
    pub tls: Option<TlsInfo>,
    /// The greeting that it read.
    pub greeting: Reply,
}

impl Device {
    /// Connects and reads the greeting.
    pub async fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Self::greeted(Box::new(stream), None).await
    }

    /// Connects, shakes hands, and reads the greeting.
    pub async fn connect_tls(address: SocketAddr, tls: &DeviceTls) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (io, info) = tls.connect(Box::new(stream)).await.map_err(io::Error::other)?;
        Self::greeted(io, Some(info)).await
    }

    /// Reads the greeting on a connection that has come about by other means.
    pub async fn over(io: BoxIo) -> io::Result<Self> {
        Self::greeted(io, None).await
    }

    async fn greeted(io: BoxIo, tls: Option<TlsInfo>) -> io::Result<Self> {
        let mut framed = Framed::new(io, ClientCodec::new());
        let greeting = read(&mut framed).await?;
        Ok(Self { framed, tls, greeting })
    }

    /// Says STARTTLS and shakes hands.
    pub async fn starttls(mut self, tls: &DeviceTls) -> io::Result<Self> {
        let reply = self.say("STARTTLS").await?;
        if reply.code.get() != 220 {
            return Err(io::Error::other(format!("STARTTLS was answered: {reply}")));
        }
        let (io, info) =
            tls.connect(self.framed.into_parts().io).await.map_err(io::Error::other)?;
        Ok(Self {
            framed: Framed::new(io, ClientCodec::new()),
            tls: Some(info),
            greeting: self.greeting,
        })
    }

    /// Says a line and reads the reply.
    pub async fn say(&mut self, line: &str) -> io::Result<Reply> {
        self.write(format!("{line}\r\n")).await?;
        self.read().await
    }

    /// Writes octets as they are.
    pub async fn write(&mut self, octets: impl Into<Bytes>) -> io::Result<()> {
        let io = self.framed.get_mut();
        io.write_all_buf(&mut octets.into()).await?;
        io.flush().await
    }

    /// Reads a reply.
    pub async fn read(&mut self) -> io::Result<Reply> {
        read(&mut self.framed).await
    }

    /// Whether the relay closes without a word.
    pub async fn is_closed(&mut self) -> bool {
        matches!(self.framed.next().await, None | Some(Err(_)))
    }

    /// Sends a message, `data` in wire form without the final dot. Returns the first refusal, or the answer to
    /// the dot.
    pub async fn send(
        &mut self,
        from: &str,
        to: &[&str],
        data: impl Into<Bytes>,
    ) -> io::Result<Reply> {
        let reply = self.say(&format!("MAIL FROM:<{from}>")).await?;
        if !reply.code.is_positive() {
            return Ok(reply);
        }
        for recipient in to {
            let reply = self.say(&format!("RCPT TO:<{recipient}>")).await?;
            if !reply.code.is_positive() {
                return Ok(reply);
            }
        }
        let reply = self.say("DATA").await?;
        if reply.code.get() != 354 {
            return Ok(reply);
        }
        self.write(data).await?;
        self.write(&b".\r\n"[..]).await?;
        self.read().await
    }
}

async fn read(framed: &mut Framed<BoxIo, ClientCodec>) -> io::Result<Reply> {
    match framed.next().await {
        Some(Ok(Ok(reply))) => Ok(reply),
        Some(Ok(Err(fault))) => Err(io::Error::new(io::ErrorKind::InvalidData, fault)),
        Some(Err(error)) => Err(error),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
