//! `/v1/echo` and every `/v1/…/echo`: what arrived, as JSON.

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde::Serialize;

use super::{
    Connection,
    body::{Response, json, problem},
};

const MAX_BODY: usize = 16 << 20;

#[derive(Debug, Serialize)]
struct Received<'a> {
    method: &'a str,
    path: &'a str,
    query: Option<&'a str>,
    http_version: String,
    /// In the order of arrival as far as the server keeps it; a field that came twice stands here twice.
    headers: Vec<(&'a str, String)>,
    #[serde(flatten)]
    body: ReceivedBody,
    /// Of the body, in bytes.
    length: usize,
    region: &'a str,
    peer: String,
    tls: bool,
}

#[derive(Debug, Serialize)]
#[serde(tag = "body_encoding", content = "body", rename_all = "lowercase")]
enum ReceivedBody {
    Text(String),
    Base64(String),
}

pub(super) async fn echo(request: Request<Incoming>, from: Connection, region: &HeaderValue) -> Response {
    let (head, body) = request.into_parts();
    let body = match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            return problem(StatusCode::PAYLOAD_TOO_LARGE, "echo takes 16 MiB at most; use /v1/upload");
        }
        Err(error) => return problem(StatusCode::BAD_REQUEST, &format!("the body broke off: {error}")),
    };
    json(&Received {
        method: head.method.as_str(),
        path: head.uri.path(),
        query: head.uri.query(),
        http_version: format!("{:?}", head.version),
        headers: pairs(&head.headers),
        length: body.len(),
        body: match std::str::from_utf8(&body) {
            Ok(text) => ReceivedBody::Text(text.to_owned()),
            Err(_) => ReceivedBody::Base64(STANDARD.encode(&body)),
        },
        region: region.to_str().unwrap_or_default(),
        peer: from.peer.to_string(),
        tls: from.tls,
    })
}

fn pairs(headers: &HeaderMap) -> Vec<(&str, String)> {
    headers
        .iter()
        .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect()
}
