//! Compression of responses that come uncompressed (RFC 9110 §8.4, §12.5.3).
//!
//! Pingora brings a compression module of its own. It is not used, since it does not let a caller
//! choose the encoding: it takes the client's first, ignores media types of ours, never flushes a
//! stream before its end, and leaves Brotli streams without their last block, which strict decoders
//! refuse as cut off.

mod encoder;

use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{
        ACCEPT_ENCODING, ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
        ETAG,
    },
    response,
};
use seiketsu_config::policy::{self, Encoding};

pub use self::encoder::{EncodeError, Encoder};
use super::vary;

/// Digests of the uncompressed bytes (RFC 9530, RFC 3230, RFC 1864): no longer true once compressed.
const DIGESTS: [&str; 4] = ["content-digest", "repr-digest", "digest", "content-md5"];

/// Why a compression policy is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompressionError {
    #[error(
        "{0:?} is not a media type: write type/subtype as in application/json, or text/* for all of a kind, without parameters"
    )]
    InvalidMediaType(String),
    #[error("compression is enabled without an encoding: list gzip, br or zstd, or set `enabled` to false")]
    NoEncoding,
}

/// Which responses are compressed, and how.
#[derive(Debug, Clone)]
pub struct CompressionPolicy {
    encodings: Box<[Encoding]>,
    /// Lower case, sorted.
    media_types: Box<[Box<str>]>,
    /// `text/` for `text/*`.
    kinds: Box<[Box<str>]>,
    min_length: u64,
}

impl CompressionPolicy {
    /// `None` when the policy is switched off.
    pub fn compile(config: &policy::Compression) -> Result<Option<Self>, CompressionError> {
        if !config.enabled {
            return Ok(None);
        }
        if config.encodings.is_empty() {
            return Err(CompressionError::NoEncoding);
        }
        let (mut media_types, mut kinds) = (Vec::new(), Vec::new());
        for text in &config.media_types {
            let lower = text.to_ascii_lowercase();
            let (kind, subtype) =
                lower.split_once('/').ok_or_else(|| CompressionError::InvalidMediaType(text.clone()))?;
            match (kind, subtype) {
                ("*", "*") => kinds.push("".into()),
                (kind, "*") if is_token(kind) => kinds.push(format!("{kind}/").into()),
                (kind, subtype) if is_token(kind) && is_token(subtype) => media_types.push(lower.into()),
                _ => return Err(CompressionError::InvalidMediaType(text.clone())),
            }
        }
        media_types.sort_unstable();
        Ok(Some(Self {
            encodings: config.encodings.as_slice().into(),
            media_types: media_types.into(),
            kinds: kinds.into(),
            min_length: config.min_length.get(),
        }))
    }

    /// Decides whether a response is compressed and with what, changes its head accordingly, and gives
    /// the encoder for its body; `None` leaves the body as it is. The head has no `Content-Length`
    /// then: framing the body is the caller's. `Vary` is set wherever another
    /// client would have got another answer.
    pub fn apply(
        &self,
        accepted: AcceptedEncodings,
        method: &Method,
        response: &mut response::Parts,
    ) -> Option<Encoder> {
        if !self.is_compressible(response) {
            return None;
        }
        vary::add(&mut response.headers, &["Accept-Encoding"]);
        let encoding = self.choose(accepted)?;
        // There is nothing to compress, but the head is that of the answer to GET (RFC 9110 §9.3.2).
        if *method == Method::HEAD {
            change_head(&mut response.headers, encoding);
            return None;
        }
        let streamed = !response.headers.contains_key(CONTENT_LENGTH);
        let encoder = Encoder::new(encoding, streamed).ok()?;
        change_head(&mut response.headers, encoding);
        Some(encoder)
    }

    /// The accepted encoding with the highest quality, and of equal ones the first in the policy's
    /// order. `None` if the client likes the plain body better.
    fn choose(&self, accepted: AcceptedEncodings) -> Option<Encoding> {
        let mut best: Option<(u16, Encoding)> = None;
        for encoding in &self.encodings {
            let quality = accepted.quality(*encoding);
            if quality > best.map_or(0, |(best, _)| best) {
                best = Some((quality, *encoding));
            }
        }
        best.filter(|(quality, _)| *quality >= accepted.identity).map(|(_, encoding)| encoding)
    }

    fn is_compressible(&self, response: &response::Parts) -> bool {
        let headers = &response.headers;
        let has_whole_body = !response.status.is_informational()
            && !matches!(
                response.status,
                StatusCode::NO_CONTENT
                    | StatusCode::RESET_CONTENT
                    | StatusCode::PARTIAL_CONTENT
                    | StatusCode::NOT_MODIFIED
            )
            && !headers.contains_key(CONTENT_RANGE);
        has_whole_body
            && is_plain(headers)
            && !forbids_transform(headers)
            && self.is_long_enough(headers)
            && headers.get(CONTENT_TYPE).is_some_and(|value| self.lists(value))
    }

    fn is_long_enough(&self, headers: &HeaderMap) -> bool {
        match headers.get(CONTENT_LENGTH) {
            // A body of unknown length may be long.
            None => true,
            Some(length) => {
                let length = length.to_str().ok().and_then(|length| length.parse::<u64>().ok());
                length.is_some_and(|length| length > 0 && length >= self.min_length)
            }
        }
    }

    fn lists(&self, content_type: &HeaderValue) -> bool {
        let Ok(text) = content_type.to_str() else { return false };
        let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        // Events must arrive when they happen, and gRPC frames compress themselves.
        if essence == "text/event-stream" || essence.starts_with("application/grpc") {
            return false;
        }
        self.media_types.binary_search_by(|listed| (**listed).cmp(&essence)).is_ok()
            || self.kinds.iter().any(|kind| essence.starts_with(&**kind))
    }
}

/// What a client accepts, in thousandths; 0 is "not acceptable".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AcceptedEncodings {
    gzip: u16,
    br: u16,
    zstd: u16,
    /// Also 0 where nothing is said about it: acceptable, but anything accepted by name is better.
    identity: u16,
}

impl AcceptedEncodings {
    /// Reads `Accept-Encoding`. Without it, only the plain body is sent: clients that leave it out
    /// often decode nothing. Members that make no sense are passed over.
    pub fn of(request: &HeaderMap) -> Self {
        let (mut gzip, mut br, mut zstd, mut identity, mut rest) = (None, None, None, None, 0);
        let lines = request.get_all(ACCEPT_ENCODING).iter();
        let members = lines.flat_map(|line| line.as_bytes().split(|b| *b == b','));
        for member in members {
            let mut parts = member.split(|b| *b == b';').map(<[u8]>::trim_ascii);
            let name = parts.next().unwrap_or_default();
            let weight = parts.find_map(|part| match part {
                [b'q' | b'Q', b'=', value @ ..] => Some(quality(value)),
                _ => None,
            });
            let Some(quality) = weight.unwrap_or(Some(1000)) else { continue };
            let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
            if is(b"gzip") || is(b"x-gzip") {
                gzip = Some(quality);
            } else if is(b"br") {
                br = Some(quality);
            } else if is(b"zstd") {
                zstd = Some(quality);
            } else if is(b"identity") {
                identity = Some(quality);
            } else if name == b"*" {
                rest = quality;
            }
        }
        Self {
            gzip: gzip.unwrap_or(rest),
            br: br.unwrap_or(rest),
            zstd: zstd.unwrap_or(rest),
            identity: identity.unwrap_or(0),
        }
    }

    fn quality(self, encoding: Encoding) -> u16 {
        match encoding {
            Encoding::Gzip => self.gzip,
            Encoding::Br => self.br,
            Encoding::Zstd => self.zstd,
        }
    }
}

/// A quality value (RFC 9110 §12.4.2) in thousandths: `0`, `1`, or either with up to three decimals.
pub(super) fn quality(text: &[u8]) -> Option<u16> {
    let (whole, decimals) = match text {
        [whole @ (b'0' | b'1')] => (whole, &[][..]),
        [whole @ (b'0' | b'1'), b'.', decimals @ ..] if decimals.len() <= 3 => (whole, decimals),
        _ => return None,
    };
    let mut thousandths = 0;
    for place in 0..3 {
        let digit = decimals.get(place).copied().unwrap_or(b'0');
        if !digit.is_ascii_digit() {
            return None;
        }
        thousandths = thousandths * 10 + u16::from(digit - b'0');
    }
    match (whole, thousandths) {
        (b'1', 0) => Some(1000),
        (b'1', _) => None,
        (_, thousandths) => Some(thousandths),
    }
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&^_.+-".contains(&b))
}

/// Whether a body has no coding.
pub fn is_plain(headers: &HeaderMap) -> bool {
    headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .all(|value| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity"))
}

/// `Cache-Control: no-transform` (RFC 9111 §5.2.2.6).
fn forbids_transform(headers: &HeaderMap) -> bool {
    headers.get_all(CACHE_CONTROL).iter().any(|line| {
        line.as_bytes().split(|b| *b == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(b"no-transform"))
    })
}

fn change_head(headers: &mut HeaderMap, encoding: Encoding) {
    let name = match encoding {
        Encoding::Gzip => "gzip",
        Encoding::Br => "br",
        Encoding::Zstd => "zstd",
    };
    for digest in DIGESTS {
        headers.remove(digest);
    }
    // The length is not known ahead, and ranges of the compressed bytes cannot be served.
    headers.remove(&CONTENT_LENGTH);
    headers.remove(&ACCEPT_RANGES);
    // Two encodings of one resource are not the same bytes, so a strong validator (RFC 9110 §8.8.1)
    // becomes a weak one; what is neither is no validator and goes.
    if let Some(etag) = headers.remove(&ETAG) {
        let weak = match etag.as_bytes() {
            [b'W', b'/', ..] => Some(etag),
            [b'"', ..] => HeaderValue::from_bytes(&[b"W/", etag.as_bytes()].concat()).ok(),
            _ => None,
        };
        if let Some(weak) = weak {
            headers.insert(ETAG, weak);
        }
    }
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static(name));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn policy(value: serde_json::Value) -> CompressionPolicy {
        CompressionPolicy::compile(&serde_json::from_value(value).unwrap()).unwrap().unwrap()
    }

    fn accepted(lines: &[&str]) -> AcceptedEncodings {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(ACCEPT_ENCODING, line.parse().unwrap());
        }
        AcceptedEncodings::of(&headers)
    }

    fn chosen(accept: &str) -> Option<Encoding> {
        policy(json!({})).choose(accepted(&[accept]))
    }

    fn response(status: u16, fields: &[(&'static str, &str)]) -> response::Parts {
        let mut response = http::Response::builder().status(status).body(()).unwrap().into_parts().0;
        for (name, value) in fields {
            response.headers.append(*name, value.parse().unwrap());
        }
        response
    }

    fn is_compressed(status: u16, fields: &[(&'static str, &str)]) -> bool {
        let mut response = response(status, fields);
        policy(json!({})).apply(accepted(&["gzip"]), &Method::GET, &mut response).is_some()
    }

    const JSON: (&str, &str) = ("content-type", "application/json; charset=utf-8");
    const LONG: (&str, &str) = ("content-length", "4096");

    #[test]
    fn the_client_chooses_and_the_policy_breaks_ties() {
        assert_eq!(chosen("gzip, br, zstd"), Some(Encoding::Zstd));
        assert_eq!(chosen("gzip, br"), Some(Encoding::Br));
        assert_eq!(chosen("gzip;q=1, br;q=0.5, zstd;q=0.999"), Some(Encoding::Gzip));
        assert_eq!(chosen("GZIP"), Some(Encoding::Gzip));
        assert_eq!(chosen("x-gzip ; q=0.1"), Some(Encoding::Gzip));
        assert_eq!(chosen("deflate, compress"), None);
        assert_eq!(chosen(""), None);
        assert_eq!(policy(json!({})).choose(accepted(&[])), None);
        assert_eq!(policy(json!({})).choose(accepted(&["br;q=0.1", "gzip;q=0.2"])), Some(Encoding::Gzip));
        assert_eq!(
            policy(json!({ "encodings": ["gzip"] })).choose(accepted(&["br, gzip;q=0.1"])),
            Some(Encoding::Gzip)
        );
    }

    #[test]
    fn a_star_stands_for_all_that_are_not_named() {
        assert_eq!(chosen("*"), Some(Encoding::Zstd));
        assert_eq!(chosen("*, zstd;q=0"), Some(Encoding::Br));
        assert_eq!(chosen("*;q=0"), None);
        assert_eq!(chosen("*;q=0, gzip"), Some(Encoding::Gzip));
    }

    #[test]
    fn identity_wins_where_the_client_likes_it_better() {
        assert_eq!(chosen("identity, gzip;q=0.5"), None);
        assert_eq!(chosen("identity;q=0.5, gzip;q=0.5"), Some(Encoding::Gzip));
        assert_eq!(chosen("identity;q=0, gzip;q=0.001"), Some(Encoding::Gzip));
    }

    #[test]
    fn a_quality_that_is_none_drops_its_member() {
        for wrong in ["gzip;q=2", "gzip;q=1.001", "gzip;q=-1", "gzip;q=0.0001", "gzip;q=", "gzip;q=.5", "gzip;q=1e3"] {
            assert_eq!(chosen(wrong), None, "{wrong}");
        }
        assert_eq!(chosen("gzip;q=1.000"), Some(Encoding::Gzip));
    }

    #[test]
    fn only_whole_plain_long_bodies_of_listed_types_are_compressed() {
        assert!(is_compressed(200, &[JSON, LONG]));
        assert!(is_compressed(200, &[JSON]));
        assert!(is_compressed(404, &[("content-type", "TEXT/HTML"), LONG]));
        assert!(is_compressed(200, &[JSON, LONG, ("content-encoding", "identity")]));
        for status in [101, 204, 205, 206, 304] {
            assert!(!is_compressed(status, &[JSON, LONG]), "{status}");
        }
        for other in
            [("content-encoding", "gzip"), ("cache-control", "public, No-Transform"), ("content-range", "bytes 0-1/2")]
        {
            assert!(!is_compressed(200, &[JSON, LONG, other]), "{other:?}");
        }
        assert!(!is_compressed(200, &[JSON, ("content-length", "1023")]));
        assert!(!is_compressed(200, &[JSON, ("content-length", "nonsense")]));
        assert!(!is_compressed(200, &[LONG]));
        for other in [
            "text/event-stream",
            "text/event-stream;x=y",
            "application/grpc",
            "application/grpc+proto",
            "application/grpc-web",
            "image/png",
            "applicationjson",
        ] {
            assert!(!is_compressed(200, &[("content-type", other), LONG]), "{other}");
        }
    }

    #[test]
    fn streams_of_events_and_grpc_stay_plain_even_if_every_type_is_listed() {
        let everything = policy(json!({ "media_types": ["*/*", "application/grpc", "text/event-stream"] }));
        for content_type in ["text/event-stream", "application/grpc+proto"] {
            let mut head = response(200, &[("content-type", content_type)]);
            assert!(everything.apply(accepted(&["gzip"]), &Method::GET, &mut head).is_none());
        }
        let mut head = response(200, &[("content-type", "image/bmp")]);
        assert!(everything.apply(accepted(&["gzip"]), &Method::GET, &mut head).is_some());
    }

    #[test]
    fn the_head_tells_the_truth_about_the_compressed_body() {
        let mut head = response(
            200,
            &[
                JSON,
                LONG,
                ("etag", "\"abc\""),
                ("accept-ranges", "bytes"),
                ("vary", "Origin"),
                ("content-digest", "sha-256=:x:"),
            ],
        );
        assert!(policy(json!({})).apply(accepted(&["br"]), &Method::GET, &mut head).is_some());
        let field = |name: &str| head.headers.get(name).map(|value| value.to_str().unwrap());
        assert_eq!(field("content-encoding"), Some("br"));
        assert_eq!(field("etag"), Some("W/\"abc\""));
        assert_eq!(field("vary"), Some("Origin, Accept-Encoding"));
        for gone in ["content-length", "accept-ranges", "content-digest"] {
            assert_eq!(field(gone), None, "{gone}");
        }
        let mut head = response(200, &[JSON, ("etag", "W/\"abc\"")]);
        assert!(policy(json!({})).apply(accepted(&["br"]), &Method::GET, &mut head).is_some());
        assert_eq!(head.headers["etag"], "W/\"abc\"");
    }

    #[test]
    fn the_head_alone_is_that_of_the_compressed_answer() {
        let heads = [Method::GET, Method::HEAD].map(|method| {
            let mut head = response(200, &[JSON, LONG, ("etag", "\"abc\""), ("accept-ranges", "bytes")]);
            let encoder = policy(json!({})).apply(accepted(&["gzip"]), &method, &mut head);
            assert_eq!(encoder.is_some(), method == Method::GET);
            head.headers
        });
        assert_eq!(heads[0], heads[1]);
        assert_eq!(heads[1]["etag"], "W/\"abc\"");
    }

    #[test]
    fn vary_is_set_also_for_those_who_get_the_plain_body() {
        for method in [Method::GET, Method::HEAD] {
            let mut head = response(200, &[JSON, LONG]);
            assert!(policy(json!({})).apply(accepted(&[""]), &method, &mut head).is_none());
            assert_eq!(head.headers["vary"], "Accept-Encoding");
            assert_eq!(head.headers["content-length"], "4096");
            assert!(!head.headers.contains_key("content-encoding"));
        }
        let mut head = response(200, &[("content-type", "image/png")]);
        assert!(policy(json!({})).apply(accepted(&["gzip"]), &Method::GET, &mut head).is_none());
        assert!(!head.headers.contains_key("vary"));
    }

    #[test]
    fn wrong_media_types_and_an_empty_list_are_refused() {
        for wrong in ["json", "text/", "/html", "*/json", "text/html;q=1", "te xt/html", ""] {
            let config = serde_json::from_value(json!({ "media_types": [wrong] })).unwrap();
            let error = CompressionPolicy::compile(&config).unwrap_err();
            assert_eq!(error, CompressionError::InvalidMediaType(wrong.to_owned()));
        }
        let config = serde_json::from_value(json!({ "encodings": [] })).unwrap();
        assert_eq!(CompressionPolicy::compile(&config).unwrap_err(), CompressionError::NoEncoding);
        let config = serde_json::from_value(json!({ "enabled": false, "encodings": [] })).unwrap();
        assert!(CompressionPolicy::compile(&config).unwrap().is_none());
    }

    proptest! {
        #[test]
        fn a_chosen_encoding_is_always_one_the_client_accepts(accept in "((gzip|br|zstd|identity|\\*|x)( ?; ?q=[01](\\.[0-9]{0,3})?)?,? ?){0,5}") {
            if let Some(encoding) = chosen(&accept) {
                let name = match encoding { Encoding::Gzip => "gzip", Encoding::Br => "br", Encoding::Zstd => "zstd" };
                prop_assert!(accept.contains(name) || accept.contains('*'), "{accept:?} got {name}");
            }
        }

        #[test]
        fn every_quality_round_trips(thousandths in 0_u16..=1000) {
            let text = format!("{}.{:03}", thousandths / 1000, thousandths % 1000);
            prop_assert_eq!(quality(text.as_bytes()), Some(thousandths));
        }
    }
}
