//! A record: what one caller has used in one second, as a line of JSON.

use std::io::Write;

use serde::{Deserialize, Serialize};

use seiketsu_config::push::usage::Counts;

use super::counts::{Caller, Row};

/// A line, in this order: that the sequence number comes first is how a line is known to be whole and in its place.
#[derive(Serialize)]
struct Record<'a> {
    sequence: u64,
    /// Unix time. Clocks are set back now and then; the order of records is that of their numbers.
    second: u64,
    tenant: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    route: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    consumer: &'a str,
    #[serde(flatten)]
    counts: &'a Counts,
}

/// Appends a record.
pub(super) fn write(to: &mut Vec<u8>, sequence: u64, second: u64, row: &Row) {
    let Caller { tenant, route, consumer } = row.caller();
    let record = Record { sequence, second, tenant, route, consumer, counts: &row.counts };
    // Numbers and texts, written to memory: there is nothing to fail.
    let _ = serde_json::to_writer(&mut *to, &record);
    to.push(b'\n');
}

/// Whether these bytes are the whole line of the record with this number. What a crash leaves of the last lines is
/// cut off somewhere, or has holes of zeros.
pub(super) fn is_whole(line: &[u8], sequence: u64) -> bool {
    let mut start = [0; 40];
    let mut rest = &mut start[..];
    let fits = write!(rest, "{{\"sequence\":{sequence},").is_ok();
    let length = 40 - rest.len();
    fits && line.starts_with(&start[..length]) && line.ends_with(b"}\n") && memchr::memchr(0, line).is_none()
}

/// The second that a line is about.
pub(super) fn second(line: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Second {
        second: u64,
    }
    serde_json::from_slice::<Second>(line).ok().map(|record| record.second)
}
