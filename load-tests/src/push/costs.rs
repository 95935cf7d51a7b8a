//! What configuration costs a gateway, and whether its clients notice.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::bail;

use super::{
    cluster::Cluster,
    run::{FIRST_BURST, ask_until, client, set},
};
use crate::process;

/// Bursts from here on are of no change that was measured for its time.
const BURSTS: u64 = FIRST_BURST + 500_000;

/// Of the gateway that was worst, each.
#[derive(Debug, Default)]
pub struct Costs {
    /// From the start of a gateway without a copy until it was ready with the whole configuration.
    pub ready_after: Duration,
    /// Processor time for one change that comes by itself.
    pub cpu_per_change: Duration,
    /// From the request to put all tenants anew until all gateways had them.
    pub whole: Duration,
    /// The longest that a client waited for an answer meanwhile.
    pub slowest_request: Duration,
    /// The most resident memory, after all that.
    pub resident_bytes: u64,
}

/// With `changes` of one tenant, and one of all.
pub fn measure(cluster: &Cluster, changes: usize) -> anyhow::Result<Costs> {
    let ready_after = cluster.gateways.iter().map(|gateway| gateway.ready_after).max().unwrap_or_default();
    let cpu_per_change = cpu_per_change(cluster, changes)?;
    let (whole, slowest_request) = whole(cluster)?;
    let resident = cluster.gateways.iter().map(|gateway| process::most_resident_bytes(gateway.pid()));
    let resident_bytes = resident.collect::<Result<Vec<_>, _>>()?.into_iter().max().unwrap_or_default();
    Ok(Costs { ready_after, cpu_per_change, whole, slowest_request, resident_bytes })
}

/// Nobody asks the gateways meanwhile.
fn cpu_per_change(cluster: &Cluster, changes: usize) -> anyhow::Result<Duration> {
    let mut admin = cluster.admin(0, "application/json")?;
    let used = || -> anyhow::Result<Vec<Duration>> {
        cluster.gateways.iter().map(|gateway| Ok(process::usage(gateway.pid())?.cpu)).collect()
    };
    let before = used()?;
    for number in 0..changes {
        set(&mut admin, BURSTS + number as u64, "?wait=applied&timeout=10s")?;
    }
    let most = used()?.iter().zip(&before).map(|(after, before)| after.saturating_sub(*before)).max();
    Ok(most.unwrap_or_default() / u32::try_from(changes.max(1))?)
}

/// All tenants anew: how long it took, and the slowest answer to the clients that ask all gateways meanwhile.
fn whole(cluster: &Cluster) -> anyhow::Result<(Duration, Duration)> {
    let ends = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients: Vec<_> = cluster
            .gateways
            .iter()
            .map(|gateway| {
                let (connection, ends) = (client(gateway.http), &ends);
                scope.spawn(move || ask_until(connection?, ends))
            })
            .collect();
        let begun = Instant::now();
        let imported = cluster.import(99_999_999, "?wait=applied&timeout=60s");
        let took = begun.elapsed();
        ends.store(true, Ordering::Relaxed);
        let mut slowest = Duration::ZERO;
        for client in clients {
            slowest = slowest.max(client.join().unwrap_or_else(|_| bail!("a client has panicked"))?);
        }
        imported?;
        Ok((took, slowest))
    })
}
