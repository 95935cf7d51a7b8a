//! `POST /import`: a file of tenants, as the gateway reads it.

use std::path::Path;

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use seiketsu_config::{
    load,
    tenant::{Tenant, TenantHead},
};
use serde::Deserialize;

use super::{
    AppState, Problem,
    body::{QueryOf, Yaml},
    caller::Caller,
    etag::{self, IfMatch},
    idempotency::{Key, kept},
    openapi::ConfigurationText,
    problem::{Kind, ProblemDocument},
    wait::{About, Wait, WaitFor, WriteAnswer},
};
use crate::store::{Answer, ChangeSet, Expected, HeadDocument, WriteError, Written};

#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct ImportQuery {
    /// Remove tenants that are not in the file.
    replace: bool,
    /// Only tell what would be changed.
    dry_run: bool,
    /// Kept with the revision.
    reason: Option<String>,
    /// `applied`: answer when all nodes have applied the change that are live or were a moment ago.
    #[param(inline)]
    wait: Option<WaitFor>,
    /// For how long: `500ms` to `60s`, usually `5s`.
    timeout: Option<String>,
}

/// The tenants of the file are added or replaced, all of them or none. So is what stands beside them, unless the file
/// has nothing beside its tenants and `replace` is not asked for. The file's own `revision` means nothing here.
#[utoipa::path(
    post, path = "/import", tag = "configuration", params(
        ImportQuery,
        ("If-Match" = Option<String>, Header, description = "Only if nothing was changed since the export with this ETag"),
        ("Idempotency-Key" = Option<String>, Header, description = "Makes it safe to repeat the request"),
    ),
    request_body(content = ConfigurationText, content_type = "application/yaml"),
    responses(
        (status = 200, description = "It is so", body = WriteAnswer, headers(("ETag" = String))),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn import_configuration(
    State(state): State<AppState>,
    caller: Caller,
    key: Key,
    IfMatch(expected): IfMatch,
    QueryOf(query): QueryOf<ImportQuery>,
    body: Yaml,
) -> Result<Response, Problem> {
    let wait = Wait::parse(&caller, query.wait, query.timeout.as_deref())?;
    let once = key.once(&body.0).filter(|_| !query.dry_run);
    let (head, put) = parse(body).await?;
    let has_head = query.replace || head != TenantHead { revision: head.revision, ..TenantHead::default() };
    let about =
        if has_head { About::Everything } else { About::Tenants(put.iter().map(|tenant| tenant.id.clone()).collect()) };
    let change = ChangeSet {
        head: has_head.then(|| HeadDocument::from(head)),
        put,
        remove_others: query.replace,
        reason: query.reason,
        own_hosts_only: false,
        dry_run: query.dry_run,
        ..ChangeSet::default()
    };
    let answer = |written: &Written| kept(StatusCode::OK, &WriteAnswer::from(written.clone()));
    let once = once.as_ref().map(|once| (once, &answer as Answer<'_>));
    let written = match state.store.write_once(&caller.author, change, expected.map(Expected::Newest), once).await {
        Ok(written) => written,
        Err(WriteError::Repeated(before)) => return wait.again(&state, &about, before).await,
        Err(error) => return Err(error.into()),
    };
    let answer = WriteAnswer { dry_run: query.dry_run, ..written.into() };
    if query.dry_run {
        return Ok(axum::Json(answer).into_response());
    }
    let answer = wait.complete(&state, &about, answer).await?;
    Ok(([(header::ETAG, etag::value(answer.revision))], axum::Json(answer)).into_response())
}

/// Reads and checks a file of tenants; off the threads that serve requests, since it may be large.
pub(super) async fn parse(body: Yaml) -> Result<(TenantHead, Vec<Tenant>), Problem> {
    // Paths in it are left as they are written.
    let read =
        move || load::tenants(body.as_str(), Path::new("body")).map(seiketsu_config::tenant::TenantFile::into_parts);
    match tokio::task::spawn_blocking(read).await {
        Ok(read) => Ok(read?),
        Err(_) => Err(Problem::new(Kind::Internal, "the file could not be read")),
    }
}
