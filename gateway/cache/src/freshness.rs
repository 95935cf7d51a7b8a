//! How long a response is fresh, and how old it is (RFC 9111 §4.2).

use http::{HeaderMap, StatusCode, header};

use crate::{
    directives::Lifetime,
    targeted::Said,
    time::{Date, Timestamp, date, delta_seconds},
};

/// When the exchange with the origin took place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exchange {
    /// When the request was sent.
    pub requested: Timestamp,
    /// When the head of the response was there.
    pub answered: Timestamp,
}

/// What a cache may assume where the origin says nothing (RFC 9111 §4.2.2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Heuristic {
    /// Seconds; absent: a tenth of the time since `Last-Modified`.
    pub lifetime: Option<u64>,
}

/// A tenth of the time since it was changed, but no longer than a day: what has not changed for years may
/// change tomorrow.
const MOST_ASSUMED: u64 = 24 * 60 * 60;

/// The lifetime of a response in seconds (RFC 9111 §4.2.1), or none: then it is not known to be fresh at all.
pub fn lifetime(
    status: StatusCode,
    headers: &HeaderMap,
    said: &Said,
    exchange: Exchange,
    heuristic: Heuristic,
) -> Option<u64> {
    let told = said.directives.s_maxage.seconds().or_else(|| said.directives.max_age.seconds());
    if told.is_some() {
        return told;
    }
    let generated = generated(headers, exchange);
    if !said.is_targeted {
        match date(headers, &header::EXPIRES) {
            Date::Absent => {}
            // As if it were in the past, above all `0` (RFC 9111 §5.3).
            Date::Malformed => return Some(0),
            Date::At(expires) => return Some(expires.since(generated)),
        }
    }
    if !(is_heuristically_cacheable(status) || said.directives.public) {
        return None;
    }
    heuristic.lifetime.or_else(|| match date(headers, &header::LAST_MODIFIED) {
        Date::At(modified) => Some((generated.since(modified) / 10).min(MOST_ASSUMED)),
        Date::Absent | Date::Malformed => None,
    })
}

/// Whether anything but a heuristic says how long it is fresh (RFC 9111 §3).
pub fn is_explicit(headers: &HeaderMap, said: &Said) -> bool {
    said.directives.s_maxage != Lifetime::Absent
        || said.directives.max_age != Lifetime::Absent
        || !said.is_targeted && headers.contains_key(header::EXPIRES)
}

/// RFC 9110 §15.1.
pub fn is_heuristically_cacheable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 206 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// When the origin made the response: its `Date`, else when it came (RFC 9110 §6.6.1).
pub fn generated(headers: &HeaderMap, exchange: Exchange) -> Timestamp {
    match date(headers, &header::DATE) {
        Date::At(generated) => generated,
        Date::Absent | Date::Malformed => exchange.answered,
    }
}

/// How old a response was when it came, in seconds: `corrected_initial_age` of RFC 9111 §4.2.3.
pub fn initial_age(headers: &HeaderMap, exchange: Exchange) -> u64 {
    let apparent = exchange.answered.since(generated(headers, exchange));
    let delay = exchange.answered.since(exchange.requested);
    let told = age(headers).saturating_add(delay);
    apparent.max(told)
}

/// `Age` as other caches wrote it. Of several values the first counts; what is malformed is ignored
/// (RFC 9111 §5.1).
fn age(headers: &HeaderMap) -> u64 {
    let Some(value) = headers.get(header::AGE) else { return 0 };
    let first = value.as_bytes().split(|byte| *byte == b',').next().unwrap_or_default();
    delta_seconds(first.trim_ascii()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::{HeaderName, HeaderValue};

    use super::*;
    use crate::targeted::CDN_CACHE_CONTROL;

    const NOW: u64 = 1_000_000_000;

    fn at(seconds: i64) -> String {
        Timestamp::from_unix(NOW.checked_add_signed(seconds).unwrap()).to_http()
    }

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let field = |(name, value): &(&str, &str)| {
            (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
        };
        fields.iter().map(field).collect()
    }

    fn exchange(delay: u64) -> Exchange {
        Exchange { requested: Timestamp::from_unix(NOW - delay), answered: Timestamp::from_unix(NOW) }
    }

    fn fresh_for(status: u16, fields: &[(&str, &str)], heuristic: Option<u64>) -> Option<u64> {
        let headers = headers(fields);
        let said = Said::of(&headers, &[CDN_CACHE_CONTROL]);
        let status = StatusCode::from_u16(status).unwrap();
        lifetime(status, &headers, &said, exchange(0), Heuristic { lifetime: heuristic })
    }

    #[test]
    fn the_most_specific_word_counts() {
        let (date, expires) = (at(0), at(30));
        let all = [("date", &*date), ("expires", &*expires), ("cache-control", "max-age=20, s-maxage=10")];
        assert_eq!(fresh_for(200, &all, Some(5)), Some(10));
        assert_eq!(fresh_for(200, &[("cache-control", "max-age=20"), ("expires", &expires)], None), Some(20));
        assert_eq!(fresh_for(200, &all[..2], Some(5)), Some(30));
        assert_eq!(fresh_for(200, &[("cdn-cache-control", "max-age=3"), all[2]], None), Some(3));
        // A targeted field that says nothing about time leaves `Expires` out as well.
        assert_eq!(fresh_for(200, &[("cdn-cache-control", "public"), all[1]], Some(5)), Some(5));
    }

    #[test]
    fn expires_counts_from_the_date() {
        let (date, expires) = (at(-3600), at(-3590));
        assert_eq!(fresh_for(200, &[("date", &date), ("expires", &expires)], None), Some(10));
        assert_eq!(fresh_for(200, &[("expires", "0")], Some(60)), Some(0));
        assert_eq!(fresh_for(200, &[("date", "x"), ("expires", &at(7))], None), Some(7));
    }

    #[test]
    fn what_says_nothing_is_assumed_only_where_that_is_allowed() {
        let (date, modified) = (at(0), at(-1000));
        let told = [("date", &*date), ("last-modified", &*modified)];
        assert_eq!(fresh_for(200, &told, None), Some(100));
        assert_eq!(fresh_for(200, &told, Some(60)), Some(60));
        assert_eq!(fresh_for(404, &told, None), Some(100));
        assert_eq!(fresh_for(201, &told, None), None);
        assert_eq!(fresh_for(201, &[told[0], told[1], ("cache-control", "public")], None), Some(100));
        assert_eq!(fresh_for(200, &[], None), None);
        assert_eq!(fresh_for(200, &[("last-modified", &at(-1_000_000_000))], None), Some(MOST_ASSUMED));
        assert_eq!(fresh_for(200, &[("last-modified", &at(1000))], None), Some(0));
    }

    #[test]
    fn the_age_is_what_others_say_or_what_the_date_shows() {
        let old = |fields: &[(&str, &str)], delay| initial_age(&headers(fields), exchange(delay));
        let (date, ahead) = (at(-50), at(50));
        assert_eq!(old(&[], 0), 0);
        assert_eq!(old(&[("date", &date)], 0), 50);
        assert_eq!(old(&[("date", &date), ("age", "80")], 3), 83);
        assert_eq!(old(&[("date", &ahead), ("age", "7, 9")], 0), 7);
        for malformed in ["-7", "x", "7.2", ""] {
            assert_eq!(old(&[("age", malformed)], 2), 2, "{malformed:?}");
        }
    }
}
