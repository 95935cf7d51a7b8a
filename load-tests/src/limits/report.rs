//! The table on the terminal, and `report.html` and `report.json`.

use std::{fmt::Write, fs, path::Path};

use anyhow::Context;
use serde::Serialize;

use super::{
    outcome::{Outcome, Row},
    scenario::Limit,
};
use crate::report::plot::{Axis, Plot, escape};

const STYLE: &str = include_str!("../report/page.css");

const COLUMNS: [&str; 13] = [
    "limit/min, burst",
    "asked/s",
    "requests",
    "admitted",
    "over 1 s",
    "10 s",
    "60 s",
    "all",
    "false refusals",
    "used",
    "by lease",
    "added p50",
    "added p99",
];

/// What was run, and what came of it.
#[derive(Debug, Serialize)]
pub struct Report {
    pub passed: bool,
    pub gateway: String,
    pub seed: u64,
    pub outcomes: Vec<Outcome>,
}

impl Report {
    pub fn new(gateway: &Path, seed: u64, outcomes: Vec<Outcome>) -> Self {
        Self { passed: outcomes.iter().all(Outcome::passed), gateway: gateway.display().to_string(), seed, outcomes }
    }

    /// Writes both files into this folder.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let save = |name: &str, text: String| {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        save("report.json", serde_json::to_string_pretty(self)? + "\n")?;
        save("report.html", self.page())
    }

    /// The promises that were broken, one a line.
    pub fn broken(&self) -> String {
        let mut text = String::new();
        for outcome in &self.outcomes {
            for check in outcome.checks.iter().filter(|check| !check.kept) {
                let _ = writeln!(
                    text,
                    "broken: {}: {}: {}, promised {}",
                    outcome.name, check.what, check.measured, check.bound
                );
            }
        }
        text
    }

    fn page(&self) -> String {
        let (tone, word) = if self.passed { ("good", "kept") } else { ("bad", "broken") };
        let broken = self.broken();
        let remark = if broken.is_empty() {
            String::new()
        } else {
            format!("<p class=\"remark\">{}</p>", escape(&broken).replace('\n', "<br>"))
        };
        let checks: usize = self.outcomes.iter().map(|outcome| outcome.checks.len()).sum();
        let requests: u64 =
            self.outcomes.iter().flat_map(|outcome| &outcome.rows).map(|row| row.figures.requests).sum();
        let sections: String = self.outcomes.iter().map(section).collect();
        format!(
            r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Limits: promises {word}</title>
<style>
{STYLE}</style>
</head>
<body>
<header><h1>Limits over many nodes</h1><span class="pill {tone}">promises {word}</span></header>
<p class="lead"><b>{requests} requests</b> in <b>{scenarios} scenarios</b>, judged by one exact bucket: <b>{checks} promises</b>.</p>
{remark}
<table><thead>{head}</thead><tbody>
{rows}</tbody></table>
{sections}
<p class="method">{METHOD}</p>
</body>
</html>
"#,
            scenarios = self.outcomes.len(),
            head = head("scenario"),
            rows = self
                .outcomes
                .iter()
                .flat_map(|outcome| outcome.rows.iter().map(|row| html_row(outcome.name, row)))
                .collect::<String>(),
        )
    }
}

const METHOD: &str = "Over-admission is the number of tokens by which admissions exceed B + R · W in the worst window of that \
length. The moment of an admission is known from two sides: the \
gateway's access log says when its limits had decided (time and limit.wait_ms), the origin when the request came to it. Both \
read the same clock, and nothing is added as a tolerance. Of all moments in between those are taken that suit the bucket best, \
so that what is told as too much was too much for certain; report.json has the same at face value, with each admission at the \
moment of the log (over_at_face_value), and the width of what is not known (doubt). False refusals are requests that \
one exact bucket would have admitted more, of the same arrivals. Used: admitted, of what it would have admitted. Added: what clients wait for admitted requests longer than those of a tenant without limits, whose \
requests are sent meanwhile; it says nothing about how much CPU the machine lacks. Exchanges are calls of the script in Redis.";

fn head(first: &str) -> String {
    let columns = COLUMNS.map(|column| format!("<th>{column}</th>")).concat();
    format!("<tr><th>{first}</th>{columns}</tr>")
}

fn html_row(name: &str, row: &Row) -> String {
    let cells = concat(cells(row).iter().map(|cell| format!("<td>{}</td>", escape(cell))));
    format!("<tr><td>{}</td>{cells}</tr>\n", escape(name))
}

fn cells(row: &Row) -> [String; 13] {
    let figures = &row.figures;
    let limited = |text: String| if row.limit.is_some() { text } else { "–".to_owned() };
    let over = |value: f64| limited(format!("{:.1}", value.max(0.0)));
    let added = |value: Option<f64>| value.map_or("–".to_owned(), |ms| format!("{ms:+.2} ms"));
    let [one, ten, sixty] = figures.over_in_windows;
    [
        row.limit.map_or(
            row.quota.map_or("unlimited".to_owned(), |quota| format!("{quota} a day")),
            |Limit { per_minute, burst }| format!("{per_minute}, {burst}"),
        ),
        format!("{:.1}", row.rate),
        figures.requests.to_string(),
        figures.admitted.to_string(),
        over(one),
        over(ten),
        over(sixty),
        over(figures.over),
        limited(figures.refused_wrongly().to_string()),
        limited(format!("{:.2} %", figures.used() * 100.0)),
        limited(format!("{:.1} %", figures.by_lease * 100.0)),
        added(row.added_p50_ms),
        added(row.added_p99_ms),
    ]
}

fn section(outcome: &Outcome) -> String {
    let (tone, word) = if outcome.passed() { ("good", "kept") } else { ("bad", "broken") };
    let checks = concat(outcome.checks.iter().map(|check| {
        let (tone, mark) = if check.kept { ("good", "✓") } else { ("bad", "✗") };
        format!(
            "<tr><td class=\"{tone}\">{mark} {}</td><td>{}</td><td class=\"text\">{}</td></tr>\n",
            escape(&check.what),
            escape(&check.measured),
            escape(&check.bound)
        )
    }));
    let remarks = concat(
        exchanges(outcome)
            .into_iter()
            .chain(outcome.remarks.clone())
            .map(|remark| format!("<p class=\"method\">{}</p>", escape(&remark))),
    );
    let plots: String = outcome.rows.iter().filter(|row| row.limit.is_some()).map(|row| plot(outcome, row)).collect();
    format!(
        r#"<header style="margin-top: 44px"><h1>{}</h1><span class="pill {tone}">{word}</span></header>
<p class="lead">{} {} nodes, {} s.</p>
<section class="plots">
{plots}</section>
<table><thead><tr><th>promise</th><th>measured</th><th>bound</th></tr></thead><tbody>
{checks}</tbody></table>
{remarks}
"#,
        escape(outcome.name),
        escape(outcome.about),
        outcome.nodes,
        outcome.seconds,
    )
}

/// Admitted and refused in each second, beside the rate; what happened when.
fn plot(outcome: &Outcome, row: &Row) -> String {
    let rate = row.limit.map_or(0.0, Limit::per_second);
    let points = |value: fn(&(u64, u64)) -> u64| {
        row.by_second.iter().enumerate().map(move |(second, both)| (second as f64 + 0.5, value(both) as f64))
    };
    let high = points(|both| both.0.max(both.1)).map(|point| point.1).fold(rate, f64::max);
    let number = |value: f64| format!("{value}");
    let mut plot = Plot::new(Axis::linear(outcome.seconds, |value| format!("{value} s")), Axis::linear(high, number));
    plot.level("three", "rate", rate);
    plot.line("alarm", "refused", points(|both| both.1));
    plot.area("one", points(|both| both.0));
    plot.line("one", "admitted", points(|both| both.0));
    for (second, (admitted, refused)) in row.by_second.iter().enumerate() {
        let text = format!("second {second}: {admitted} admitted, {refused} refused");
        plot.strip(second as f64, second as f64 + 1.0, &text);
    }
    for (at, what) in &outcome.happened {
        plot.strip(*at, at + 0.15, &format!("{at:.2} s: {what}"));
    }
    let happened: Vec<String> = outcome.happened.iter().map(|(at, what)| format!("{at:.2} s {what}")).collect();
    let title = escape(&row.tenant);
    let svg = plot.render(&format!("Admitted and refused a second, {}", row.tenant));
    format!("<figure><h2>{title}<small>a second; {}</small></h2>{svg}</figure>\n", escape(&happened.join(", ")))
}

fn exchanges(outcome: &Outcome) -> Vec<String> {
    let mut told = Vec::new();
    if let Some(each) = outcome.exchanges_per_thousand {
        told.push(format!("{each:.2} exchanges with Redis per 1,000 admitted requests"));
    }
    if let Some(each) = outcome.exchanges_per_second {
        told.push(format!("{each:.2} exchanges per node, tenant and second"));
    }
    if let Some(scripts) = outcome.scripts_run {
        told.push(format!("Redis ran {scripts} scripts, four heartbeats a second of each node among them"));
    }
    if outcome.longest_stall_ms > 10.0 {
        told.push(format!(
            "the machine had no processor to spare for {:.0} ms in all, {:.0} ms at a time",
            outcome.stalled_ms, outcome.longest_stall_ms
        ));
    }
    if outcome.stalled_ms > 50.0 * outcome.seconds {
        told.push("the machine was too busy for this to say much: try again when it does nothing else".to_owned());
    }
    if outcome.slip_p99_ms > 5.0 {
        told.push(format!("the driver was {:.1} ms late with one request in a hundred", outcome.slip_p99_ms));
    }
    told
}

fn concat(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().concat()
}

/// A scenario for the terminal.
pub fn text(outcome: &Outcome) -> String {
    let word = if outcome.passed() { "kept" } else { "BROKEN" };
    let mut text =
        format!("{} ({} nodes, {} s) {word}: {}\n", outcome.name, outcome.nodes, outcome.seconds, outcome.about);
    let mut lines = vec![COLUMNS.map(str::to_owned)];
    lines.extend(outcome.rows.iter().map(cells));
    let widths: Vec<usize> =
        (0..COLUMNS.len()).map(|at| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or(0)).collect();
    for line in lines {
        let cells: Vec<String> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}")).collect();
        let _ = writeln!(text, "  {}", cells.join("  "));
    }
    for remark in exchanges(outcome).iter().chain(&outcome.remarks) {
        let _ = writeln!(text, "    {remark}");
    }
    for check in &outcome.checks {
        let mark = if check.kept { "ok    " } else { "BROKEN" };
        let _ = writeln!(text, "    {mark} {}: {} (promised: {})", check.what, check.measured, check.bound);
    }
    text
}
