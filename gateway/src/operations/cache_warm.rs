//! `/cache/warm`: POST fetches a list of URLs into the cache, GET says how far the lists are.
//!
//! The body has `urls`, and `headers` where responses vary: each is fetched with them, and as a caller that has not
//! said who it is.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::json;

use super::{Answer, OperationsState, body, respond};
use crate::{cache::warming::Target, respond::problem::ProblemKind};

const MAX_BODY: usize = 4 << 20;
const MAX_URLS: usize = 10_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    urls: Vec<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

pub(super) fn get(state: &OperationsState) -> Answer {
    respond::json(StatusCode::OK, &json!({ "lists": state.cache.warming.progress() }))
}

pub(super) async fn post(state: &OperationsState, incoming: Incoming) -> Answer {
    let request: Request = match body::json(incoming, MAX_BODY).await {
        Ok(request) => request,
        Err(answer) => return answer,
    };
    match read(&request.urls, &request.headers) {
        Ok((targets, headers)) => {
            let list = state.cache.warming.start(&state.cache.background, targets, headers);
            respond::json(StatusCode::ACCEPTED, &list.progress())
        }
        Err(detail) => respond::problem(ProblemKind::BadRequest, detail),
    }
}

/// What is to be fetched, and with which header fields.
pub(crate) fn read(urls: &[String], headers: &BTreeMap<String, String>) -> Result<(Vec<Target>, HeaderMap), String> {
    if !(1..=MAX_URLS).contains(&urls.len()) {
        return Err(format!("Name between 1 and {MAX_URLS} `urls`."));
    }
    let targets = urls.iter().map(|url| target(url)).collect::<Result<_, _>>()?;
    let headers = headers.iter().map(|(name, value)| {
        let read = HeaderName::from_bytes(name.as_bytes()).ok().zip(HeaderValue::from_str(value).ok());
        read.ok_or_else(|| format!("`headers`: {name:?} is no header field with this value."))
    });
    Ok((targets, headers.collect::<Result<_, _>>()?))
}

fn target(url: &str) -> Result<Target, String> {
    let wrong = || format!("{url:?} is not a URL of http or https.");
    let uri: Uri = url.parse().map_err(|_| wrong())?;
    let secure = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err(wrong()),
    };
    let host = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(wrong)?;
    Ok(Target { host: host.as_str().as_bytes().into(), secure, uri })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn read_text(text: &str) -> Result<(Vec<Target>, HeaderMap), String> {
        let request: Request = serde_json::from_str(text).unwrap();
        read(&request.urls, &request.headers)
    }

    #[test]
    fn a_list_is_read() {
        let text = r#"{ "urls": ["https://a.test/x?y", "http://a.test:81"], "headers": { "Accept": "text/x" } }"#;
        let (targets, headers) = read_text(text).unwrap();
        assert_eq!((targets[0].secure, &*targets[0].host, targets[0].uri.path()), (true, &b"a.test"[..], "/x"));
        assert_eq!((targets[1].secure, &*targets[1].host, targets[1].uri.path()), (false, &b"a.test:81"[..], "/"));
        assert_eq!(headers["accept"], "text/x");
    }

    #[test]
    fn what_is_wrong_is_refused_whole() {
        for text in [
            r#"{ "urls": [] }"#,
            r#"{ "urls": ["http://a.test/x", "/x"] }"#,
            r#"{ "urls": ["ftp://a.test/x"] }"#,
            r#"{ "urls": ["http://user@a.test/x"] }"#,
            r#"{ "urls": ["http://a.test/x"], "headers": { "a b": "c" } }"#,
            r#"{ "urls": ["http://a.test/x"], "headers": { "a": "\n" } }"#,
        ] {
            assert!(read_text(text).is_err(), "{text}");
        }
    }
}
