//! `GET /audit/export`: the whole trail, as JSON lines.

use std::collections::HashMap;

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::header;
use serde::Deserialize;
use serde_json::json;

use super::{AppState, Problem, body::QueryOf, caller::Caller, problem::ProblemDocument};
use crate::store::{StoreError, audit::Entry, seals::Seal};

#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct ExportAuditQuery {
    /// The number of an entry: begin behind it. To go on where an answer broke off.
    #[param(value_type = Option<u64>)]
    after: u64,
}

/// Every entry, the oldest first, one in each line, and the seals between them, as `{"seal": …}`. That it was exported is the
/// last entry, and it is sealed. An answer without that end broke off: it has to be taken within ten minutes.
#[utoipa::path(
    get, path = "/audit/export", tag = "audit", params(ExportAuditQuery),
    responses(
        (status = 200, description = "The trail", body = String, content_type = "application/jsonl"),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn export_audit(
    State(state): State<AppState>,
    caller: Caller,
    QueryOf(query): QueryOf<ExportAuditQuery>,
) -> Result<Response, Problem> {
    if i64::try_from(query.after).is_err() {
        return Err(Problem::bad_request("after: write the number of an entry, or 0 for the whole trail"));
    }
    let entry = Entry::done();
    let entry = if query.after > 0 { entry.with("after", query.after) } else { entry };
    let upto = state.store.record_and_seal(&caller.author, entry).await?;
    let lines = futures::stream::unfold((state, query.after), move |(state, after)| async move {
        let rows = match state.store.audit_after(after).await {
            Ok(rows) => rows,
            // The body breaks off, and the client sees that it does.
            Err(error) => return Some((Err(error), (state, u64::MAX))),
        };
        // What came behind its own entry is for the next export.
        let rows: Vec<_> = rows.into_iter().filter(|row| row.number <= upto).collect();
        let last = rows.last()?.number;
        let seals = match state.store.seals(after, last).await {
            Ok(seals) => seals,
            Err(error) => return Some((Err(error), (state, u64::MAX))),
        };
        let seals: HashMap<u64, Seal> = seals.into_iter().map(|seal| (seal.number, seal)).collect();
        let mut text = Vec::new();
        for row in &rows {
            let _ = serde_json::to_writer(&mut text, row);
            text.push(b'\n');
            if let Some(seal) = seals.get(&row.number) {
                let _ = serde_json::to_writer(&mut text, &json!({ "seal": seal }));
                text.push(b'\n');
            }
        }
        Some((Ok::<_, StoreError>(Bytes::from(text)), (state, last)))
    });
    Ok(([(header::CONTENT_TYPE, "application/jsonl")], Body::from_stream(lines)).into_response())
}
