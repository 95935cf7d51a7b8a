//! Clocks of origins that go wrong: what is fresh seems old, or what is old seems fresh.

use std::time::SystemTime;

use http::{HeaderMap, header};
use seiketsu_cache::time::{Date, Timestamp, date};

use crate::telemetry::silence::Silence;

/// So far clocks may be apart without a word.
const TOLERATED_SECONDS: u64 = 60;

/// Says so if the date of an answer that comes straight from the origin is not of now.
pub(crate) fn compare(headers: &HeaderMap, now: Timestamp) {
    static SILENCE: Silence = Silence::new();
    // What comes from another cache may be as old as it says.
    let Date::At(generated) = date(headers, &header::DATE) else { return };
    if headers.contains_key(header::AGE) {
        return;
    }
    let (behind, ahead) = (now.since(generated), generated.since(now));
    if behind.max(ahead) <= TOLERATED_SECONDS {
        return;
    }
    if SILENCE.is_over(SystemTime::now()) {
        let server = headers.get(header::SERVER).and_then(|server| server.to_str().ok()).unwrap_or_default();
        tracing::warn!(
            behind,
            ahead,
            server,
            "the clock of an origin goes wrong, which makes its answers stale too early or too late"
        );
    }
}
