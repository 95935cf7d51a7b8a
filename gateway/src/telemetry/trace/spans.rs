//! The spans of a request, by the semantic conventions of OpenTelemetry for HTTP.

use std::{borrow::Cow, time::SystemTime};

use http::Version;
use opentelemetry::{
    InstrumentationScope, KeyValue,
    trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState},
};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::context::{SAMPLED, TraceContext};
use crate::telemetry::access_log::{AccessRecord, UpstreamRecord};

/// Texts of clients are cut to this.
const MAX_TEXT: usize = 256;

/// The server span, and where an upstream was asked, the client span below it.
pub(super) fn spans_of(
    context: &TraceContext,
    record: &AccessRecord<'_>,
    scope: &InstrumentationScope,
) -> impl Iterator<Item = SpanData> {
    let server = SpanData {
        parent_span_id: SpanId::from(context.parent_id),
        parent_span_is_remote: context.parent_id != 0,
        span_kind: SpanKind::Server,
        name: span_name(record),
        attributes: server_attributes(record),
        status: status(record.status, 500),
        ..empty_span(context, context.span_id, record.started, record.started + record.duration, scope)
    };
    let client = record.upstream.as_ref().map(|upstream| {
        let start = record.started + upstream.began_after;
        SpanData {
            parent_span_id: SpanId::from(context.span_id),
            span_kind: SpanKind::Client,
            name: method(record).into(),
            attributes: client_attributes(record, upstream),
            status: status(upstream.status, 400),
            ..empty_span(context, context.upstream_span_id, start, start + upstream.duration, scope)
        }
    });
    [Some(server), client].into_iter().flatten()
}

fn empty_span(
    context: &TraceContext,
    id: u64,
    start_time: SystemTime,
    end_time: SystemTime,
    scope: &InstrumentationScope,
) -> SpanData {
    SpanData {
        span_context: SpanContext::new(
            TraceId::from(context.trace_id),
            SpanId::from(id),
            TraceFlags::new(context.flags | SAMPLED),
            false,
            TraceState::NONE,
        ),
        parent_span_id: SpanId::INVALID,
        parent_span_is_remote: false,
        span_kind: SpanKind::Internal,
        name: Cow::Borrowed(""),
        start_time,
        end_time,
        attributes: Vec::new(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: scope.clone(),
    }
}

/// Method and route: few different names, none of a client's making.
fn span_name(record: &AccessRecord<'_>) -> Cow<'static, str> {
    match record.route {
        "" => method(record).into(),
        route => format!("{} {route}", method(record)).into(),
    }
}

/// Unknown methods all look alike (semantic conventions, `http.request.method`).
fn method(record: &AccessRecord<'_>) -> &'static str {
    const KNOWN: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"];
    KNOWN.into_iter().find(|known| *known == record.method).unwrap_or("_OTHER")
}

/// An error is a status from `error_from` up, or none at all.
fn status(code: u16, error_from: u16) -> Status {
    if code == 0 || code >= error_from { Status::error("") } else { Status::Unset }
}

fn server_attributes(record: &AccessRecord<'_>) -> Vec<KeyValue> {
    let protocol = match record.protocol {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        Version::HTTP_3 => "3",
        _ => "1.1",
    };
    let mut attributes = vec![
        KeyValue::new("http.request.method", method(record)),
        KeyValue::new("url.scheme", if record.tls.is_empty() { "http" } else { "https" }),
        KeyValue::new("url.path", text(record.path)),
        KeyValue::new("server.address", text(record.host)),
        KeyValue::new("network.protocol.version", protocol),
        KeyValue::new("client.address", record.client.to_string()),
        KeyValue::new("http.request.body.size", number(record.bytes_in)),
        KeyValue::new("http.response.body.size", number(record.bytes_out)),
        KeyValue::new("seiketsu.request_id", record.request_id.to_owned()),
    ];
    if record.status != 0 {
        attributes.push(KeyValue::new("http.response.status_code", i64::from(record.status)));
    }
    if !record.user_agent.is_empty() {
        attributes.push(KeyValue::new("user_agent.original", text(record.user_agent)));
    }
    if let Some(refusal) = record.refusal {
        attributes.push(KeyValue::new("error.type", refusal.name()));
    }
    for (name, value) in
        [("seiketsu.tenant", record.tenant), ("seiketsu.route", record.route), ("seiketsu.consumer", record.consumer)]
    {
        if !value.is_empty() {
            attributes.push(KeyValue::new(name, value.to_owned()));
        }
    }
    attributes
}

fn client_attributes(record: &AccessRecord<'_>, upstream: &UpstreamRecord<'_>) -> Vec<KeyValue> {
    let mut attributes = vec![
        KeyValue::new("http.request.method", method(record)),
        KeyValue::new("seiketsu.upstream", upstream.name.to_owned()),
    ];
    if let Some(address) = upstream.address {
        attributes.push(KeyValue::new("server.address", address.ip().to_string()));
        attributes.push(KeyValue::new("server.port", i64::from(address.port())));
    }
    if upstream.status != 0 {
        attributes.push(KeyValue::new("http.response.status_code", i64::from(upstream.status)));
    }
    if upstream.attempts > 1 {
        attributes.push(KeyValue::new("http.request.resend_count", i64::from(upstream.attempts) - 1));
    }
    attributes
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_TEXT)]).into_owned()
}

fn number(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
