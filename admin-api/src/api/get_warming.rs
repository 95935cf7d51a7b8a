//! `GET /cache/warm/{id}`: how far the nodes are with a list of URLs.

use axum::{Json, extract::State};
use seiketsu_config::{
    push::{Task, Warmed},
    values::Id,
};
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{AppState, Problem, body::PathOf, caller::Caller, problem::ProblemDocument};
use crate::store::{
    nodes::NodeRow,
    orders::{AnswerRow, OrderRow},
};

/// How far a list is.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Warming {
    id: Uuid,
    #[schema(value_type = String)]
    tenant: Id,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    at: OffsetDateTime,
    urls: usize,
    /// Nothing more is to come of any node.
    done: bool,
    nodes: Vec<NodeWarming>,
}

/// How far a node is with it.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct NodeWarming {
    #[schema(value_type = String)]
    node: Id,
    state: WarmingState,
    stored: u64,
    /// Answered, but not to be stored.
    not_stored: u64,
    /// Not answered, with an error of the origin, or on no route with a cache.
    failed: u64,
    /// Why it was not begun.
    error: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum WarmingState {
    /// It has not answered yet.
    Told,
    Running,
    Done,
    Refused,
    /// It went away, or came, while the list was being fetched: what became of it is not known.
    Away,
}

/// How far each node is. Kept for a day.
#[utoipa::path(
    get, path = "/cache/warm/{id}", tag = "cache", params(("id" = Uuid, Path, description = "As it was answered")),
    responses(
        (status = 200, description = "How far it is", body = Warming),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn get_warming(
    State(state): State<AppState>,
    caller: Caller,
    PathOf(id): PathOf<Uuid>,
) -> Result<Json<Warming>, Problem> {
    let missing = || Problem::not_found("list of URLs");
    let order = state.store.order(id).await?.ok_or_else(missing)?;
    let Task::Warm { urls, .. } = &order.order.task else { return Err(missing()) };
    caller.may_touch(&order.tenant)?;
    let nodes = standing(&state.store.nodes().await?, &order, &state.store.order_answers(id).await?);
    let done = nodes.iter().all(|node| !matches!(node.state, WarmingState::Told | WarmingState::Running));
    Ok(Json(Warming { id, tenant: order.tenant, at: order.at, urls: urls.len(), done, nodes }))
}

fn standing(nodes: &[NodeRow], order: &OrderRow, answers: &[AnswerRow]) -> Vec<NodeWarming> {
    let mut standing = Vec::new();
    for node in nodes {
        let answer = answers.iter().find(|answer| answer.node == node.id);
        // Whoever connected afterwards was not told, or cannot be heard of it any more.
        let stayed = node.live && node.connected_at <= order.at;
        let state = match answer {
            Some(AnswerRow { carried, .. }) if carried.error.is_some() => WarmingState::Refused,
            Some(AnswerRow { carried, .. }) if carried.done => WarmingState::Done,
            Some(_) if stayed => WarmingState::Running,
            None if stayed => WarmingState::Told,
            Some(_) => WarmingState::Away,
            None => continue,
        };
        let Warmed { total: _, stored, not_stored, failed } =
            answer.and_then(|answer| answer.carried.warmed).unwrap_or_default();
        let error = answer.and_then(|answer| answer.carried.error.clone());
        standing.push(NodeWarming { node: node.id.clone(), state, stored, not_stored, failed, error });
    }
    standing
}
