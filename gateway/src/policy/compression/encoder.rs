//! Streaming encoders over the crates of each format.

use std::io::{self, Write};

use bytes::Bytes;
use flate2::write::GzEncoder;
use seiketsu_config::policy::Encoding;

/// Levels that keep up with a network link on one core: beyond them, time doubles for a few percent.
const GZIP_LEVEL: u32 = 5;
const BROTLI_LEVEL: u32 = 4;
const ZSTD_LEVEL: i32 = 3;
/// Window of 512 KiB: an encoder holds a few times as much, and there is one per response in flight.
const BROTLI_WINDOW_BITS: u32 = 19;
const ZSTD_WINDOW_BITS: u32 = 19;

/// A body could not be compressed. The response cannot be saved then: its head has been sent.
#[derive(Debug, thiserror::Error)]
#[error("the response body could not be compressed: {0}")]
pub struct EncodeError(#[from] io::Error);

/// Compresses one response body, piece by piece, in constant memory.
pub struct Encoder {
    format: Option<Format>,
    flush_each: bool,
}

enum Format {
    Gzip(Box<GzEncoder<Vec<u8>>>),
    Br(Box<brotli::CompressorWriter<Vec<u8>>>),
    Zstd(Box<zstd::stream::write::Encoder<'static, Vec<u8>>>),
}

impl Encoder {
    /// `streamed` says that the body comes in pieces as they are made: each is then flushed, so that
    /// the client sees it at once. A body of known length is sent as the encoder's blocks fill.
    pub(super) fn new(encoding: Encoding, streamed: bool) -> io::Result<Self> {
        let format = match encoding {
            Encoding::Gzip => Format::Gzip(Box::new(GzEncoder::new(Vec::new(), flate2::Compression::new(GZIP_LEVEL)))),
            Encoding::Br => {
                Format::Br(Box::new(brotli::CompressorWriter::new(Vec::new(), 4096, BROTLI_LEVEL, BROTLI_WINDOW_BITS)))
            }
            Encoding::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
                encoder.window_log(ZSTD_WINDOW_BITS)?;
                Format::Zstd(Box::new(encoder))
            }
        };
        Ok(Self { format: Some(format), flush_each: streamed })
    }

    /// Whether it has been given the end of the body.
    pub fn has_ended(&self) -> bool {
        self.format.is_none()
    }

    /// Takes a piece of the body and gives what is ready to be sent, possibly nothing. With `end` the
    /// stream is finished; pieces after that are dropped.
    pub fn push(&mut self, chunk: &[u8], end: bool) -> Result<Bytes, EncodeError> {
        let Some(format) = &mut self.format else { return Ok(Bytes::new()) };
        if !chunk.is_empty() {
            format.write(chunk, self.flush_each && !end)?;
        }
        if !end {
            return Ok(format.take());
        }
        match self.format.take() {
            Some(format) => Ok(format.finish()?),
            None => Ok(Bytes::new()),
        }
    }
}

impl Format {
    fn write(&mut self, chunk: &[u8], flush: bool) -> io::Result<()> {
        let writer: &mut dyn Write = match self {
            Self::Gzip(writer) => writer,
            Self::Br(writer) => writer,
            Self::Zstd(writer) => writer,
        };
        writer.write_all(chunk)?;
        if flush { writer.flush() } else { Ok(()) }
    }

    fn take(&mut self) -> Bytes {
        let out = match self {
            Self::Gzip(writer) => writer.get_mut(),
            Self::Br(writer) => writer.get_mut(),
            Self::Zstd(writer) => writer.get_mut(),
        };
        std::mem::take(out).into()
    }

    fn finish(self) -> io::Result<Bytes> {
        match self {
            Self::Gzip(writer) => writer.finish(),
            // Writes the last block, which flushing alone does not.
            Self::Br(writer) => Ok(writer.into_inner()),
            Self::Zstd(writer) => writer.finish(),
        }
        .map(Bytes::from)
    }
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let format = match self.format {
            Some(Format::Gzip(_)) => "gzip",
            Some(Format::Br(_)) => "br",
            Some(Format::Zstd(_)) => "zstd",
            None => "finished",
        };
        f.debug_struct("Encoder").field("format", &format).field("flush_each", &self.flush_each).finish()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Read;

    use proptest::prelude::*;

    use super::*;

    const ALL: [Encoding; 3] = [Encoding::Gzip, Encoding::Br, Encoding::Zstd];

    fn decoded(encoding: Encoding, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        match encoding {
            Encoding::Gzip => flate2::read::GzDecoder::new(bytes).read_to_end(&mut out)?,
            Encoding::Br => brotli::Decompressor::new(bytes, 4096).read_to_end(&mut out)?,
            Encoding::Zstd => zstd::stream::read::Decoder::new(bytes)?.read_to_end(&mut out)?,
        };
        Ok(out)
    }

    /// As much as a decoder can tell from a stream that goes on.
    fn decoded_so_far(encoding: Encoding, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut decoder: Box<dyn Read> = match encoding {
            Encoding::Gzip => Box::new(flate2::read::GzDecoder::new(bytes)),
            Encoding::Br => Box::new(brotli::Decompressor::new(bytes, 4096)),
            Encoding::Zstd => Box::new(zstd::stream::read::Decoder::new(bytes).unwrap()),
        };
        let mut piece = [0; 256];
        while let Ok(read @ 1..) = decoder.read(&mut piece) {
            out.extend_from_slice(&piece[..read]);
        }
        out
    }

    #[test]
    fn each_piece_of_a_stream_can_be_decoded_as_soon_as_it_is_sent() {
        for encoding in ALL {
            let mut encoder = Encoder::new(encoding, true).unwrap();
            let mut sent = Vec::new();
            let mut whole = Vec::new();
            for i in 0..5 {
                let piece = format!("event {i}\n");
                whole.extend_from_slice(piece.as_bytes());
                sent.extend_from_slice(&encoder.push(piece.as_bytes(), false).unwrap());
                assert_eq!(decoded_so_far(encoding, &sent), whole, "{encoding:?}");
            }
            sent.extend_from_slice(&encoder.push(b"", true).unwrap());
            assert_eq!(decoded(encoding, &sent).unwrap(), whole);
        }
    }

    #[test]
    fn a_stream_that_was_cut_off_does_not_pass_for_a_whole_one() {
        for encoding in ALL {
            let mut encoder = Encoder::new(encoding, true).unwrap();
            let cut = encoder.push(b"hello", false).unwrap();
            assert!(decoded(encoding, &cut).is_err(), "{encoding:?}");
        }
    }

    #[test]
    fn an_empty_body_is_a_valid_stream() {
        for encoding in ALL {
            let out = Encoder::new(encoding, false).unwrap().push(b"", true).unwrap();
            assert_eq!(decoded(encoding, &out).unwrap(), b"");
        }
    }

    #[test]
    fn pieces_after_the_end_are_dropped() {
        for encoding in ALL {
            let mut encoder = Encoder::new(encoding, false).unwrap();
            encoder.push(b"all", true).unwrap();
            assert!(encoder.push(b"more", false).unwrap().is_empty());
            assert!(encoder.push(b"more", true).unwrap().is_empty());
        }
    }

    #[test]
    fn long_repetitive_bodies_shrink_and_memory_is_given_away_as_it_fills() {
        for encoding in ALL {
            let mut encoder = Encoder::new(encoding, false).unwrap();
            let piece = vec![b'a'; 64 * 1024];
            let mut sent = 0;
            for _ in 0..100 {
                sent += encoder.push(&piece, false).unwrap().len();
            }
            sent += encoder.push(b"", true).unwrap().len();
            assert!(sent < 100_000, "{encoding:?}: {sent}");
        }
    }

    proptest! {
        #[test]
        fn what_is_decoded_is_what_was_pushed(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..2000), 0..8),
            streamed: bool,
        ) {
            for encoding in ALL {
                let mut encoder = Encoder::new(encoding, streamed).unwrap();
                let mut sent = Vec::new();
                for piece in &pieces {
                    sent.extend_from_slice(&encoder.push(piece, false).unwrap());
                }
                sent.extend_from_slice(&encoder.push(b"", true).unwrap());
                prop_assert_eq!(decoded(encoding, &sent).unwrap(), pieces.concat());
            }
        }
    }
}
