//! `GET /usage/export`: the sums as they are, for whoever bills.

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::header;
use seiketsu_config::values::Id;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{AppState, Problem, body::QueryOf, caller::Caller, problem::ProblemDocument, span};
use crate::store::{
    StoreError,
    audit::Entry,
    usage::{Filter, Row, Step},
};

/// Rows that are read at once.
const AT_ONCE: usize = 1000;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ExportFormat {
    #[default]
    Csv,
    /// JSON lines.
    Jsonl,
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ExportQuery {
    /// Only this one. Usually all that the operator may see.
    #[param(value_type = Option<String>)]
    tenant: Option<Id>,
    /// RFC 3339. Usually an hour, a day or a month before `to`, by the step.
    from: Option<String>,
    /// RFC 3339. Usually now.
    to: Option<String>,
    /// Usually `day`.
    #[param(inline)]
    #[serde(default = "day")]
    step: Step,
    /// Usually `csv`.
    #[param(inline)]
    #[serde(default)]
    format: ExportFormat,
}

fn day() -> Step {
    Step::Day
}

/// A line.
#[derive(Debug, Serialize)]
struct Line<'a> {
    at: String,
    tenant: &'a str,
    route: &'a str,
    consumer: &'a str,
    region: &'a str,
    admitted: u64,
    refused_limit: u64,
    refused_auth: u64,
    refused_other: u64,
    cost: u64,
    bytes_in: u64,
    bytes_out: u64,
    errors: u64,
}

const TITLES: &str = "at,tenant,route,consumer,region,admitted,refused_limit,refused_auth,refused_other,cost,bytes_in,bytes_out,errors\n";

/// A line for each tenant, route, consumer, region and step, in the order of time.
#[utoipa::path(
    get, path = "/usage/export", tag = "usage", params(ExportQuery),
    responses(
        (status = 200, description = "The sums", content((String = "text/csv"), (String = "application/jsonl"))),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn export_usage(
    State(state): State<AppState>,
    caller: Caller,
    QueryOf(query): QueryOf<ExportQuery>,
) -> Result<Response, Problem> {
    let ExportQuery { tenant, from, to, step, format } = query;
    let tenants = caller.sees(tenant.as_ref())?;
    let span::Span { from, to } = span::span(from.as_deref(), to.as_deref(), step, OffsetDateTime::now_utc())?;
    let entry = Entry { tenant: tenant.as_ref().map(Id::as_str), ..Entry::done() };
    let entry = entry.with("from", span::text(from)).with("to", span::text(to));
    state.store.record(&caller.author, entry).await?;
    let filter = Filter { tenants, route: None, consumer: None, region: None, step, from, to };
    // The first rows, so that a store that is away is told as such.
    let first = state.store.usage_rows(&filter, None, AT_ONCE).await?;
    let (kind, titles) = match format {
        ExportFormat::Csv => ("text/csv; charset=utf-8", TITLES),
        ExportFormat::Jsonl => ("application/jsonl", ""),
    };
    let begin = (Some(first), state, filter, Bytes::from_static(titles.as_bytes()));
    let lines = futures::stream::unfold(begin, move |(rows, state, filter, titles)| async move {
        let rows = rows?;
        let mut text = titles.to_vec();
        for row in &rows {
            write(&mut text, row, format);
        }
        let more = match rows.last().filter(|_| rows.len() == AT_ONCE) {
            None => None,
            Some(last) => match state.store.usage_rows(&filter, Some(last), AT_ONCE).await {
                Ok(rows) => Some(rows),
                // The body breaks off, and the client sees that it does.
                Err(error) => return Some((Err(error), (None, state, filter, Bytes::new()))),
            },
        };
        Some((Ok::<_, StoreError>(Bytes::from(text)), (more, state, filter, Bytes::new())))
    });
    Ok(([(header::CONTENT_TYPE, kind)], Body::from_stream(lines)).into_response())
}

fn write(to: &mut Vec<u8>, row: &Row, format: ExportFormat) {
    let Row { since, tenant, route, consumer, region, counts } = row;
    let line = Line {
        at: span::text(*since),
        tenant,
        route,
        consumer,
        region,
        admitted: counts.admitted,
        refused_limit: counts.refused.limit,
        refused_auth: counts.refused.auth,
        refused_other: counts.refused.other,
        cost: counts.cost,
        bytes_in: counts.bytes_in,
        bytes_out: counts.bytes_out,
        errors: counts.failures,
    };
    match format {
        // Text and numbers, written to memory: there is nothing to fail.
        ExportFormat::Jsonl => drop(serde_json::to_writer(&mut *to, &line)),
        ExportFormat::Csv => to.extend_from_slice(csv(&line).as_bytes()),
    }
    to.push(b'\n');
}

fn csv(line: &Line<'_>) -> String {
    let texts = [&line.at, line.tenant, line.route, line.consumer, line.region].map(cell);
    let numbers = [
        line.admitted,
        line.refused_limit,
        line.refused_auth,
        line.refused_other,
        line.cost,
        line.bytes_in,
        line.bytes_out,
        line.errors,
    ];
    let numbers = numbers.map(|number| number.to_string());
    [&texts[..], &numbers[..]].concat().join(",")
}

/// RFC 4180. Spreadsheets take some texts for formulas: those begin with an apostrophe then.
fn cell(text: &str) -> String {
    let text = if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { format!("'{text}") } else { text.to_owned() };
    if text.contains(['"', ',', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_of_any_name_is_one_cell_and_no_formula() {
        assert_eq!(cell("app"), "app");
        assert_eq!(cell("a \"b\", c\nd"), "\"a \"\"b\"\", c\nd\"");
        assert_eq!(cell("=HYPERLINK(\"x\")"), "\"'=HYPERLINK(\"\"x\"\")\"");
        assert_eq!(cell(""), "");
    }
}
