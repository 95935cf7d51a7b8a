//! CPU time per request of several gateways, each on one core with one worker, in interleaved rounds.
//!
//! The gateway runs alone on core 0; generator and origin share core 1. CPU time is the gateway process's
//! own with its children, from the kernel's accounts, and is divided by the requests that were answered:
//! on a shared machine it is the steadiest figure there is. Requests a second and latencies stand beside
//! it; they depend on the other core too, and the generator of these scenarios is closed-loop.

pub mod generator;
pub mod idle;
pub mod origin;
pub mod peer;
pub mod scenario;
pub mod table;

use std::{fs, path::PathBuf, time::Duration};

use anyhow::Context;

use self::{
    origin::Origin,
    peer::{Binaries, Peer, Running},
    scenario::Scenario,
    table::{Row, Table},
};
use crate::process;

pub const GATEWAY_CORE: usize = 0;
pub const OTHER_CORE: usize = 1;

/// What to measure, as the command line has it.
#[derive(Debug)]
pub struct Plan {
    pub scenarios: Vec<Scenario>,
    pub peers: Vec<Peer>,
    pub rounds: usize,
    pub duration: Duration,
    /// Connections of the `idle` scenario.
    pub idle_connections: usize,
    pub origin: origin::Kind,
    pub binaries: Binaries,
    /// Configurations and logs of the peers.
    pub folder: PathBuf,
}

/// What one round of one scenario showed of one peer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Round {
    pub requests_per_second: f64,
    pub cpu_us: f64,
    pub origin_cpu_us: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub resident_mib: f64,
    pub kib_per_connection: Option<f64>,
    pub failures: u64,
}

/// Measures everything; `progress` is told what is done next.
pub fn run(plan: &Plan, mut progress: impl FnMut(&str)) -> anyhow::Result<Table> {
    fs::create_dir_all(&plan.folder).with_context(|| format!("cannot make {}", plan.folder.display()))?;
    process::raise_file_limit();
    peer::write_certificate(&plan.folder)?;
    let mut rounds: Vec<Vec<Round>> = vec![Vec::new(); plan.scenarios.len() * plan.peers.len()];
    for round in 1..=plan.rounds {
        for (s, scenario) in plan.scenarios.iter().enumerate() {
            let taking_part = plan.peers.iter().enumerate().filter(|(_, peer)| peer.takes_part(*scenario));
            for (p, peer) in taking_part {
                progress(&format!("round {round} of {}: {scenario}, {peer}", plan.rounds));
                let measured = once(plan, *scenario, *peer).with_context(|| format!("{peer}, scenario {scenario}"))?;
                rounds[s * plan.peers.len() + p].push(measured);
            }
        }
    }
    let pairs = plan.scenarios.iter().flat_map(|scenario| plan.peers.iter().map(move |peer| (*scenario, *peer)));
    let measured = pairs.zip(&rounds).filter(|(_, rounds)| !rounds.is_empty());
    Ok(Table::new(measured.map(|((scenario, peer), rounds)| Row::new(scenario, peer, rounds)).collect()))
}

fn once(plan: &Plan, scenario: Scenario, peer: Peer) -> anyhow::Result<Round> {
    let origin = Origin::start(plan.origin, &plan.binaries, &plan.folder)?;
    let gateway = Running::start(peer, &plan.binaries, origin.address().port(), &plan.folder)?;
    if scenario == Scenario::Idle {
        return idle::measure(&gateway, plan.idle_connections);
    }
    generator::run(scenario, &gateway, Duration::from_secs(1), &plan.folder).context("while warming up")?;
    let (gateway_before, origin_before) = (process::usage(gateway.pid())?, process::usage(origin.pid())?);
    let load = generator::run(scenario, &gateway, plan.duration, &plan.folder)?;
    let (gateway_after, origin_after) = (process::usage(gateway.pid())?, process::usage(origin.pid())?);
    let per_request = |used: Duration| used.as_secs_f64() * 1e6 / load.requests.max(1) as f64;
    Ok(Round {
        requests_per_second: load.requests_per_second,
        cpu_us: per_request(gateway_after.cpu.saturating_sub(gateway_before.cpu)),
        origin_cpu_us: per_request(origin_after.cpu.saturating_sub(origin_before.cpu)),
        p50_ms: load.p50_ms,
        p99_ms: load.p99_ms,
        resident_mib: gateway_after.resident_bytes as f64 / f64::from(1 << 20),
        kib_per_connection: None,
        failures: load.failures,
    })
}
