//! What is sent: its type, its size and its form, judged before anything looks at its meaning.

use std::{borrow::Cow, collections::BTreeSet, path::Path as FsPath, time::Duration};

use axum::{
    body::Body,
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    http::{HeaderMap, header, request::Parts},
};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use seiketsu_config::load;
use serde::de::DeserializeOwned;
use serde_json::{Value, error::Category};
use tokio::time::timeout;

use super::{AppState, Problem, problem::Kind};

/// The largest body, but for imports.
pub(super) const MOST_BYTES: usize = 1 << 20;

/// To the end of a body. Whoever sends the largest import has to be able to.
const TO_THE_END: Duration = Duration::from_mins(2);

/// The largest import.
pub(super) const MOST_IMPORT_BYTES: usize = 64 << 20;

/// A body of JSON, and its text.
#[derive(Debug)]
pub(super) struct Json<T> {
    pub(super) value: T,
    pub(super) text: Bytes,
}

impl<T: DeserializeOwned> FromRequest<AppState> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &AppState) -> Result<Self, Problem> {
        is_json(request.headers())?;
        let (head, body) = request.into_parts();
        let text = read(&head.headers, body, MOST_BYTES).await?;
        Ok(Self { value: parse(utf8(&text)?)?, text })
    }
}

/// A body of configuration, in YAML, of which JSON is a part.
#[derive(Debug)]
pub(super) struct Yaml(pub(super) Bytes);

impl FromRequest<AppState> for Yaml {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &AppState) -> Result<Self, Problem> {
        const TYPES: [&str; 5] =
            ["application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml", "application/json"];
        if !TYPES.contains(&&*media_type(request.headers())) {
            let detail = "send application/yaml or application/json";
            return Err(Problem::new(Kind::UnsupportedMediaType, detail));
        }
        let (head, body) = request.into_parts();
        let text = read(&head.headers, body, MOST_IMPORT_BYTES).await?;
        utf8(&text)?;
        Ok(Self(text))
    }
}

impl Yaml {
    pub(super) fn as_str(&self) -> &str {
        // It was looked at when it was read.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

fn media_type(headers: &HeaderMap) -> String {
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn is_json(headers: &HeaderMap) -> Result<(), Problem> {
    let given = media_type(headers);
    if given == "application/json" || (given.starts_with("application/") && given.ends_with("+json")) {
        return Ok(());
    }
    Err(Problem::new(Kind::UnsupportedMediaType, "send application/json"))
}

async fn read(headers: &HeaderMap, body: Body, most: usize) -> Result<Bytes, Problem> {
    let too_large =
        || Problem::new(Kind::PayloadTooLarge, format!("the body is larger than {most} bytes")).with("max-bytes", most);
    let length = headers.get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > most as u64) {
        return Err(too_large());
    }
    match timeout(TO_THE_END, Limited::new(body, most).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(Problem::bad_request("the body broke off, or is not what its header fields say")),
        Err(_) => Err(Problem::bad_request("the body took too long to arrive")),
    }
}

/// The request, when its body has arrived.
pub(super) async fn arrived(request: Request, most: usize) -> Result<Request, Problem> {
    let (head, body) = request.into_parts();
    let body = read(&head.headers, body, most).await?;
    Ok(Request::from_parts(head, body.into()))
}

fn utf8(text: &[u8]) -> Result<&str, Problem> {
    std::str::from_utf8(text)
        .map_err(|error| Problem::bad_request(format!("the body is not UTF-8 from byte {} on", error.valid_up_to())))
}

/// Reads JSON, of which configuration's own reader has to think the same: it tells what is wrong with its place and what to
/// do, and takes no list for a map; but it would take a number for a text.
pub(super) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, Problem> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let read = serde_path_to_error::deserialize(&mut reader);
    let ended = reader.end();
    let not_json = |error: &serde_json::Error| Problem::bad_request(format!("the body is not JSON: {error}"));
    match &read {
        Err(error) if error.inner().classify() != Category::Data => return Err(not_json(error.inner())),
        Ok(_) => ended.map_err(|error| not_json(&error))?,
        Err(_) => {}
    }
    load::value::<T>(&without_escapes(text), FsPath::new("body"))?;
    read.map_err(|error| {
        let path = error.path().to_string();
        let detail = error.into_inner().to_string();
        // The path tells the place better.
        let detail = detail.rsplit_once(" at line ").map_or(&*detail, |(detail, _)| detail);
        Problem::invalid_at(&path, detail, None)
    })
}

/// YAML has no pairs of escapes for one character.
fn without_escapes(text: &str) -> Cow<'_, str> {
    let written = || serde_json::from_str::<Value>(text).map(|value| value.to_string());
    if text.contains("\\u") { written().map_or(text.into(), Cow::Owned) } else { text.into() }
}

/// A list that stands for all if it is absent. An empty one would be for nobody, and is not what anybody means.
pub(super) fn some<T>(path: &str, list: Option<BTreeSet<T>>) -> Result<Option<BTreeSet<T>>, Problem> {
    if list.as_ref().is_some_and(BTreeSet::is_empty) {
        let fix = "leave it out, or write null, for all there are; or name at least one";
        return Err(Problem::invalid_at(path, "an empty list stands for none at all", Some(fix)));
    }
    Ok(list)
}

/// The parameters behind the `?`. Those that are not known are refused, as keys are.
#[derive(Debug)]
pub(super) struct QueryOf<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<AppState> for QueryOf<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Problem> {
        if parts.uri.query().is_some_and(|query| query.contains("%00")) {
            return Err(Problem::bad_request("the query cannot be read: it holds the character NUL"));
        }
        match Query::from_request_parts(parts, state).await {
            Ok(Query(query)) => Ok(Self(query)),
            Err(error) => Err(Problem::bad_request(format!("the query cannot be read: {}", error.body_text()))),
        }
    }
}

/// The one name in the path.
#[derive(Debug)]
pub(super) struct PathOf<T>(pub(super) T);

impl<T> FromRequestParts<AppState> for PathOf<T>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Problem> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        let Path(name) = path.map_err(|_| Problem::bad_request("the path cannot be read: it is not UTF-8"))?;
        name.parse().map(Self).map_err(|why| Problem::bad_request(format!("the path cannot be read: {why}")))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use seiketsu_config::tenant::Tenant;

    use super::*;

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let path = |text: &str| {
            let problem = parse::<Tenant>(text).unwrap_err();
            let (document, ..) = problem.into_document(String::new());
            let document = serde_json::to_value(document).unwrap();
            (document["status"].as_u64().unwrap(), document["errors"][0]["path"].as_str().unwrap_or("-").to_owned())
        };
        let no_routes = r#""hosts": [], "routes": []"#;
        for (text, expected) in [
            (r#"{"id": "a", "hosts": [1], "routes": []}"#.to_owned(), (422, "hosts[0]")),
            (format!(r#"{{"id": "a", {no_routes}, "x": 1}}"#), (422, "x")),
            (format!(r#"{{"id": "a", {no_routes}, "id": "b"}}"#), (422, "id")),
            (format!(r#"{{"id": "a", {no_routes}, "policies": []}}"#), (422, "policies")),
            ("[]".to_owned(), (422, "")),
            (r#"{"id": "a""#.to_owned(), (400, "-")),
            (format!(r#"{{"id": "a", {no_routes}}} {{}}"#), (400, "-")),
            ("id: a".to_owned(), (400, "-")),
            ("[".repeat(100_000), (422, "-")),
            (format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)), (422, "-")),
        ] {
            let (status, place) = path(&text);
            assert_eq!(
                (status, place.as_str()),
                (expected.0, if expected.1 == "-" { &*place } else { expected.1 }),
                "{text:.80}"
            );
        }
    }

    #[test]
    fn escapes_are_read_as_json_reads_them() {
        let read: String = parse(r#""\ud83e\udd80 \/ \u00e9 \\u \n""#).unwrap();
        assert_eq!(read, "🦀 / é \\u \n");
    }
}
