//! A message as mail programs know it: the header fields that go in front, and the data without the dots that were
//! stuffed for the wire (RFC 5321 section 4.5.2).

use std::{
    fs::File,
    io::{self, Read as _, Write},
};

use crate::spool::queue::Body;

/// Octets that are read of a file at once.
const PIECE: usize = 64 * 1024;

/// Why a message is not written, or not whole.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// It cannot be read.
    #[error("its mail data cannot be read: {0}")]
    Body(io::Error),
    /// It has nowhere to go.
    #[error("{0}")]
    Output(io::Error),
}

/// Writes a message; returns how many octets it has.
pub(super) fn write(head: &str, body: &Body, output: &mut impl Write) -> Result<u64, Fault> {
    let mut plain = Unstuffed { output, written: 0, line_start: true };
    plain.put(head.as_bytes()).map_err(Fault::Output)?;
    match body {
        Body::Chunks(chunks) => {
            for chunk in chunks {
                plain.take(chunk).map_err(Fault::Output)?;
            }
        }
        Body::File { path, .. } => {
            let mut file = File::open(path).map_err(Fault::Body)?;
            let mut piece = vec![0; PIECE];
            loop {
                match file.read(&mut piece) {
                    Ok(0) => break,
                    Ok(read) => plain.take(&piece[..read]).map_err(Fault::Output)?,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(Fault::Body(error)),
                }
            }
        }
    }
    Ok(plain.written)
}

/// The header section, or as much of it as so many octets hold.
pub(super) fn header(head: &str, body: &Body, most: usize) -> io::Result<String> {
    let start = match body {
        Body::Chunks(chunks) => chunks.iter().flatten().copied().take(most).collect(),
        Body::File { path, .. } => {
            let mut start = Vec::new();
            File::open(path)?.take(most as u64).read_to_end(&mut start)?;
            start
        }
    };
    let mut section = Vec::new();
    let mut plain = Unstuffed { output: &mut section, written: 0, line_start: true };
    plain.put(head.as_bytes())?;
    plain.take(&start)?;
    let text = String::from_utf8_lossy(&section).into_owned();
    // Data that begin with an empty line have no header fields of their own.
    let end = text.find("\r\n\r\n").map_or(text.len(), |end| end + 2);
    Ok(text[..end].to_owned())
}

/// Takes data in wire form, in pieces, and passes them on without stuffed dots.
struct Unstuffed<'a, W> {
    output: &'a mut W,
    written: u64,
    line_start: bool,
}

impl<W: Write> Unstuffed<'_, W> {
    fn take(&mut self, mut piece: &[u8]) -> io::Result<()> {
        while let Some(first) = piece.first() {
            if self.line_start && *first == b'.' {
                self.line_start = false;
                piece = &piece[1..];
                continue;
            }
            // Wire form has no LF without its CR.
            let end = memchr::memchr(b'\n', piece);
            let line = end.map_or(piece.len(), |at| at + 1);
            self.put(&piece[..line])?;
            self.line_start = end.is_some();
            piece = &piece[line..];
        }
        Ok(())
    }

    fn put(&mut self, octets: &[u8]) -> io::Result<()> {
        self.output.write_all(octets)?;
        self.written += octets.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const WIRE: &[u8] = b"..a\r\nb.\r\n..\r\n...c\r\n\r\n.d.\r\n";
    const PLAIN: &[u8] = b"X: y\r\n.a\r\nb.\r\n.\r\n..c\r\n\r\nd.\r\n";

    fn written(body: &Body) -> Vec<u8> {
        let mut out = Vec::new();
        let count = write("X: y\r\n", body, &mut out).unwrap();
        assert_eq!(count, out.len() as u64);
        out
    }

    #[test]
    fn dots_go_wherever_the_data_are_split() {
        for first in 0..=WIRE.len() {
            for second in first..=WIRE.len() {
                let pieces = [&WIRE[..first], &WIRE[first..second], &WIRE[second..]];
                let chunks = pieces.map(Bytes::from_static).to_vec();
                assert_eq!(written(&Body::Chunks(chunks)), PLAIN, "{first} {second}");
            }
        }
    }

    #[test]
    fn a_file_is_read_in_pieces() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("body");
        let line = [b"..".as_slice(), &[b'x'; 70], b"\r\n"].concat();
        std::fs::write(&path, line.repeat(5_000)).unwrap();
        let body = Body::File { path: path.clone(), size: 370_000 };
        let wanted = [b"X: y\r\n".to_vec(), line[1..].repeat(5_000)].concat();
        assert!(written(&body) == wanted);
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(write("", &body, &mut Vec::new()), Err(Fault::Body(_))));
    }

    #[test]
    fn the_header_section_ends_at_the_empty_line() {
        let header = |data: &'static str, most| {
            header("X: y\r\n", &Body::Chunks(vec![data.into()]), most).unwrap()
        };
        assert_eq!(header("A: b\r\n\r\nbody\r\n", 100), "X: y\r\nA: b\r\n");
        assert_eq!(header("\r\nbody\r\n", 100), "X: y\r\n");
        assert_eq!(header("A: b\r\n", 100), "X: y\r\nA: b\r\n");
        assert_eq!(header("A: b\r\n\r\nbody\r\n", 3), "X: y\r\nA: ");
    }
}
