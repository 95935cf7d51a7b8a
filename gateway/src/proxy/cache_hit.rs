//! What Pingora has found in the cache, before or after waiting for somebody else to fetch it.

use std::{ops::Range, sync::Arc, time::SystemTime};

use http::{Method, StatusCode, header};
use pingora_cache::{CacheMeta, ForcedFreshness};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{RangeType, Session, range_header_filter};
use seiketsu_cache::{range, reuse::Reuse, status::Status, stored::Stored, time::Timestamp, validation};

use super::{RequestContext, cache, change_response, failure, response_cache};

/// Whether it may be served.
pub(super) fn filter(meta: &CacheMeta, ctx: &mut RequestContext) -> Option<ForcedFreshness> {
    let stored = meta.extensions().get::<Arc<Stored>>()?.clone();
    if ctx.route().is_some_and(|route| !cache::is_servable(route, &stored)) {
        return Some(ForcedFreshness::ForceMiss);
    }
    let fetch = ctx.cache.fetch.as_mut()?;
    let now = Timestamp::from(SystemTime::now());
    let is_new = fetch.stored.as_ref().is_none_or(|before| !Arc::ptr_eq(before, &stored));
    // What somebody else has fetched while this request waited is as new as what it would have fetched itself.
    let came_meanwhile = is_new
        && stored.rules.answered >= fetch.requested
        && (stored.rules.is_fresh(now) || response_cache::serves_all(&stored.rules, &fetch.asked));
    let reuse = stored.rules.reuse(&fetch.asked.directives, fetch.asked.stale, now);
    if came_meanwhile || reuse != Reuse::Validate {
        let ttl = stored.rules.remaining(now);
        ctx.cache.status = Some(match ctx.cache.status {
            // Somebody else's request went on for all who waited (RFC 9211 §2.6).
            Some(Status { forwarded, .. }) if fetch.collapses => {
                Status { forwarded, ttl: Some(ttl), collapsed: true, ..Status::default() }
            }
            _ => Status::hit(ttl),
        });
        fetch.serving = Some(stored);
        return Some(ForcedFreshness::ForceFresh);
    }
    // Who was waited for has asked and failed: those who waited are not to find out one after the other.
    let failed_meanwhile = !is_new && stored.failures() > fetch.failures;
    if is_new {
        fetch.failures = stored.failures();
    }
    fetch.stored = Some(stored);
    if failed_meanwhile && failure::may_serve_stale(ctx) {
        cache::note_stale(ctx, None);
        if let Some(status) = &mut ctx.cache.status {
            status.collapsed = true;
        }
        return Some(ForcedFreshness::ForceFresh);
    }
    Some(ForcedFreshness::ForceExpiredServeStale { expired_at: None })
}

/// Whether the client has the response already.
pub(super) fn is_not_modified(session: &Session, response: &ResponseHeader) -> bool {
    validation::is_not_modified(&session.req_header().headers, response.status, &response.headers)
}

/// Which parts of a response the client gets. One reading of what it asks for, whether the response is stored already or
/// on its way there.
pub(super) fn range(session: &Session, response: &mut ResponseHeader, ctx: &RequestContext) -> RangeType {
    let request = session.req_header();
    // Of other methods there are no parts (RFC 9110 §14.2).
    let serves = request.method == Method::GET && ctx.route().is_some_and(cache::serves_parts);
    let length = response.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let Some(length) = length.filter(|_| serves && response.status == StatusCode::OK) else { return RangeType::None };
    match range::parts(&request.headers, &response.headers, length) {
        range::Parts::Whole => RangeType::None,
        range::Parts::Unsatisfiable => {
            change_response(response, |response| {
                response.status = StatusCode::RANGE_NOT_SATISFIABLE;
                range::unsatisfiable(&mut response.headers, length);
            });
            RangeType::Invalid
        }
        range::Parts::Some(ranges) => match &ranges[..] {
            [range] => {
                change_response(response, |response| {
                    response.status = StatusCode::PARTIAL_CONTENT;
                    range::fields_of_part(&mut response.headers, range, length);
                });
                RangeType::Single(range.clone())
            }
            several => written_by_pingora(response, several),
        },
    }
}

/// Pingora knows how to write several parts. It reads for itself what is asked for, and so gets it in words that mean
/// the same to everybody.
fn written_by_pingora(response: &mut ResponseHeader, ranges: &[Range<usize>]) -> RangeType {
    let specs: Vec<String> = ranges.iter().map(|range| format!("{}-{}", range.start, range.end - 1)).collect();
    let request = RequestHeader::build(Method::GET, b"/", Some(1)).and_then(|mut request| {
        request.insert_header(header::RANGE, format!("bytes={}", specs.join(",")))?;
        Ok(request)
    });
    request.map_or(RangeType::None, |request| range_header_filter(&request, response, None))
}
