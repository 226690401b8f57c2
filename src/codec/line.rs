//! Lines within bounds.

use bytes::{Buf, Bytes, BytesMut};

/// Cuts lines from a buffer; of one that is too long it keeps nothing.
#[derive(Debug)]
pub(super) struct LineReader {
    limit: usize,
    /// Octets of the buffer's start that are known to hold no LF.
    searched: usize,
    discarding: bool,
}

/// A line, or what came of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Without its line end. A bare LF ends a line too (devices.md row 19).
    Whole(Bytes),
    /// It was longer than the limit and is gone.
    TooLong,
}

impl LineReader {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, searched: 0, discarding: false }
    }

    /// The next line of `src`, `None` if more octets are needed.
    pub(super) fn next(&mut self, src: &mut BytesMut) -> Option<Line> {
        let Some(end) = memchr::memchr(b'\n', &src[self.searched..]).map(|at| self.searched + at)
        else {
            self.searched = src.len();
            if src.len() > self.limit {
                self.discarding = true;
                self.searched = 0;
                src.clear();
            }
            return None;
        };
        self.searched = 0;
        if self.discarding || end > self.limit {
            self.discarding = false;
            src.advance(end + 1);
            return Some(Line::TooLong);
        }
        let mut line = src.split_to(end + 1);
        let without_end = if line[..end].ends_with(b"\r") { end - 1 } else { end };
        line.truncate(without_end);
        Some(Line::Whole(line.freeze()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(chunks: &[&[u8]]) -> Vec<Line> {
        let (mut reader, mut src) = (LineReader::new(8), BytesMut::new());
        let mut found = Vec::new();
        for chunk in chunks {
            src.extend_from_slice(chunk);
            while let Some(line) = reader.next(&mut src) {
                found.push(line);
            }
            assert!(src.len() <= 8, "nothing beyond the limit is kept");
        }
        found
    }

    fn whole(text: &'static str) -> Line {
        Line::Whole(Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn any_split_gives_the_same_lines() {
        let input = b"NOOP\r\nQUIT\n\r\n";
        let expected = || vec![whole("NOOP"), whole("QUIT"), whole("")];
        for at in 0..input.len() {
            assert_eq!(lines(&[&input[..at], &input[at..]]), expected());
        }
        let single: Vec<&[u8]> = input.chunks(1).collect();
        assert_eq!(lines(&single), expected());
    }

    #[test]
    fn a_long_line_is_dropped_and_the_next_one_is_read() {
        let expected = || vec![Line::TooLong, whole("QUIT")];
        assert_eq!(lines(&[b"123456789\r\nQUIT\r\n"]), expected());
        assert_eq!(lines(&[b"123456789", b"0123456789012345", b"\nQUIT\r\n"]), expected());
    }
}
