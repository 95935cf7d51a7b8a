//! Bodies of any size, both ways, in constant memory.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header::TRAILER};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use serde::Serialize;

use super::{
    body::{Body, BodyError, Response, json, ok, problem},
    query_value,
};

const CHUNK: usize = 64 << 10;
/// What bodies are made of: the alphabet, again and again.
static PATTERN: [u8; CHUNK] = pattern();

#[expect(clippy::large_stack_arrays, reason = "made while compiling")]
const fn pattern() -> [u8; CHUNK] {
    let mut bytes = [0; CHUNK];
    let mut i = 0;
    while i < CHUNK {
        #[expect(clippy::cast_possible_truncation, reason = "below 26")]
        let letter = (i % 26) as u8;
        bytes[i] = b'a' + letter;
        i += 1;
    }
    bytes
}

/// `/v1/bytes/{n}`: `n` bytes with `Content-Length`; with `?chunked=true` without.
///
/// Up to 64 KiB the body is a slice of static memory, so that the origin is not what a benchmark measures.
pub(super) fn bytes(length: &str, query: Option<&str>) -> Response {
    let Ok(length) = length.parse::<u64>() else {
        return problem(StatusCode::BAD_REQUEST, "write it as /v1/bytes/1024: a whole number of bytes");
    };
    let chunked = query.is_some() && query_value(query, "chunked").as_deref() == Some("true");
    let body = match usize::try_from(length) {
        Ok(length) if length <= CHUNK && !chunked => Body::whole(Bytes::from_static(&PATTERN[..length])),
        _ => Body::streamed(Pattern { left: length, announced: !chunked }),
    };
    ok("application/octet-stream", body)
}

/// Pieces of [`PATTERN`] until nothing is left.
struct Pattern {
    left: u64,
    announced: bool,
}

impl HttpBody for Pattern {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let length = usize::try_from(self.left).unwrap_or(CHUNK).min(CHUNK);
        self.left -= length as u64;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&PATTERN[..length])))))
    }

    fn size_hint(&self) -> SizeHint {
        if self.announced { SizeHint::with_exact(self.left) } else { SizeHint::default() }
    }
}

#[derive(Debug, Serialize)]
struct Uploaded {
    length: u64,
    /// FNV-1a, 64 bits, hexadecimal.
    checksum: String,
    trailers: bool,
}

/// `POST /v1/upload`: counts and hashes the body as it comes, and keeps none of it.
pub(super) async fn upload(request: Request<Incoming>) -> Response {
    let mut body = request.into_body();
    let (mut length, mut checksum, mut trailers) = (0, Fnv::default(), false);
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => match frame.data_ref() {
                Some(data) => {
                    length += data.len() as u64;
                    checksum.update(data);
                }
                None => trailers = true,
            },
            Err(error) => return problem(StatusCode::BAD_REQUEST, &format!("the body broke off: {error}")),
        }
    }
    json(&Uploaded { length, checksum: format!("{:016x}", checksum.0), trailers })
}

/// FNV-1a, 64 bits: short, and the same in every language a client may be written in.
#[derive(Debug)]
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn update(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// `/v1/trailers`: three pieces and the trailer field `x-checksum` (RFC 9110 §6.5). Over HTTP/1.1 it is
/// sent to clients that ask with `TE: trailers`.
pub(super) fn trailers() -> Response {
    const NAME: HeaderName = HeaderName::from_static("x-checksum");
    let pieces = ["one\n", "two\n", "three\n"];
    let mut checksum = Fnv::default();
    for piece in pieces {
        checksum.update(piece.as_bytes());
    }
    let mut trailers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_str(&format!("{:016x}", checksum.0)) {
        trailers.insert(NAME, value);
    }
    let frames = pieces.map(|piece| Frame::data(Bytes::from_static(piece.as_bytes())));
    let frames = frames.into_iter().chain([Frame::trailers(trailers)]).map(Ok::<_, BodyError>);
    let mut response = ok("text/plain", Body::streamed(StreamBody::new(stream::iter(frames))));
    response.headers_mut().insert(TRAILER, HeaderValue::from_static("x-checksum"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_fnv_1a_as_published() {
        let mut checksum = Fnv::default();
        checksum.update(b"foobar");
        assert_eq!(checksum.0, 0x8594_4171_f739_67e8);
    }
}
