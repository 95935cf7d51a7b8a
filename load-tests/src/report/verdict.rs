//! The verdict: the figures that matter, and which of them miss their bound.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

use super::{
    Run,
    measured::{Measured, Second, quantile},
};

/// The service level: p99 below this, in milliseconds, from the moment a request was due.
pub const P99_LIMIT_MS: f64 = 100.0;
/// And at most this share of errors.
pub const ERROR_SHARE_LIMIT: f64 = 0.0001;
/// A run counts only if this share of the requests and connections that were asked for came about.
const COMPLETENESS: f64 = 0.99;
/// A generator that is later than this with one request in a hundred is short of CPU itself.
const SLIP_WARNING_MS: f64 = 10.0;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    pub passed: bool,
    pub checks: Vec<Check>,
    pub figures: Figures,
    /// What a reader must know to judge the figures; empty is good.
    pub remarks: Vec<String>,
    pub run: Run,
    pub statuses: BTreeMap<u16, u64>,
    pub failures: BTreeMap<String, u64>,
    pub seconds: Vec<Second>,
}

/// One bound, and whether it was kept.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    pub what: &'static str,
    pub measured: String,
    pub bound: String,
    pub kept: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    pub requests: u64,
    pub errors: u64,
    pub requests_per_second: f64,
    pub latency_ms: Latency,
    /// How late the generator started requests, in milliseconds.
    pub generator_slip_p99_ms: f64,
    pub generator_slip_max_ms: f64,
    /// The most that were seen at once.
    pub connections: Option<usize>,
    pub cpu_us_per_request: Option<f64>,
    pub resident_bytes: Option<u64>,
    /// What the process grew by from before the run to its peak, by connection.
    pub kib_per_connection: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Latency {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p99_9: f64,
    pub p99_99: f64,
    pub max: f64,
}

impl Verdict {
    pub fn of(measured: &Measured) -> Self {
        let figures = Figures::of(measured);
        let checks = checks(measured, &figures);
        Self {
            passed: checks.iter().all(|check| check.kept),
            remarks: remarks(&figures),
            checks,
            figures,
            run: measured.run.clone(),
            statuses: measured.statuses.clone(),
            failures: measured.failures.clone(),
            seconds: measured.seconds.clone(),
        }
    }
}

impl Figures {
    fn of(measured: &Measured) -> Self {
        let latency = |share| quantile(&measured.latencies, share);
        let connections = measured.samples.iter().filter_map(|sample| sample.connections).max();
        let (first, last) = (measured.samples.first(), measured.samples.last());
        let peak = measured.samples.iter().map(|sample| sample.resident_bytes).max();
        let answered = measured.answered();
        Self {
            requests: measured.requests(),
            errors: measured.errors(),
            requests_per_second: answered as f64 / measured.run.duration_seconds as f64,
            latency_ms: Latency {
                p50: latency(0.5),
                p90: latency(0.9),
                p99: latency(0.99),
                p99_9: latency(0.999),
                p99_99: latency(0.9999),
                max: latency(1.0),
            },
            generator_slip_p99_ms: quantile(&measured.slips, 0.99),
            generator_slip_max_ms: quantile(&measured.slips, 1.0),
            connections,
            cpu_us_per_request: first
                .zip(last)
                .filter(|_| answered > 0)
                .map(|(first, last)| (last.cpu_seconds - first.cpu_seconds) * 1e6 / answered as f64),
            resident_bytes: peak,
            kib_per_connection: first
                .zip(peak)
                .zip(connections.filter(|count| *count > 0))
                .map(|((first, peak), count)| peak.saturating_sub(first.resident_bytes) as f64 / 1024.0 / count as f64),
        }
    }
}

fn checks(measured: &Measured, figures: &Figures) -> Vec<Check> {
    let share = figures.errors as f64 / figures.requests as f64;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a whole number of requests")]
    let due = (measured.run.rate * measured.run.duration_seconds as f64) as u64;
    let mut checks = vec![
        Check {
            what: "p99 latency",
            measured: milliseconds(figures.latency_ms.p99),
            bound: format!("< {P99_LIMIT_MS} ms"),
            kept: measured.answered() > 0 && figures.latency_ms.p99 < P99_LIMIT_MS,
        },
        Check {
            what: "errors",
            measured: format!("{:.4} %", share * 100.0),
            bound: format!("≤ {} %", ERROR_SHARE_LIMIT * 100.0),
            kept: share <= ERROR_SHARE_LIMIT,
        },
        Check {
            what: "requests sent",
            measured: thousands(figures.requests),
            bound: format!("≥ {:.0} % of {}", COMPLETENESS * 100.0, thousands(due)),
            kept: figures.requests as f64 >= COMPLETENESS * due as f64,
        },
    ];
    if let Some(connections) = figures.connections {
        checks.push(Check {
            what: "connections at once",
            measured: thousands(connections as u64),
            bound: format!("≥ {:.0} % of {}", COMPLETENESS * 100.0, thousands(measured.run.connections as u64)),
            kept: connections as f64 >= COMPLETENESS * measured.run.connections as f64,
        });
    }
    checks
}

fn remarks(figures: &Figures) -> Vec<String> {
    let mut remarks = Vec::new();
    if figures.generator_slip_p99_ms > SLIP_WARNING_MS {
        remarks.push(format!(
            "The generator itself was late: it started one request in a hundred {} or more behind schedule. The machine was short of CPU, so these latencies say little about the gateway.",
            milliseconds(figures.generator_slip_p99_ms)
        ));
    }
    if figures.connections.is_none() {
        remarks.push(
            "The gateway's process was not found on this machine: CPU, memory and connections are missing.".to_owned(),
        );
    }
    remarks
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Figures { latency_ms: latency, .. } = self.figures;
        writeln!(f, "{}", if self.passed { "PASSED" } else { "FAILED" })?;
        for check in &self.checks {
            writeln!(
                f,
                "  {} {:20} {:>12}   {}",
                if check.kept { "✓" } else { "✗" },
                check.what,
                check.measured,
                check.bound
            )?;
        }
        writeln!(
            f,
            "    latency              p50 {}  p90 {}  p99 {}  p99.9 {}  max {}",
            milliseconds(latency.p50),
            milliseconds(latency.p90),
            milliseconds(latency.p99),
            milliseconds(latency.p99_9),
            milliseconds(latency.max)
        )?;
        writeln!(
            f,
            "    load                 {} requests, {:.0} a second, {} errors",
            thousands(self.figures.requests),
            self.figures.requests_per_second,
            thousands(self.figures.errors)
        )?;
        if let (Some(cpu), Some(resident)) = (self.figures.cpu_us_per_request, self.figures.resident_bytes) {
            write!(f, "    gateway              {cpu:.1} µs CPU a request, {} resident", mebibytes(resident))?;
            if let Some(kib) = self.figures.kib_per_connection {
                write!(f, ", {kib:.1} KiB a connection")?;
            }
            writeln!(f)?;
        }
        for (reason, count) in &self.failures {
            writeln!(f, "    failed               {count} × {reason}")?;
        }
        self.remarks.iter().try_for_each(|remark| writeln!(f, "    note: {remark}"))
    }
}

/// With three digits that matter; seconds from one second on.
pub fn milliseconds(value: f64) -> String {
    match value {
        _ if value >= 1000.0 => format!("{:.2} s", value / 1000.0),
        _ if value < 10.0 => format!("{value:.2} ms"),
        _ if value < 100.0 => format!("{value:.1} ms"),
        _ => format!("{value:.0} ms"),
    }
}

pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

pub fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::{super::measured::tests::example, *};

    #[test]
    fn two_errors_in_a_thousand_fail() {
        let verdict = Verdict::of(&example());
        assert!(!verdict.passed);
        assert_eq!(
            verdict.checks.iter().filter(|check| !check.kept).map(|check| check.what).collect::<Vec<_>>(),
            ["errors"]
        );
    }

    #[test]
    fn a_p99_at_the_limit_fails() {
        let mut measured = example();
        measured.statuses.clear();
        measured.failures.clear();
        assert!(Verdict::of(&measured).passed);
        measured.latencies.fill(P99_LIMIT_MS);
        assert!(!Verdict::of(&measured).passed);
    }

    #[test]
    fn a_run_with_too_few_connections_fails() {
        let mut measured = example();
        measured.statuses.clear();
        measured.failures.clear();
        measured.run.connections = 200;
        assert!(!Verdict::of(&measured).passed);
    }

    #[test]
    fn cpu_and_memory_are_differences_over_the_run() {
        let figures = Verdict::of(&example()).figures;
        assert_eq!(figures.cpu_us_per_request.map(f64::round), Some(50.0));
        assert_eq!(figures.kib_per_connection, Some(10.24));
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!([0, 999, 1000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
    }
}
