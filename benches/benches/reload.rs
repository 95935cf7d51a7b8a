//! What it costs the whole process to replace one tenant of 100,000 with five routes each, from the change
//! of its file to the drop of what it was: `cargo bench -p seiketsu-benches --bench reload`.
//!
//! A running gateway, in a process of its own for each way of spreading the tenants over files. Printed is
//! processor time, of all threads, without that of the thread that changes the files. `TENANTS` sets
//! another number of tenants.

use std::{
    env, fs,
    io::{self, Write},
    path::Path,
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};
use seiketsu_benches::{
    gateway::{Silent, listening_at},
    tenant_files::Layout,
};
use seiketsu_config::load;

/// The one that the gateway itself has.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const NODE: &str = "
listeners: { http: ['127.0.0.1:0'], operations: '127.0.0.1:0' }
tenants: tenants
state_dir: state
threads: 1
egress: { allow_loopback: true }
access_log: { output: 'off' }
";

const CHANGES: usize = 20;
/// After a change, for what it sets off later: the drop of the former snapshot.
const AFTERWARDS: Duration = Duration::from_millis(500);
const IDLE: Duration = Duration::from_secs(10);

fn main() -> io::Result<()> {
    if let Ok(files) = env::var("FILES") {
        return measure(files.parse().map_err(io::Error::other)?);
    }
    for files in [tenants(), tenants() / 100, 1] {
        let ended = Command::new(env::current_exe()?).env("FILES", files.max(1).to_string()).status()?;
        if !ended.success() {
            return Err(io::Error::other("the measurement failed"));
        }
    }
    Ok(())
}

fn tenants() -> usize {
    env::var("TENANTS").ok().and_then(|text| text.parse().ok()).unwrap_or(100_000)
}

fn measure(files: usize) -> io::Result<()> {
    let layout = Layout { files, tenants_in_each: tenants() / files };
    let folder = tempfile::tempdir()?;
    let tenants = folder.path().join("tenants");
    fs::create_dir(&tenants)?;
    layout.write(&tenants);
    let node = load::node(NODE, &folder.path().join("node.yaml")).map_err(io::Error::other)?;
    let state = node.state_dir.clone();
    fs::create_dir_all(&state)?;
    let (began, before) = (Instant::now(), gateway_time());
    thread::spawn(move || seiketsu_gateway::run(node, false, Arc::new(Silent)));
    listening_at(&state.join("addresses.json"));
    let (start, start_cpu) = (began.elapsed(), gateway_time().saturating_sub(before));

    settle();
    let before = gateway_time();
    thread::park_timeout(IDLE);
    let idle = (gateway_time().saturating_sub(before)).div_f64(IDLE.as_secs_f64());

    let mut costs: Vec<Duration> = (0..CHANGES)
        .map(|change| {
            let before = gateway_time();
            let kept = kept(&state);
            layout.replace_one_tenant(&tenants, (change * 7919) % files, change + 2);
            let until = Instant::now() + Duration::from_mins(1);
            while kept == self::kept(&state) {
                assert!(Instant::now() < until, "the change did not come into force");
                thread::park_timeout(Duration::from_millis(5));
            }
            thread::park_timeout(AFTERWARDS);
            gateway_time().saturating_sub(before)
        })
        .collect();
    costs.sort_unstable();
    writeln!(
        io::stdout(),
        "{files} files of {}: replacing one tenant takes {:?} of processor time (median of {CHANGES}; least {:?}, most {:?})\n    \
         start {start:?}, {start_cpu:?} of processor time; idle {idle:?} each second",
        layout.tenants_in_each,
        costs[CHANGES / 2],
        costs[0],
        costs[CHANGES - 1],
    )
}

/// What tells that a change is in force and kept.
fn kept(state: &Path) -> Option<(u64, std::time::SystemTime)> {
    let metadata = fs::metadata(state.join("last-known-good/journal.json")).ok()?;
    Some((metadata.len(), metadata.modified().ok()?))
}

/// Waits until what the start has set off has come to rest.
fn settle() {
    const STEP: Duration = Duration::from_secs(3);
    loop {
        let before = gateway_time();
        thread::park_timeout(STEP);
        if gateway_time().saturating_sub(before) < STEP / 100 {
            return;
        }
    }
}

/// Processor time of the process so far, but for this thread.
fn gateway_time() -> Duration {
    let time = |clock| Duration::try_from(clock_gettime(clock)).unwrap_or_default();
    let own = time(ClockId::ThreadCPUTime);
    time(ClockId::ProcessCPUTime).saturating_sub(own)
}
