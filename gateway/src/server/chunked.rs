//! Where a chunked body ends (RFC 9112 §7.1).
//!
//! The transport follows the chunks without touching them, so that what a client sends behind the body
//! stays where it is until that request's turn. It is as strict as the check of heads: a chunk that two
//! parsers could measure differently is refused.

use std::io;

/// Chunk extensions and the trailer section say nothing that is passed on; nobody needs long ones.
const MOST_EXTENSION_BYTES: u16 = 1024;
const MOST_TRAILER_BYTES: u16 = 8 * 1024;
/// Hexadecimal digits of a chunk's size: 2⁶⁰ bytes and no overflow.
const MOST_SIZE_DIGITS: u8 = 15;

/// Why a chunked body was refused. Travels inside an [`io::Error`] through Pingora, back to our hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChunkError {
    #[error("the size of a chunk is not a plain hexadecimal number")]
    Size,
    #[error("a chunk extension is too long or holds a control character")]
    Extension,
    #[error("a line of the chunked body does not end in CRLF")]
    LineEnding,
    #[error("the trailer section is too long or holds a control character")]
    Trailer,
}

impl ChunkError {
    /// Finds it among the causes of an error that came back from Pingora.
    pub(crate) fn in_error(error: &pingora_core::Error) -> Option<Self> {
        let cause = error.root_cause();
        cause.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref::<Self>().copied()
    }
}

impl From<ChunkError> for io::Error {
    fn from(error: ChunkError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// Follows a body that comes in pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct ChunkScanner(State);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Size { size: u64, digits: u8 },
    Extension { size: u64, length: u16 },
    SizeEnd { size: u64 },
    Data { left: u64 },
    DataEnd,
    DataLineFeed,
    TrailerLine { length: u16 },
    Trailer { length: u16 },
    TrailerLineFeed { length: u16 },
    LastLineFeed,
    Ended,
}

impl Default for State {
    fn default() -> Self {
        Self::Size { size: 0, digits: 0 }
    }
}

impl ChunkScanner {
    pub(crate) fn has_ended(&self) -> bool {
        self.0 == State::Ended
    }

    /// How many of these bytes, which follow those of the last call, belong to the body.
    pub(crate) fn scan(&mut self, bytes: &[u8]) -> Result<usize, ChunkError> {
        let mut at = 0;
        while at < bytes.len() && !self.has_ended() {
            if let State::Data { left } = self.0 {
                let here = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len() - at);
                at += here;
                let left = left - here as u64;
                self.0 = if left == 0 { State::DataEnd } else { State::Data { left } };
            } else {
                self.0 = self.0.after(bytes[at])?;
                at += 1;
            }
        }
        Ok(at)
    }
}

impl State {
    fn after(self, byte: u8) -> Result<Self, ChunkError> {
        Ok(match (self, byte) {
            (Self::Size { digits: 1.., size } | Self::Extension { size, .. }, b'\r') => Self::SizeEnd { size },
            (Self::Size { digits: 1.., size }, b';') => Self::Extension { size, length: 0 },
            (Self::Size { digits, size }, _) => {
                let digit = char::from(byte).to_digit(16).ok_or(ChunkError::Size)?;
                if digits == MOST_SIZE_DIGITS {
                    return Err(ChunkError::Size);
                }
                Self::Size { size: size << 4 | u64::from(digit), digits: digits + 1 }
            }
            (Self::Extension { size, length }, _) => {
                if length == MOST_EXTENSION_BYTES || !is_text(byte) {
                    return Err(ChunkError::Extension);
                }
                Self::Extension { size, length: length + 1 }
            }
            (Self::SizeEnd { size: 0 }, b'\n') => Self::TrailerLine { length: 0 },
            (Self::SizeEnd { size }, b'\n') => Self::Data { left: size },
            (Self::DataEnd, b'\r') => Self::DataLineFeed,
            (Self::DataLineFeed, b'\n') => Self::default(),
            (Self::TrailerLine { .. }, b'\r') => Self::LastLineFeed,
            (Self::Trailer { length }, b'\r') => Self::TrailerLineFeed { length },
            (Self::TrailerLine { length } | Self::Trailer { length }, _) => {
                if length == MOST_TRAILER_BYTES || !is_text(byte) {
                    return Err(ChunkError::Trailer);
                }
                Self::Trailer { length: length + 1 }
            }
            (Self::TrailerLineFeed { length }, b'\n') => Self::TrailerLine { length },
            (Self::LastLineFeed, b'\n') => Self::Ended,
            _ => return Err(ChunkError::LineEnding),
        })
    }
}

fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// What is left of the text behind the body, read at once and byte by byte.
    fn rest_of(text: &str) -> Result<Option<&str>, ChunkError> {
        let mut whole = ChunkScanner::default();
        let at_once = whole.scan(text.as_bytes()).map(|at| whole.has_ended().then(|| &text[at..]));
        let mut pieces = ChunkScanner::default();
        let one_by_one = text.as_bytes().chunks(1).try_fold(0, |sum, byte| Ok(sum + pieces.scan(byte)?));
        assert_eq!(one_by_one.map(|at| pieces.has_ended().then(|| &text[at..])), at_once, "{text:?}");
        at_once
    }

    #[test]
    fn the_end_is_found_and_what_follows_is_left() {
        for body in ["0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n", "A;x=y\r\n0123456789\r\n000;z\r\nX-Sum: 1\r\nB: 2\r\n\r\n"]
        {
            assert_eq!(rest_of(body), Ok(Some("")));
            assert_eq!(rest_of(&format!("{body}GET /")), Ok(Some("GET /")));
        }
        assert_eq!(rest_of("5\r\nhel"), Ok(None));
        assert_eq!(rest_of("0\r\nTrailer: 1\r\n"), Ok(None));
    }

    #[test]
    fn what_could_be_measured_differently_is_refused() {
        for (body, error) in [
            ("\r\n", ChunkError::Size),
            (" 5\r\n", ChunkError::Size),
            ("5 \r\n", ChunkError::Size),
            ("+5\r\n", ChunkError::Size),
            ("0x5\r\n", ChunkError::Size),
            ("g\r\n", ChunkError::Size),
            ("5\n", ChunkError::Size),
            ("1000000000000000\r\n", ChunkError::Size),
            ("5;a\nb\r\n", ChunkError::Extension),
            ("5\rx", ChunkError::LineEnding),
            ("5\r\nhello!\r\n", ChunkError::LineEnding),
            ("5\r\nhello\n", ChunkError::LineEnding),
            ("0\r\nA: \0\r\n", ChunkError::Trailer),
            ("0\r\nA: b\r\n\rx", ChunkError::LineEnding),
        ] {
            assert_eq!(rest_of(body), Err(error), "{body:?}");
        }
        assert_eq!(rest_of(&format!("5;{}", "x".repeat(2000))), Err(ChunkError::Extension));
        assert_eq!(rest_of(&format!("0\r\n{}", "A: b\r\n".repeat(3000))), Err(ChunkError::Trailer));
    }
}
