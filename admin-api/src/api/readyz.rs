//! `GET /readyz`: whether requests can be answered.

use axum::extract::State;

use super::{AppState, Problem};

pub(super) async fn get(State(state): State<AppState>) -> Result<&'static str, Problem> {
    state.store.ping().await?;
    Ok("ready\n")
}
