//! `GET /readyz`: whether requests can be served: a configuration is in force, the listeners are bound,
//! and the node is not draining. The body says which of these holds, and how the last reload went: a
//! refused configuration leaves the node ready, with the former one.

use std::sync::atomic::Ordering;

use http::StatusCode;
use serde_json::json;

use super::{Answer, OperationsState, respond};

pub(super) fn get(state: &OperationsState) -> Answer {
    let config = state.config.status();
    let loaded = config.revision.is_some();
    let listening = state.readiness.listening.load(Ordering::Acquire);
    let draining = state.readiness.draining.load(Ordering::Acquire);
    let ready = loaded && listening && !draining;
    let reason = match (loaded, listening, draining) {
        (.., true) => Some("the node is draining: it takes no new connections and will end"),
        (false, ..) if config.control_plane.is_some() => {
            Some("no configuration is in force yet: `control_plane` and `last_reload` say what it waits for")
        }
        (false, ..) => Some("no configuration is in force yet: it is being loaded"),
        (true, false, _) => Some("the configuration is loaded; the listeners do not accept yet"),
        (true, true, false) => None,
    };
    let mut body = json!({
        "ready": ready,
        "checks": { "configuration_loaded": loaded, "listening": listening, "not_draining": !draining },
        "revision": config.revision,
        "last_reload": config.last_reload,
    });
    if let Some(control_plane) = config.control_plane {
        body["control_plane"] = control_plane;
    }
    if let Some(reason) = reason {
        body["reason"] = reason.into();
    }
    respond::json(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, &body)
}
