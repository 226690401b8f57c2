//! Mail data in wire form, between 354 and the final dot (RFC 5321 section 4.5.2).
//!
//! The data are passed on still dot-stuffed: the one thing to find is the end marker, and the one thing to
//! mend is a line end that is not CR LF, since a server behind us could take it for one. Well-formed data
//! leave as the bytes that came: one `Bytes` a socket read, no copy. What this module promises:
//!
//! * any split of the input gives the same output and verdict;
//! * the output never holds CR LF . CR LF, a bare CR, a bare LF or NUL;
//! * at most two octets are held back until more arrive;
//! * the size counts octets without stuffed dots;
//! * after a fault the framing goes on to the final dot.

use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;

use crate::proto::limits::LineEndings;

/// Finds the end of mail data and mends line ends.
#[derive(Debug)]
pub struct DataScanner {
    line_endings: LineEndings,
    at: At,
    size: u64,
    seen: u64,
    mended: Option<DataFault>,
    refused: bool,
    /// The line so far is a dot and nothing else.
    lone_dot: bool,
    stray_end: bool,
}

/// What stands before the next octet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// The start of the data, or CR LF of the input.
    LineStart,
    /// CR LF of which we inserted the CR: never the start of an end marker.
    MendedLineStart,
    /// Anything else.
    InLine,
}

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub enum Scanned {
    /// Data to pass on, in wire form.
    Data(Bytes),
    /// The data break the rules (`strict` only); what follows is dropped up to the end.
    Fault(DataFault),
    /// The final dot.
    End,
}

/// A way to break the rules for line ends (RFC 5321 section 2.3.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DataFault {
    /// LF without CR.
    #[error("a line feed without a carriage return")]
    BareLf,
    /// CR without LF.
    #[error("a carriage return without a line feed")]
    BareCr,
    /// NUL.
    #[error("a NUL octet")]
    Nul,
}

impl DataScanner {
    /// A scanner at the start of mail data.
    pub fn new(line_endings: LineEndings) -> Self {
        Self {
            line_endings,
            at: At::LineStart,
            size: 0,
            seen: 0,
            mended: None,
            refused: false,
            lone_dot: false,
            stray_end: false,
        }
    }

    /// Octets passed on so far, stuffed dots not counted.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Octets taken from the device so far, those that were dropped after a fault included.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// The first fault that was mended, if any was.
    pub fn mended(&self) -> Option<DataFault> {
        self.mended
    }

    /// Whether a line with a lone dot came that ends nothing, for one of the line ends around it is not CR LF. Whoever
    /// sends that may believe that its data are over, and wait for an answer (devices.md row 21).
    pub fn stray_end(&self) -> bool {
        self.stray_end
    }

    /// Takes what `src` holds, up to the first event; `None` if more octets are needed.
    pub fn scan(&mut self, src: &mut BytesMut) -> Option<Scanned> {
        loop {
            let run = self.run(src);
            self.seen += run.taken as u64;
            let held_dots = run.stuffed;
            let data = match run.mended {
                None => src.split_to(run.taken).freeze(),
                Some(mended) => {
                    src.advance(run.taken);
                    mended.freeze()
                }
            };
            if !data.is_empty() && !self.refused {
                self.size += data.len() as u64 - held_dots;
                // The event behind the data is found again at the next call: nothing stands before it then.
                return Some(Scanned::Data(data));
            }
            match run.stop {
                Stop::More => return None,
                Stop::End => {
                    src.advance(3);
                    return Some(Scanned::End);
                }
                Stop::Fault(fault) if !self.refused => {
                    self.refused = true;
                    return Some(Scanned::Fault(fault));
                }
                // Once refused, the octet is only stepped over.
                Stop::Fault(fault) => {
                    self.at =
                        if fault == DataFault::BareLf { At::MendedLineStart } else { At::InLine };
                    src.advance(1);
                    self.seen += 1;
                }
            }
        }
    }

    /// Reads on to the first event or the end of `src`.
    fn run(&mut self, src: &[u8]) -> Run {
        let mut run = Run { taken: 0, stuffed: 0, mended: None, stop: Stop::More };
        let strict = self.line_endings == LineEndings::Strict;
        let mut i = 0;
        loop {
            let fault = match (self.at, &src[i..]) {
                (_, []) => break,
                (At::LineStart, [b'.', b'\r', b'\n', ..]) => {
                    run.stop = Stop::End;
                    break;
                }
                (At::LineStart, [b'.'] | [b'.', b'\r'])
                | (At::MendedLineStart, [b'.'])
                | (_, [b'\r']) => break,
                (At::LineStart, [b'.', b'\n', ..]) => {
                    self.stray_end = true;
                    if strict {
                        run.stop = Stop::Fault(DataFault::BareLf);
                        break;
                    }
                    // Mended to an end marker it would be one of our own making.
                    run.mend(src, i, b"..\r\n");
                    (run.stuffed, self.at, i) = (run.stuffed + 1, At::MendedLineStart, i + 2);
                    self.mended.get_or_insert(DataFault::BareLf);
                    continue;
                }
                (At::LineStart, [b'.', ..]) => {
                    run.pass(&src[i..=i]);
                    (run.stuffed, self.at, i) = (run.stuffed + 1, At::InLine, i + 1);
                    self.lone_dot = true;
                    continue;
                }
                (At::MendedLineStart, [b'.', next, ..]) => {
                    if *next == b'.' {
                        run.pass(b"..");
                    } else {
                        run.mend(src, i, b"..");
                    }
                    (run.stuffed, self.at, i) =
                        (run.stuffed + 1, At::InLine, i + if *next == b'.' { 2 } else { 1 });
                    self.lone_dot = *next != b'.';
                    continue;
                }
                (_, [b'\r', b'\n', ..]) => {
                    run.pass(b"\r\n");
                    (self.at, i) = (At::LineStart, i + 2);
                    self.line_ended();
                    continue;
                }
                (_, [b'\r', ..]) => DataFault::BareCr,
                (_, [b'\n', ..]) => DataFault::BareLf,
                (_, [0, ..]) => DataFault::Nul,
                (_, rest) => {
                    let length = memchr::memchr3(b'\r', b'\n', 0, rest).unwrap_or(rest.len());
                    run.pass(&rest[..length]);
                    (self.at, i) = (At::InLine, i + length);
                    self.lone_dot = false;
                    continue;
                }
            };
            if fault == DataFault::Nul {
                self.lone_dot = false;
            } else {
                self.line_ended();
            }
            if strict {
                run.stop = Stop::Fault(fault);
                break;
            }
            let (instead, at): (&[u8], _) = match fault {
                DataFault::BareLf => (b"\r\n", At::MendedLineStart),
                // Taking the octet away could join an end marker; a blank cannot.
                DataFault::BareCr | DataFault::Nul => (b" ", At::InLine),
            };
            run.mend(src, i, instead);
            (self.at, i) = (at, i + 1);
            self.mended.get_or_insert(fault);
        }
        run.taken = i;
        run
    }

    /// A line ended, or what some take for its end.
    fn line_ended(&mut self) {
        self.stray_end |= std::mem::take(&mut self.lone_dot);
    }
}

/// A stretch of input without an event.
struct Run {
    taken: usize,
    stuffed: u64,
    /// The output, if it is not the input itself.
    mended: Option<BytesMut>,
    stop: Stop,
}

#[derive(Clone, Copy)]
enum Stop {
    More,
    End,
    Fault(DataFault),
}

impl Run {
    /// Passes octets of the input on.
    fn pass(&mut self, octets: &[u8]) {
        if let Some(out) = &mut self.mended {
            out.extend_from_slice(octets);
        }
    }

    /// Puts `instead` in the place of what stands at `i`; from here on the output is a copy.
    fn mend(&mut self, src: &[u8], i: usize, instead: &[u8]) {
        self.mended
            .get_or_insert_with(|| {
                let mut out = BytesMut::with_capacity(src.len() + src.len() / 16 + 16);
                out.extend_from_slice(&src[..i]);
                out
            })
            .extend_from_slice(instead);
    }
}
