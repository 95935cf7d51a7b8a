//! `POST /cache/purge`: what is not to be served any more, here and on all nodes that share a Redis with this one.
//!
//! The body names a tenant, and one of `url`, `prefix` (a URL or a path), `tag`, or `all: true`.

use http::StatusCode;
use hyper::body::Incoming;
use seiketsu_cache::{
    key::Resource,
    purge::{Purge, prefix},
};
use serde::Deserialize;
use serde_json::json;
use url::Url;

use super::{Answer, OperationsState, body, respond};
use crate::{respond::problem::ProblemKind, tenancy::path};

const MAX_BODY: usize = 16 << 10;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    tenant: String,
    url: Option<String>,
    prefix: Option<String>,
    tag: Option<String>,
    #[serde(default)]
    all: bool,
}

pub(super) async fn post(state: &OperationsState, incoming: Incoming) -> Answer {
    let request: Request = match body::json(incoming, MAX_BODY).await {
        Ok(request) => request,
        Err(answer) => return answer,
    };
    let purge = match purge(&request) {
        Ok(purge) => purge,
        Err(detail) => return respond::problem(ProblemKind::BadRequest, detail),
    };
    match state.cache.purging.purge(&request.tenant, purge).await {
        Ok(true) => {
            tracing::info!(tenant = request.tenant, "purged");
            respond::json(StatusCode::OK, &json!({ "purged": true }))
        }
        Ok(false) => respond::problem(
            ProblemKind::NoRoute,
            format!("No tenant {:?} uses the cache of this node.", request.tenant),
        ),
        Err(error) => respond::problem(ProblemKind::UpstreamUnavailable, format!("{error}.")),
    }
}

fn purge(request: &Request) -> Result<Purge, String> {
    let Request { tenant: _, url, prefix, tag, all } = request;
    match (url, prefix, tag, all) {
        (Some(url), None, None, false) => of_url(url),
        (None, Some(text), None, false) => of_prefix(text),
        (None, None, Some(tag), false) if !tag.is_empty() => Ok(Purge::Tag(tag.as_str().into())),
        (None, None, None, true) => Ok(Purge::All),
        _ => Err("Name one of `url`, `prefix`, `tag`, or `all: true`.".to_owned()),
    }
}

/// One URL.
pub(crate) fn of_url(url: &str) -> Result<Purge, String> {
    let (host, path, query) = parts(url)?;
    Ok(Purge::Url(Resource::new(host.as_bytes(), &path, query.as_deref())))
}

/// All paths below a URL, or below a path of all hosts.
pub(crate) fn of_prefix(text: &str) -> Result<Purge, String> {
    if text.starts_with('/') {
        return Ok(Purge::Prefix { host: None, path: prefix(&normal(text)?).into() });
    }
    let (host, path, query) = parts(text)?;
    if query.is_some() {
        return Err("`prefix`: leave out the query, a prefix is one of paths.".to_owned());
    }
    Ok(Purge::Prefix { host: Some(host.into()), path: prefix(&path).into() })
}

/// Host, path and query of a URL, in the form that requests have.
fn parts(text: &str) -> Result<(String, String, Option<String>), String> {
    let url = Url::parse(text).map_err(|error| format!("{text:?} is not a URL: {error}."))?;
    let host = url.host_str().filter(|_| matches!(url.scheme(), "http" | "https"));
    let host = host.ok_or_else(|| format!("{text:?} is not a URL of http or https."))?;
    let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    Ok((host, normal(url.path())?, url.query().map(str::to_owned)))
}

fn normal(text: &str) -> Result<String, String> {
    path::normalise(text.as_bytes())
        .map(|normal| normal.as_str().to_owned())
        .map_err(|error| format!("{text:?}: {error}."))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn read(text: &str) -> Result<Purge, String> {
        purge(&serde_json::from_str(text).unwrap())
    }

    #[test]
    fn each_kind_is_understood() {
        let url = read(r#"{ "tenant": "a", "url": "https://API.test:8443/x/./y?z" }"#);
        assert_eq!(url, Ok(Purge::Url(Resource::new(b"api.test:8443", "/x/y", Some("z")))));
        let prefix = read(r#"{ "tenant": "a", "prefix": "/v1/" }"#);
        assert_eq!(prefix, Ok(Purge::Prefix { host: None, path: "/v1".into() }));
        let of_host = read(r#"{ "tenant": "a", "prefix": "http://a.test" }"#);
        assert_eq!(of_host, Ok(Purge::Prefix { host: Some("a.test".into()), path: "".into() }));
        assert_eq!(read(r#"{ "tenant": "a", "tag": "t" }"#), Ok(Purge::Tag("t".into())));
        assert_eq!(read(r#"{ "tenant": "a", "all": true }"#), Ok(Purge::All));
    }

    #[test]
    fn what_is_unclear_is_refused() {
        for text in [
            r#"{ "tenant": "a" }"#,
            r#"{ "tenant": "a", "all": false }"#,
            r#"{ "tenant": "a", "tag": "" }"#,
            r#"{ "tenant": "a", "tag": "t", "all": true }"#,
            r#"{ "tenant": "a", "url": "/x" }"#,
            r#"{ "tenant": "a", "url": "ftp://a.test/x" }"#,
            r#"{ "tenant": "a", "prefix": "http://a.test/x?y" }"#,
            r#"{ "tenant": "a", "prefix": "x" }"#,
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
