//! `/v1/cache/{seconds}`: a cacheable answer (RFC 9111) that shows how often it was really made.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use hyper::body::Incoming;
use parking_lot::Mutex;

use super::{
    body::{Response, json, problem, status_only},
    query_number, query_value,
};

/// Real hits by path and query. Paths beyond the bound share one counter.
#[derive(Debug)]
pub(super) struct OriginHits {
    by_target: Mutex<HashMap<String, u64>>,
    since: SystemTime,
}

const MAX_TARGETS: usize = 100_000;

impl Default for OriginHits {
    fn default() -> Self {
        // HTTP dates have whole seconds; a time with a fraction would never equal itself again.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { by_target: Mutex::default(), since: SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs()) }
    }
}

impl OriginHits {
    fn count(&self, target: &str) -> u64 {
        let mut by_target = self.by_target.lock();
        let target = if by_target.contains_key(target) || by_target.len() < MAX_TARGETS { target } else { "" };
        let hits = by_target.entry(target.to_owned()).or_default();
        *hits += 1;
        *hits
    }
}

/// The body holds `origin_hits`, so it differs each time; the validators are weak and stay the same while
/// the origin runs, so that revalidation ends in 304 (which counts as a hit).
///
/// `?cache_control=` replaces the `Cache-Control` field, `?vary=` adds `Vary`, `?bytes=` makes the body
/// at least that long (1 MiB at most).
pub(super) fn cache(hits: &OriginHits, seconds: &str, request: &Request<Incoming>) -> Response {
    let Ok(seconds) = seconds.parse::<u32>() else {
        return problem(StatusCode::BAD_REQUEST, "write it as /v1/cache/60: whole seconds");
    };
    let uri = request.uri();
    let target = uri.path_and_query().map_or(uri.path(), |target| target.as_str());
    let origin_hits = hits.count(target);
    let padding = query_number(uri.query(), "bytes").unwrap_or(0_usize).min(1 << 20);

    let etag = format!("W/\"{:x}\"", hash(target));
    let mut response = if is_current(request.headers(), &etag, hits.since) {
        status_only(StatusCode::NOT_MODIFIED)
    } else {
        json(&serde_json::json!({
            "target": target,
            "origin_hits": origin_hits,
            "max_age": seconds,
            "padding": "x".repeat(padding),
        }))
    };

    let cache_control = query_value(uri.query(), "cache_control").unwrap_or_else(|| format!("max-age={seconds}"));
    let fields = [
        (header::CACHE_CONTROL, Some(cache_control)),
        (header::ETAG, Some(etag)),
        (header::LAST_MODIFIED, Some(httpdate::fmt_http_date(hits.since))),
        (header::VARY, query_value(uri.query(), "vary")),
        (header::HeaderName::from_static("x-origin-hits"), Some(origin_hits.to_string())),
    ];
    for (name, value) in fields {
        if let Some(value) = value.and_then(|text| HeaderValue::from_str(&text).ok()) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// RFC 9110 §13.2.2: `If-None-Match` decides, and only without it `If-Modified-Since`.
fn is_current(headers: &HeaderMap, etag: &str, since: SystemTime) -> bool {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    match text(header::IF_NONE_MATCH) {
        Some(list) => list.split(',').map(str::trim).any(|tag| tag == "*" || tag == etag),
        None => text(header::IF_MODIFIED_SINCE)
            .and_then(|date| httpdate::parse_http_date(date).ok())
            .is_some_and(|date| since <= date),
    }
}

fn hash(text: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}
