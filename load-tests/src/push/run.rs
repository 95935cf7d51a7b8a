//! Change after change: when it was asked for, answered, and enforced by each node.

use std::{
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use super::{
    cluster::{Cluster, HOST, TENANT},
    http::Connection,
};

/// A change that is not enforced by then is a broken promise by itself.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two questions to a gateway: what is measured is late by half of it at most.
const INTERVAL: Duration = Duration::from_millis(1);

/// The burst before the first change; each change raises it by one, so that each is seen by itself.
pub(super) const FIRST_BURST: u64 = 1000;

#[derive(Debug, Default)]
pub struct Measured {
    /// From the request to the answer.
    pub answered: Vec<Duration>,
    /// From the request to the first answer under the new limit, of the node that was last.
    pub enforced: Vec<Duration>,
    /// Of those who wait for the nodes: from the request to the answer.
    pub waited: Vec<Duration>,
    /// Answers to those who waited that were not true: a node was asked then, and did not enforce the limit.
    pub untrue: usize,
    /// The longest that a client waited for an answer of a gateway meanwhile.
    pub slowest_request: Duration,
}

/// `changes` of them one after the other, at each replica by turns, and a fifth as many by those who wait.
pub fn run(cluster: &Cluster, changes: usize) -> anyhow::Result<Measured> {
    let wanted = AtomicU64::new(0);
    let ends = AtomicBool::new(false);
    let (seen, sees) = mpsc::channel();
    let mut measured = Measured::default();
    thread::scope(|scope| {
        let watchers: Vec<_> = cluster
            .gateways
            .iter()
            .map(|gateway| {
                let connection = client(gateway.http);
                let (seen, wanted, ends) = (seen.clone(), &wanted, &ends);
                scope.spawn(move || watch(connection?, wanted, ends, &seen))
            })
            .collect();
        drop(seen);
        let made = change(cluster, changes, &wanted, &sees, &mut measured);
        ends.store(true, Ordering::Relaxed);
        for watcher in watchers {
            // Why a client ended says more than that there was nothing to be seen.
            let slowest = watcher.join().unwrap_or_else(|_| bail!("a client has panicked"))?;
            measured.slowest_request = measured.slowest_request.max(slowest);
        }
        made
    })?;
    wait(cluster, changes, changes / 5, &mut measured)?;
    Ok(measured)
}

pub(super) fn client(address: std::net::SocketAddr) -> anyhow::Result<Connection> {
    Connection::open(address, format!("host: {HOST}\r\n"))
}

fn change(
    cluster: &Cluster,
    changes: usize,
    wanted: &AtomicU64,
    sees: &mpsc::Receiver<Instant>,
    measured: &mut Measured,
) -> anyhow::Result<()> {
    let mut replicas: Vec<Connection> = (0..cluster.replicas.len())
        .map(|replica| cluster.admin(replica, "application/json"))
        .collect::<Result<_, _>>()?;
    let count = replicas.len();
    for number in 0..changes {
        let burst = FIRST_BURST + 1 + number as u64;
        wanted.store(burst, Ordering::Relaxed);
        let begun = Instant::now();
        set(&mut replicas[number % count], burst, "")?;
        measured.answered.push(begun.elapsed());
        let mut last = begun;
        for _ in &cluster.gateways {
            last = last.max(sees.recv_timeout(PATIENCE).context("a change is not enforced by all nodes")?);
        }
        measured.enforced.push(last - begun);
    }
    Ok(())
}

/// Those who wait: when they have the answer, every node enforces it.
fn wait(cluster: &Cluster, before: usize, changes: usize, measured: &mut Measured) -> anyhow::Result<()> {
    let mut clients: Vec<Connection> =
        cluster.gateways.iter().map(|gateway| client(gateway.http)).collect::<Result<_, _>>()?;
    let mut replicas: Vec<Connection> = (0..cluster.replicas.len())
        .map(|replica| cluster.admin(replica, "application/json"))
        .collect::<Result<_, _>>()?;
    let count = replicas.len();
    for number in 0..changes {
        let burst = FIRST_BURST + 1 + (before + number) as u64;
        let begun = Instant::now();
        set(&mut replicas[number % count], burst, "?wait=applied&timeout=10s")?;
        measured.waited.push(begun.elapsed());
        for client in &mut clients {
            measured.untrue += usize::from(burst_in_force(client)? != burst);
        }
    }
    Ok(())
}

pub(super) fn set(admin: &mut Connection, burst: u64, query: &str) -> anyhow::Result<()> {
    let body = format!("{{\"tenant\":\"{TENANT}\",\"burst_limit\":{burst}}}");
    let answer = admin.ask("PUT", &format!("/api/enterprise/gateway/limits{query}"), &body)?;
    if answer.status != 200 {
        bail!("a change was answered with {}: {}", answer.status, String::from_utf8_lossy(&answer.body));
    }
    Ok(())
}

/// Asks one gateway until it enforces what is wanted, and says when that was. Returns the longest time an answer took.
fn watch(
    mut gateway: Connection,
    wanted: &AtomicU64,
    ends: &AtomicBool,
    seen: &mpsc::Sender<Instant>,
) -> anyhow::Result<Duration> {
    let (mut last, mut slowest) = (0, Duration::ZERO);
    while !ends.load(Ordering::Relaxed) {
        let wanted = wanted.load(Ordering::Relaxed);
        if wanted != last {
            let asked = Instant::now();
            let burst = burst_in_force(&mut gateway)?;
            slowest = slowest.max(asked.elapsed());
            if burst == wanted {
                last = wanted;
                // Nobody listens any more if the run has failed.
                let _ = seen.send(Instant::now());
            }
        }
        pause(INTERVAL);
    }
    Ok(slowest)
}

/// Asks one gateway again and again. Returns the longest time an answer took.
pub(super) fn ask_until(mut gateway: Connection, ends: &AtomicBool) -> anyhow::Result<Duration> {
    let mut slowest = Duration::ZERO;
    while !ends.load(Ordering::Relaxed) {
        let asked = Instant::now();
        burst_in_force(&mut gateway)?;
        slowest = slowest.max(asked.elapsed());
        pause(INTERVAL);
    }
    Ok(slowest)
}

/// As the answer to a client says: `"rate";q=1001;w=1`.
fn burst_in_force(gateway: &mut Connection) -> anyhow::Result<u64> {
    let answer = gateway.ask("GET", "/v1/bytes/1", "")?;
    let policy = answer.field("ratelimit-policy").unwrap_or_default();
    let burst = policy.split("q=").nth(1).and_then(|rest| rest.split(';').next()?.parse().ok());
    burst.with_context(|| format!("an answer tells of no limit: {}", answer.head))
}

#[expect(clippy::disallowed_methods, reason = "on a thread of its own, outside any runtime")]
fn pause(time: Duration) {
    thread::sleep(time);
}
