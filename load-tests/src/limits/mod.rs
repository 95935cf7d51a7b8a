//! The proof that limits are exact over many nodes: real gateways, a real Redis, real faults, and one exact
//! bucket to judge by.
//!
//! | file | what happens there |
//! |---|---|
//! | [`scenario`] | what is tried, for how long, and what was promised of it |
//! | [`trace`] | when which tenant's requests come to which node |
//! | [`redis`] | the Redis server, which can be killed, hung and emptied |
//! | [`sentinel`] | a Redis that another one takes over from when it is killed |
//! | [`proxy`] | the way to Redis that can be cut |
//! | [`origin`] | the upstream: when each request that was admitted came to it |
//! | [`cluster`] | the gateways, their files, logs and counters |
//! | [`driver`] | sends requests when they are due, and notes what became of them |
//! | [`events`] | each request once: what clients, gateways and the origin know of it |
//! | [`judgement`] | what one exact bucket says to it |
//! | [`promises`] | which promise was kept, and which was broken |
//! | [`stalls`] | when the machine had no processor to spare |
//! | [`run`](mod@run) | one scenario after another, from start to end |
//! | [`outcome`] | what became of one, in figures |
//! | [`report`] | the table and the page |

pub mod cluster;
pub mod driver;
pub mod events;
pub mod judgement;
pub mod origin;
pub mod outcome;
pub mod promises;
pub mod proxy;
pub mod redis;
pub mod report;
pub mod run;
pub mod scenario;
pub mod sentinel;
pub mod stalls;
pub mod trace;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The wall clock of this machine, which all processes of a run read, in microseconds since 1970.
pub type Micros = u64;

fn wall() -> Micros {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    micros(since)
}

fn micros(duration: Duration) -> Micros {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn seconds(micros: Micros) -> f64 {
    micros as f64 / 1e6
}

/// Until that much later; the drivers wait on a thread of their own.
#[expect(clippy::disallowed_methods, reason = "outside any runtime, until a planned moment")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}
