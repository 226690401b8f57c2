//! The device's side of the wire: lines and mail data in, replies out.

use std::io;

use bytes::{Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

use super::{
    data::{DataFault, DataScanner, Scanned},
    line::{Line, LineReader},
};
use crate::proto::{
    first_octets::FirstOctets,
    limits::{self, LineEndings},
    reply::Reply,
};

/// Room asked for while data stream; a socket read fills at most this much.
const DATA_CHUNK: usize = 64 * 1024;
/// Room asked for at first; what is filled at once is asked for fourfold, so that a slow writer costs little.
const FIRST_CHUNK: usize = 4 * 1024;
/// Room asked for while commands come: an idle session costs little.
const COMMAND_CHUNK: usize = 1024;

/// Reads what a device sends and writes what it is told.
#[derive(Debug)]
pub struct ServerCodec {
    lines: LineReader,
    data: Option<DataScanner>,
    /// Nothing has come yet, and TLS would be a mistake.
    first: bool,
    /// Room that is asked for while data stream.
    chunk: usize,
}

/// Something that a device sent.
#[derive(Debug, PartialEq, Eq)]
pub enum ServerItem {
    /// TLS where a command is expected: the first octets are a ClientHello.
    ClientHello,
    /// A line without its line end.
    Line(Bytes),
    /// A line longer than any may be; it was dropped.
    LineTooLong,
    /// Mail data to pass on.
    Data(Bytes),
    /// The mail data break the rules; the framing goes on to their end.
    DataFault(DataFault),
    /// The final dot.
    DataEnd {
        /// Octets of the message, stuffed dots not counted.
        size: u64,
        /// What was mended.
        mended: Option<DataFault>,
    },
}

impl ServerCodec {
    /// A codec that expects a command.
    pub fn new() -> Self {
        Self {
            lines: LineReader::new(limits::AUTH_LINE),
            data: None,
            first: false,
            chunk: FIRST_CHUNK,
        }
    }

    /// One for a connection that begins in plaintext: it knows a ClientHello when it sees one.
    pub fn in_plaintext() -> Self {
        Self { first: true, ..Self::new() }
    }

    /// From the next octet on mail data are expected: 354 is being sent.
    pub fn start_data(&mut self, line_endings: LineEndings) {
        self.data = Some(DataScanner::new(line_endings));
        self.chunk = FIRST_CHUNK;
    }

    /// Octets of mail data taken from the device so far, passed on or dropped.
    pub fn data_seen(&self) -> u64 {
        self.data.as_ref().map_or(0, DataScanner::seen)
    }

    /// Whether mail data hold what the device may take for their end.
    pub fn stray_end(&self) -> bool {
        self.data.as_ref().is_some_and(DataScanner::stray_end)
    }

    /// Octets of mail data passed on so far.
    pub fn data_size(&self) -> u64 {
        self.data.as_ref().map_or(0, DataScanner::size)
    }
}

impl Default for ServerCodec {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder for ServerCodec {
    type Item = ServerItem;
    type Error = io::Error;

    fn decode(&mut self, src: &mut BytesMut) -> io::Result<Option<ServerItem>> {
        let Some(scanner) = &mut self.data else {
            if self.first {
                match FirstOctets::of(src) {
                    FirstOctets::ClientHello => return Ok(Some(ServerItem::ClientHello)),
                    FirstOctets::Unclear => return Ok(None),
                    FirstOctets::Other => self.first = false,
                }
            }
            let line = self.lines.next(src);
            if line.is_none() && src.capacity() - src.len() < COMMAND_CHUNK / 4 {
                src.reserve(COMMAND_CHUNK);
            }
            return Ok(line.map(|line| match line {
                Line::Whole(line) => ServerItem::Line(line),
                Line::TooLong => ServerItem::LineTooLong,
            }));
        };
        // Half of the room may be left of the read before.
        if src.len() >= self.chunk / 2 {
            self.chunk = (self.chunk * 4).min(DATA_CHUNK);
        }
        Ok(match scanner.scan(src) {
            Some(Scanned::Data(data)) => Some(ServerItem::Data(data)),
            Some(Scanned::Fault(fault)) => Some(ServerItem::DataFault(fault)),
            Some(Scanned::End) => {
                let end = ServerItem::DataEnd { size: scanner.size(), mended: scanner.mended() };
                self.data = None;
                // Commands follow: a session that idles has no room for data, not even behind half a command.
                if src.len() <= COMMAND_CHUNK {
                    let mut rest = BytesMut::with_capacity(COMMAND_CHUNK);
                    rest.extend_from_slice(src);
                    *src = rest;
                }
                Some(end)
            }
            None => {
                if src.capacity() - src.len() < self.chunk / 4 {
                    src.reserve(self.chunk);
                }
                None
            }
        })
    }

    /// A device that goes away in the middle of a line or of its data is simply gone.
    fn decode_eof(&mut self, src: &mut BytesMut) -> io::Result<Option<ServerItem>> {
        let item = self.decode(src)?;
        if item.is_none() {
            src.clear();
        }
        Ok(item)
    }
}

impl Encoder<&Reply> for ServerCodec {
    type Error = io::Error;

    fn encode(&mut self, reply: &Reply, dst: &mut BytesMut) -> io::Result<()> {
        reply.encode(dst);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(codec: &mut ServerCodec, src: &mut BytesMut) -> Vec<ServerItem> {
        std::iter::from_fn(|| codec.decode(src).unwrap()).collect()
    }

    #[test]
    fn commands_then_data_then_commands_from_one_packet() {
        let mut codec = ServerCodec::new();
        let mut src = BytesMut::from(&b"DATA\r\n"[..]);
        assert_eq!(items(&mut codec, &mut src), [ServerItem::Line(Bytes::from_static(b"DATA"))]);
        codec.start_data(LineEndings::Normalise);
        src.extend_from_slice(b"a\r\n..b\r\n.\r\nQUIT\r\n");
        assert_eq!(
            items(&mut codec, &mut src),
            [
                ServerItem::Data(Bytes::from_static(b"a\r\n..b\r\n")),
                ServerItem::DataEnd { size: 7, mended: None },
                ServerItem::Line(Bytes::from_static(b"QUIT")),
            ]
        );
    }

    #[test]
    fn a_client_hello_is_seen_in_the_first_octets_only() {
        let hello = &b"\x16\x03\x01\x00\n\x01"[..];
        let (mut codec, mut src) = (ServerCodec::in_plaintext(), BytesMut::new());
        for octet in &hello[..1] {
            src.extend_from_slice(&[*octet]);
            assert_eq!(codec.decode(&mut src).unwrap(), None);
        }
        src.extend_from_slice(&hello[1..2]);
        assert_eq!(codec.decode(&mut src).unwrap(), Some(ServerItem::ClientHello));

        let mut codec = ServerCodec::in_plaintext();
        let mut src = BytesMut::from(&b"NOOP\r\n"[..]);
        src.extend_from_slice(hello);
        assert_eq!(
            items(&mut codec, &mut src),
            [
                ServerItem::Line(Bytes::from_static(b"NOOP")),
                ServerItem::Line(Bytes::from_static(b"\x16\x03\x01\x00")),
            ]
        );
    }

    #[test]
    fn a_device_that_vanishes_leaves_no_error() {
        let mut codec = ServerCodec::new();
        let mut src = BytesMut::from(&b"MAIL FRO"[..]);
        assert_eq!(codec.decode_eof(&mut src).unwrap(), None);
        codec.start_data(LineEndings::Normalise);
        src.extend_from_slice(b"a\r\n.\r");
        assert_eq!(
            codec.decode_eof(&mut src).unwrap(),
            Some(ServerItem::Data(Bytes::from_static(b"a\r\n")))
        );
        assert_eq!(codec.decode_eof(&mut src).unwrap(), None);
    }

    #[test]
    fn what_is_dropped_after_a_fault_is_seen_all_the_same() {
        let mut codec = ServerCodec::new();
        codec.start_data(LineEndings::Strict);
        let mut src = BytesMut::from(&b"a\nb"[..]);
        assert_eq!(items(&mut codec, &mut src).len(), 2, "data, then the fault");
        let before = codec.data_seen();
        src.extend_from_slice(&[b'x'; 1_000]);
        assert_eq!(items(&mut codec, &mut src), []);
        assert_eq!((codec.data_seen() - before, codec.data_size()), (1_000, 1));
    }

    #[test]
    fn room_grows_only_as_reads_fill_it() {
        let mut codec = ServerCodec::new();
        codec.start_data(LineEndings::Normalise);
        let mut src = BytesMut::new();
        for _ in 0..10_000 {
            src.extend_from_slice(b"x");
            items(&mut codec, &mut src);
            assert!(src.capacity() <= 2 * FIRST_CHUNK, "{}", src.capacity());
        }
        for _ in 0..4 {
            let room = src.capacity() - src.len();
            src.extend_from_slice(&vec![b'x'; room]);
            items(&mut codec, &mut src);
        }
        assert!(src.capacity() >= DATA_CHUNK, "{}", src.capacity());
        src.extend_from_slice(b"\r\n.\r\nNOO");
        items(&mut codec, &mut src);
        assert!(src.capacity() <= 2 * COMMAND_CHUNK && *src == *b"NOO", "{}", src.capacity());
        src.clear();
        codec.start_data(LineEndings::Normalise);
        items(&mut codec, &mut src);
        assert!(src.capacity() <= 2 * FIRST_CHUNK, "the next message begins anew");
    }

    #[test]
    fn a_socket_read_is_one_chunk_of_the_same_memory() {
        let mut codec = ServerCodec::new();
        codec.start_data(LineEndings::Normalise);
        let mut src = BytesMut::with_capacity(DATA_CHUNK);
        src.extend_from_slice(&b"0123456789\r\n".repeat(1_000));
        let memory = src.as_ptr();
        let Some(ServerItem::Data(chunk)) = codec.decode(&mut src).unwrap() else { panic!() };
        assert_eq!((chunk.as_ptr(), chunk.len()), (memory, 12_000));
        assert_eq!(codec.decode(&mut src).unwrap(), None);
    }
}
