//! `GET /nodes/{id}`: one gateway node.

use axum::{Json, extract::State};
use seiketsu_config::values::Id;

use super::{AppState, Problem, body::PathOf, problem::ProblemDocument};
use crate::store::nodes::NodeRow;

/// A node, as it was last heard of.
#[utoipa::path(
    get, path = "/nodes/{id}", tag = "nodes", params(("id" = String, Path, description = "The node's name")),
    responses(
        (status = 200, description = "The node", body = NodeRow),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn get_node(State(state): State<AppState>, PathOf(id): PathOf<Id>) -> Result<Json<NodeRow>, Problem> {
    state.store.node(&id).await?.map(Json).ok_or_else(|| Problem::not_found(&format!("node {id}")))
}
