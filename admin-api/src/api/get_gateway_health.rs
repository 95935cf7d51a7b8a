//! `GET /gateway/health`: how the gateways are.

use axum::{Json, extract::State};
use seiketsu_config::{push::Refused, values::Id};
use serde::Serialize;
use utoipa::ToSchema;

use super::{AppState, Problem, caller::Caller, problem::ProblemDocument};
use crate::store::nodes::NodeRow;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum HealthStatus {
    Healthy,
    /// A node is away, behind, not ready, or has refused something.
    Warning,
    /// No node serves.
    Critical,
}

/// How the gateways are.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct GatewayHealth {
    status: HealthStatus,
    /// What the nodes are to have.
    revision: u64,
    live: usize,
    ready: usize,
    nodes: Vec<NodeHealth>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct NodeHealth {
    #[schema(value_type = String)]
    id: Id,
    live: bool,
    ready: bool,
    draining: bool,
    revision: u64,
    /// It has not applied the newest revision yet.
    behind: bool,
    /// Documents of tenants that the operator may see, and of the head.
    #[schema(value_type = Vec<Object>)]
    refused: Vec<Refused>,
}

/// How the gateways are, and what they run.
#[utoipa::path(
    get, path = "/gateway/health", tag = "gateway",
    responses(
        (status = 200, description = "How they are", body = GatewayHealth),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn get_gateway_health(
    State(state): State<AppState>,
    caller: Caller,
) -> Result<Json<GatewayHealth>, Problem> {
    let nodes = state.store.nodes().await?;
    let revision = *state.store.newest().borrow();
    Ok(Json(health(nodes, revision, &caller)))
}

pub(super) fn health(nodes: Vec<NodeRow>, revision: u64, caller: &Caller) -> GatewayHealth {
    let may_see = |refused: &Refused| match &refused.tenant {
        Some(tenant) => caller.may_touch(tenant).is_ok(),
        None => true,
    };
    let nodes: Vec<NodeHealth> = nodes
        .into_iter()
        .map(|node| NodeHealth {
            live: node.live,
            ready: node.live && node.ready,
            draining: node.draining,
            revision: node.revision,
            behind: node.revision < revision,
            refused: node.refused.into_iter().filter(may_see).collect(),
            id: node.id,
        })
        .collect();
    let count = |is: fn(&NodeHealth) -> bool| nodes.iter().filter(|node| is(node)).count();
    let (live, ready) = (count(|node| node.live), count(|node| node.ready));
    let troubled = count(|node| !node.ready || node.draining || node.behind || !node.refused.is_empty());
    let status = match (ready, troubled) {
        (0, _) => HealthStatus::Critical,
        (_, 0) => HealthStatus::Healthy,
        _ => HealthStatus::Warning,
    };
    GatewayHealth { status, revision, live, ready, nodes }
}
