//! `GET /export`: all tenants as one file, as the gateway reads it.

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderValue, header};
use seiketsu_config::values::Id;
use serde::Serialize;

use super::{AppState, Problem, caller::Caller, etag, openapi::ConfigurationText, problem::ProblemDocument};
use crate::store::{Changes, StoreError, StoredDocument, audit::Entry};

/// Secrets are references and hashes: nothing has to be masked.
#[utoipa::path(
    get, path = "/export", tag = "configuration",
    responses(
        (status = 200, description = "The file", body = ConfigurationText, content_type = "application/yaml", headers(("ETag" = String))),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn export_configuration(State(state): State<AppState>, caller: Caller) -> Result<Response, Problem> {
    let Changes { to, head, put, .. } = state.store.whole().await?;
    let head = head.map(|head| head.parse_head()).transpose()?.unwrap_or_default();
    let mut start = format!("revision: {}\n", to.revision);
    start.push_str(&yaml(&head, "the head")?);
    start.push_str(if put.is_empty() { "tenants: []\n" } else { "tenants:\n" });
    let entry = Entry::done().with("tenants", put.len()).with("revision", to.revision);
    state.store.record(&caller.author, entry).await?;

    // Tenant by tenant, while it is sent: all of them as text would be as much again.
    let tenants = put.into_iter().map(|stored| tenant(&stored));
    let parts = std::iter::once(Ok(Bytes::from(start))).chain(tenants);
    let body = Body::from_stream(futures::stream::iter(parts));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/yaml")),
        (header::ETAG, etag::value(to.revision)),
    ];
    Ok((headers, body).into_response())
}

fn tenant(stored: &StoredDocument) -> Result<Bytes, StoreError> {
    let name = stored.tenant.as_ref().map_or("", Id::as_str);
    let item = yaml(&[stored.parse()?], name)?;
    // A list within a map may stand where the map stands.
    Ok(item.into())
}

fn yaml(value: &impl Serialize, what: &str) -> Result<String, StoreError> {
    serde_saphyr::to_string(value).map_err(|why| StoreError::corrupt(what, &why))
}
