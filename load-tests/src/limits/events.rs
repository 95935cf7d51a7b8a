//! Each request once: what its client, its gateway and the origin know of it.
//!
//! A gateway's log says when a request came (`time`) and how long its limits took to decide (`wait_ms`):
//! that is the earliest moment of its admission. The latest is when it came to the origin. All processes
//! read the same clock, so nothing is added to either.

use std::{collections::HashMap, path::Path};

use anyhow::Context;
use serde::Deserialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{Micros, driver::Answered};

/// By how much the clock of a node may have been moved, in seconds.
const CLOCK_MOVES: [i64; 3] = [0, 5, -5];

/// What a decision was made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    Lease,
    Coordinator,
    Alone,
}

#[derive(Debug, Clone)]
pub struct Event {
    pub tenant: usize,
    pub node: usize,
    /// When it came to the gateway; without a log, when it was sent.
    pub came: Micros,
    /// Earliest and latest moment of the decision.
    pub earliest: Micros,
    pub latest: Micros,
    pub status: u16,
    /// It has come to the origin, or was answered as if.
    pub admitted: bool,
    /// A limit refused it.
    pub refused: bool,
    /// What limits decided with, and how long they took.
    pub limit: Option<(By, Micros)>,
    pub sent: Micros,
    /// What the client waited.
    pub latency: Micros,
    pub logged: bool,
}

#[derive(Debug, Deserialize)]
struct Line {
    time: String,
    path: String,
    status: u16,
    limit: Option<LimitOfLine>,
}

#[derive(Debug, Deserialize)]
struct LimitOfLine {
    by: By,
    wait_ms: f64,
}

/// What a gateway's log says of a request.
#[derive(Debug, Clone, Copy)]
pub struct Logged {
    at: Micros,
    status: u16,
    limit: Option<(By, Micros)>,
}

/// The numbers of requests in their paths.
pub(super) fn number_of(path: &str) -> Option<u64> {
    path.strip_prefix("/r/")?.parse().ok()
}

/// Adds what stands in this log, behind `from` bytes. Returns how far it was read.
pub(super) fn read_log(path: &Path, from: u64, to: &mut HashMap<u64, Logged>) -> anyhow::Result<u64> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    file.seek(SeekFrom::Start(from))?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    // The last line may not be whole yet.
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    for line in text[..whole].lines() {
        let line: Line = serde_json::from_str(line).with_context(|| format!("in {}: {line}", path.display()))?;
        let Some(number) = number_of(&line.path) else { continue };
        let nanos = OffsetDateTime::parse(&line.time, &Rfc3339)?.unix_timestamp_nanos();
        let at = u64::try_from(nanos / 1000)?;
        let limit = line.limit.map(|limit| (limit.by, rounded(limit.wait_ms * 1000.0)));
        to.insert(number, Logged { at, status: line.status, limit });
    }
    Ok(from + whole as u64)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time, never negative")]
fn rounded(micros: f64) -> Micros {
    micros.round() as Micros
}

/// All that is known, by tenant and time.
pub(super) fn joined(answered: &[Answered], logged: &HashMap<u64, Logged>, came: &HashMap<u64, Micros>) -> Vec<Event> {
    let event = |answered: &Answered| {
        let log = logged.get(&answered.number);
        let at_origin = came.get(&answered.number).copied();
        let arrived = log.map_or(answered.sent, |log| moved_back(log.at, answered));
        let limit = log.and_then(|log| log.limit);
        let status = if answered.status == 0 { log.map_or(0, |log| log.status) } else { answered.status };
        Event {
            tenant: answered.tenant,
            node: answered.node,
            came: arrived,
            earliest: arrived + limit.map_or(0, |(_, waited)| waited),
            latest: at_origin.unwrap_or(answered.ended),
            status,
            admitted: at_origin.is_some() || (200..300).contains(&status),
            refused: status == 429,
            limit,
            sent: answered.sent,
            latency: answered.ended - answered.sent,
            logged: log.is_some(),
        }
    };
    let mut events: Vec<Event> = answered.iter().map(event).collect();
    events.sort_by_key(|event| event.came);
    events
}

/// A moment as this machine's clock has it: that of the node may have been moved, and a request cannot have
/// come before it was sent, nor after it was answered.
fn moved_back(at: Micros, answered: &Answered) -> Micros {
    let candidates = CLOCK_MOVES.map(|moved| at.saturating_add_signed(-moved * 1_000_000));
    let distance = |moment: &Micros| answered.sent.abs_diff(*moment);
    candidates.into_iter().min_by_key(distance).unwrap_or(at)
}
