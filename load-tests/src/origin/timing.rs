//! Answers that come late, bad, or bit by bit.

use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, StatusCode, header};
use http_body_util::StreamBody;
use hyper::body::Frame;

use super::{
    body::{Body, BodyError, Response, json, ok, problem, status_only},
    query_number, query_value,
};

/// `/v1/delay/{ms}`: answers after that time; ten minutes at most.
pub(super) async fn delay(milliseconds: &str) -> Response {
    match milliseconds.parse::<u64>() {
        Ok(ms) if ms <= 600_000 => {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            json(&serde_json::json!({ "delayed_ms": ms }))
        }
        _ => problem(StatusCode::BAD_REQUEST, "write it as /v1/delay/250: milliseconds, 600000 at most"),
    }
}

/// `/v1/status/{code}`: that status; with `?retry_after=` the field of that name.
pub(super) fn status(code: &str, query: Option<&str>) -> Response {
    let status = match code.parse::<u16>().ok().and_then(|code| StatusCode::from_u16(code).ok()) {
        Some(status) if status.as_u16() >= 200 => status,
        _ => return problem(StatusCode::BAD_REQUEST, "write it as /v1/status/503: a final status, 200 to 999"),
    };
    let mut response = match status {
        StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED => status_only(status),
        _ => problem(status, "this status was asked for"),
    };
    if let Some(value) = query_value(query, "retry_after").and_then(|text| HeaderValue::from_str(&text).ok()) {
        response.headers_mut().insert(header::RETRY_AFTER, value);
    }
    response
}

/// `/v1/stream?count=10&interval_ms=1000`: server-sent events, each sent as soon as it is due.
pub(super) fn stream(query: Option<&str>) -> Response {
    let count: u64 = query_number(query, "count").unwrap_or(10);
    let interval = Duration::from_millis(query_number(query, "interval_ms").unwrap_or(1000));
    let events = stream::unfold(0, move |number| async move {
        if number == count {
            return None;
        }
        if number > 0 {
            tokio::time::sleep(interval).await;
        }
        let event = format!("id: {number}\nevent: tick\ndata: {{\"number\":{number},\"of\":{count}}}\n\n");
        Some((Ok::<_, BodyError>(Frame::data(Bytes::from(event))), number + 1))
    });
    let mut response = ok("text/event-stream", Body::streamed(StreamBody::new(events)));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
