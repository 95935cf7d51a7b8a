//! `GET /nodes`: the gateway nodes.

use axum::{Json, extract::State};

use super::{
    AppState, Problem,
    body::QueryOf,
    page::{self, Page, PageQuery},
    problem::ProblemDocument,
};
use crate::store::nodes::NodeRow;

/// Documents that a node refuses, of each in the list. The node itself tells more of them.
const MOST_REFUSED: usize = 20;

/// Nodes that were heard of in the last days, in the order of their names, each with some of what it refuses.
#[utoipa::path(
    get, path = "/nodes", tag = "nodes", params(PageQuery),
    responses(
        (status = 200, description = "A page of nodes", body = Page<NodeRow>),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list_nodes(
    State(state): State<AppState>,
    QueryOf(query): QueryOf<PageQuery>,
) -> Result<Json<Page<NodeRow>>, Problem> {
    let limit = page::limit(query.limit)?;
    let rows = state.store.nodes_after(page::after(query.cursor.as_deref())?.as_ref(), limit + 1).await?;
    Ok(Json(Page::of(rows, limit, |row| row.id.to_string(), shortened)))
}

fn shortened(mut node: NodeRow) -> NodeRow {
    node.refused_more += node.refused.len().saturating_sub(MOST_REFUSED) as u64;
    node.refused.truncate(MOST_REFUSED);
    node
}
