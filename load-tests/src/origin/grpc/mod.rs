//! A gRPC echo over HTTP/2, and the standard health service.
//!
//! Messages are opaque here: only their frames (`frame`) are read, so that any client with any message
//! type can call `/seiketsu.demo.v1.Echo/{method}`:
//!
//! | method | answer |
//! |---|---|
//! | `Unary` | the one message |
//! | `ServerStream` | the one message, as often as the metadata `x-repeat` says (3) |
//! | `ClientStream` | all messages in one, joined; for protobuf that is their merge |
//! | `Bidi` | each message, as soon as it is there |
//!
//! The metadata `x-grpc-status: N` asks for that status instead, and `x-grpc-status-after: N` for that status
//! behind the messages. Compressed messages are refused with
//! `UNIMPLEMENTED`, those over 4 MiB with `RESOURCE_EXHAUSTED`.

mod frame;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Version, header::CONTENT_TYPE};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};

use self::frame::{FrameError, Messages, encode};
use super::body::{Body, Response, ok, problem};

const ECHO: &str = "/seiketsu.demo.v1.Echo/";
const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// What a call ends with, beside [`Code::Ok`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Code {
    Ok = 0,
    InvalidArgument = 3,
    NotFound = 5,
    ResourceExhausted = 8,
    Unimplemented = 12,
}

#[derive(Debug)]
struct Refusal {
    code: Code,
    message: String,
}

impl Refusal {
    fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<FrameError> for Refusal {
    fn from(error: FrameError) -> Self {
        let code = match error {
            FrameError::Compressed => Code::Unimplemented,
            FrameError::TooLong { .. } => Code::ResourceExhausted,
            FrameError::Truncated | FrameError::Body(_) => Code::InvalidArgument,
        };
        Self::new(code, error.to_string())
    }
}

pub(super) fn is_method(path: &str) -> bool {
    path.starts_with(ECHO) || path == HEALTH_CHECK
}

pub(super) async fn call(request: Request<Incoming>, healthy: bool) -> Response {
    if request.version() != Version::HTTP_2 || request.method() != Method::POST {
        return problem(StatusCode::UPGRADE_REQUIRED, "gRPC is a POST over HTTP/2");
    }
    let (head, body) = request.into_parts();
    if let Some(code) = asked_for_status(&head.headers) {
        return trailers_only(code, "this status was asked for");
    }
    let end = number(&head.headers, "x-grpc-status-after").unwrap_or(Code::Ok as u16);
    let messages = Messages::read(body);
    let answer = match head.uri.path() {
        HEALTH_CHECK => check(messages, healthy).await,
        path => match &path[ECHO.len()..] {
            "Unary" => single(messages).await.map(|message| replies(stream::iter([Ok(message)]), end)),
            "ServerStream" => {
                let repeat = number(&head.headers, "x-repeat").unwrap_or(3);
                single(messages)
                    .await
                    .map(|message| replies(stream::iter(vec![Ok(message); repeat.min(1_000_000)]), end))
            }
            "ClientStream" => joined(messages).await.map(|message| replies(stream::iter([Ok(message)]), end)),
            "Bidi" => Ok(replies(messages, end)),
            method => Err(Refusal::new(Code::Unimplemented, format!("Echo has no method {method}"))),
        },
    };
    answer.unwrap_or_else(|refusal| trailers_only(refusal.code as u16, &refusal.message))
}

async fn single(messages: impl Stream<Item = Result<Bytes, FrameError>>) -> Result<Bytes, Refusal> {
    let mut messages = std::pin::pin!(messages);
    match (messages.next().await.transpose()?, messages.next().await.transpose()?) {
        (Some(message), None) => Ok(message),
        _ => Err(Refusal::new(Code::InvalidArgument, "this method takes exactly one message")),
    }
}

async fn joined(messages: impl Stream<Item = Result<Bytes, FrameError>>) -> Result<Bytes, Refusal> {
    let all = messages.try_fold(BytesMut::new(), |mut all, message| async move {
        all.extend_from_slice(&message);
        if all.len() > frame::MAX_MESSAGE { Err(FrameError::TooLong { length: all.len() }) } else { Ok(all) }
    });
    Ok(all.await?.freeze())
}

/// `grpc.health.v1.Health/Check`: of the server as a whole (no name) or of the echo service.
async fn check(messages: Messages, healthy: bool) -> Result<Response, Refusal> {
    let request = single(messages).await?;
    // HealthCheckRequest { string service = 1; }, whose only field is a short string.
    let service = match request.as_ref() {
        [] => "",
        [0x0a, length, name @ ..] if usize::from(*length) == name.len() && *length < 0x80 => std::str::from_utf8(name)
            .map_err(|_| Refusal::new(Code::InvalidArgument, "the service name is not UTF-8"))?,
        _ => return Err(Refusal::new(Code::InvalidArgument, "not a HealthCheckRequest")),
    };
    if !matches!(service, "" | "seiketsu.demo.v1.Echo") {
        return Err(Refusal::new(Code::NotFound, format!("no service {service}")));
    }
    // HealthCheckResponse { ServingStatus status = 1; } with SERVING = 1, NOT_SERVING = 2.
    let status: &'static [u8] = if healthy { &[0x08, 1] } else { &[0x08, 2] };
    Ok(replies(stream::iter([Ok(Bytes::from_static(status))]), Code::Ok as u16))
}

/// The messages as frames, and behind them this status as trailers.
fn replies(messages: impl Stream<Item = Result<Bytes, FrameError>> + Send + 'static, end: u16) -> Response {
    enum Next<S> {
        Message(S),
        End,
    }
    let frames = stream::unfold(Next::Message(Box::pin(messages)), move |next| async move {
        let Next::Message(mut messages) = next else { return None };
        Some(match messages.next().await {
            Some(Ok(message)) => (Ok::<_, FrameError>(Frame::data(encode(&message))), Next::Message(messages)),
            Some(Err(error)) => {
                let refusal = Refusal::from(error);
                (Ok(Frame::trailers(status_fields(refusal.code as u16, &refusal.message))), Next::End)
            }
            None => (Ok(Frame::trailers(status_fields(end, ""))), Next::End),
        })
    });
    ok("application/grpc", Body::streamed(StreamBody::new(frames)))
}

/// A status without any message: it stands in the head, and there is no body.
fn trailers_only(code: u16, message: &str) -> Response {
    let mut response = Response::new(Body::empty());
    *response.headers_mut() = status_fields(code, message);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

fn status_fields(code: u16, message: &str) -> HeaderMap {
    let mut fields = HeaderMap::with_capacity(2);
    fields.insert(GRPC_STATUS, HeaderValue::from(code));
    if !message.is_empty() {
        let encoded: String = url::form_urlencoded::byte_serialize(message.as_bytes()).collect();
        if let Ok(value) = HeaderValue::from_str(&encoded.replace('+', "%20")) {
            fields.insert(GRPC_MESSAGE, value);
        }
    }
    fields
}

fn asked_for_status(headers: &HeaderMap) -> Option<u16> {
    number(headers, "x-grpc-status")
}

fn number<T: std::str::FromStr>(headers: &HeaderMap, name: &str) -> Option<T> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

impl Messages {
    fn read(body: Incoming) -> Self {
        Self::new(body.into_data_stream().map_err(|error| FrameError::Body(error.to_string())))
    }
}
