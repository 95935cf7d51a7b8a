//! What clients are told of the limits that applied to their requests.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, header::RETRY_AFTER};
use seiketsu_limits::{
    fields::{self, Item},
    holdings::Kind,
};
use serde_json::Value;
use smallvec::SmallVec;

use super::check::{Limited, NotAdmitted};
use crate::{policy::Refusal, respond::problem::ProblemKind};

/// A slot may come free at any moment.
const SLOT_WAIT: Duration = Duration::from_secs(1);

/// Writes `RateLimit-Policy` and `RateLimit`.
pub(crate) fn write(limited: &Limited, response: &mut HeaderMap) {
    let now = limited.clock.now();
    let mut items: SmallVec<[Item<'_>; 6]> = SmallVec::new();
    for (holdings, places) in &limited.sets {
        for place in places {
            let Some(limit) = holdings.limit(*place) else { continue };
            let (quota, window) = match &limit.kind {
                Kind::Bucket(bucket) => (bucket.burst(), Some(seconds(bucket.time_to_fill()))),
                Kind::Quota { limit, .. } => (*limit, None),
                // How many may be open at once is nothing that comes anew with time.
                Kind::Slots { .. } => continue,
            };
            let (remaining, more) = holdings.remaining(*place, now);
            // What others still have of it was not for this request.
            let has_refused = limited.refused_by.as_ref() == Some(&limit.name);
            let remaining = if has_refused { remaining.min(limited.cost.saturating_sub(1)) } else { remaining };
            items.push(Item { name: &limit.name, quota, window, remaining, reset: more.map(seconds) });
        }
    }
    if let (Some(policy), Some(limit)) = (fields::rate_limit_policy(&items), fields::rate_limit(&items)) {
        response.insert(fields::RATE_LIMIT_POLICY, policy);
        response.insert(fields::RATE_LIMIT, limit);
    }
}

/// What a client that is not admitted is told.
pub(crate) fn refusal(limited: Option<&Limited>, reason: NotAdmitted) -> Refusal {
    let (kind, detail, wait) = match reason {
        NotAdmitted::Refused { is_slot: true, .. } => {
            (ProblemKind::QuotaExceeded, "As many requests are in progress as may be at the same time.", SLOT_WAIT)
        }
        NotAdmitted::Refused { wait, .. } => {
            (ProblemKind::QuotaExceeded, "A limit is used up; it allows more after the time in Retry-After.", wait)
        }
        NotAdmitted::Unknown => {
            (ProblemKind::Overloaded, "Whether limits allow the request cannot be told at the moment.", SLOT_WAIT)
        }
    };
    let seconds = fields::retry_after(wait, fastrand::u64(..));
    let refusal = Refusal::new(kind, detail).with_header(RETRY_AFTER, HeaderValue::from(seconds));
    match limited.and_then(|limited| limited.refused_by.as_ref()) {
        Some(name) => refusal.with_extension(fields::VIOLATED_POLICIES, vec![Value::from(&**name)]),
        None => refusal,
    }
}

/// Rounded up.
fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}
