//! The smarthost's side of the wire: replies in, commands out. Mail data do not pass through here: they
//! are written to the stream as the `Bytes` that came.

use std::io;

use bytes::BytesMut;
use tokio_util::codec::{Decoder, Encoder};

use super::line::{Line, LineReader};
use crate::proto::{
    command::Command,
    limits,
    reply::{Reply, ReplyFault, ReplyLines},
};

/// Reads the smarthost's replies and writes commands to it.
#[derive(Debug)]
pub struct ClientCodec {
    lines: LineReader,
    reply: ReplyLines,
}

impl ClientCodec {
    /// A codec that expects a reply.
    pub fn new() -> Self {
        Self { lines: LineReader::new(limits::REPLY_LINE), reply: ReplyLines::default() }
    }
}

impl Default for ClientCodec {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder for ClientCodec {
    type Item = Result<Reply, ReplyFault>;
    type Error = io::Error;

    fn decode(&mut self, src: &mut BytesMut) -> io::Result<Option<Self::Item>> {
        while let Some(line) = self.lines.next(src) {
            let pushed = match line {
                Line::Whole(line) => self.reply.push(&line),
                Line::TooLong => Err(ReplyFault::TooLong),
            };
            match pushed {
                Ok(Some(reply)) => return Ok(Some(Ok(reply))),
                Ok(None) => {}
                Err(fault) => return Ok(Some(Err(fault))),
            }
        }
        Ok(None)
    }

    fn decode_eof(&mut self, src: &mut BytesMut) -> io::Result<Option<Self::Item>> {
        let item = self.decode(src)?;
        if item.is_none() {
            src.clear();
        }
        Ok(item)
    }
}

impl Encoder<&Command> for ClientCodec {
    type Error = io::Error;

    fn encode(&mut self, command: &Command, dst: &mut BytesMut) -> io::Result<()> {
        command.encode(dst);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_come_whole_at_any_split() {
        let input = b"250-a\r\n250 b\r\n354 go\r\n";
        for at in 0..input.len() {
            let (mut codec, mut src, mut codes) = (ClientCodec::new(), BytesMut::new(), Vec::new());
            for part in [&input[..at], &input[at..]] {
                src.extend_from_slice(part);
                while let Some(reply) = codec.decode(&mut src).unwrap() {
                    codes.push((reply.as_ref().unwrap().code.get(), reply.unwrap().lines.len()));
                }
            }
            assert_eq!(codes, [(250, 2), (354, 1)]);
        }
    }

    #[test]
    fn garbage_is_an_item() {
        let mut src = BytesMut::from(&b"HTTP/1.1 400 Bad Request\r\n"[..]);
        assert!(matches!(
            ClientCodec::new().decode(&mut src),
            Ok(Some(Err(ReplyFault::Malformed(_))))
        ));
    }
}
