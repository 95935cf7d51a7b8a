//! The switches: health, misbehaviour and counters.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use arc_swap::ArcSwap;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::body::{Response, json, problem};

/// Paths that are counted by name; further ones count as `other`.
const MAX_PATHS: usize = 1_000;

#[derive(Debug)]
pub struct Control {
    healthy: AtomicBool,
    behaviour: ArcSwap<Behaviour>,
    connections: AtomicU64,
    open_connections: AtomicU64,
    requests: Mutex<BTreeMap<Box<str>, u64>>,
}

/// How every request under `/v1/` is treated. `{}` is good behaviour.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Behaviour {
    /// Share of requests, 0 to 1, whose connection is closed without an answer.
    pub reset_share: f64,
    /// How long every answer is held back.
    pub delay_ms: u64,
    /// Answer this instead.
    pub status: Option<u16>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Health {
    healthy: bool,
}

#[derive(Debug, Serialize)]
struct Stats<'a> {
    /// By path, without query.
    requests: &'a BTreeMap<Box<str>, u64>,
    connections_accepted: u64,
    connections_open: u64,
}

/// What becomes of one request.
#[derive(Debug, PartialEq)]
pub(super) enum Fate {
    Answer,
    Refuse(StatusCode),
    Reset,
}

impl Default for Control {
    fn default() -> Self {
        Self {
            healthy: AtomicBool::new(true),
            behaviour: ArcSwap::default(),
            connections: AtomicU64::new(0),
            open_connections: AtomicU64::new(0),
            requests: Mutex::default(),
        }
    }
}

impl Control {
    pub fn is_healthy(&self) -> bool {
        self.healthy.load(Relaxed)
    }

    pub(super) fn connection_opened(&self) {
        self.connections.fetch_add(1, Relaxed);
        self.open_connections.fetch_add(1, Relaxed);
    }

    pub(super) fn connection_closed(&self) {
        self.open_connections.fetch_sub(1, Relaxed);
    }

    pub(super) fn count(&self, path: &str) {
        let mut requests = self.requests.lock();
        if let Some(count) = requests.get_mut(path) {
            *count += 1;
        } else {
            let path = if requests.len() < MAX_PATHS { path } else { "other" };
            *requests.entry(path.into()).or_default() += 1;
        }
    }

    pub(super) async fn fate(&self) -> Fate {
        let (delay, status, reset_share) = {
            let behaviour = self.behaviour.load();
            (behaviour.delay_ms, behaviour.status, behaviour.reset_share)
        };
        if delay > 0 {
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
        if reset_share > 0.0 && fastrand::f64() < reset_share {
            return Fate::Reset;
        }
        match status.and_then(|status| StatusCode::from_u16(status).ok()) {
            Some(status) => Fate::Refuse(status),
            None => Fate::Answer,
        }
    }

    pub(super) fn health(&self) -> Response {
        if self.is_healthy() {
            json(&Health { healthy: true })
        } else {
            problem(StatusCode::SERVICE_UNAVAILABLE, "switched off with POST /control/health")
        }
    }

    pub(super) async fn switch_health(&self, request: Request<Incoming>) -> Response {
        match read::<Health>(request, r#"{"healthy": false}"#).await {
            Ok(health) => {
                self.healthy.store(health.healthy, Relaxed);
                json(&health)
            }
            Err(refusal) => refusal,
        }
    }

    pub(super) async fn switch_behaviour(&self, request: Request<Incoming>) -> Response {
        let behaviour =
            match read::<Behaviour>(request, r#"{"reset_share": 0.5, "delay_ms": 100, "status": 503}"#).await {
                Ok(behaviour) => behaviour,
                Err(refusal) => return refusal,
            };
        if !(0.0..=1.0).contains(&behaviour.reset_share) {
            return problem(StatusCode::BAD_REQUEST, "reset_share is a share: write a number from 0 to 1");
        }
        if behaviour.status.is_some_and(|status| !(200..=999).contains(&status)) {
            return problem(StatusCode::BAD_REQUEST, "status is a final status: write a number from 200 to 999");
        }
        let answer = json(&behaviour);
        self.behaviour.store(behaviour.into());
        answer
    }

    pub(super) fn stats(&self) -> Response {
        json(&Stats {
            requests: &self.requests.lock(),
            connections_accepted: self.connections.load(Relaxed),
            connections_open: self.open_connections.load(Relaxed),
        })
    }
}

/// The JSON body of a POST, or the answer that says what is wrong with it.
async fn read<T: DeserializeOwned>(request: Request<Incoming>, example: &str) -> Result<T, Response> {
    if request.method() != http::Method::POST {
        return Err(problem(StatusCode::METHOD_NOT_ALLOWED, &format!("POST it, as in {example}")));
    }
    let refused = |error: &dyn std::fmt::Display| {
        problem(StatusCode::BAD_REQUEST, &format!("{error}; write it as {example}, absent keys mean good behaviour"))
    };
    let body = Limited::new(request.into_body(), 64 << 10).collect().await.map_err(|error| refused(&error))?;
    serde_json::from_slice(&body.to_bytes()).map_err(|error| refused(&error))
}
