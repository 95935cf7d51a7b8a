//! `?wait=applied`: the answer comes when all nodes have what was written, and says which have not. Those count that are
//! live, and those that were a moment ago and have not said that they end: they come back, and may serve meanwhile.

use std::{collections::HashSet, sync::Arc, time::Duration};

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use seiketsu_config::{
    push::Refused,
    values::{Id, Span},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout_at},
};
use utoipa::ToSchema;

use super::{AppState, Problem, caller::Caller, idempotency, problem::Kind, turns::Turn};
use crate::store::{Remembered, Store, StoreError, Written, nodes::NodeRow};

const USUAL: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_mins(1);

/// Other replicas tell of what their nodes have applied; should that be lost, it is looked up this often.
const LOOK: Duration = Duration::from_millis(200);

/// Whether the answer waits for the nodes.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct WaitQuery {
    /// `applied`: answer when all nodes have applied the change that are live or were a moment ago.
    #[param(inline)]
    pub(super) wait: Option<WaitFor>,
    /// For how long: `500ms` to `60s`, usually `5s`. Then 504 names the nodes that have not; the change stands.
    pub(super) timeout: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum WaitFor {
    Applied,
}

/// What was written.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(super) struct WriteAnswer {
    /// The revision that it made; the one that there is, if it changed nothing.
    pub(super) revision: u64,
    /// Tenants that were added, changed or removed.
    #[schema(value_type = Vec<String>)]
    pub(super) changed: Vec<Id>,
    /// Whether what stands beside the tenants was changed.
    pub(super) head: bool,
    /// Nothing was written: this is what would be.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) dry_run: bool,
    /// With `?wait=applied`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) applied: Option<AppliedBy>,
}

/// Who has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(super) struct AppliedBy {
    /// Nodes that have applied it. None, and none missing: no node is known to be there.
    #[schema(value_type = Vec<String>)]
    nodes: Vec<Id>,
    missing: Vec<Missing>,
}

/// A node that has not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(super) struct Missing {
    #[schema(value_type = String)]
    node: Id,
    /// Whether it is connected. One that is not was there a moment ago.
    live: bool,
    /// What is in force there.
    revision: u64,
    /// What it refuses of what was to be written, and why.
    #[schema(value_type = Vec<Object>)]
    refused: Vec<Refused>,
    /// How many more documents it has refused than it has named: some of these may be among them.
    #[serde(default, skip_serializing_if = "is_zero")]
    refused_more: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // What serde asks for.
fn is_false(value: &bool) -> bool {
    !value
}

#[allow(clippy::trivially_copy_pass_by_ref)] // What serde asks for.
fn is_zero(value: &u64) -> bool {
    *value == 0
}

impl From<Written> for WriteAnswer {
    fn from(written: Written) -> Self {
        Self { revision: written.revision, changed: written.changed, head: written.head, dry_run: false, applied: None }
    }
}

/// How long to wait, if at all.
#[derive(Debug)]
pub(super) struct Wait {
    timeout: Option<Duration>,
    /// Given back when there is nothing left to do but wait.
    turn: Arc<Turn>,
}

impl Wait {
    /// Before anything is written: a wrong time must not come to light afterwards.
    pub(super) fn parse(caller: &Caller, wait: Option<WaitFor>, timeout: Option<&str>) -> Result<Self, Problem> {
        let timeout = patience(timeout)?;
        Ok(Self { timeout: wait.map(|WaitFor::Applied| timeout), turn: Arc::clone(&caller.turn) })
    }

    /// Completes the answer, when the nodes have what was to be written.
    pub(super) async fn complete(
        self,
        state: &AppState,
        about: &About,
        answer: WriteAnswer,
    ) -> Result<WriteAnswer, Problem> {
        let Some(timeout) = self.timeout else { return Ok(answer) };
        self.turn.give_back();
        // Revisions of nodes count only if they are of the store as it is now.
        state.store.look().await?;
        let deadline = Instant::now() + timeout;
        let mut watch = NodeWatch::new(&state.store);
        loop {
            let now = standing(&watch.nodes().await?, about, answer.revision);
            let settled = now.missing.iter().all(|missing| missing.refused_more > 0 || !missing.refused.is_empty());
            if now.missing.is_empty() {
                return Ok(WriteAnswer { applied: Some(now), ..answer });
            }
            if settled || Instant::now() >= deadline {
                return Err(not_applied(&answer, &now));
            }
            watch.news(deadline).await;
        }
    }
}

/// Looks at the nodes whenever one has said something. Many may at once: what one of them has read does for all.
pub(super) struct NodeWatch<'a> {
    store: &'a Store,
    applied: watch::Receiver<u64>,
    /// What was read since then is new enough.
    since: Instant,
}

impl<'a> NodeWatch<'a> {
    pub(super) fn new(store: &'a Store) -> Self {
        Self { store, applied: store.applied(), since: Instant::now() }
    }

    pub(super) async fn nodes(&self) -> Result<Arc<Vec<NodeRow>>, StoreError> {
        self.store.nodes_since(self.since).await
    }

    /// Waits until a node has said something, it is time to look anyway, or the deadline has come.
    pub(super) async fn news(&mut self, deadline: Instant) {
        let from = Instant::now();
        let look = deadline.min(from + LOOK);
        self.since = match timeout_at(look, self.applied.changed()).await {
            Ok(Ok(())) => Instant::now(),
            Ok(Err(_)) => {
                // Nobody is left who could tell.
                sleep_until(look).await;
                from
            }
            Err(_) => from,
        };
    }
}

/// How long nodes are waited for, as it is written.
pub(super) fn patience(timeout: Option<&str>) -> Result<Duration, Problem> {
    let Some(text) = timeout else { return Ok(USUAL) };
    let span: Span = text.parse().map_err(|why| Problem::bad_request(format!("timeout: {why}")))?;
    if span.get() > LONGEST {
        return Err(Problem::bad_request("timeout: write 60s at most"));
    }
    Ok(span.get())
}

impl Wait {
    /// The answer to a request that is repeated, which waits as the first one did.
    pub(super) async fn again(self, state: &AppState, about: &About, before: Remembered) -> Result<Response, Problem> {
        let Some(answer) = serde_json::from_str(&before.answer).ok().filter(|_| self.timeout.is_some()) else {
            return Ok(idempotency::again(before));
        };
        let applied = self.complete(state, about, answer).await?.applied;
        // What is answered may hold more than what was written.
        let mut answer: Map<String, Value> = serde_json::from_str(&before.answer).unwrap_or_default();
        answer.insert("applied".to_owned(), serde_json::to_value(applied).unwrap_or_default());
        let status = StatusCode::from_u16(before.status).unwrap_or(StatusCode::OK);
        Ok((status, axum::Json(answer)).into_response())
    }
}

/// The documents that a request says how they are to be, whether or not they were so before: what a node refuses of them is
/// not applied there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum About {
    /// This tenant.
    Tenant(Id),
    Tenants(HashSet<Id>),
    /// All there are. What stands beside the tenants is a part of each of them.
    Everything,
}

impl About {
    fn concerns(&self, refused: &Refused) -> bool {
        match (self, &refused.tenant) {
            (Self::Everything, _) => true,
            (Self::Tenant(one), Some(tenant)) => one == tenant,
            (Self::Tenants(all), Some(tenant)) => all.contains(tenant),
            (Self::Tenant(_) | Self::Tenants(_), None) => false,
        }
    }
}

/// Which of the nodes have it that are awaited: they have come to the revision, and refuse nothing of what it is about.
fn standing(nodes: &[NodeRow], about: &About, revision: u64) -> AppliedBy {
    let mut standing = AppliedBy::default();
    for node in nodes.iter().filter(|node| node.awaited) {
        let has = node.live && node.revision >= revision;
        let refused: Vec<Refused> = node.refused.iter().filter(|one| has && about.concerns(one)).cloned().collect();
        let refused_more = if has { node.refused_more } else { 0 };
        if has && refused.is_empty() && refused_more == 0 {
            standing.nodes.push(node.id.clone());
        } else {
            let NodeRow { id, live, revision, .. } = node;
            standing.missing.push(Missing {
                node: id.clone(),
                live: *live,
                revision: *revision,
                refused,
                refused_more,
            });
        }
    }
    standing
}

fn not_applied(answer: &WriteAnswer, standing: &AppliedBy) -> Problem {
    let names: Vec<&str> = standing.missing.iter().map(|missing| missing.node.as_str()).collect();
    Problem::new(Kind::NotApplied, format!("the change stands, and has not been applied by {}", names.join(", ")))
        .with("revision", answer.revision)
        .with("changed", serde_json::to_value(&answer.changed).unwrap_or_default())
        .with("applied", serde_json::to_value(standing).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::*;

    fn node(id: &str, live: bool, revision: u64, refused: &[&str]) -> NodeRow {
        let refused =
            refused.iter().map(|tenant| Refused { tenant: Some(tenant.parse().unwrap()), errors: Vec::new() });
        NodeRow {
            id: id.parse().unwrap(),
            live,
            awaited: live,
            run: Uuid::nil(),
            version: String::new(),
            region: None,
            zone: None,
            replica: None,
            connected_at: OffsetDateTime::UNIX_EPOCH,
            heard_at: OffsetDateTime::UNIX_EPOCH,
            revision,
            ready: true,
            draining: false,
            refused: refused.collect(),
            refused_more: 0,
            twin: false,
        }
    }

    #[test]
    fn what_stands_beside_the_tenants_is_a_part_of_each_and_of_none_alone() {
        let of = |tenant: Option<&str>| Refused { tenant: tenant.map(|id| id.parse().unwrap()), errors: Vec::new() };
        let id = |id: &str| id.parse::<Id>().unwrap();
        for (about, concerns) in [
            (About::Tenant(id("acme")), [true, false, false]),
            (About::Tenants([id("globex"), id("initech")].into()), [false, true, false]),
            (About::Everything, [true, true, true]),
        ] {
            let found = [Some("acme"), Some("globex"), None].map(|tenant| about.concerns(&of(tenant)));
            assert_eq!(found, concerns, "{about:?}");
        }
    }

    #[test]
    fn nodes_are_missing_that_are_behind_or_have_refused_what_was_written() {
        let nodes = [
            node("ahead", true, 9, &[]),
            node("behind", true, 6, &["acme"]),
            node("dead", false, 1, &[]),
            node("refused", true, 7, &["acme"]),
            node("refused-another", true, 7, &["globex"]),
        ];
        let about = About::Tenant("acme".parse().unwrap());
        let standing = standing(&nodes, &about, 7);
        assert_eq!(standing.nodes.iter().map(Id::as_str).collect::<Vec<_>>(), ["ahead", "refused-another"]);
        let missing: Vec<_> =
            standing.missing.iter().map(|missing| (missing.node.as_str(), missing.refused.len())).collect();
        assert_eq!(missing, [("behind", 0), ("refused", 1)]);
    }
}
