//! What the cache says of itself in `Cache-Status` (RFC 9211).

use http::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

pub const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// How this cache is called in the list.
const NAME: &[u8] = b"seiketsu";

/// Why a request went on to the origin (RFC 9211 §2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Forwarded {
    /// The cache was not to be used.
    Bypass,
    /// The method cannot be answered from the cache.
    Method,
    /// Nothing is stored for the URI.
    UriMiss,
    /// Nothing is stored for these fields of the request.
    VaryMiss,
    /// The request asks for it.
    Request,
    /// What is stored is stale.
    Stale,
}

impl Forwarded {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Method => "method",
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Request => "request",
            Self::Stale => "stale",
        }
    }
}

/// What the cache did for one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Status {
    pub hit: bool,
    pub forwarded: Option<Forwarded>,
    /// Of the origin's answer, where it is not the one that the client gets.
    pub forwarded_status: Option<u16>,
    /// Seconds for which it stays fresh; negative: stale.
    pub ttl: Option<i64>,
    pub stored: bool,
    pub collapsed: bool,
    pub detail: Option<&'static str>,
}

impl Status {
    /// One that says where it came from.
    pub fn hit(ttl: i64) -> Self {
        Self { hit: true, ttl: Some(ttl), ..Self::default() }
    }

    /// Adds itself to what other caches have said: those nearer to the origin stand before (RFC 9211 §2).
    pub fn write(&self, headers: &mut HeaderMap) {
        // On the stack: it is written for every answer.
        let mut text = SmallVec::<[u8; 128]>::from_slice(NAME);
        let mut add = |part: &str| text.extend_from_slice(part.as_bytes());
        if self.hit {
            add("; hit");
        }
        if let Some(reason) = self.forwarded {
            add("; fwd=");
            add(reason.name());
        }
        if let Some(status) = self.forwarded_status {
            add("; fwd-status=");
            add(itoa::Buffer::new().format(status));
        }
        if let Some(ttl) = self.ttl {
            add("; ttl=");
            add(itoa::Buffer::new().format(ttl));
        }
        if self.stored {
            add("; stored");
        }
        if self.collapsed {
            add("; collapsed");
        }
        if let Some(detail) = self.detail {
            add("; detail=");
            add(detail);
        }
        if let Ok(value) = HeaderValue::from_bytes(&text) {
            headers.append(CACHE_STATUS, value);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use sfv::Parser;

    use super::*;

    fn written(status: Status) -> String {
        let mut headers = HeaderMap::new();
        status.write(&mut headers);
        headers[CACHE_STATUS].to_str().unwrap().to_owned()
    }

    #[test]
    fn it_is_written_as_the_rfc_has_it() {
        assert_eq!(written(Status::hit(376)), "seiketsu; hit; ttl=376");
        let all = Status {
            forwarded: Some(Forwarded::Stale),
            forwarded_status: Some(304),
            ttl: Some(-5),
            stored: true,
            collapsed: true,
            detail: Some("no-store"),
            hit: false,
        };
        let text = written(all);
        assert_eq!(text, "seiketsu; fwd=stale; fwd-status=304; ttl=-5; stored; collapsed; detail=no-store");
        assert!(Parser::parse_list(text.as_bytes()).is_ok());
    }

    #[test]
    fn others_stand_before_it() {
        let mut headers = HeaderMap::new();
        headers.insert(CACHE_STATUS, HeaderValue::from_static("origin-cache; hit"));
        Status { forwarded: Some(Forwarded::UriMiss), ..Status::default() }.write(&mut headers);
        let all: Vec<_> = headers.get_all(CACHE_STATUS).iter().collect();
        assert_eq!(all, ["origin-cache; hit", "seiketsu; fwd=uri-miss"]);
    }
}
