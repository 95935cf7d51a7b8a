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

mod acknowledge_alert;
mod alert_rule_body;
mod answers;
mod body;
mod caller;
mod changes;
mod configure_gateway;
mod create_alert_rule;
mod create_consumer;
mod create_key;
mod create_operator;
mod create_siem_sink;
mod create_tenant;
mod create_token;
mod create_webhook;
mod delete_alert_rule;
mod delete_consumer;
mod delete_key;
mod delete_node;
mod delete_operator;
mod delete_route;
mod delete_service;
mod delete_siem_sink;
mod delete_tenant;
mod delete_token;
mod delete_webhook;
mod diff_revisions;
mod docs;
mod etag;
mod export_audit;
mod export_configuration;
mod export_usage;
mod follow_events;
mod follow_events_socket;
mod get_alert_rule;
mod get_analytics;
mod get_audit_key;
mod get_consumer;
mod get_gateway_configuration;
mod get_gateway_health;
mod get_head;
mod get_key;
mod get_node;
mod get_operator;
mod get_revision;
mod get_route;
mod get_service;
mod get_siem_sink;
mod get_status;
mod get_tenant;
mod get_warming;
mod get_webhook;
mod idempotency;
mod import_configuration;
mod list_alert_rules;
mod list_alerts;
mod list_audit;
mod list_consumers;
mod list_deliveries;
mod list_keys;
mod list_nodes;
mod list_objectives;
mod list_operators;
mod list_performance;
mod list_revisions;
mod list_routes;
mod list_services;
mod list_siem_sinks;
mod list_tenants;
mod list_tokens;
mod list_usage;
mod list_webhooks;
mod live;
mod livez;
mod made_key;
mod metrics;
pub mod openapi;
pub(crate) mod operations;
mod page;
mod part;
mod problem;
mod purge_cache;
mod put_alert_rule;
mod put_head;
mod put_limits;
mod put_operator;
mod put_route;
mod put_service;
mod put_siem_sink;
mod put_tenant;
mod put_webhook;
mod readyz;
pub(crate) mod refusals;
mod replay_delivery;
mod rollback;
mod rotate_key;
mod rotate_secrets;
mod rotate_webhook_secret;
mod siem_sink_body;
mod span;
mod test_webhook;
mod turns;
mod unknown_tokens;
mod validate;
mod verify_audit;
mod wait;
mod warm_cache;
mod webhook_body;

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
use self::{metrics::Metrics, refusals::Doorkeeper};
use crate::{
    limit::Limiter,
    outbound::Outbound,
    store::{Store, performance::Objectives},
};

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
    /// What performance is measured by.
    objectives: Objectives,
    streams: Arc<live::Streams>,
    turns: Arc<turns::Turns>,
    outbound: Outbound,
}

impl AppState {
    /// `per_second`: requests of one token. Of requests without one that holds, an address has a tenth.
    pub fn new(store: Store, outbound: Outbound, per_second: u32, objectives: Objectives) -> Self {
        let failures = per_second.div_ceil(10);
        Self {
            doorkeeper: Doorkeeper::new(store.clone(), Arc::new(Limiter::new(failures, failures.saturating_mul(5)))),
            store,
            metrics: Arc::new(Metrics::new()),
            requests: Arc::new(Limiter::new(per_second, per_second.saturating_mul(2))),
            objectives,
            streams: Arc::default(),
            turns: Arc::default(),
            outbound,
        }
    }

    /// For what else is measured in this process.
    pub fn registry(&self) -> &prometheus::Registry {
        self.metrics.registry()
    }

    /// Ends what would go on for ever, as the process is to end.
    pub fn end_streams(&self) {
        self.streams.close();
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
        .routes(routes!(get_node::get_node, delete_node::delete_node))
        .routes(routes!(get_status::get_status))
        .routes(routes!(list_audit::list_audit))
        .routes(routes!(verify_audit::verify_audit))
        .routes(routes!(export_audit::export_audit))
        .routes(routes!(list_operators::list_operators, create_operator::create_operator))
        .routes(routes!(get_operator::get_operator, put_operator::put_operator, delete_operator::delete_operator))
        .routes(routes!(list_tokens::list_tokens, create_token::create_token))
        .routes(routes!(delete_token::delete_token))
        .routes(routes!(list_services::list_services))
        .routes(routes!(get_service::get_service, put_service::put_service, delete_service::delete_service))
        .routes(routes!(list_routes::list_routes))
        .routes(routes!(get_route::get_route, put_route::put_route, delete_route::delete_route))
        .routes(routes!(list_consumers::list_consumers, create_consumer::create_consumer))
        .routes(routes!(get_consumer::get_consumer, delete_consumer::delete_consumer))
        .routes(routes!(list_keys::list_keys, create_key::create_key))
        .routes(routes!(get_key::get_key, delete_key::delete_key))
        .routes(routes!(rotate_key::rotate_key))
        .routes(routes!(purge_cache::purge_cache))
        .routes(routes!(warm_cache::warm_cache))
        .routes(routes!(get_warming::get_warming))
        .routes(routes!(get_analytics::get_analytics))
        .routes(routes!(list_usage::list_usage))
        .routes(routes!(export_usage::export_usage))
        .routes(routes!(list_performance::list_performance))
        .routes(routes!(list_objectives::list_objectives))
        .routes(routes!(follow_events::follow_events))
        .routes(routes!(follow_events_socket::follow_events_socket))
        .routes(routes!(list_alerts::list_alerts))
        .routes(routes!(acknowledge_alert::acknowledge_alert))
        .routes(routes!(list_alert_rules::list_alert_rules, create_alert_rule::create_alert_rule))
        .routes(routes!(
            get_alert_rule::get_alert_rule,
            put_alert_rule::put_alert_rule,
            delete_alert_rule::delete_alert_rule
        ))
        .routes(routes!(rotate_secrets::rotate_secrets))
        .routes(routes!(get_audit_key::get_audit_key))
        .routes(routes!(list_webhooks::list_webhooks, create_webhook::create_webhook))
        .routes(routes!(get_webhook::get_webhook, put_webhook::put_webhook, delete_webhook::delete_webhook))
        .routes(routes!(rotate_webhook_secret::rotate_webhook_secret))
        .routes(routes!(test_webhook::test_webhook))
        .routes(routes!(list_deliveries::list_deliveries))
        .routes(routes!(replay_delivery::replay_delivery))
        .routes(routes!(list_siem_sinks::list_siem_sinks, create_siem_sink::create_siem_sink))
        .routes(routes!(
            get_siem_sink::get_siem_sink,
            put_siem_sink::put_siem_sink,
            delete_siem_sink::delete_siem_sink
        ));
    OpenApiRouter::new().nest(BASE, operations)
}

/// Around every request: its id, the form of errors, what browsers may not do, and what is counted.
async fn around(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let start = Instant::now();
    let id = Uuid::now_v7().to_string();
    request.extensions_mut().insert(RequestId(id.clone()));
    let operation = metrics::operation(&request);
    let is_coded = request.headers().contains_key(header::TRANSFER_ENCODING);
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
    if is_coded {
        // A length may have been sent too, by which a proxy in front could see another end of the body, and another request
        // behind it (RFC 9112 §6.3).
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
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
