//! `POST /cache/purge`: what no node is to serve from its cache any more.

use axum::{Json as JsonAnswer, extract::State};
use seiketsu_config::{
    push::{Purged, Task},
    values::{HostPattern, Id},
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
    if let Some((field, host)) = host(&what) {
        check_host(&state, &tenant, field, &host?).await?;
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
            (None, Some(prefix), None, false) => Purged::Prefix(checked_prefix(prefix)?),
            (None, None, Some(tag), false) => Purged::Tag(checked_tag(tag)?),
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
    if text.len() > LONGEST {
        return Err(refused("it is too long"));
    }
    let url = Url::parse(&text).map_err(|why| refused(&format!("it is not a URL: {why}")))?;
    let sent = text.split('#').next().unwrap_or_default().split_once("://").map(|(_, sent)| sent);
    let (true, true, Some(sent)) = (matches!(url.scheme(), "http" | "https"), url.has_host(), sent) else {
        return Err(refused("it is not a URL of http or https"));
    };
    let (authority, target) = sent.split_at(sent.find(['/', '?']).unwrap_or(sent.len()));
    if authority.contains('@') {
        return Err(refused("it holds a user or a password"));
    }
    if authority.contains('\\') {
        return Err(refused("it is not a URL of http or https"));
    }
    if !query && target.contains('?') {
        return Err(refused("it has a query, and a prefix is one of paths"));
    }
    check_target(target).map_err(refused)?;
    Ok(text)
}

/// A URL or a path, and no pattern.
fn checked_prefix(prefix: String) -> Result<String, Problem> {
    let refused = |detail: &str, fix: &str| Problem::invalid_at("prefix", detail, Some(fix));
    if prefix.ends_with('*') {
        let fix = "leave it out: a prefix is of a path and all that is below it, in whole segments: /v1/k is of /v1/k \
                   and /v1/k/x, and not of /v1/kx";
        return Err(refused("it ends in *", fix));
    }
    if !prefix.starts_with('/') && !prefix.contains("://") {
        let fix = "begin it with /, or write a whole URL, as in https://api.example.com/v1";
        return Err(refused("it is neither a path nor a URL", fix));
    }
    if !prefix.starts_with('/') {
        return checked_url("prefix", prefix, false);
    }
    let fix = "write a path as clients request it, as in /v1/users";
    if prefix.len() > LONGEST {
        return Err(refused("it is too long", fix));
    }
    if prefix.contains('?') {
        return Err(refused("it has a query, and a prefix is one of paths", fix));
    }
    check_target(&prefix).map_err(|why| refused(why, fix))?;
    Ok(prefix)
}

/// A tag that a response can have: `Cache-Tag` has commas between them, `Surrogate-Key` spaces.
fn checked_tag(tag: String) -> Result<String, Problem> {
    let is_one = (1..=LONGEST).contains(&tag.len())
        && tag.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic())
        && tag.trim() == tag
        && !(tag.contains(',') && tag.contains(' '));
    if is_one {
        return Ok(tag);
    }
    let fix = "give one tag, of visible ASCII characters, with spaces between them or commas, but not both";
    Err(Problem::invalid_at("tag", "no response can have it", Some(fix)))
}

/// Whether clients can request this path and query. What they cannot, nodes would refuse to purge as well.
fn check_target(target: &str) -> Result<(), &'static str> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let holds =
        |text: &str, refused: &[char]| text.contains(refused) || !text.bytes().all(|byte| byte.is_ascii_graphic());
    if holds(path, &['#', '<', '>', '`', '\\']) || holds(query, &['#', '<', '>', '"']) {
        return Err("it holds a character that must be percent-encoded");
    }
    let decoded = String::from_utf8(decoded(path)?).map_err(|_| "what is percent-encoded in it is not UTF-8")?;
    let mut depth = 0_usize;
    for segment in decoded.split('/').filter(|segment| !matches!(*segment, "" | ".")) {
        if segment.starts_with(".;") || segment.starts_with("..;") {
            return Err("it holds a . or .. segment with parameters");
        }
        let below = if segment == ".." { depth.checked_sub(1) } else { Some(depth + 1) };
        depth = below.ok_or("it leaves the root by its .. segments")?;
    }
    Ok(())
}

fn decoded(path: &str) -> Result<Vec<u8>, &'static str> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut parts = path.split('%');
    decoded.extend_from_slice(parts.next().unwrap_or_default().as_bytes());
    for part in parts {
        let digits = part.get(..2).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let byte = byte.ok_or("it holds a % that two hexadecimal digits do not follow")?;
        if byte.is_ascii_control() || matches!(byte, b'/' | b'\\') {
            return Err("it holds a character that is not accepted, percent-encoded or not");
        }
        decoded.push(byte);
        decoded.extend_from_slice(&part.as_bytes()[2..]);
    }
    Ok(decoded)
}

/// The field that names a host, and the host.
fn host(what: &Purged) -> Option<(&'static str, Result<HostPattern, Problem>)> {
    let (field, text) = match what {
        Purged::Url(url) => ("url", url),
        Purged::Prefix(prefix) if !prefix.starts_with('/') => ("prefix", prefix),
        _ => return None,
    };
    let host = Url::parse(text).ok().and_then(|url| url.host_str()?.parse().ok());
    Some((field, host.ok_or_else(|| Problem::invalid_at(field, "it has no host that is served", None))))
}

/// Whether a host is one of the tenant's own.
pub(super) async fn check_host(state: &AppState, tenant: &Id, path: &str, host: &HostPattern) -> Result<(), Problem> {
    let owner = state.store.tenants(None, 1, Some(host), None).await?.pop();
    if owner.is_some_and(|owner| owner.id == *tenant) {
        return Ok(());
    }
    let detail = format!("the tenant is not served under {host}");
    Err(Problem::invalid_at(path, detail, Some("give URLs of the tenant's own hosts")))
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

    use serde_json::json;

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

    #[test]
    fn what_nodes_would_refuse_is_refused_before_they_are_told_and_named() {
        let read = |field: &str, text: &str| {
            let mut body = json!({ "tenant": "a" });
            body[field] = text.into();
            serde_json::from_value::<PurgeBody>(body).unwrap().checked()
        };
        let long = "t".repeat(LONGEST + 1);
        for (field, text) in [
            ("url", "http://a.test/../.."),
            ("url", "http://a.test/x/%2e%2e/.."),
            ("url", "http://a.test/%zz"),
            ("url", "http://a.test/%4"),
            ("url", "http://a.test/%2f"),
            ("url", "http://a.test/%C0%AF"),
            ("url", "http://a.test/%00"),
            ("url", "http://a.test/x;/..;v=1"),
            ("url", "http://a.test/x y"),
            ("url", "http://a.test/\u{e4}"),
            ("url", "http://a.test/x?\""),
            ("url", "http://a.test\\x"),
            ("url", "http:a.test/x"),
            ("url", "http://@a.test/x"),
            ("prefix", "/../.."),
            ("prefix", "/%zz"),
            ("prefix", "/x?y"),
            ("prefix", "/v1/*"),
            ("prefix", "http://a.test/v1/*"),
            ("prefix", "v1"),
            ("prefix", "http://a.test/%zz"),
            ("tag", " t"),
            ("tag", "t "),
            ("tag", "t, u"),
            ("tag", "t\n"),
            ("tag", "\u{e4}"),
            ("tag", &long),
        ] {
            let refused = read(field, text).unwrap_err();
            assert_eq!(refused.kind.status().as_u16(), 422, "{text}");
            assert!(refused.detail.contains(field), "{text}: {refused:?}");
        }
        for (field, text) in [
            ("url", "http://a.test"),
            ("url", "HTTP://a.test:81/x/../y/./%41%C3%a4;v=1//z?x='%zz'|#top"),
            ("url", "http://m\u{fc}ller.test/x"),
            ("prefix", "/x/.."),
            ("prefix", "http://a.test"),
            ("tag", "a b"),
            ("tag", "a,b"),
        ] {
            assert!(read(field, text).is_ok(), "{text}");
        }
    }
}
