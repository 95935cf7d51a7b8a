//! Medians with ranges, as text, Markdown and JSON.

use std::fmt::{self, Write};

use serde::Serialize;

use super::{Round, peer::Peer, scenario::Scenario};

/// Median, lowest and highest of the rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_unstable_by(f64::total_cmp);
        let middle = values.len() / 2;
        let at = |n: usize| values.get(n).copied().unwrap_or_default();
        let median =
            if values.len() % 2 == 1 { at(middle) } else { f64::midpoint(at(middle.saturating_sub(1)), at(middle)) };
        Self { median, low: at(0), high: at(values.len().saturating_sub(1)) }
    }
}

/// One peer in one scenario.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub scenario: Scenario,
    pub peer: Peer,
    pub rounds: usize,
    pub cpu_us_per_request: Spread,
    pub origin_cpu_us_per_request: Spread,
    pub requests_per_second: Spread,
    pub p50_ms: Spread,
    pub p99_ms: Spread,
    pub resident_mib: Spread,
    pub kib_per_connection: Option<Spread>,
    pub failures: u64,
}

impl Row {
    pub(super) fn new(scenario: Scenario, peer: Peer, rounds: &[Round]) -> Self {
        let spread = |value: fn(&Round) -> f64| Spread::of(rounds.iter().map(value));
        Self {
            scenario,
            peer,
            rounds: rounds.len(),
            cpu_us_per_request: spread(|round| round.cpu_us),
            origin_cpu_us_per_request: spread(|round| round.origin_cpu_us),
            requests_per_second: spread(|round| round.requests_per_second),
            p50_ms: spread(|round| round.p50_ms),
            p99_ms: spread(|round| round.p99_ms),
            resident_mib: spread(|round| round.resident_mib),
            kib_per_connection: (scenario == Scenario::Idle)
                .then(|| Spread::of(rounds.iter().filter_map(|round| round.kib_per_connection))),
            failures: rounds.iter().map(|round| round.failures).sum(),
        }
    }

    /// What the row is judged by: memory in `idle`, else CPU time.
    fn cost(&self) -> Spread {
        self.kib_per_connection.unwrap_or(self.cpu_us_per_request)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Table {
    pub rows: Vec<Row>,
}

/// The peers that all are compared with.
const YARDSTICKS: [Peer; 3] = [Peer::Nginx, Peer::Envoy, Peer::BarePingora];

impl Table {
    pub(super) fn new(rows: Vec<Row>) -> Self {
        Self { rows }
    }

    /// One table for each scenario; the first column is the one that counts.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        for (scenario, rows) in self.by_scenario() {
            let (head, cells) = cells(&rows);
            let _ =
                writeln!(text, "### {scenario}\n\n| {} |\n|---|{}", head.join(" | "), "---:|".repeat(head.len() - 1));
            for row in cells {
                let _ = writeln!(text, "| {} |", row.join(" | "));
            }
            text.push('\n');
        }
        text
    }

    fn by_scenario(&self) -> Vec<(Scenario, Vec<&Row>)> {
        let mut groups: Vec<(Scenario, Vec<&Row>)> = Vec::new();
        for row in &self.rows {
            match groups.iter_mut().find(|(scenario, _)| *scenario == row.scenario) {
                Some((_, rows)) => rows.push(row),
                None => groups.push((row.scenario, vec![row])),
            }
        }
        groups
    }
}

fn cells(rows: &[&Row]) -> (Vec<String>, Vec<Vec<String>>) {
    let idle = rows.iter().any(|row| row.kib_per_connection.is_some());
    let yardsticks: Vec<&Row> =
        YARDSTICKS.iter().filter_map(|peer| rows.iter().copied().find(|row| row.peer == *peer)).collect();
    let mut head = vec![
        "gateway".to_owned(),
        if idle { "KiB/connection" } else { "CPU µs/request" }.to_owned(),
        "range".to_owned(),
    ];
    head.extend(yardsticks.iter().map(|row| format!("× {}", row.peer)));
    if idle {
        head.push("MiB".to_owned());
    } else {
        head.extend(["requests/s", "p50 ms", "p99 ms", "MiB", "origin µs", "failures"].map(str::to_owned));
    }
    let lines = rows.iter().map(|row| {
        let cost = row.cost();
        let mut line =
            vec![row.peer.to_string(), format!("{:.1}", cost.median), format!("{:.1}–{:.1}", cost.low, cost.high)];
        line.extend(yardsticks.iter().map(|yardstick| format!("{:.2}", cost.median / yardstick.cost().median)));
        if idle {
            line.push(format!("{:.0}", row.resident_mib.median));
        } else {
            line.extend([
                format!("{:.0}", row.requests_per_second.median),
                format!("{:.2}", row.p50_ms.median),
                format!("{:.2}", row.p99_ms.median),
                format!("{:.0}", row.resident_mib.median),
                format!("{:.1}", row.origin_cpu_us_per_request.median),
                row.failures.to_string(),
            ]);
        }
        line
    });
    let lines = lines.collect();
    (head, lines)
}

/// The same for a terminal: columns in line.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (scenario, rows) in self.by_scenario() {
            let (head, lines) = cells(&rows);
            let width = |column: usize| {
                let longest = lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
                longest.max(head[column].chars().count())
            };
            writeln!(f, "{scenario}")?;
            for line in std::iter::once(&head).chain(&lines) {
                write!(f, "  {:<1$}", line[0], width(0))?;
                for (column, cell) in line.iter().enumerate().skip(1) {
                    write!(f, "  {cell:>0$}", width(column))?;
                }
                writeln!(f)?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rounds(cpu: &[f64]) -> Vec<Round> {
        cpu.iter().map(|cpu_us| Round { cpu_us: *cpu_us, ..Round::default() }).collect()
    }

    #[test]
    fn each_peer_is_compared_with_the_yardsticks_that_were_measured() {
        let table = Table::new(vec![
            Row::new(Scenario::Plain, Peer::Nginx, &rounds(&[21.0, 19.0, 20.0])),
            Row::new(Scenario::Plain, Peer::Seiketsu, &rounds(&[30.0, 28.0, 29.0, 31.0])),
        ]);
        let markdown = table.markdown();
        assert!(markdown.contains("| nginx | 20.0 | 19.0–21.0 | 1.00 |"), "{markdown}");
        assert!(markdown.contains("| Seiketsu | 29.5 | 28.0–31.0 | 1.48 |"), "{markdown}");
        assert!(!markdown.contains("Envoy"), "{markdown}");
    }

    #[test]
    fn idle_connections_are_judged_by_memory() {
        let round = Round { kib_per_connection: Some(16.0), resident_mib: 200.0, ..Round::default() };
        let table = Table::new(vec![Row::new(Scenario::Idle, Peer::Envoy, &[round])]);
        assert!(table.markdown().contains("| Envoy | 16.0 | 16.0–16.0 | 1.00 | 200 |"), "{}", table.markdown());
    }

    proptest! {
        #[test]
        fn half_of_the_rounds_lie_on_each_side_of_the_median(values in prop::collection::vec(0.0..1e6_f64, 1..20)) {
            let spread = Spread::of(values.iter().copied());
            let below = values.iter().filter(|value| **value < spread.median).count();
            let above = values.iter().filter(|value| **value > spread.median).count();
            prop_assert!(below * 2 <= values.len() && above * 2 <= values.len());
            prop_assert!(spread.low <= spread.median && spread.median <= spread.high);
        }
    }
}
