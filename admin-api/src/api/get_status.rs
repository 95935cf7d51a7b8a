//! `GET /status`: how everything is, as far as it is built. Dashboards ask this.

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    AppState, Problem,
    caller::Caller,
    get_gateway_health::{GatewayHealth, health},
    problem::ProblemDocument,
};

/// How everything is.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Status {
    version: &'static str,
    /// Which store the control plane has.
    store: Uuid,
    revision: u64,
    /// Those that the operator may see.
    tenants: u64,
    gateway: GatewayHealth,
}

/// How everything is.
#[utoipa::path(
    get, path = "/status", tag = "gateway",
    responses(
        (status = 200, description = "How everything is", body = Status),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn get_status(State(state): State<AppState>, caller: Caller) -> Result<Json<Status>, Problem> {
    let tenants = state.store.count_tenants(caller.operator.tenants.as_ref()).await?;
    let nodes = state.store.nodes().await?;
    let revision = *state.store.newest().borrow();
    let gateway = health(nodes, revision, &caller);
    Ok(Json(Status { version: env!("CARGO_PKG_VERSION"), store: state.store.id(), revision, tenants, gateway }))
}
