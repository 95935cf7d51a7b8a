//! `POST /usage/taken?through=…`: whoever asks has stored all records up to this one, and the node may forget them.

use http::StatusCode;
use serde_json::json;
use url::form_urlencoded;

use super::{Answer, OperationsState, respond, usage::refused};
use crate::{
    respond::problem::ProblemKind,
    telemetry::usage::{Cursor, TakeoverError},
};

pub(super) async fn post(state: &OperationsState, query: Option<&str>) -> Answer {
    let through = match through(query.unwrap_or_default()) {
        Ok(through) => through,
        Err(detail) => return respond::problem(ProblemKind::BadRequest, detail),
    };
    let usage = state.usage.clone();
    let taken = tokio::task::spawn_blocking(move || usage.take(&through)).await;
    match taken.unwrap_or_else(|error| Err(TakeoverError::Io(error.into()))) {
        Ok(taken) => respond::json(StatusCode::OK, &json!({ "taken": taken })),
        Err(error) => refused(&error),
    }
}

fn through(query: &str) -> Result<Cursor, String> {
    let mut through = None;
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if name != "through" {
            return Err("The parameter is `through`.".to_owned());
        }
        through = Some(value.parse().map_err(|error| format!("`through`: {error}."))?);
    }
    through.ok_or_else(|| "Add `through`: `next` of the answer whose records are stored.".to_owned())
}
