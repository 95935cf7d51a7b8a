//! The HTTP interface. Operations stand in `operations`, each in a file of its own; what is around them is here.
//!
//! | request | answer |
//! |---|---|
//! | `/api/enterprise/…` | the operations, for operators with a token |
//! | `GET /api/enterprise/openapi.json`, `GET /docs` | their description, for programs and for people |
//! | `GET /livez` | 200 while the process runs |
//! | `GET /readyz` | 200 while the store answers |
//! | `GET /metrics` | Prometheus text |

// Handlers are async, whether they wait for anything or not.
#![allow(clippy::unused_async)]

mod body;
mod caller;
mod changes;
mod configure_gateway;
mod create_operator;
mod create_tenant;
mod create_token;
mod delete_operator;
mod delete_tenant;
mod delete_token;
mod diff_revisions;
mod docs;
mod etag;
mod export_audit;
mod export_configuration;
mod get_audit_key;
mod get_gateway_configuration;
mod get_gateway_health;
mod get_head;
mod get_node;
mod get_operator;
mod get_revision;
mod get_status;
mod get_tenant;
mod idempotency;
mod import_configuration;
mod limit;
mod list_audit;
mod list_nodes;
mod list_operators;
mod list_revisions;
mod list_tenants;
mod list_tokens;
mod livez;
mod metrics;
pub mod openapi;
pub(crate) mod operations;
mod page;
mod problem;
mod put_head;
mod put_limits;
mod put_operator;
mod put_tenant;
mod readyz;
pub(crate) mod refusals;
mod rollback;
mod rotate_secrets;
mod validate;
mod verify_audit;
mod wait;

use std::{sync::Arc, time::Instant};

use axum::{
    Router,
    extract::{Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use http::{HeaderName, HeaderValue, header};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

pub use self::problem::{Kind, Problem};
use self::{limit::Limiter, metrics::Metrics, refusals::Doorkeeper};
use crate::store::Store;

/// Where the operations are.
pub const BASE: &str = "/api/enterprise";

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What every request can get hold of.
#[derive(Debug, Clone)]
pub struct AppState {
    store: Store,
    metrics: Arc<Metrics>,
    /// Of each token.
    requests: Arc<Limiter<Uuid>>,
    /// Requests of each address without a token that holds, and what is kept of refusals.
    doorkeeper: Doorkeeper,
}

impl AppState {
    /// `per_second`: requests of one token. Of requests without one that holds, an address has a tenth.
    pub fn new(store: Store, per_second: u32) -> Self {
        let failures = per_second.div_ceil(10);
        Self {
            doorkeeper: Doorkeeper::new(store.clone(), Arc::new(Limiter::new(failures, failures.saturating_mul(5)))),
            store,
            metrics: Arc::new(Metrics::new()),
            requests: Arc::new(Limiter::new(per_second, per_second.saturating_mul(2))),
        }
    }

    /// For what else is measured in this process.
    pub fn registry(&self) -> &prometheus::Registry {
        self.metrics.registry()
    }

    pub(crate) fn doorkeeper(&self) -> Doorkeeper {
        self.doorkeeper.clone()
    }

    pub fn store(&self) -> &Store {
        &self.store
    }
}

/// The id of a request.
#[derive(Debug, Clone)]
struct RequestId(String);

/// Everything that is served.
pub fn router(state: AppState) -> Router {
    let (operations, _) = operations_router().split_for_parts();
    let operations = operations.route_layer(middleware::from_fn_with_state(state.clone(), caller::guard));
    Router::new()
        .merge(operations)
        .route(&format!("{BASE}/openapi.json"), get(openapi::get))
        .route("/docs", get(docs::get))
        .route("/docs/style.css", get(docs::style))
        .route("/livez", get(livez::get))
        .route("/readyz", get(readyz::get))
        .route("/metrics", get(metrics::get))
        .fallback(|| async { Problem::new(Kind::NotFound, "there is nothing here; /docs says what there is") })
        .method_not_allowed_fallback(|| async {
            Problem::new(Kind::MethodNotAllowed, "the path exists, and not with this method")
        })
        .layer(middleware::from_fn_with_state(state.clone(), around))
        .with_state(state)
}

/// The operations, with their description.
fn operations_router() -> OpenApiRouter<AppState> {
    let operations = OpenApiRouter::new()
        .routes(routes!(list_tenants::list_tenants, create_tenant::create_tenant))
        .routes(routes!(get_tenant::get_tenant, put_tenant::put_tenant, delete_tenant::delete_tenant))
        .routes(routes!(get_head::get_head, put_head::put_head))
        .routes(routes!(get_gateway_configuration::get_gateway_configuration, configure_gateway::configure_gateway))
        .routes(routes!(put_limits::put_limits))
        .routes(routes!(get_gateway_health::get_gateway_health))
        .routes(routes!(import_configuration::import_configuration))
        .routes(routes!(export_configuration::export_configuration))
        .routes(routes!(validate::validate))
        .routes(routes!(list_revisions::list_revisions))
        .routes(routes!(get_revision::get_revision))
        .routes(routes!(diff_revisions::diff_revisions))
        .routes(routes!(rollback::rollback))
        .routes(routes!(list_nodes::list_nodes))
        .routes(routes!(get_node::get_node))
        .routes(routes!(get_status::get_status))
        .routes(routes!(list_audit::list_audit))
        .routes(routes!(verify_audit::verify_audit))
        .routes(routes!(export_audit::export_audit))
        .routes(routes!(list_operators::list_operators, create_operator::create_operator))
        .routes(routes!(get_operator::get_operator, put_operator::put_operator, delete_operator::delete_operator))
        .routes(routes!(list_tokens::list_tokens, create_token::create_token))
        .routes(routes!(delete_token::delete_token))
        .routes(routes!(rotate_secrets::rotate_secrets))
        .routes(routes!(get_audit_key::get_audit_key));
    OpenApiRouter::new().nest(BASE, operations)
}

/// Around every request: its id, the form of errors, what browsers may not do, and what is counted.
async fn around(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let start = Instant::now();
    let id = Uuid::now_v7().to_string();
    request.extensions_mut().insert(RequestId(id.clone()));
    let operation = metrics::operation(&request);
    // In a task of its own: a fault in one request ends that request only, and one whose client goes away is finished.
    let mut response = match tokio::spawn(next.run(request)).await {
        Ok(response) => response,
        Err(error) => {
            tracing::error!(request = id, %error, "a request ended in a fault");
            Problem::new(Kind::Internal, "the log of the control plane says more under the request's id")
                .into_response()
        }
    };
    problem::render(&mut response, &id);
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::try_from(&id) {
        headers.insert(X_REQUEST_ID, id);
    }
    for (name, value) in SECURITY {
        headers.entry(name).or_insert(value);
    }
    state.metrics.observe(operation, response.status(), start.elapsed());
    response
}

/// Answers are for the caller alone, and pages of other sites can do nothing with them.
const SECURITY: [(HeaderName, HeaderValue); 6] = [
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; style-src 'self'; frame-ancestors 'none'; base-uri 'none'"),
    ),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
];
