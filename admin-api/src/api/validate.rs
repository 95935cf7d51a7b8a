//! `POST /validate`: what is wrong with a file of tenants, if anything is.

use axum::Json;
use serde::Serialize;
use utoipa::ToSchema;

use super::{Problem, body::Yaml, import_configuration, openapi::ConfigurationText, problem::ProblemDocument};

/// Nothing is wrong.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Valid {
    tenants: usize,
    plans: usize,
    upstreams: usize,
}

/// Reads and checks a file as `import` does, for itself alone. Nothing is changed.
#[utoipa::path(
    post, path = "/validate", tag = "configuration",
    request_body(content = ConfigurationText, content_type = "application/yaml"),
    responses(
        (status = 200, description = "Nothing is wrong with it", body = Valid),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn validate(body: Yaml) -> Result<Json<Valid>, Problem> {
    let (head, tenants) = import_configuration::parse(body).await?;
    Ok(Json(Valid { tenants: tenants.len(), plans: head.plans.len(), upstreams: head.upstreams.len() }))
}
