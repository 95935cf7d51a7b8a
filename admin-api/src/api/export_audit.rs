//! `GET /audit/export`: the whole trail, as JSON lines.

use std::collections::HashMap;

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::header;
use serde_json::json;

use super::{AppState, Problem, caller::Caller, problem::ProblemDocument};
use crate::store::{StoreError, audit::Entry, seals::Seal};

/// Every entry, the oldest first, one in each line, and the seals between them, as `{"seal": …}`. That it was exported is the
/// last entry, and it is sealed.
#[utoipa::path(
    get, path = "/audit/export", tag = "audit",
    responses(
        (status = 200, description = "The trail", body = String, content_type = "application/jsonl"),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn export_audit(State(state): State<AppState>, caller: Caller) -> Result<Response, Problem> {
    state.store.record_and_seal(&caller.author, Entry::done()).await?;
    let lines = futures::stream::unfold((state, 0), |(state, after)| async move {
        let rows = match state.store.audit_after(after).await {
            Ok(rows) => rows,
            // The body breaks off, and the client sees that it does.
            Err(error) => return Some((Err(error), (state, u64::MAX))),
        };
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
