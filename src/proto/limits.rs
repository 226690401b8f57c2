//! Sizes that a peer cannot exceed, and how line endings of mail data are taken.

/// Longest command line taken from a device, in octets. RFC 5321 section 4.5.3.1.4 asks for 512; extensions
/// add to it, and old devices pad.
pub const COMMAND_LINE: usize = 2_048;

/// Longest line of an AUTH exchange in octets, RFC 4954 section 4.
pub const AUTH_LINE: usize = 12_288;

/// Longest line of a smarthost's reply in octets. RFC 5321 section 4.5.3.1.5 says 512; Exchange Online's
/// diagnostic blocks are longer.
pub const REPLY_LINE: usize = 8_192;

/// Most lines in one reply of the smarthost.
pub const REPLY_LINES: usize = 128;

/// Longest address in octets: a path of 256 (RFC 5321 section 4.5.3.1.3) without its brackets.
pub const ADDRESS: usize = 254;

/// Longest AUTH command that carries its initial response, CR LF included (RFC 5321 section 4.5.3.1.4);
/// a longer response is sent as a line of its own.
pub const INITIAL_RESPONSE_LINE: usize = 512;

/// Faulty commands after which a session is closed.
pub const FAULTS: u32 = 20;

/// What is done with line ends of mail data that are not CR LF (RFC 5321 section 2.3.8 forbids them).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LineEndings {
    /// The message is refused.
    Strict,
    /// They are mended while the data stream through.
    #[default]
    Normalise,
}
