//! `POST /cache/purge`: what no node is to serve from its cache any more.

use axum::{Json as JsonAnswer, extract::State};
use seiketsu_config::{
    push::{Purged, Task},
    values::Id,
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use url::Url;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    AppState, Problem,
    body::{Json, QueryOf},
    caller::Caller,
    idempotency::Key,
    problem::{Kind, ProblemDocument},
    wait::{self, NodeWatch},
};
use crate::store::{StoreError, WriteError, nodes::NodeRow, orders::AnswerRow};

const LONGEST: usize = 8 << 10;

/// What is purged of a tenant: one of `url`, `prefix`, `tag`, or `all`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PurgeBody {
    #[schema(value_type = String)]
    tenant: Id,
    /// One URL, whatever its scheme.
    url: Option<String>,
    /// All paths below this URL, or below this path of all the tenant's hosts.
    prefix: Option<String>,
    /// All responses with this tag (`Cache-Tag`, `Surrogate-Key`).
    tag: Option<String>,
    /// Everything that is stored for the tenant.
    #[serde(default)]
    all: bool,
}

#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct PurgeQuery {
    /// How long nodes are waited for: `500ms` to `60s`, usually `5s`. Then 504 names those that have not purged it yet.
    timeout: Option<String>,
}

/// Who has purged it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PurgeAnswer {
    id: Uuid,
    #[serde(flatten)]
    carried: CarriedBy,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct CarriedBy {
    /// Live nodes that have done it.
    #[schema(value_type = Vec<String>)]
    nodes: Vec<Id>,
    missing: Vec<NotCarried>,
}

/// A live node that has not.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct NotCarried {
    #[schema(value_type = String)]
    node: Id,
    reason: String,
    #[serde(skip)]
    is_final: bool,
}

/// It is purged on all nodes that are there, and on others before long when they come back: within a day one by one, later
/// they begin with an empty cache. To purge again does no harm. Of purges and lists to warm, a tenant may be given 5,000 in a
/// day, and 32 MiB of them.
#[utoipa::path(
    post, path = "/cache/purge", tag = "cache", params(
        PurgeQuery,
        ("Idempotency-Key" = Option<String>, Header, description = "Makes it safe to repeat the request"),
    ),
    request_body = PurgeBody,
    responses(
        (status = 200, description = "All live nodes have purged it", body = PurgeAnswer),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn purge_cache(
    State(state): State<AppState>,
    caller: Caller,
    key: Key,
    QueryOf(query): QueryOf<PurgeQuery>,
    Json { value, text }: Json<PurgeBody>,
) -> Result<JsonAnswer<PurgeAnswer>, Problem> {
    let timeout = wait::patience(query.timeout.as_deref())?;
    caller.may_touch(&value.tenant)?;
    let (tenant, what) = value.checked()?;
    if state.store.tenant(&tenant).await?.is_none() {
        return Err(WriteError::Missing(tenant).into());
    }
    let task = Task::Purge { tenant: tenant.clone(), what };
    let once = key.once(&text);
    let id = state.store.give_order(&caller.author, &tenant, task, once.as_ref()).await?;
    caller.turn.give_back();
    let carried = carried(&state, id, Instant::now() + timeout).await?;
    if carried.missing.is_empty() {
        return Ok(JsonAnswer(PurgeAnswer { id, carried }));
    }
    let names: Vec<&str> = carried.missing.iter().map(|missing| missing.node.as_str()).collect();
    Err(Problem::new(Kind::NotApplied, format!("it has not been purged by {}", names.join(", ")))
        .with("id", id.to_string())
        .with("carried", serde_json::to_value(&carried).unwrap_or_default()))
}

impl PurgeBody {
    fn checked(self) -> Result<(Id, Purged), Problem> {
        let Self { tenant, url, prefix, tag, all } = self;
        let what = match (url, prefix, tag, all) {
            (Some(url), None, None, false) => Purged::Url(checked_url("url", url, true)?),
            (None, Some(prefix), None, false) if prefix.starts_with('/') && prefix.len() <= LONGEST => {
                Purged::Prefix(prefix)
            }
            (None, Some(prefix), None, false) => Purged::Prefix(checked_url("prefix", prefix, false)?),
            (None, None, Some(tag), false) if (1..=LONGEST).contains(&tag.len()) => Purged::Tag(tag),
            (None, None, None, true) => Purged::All,
            _ => {
                let fix = "give one of url, prefix, tag, or all: true";
                return Err(Problem::invalid_at("", "it is not clear what is to be purged", Some(fix)));
            }
        };
        Ok((tenant, what))
    }
}

/// A URL that caches may hold something of.
pub(super) fn checked_url(path: &str, text: String, query: bool) -> Result<String, Problem> {
    let refused = |detail: &str| {
        Problem::invalid_at(
            path,
            detail,
            Some("write a whole URL of http or https, as in https://api.example.com/v1/users"),
        )
    };
    let url = Url::parse(&text).map_err(|why| refused(&format!("it is not a URL: {why}")))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(refused("it is not a URL of http or https"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refused("it holds a user or a password"));
    }
    if !query && url.query().is_some() {
        return Err(refused("it has a query, and a prefix is one of paths"));
    }
    if text.len() > LONGEST {
        return Err(refused("it is too long"));
    }
    Ok(text)
}

/// Waits until all live nodes have answered.
async fn carried(state: &AppState, id: Uuid, deadline: Instant) -> Result<CarriedBy, StoreError> {
    let mut watch = NodeWatch::new(&state.store);
    loop {
        let now = standing(&watch.nodes().await?, &state.store.order_answers(id).await?);
        if now.missing.iter().all(|missing| missing.is_final) || Instant::now() >= deadline {
            return Ok(now);
        }
        watch.news(deadline).await;
    }
}

fn standing(nodes: &[NodeRow], answers: &[AnswerRow]) -> CarriedBy {
    let mut standing = CarriedBy::default();
    for node in nodes.iter().filter(|node| node.live) {
        let answer = answers.iter().find(|answer| answer.node == node.id && answer.run == node.run);
        let missing =
            |reason: &str, is_final| NotCarried { node: node.id.clone(), reason: reason.to_owned(), is_final };
        match answer.map(|answer| (&answer.carried.error, answer.carried.done)) {
            Some((None, true)) => standing.nodes.push(node.id.clone()),
            Some((Some(error), _)) => standing.missing.push(missing(error, true)),
            _ => standing.missing.push(missing("it has not answered yet", false)),
        }
    }
    standing
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_is_purged_is_clear() {
        let read = |text: &str| {
            let body: PurgeBody = serde_json::from_str(text).unwrap();
            body.checked().ok().map(|(_, what)| what)
        };
        let url = "https://a.test/x?y";
        assert_eq!(read(&format!(r#"{{"tenant":"a","url":"{url}"}}"#)), Some(Purged::Url(url.to_owned())));
        assert_eq!(read(r#"{"tenant":"a","prefix":"/v1"}"#), Some(Purged::Prefix("/v1".to_owned())));
        assert_eq!(read(r#"{"tenant":"a","tag":"t"}"#), Some(Purged::Tag("t".to_owned())));
        assert_eq!(read(r#"{"tenant":"a","all":true}"#), Some(Purged::All));
        for text in [
            r#"{"tenant":"a"}"#,
            r#"{"tenant":"a","all":false}"#,
            r#"{"tenant":"a","tag":""}"#,
            r#"{"tenant":"a","tag":"t","all":true}"#,
            r#"{"tenant":"a","url":"/x"}"#,
            r#"{"tenant":"a","url":"ftp://a.test/x"}"#,
            r#"{"tenant":"a","url":"http://u:p@a.test/x"}"#,
            r#"{"tenant":"a","prefix":"http://a.test/x?y"}"#,
            r#"{"tenant":"a","prefix":"x"}"#,
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
