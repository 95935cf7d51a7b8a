//! `GET /nodes`: the gateway nodes.

use axum::{Json, extract::State};

use super::{AppState, Problem, page::Page, problem::ProblemDocument};
use crate::store::nodes::NodeRow;

/// All nodes that were heard of in the last days, in the order of their names.
#[utoipa::path(
    get, path = "/nodes", tag = "nodes",
    responses(
        (status = 200, description = "The nodes", body = Page<NodeRow>),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list_nodes(State(state): State<AppState>) -> Result<Json<Page<NodeRow>>, Problem> {
    Ok(Json(Page { items: state.store.nodes().await?, next: None }))
}
