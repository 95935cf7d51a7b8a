//! What a request may look like at all: method, size of target, headers and body, required headers.

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use pingora_http::RequestHeader;
use seiketsu_config::policy;

use super::Refusal;
use crate::{fields, respond::problem::ProblemKind};

/// Bounds of a request, checked before anything else looks at it.
#[derive(Debug, Clone)]
pub struct RequestLimits {
    /// `None` allows every method.
    methods: Option<AllowedMethods>,
    required_headers: Box<[HeaderName]>,
    max_body_bytes: u64,
    max_header_bytes: usize,
    max_target_bytes: usize,
    websocket: bool,
}

#[derive(Debug, Clone)]
struct AllowedMethods {
    list: Box<[Method]>,
    allow: HeaderValue,
}

/// The bound that a request exceeds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exceeded {
    /// 414. Holds the bound in bytes.
    Target(usize),
    /// 431. Holds the bound in bytes.
    Headers(usize),
    /// 405. Holds the value of `Allow` (RFC 9110 §10.2.1).
    Method(HeaderValue),
    /// 400. Holds the header's name.
    MissingHeader(HeaderName),
    /// 403.
    WebSocket,
    /// 400: not one decimal number.
    ContentLength,
    /// 413. Holds the bound in bytes.
    Body(u64),
}

impl RequestLimits {
    pub fn compile(config: &policy::RequestLimits) -> Self {
        let methods = (!config.methods.is_empty()).then(|| {
            let list: Box<[Method]> = config.methods.iter().map(|method| method.get().clone()).collect();
            let line = list.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
            // Methods are letters and '-', so the line is always a header value.
            let allow = HeaderValue::try_from(line).unwrap_or_else(|_| HeaderValue::from_static(""));
            AllowedMethods { list, allow }
        });
        Self {
            methods,
            required_headers: config.required_headers.iter().map(|name| name.get().clone()).collect(),
            max_body_bytes: config.max_body.get(),
            max_header_bytes: config.max_headers.as_usize(),
            max_target_bytes: config.max_target.as_usize(),
            websocket: config.websocket,
        }
    }

    /// Checks all that the head of a request shows, the announced length of its body included.
    pub fn check(&self, request: &RequestHeader) -> Result<(), Exceeded> {
        if request.raw_path().len() > self.max_target_bytes {
            return Err(Exceeded::Target(self.max_target_bytes));
        }
        let header_bytes: usize = request.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        if header_bytes > self.max_header_bytes {
            return Err(Exceeded::Headers(self.max_header_bytes));
        }
        if let Some(methods) = &self.methods
            && !methods.list.contains(&request.method)
        {
            return Err(Exceeded::Method(methods.allow.clone()));
        }
        if !self.websocket && asks_for_websocket(&request.headers) {
            return Err(Exceeded::WebSocket);
        }
        if let Some(name) = self.required_headers.iter().find(|name| !request.headers.contains_key(*name)) {
            return Err(Exceeded::MissingHeader(name.clone()));
        }
        match content_length(&request.headers)? {
            Some(length) if length > self.max_body_bytes => Err(Exceeded::Body(self.max_body_bytes)),
            _ => Ok(()),
        }
    }

    /// A counter for the bytes of one request's body as they arrive: the announced length may be
    /// absent or wrong.
    pub fn body_counter(&self) -> BodyCounter {
        self.body_counter_up_to(u64::MAX)
    }

    /// The same, where `bytes` are the most that can be taken whatever the policy says.
    pub fn body_counter_up_to(&self, bytes: u64) -> BodyCounter {
        let max = self.max_body_bytes.min(bytes);
        BodyCounter { remaining: max, max }
    }
}

/// Counts the bytes of a body against its bound.
#[derive(Debug, Clone)]
pub struct BodyCounter {
    remaining: u64,
    max: u64,
}

impl BodyCounter {
    /// Counts a piece of `length` bytes. Once the bound is exceeded, every further byte is too much.
    pub fn count(&mut self, length: usize) -> Result<(), Exceeded> {
        if let Some(remaining) = u64::try_from(length).ok().and_then(|length| self.remaining.checked_sub(length)) {
            self.remaining = remaining;
            Ok(())
        } else {
            self.remaining = 0;
            Err(Exceeded::Body(self.max))
        }
    }
}

impl From<Exceeded> for Refusal {
    fn from(exceeded: Exceeded) -> Self {
        match exceeded {
            Exceeded::Target(max) => {
                Self::new(ProblemKind::UriTooLong, format!("Path and query may have {max} bytes at most."))
            }
            Exceeded::Headers(max) => Self::new(
                ProblemKind::HeadersTooLarge,
                format!("Header names and values may have {max} bytes at most, all together."),
            ),
            Exceeded::Method(allow) => {
                Self::new(ProblemKind::MethodNotAllowed, "This method is not allowed here; see the Allow header.")
                    .with_header(header::ALLOW, allow)
            }
            Exceeded::MissingHeader(name) => {
                Self::new(ProblemKind::BadRequest, format!("The header {name} must be present."))
            }
            Exceeded::WebSocket => Self::new(ProblemKind::Forbidden, "This path does not take WebSocket connections."),
            Exceeded::ContentLength => Self::new(ProblemKind::BadRequest, "Content-Length must be one decimal number."),
            Exceeded::Body(max) => {
                Self::new(ProblemKind::PayloadTooLarge, format!("The body may have {max} bytes at most."))
                    .with_extension("max-bytes", max)
            }
        }
    }
}

fn asks_for_websocket(headers: &HeaderMap) -> bool {
    fields::has(headers, &header::UPGRADE)
        && headers.get_all(header::UPGRADE).iter().any(|line| {
            line.as_bytes().split(|b| *b == b',').any(|protocol| {
                let name = protocol.split(|b| *b == b'/').next().unwrap_or_default();
                name.trim_ascii().eq_ignore_ascii_case(b"websocket")
            })
        })
}

/// RFC 9110 §8.6: digits only; several equal values are not folded but refused.
fn content_length(headers: &HeaderMap) -> Result<Option<u64>, Exceeded> {
    if !fields::has(headers, &header::CONTENT_LENGTH) {
        return Ok(None);
    }
    let mut values = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let digits = value.as_bytes();
    if values.next().is_some() || digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Exceeded::ContentLength);
    }
    // A number of digits that no u64 holds is a valid length all the same, only too large.
    Ok(Some(digits.iter().fold(0_u64, |sum, digit| sum.saturating_mul(10).saturating_add(u64::from(digit - b'0')))))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn limits(value: serde_json::Value) -> RequestLimits {
        RequestLimits::compile(&serde_json::from_value(value).unwrap())
    }

    fn request(method: &str, target: &str, fields: &[(&'static str, &str)]) -> RequestHeader {
        let mut request = RequestHeader::build(method, target.as_bytes(), None).unwrap();
        for (name, value) in fields {
            request.append_header(*name, *value).unwrap();
        }
        request
    }

    #[test]
    fn an_ordinary_request_passes_the_defaults() {
        let request = request("POST", "/v1/users?x=1", &[("host", "a"), ("content-length", "10485760")]);
        assert_eq!(limits(json!({})).check(&request), Ok(()));
    }

    #[test]
    fn a_method_that_is_not_listed_gets_405_with_allow() {
        let exceeded = limits(json!({ "methods": ["GET", "POST"] })).check(&request("DELETE", "/", &[])).unwrap_err();
        let refusal = Refusal::from(exceeded);
        assert_eq!(refusal.status(), 405);
        assert_eq!(refusal.headers, [(header::ALLOW, HeaderValue::from_static("GET, POST"))]);
    }

    #[test]
    fn sizes_at_the_bound_pass_and_one_byte_more_does_not() {
        let limits = limits(json!({ "max_target": 5, "max_headers": 4, "max_body": 3 }));
        assert_eq!(limits.check(&request("GET", "/1234", &[("ab", "cd"),])), Ok(()));
        assert_eq!(limits.check(&request("GET", "/12345", &[])), Err(Exceeded::Target(5)));
        assert_eq!(limits.check(&request("GET", "/", &[("ab", "cde")])), Err(Exceeded::Headers(4)));
    }

    #[test]
    fn an_announced_body_beyond_the_bound_is_413_and_nonsense_is_400() {
        let limits = limits(json!({ "max_body": 100 }));
        let check = |lengths: &[&str]| {
            let fields: Vec<_> = lengths.iter().map(|length| ("content-length", *length)).collect();
            limits.check(&request("POST", "/", &fields))
        };
        assert_eq!(check(&["100"]), Ok(()));
        assert_eq!(check(&["101"]), Err(Exceeded::Body(100)));
        assert_eq!(check(&["99999999999999999999999999"]), Err(Exceeded::Body(100)));
        for nonsense in ["", "+1", "-1", "1,1", "0x10", "1 1", "1e2"] {
            assert_eq!(check(&[nonsense]), Err(Exceeded::ContentLength), "{nonsense:?}");
        }
        assert_eq!(check(&["5", "5"]), Err(Exceeded::ContentLength));
    }

    #[test]
    fn a_missing_header_is_named() {
        let refusal: Refusal = limits(json!({ "required_headers": ["X-Request-Source"] }))
            .check(&request("GET", "/", &[]))
            .unwrap_err()
            .into();
        assert_eq!(refusal.status(), 400);
        assert!(refusal.detail.contains("x-request-source"));
    }

    #[test]
    fn websockets_can_be_refused_however_the_upgrade_is_written() {
        let limits = limits(json!({ "websocket": false }));
        for upgrade in ["websocket", "WebSocket", "h2c, websocket", "websocket/13"] {
            assert_eq!(limits.check(&request("GET", "/", &[("upgrade", upgrade)])), Err(Exceeded::WebSocket));
        }
        assert_eq!(limits.check(&request("GET", "/", &[("upgrade", "h2c")])), Ok(()));
    }

    proptest! {
        #[test]
        fn the_counter_passes_exactly_the_bound(max in 0_u64..1000, pieces in proptest::collection::vec(0_usize..300, 0..12)) {
            let mut counter = limits(json!({ "max_body": max })).body_counter();
            let mut sum = 0;
            for piece in pieces {
                sum += piece as u64;
                prop_assert_eq!(counter.count(piece).is_ok(), sum <= max);
                if sum > max {
                    prop_assert!(counter.count(1).is_err());
                    break;
                }
            }
        }
    }
}
