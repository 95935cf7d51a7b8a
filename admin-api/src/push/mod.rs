//! The control plane's end of [`seiketsu_config::push`]: nodes connect here, and are sent every change as soon as this
//! replica knows of it.
//!
//! Each node has a `session`, which follows the store's newest revision by itself. What it sends comes from
//! `updates`, where that which several nodes lack is read, written and compressed once. `seats` knows which
//! connection is the node's.

mod metrics;
mod seats;
mod session;
mod updates;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    Extension, Router,
    extract::{ConnectInfo, State, WebSocketUpgrade, ws::rejection::WebSocketUpgradeRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::any,
};
use prometheus::Registry;
use secrecy::SecretString;
use seiketsu_config::push;
use serde_json::json;
use tokio::{sync::watch, time::timeout};
use uuid::Uuid;

use self::{metrics::Metrics, seats::Seats, updates::Updates};
use crate::{
    api::{Kind, refusals::Doorkeeper},
    store::{Author, Store, audit::Entry},
};

/// The largest message of a node, as it comes over the connection: room for errors of very many tenants.
const MOST_RECEIVED_BYTES: usize = 16 << 20;

/// How long connections may take to end when the process does.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// All nodes that are connected to this replica.
#[derive(Clone)]
pub struct Hub(Arc<Shared>);

struct Shared {
    store: Store,
    doorkeeper: Doorkeeper,
    /// This process, as the store knows it.
    replica: Uuid,
    metrics: Metrics,
    updates: Updates,
    seats: Seats,
    draining: watch::Sender<bool>,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("replica", &self.0.replica).finish_non_exhaustive()
    }
}

impl Hub {
    /// Its metrics go to `registry`.
    pub(crate) fn new(store: Store, registry: &Registry, doorkeeper: Doorkeeper) -> prometheus::Result<Self> {
        let metrics = Metrics::new(registry)?;
        Ok(Self(Arc::new(Shared {
            updates: Updates::new(store.clone(), metrics.prepared.clone()),
            store,
            doorkeeper,
            replica: Uuid::now_v7(),
            metrics,
            seats: Seats::default(),
            draining: watch::Sender::new(false),
        })))
    }

    /// Where nodes connect.
    pub fn router(&self) -> Router {
        Router::new().route(push::SUBSCRIBE_PATH, any(subscribe)).with_state(self.clone())
    }

    /// Tells all nodes that this replica ends, and waits for their connections to be closed.
    pub async fn drain(&self) {
        self.0.draining.send_replace(true);
        if timeout(DRAIN_TIMEOUT, self.0.seats.all_left()).await.is_err() {
            tracing::warn!("nodes are cut off that do not close their connections");
        }
    }
}

async fn subscribe(
    State(hub): State<Hub>,
    peer: Option<Extension<ConnectInfo<SocketAddr>>>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let address = peer.map(|Extension(ConnectInfo(peer))| peer.ip());
    // Whoever tries tokens is slowed down before the store is asked.
    if let Err(seconds) = hub.0.doorkeeper.may_try(address.unwrap_or(IpAddr::from([0, 0, 0, 0]))) {
        return too_many(seconds);
    }
    let Some(token) = bearer(&headers) else {
        return turned_away(&hub, address, "a node shows its token: Authorization: Bearer …").await;
    };
    match hub.0.store.node_token(&token).await {
        Ok(Some(_)) => {}
        Ok(None) => return turned_away(&hub, address, "the token is not that of a node, or is revoked").await,
        Err(error) => {
            tracing::error!(%error, "cannot look up the token of a node");
            return refuse(Kind::Unavailable, "the store cannot be reached; try again");
        }
    }
    if *hub.0.draining.borrow() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    match upgrade {
        Ok(upgrade) => upgrade
            .max_message_size(MOST_RECEIVED_BYTES)
            .max_frame_size(MOST_RECEIVED_BYTES)
            .on_upgrade(move |socket| session::serve(hub, socket, token)),
        Err(rejection) => rejection.into_response(),
    }
}

/// Counts it, and keeps it in the audit trail.
async fn turned_away(hub: &Hub, address: Option<IpAddr>, detail: &str) -> Response {
    let limited = hub.0.doorkeeper.has_failed(address.unwrap_or(IpAddr::from([0, 0, 0, 0])));
    let author = Author {
        id: None,
        name: "anonymous".to_owned(),
        address,
        request: Uuid::now_v7().to_string(),
        action: "subscribe",
    };
    let entry = Entry::refused().with("status", StatusCode::UNAUTHORIZED.as_u16()).with("detail", detail);
    if let Err(error) = hub.0.doorkeeper.keep(&author, entry).await {
        tracing::error!(%error, "a refusal cannot be kept");
        return refuse(Kind::Unavailable, "the store cannot be reached; try again");
    }
    match limited {
        Ok(()) => refuse(Kind::Unauthenticated, detail),
        Err(seconds) => too_many(seconds),
    }
}

fn too_many(seconds: u64) -> Response {
    let mut response = refuse(Kind::TooMany, "too many requests");
    response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    response
}

/// RFC 6750, section 2.1.
fn bearer(headers: &HeaderMap) -> Option<SecretString> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned().into())
}

fn refuse(kind: Kind, detail: &str) -> Response {
    let status = kind.status();
    let problem =
        json!({ "type": kind.type_uri(), "title": kind.title(), "status": status.as_u16(), "detail": detail });
    let mut response = (status, problem.to_string()).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}
