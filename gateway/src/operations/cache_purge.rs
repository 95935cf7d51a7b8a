//! `POST /cache/purge`: what is not to be served any more, here and on all nodes that share a Redis with this one.
//!
//! The body names a tenant, and one of `url`, `prefix` (a URL or a path, in whole segments), `tag`, or `all: true`.

use http::StatusCode;
use hyper::body::Incoming;
use seiketsu_cache::{
    key::Resource,
    purge::{Purge, is_tag},
};
use serde::Deserialize;
use serde_json::json;
use url::Url;

use super::{Answer, OperationsState, body, respond};
use crate::{
    respond::problem::ProblemKind,
    tenancy::{
        hosts::{self, HostBuffer},
        path,
    },
};

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
    let (tenant, (kind, what)) = (&request.tenant, request.what());
    let purge = match purge(&request, |host| state.config.serves(tenant, host)) {
        Ok(purge) => purge,
        Err(detail) => {
            // Why, and not what: it may hold anything, a password among it.
            tracing::warn!(tenant, kind, detail, "not purged");
            return respond::problem(ProblemKind::BadRequest, detail);
        }
    };
    match state.cache.purging.purge(tenant, purge).await {
        Ok(true) => {
            tracing::info!(tenant, kind, what, "purged");
            respond::json(StatusCode::OK, &json!({ "purged": true }))
        }
        Ok(false) => {
            tracing::warn!(tenant, kind, what, detail = "no tenant of this name uses the cache", "not purged");
            respond::problem(ProblemKind::NoRoute, format!("No tenant {tenant:?} uses the cache of this node."))
        }
        Err(error) => {
            tracing::warn!(tenant, kind, what, detail = %error, "not purged everywhere");
            respond::problem(ProblemKind::UpstreamUnavailable, format!("{error}."))
        }
    }
}

impl Request {
    /// For the log.
    fn what(&self) -> (&'static str, &str) {
        let named = [("url", &self.url), ("prefix", &self.prefix), ("tag", &self.tag)];
        let named = named.into_iter().find_map(|(kind, text)| Some((kind, text.as_deref()?)));
        named.unwrap_or(("all", ""))
    }
}

/// `serves`: whether a host is one of the tenant's.
fn purge(request: &Request, serves: impl Fn(&str) -> bool) -> Result<Purge, String> {
    let Request { tenant: _, url, prefix, tag, all } = request;
    let (purge, host) = match (url, prefix, tag, all) {
        (Some(url), None, None, false) => (of_url(url)?, host("url", url)),
        (None, Some(text), None, false) => (of_prefix(text)?, host("prefix", text)),
        (None, None, Some(tag), false) if is_tag(tag) => (Purge::Tag(tag.as_str().into()), None),
        (None, None, Some(_), false) => {
            return Err("`tag`: no response can have this one. A tag is of visible ASCII characters, with spaces \
                        between them or commas, but not both."
                .to_owned());
        }
        (None, None, None, true) => (Purge::All, None),
        _ => return Err("Name one of `url`, `prefix`, `tag`, or `all: true`.".to_owned()),
    };
    match host.filter(|host| !serves(host)) {
        Some(host) => Err(format!("The tenant is not served under {host}.")),
        None => Ok(purge),
    }
}

/// One URL.
pub(crate) fn of_url(url: &str) -> Result<Purge, String> {
    let (host, path, query) = parts("url", url)?;
    Ok(Purge::Url(Resource::new(host.as_bytes(), &path, query.as_deref()).digest()))
}

/// A URL, or a path of all hosts, and all paths below it.
pub(crate) fn of_prefix(text: &str) -> Result<Purge, String> {
    let (host, path, query) = if text.starts_with('/') {
        let (path, query) = normal("prefix", text.as_bytes())?;
        (None, path, query)
    } else if text.contains("://") {
        let (host, path, query) = parts("prefix", text)?;
        (Some(host.into()), path, query)
    } else {
        return Err("`prefix`: begin it with `/`, or write a whole URL, as in https://api.example.com/v1.".to_owned());
    };
    if query.is_some() {
        return Err("`prefix`: leave out the query, a prefix is one of paths.".to_owned());
    }
    if path.ends_with('*') {
        return Err("`prefix`: leave out the `*`. A prefix is of a path and all that is below it, in whole segments: \
                    /v1/k is of /v1/k and /v1/k/x, and not of /v1/kx."
            .to_owned());
    }
    Ok(Purge::Prefix { host, path: path.into() })
}

fn host(field: &str, text: &str) -> Option<String> {
    parts(field, text).ok().map(|(host, ..)| host)
}

/// Host, path and query of a URL, in the form that requests have: as they are written, since clients send them so, and
/// not as [`Url`] would write them, which knows names of hosts in other scripts.
fn parts(field: &str, text: &str) -> Result<(String, String, Option<String>), String> {
    let url = Url::parse(text).map_err(|error| format!("`{field}`: it is not a URL: {error}."))?;
    let sent = text.split('#').next().unwrap_or_default();
    let sent = path::split_absolute_form(sent.as_bytes());
    let sent = sent.filter(|sent| !sent.authority.contains(&b'\\'));
    let sent = sent.ok_or_else(|| format!("`{field}`: it is not a URL of http or https."))?;
    if sent.authority.contains(&b'@') {
        return Err(format!("`{field}`: leave out user and password, nothing is stored for them."));
    }
    let host = url.host_str().unwrap_or_default().as_bytes();
    let host = hosts::normalise(host, &mut HostBuffer::default()).map(str::to_owned);
    let host = host.map_err(|error| format!("`{field}`: {error}."))?;
    let (path, query) = normal(field, &sent.target)?;
    Ok((host, path, query))
}

fn normal(field: &str, target: &[u8]) -> Result<(String, Option<String>), String> {
    let normal = path::normalise(target).map_err(|error| format!("`{field}`: {error}."))?;
    let query = normal.query().map(str::to_owned);
    Ok((normal.into_path().into_owned(), query))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Of a tenant that is served under `api.test` and `[::1]`.
    fn read(text: &str) -> Result<Purge, String> {
        purge(&serde_json::from_str(text).unwrap(), |host| matches!(host, "api.test" | "[::1]" | "xn--mller-kva.test"))
    }

    #[test]
    fn each_kind_is_understood() {
        let prefix = read(r#"{ "tenant": "a", "prefix": "/v1/./x/" }"#);
        assert_eq!(prefix, Ok(Purge::Prefix { host: None, path: "/v1/x/".into() }));
        let of_host = read(r#"{ "tenant": "a", "prefix": "http://API.test.:81" }"#);
        assert_eq!(of_host, Ok(Purge::Prefix { host: Some("api.test".into()), path: "/".into() }));
        assert_eq!(read(r#"{ "tenant": "a", "tag": "t" }"#), Ok(Purge::Tag("t".into())));
        assert_eq!(read(r#"{ "tenant": "a", "all": true }"#), Ok(Purge::All));
    }

    #[test]
    fn a_url_is_taken_as_clients_send_it() {
        let purged = |host: &str, path, query| Ok(Purge::Url(Resource::new(host.as_bytes(), path, query).digest()));
        for (url, host, path, query) in [
            ("https://API.test:8443/x/./y?z", "api.test", "/x/y", Some("z")),
            ("http://api.test.", "api.test", "/", None),
            ("http://api.test?x='a'#top", "api.test", "/", Some("x='a'")),
            ("http://api.test/a//../b", "api.test", "/b", None),
            ("http://api.test/v1/%41?b&a", "api.test", "/v1/A", Some("a&b")),
            ("http://[0:0::1]:80/x", "[::1]", "/x", None),
            ("http://m\u{fc}ller.test/x", "xn--mller-kva.test", "/x", None),
        ] {
            let text = json!({ "tenant": "a", "url": url }).to_string();
            assert_eq!(read(&text), purged(host, path, query), "{url}");
        }
    }

    #[test]
    fn what_is_wrong_is_refused_and_named() {
        for (field, text) in [
            ("url", "/x"),
            ("url", "ftp://api.test/x"),
            ("url", "http:api.test/x"),
            ("url", "http://api.test\\x"),
            ("url", "http://user@api.test/x"),
            ("url", "http://user:secret@api.test/x"),
            ("url", "http://@api.test/x"),
            ("url", "http://api.test/../.."),
            ("url", "http://api.test/%zz"),
            ("url", "http://api.test/x y"),
            ("url", "http://api.test/x\ny"),
            ("prefix", "http://api.test/x?y"),
            ("prefix", "/x?"),
            ("prefix", "/v1/*"),
            ("prefix", "http://api.test/v1*"),
            ("prefix", "/../.."),
            ("prefix", "x"),
            ("prefix", "v1"),
            ("prefix", ""),
            ("tag", ""),
            ("tag", " t"),
            ("tag", "t "),
            ("tag", "t, u"),
            ("tag", "t\n"),
        ] {
            let error = read(&json!({ "tenant": "a", field: text }).to_string()).unwrap_err();
            assert!(error.contains(&format!("`{field}`")) && !error.contains("secret"), "{text}: {error}");
        }
        let says = |prefix: &str| read(&json!({ "tenant": "a", "prefix": prefix }).to_string()).unwrap_err();
        assert!(says("v1").contains("begin it with `/`"));
        assert!(says("/v1/k*").contains("whole segments"));
        for other in [json!({ "url": "http://other.test/x" }), json!({ "prefix": "http://other.test" })] {
            let mut other = other;
            other["tenant"] = "a".into();
            assert_eq!(read(&other.to_string()), Err("The tenant is not served under other.test.".to_owned()));
        }
        for text in [
            r#"{ "tenant": "a" }"#,
            r#"{ "tenant": "a", "all": false }"#,
            r#"{ "tenant": "a", "tag": "t", "all": true }"#,
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
