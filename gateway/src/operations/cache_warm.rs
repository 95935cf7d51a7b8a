//! `/cache/warm`: POST fetches a list of URLs into the cache, GET says how far the lists are, DELETE with `?id=…` asks
//! for nothing more of one.
//!
//! The body has `urls`, and `headers` where responses vary: each is fetched with them, and as a caller that has not
//! said who it is. So none of them may be a credential, nor a field that the cache writes itself or leaves out.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use hyper::body::Incoming;
use seiketsu_config::push::{is_credential, is_of_client_alone};
use serde::Deserialize;
use serde_json::json;
use url::form_urlencoded;

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
        Ok((targets, headers)) => match state.cache.warming.start(&state.cache.background, targets, headers) {
            Ok(list) => respond::json(StatusCode::ACCEPTED, &list.progress()),
            Err(error) => respond::problem(ProblemKind::QuotaExceeded, format!("{error}.")),
        },
        Err(detail) => respond::problem(ProblemKind::BadRequest, detail),
    }
}

pub(super) fn delete(state: &OperationsState, query: Option<&str>) -> Answer {
    let mut parameters = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    let (Some((name, id)), None) = (parameters.next(), parameters.next()) else {
        return respond::problem(ProblemKind::BadRequest, "Add `id`: that of the list, as in `?id=1`.");
    };
    let Some(id) = id.parse::<u64>().ok().filter(|_| name == "id") else {
        return respond::problem(ProblemKind::BadRequest, "The parameter is `id`, the number of a list.");
    };
    match state.cache.warming.stop(id) {
        Some(progress) => respond::json(StatusCode::OK, &progress),
        None => {
            respond::problem(ProblemKind::NoRoute, format!("There is no list {id}; GET names those that there are."))
        }
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
        match read {
            Some((name, _)) if is_credential(&name) => {
                Err(format!("`headers`: {name} is a credential, and what is warmed is served to everybody."))
            }
            Some((name, _)) if is_of_client_alone(&name) => Err(format!(
                "`headers`: leave out {name}: it is about a connection, or about what a single client has or wants, and \
                 the cache asks for whole responses on its own behalf."
            )),
            Some(field) => Ok(field),
            None => Err(format!("`headers`: {name:?} is no header field with this value.")),
        }
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
    let authority = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(wrong)?;
    // Clients leave it out (RFC 9110 §4.2.1, §4.2.2).
    let default_port = if secure { 443 } else { 80 };
    let is_default = authority.port_u16() == Some(default_port);
    let host = if is_default { authority.host() } else { authority.as_str() };
    Ok(Target { host: host.as_bytes().into(), secure, uri })
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
    fn the_default_port_is_left_out() {
        for (url, host) in [
            ("http://a.test:80/x", "a.test"),
            ("https://a.test:443/x", "a.test"),
            ("http://a.test:443/x", "a.test:443"),
            ("https://a.test:80/x", "a.test:80"),
            ("http://[::1]:80/x", "[::1]"),
        ] {
            assert_eq!(&*target(url).unwrap().host, host.as_bytes(), "{url}");
        }
    }

    #[test]
    fn credentials_and_what_is_of_a_client_alone_are_refused_by_name() {
        for name in
            ["authorization", "Cookie", "Proxy-Authorization", "Host", "range", "If-None-Match", "Cache-Control"]
        {
            let text = format!(r#"{{ "urls": ["http://a.test/x"], "headers": {{ "{name}": "x" }} }}"#);
            let detail = read_text(&text).unwrap_err();
            assert!(detail.contains(&name.to_lowercase()), "{detail}");
        }
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
