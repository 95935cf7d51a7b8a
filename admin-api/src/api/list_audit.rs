//! `GET /audit`: who did what.

use axum::{Json, extract::State};
use seiketsu_config::values::Id;
use serde::Deserialize;

use super::{
    AppState, Problem,
    body::QueryOf,
    caller::Caller,
    page::{self, Page},
    problem::{Kind, ProblemDocument},
};
use crate::store::audit::{AuditFilter, AuditRow};

#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct AuditQuery {
    /// `next` of the page before.
    cursor: Option<String>,
    /// How many at most: 1 to 1000, usually 100.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u64>,
    /// The operator who did it.
    actor: Option<String>,
    /// The operation, as in `put_tenant`.
    action: Option<String>,
    /// The only tenant that it was about. Operators of some tenants have to name one of them.
    #[param(value_type = Option<String>)]
    tenant: Option<Id>,
}

/// Entries, the newest first.
#[utoipa::path(
    get, path = "/audit", tag = "audit", params(AuditQuery),
    responses(
        (status = 200, description = "A page of entries", body = Page<AuditRow>),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list_audit(
    State(state): State<AppState>,
    caller: Caller,
    QueryOf(query): QueryOf<AuditQuery>,
) -> Result<Json<Page<AuditRow>>, Problem> {
    match &query.tenant {
        Some(tenant) => caller.may_touch(tenant)?,
        None if caller.operator.tenants.is_none() => {}
        None => return Err(Problem::new(Kind::Forbidden, "name one of the operator's tenants: ?tenant=…")),
    }
    let limit = page::limit(query.limit)?;
    let before = page::after(query.cursor.as_deref())?;
    let tenant = query.tenant.map(|tenant| tenant.to_string());
    let filter = AuditFilter { actor: query.actor, action: query.action, tenant };
    let rows = state.store.audit(&filter, before, limit + 1).await?;
    Ok(Json(Page::of(rows, limit, |row| row.number.to_string(), |row| row)))
}
