//! What Pingora has found in the cache, before or after waiting for somebody else to fetch it.

use std::{sync::Arc, time::SystemTime};

use http::StatusCode;
use pingora_cache::{CacheMeta, ForcedFreshness};
use pingora_http::ResponseHeader;
use pingora_proxy::{RangeType, Session, range_header_filter};
use seiketsu_cache::{range, reuse::Reuse, status::Status, stored::Stored, time::Timestamp, validation};

use super::{RequestContext, cache};

/// Of more parts the whole is sent.
const MOST_PARTS: usize = 16;

/// Whether it may be served.
pub(super) fn filter(meta: &CacheMeta, ctx: &mut RequestContext) -> Option<ForcedFreshness> {
    let stored = meta.extensions().get::<Arc<Stored>>()?.clone();
    if ctx.route().is_some_and(|route| !cache::is_servable(route, &stored)) {
        return Some(ForcedFreshness::ForceMiss);
    }
    let fetch = ctx.cache.fetch.as_mut()?;
    fetch.looked += 1;
    let now = Timestamp::from(SystemTime::now());
    let is_new = fetch.stored.as_ref().is_none_or(|before| !Arc::ptr_eq(before, &stored));
    // What somebody else has fetched while this request waited is as new as what it would have fetched itself.
    let came_meanwhile = is_new && stored.rules.answered >= fetch.requested && stored.rules.is_fresh(now);
    let may_serve = came_meanwhile || stored.rules.reuse(&fetch.asked.directives, now) != Reuse::Validate;
    if may_serve {
        let waited = fetch.collapses;
        ctx.cache.status = Some(Status { collapsed: waited, ..Status::hit(stored.rules.remaining(now)) });
        fetch.serving = Some(stored);
        return Some(ForcedFreshness::ForceFresh);
    }
    fetch.stored = Some(stored);
    Some(ForcedFreshness::ForceExpiredServeStale { expired_at: None })
}

/// Whether the client has the response already.
pub(super) fn is_not_modified(session: &Session, response: &ResponseHeader) -> bool {
    validation::is_not_modified(&session.req_header().headers, response.status, &response.headers)
}

/// Which parts of a response the client gets.
pub(super) fn range(session: &Session, response: &mut ResponseHeader, ctx: &RequestContext) -> RangeType {
    let request = session.req_header();
    let serves = ctx.route().is_some_and(cache::serves_parts);
    if !serves || response.status != StatusCode::OK || !range::is_for(&request.headers, &response.headers) {
        return RangeType::None;
    }
    range_header_filter(request, response, Some(MOST_PARTS))
}
