//! What a connection begins with, looked at before it is known who has to read it.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    time::timeout,
};

use super::stream::BoxIo;

/// A connection with octets in front that were read from it already.
pub struct Peeked {
    io: BoxIo,
    front: Bytes,
}

/// The first octets of a connection.
#[derive(Debug, PartialEq, Eq)]
pub struct Front {
    /// As far as they came.
    pub octets: Bytes,
    /// No more will come.
    pub closed: bool,
}

/// Reads until `enough` is there, at most `most` octets and no longer than `within`; whatever came by then is kept.
/// Afterwards [`Peeked::put_back`] makes the connection whole again.
pub async fn peek(
    io: &mut BoxIo,
    most: usize,
    within: Duration,
    enough: impl Fn(&[u8]) -> bool,
) -> Front {
    let mut octets = BytesMut::new();
    // Cut off, a read has taken nothing.
    let closed = timeout(within, async {
        while octets.len() < most && !enough(&octets) {
            let left = most - octets.len();
            if !matches!(io.read_buf(&mut (&mut octets).limit(left)).await, Ok(1..)) {
                return true;
            }
        }
        false
    });
    let closed = closed.await.unwrap_or(false);
    Front { octets: octets.freeze(), closed }
}

impl Peeked {
    /// The connection as it was before `front` was read from it.
    pub fn put_back(io: BoxIo, front: Bytes) -> BoxIo {
        if front.is_empty() { io } else { Box::new(Self { io, front }) }
    }
}

impl AsyncRead for Peeked {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.front.is_empty() {
            return Pin::new(&mut self.io).poll_read(context, buffer);
        }
        let some = self.front.len().min(buffer.remaining());
        buffer.put_slice(&self.front[..some]);
        self.front.advance(some);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Peeked {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, octets)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    const WITHIN: Duration = Duration::from_secs(1);

    fn front(octets: &'static [u8], closed: bool) -> Front {
        Front { octets: Bytes::from_static(octets), closed }
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_lost_however_it_ends() {
        for (sent, close, expected) in [
            (&b"abc;def"[..], false, front(b"abc;", false)),
            (b"abcdefghi", false, front(b"abcdef", false)),
            (b"abc", false, front(b"abc", false)),
            (b"abc", true, front(b"abc", true)),
            (b"", true, front(b"", true)),
            (b"", false, front(b"", false)),
        ] {
            let (ours, mut theirs) = tokio::io::duplex(64);
            let sending = async {
                for octet in sent {
                    theirs.write_all(&[*octet]).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                if close {
                    theirs.shutdown().await.unwrap();
                }
            };
            let mut io: BoxIo = Box::new(ours);
            let peeking = peek(&mut io, 6, WITHIN, |octets| octets.ends_with(b";"));
            let (seen, ()) = tokio::join!(peeking, sending);
            assert_eq!(seen, expected, "{}", sent.escape_ascii());
            theirs.shutdown().await.unwrap();
            let mut whole = Vec::new();
            Peeked::put_back(io, seen.octets).read_to_end(&mut whole).await.unwrap();
            assert_eq!(whole, sent);
        }
    }

    #[tokio::test]
    async fn what_is_in_front_is_read_in_any_portions_and_writes_pass() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        theirs.write_all(b"def").await.unwrap();
        let mut io = Peeked::put_back(Box::new(ours), Bytes::from_static(b"abc"));
        for octet in b"abcdef" {
            assert_eq!(io.read_u8().await.unwrap(), *octet);
        }
        io.write_all(b"answer").await.unwrap();
        io.shutdown().await.unwrap();
        let mut answer = String::new();
        theirs.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "answer");
    }
}
