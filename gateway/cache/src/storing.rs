//! Whether a response may be stored, and what of it (RFC 9111 §3).

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::{
    directives::{Lifetime, RequestDirectives, Scope},
    freshness::{self, Exchange, Heuristic},
    reuse::{Rules, Windows},
    targeted::Said,
    time::{self, Timestamp},
    vary::Vary,
};

/// What a node or route decides where the RFCs leave it open.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// Fields that count instead of `Cache-Control`, in order of preference (RFC 9213 §2.2).
    pub targets: Vec<HeaderName>,
    pub heuristic: Heuristic,
    /// Where the origin says nothing of its own.
    pub stale: Windows,
}

/// A response that may be stored, and the request that it answers.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    pub status: StatusCode,
    pub headers: &'a HeaderMap,
    pub request: RequestDirectives,
    /// The request told who is calling, in any way (RFC 9111 §3.5 and everything like it).
    pub has_credential: bool,
    pub exchange: Exchange,
}

/// What is kept of a response beside its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storable {
    pub headers: HeaderMap,
    pub rules: Rules,
    /// The fields of requests that it depends on.
    pub vary: Vec<HeaderName>,
}

/// Why a response is not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum NotStored {
    #[error("the request or the response says no-store")]
    NoStore,
    #[error("the response is for one user")]
    Private,
    #[error("no-cache or private names a field that the response cannot be served without")]
    Named,
    #[error("the request has a credential, and the response does not allow sharing")]
    Credential,
    #[error("the response sets a cookie, and does not allow sharing")]
    SetCookie,
    #[error("responses with this status are not stored")]
    Status,
    #[error("the response is a stream of events, which has no end")]
    Stream,
    #[error("the response has a transfer coding that is not undone")]
    TransferCoding,
    #[error("the response varies on everything")]
    Vary,
    #[error("the response is not fresh, and has nothing to validate it with")]
    Useless,
    #[error("the response is larger than what is stored")]
    TooLarge,
}

impl NotStored {
    /// A word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoStore => "no-store",
            Self::Private => "private",
            Self::Named => "named-field",
            Self::Credential => "credential",
            Self::SetCookie => "set-cookie",
            Self::Status => "status",
            Self::Stream => "stream",
            Self::TransferCoding => "transfer-coding",
            Self::Vary => "vary",
            Self::Useless => "not-fresh",
            Self::TooLarge => "too-large",
        }
    }
}

/// Decides whether a complete response to GET may be stored, and takes from it what may be kept.
pub fn storable(candidate: &Candidate<'_>, policy: &Policy) -> Result<Storable, NotStored> {
    let Candidate { status, headers, request, has_credential, exchange } = *candidate;
    let said = Said::of(headers, &policy.targets);
    let directives = &said.directives;
    if !is_storable(status) || directives.must_understand && !is_understood(status) {
        return Err(NotStored::Status);
    }
    // Whoever understands `must-understand` and the status goes by that (RFC 9111 §5.2.2.3).
    if request.no_store || directives.no_store && !directives.must_understand {
        return Err(NotStored::NoStore);
    }
    if is_event_stream(headers) {
        return Err(NotStored::Stream);
    }
    // What came in chunks is put together; the bytes of any other coding mean nothing without its name (RFC 9112 §7).
    if headers
        .get_all(header::TRANSFER_ENCODING)
        .iter()
        .any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
    {
        return Err(NotStored::TransferCoding);
    }
    if directives.private.is_whole() {
        return Err(NotStored::Private);
    }
    // Kept, such a field would be given to others; left out, it would be missed. No origin has a good reason to name
    // one, and so nothing is lost with the whole response.
    let mut named = directives.private.fields().iter().chain(directives.no_cache.fields());
    if named.any(|name| is_needed(name, &policy.targets)) {
        return Err(NotStored::Named);
    }
    if has_credential && !directives.allows_sharing() {
        return Err(NotStored::Credential);
    }
    let shares = directives.public || directives.s_maxage != Lifetime::Absent || said.is_targeted;
    let names_cookie = |scope: &Scope| scope.fields().contains(&header::SET_COOKIE);
    let leaves_cookie_out = names_cookie(&directives.private) || names_cookie(&directives.no_cache);
    if headers.contains_key(header::SET_COOKIE) && !shares && !leaves_cookie_out {
        return Err(NotStored::SetCookie);
    }
    let Vary::On(vary) = Vary::of(headers) else { return Err(NotStored::Vary) };
    let allowed =
        directives.public || freshness::is_explicit(headers, &said) || freshness::is_heuristically_cacheable(status);
    if !allowed {
        return Err(NotStored::Status);
    }
    let lifetime = freshness::lifetime(status, headers, &said, exchange, policy.heuristic).unwrap_or(0);
    let mut rules = Rules::new(directives, lifetime, freshness::initial_age(headers, exchange), exchange);
    if status.is_server_error() {
        rules.assume_nothing();
    }
    if !rules.may_be_of_use(headers, policy.stale) {
        return Err(NotStored::Useless);
    }
    let kept = kept(headers, directives.private.fields(), directives.no_cache.fields(), exchange.answered);
    Ok(Storable { headers: kept, rules, vary })
}

/// Whether a response goes on for as long as there are events.
pub fn is_event_stream(headers: &HeaderMap) -> bool {
    const MEDIA_TYPE: &[u8] = b"text/event-stream";
    let start = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.as_bytes().get(..MEDIA_TYPE.len()));
    // Case means nothing (RFC 9110 §8.3.1).
    start.is_some_and(|start| start.eq_ignore_ascii_case(MEDIA_TYPE))
}

/// Final statuses, whole responses. What RFC 6585 forbids to store is left out, and what is about the request
/// itself.
fn is_storable(status: StatusCode) -> bool {
    !status.is_informational() && !matches!(status.as_u16(), 206 | 304 | 412 | 416 | 417 | 428 | 429 | 431 | 511)
}

/// Statuses whose rules for caches are known and kept to (RFC 9110 §15).
fn is_understood(status: StatusCode) -> bool {
    matches!(
        status.as_u16(),
        200 | 203
            | 204
            | 300
            | 301
            | 302
            | 303
            | 307
            | 308
            | 400
            | 403
            | 404
            | 405
            | 406
            | 410
            | 414
            | 451
            | 500
            | 501
            | 502
            | 503
            | 504
    )
}

/// Whether it is by this field that caches decide for whom, for how long and until which purge a response may be
/// served. `targets`: [`Policy::targets`].
pub fn is_for_caches(name: &HeaderName, targets: &[HeaderName]) -> bool {
    matches!(name.as_str(), "cache-control" | "cache-tag" | "date" | "expires" | "surrogate-key" | "vary")
        || targets.contains(name)
}

/// Whether a stored response is not served rightly without this field, if it came with it: what is decided by, what it
/// is validated with, and what says how its bytes are to be read, or where else to look.
fn is_needed(name: &HeaderName, targets: &[HeaderName]) -> bool {
    is_for_caches(name, targets)
        || matches!(
            name.as_str(),
            "content-encoding"
                | "content-length"
                | "content-range"
                | "content-type"
                | "etag"
                | "last-modified"
                | "location"
        )
}

/// The fields that are kept (RFC 9111 §3.1): none that is about one connection, one user or one moment.
fn kept(headers: &HeaderMap, private: &[HeaderName], no_cache: &[HeaderName], answered: Timestamp) -> HeaderMap {
    let mut kept = HeaderMap::with_capacity(headers.len() + 1);
    for (name, value) in headers {
        if !is_of_one_message(name) && !private.contains(name) && !no_cache.contains(name) {
            kept.append(name, value.clone());
        }
    }
    // Who stores a response without a date adds when it came (RFC 9110 §6.6.1). What is none is replaced.
    let is_one = kept.get_all(header::DATE).iter().count() == 1;
    if !(is_one && matches!(time::date(&kept, &header::DATE), time::Date::At(_)))
        && let Ok(date) = HeaderValue::try_from(answered.to_http())
    {
        kept.insert(header::DATE, date);
    }
    kept
}

/// Fields that belong to one message and its connection, not to what is stored. `Age` is written anew each time.
pub(crate) fn is_of_one_message(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "age"
            | "connection"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authentication-info"
            | "proxy-authorization"
            | "proxy-connection"
            | "set-cookie"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const NOW: Timestamp = Timestamp::from_unix(1_000_000_000);

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let field = |(name, value): &(&str, &str)| {
            (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
        };
        fields.iter().map(field).collect()
    }

    fn stored_with(
        status: u16,
        fields: &[(&str, &str)],
        has_credential: bool,
        request: RequestDirectives,
    ) -> Result<Storable, NotStored> {
        let headers = headers(fields);
        let exchange = Exchange { requested: NOW, answered: NOW };
        let status = StatusCode::from_u16(status).unwrap();
        storable(&Candidate { status, headers: &headers, request, has_credential, exchange }, &Policy::default())
    }

    fn stored(status: u16, cache_control: &str) -> Result<Storable, NotStored> {
        stored_with(status, &[("cache-control", cache_control)], false, RequestDirectives::default())
    }

    fn refused(status: u16, cache_control: &str) -> Option<NotStored> {
        stored(status, cache_control).err()
    }

    #[test]
    fn what_is_fresh_is_stored_whatever_its_status() {
        for status in [200, 203, 204, 299, 300, 302, 307, 400, 403, 404, 410, 499, 500, 503, 599] {
            assert_eq!(refused(status, "max-age=60"), None, "{status}");
        }
        for status in [206, 304, 416, 428, 429, 431, 511] {
            assert_eq!(refused(status, "max-age=60"), Some(NotStored::Status), "{status}");
        }
    }

    #[test]
    fn what_forbids_it_is_not_stored() {
        assert_eq!(refused(200, "max-age=60, no-store"), Some(NotStored::NoStore));
        assert_eq!(refused(200, "max-age=60, private"), Some(NotStored::Private));
        assert_eq!(refused(200, "max-age=60, no-cache"), Some(NotStored::Useless));
        assert_eq!(refused(200, "max-age=0"), Some(NotStored::Useless));
        assert_eq!(refused(200, "private; max-age=60"), Some(NotStored::Private));
        assert_eq!(refused(200, "max-age=60; no-store"), Some(NotStored::NoStore));
        let request = RequestDirectives { no_store: true, ..Default::default() };
        let answer = [("cache-control", "max-age=60")];
        assert_eq!(stored_with(200, &answer, false, request), Err(NotStored::NoStore));
    }

    #[test]
    fn must_understand_lifts_no_store_where_the_status_is_understood() {
        assert_eq!(refused(200, "max-age=60, no-store, must-understand"), None);
        assert_eq!(refused(299, "max-age=60, no-store, must-understand"), Some(NotStored::Status));
        assert_eq!(refused(299, "max-age=60, must-understand"), Some(NotStored::Status));
    }

    #[test]
    fn a_credential_needs_the_word_of_the_origin() {
        let with = |cache_control| {
            let answer = [("cache-control", cache_control)];
            stored_with(200, &answer, true, RequestDirectives::default()).err()
        };
        assert_eq!(with("max-age=60"), Some(NotStored::Credential));
        for allowed in ["max-age=60, public", "s-maxage=60", "max-age=60, must-revalidate"] {
            assert_eq!(with(allowed), None, "{allowed}");
        }
    }

    #[test]
    fn cookies_are_never_kept() {
        let with = |cache_control| {
            let answer = [("cache-control", cache_control), ("set-cookie", "a=b")];
            stored_with(200, &answer, false, RequestDirectives::default())
        };
        assert_eq!(with("max-age=60").err(), Some(NotStored::SetCookie));
        for allowed in ["public, max-age=60", "s-maxage=60", "max-age=60, private=set-cookie"] {
            assert!(!with(allowed).unwrap().headers.contains_key(header::SET_COOKIE), "{allowed}");
        }
    }

    #[test]
    fn only_what_belongs_to_the_response_is_kept() {
        let answer = [
            ("cache-control", "max-age=60, private=\"x-a\", no-cache=\"x-b\""),
            ("x-a", "1"),
            ("x-b", "2"),
            ("x-c", "3"),
            ("age", "7"),
            ("proxy-authenticate", "Basic"),
        ];
        let kept = stored_with(200, &answer, false, RequestDirectives::default()).unwrap().headers;
        let names: Vec<_> = kept.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["cache-control", "x-c", "date"]);
    }

    #[test]
    fn what_cannot_be_served_without_a_named_field_is_not_stored() {
        for directive in ["private", "no-cache"] {
            for name in ["vary", "Vary", "x-a, cache-tag", "surrogate-key", "date", "expires", "etag", "content-type"] {
                assert_eq!(
                    refused(200, &format!("max-age=60, {directive}=\"{name}\"")),
                    Some(NotStored::Named),
                    "{name}"
                );
            }
        }
        let answer = headers(&[("cdn-cache-control", "max-age=60, private=\"cdn-cache-control\"")]);
        let policy = Policy { targets: vec![HeaderName::from_static("cdn-cache-control")], ..Policy::default() };
        let candidate = Candidate {
            status: StatusCode::OK,
            headers: &answer,
            request: RequestDirectives::default(),
            has_credential: false,
            exchange: Exchange { requested: NOW, answered: NOW },
        };
        assert_eq!(storable(&candidate, &policy), Err(NotStored::Named));
    }

    #[test]
    fn streams_of_events_are_not_stored() {
        let with = |kind| {
            let answer = [("cache-control", "max-age=60"), ("content-type", kind)];
            stored_with(200, &answer, false, RequestDirectives::default()).err()
        };
        for stream in ["text/event-stream", "text/event-stream; charset=utf-8", "Text/Event-Stream;charset=utf-8"] {
            assert_eq!(with(stream), Some(NotStored::Stream), "{stream}");
        }
        assert_eq!((with("text/event"), with("text/plain;text/event-stream")), (None, None));
    }

    #[test]
    fn what_has_another_transfer_coding_than_chunked_is_not_stored() {
        let with = |coding| {
            let answer = [("cache-control", "max-age=60"), ("transfer-encoding", coding)];
            stored_with(200, &answer, false, RequestDirectives::default()).err()
        };
        assert_eq!((with("chunked"), with("Chunked")), (None, None));
        for coding in ["gzip, chunked", "gzip", "chunked, chunked"] {
            assert_eq!(with(coding), Some(NotStored::TransferCoding), "{coding}");
        }
    }

    #[test]
    fn what_varies_on_everything_is_not_stored() {
        let answer = [("cache-control", "max-age=60"), ("vary", "origin, *")];
        assert_eq!(stored_with(200, &answer, false, RequestDirectives::default()), Err(NotStored::Vary));
    }

    #[test]
    fn what_can_be_validated_is_stored_although_it_is_stale() {
        for validator in [("etag", "\"1\""), ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")] {
            for cache_control in ["max-age=0", "no-cache"] {
                let answer = [("cache-control", cache_control), validator];
                assert!(stored_with(200, &answer, false, RequestDirectives::default()).is_ok(), "{answer:?}");
            }
        }
        assert_eq!(refused(200, "max-age=0, stale-if-error=60"), None);
        assert_eq!(stored_with(201, &[("etag", "\"1\"")], false, RequestDirectives::default()), Err(NotStored::Status));
        // It is private caches that `private` allows to (RFC 9111 §3).
        let private = [("etag", "\"1\""), ("cache-control", "private=\"x-a\"")];
        assert_eq!(stored_with(201, &private, false, RequestDirectives::default()), Err(NotStored::Status));
    }
}
