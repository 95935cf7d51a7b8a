//! `GET /gateway/analytics`: what tenants' callers did, step by step.

use axum::{Json, extract::State};
use seiketsu_config::{
    push::usage::{Counts, LATENCY_BOUNDS_MS},
    values::Id,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{AppState, Problem, body::QueryOf, caller::Caller, problem::ProblemDocument, span};
use crate::store::usage::{Filter, Group, Point, Step};

/// Points of all series together.
const MOST_POINTS: usize = 20_000;

/// Gaps that are told; the newest.
const MOST_GAPS: u64 = 100;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct AnalyticsQuery {
    /// Only of this one. Usually of all that the operator may see.
    #[param(value_type = Option<String>)]
    tenant: Option<Id>,
    route: Option<String>,
    /// As in the access log; `_other` are those beyond the first thousand of a second.
    consumer: Option<String>,
    /// Of the gateway.
    region: Option<String>,
    /// RFC 3339. Usually an hour, a day or a month before `to`, by the step.
    from: Option<String>,
    /// RFC 3339. Usually now.
    to: Option<String>,
    /// Usually `minute`.
    #[serde(default = "minute")]
    #[param(inline)]
    step: Step,
    /// What is told apart. Usually nothing.
    #[param(inline)]
    group: Option<Group>,
}

fn minute() -> Step {
    Step::Minute
}

/// What was done in a span of time.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Analytics {
    from: String,
    to: String,
    step: Step,
    /// The upper bounds of the buckets that latencies are counted in: a quantile is known to lie in one of them, and no
    /// better.
    latency_buckets_ms: &'static [u64],
    totals: Numbers,
    /// One without a name, if nothing is told apart.
    groups: Vec<GroupSeries>,
    /// Usage that is missing in these numbers, for all tenants together: nodes had to drop it, or lost it.
    gaps: Vec<GapShown>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AnalyticsGroup)]
pub(super) struct GroupSeries {
    name: String,
    totals: Numbers,
    /// In the order of time. Steps without a request are left out.
    series: Vec<SeriesPoint>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AnalyticsPoint)]
pub(super) struct SeriesPoint {
    /// When the step began.
    at: String,
    #[serde(flatten)]
    numbers: Numbers,
}

/// What requests add up to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
#[schema(as = AnalyticsNumbers)]
pub(super) struct Numbers {
    /// Admitted and refused.
    requests: u64,
    admitted: u64,
    refused: RefusedShown,
    /// Admitted requests that ended in 5xx, or that the upstream broke off.
    errors: u64,
    /// Requests by class of status.
    statuses: StatusesShown,
    /// What the admitted ones weigh.
    cost: u64,
    bytes_in: u64,
    bytes_out: u64,
    /// Of admitted requests, to their last byte; without WebSockets. None, if there were none.
    latency_ms: Option<LatencyShown>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
#[schema(as = AnalyticsRefused)]
pub(super) struct RefusedShown {
    /// A limit or quota was used up.
    limit: u64,
    /// The caller was not known, or might not do it.
    auth: u64,
    other: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
#[schema(as = AnalyticsStatuses)]
pub(super) struct StatusesShown {
    #[serde(rename = "1xx")]
    informational: u64,
    #[serde(rename = "2xx")]
    success: u64,
    #[serde(rename = "3xx")]
    redirection: u64,
    #[serde(rename = "4xx")]
    client_error: u64,
    #[serde(rename = "5xx")]
    server_error: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
#[schema(as = AnalyticsLatency)]
pub(super) struct LatencyShown {
    p50: Between,
    p90: Between,
    p99: Between,
}

/// The value is more than the one and at most the other.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
#[schema(as = AnalyticsQuantile)]
pub(super) struct Between {
    above: u64,
    /// None: there is no higher bucket.
    at_most: Option<u64>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AnalyticsGap)]
pub(super) struct GapShown {
    /// For operators of all tenants.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    /// Seconds of a caller of a route each.
    records: u64,
    since: String,
    until: String,
}

/// Requests, errors, refusals, bytes and latencies, step by step.
#[utoipa::path(
    get, path = "/gateway/analytics", tag = "usage", params(AnalyticsQuery),
    responses(
        (status = 200, description = "What was done", body = Analytics),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn get_analytics(
    State(state): State<AppState>,
    caller: Caller,
    QueryOf(query): QueryOf<AnalyticsQuery>,
) -> Result<Json<Analytics>, Problem> {
    let AnalyticsQuery { tenant, route, consumer, region, from, to, step, group } = query;
    let tenants = caller.sees(tenant.as_ref())?;
    let span::Span { from, to } = span::span(from.as_deref(), to.as_deref(), step, OffsetDateTime::now_utc())?;
    let filter = Filter { tenants, route, consumer, region, step, from, to };
    let points = state.store.usage(&filter, group, MOST_POINTS).await?.ok_or_else(|| {
        let detail = format!("more than {MOST_POINTS} points; take a longer step, a shorter span, or no group");
        Problem::bad_request(detail)
    })?;
    let sees_nodes = caller.operator.tenants.is_none();
    let gaps = state.store.usage_gaps(from, to, MOST_GAPS).await?.into_iter().map(|gap| GapShown {
        node: Some(gap.node).filter(|_| sees_nodes),
        records: gap.records,
        since: span::text(gap.since),
        until: span::text(gap.until),
    });
    let (totals, groups) = series(points);
    Ok(Json(Analytics {
        from: span::text(from),
        to: span::text(to),
        step,
        latency_buckets_ms: &LATENCY_BOUNDS_MS,
        totals,
        groups,
        gaps: gaps.collect(),
    }))
}

/// Points come in the order of groups.
fn series(points: Vec<Point>) -> (Numbers, Vec<GroupSeries>) {
    let mut all = Counts::default();
    let mut groups: Vec<(Counts, GroupSeries)> = Vec::new();
    for Point { group, since, counts } in points {
        all.add(&counts);
        if groups.last().is_none_or(|(_, last)| last.name != group) {
            let empty = GroupSeries { name: group, totals: Numbers::from(&Counts::default()), series: Vec::new() };
            groups.push((Counts::default(), empty));
        }
        if let Some((totals, group)) = groups.last_mut() {
            totals.add(&counts);
            group.series.push(SeriesPoint { at: span::text(since), numbers: Numbers::from(&counts) });
        }
    }
    let groups = groups.into_iter().map(|(totals, group)| GroupSeries { totals: Numbers::from(&totals), ..group });
    (Numbers::from(&all), groups.collect())
}

impl From<&Counts> for Numbers {
    fn from(counts: &Counts) -> Self {
        let [informational, success, redirection, client_error, server_error] = counts.statuses.0;
        let between =
            |thousandths| counts.latency_ms.quantile(thousandths).map(|(above, at_most)| Between { above, at_most });
        let refused = counts.refused;
        Self {
            requests: counts.requests(),
            admitted: counts.admitted,
            refused: RefusedShown { limit: refused.limit, auth: refused.auth, other: refused.other },
            errors: counts.failures,
            statuses: StatusesShown { informational, success, redirection, client_error, server_error },
            cost: counts.cost,
            bytes_in: counts.bytes_in,
            bytes_out: counts.bytes_out,
            latency_ms: between(500).zip(between(900)).zip(between(990)).map(|((p50, p90), p99)| LatencyShown {
                p50,
                p90,
                p99,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_the_sums_of_what_is_in_them() {
        let point = |group: &str, since, admitted| Point {
            group: group.to_owned(),
            since,
            counts: Counts { admitted, ..Counts::default() },
        };
        let (all, groups) = series(vec![point("a", 0, 1), point("a", 60, 2), point("b", 0, 4)]);
        let told: Vec<_> =
            groups.iter().map(|group| (&*group.name, group.totals.admitted, group.series.len())).collect();
        assert_eq!((all.admitted, told), (7, vec![("a", 3, 2), ("b", 4, 1)]));
        assert_eq!(all.latency_ms, None);
        assert_eq!(groups[0].series[1].at, "1970-01-01T00:01:00Z");
    }
}
