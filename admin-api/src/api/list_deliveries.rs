//! `GET /webhooks/{id}/deliveries`: what was told, and how that went.

use axum::{Json, extract::State};
use serde::Deserialize;
use uuid::Uuid;

use super::{
    AppState, Problem,
    body::{PathOf, QueryOf},
    caller::Caller,
    page::{self, Page},
    problem::ProblemDocument,
    webhook_body::webhook,
};
use crate::store::deliveries::{Delivery, DeliveryState};

#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct DeliveriesQuery {
    /// `next` of the page before.
    cursor: Option<String>,
    /// How many at most: 1 to 1000, usually 100.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u64>,
    /// `dead`: those that were tried for the last time.
    #[param(inline)]
    state: Option<DeliveryState>,
}

/// Deliveries, the newest first. They are kept for seven days.
#[utoipa::path(
    get, path = "/webhooks/{id}/deliveries", tag = "webhooks",
    params(("id" = Uuid, Path, description = "The webhook's id"), DeliveriesQuery),
    responses(
        (status = 200, description = "A page of deliveries", body = Page<Delivery>),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list_deliveries(
    State(state): State<AppState>,
    caller: Caller,
    PathOf(id): PathOf<Uuid>,
    QueryOf(query): QueryOf<DeliveriesQuery>,
) -> Result<Json<Page<Delivery>>, Problem> {
    webhook(&state, &caller, id).await?;
    let limit = page::limit(query.limit)?;
    let before = page::after(query.cursor.as_deref())?;
    let rows = state.store.deliveries(id, query.state, before, limit + 1).await?;
    Ok(Json(Page::of(rows, limit, |row| row.id.to_string(), |row| row)))
}
