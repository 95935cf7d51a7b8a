//! Length-prefixed messages of gRPC: one byte that says whether the message is compressed, four bytes of
//! length (big-endian), and the message.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::{Stream, StreamExt, stream::BoxStream};

const PREFIX: usize = 5;
pub(super) const MAX_MESSAGE: usize = 4 << 20;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    #[error("compressed messages are not taken; send them with compressed-flag 0")]
    Compressed,
    #[error("a message of {length} bytes is longer than the {MAX_MESSAGE} that are taken")]
    TooLong { length: usize },
    #[error("the body ends within a message")]
    Truncated,
    #[error("the body broke off: {0}")]
    Body(String),
}

pub(super) fn encode(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(PREFIX + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(message);
    frame.freeze()
}

/// Takes pieces of a body as they come and gives whole messages.
#[derive(Debug, Default)]
struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    fn push(&mut self, piece: &[u8]) {
        self.buffer.extend_from_slice(piece);
    }

    /// `None`: more of the body is needed.
    fn next(&mut self) -> Result<Option<Bytes>, FrameError> {
        let [compressed, a, b, c, d, rest @ ..] = self.buffer.as_ref() else { return Ok(None) };
        if *compressed != 0 {
            return Err(FrameError::Compressed);
        }
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        if length > MAX_MESSAGE {
            return Err(FrameError::TooLong { length });
        }
        if rest.len() < length {
            return Ok(None);
        }
        self.buffer.advance(PREFIX);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }
}

/// The messages of a body, each as soon as it is whole. Ends after the first error.
pub(super) struct Messages {
    body: BoxStream<'static, Result<Bytes, FrameError>>,
    decoder: Decoder,
    ended: bool,
}

impl Messages {
    pub(super) fn new(body: impl Stream<Item = Result<Bytes, FrameError>> + Send + 'static) -> Self {
        Self { body: body.boxed(), decoder: Decoder::default(), ended: false }
    }
}

impl Stream for Messages {
    type Item = Result<Bytes, FrameError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        while !this.ended {
            match this.decoder.next() {
                Ok(Some(message)) => return Poll::Ready(Some(Ok(message))),
                Ok(None) => {}
                Err(error) => {
                    this.ended = true;
                    return Poll::Ready(Some(Err(error)));
                }
            }
            match this.body.poll_next_unpin(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(piece))) => this.decoder.push(&piece),
                Poll::Ready(Some(Err(error))) => {
                    this.ended = true;
                    return Poll::Ready(Some(Err(error)));
                }
                Poll::Ready(None) => {
                    this.ended = true;
                    if !this.decoder.buffer.is_empty() {
                        return Poll::Ready(Some(Err(FrameError::Truncated)));
                    }
                }
            }
        }
        Poll::Ready(None)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use futures::{FutureExt, stream};
    use proptest::prelude::*;

    use super::*;

    fn decode(pieces: Vec<Bytes>) -> Vec<Result<Bytes, FrameError>> {
        Messages::new(stream::iter(pieces.into_iter().map(Ok))).collect::<Vec<_>>().now_or_never().unwrap()
    }

    proptest! {
        #[test]
        fn messages_survive_any_cutting_of_the_body(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..8),
            cut in 1..40_usize,
        ) {
            let body: Vec<u8> = messages.iter().flat_map(|message| encode(message)).collect();
            let pieces = body.chunks(cut).map(Bytes::copy_from_slice).collect();
            let decoded: Vec<_> = decode(pieces).into_iter().map(|message| message.unwrap().to_vec()).collect();
            prop_assert_eq!(decoded, messages);
        }

        #[test]
        fn a_body_that_ends_within_a_message_is_an_error(message in prop::collection::vec(any::<u8>(), 0..50), keep in 1..4_usize) {
            let frame = encode(&message);
            let cut = (frame.len() * keep / 4).max(1);
            prop_assert_eq!(decode(vec![frame.slice(..cut)]), vec![Err(FrameError::Truncated)]);
        }
    }

    #[test]
    fn a_compressed_message_is_refused() {
        assert_eq!(decode(vec![Bytes::from_static(&[1, 0, 0, 0, 0])]), vec![Err(FrameError::Compressed)]);
    }

    #[test]
    fn a_message_that_is_too_long_is_refused_before_it_is_read() {
        let head = Bytes::from_static(&[0, 0x7f, 0xff, 0xff, 0xff]);
        assert_eq!(decode(vec![head]), vec![Err(FrameError::TooLong { length: 0x7fff_ffff })]);
    }
}
