//! `GET /config`: the running revision. `GET /config?tenant=…&route=…`: what applies and why.

use http::StatusCode;
use serde_json::json;
use url::form_urlencoded;

use super::{Answer, OperationsState, mask::masked, respond};
use crate::respond::problem::ProblemKind;

pub(super) fn get(state: &OperationsState, query: Option<&str>) -> Answer {
    let (mut tenant, mut route) = (None, None);
    for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        match &*name {
            "tenant" => tenant = Some(value),
            "route" => route = Some(value),
            _ => return respond::problem(ProblemKind::BadRequest, "The parameters are `tenant` and `route`."),
        }
    }
    let status = state.config.status();
    let Some(tenant) = tenant else {
        if route.is_some() {
            return respond::problem(ProblemKind::BadRequest, "A route needs its tenant: add `tenant`.");
        }
        let mut body = json!({ "revision": status.revision, "last_reload": status.last_reload });
        if let Some(control_plane) = status.control_plane {
            body["control_plane"] = control_plane;
        }
        return respond::json(StatusCode::OK, &body);
    };
    match state.config.effective(&tenant, route.as_deref()) {
        Ok(effective) => {
            let body = json!({
                "revision": status.revision,
                "tenant": tenant,
                "route": route,
                "effective": masked(effective),
            });
            respond::json(StatusCode::OK, &body)
        }
        Err(missing) => respond::problem(ProblemKind::NoRoute, missing.to_string()),
    }
}
