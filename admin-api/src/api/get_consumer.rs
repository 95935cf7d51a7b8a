//! `GET /tenants/{id}/consumers/{consumer}`: one caller that a tenant knows.

use axum::{Json, extract::State};

use super::{AppState, Problem, caller::Caller, part::PartOf, problem::ProblemDocument};
use crate::store::{Seen, consumers::ConsumerRow};

/// One caller. Its keys stand in the list of keys.
#[utoipa::path(
    get, path = "/tenants/{id}/consumers/{consumer}", tag = "consumers", params(
        ("id" = String, Path, description = "The tenant's name"),
        ("consumer" = String, Path, description = "The consumer's name"),
    ),
    responses(
        (status = 200, description = "The consumer", body = ConsumerRow),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn get_consumer(
    State(state): State<AppState>,
    caller: Caller,
    part: PartOf,
) -> Result<Json<ConsumerRow>, Problem> {
    caller.may_touch(&part.tenant)?;
    let seen = Seen { most: 1, tenant: Some(&part.tenant), ..Seen::default() };
    let found = state.store.consumers(seen, Some(&part.name)).await?.pop();
    Ok(Json(found.ok_or_else(|| part.missing("consumer"))?))
}
