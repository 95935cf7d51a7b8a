//! `POST /cache/warm`: URLs of a tenant that all nodes are to fetch into their caches.

use std::collections::{BTreeMap, BTreeSet};

use axum::{Json as JsonAnswer, extract::State};
use http::{HeaderName, HeaderValue, StatusCode};
use seiketsu_config::{
    push::{Task, is_credential, is_of_client_alone},
    values::{HostPattern, Id},
};
use serde::{Deserialize, Serialize};
use url::Url;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    AppState, Problem,
    body::Json,
    caller::Caller,
    idempotency::Key,
    problem::ProblemDocument,
    purge_cache::{check_host, checked_url},
};
use crate::store::WriteError;

const MOST_URLS: usize = 10_000;

/// Each is looked up.
const MOST_HOSTS: usize = 100;

/// What is to be fetched.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WarmBody {
    #[schema(value_type = String)]
    tenant: Id,
    /// 1 to 10000, all of the tenant's own hosts, of which there may be a hundred.
    #[schema(min_items = 1, max_items = 10000)]
    urls: Vec<String>,
    /// Header fields of the requests, where responses vary; no credentials.
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

/// Nodes have been told.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct WarmAnswer {
    /// `GET /cache/warm/{id}` tells how far it is.
    id: Uuid,
}

/// All nodes that are connected fetch them, as callers that have not said who they are.
#[utoipa::path(
    post, path = "/cache/warm", tag = "cache", params(("Idempotency-Key" = Option<String>, Header, description = "Makes it safe to repeat the request"),),
    request_body = WarmBody,
    responses(
        (status = 202, description = "Nodes have been told", body = WarmAnswer),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn warm_cache(
    State(state): State<AppState>,
    caller: Caller,
    key: Key,
    Json { value, text }: Json<WarmBody>,
) -> Result<(StatusCode, JsonAnswer<WarmAnswer>), Problem> {
    caller.may_touch(&value.tenant)?;
    let WarmBody { tenant, urls, headers } = value;
    if state.store.tenant(&tenant).await?.is_none() {
        return Err(WriteError::Missing(tenant).into());
    }
    let hosts = hosts(&urls)?;
    for (name, value) in &headers {
        match HeaderName::from_bytes(name.as_bytes()) {
            Ok(name) if is_credential(&name) => {
                let fix = Some("leave it out: what is warmed is served to everybody");
                return Err(Problem::invalid_at("headers", format!("{name} is a credential"), fix));
            }
            Ok(name) if is_of_client_alone(&name) => {
                let fix = Some("leave it out: the cache asks for whole responses on its own behalf");
                return Err(Problem::invalid_at("headers", format!("{name} is of a single client"), fix));
            }
            Ok(_) if HeaderValue::from_str(value).is_ok() => {}
            _ => {
                return Err(Problem::invalid_at(
                    "headers",
                    format!("{name:?} is no header field with this value"),
                    None,
                ));
            }
        }
    }
    for host in &hosts {
        check_host(&state, &tenant, "urls", host).await?;
    }
    let once = key.once(&text);
    let id = state.store.give_order(&caller.author, &tenant, Task::Warm { urls, headers }, once.as_ref()).await?;
    Ok((StatusCode::ACCEPTED, JsonAnswer(WarmAnswer { id })))
}

/// The hosts of URLs.
fn hosts(urls: &[String]) -> Result<BTreeSet<HostPattern>, Problem> {
    if !(1..=MOST_URLS).contains(&urls.len()) {
        return Err(Problem::invalid_at("urls", format!("there are {} of them", urls.len()), Some("give 1 to 10000")));
    }
    let mut hosts = BTreeSet::new();
    for (index, url) in urls.iter().enumerate() {
        let path = format!("urls[{index}]");
        let url = checked_url(&path, url.clone(), true)?;
        let host = Url::parse(&url).ok().and_then(|url| url.host_str()?.parse().ok());
        let host: HostPattern =
            host.ok_or_else(|| Problem::invalid_at(&path, "it has no host that is served", None))?;
        hosts.insert(host);
    }
    if hosts.len() > MOST_HOSTS {
        let fix = Some("give those of at most 100 hosts at once");
        return Err(Problem::invalid_at("urls", format!("they are of {} hosts", hosts.len()), fix));
    }
    Ok(hosts)
}
