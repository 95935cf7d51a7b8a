//! `report.html`: one page that needs nothing beside itself.

use std::fmt::Write;

use super::{
    Sample,
    measured::{Measured, quantile},
    plot::{Axis, Plot, escape},
    verdict::{Figures, P99_LIMIT_MS, Verdict, mebibytes, milliseconds, thousands},
};

const STYLE: &str = include_str!("page.css");

pub fn render(measured: &Measured, verdict: &Verdict) -> String {
    let (tone, word) = if verdict.passed { ("good", "passed") } else { ("bad", "failed") };
    let run = &verdict.run;
    let remarks = concat(verdict.remarks.iter().map(|remark| format!("<p class=\"remark\">{}</p>", escape(remark))));
    format!(
        r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Load test {word}: p99 {p99}</title>
<style>
{STYLE}</style>
</head>
<body>
<header><h1>Load test</h1><span class="pill {tone}">{word}</span></header>
<p class="lead"><b>{connections} connections</b> of <b>{host}</b>, <b>{rate} requests a second</b> for <b>{duration} s</b>, sent on schedule whether or not earlier ones were answered. {began}.</p>
{remarks}
{checks}
{figures}
<section class="plots">
{plots}
</section>
<section class="tables">
{tables}
</section>
{seconds}
<p class="method">Latency runs from the moment a request was due to the last byte of its answer, so a gateway that stalls pays for every request that had to wait (no coordinated omission). A request without an answer within ten seconds, and every status of 400 or more, is an error. Connections are opened as the schedule needs them, during the first seconds, and kept. CPU time and memory are the gateway process's own, from the kernel's accounts; memory shared between processes is split among them.</p>
</body>
</html>
"#,
        p99 = milliseconds(verdict.figures.latency_ms.p99),
        connections = thousands(run.connections as u64),
        host = escape(&run.host),
        rate = format_number(run.rate),
        duration = run.duration_seconds,
        began = escape(&run.began),
        checks = checks(verdict),
        figures = figures(&verdict.figures),
        plots = plots(measured),
        tables = tables(measured, verdict),
        seconds = seconds(measured),
    )
}

fn checks(verdict: &Verdict) -> String {
    let tiles = concat(verdict.checks.iter().map(|check| {
        let tone = if check.kept { "good" } else { "bad" };
        let mark = if check.kept { "✓" } else { "✗" };
        format!(
            "<div><dt>{}</dt><dd class=\"{tone}\">{}</dd><span class=\"bound {tone}\">{mark} {}</span></div>\n",
            check.what,
            escape(&check.measured),
            escape(&check.bound)
        )
    }));
    format!("<dl class=\"figures\">\n{tiles}</dl>")
}

fn figures(figures: &Figures) -> String {
    let latency = figures.latency_ms;
    let mut tiles: Vec<(&str, String)> =
        [("p50", latency.p50), ("p90", latency.p90), ("p99.9", latency.p99_9), ("slowest", latency.max)]
            .map(|(name, value)| (name, milliseconds(value)))
            .to_vec();
    tiles.push(("throughput", format!("{} /s", format_number(figures.requests_per_second.round()))));
    if let Some(cpu) = figures.cpu_us_per_request {
        tiles.push(("CPU per request", format!("{cpu:.1} µs")));
    }
    if let Some(resident) = figures.resident_bytes {
        tiles.push(("peak memory", mebibytes(resident)));
    }
    if let Some(kib) = figures.kib_per_connection {
        tiles.push(("per connection", format!("{kib:.1} KiB")));
    }
    let tiles = concat(tiles.into_iter().map(|(name, value)| {
        let (number, unit) = value.split_once(' ').unwrap_or((&value, ""));
        format!("<div><dt>{name}</dt><dd>{number}<small>{unit}</small></dd></div>\n")
    }));
    format!("<dl class=\"figures\">\n{tiles}</dl>")
}

fn plots(measured: &Measured) -> String {
    let mut all = figure("Latency by percentile", "both axes logarithmic", &by_percentile(measured));
    all += &figure("Latency over time", "by the second in which a request was due", &latency_over_time(measured));
    all += &figure("Throughput", "answers and errors a second", &throughput(measured));
    if measured.samples.len() > 1 {
        all += &figure("Gateway CPU", "share of one core", &cpu(measured));
        all += &figure("Gateway memory", "resident", &memory(measured));
        all += &figure("Connections", "established, as the gateway's host sees them", &connections(measured));
    }
    all
}

fn figure(title: &str, subtitle: &str, svg: &str) -> String {
    format!("<figure><h2>{title}<small>{subtitle}</small></h2>{svg}</figure>\n")
}

/// In the manner of `HdrHistogram`: each nine of the percentile gets the same room.
fn by_percentile(measured: &Measured) -> String {
    let total = measured.latencies.len().max(10) as f64;
    let nines = total.log10().ceil().clamp(2.0, 6.0);
    let labels = ["0 %", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %", "99.9999 %"];
    let ticks = labels.iter().enumerate().map(|(n, label)| (10_f64.powf(n as f64), (*label).to_owned()));
    let x = Axis::between(ticks.take_while(|(one_in, _)| *one_in <= 10_f64.powf(nines)).collect(), true);
    let low = quantile(&measured.latencies, 0.0);
    let high = quantile(&measured.latencies, 1.0);
    let mut plot = Plot::new(x, latency_axis(low, high));
    let steps = 240;
    let curve: Vec<_> = (0..=steps)
        .map(|step| 10_f64.powf(nines * f64::from(step) / f64::from(steps)))
        .filter(|one_in| *one_in <= total)
        .chain([total])
        .map(|one_in| (one_in, quantile(&measured.latencies, 1.0 - 1.0 / one_in)))
        .collect();
    plot.level("alarm", "bound", P99_LIMIT_MS);
    plot.line("two", &milliseconds(high), curve);
    plot.render("Latency by percentile")
}

fn latency_over_time(measured: &Measured) -> String {
    let seconds = &measured.seconds;
    let low = seconds.iter().filter(|second| second.due > 0).map(|second| second.p50).fold(f64::MAX, f64::min);
    let high = seconds.iter().map(|second| second.max).fold(0.0, f64::max);
    let mut plot = Plot::new(time_axis(measured), latency_axis(low.min(high), high));
    plot.level("alarm", "bound", P99_LIMIT_MS);
    let curve = |value: fn(&super::measured::Second) -> f64| {
        seconds
            .iter()
            .enumerate()
            .filter(|(_, second)| second.due > 0)
            .map(move |(n, second)| (n as f64 + 0.5, value(second)))
    };
    plot.line("three", "slowest", curve(|second| second.max));
    plot.line("two", "p99", curve(|second| second.p99));
    plot.line("one", "p50", curve(|second| second.p50));
    for (n, second) in seconds.iter().enumerate() {
        let text = format!(
            "second {n}: p50 {}, p99 {}, slowest {}",
            milliseconds(second.p50),
            milliseconds(second.p99),
            milliseconds(second.max)
        );
        plot.strip(n as f64, n as f64 + 1.0, &text);
    }
    plot.render("Latency over time: p50, p99 and slowest answer of each second")
}

fn throughput(measured: &Measured) -> String {
    let seconds = || measured.seconds.iter().enumerate();
    let high = seconds().map(|(_, second)| second.answered as f64).fold(measured.run.rate, f64::max);
    let mut plot = Plot::new(time_axis(measured), Axis::linear(high, format_number));
    let answered = || seconds().map(|(n, second)| (n as f64 + 0.5, second.answered as f64));
    plot.area("one", answered());
    plot.line("one", "answers", answered());
    let errors = || seconds().map(|(n, second)| (n as f64 + 0.5, second.refused as f64));
    plot.area("alarm", errors());
    plot.line("alarm", "errors", errors());
    for (n, second) in seconds() {
        plot.strip(
            n as f64,
            n as f64 + 1.0,
            &format!("second {n}: {} answers, {} errors", second.answered, second.refused),
        );
    }
    plot.render("Answers and errors a second")
}

fn cpu(measured: &Measured) -> String {
    let shares: Vec<_> = during(measured)
        .windows(2)
        .filter(|pair| pair[1].seconds > pair[0].seconds)
        .map(|pair| {
            let share = (pair[1].cpu_seconds - pair[0].cpu_seconds) / (pair[1].seconds - pair[0].seconds);
            (f64::midpoint(pair[0].seconds, pair[1].seconds), share * 100.0)
        })
        .collect();
    let high = shares.iter().map(|(_, share)| *share).fold(10.0, f64::max);
    let mut plot = Plot::new(time_axis(measured), Axis::linear(high, |share| format!("{share} %")));
    plot.area("two", shares.iter().copied());
    plot.line("two", "CPU", shares);
    plot.render("CPU time of the gateway, as a share of one core")
}

fn memory(measured: &Measured) -> String {
    let mebibytes: Vec<_> = during(measured)
        .iter()
        .map(|sample| (sample.seconds, sample.resident_bytes as f64 / f64::from(1 << 20)))
        .collect();
    let high = mebibytes.iter().map(|(_, size)| *size).fold(1.0, f64::max);
    let mut plot = Plot::new(time_axis(measured), Axis::linear(high, |size| format!("{size} MiB")));
    plot.area("one", mebibytes.iter().copied());
    plot.line("one", "resident", mebibytes);
    plot.render("Resident memory of the gateway")
}

fn connections(measured: &Measured) -> String {
    let counts: Vec<_> =
        during(measured).iter().filter_map(|sample| Some((sample.seconds, sample.connections? as f64))).collect();
    let high = counts.iter().map(|(_, count)| *count).fold(measured.run.connections as f64, f64::max);
    let mut plot = Plot::new(time_axis(measured), Axis::linear(high, format_number));
    plot.level("three", "asked for", measured.run.connections as f64);
    plot.line("two", "open", counts);
    plot.render("Established connections")
}

/// The samples while the generator sent; what it did with its results afterwards is of no interest.
fn during(measured: &Measured) -> &[Sample] {
    let end = measured.run.duration_seconds as f64;
    &measured.samples[..measured.samples.partition_point(|sample| sample.seconds < end)]
}

fn time_axis(measured: &Measured) -> Axis {
    Axis::linear(measured.run.duration_seconds as f64, |seconds| format!("{seconds} s"))
}

/// Shows the bound even when everything is far below it.
fn latency_axis(low: f64, high: f64) -> Axis {
    Axis::decades(low, high.max(P99_LIMIT_MS), |ms| {
        if ms >= 1000.0 { format!("{} s", ms / 1000.0) } else { format!("{ms} ms") }
    })
}

fn tables(measured: &Measured, verdict: &Verdict) -> String {
    let row = |name: &str, value: &str| format!("<tr><td>{}</td><td>{}</td></tr>\n", escape(name), escape(value));
    let percentiles: String = [0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999, 1.0]
        .into_iter()
        .map(|share| {
            let name = if share < 1.0 { format!("{} %", format_number(share * 100.0)) } else { "slowest".to_owned() };
            row(&name, &milliseconds(quantile(&measured.latencies, share)))
        })
        .collect();
    let mut outcomes: String =
        verdict.statuses.iter().map(|(status, count)| row(&format!("answered {status}"), &thousands(*count))).collect();
    for (reason, count) in &verdict.failures {
        outcomes += &row(reason, &thousands(*count));
    }
    outcomes += &row("generator late, p99", &milliseconds(verdict.figures.generator_slip_p99_ms));
    outcomes += &row("generator late, most", &milliseconds(verdict.figures.generator_slip_max_ms));
    let run = &verdict.run;
    let text = |name: &str, value: &str| format!("<tr><td>{name}</td><td class=\"text\">{}</td></tr>\n", escape(value));
    let scenario = [
        text("target", &run.target),
        text("host", &run.host),
        text("generator", &run.generator),
        text("machine", &run.machine),
        text("open files", &format!("{} at most", thousands(run.file_limit))),
    ]
    .concat();
    format!(
        "<div><h2>Latency</h2><table>{percentiles}</table></div>\n<div><h2>Outcomes</h2><table>{outcomes}</table></div>\n<div><h2>Scenario</h2><table>{scenario}</table></div>"
    )
}

fn seconds(measured: &Measured) -> String {
    let mut rows = String::new();
    for (n, second) in measured.seconds.iter().enumerate() {
        let _ = writeln!(
            rows,
            "<tr><td>{n}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            thousands(second.answered),
            second.refused,
            milliseconds(second.p50),
            milliseconds(second.p99),
            milliseconds(second.max)
        );
    }
    format!(
        "<details><summary>Every second as a table</summary><table><thead><tr><th>second</th><th>answers</th><th>errors</th><th>p50</th><th>p99</th><th>slowest</th></tr></thead><tbody>\n{rows}</tbody></table></details>"
    )
}

fn concat(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().concat()
}

/// Whole numbers with their thousands set apart, others with the digits they need.
fn format_number(number: f64) -> String {
    if number.fract() == 0.0 && number >= 0.0 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole and not negative")]
        return thousands(number as u64);
    }
    let text = format!("{number:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::{super::measured::tests::example, *};

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        let measured = example();
        let page = render(&measured, &Verdict::of(&measured));
        for outside in ["<script", "<link", "<img", "url(", "@import"] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert_eq!(page.matches("<svg").count(), 6);
    }

    #[test]
    fn names_from_outside_are_escaped() {
        let mut measured = example();
        measured.run.host = "<script>alert(1)</script>".to_owned();
        measured.failures.insert("<i>".to_owned(), 1);
        let page = render(&measured, &Verdict::of(&measured));
        assert!(!page.contains("<script>") && !page.contains("<i>") && page.contains("&lt;i&gt;"));
    }

    #[test]
    fn a_run_without_any_answer_still_gives_a_page() {
        let mut measured = example();
        measured.latencies.clear();
        measured.seconds.clear();
        measured.statuses.clear();
        measured.samples.clear();
        assert!(render(&measured, &Verdict::of(&measured)).contains("failed"));
    }
}
