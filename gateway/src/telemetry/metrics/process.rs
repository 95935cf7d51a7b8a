//! What the kernel says about this process.

use std::{fs, time::SystemTime};

use prometheus::proto::MetricFamily;
use rustix::{
    process::{Resource, getrlimit},
    time::{ClockId, clock_gettime},
};

use super::family::Family;
use crate::telemetry::names;

/// Reads `/proc/self`; what cannot be read is left out.
pub(super) fn families(started: SystemTime) -> impl Iterator<Item = MetricFamily> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let open_fds = fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as f64);
    let max_fds = getrlimit(Resource::Nofile).current.map(|limit| limit as f64);
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let started = started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let gauges = [
        (names::PROCESS_MEMORY, status_number(&status, "VmRSS:").map(|kib| kib * 1024.0)),
        (names::PROCESS_THREADS, status_number(&status, "Threads:")),
        (names::PROCESS_FDS, open_fds),
        (names::PROCESS_MAX_FDS, max_fds),
        (names::PROCESS_START, Some(started)),
    ];
    let mut cpu_seconds = Family::counter(names::PROCESS_CPU);
    cpu_seconds.add(&[], cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9);
    let gauges = gauges.into_iter().filter_map(|(name, value)| {
        let mut family = Family::gauge(name);
        family.add(&[], value?);
        family.finish()
    });
    gauges.chain(cpu_seconds.finish())
}

/// The number behind a key of `/proc/self/status`.
fn status_number(status: &str, key: &str) -> Option<f64> {
    let rest = status.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_uses_some_of_everything() {
        let families: Vec<_> = families(SystemTime::now()).collect();
        assert_eq!(families.len(), 6);
        for family in families {
            let sample = &family.get_metric()[0];
            assert!(sample.get_gauge().get_value() + sample.get_counter().get_value() > 0.0, "{}", family.name());
        }
    }

    #[test]
    fn a_number_is_found_by_its_key() {
        let status = "Name:\tgateway\nVmRSS:\t   10240 kB\nThreads:\t7\n";
        assert_eq!(status_number(status, "VmRSS:"), Some(10240.0));
        assert_eq!(status_number(status, "VmSwap:"), None);
    }
}
