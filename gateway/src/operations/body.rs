//! Bodies of requests.

use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::{Answer, respond};
use crate::respond::problem::ProblemKind;

const TIMEOUT: Duration = Duration::from_secs(10);

/// Reads a JSON document of at most so many bytes, or says what is wrong with it.
pub(super) async fn json<T: DeserializeOwned>(body: Incoming, most: usize) -> Result<T, Answer> {
    let Ok(body) = timeout(TIMEOUT, Limited::new(body, most).collect()).await else {
        return Err(respond::problem(ProblemKind::RequestTimeout, ""));
    };
    let Ok(body) = body else {
        return Err(respond::problem(ProblemKind::PayloadTooLarge, format!("The body has at most {most} bytes.")));
    };
    serde_json::from_slice(&body.to_bytes())
        .map_err(|error| respond::problem(ProblemKind::BadRequest, format!("The body cannot be read: {error}.")))
}
