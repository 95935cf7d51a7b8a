//! `gatewayctl usage`

use clap::{Args, ValueEnum};
use seiketsu_config::values::Id;
use serde_json::{Value, json};

use super::{
    Outcome,
    client::{Ask, Client},
    failure::Failure,
    output::{Output, cell, rows, table},
    tenants::all_pages,
};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Only this one; with it, what its callers did step by step.
    tenant: Option<Id>,
    /// RFC 3339, as in 2026-05-31T14:00:00Z.
    #[arg(long, requires = "tenant")]
    from: Option<String>,
    /// Usually now.
    #[arg(long, requires = "tenant")]
    to: Option<String>,
    #[arg(long, value_enum, requires = "tenant", default_value_t = Step::Hour)]
    step: Step,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Step {
    Minute,
    Hour,
    Day,
}

impl Step {
    fn as_str(self) -> &'static str {
        match self {
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }
}

pub(super) async fn run(arguments: Arguments, client: &Client, output: &Output) -> Result<Outcome, Failure> {
    let Arguments { tenant, from, to, step } = arguments;
    let Some(tenant) = tenant else {
        let items = all_pages(client, || Ask::get("/usage")).await?;
        output.show(&json!({ "items": items }), quotas)?;
        return Ok(Outcome::Done);
    };
    let ask = Ask::get("/gateway/analytics")
        .query("tenant", tenant)
        .query("step", step.as_str())
        .query_if("from", from)
        .query_if("to", to);
    let told = client.json(ask).await?;
    output.show(&told, series)?;
    Ok(Outcome::Done)
}

fn quotas(used: &Value) -> String {
    let of = |period: &Value| {
        let quota = if period["quota"].is_null() { "unlimited".to_owned() } else { cell(&period["quota"]) };
        vec![cell(&period["used"]), quota]
    };
    let row = |item: &Value| [vec![cell(&item["tenant"])], of(&item["day"]), of(&item["month"])].concat();
    let rows: Vec<Vec<String>> = used["items"].as_array().into_iter().flatten().map(row).collect();
    table(&["TENANT", "TODAY", "OF", "MONTH", "OF"], &rows)
}

fn series(told: &Value) -> String {
    let names = ["/at", "/requests", "/admitted", "/refused/limit", "/errors", "/bytes_in", "/bytes_out"];
    let points = &told["groups"][0]["series"];
    let mut lines = rows(points, &names);
    for (line, point) in lines.iter_mut().zip(points.as_array().into_iter().flatten()) {
        line.push(at_most(&point["latency_ms"]["p99"]));
    }
    let totals = &told["totals"];
    let mut total: Vec<String> = names.iter().map(|name| cell(totals.pointer(name).unwrap_or(&Value::Null))).collect();
    "total".clone_into(&mut total[0]);
    total.push(at_most(&totals["latency_ms"]["p99"]));
    lines.push(total);
    let titles = ["FROM", "REQUESTS", "ADMITTED", "OVER LIMIT", "ERRORS", "BYTES IN", "BYTES OUT", "P99 MS"];
    let missing = told["gaps"].as_array().into_iter().flatten().map(|gap| {
        format!(
            "missing: {} records between {} and {}, of all tenants\n",
            cell(&gap["records"]),
            cell(&gap["since"]),
            cell(&gap["until"])
        )
    });
    table(&titles, &lines) + &missing.collect::<String>()
}

/// A quantile lies in a bucket.
fn at_most(quantile: &Value) -> String {
    match (&quantile["above"], &quantile["at_most"]) {
        (Value::Null, _) => "-".to_owned(),
        (above, Value::Null) => format!(">{}", cell(above)),
        (_, at_most) => format!("<={}", cell(at_most)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_ends_with_its_total_and_tells_what_is_missing() {
        let numbers = json!({ "at": "2026-05-31T14:00:00Z", "requests": 7, "latency_ms": { "p99": { "above": 2, "at_most": 5 } } });
        let gaps = json!([{ "records": 3, "since": "a", "until": "b" }]);
        let told = json!({ "groups": [{ "series": [numbers] }], "totals": numbers, "gaps": gaps });
        let text = series(&told);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].starts_with("2026-05-31T14:00:00Z  7") && lines[1].ends_with("<=5"), "{text}");
        assert!(lines[2].starts_with("total"), "{text}");
        assert_eq!(lines[3], "missing: 3 records between a and b, of all tenants");
        assert_eq!(at_most(&json!({ "above": 5000, "at_most": null })), ">5000");
        assert_eq!(at_most(&Value::Null), "-");
    }
}
