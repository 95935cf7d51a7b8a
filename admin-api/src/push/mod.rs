//! The control plane's end of [`seiketsu_config::push`]: nodes connect here, and are sent every change as soon as this
//! replica knows of it.
//!
//! Each node has a `session`, which follows the store's newest revision by itself. What it sends comes from
//! `updates`, where that which several nodes lack is read, written and compressed once; `orders` passes on what nodes are
//! to do at once. `seats` knows which connection is the node's, and `credible` how much a node may say.

mod credible;
pub(crate) mod departed;
mod metrics;
mod orders;
mod proof;
mod seats;
mod session;
mod updates;
mod usage;

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
use seiketsu_config::{
    push::{self, MOST_SAID_BYTES},
    values::Id,
};
use serde_json::json;
use tokio::{sync::watch, time::timeout};
use uuid::Uuid;

use self::{metrics::Metrics, proof::Proof, seats::Seats, updates::Updates};
use crate::{
    api::{Kind, refusals::Doorkeeper},
    edge::NodeCertificate,
    limit::Limiter,
    store::{Author, Store, audit::Entry},
};

/// Refusals of each node that the log tells of.
const LOGGED_PER_SECOND: u32 = 2;
const LOGGED_AT_ONCE: u32 = 100;

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
    /// Refusals of each node that the log tells of.
    logged: Limiter<Id>,
    draining: watch::Sender<bool>,
    certificates_required: bool,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("replica", &self.0.replica).finish_non_exhaustive()
    }
}

impl Hub {
    /// Its metrics go to `registry`. With `certificates_required` a token alone lets no node in.
    pub(crate) fn new(
        store: Store,
        registry: &Registry,
        doorkeeper: Doorkeeper,
        certificates_required: bool,
    ) -> prometheus::Result<Self> {
        let metrics = Metrics::new(registry)?;
        Ok(Self(Arc::new(Shared {
            updates: Updates::new(store.clone(), metrics.prepared.clone()),
            store,
            doorkeeper,
            replica: Uuid::now_v7(),
            metrics,
            seats: Seats::default(),
            logged: Limiter::new(LOGGED_PER_SECOND, LOGGED_AT_ONCE),
            draining: watch::Sender::new(false),
            certificates_required,
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
    certificate: Option<Extension<NodeCertificate>>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let proof = match Proof::of(&hub.0, &headers, certificate.map(|Extension(certificate)| certificate)).await {
        Ok(proof) => proof,
        Err((Kind::Unauthenticated, detail)) => {
            return turned_away(&hub, peer.map(|Extension(ConnectInfo(peer))| peer.ip()), detail).await;
        }
        Err((kind, detail)) => return refuse(kind, detail),
    };
    if *hub.0.draining.borrow() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    match upgrade {
        Ok(upgrade) => upgrade
            .max_message_size(MOST_SAID_BYTES)
            .max_frame_size(MOST_SAID_BYTES)
            .on_upgrade(move |socket| session::serve(hub, socket, proof)),
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
