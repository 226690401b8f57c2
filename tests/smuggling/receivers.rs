//! Servers that end mail data elsewhere than at CR LF . CR LF, as small functions: each takes what it is sent from the
//! line start before the data on, and returns where it sees the first end, the end included.

/// A server, or a kind of them.
pub(super) struct Receiver {
    pub(super) name: &'static str,
    pub(super) end: fn(&[u8]) -> Option<usize>,
    /// A sequence in the data that it takes for their end.
    pub(super) fooled_by: &'static [u8],
}

pub(super) const RECEIVERS: &[Receiver] = &[
    Receiver { name: "RFC 5321", end: |wire| at(wire, b"\r\n.\r\n"), fooled_by: b"\r\n.\r\n" },
    Receiver { name: "LF . LF", end: |wire| at(wire, b"\n.\n"), fooled_by: b"\n.\n" },
    Receiver {
        name: "LF . CR LF (Sendmail)",
        end: |wire| at(wire, b"\n.\r\n"),
        fooled_by: b"\n.\r\n",
    },
    Receiver { name: "LF . CR", end: |wire| unless_lf(wire, b"\n.\r"), fooled_by: b"\n.\r" },
    Receiver {
        name: "CR . CR (Cisco)",
        end: |wire| unless_lf(wire, b"\r.\r"),
        fooled_by: b"\r.\r",
    },
    Receiver { name: "CR . LF", end: |wire| at(wire, b"\r.\n"), fooled_by: b"\r.\n" },
    Receiver {
        name: "CR . CR LF (Cisco)",
        end: |wire| at(wire, b"\r.\r\n"),
        fooled_by: b"\r.\r\n",
    },
    Receiver { name: "CR LF . CR", end: |wire| unless_lf(wire, b"\r\n.\r"), fooled_by: b"\r\n.\r" },
    Receiver { name: "CR LF . LF", end: |wire| at(wire, b"\r\n.\n"), fooled_by: b"\r\n.\n" },
    Receiver {
        name: "CR LF . CR CR LF",
        end: |wire| at(wire, b"\r\n.\r\r\n"),
        fooled_by: b"\r\n.\r\r\n",
    },
    Receiver {
        name: "LF ends lines, one CR before it is dropped (Postfix)",
        end: |wire| lines(wire, |line| line.strip_suffix(b"\r").unwrap_or(line) == b"."),
        fooled_by: b"\n.\n",
    },
    Receiver {
        name: "LF ends lines, all CR before it are dropped",
        end: |wire| lines(wire, |line| line.strip_prefix(b".").is_some_and(only_cr)),
        fooled_by: b"\n.\r\r\n",
    },
    Receiver { name: "CR, LF or CR LF end lines (Exim)", end: any_line_end, fooled_by: b"\r.\n" },
    Receiver {
        name: "NUL is dropped",
        end: |wire| without(wire, 0, b"\r\n.\r\n"),
        fooled_by: b"\r\n\0.\0\r\n",
    },
    Receiver {
        name: "CR is dropped",
        end: |wire| without(wire, b'\r', b"\n.\n"),
        fooled_by: b"\n\r.\r\n",
    },
    Receiver {
        name: "NUL ends strings, as in C",
        end: |wire| {
            lines(wire, |line| line.split(|octet| *octet == 0).next().map(cut_cr) == Some(b"."))
        },
        fooled_by: b"\n.\0more\n",
    },
];

/// Behind the first place where it stands. What there is in the wire but an end counts only once: where the true
/// end comes first, it is that.
fn at(wire: &[u8], end: &[u8]) -> Option<usize> {
    let found = wire.windows(end.len()).position(|octets| octets == end);
    first(wire, found.map(|place| place + end.len()))
}

/// The same where it ends with a CR that no LF follows: then it is part of the true end, or of another.
fn unless_lf(wire: &[u8], end: &[u8]) -> Option<usize> {
    let places = wire.windows(end.len()).enumerate();
    let mut ends = places.filter(|(_, octets)| *octets == end).map(|(place, _)| place + end.len());
    first(wire, ends.find(|end| wire.get(*end) != Some(&b'\n')))
}

/// All of them know the true end too.
fn first(wire: &[u8], own: Option<usize>) -> Option<usize> {
    let true_end = wire.windows(5).position(|octets| octets == b"\r\n.\r\n").map(|place| place + 5);
    own.into_iter().chain(true_end).min()
}

/// Behind the first line of which this holds, where LF ends lines.
fn lines(wire: &[u8], is_end: impl Fn(&[u8]) -> bool) -> Option<usize> {
    let mut from = 0;
    while let Some(length) = wire[from..].iter().position(|octet| *octet == b'\n') {
        if is_end(&wire[from..from + length]) {
            return Some(from + length + 1);
        }
        from += length + 1;
    }
    None
}

fn cut_cr(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

fn only_cr(octets: &[u8]) -> bool {
    octets.iter().all(|octet| *octet == b'\r')
}

/// CR, LF and CR LF are all line ends.
fn any_line_end(wire: &[u8]) -> Option<usize> {
    let (mut from, mut place) = (0, 0);
    while place < wire.len() {
        if !matches!(wire[place], b'\r' | b'\n') {
            place += 1;
            continue;
        }
        let behind = place + if wire[place..].starts_with(b"\r\n") { 2 } else { 1 };
        if wire[from..place] == *b"." {
            return Some(behind);
        }
        (from, place) = (behind, behind);
    }
    None
}

/// Where the end stands when all of one octet are dropped first.
fn without(wire: &[u8], dropped: u8, end: &[u8]) -> Option<usize> {
    let kept: Vec<usize> = (0..wire.len()).filter(|place| wire[*place] != dropped).collect();
    let found = kept
        .windows(end.len())
        .find(|places| places.iter().zip(end).all(|(place, octet)| wire[*place] == *octet))?;
    Some(found[end.len() - 1] + 1)
}
