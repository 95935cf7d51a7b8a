//! When an attempt fails: whether there will be another, and what the client is told if not.

use std::time::SystemTime;

use http::{StatusCode, Version, header};
use pingora_core::{Error, ErrorSource, ErrorType, Result, protocols::http::ServerSession};
use pingora_proxy::{FailToProxy, Session};

use super::{RequestContext, Shared, cache};
use crate::{
    policy::Refusal,
    respond::{self, problem::ProblemKind},
    server::{chunked::ChunkError, peer::Peer, transport::Transport, watch::Overdue},
    upstream::{
        cause,
        endpoint::Outcome,
        retry::{Attempt, Failure, Verdict},
    },
};

/// Whether another attempt is made; if so, its pause is noted.
pub(super) fn may_retry(
    shared: &Shared,
    session: &mut Session,
    ctx: &mut RequestContext,
    failure: Failure,
    may_have_arrived: bool,
) -> bool {
    if !failure.is_ever_retried() {
        return false;
    }
    let Some(retries) = ctx.route().map(|route| route.policies.retries.clone()) else { return false };
    let Some(pool) = ctx.exchange.pool.clone() else { return false };
    let downstream = session.as_downstream_mut();
    let untouched = downstream.is_body_empty() || downstream.body_bytes_read() == 0;
    let replayable = untouched || (downstream.is_body_done() && !downstream.retry_buffer_truncated());
    if ctx.websocket && may_have_arrived {
        return false;
    }
    let method = downstream.req_header().method.clone();
    let attempt = Attempt { method: &method, failure, made: ctx.exchange.attempts, may_have_arrived, replayable };
    match pool.may_retry(&retries, &attempt) {
        Verdict::Again(pause) => {
            ctx.exchange.backoff = Some(pause);
            ctx.exchange.attempt = None;
            true
        }
        Verdict::Final => false,
        Verdict::BudgetSpent => {
            shared.metrics.node.retries_denied.inc();
            false
        }
    }
}

/// No connection came about.
pub(super) fn to_connect(
    shared: &Shared,
    session: &mut Session,
    ctx: &mut RequestContext,
    mut error: Box<Error>,
) -> Box<Error> {
    if let Some(attempt) = ctx.exchange.attempt.take() {
        attempt.finish(Outcome::ConnectFailed);
    }
    if let Some(place) = &mut ctx.exchange.place {
        place.failed();
    }
    note_cause(ctx, &error, cause::of_connect(&error));
    let retry = may_retry(shared, session, ctx, Failure::Connect, false);
    error.set_retry(retry);
    if !retry {
        cache::let_go_of_waiting(session, ctx);
        ctx.refusal = Some(match error.etype() {
            ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout => {
                Refusal::new(ProblemKind::UpstreamTimeout, "The service cannot be reached.")
            }
            // Somebody is there, but not the one who should be.
            ErrorType::TLSHandshakeFailure
            | ErrorType::TLSWantX509Lookup
            | ErrorType::InvalidCert
            | ErrorType::HandshakeError => {
                Refusal::new(ProblemKind::UpstreamError, "No secure connection to the service could be made.")
            }
            _ => Refusal::new(ProblemKind::UpstreamUnavailable, "The service cannot be reached."),
        });
    }
    error
}

/// For the access log, and for the log if it will go on like that until somebody does something about it.
fn note_cause(ctx: &mut RequestContext, error: &Error, cause: &'static str) {
    ctx.exchange.failure = Some(cause);
    if cause::of_tls(error).is_some()
        && let Some(endpoint) = &ctx.exchange.endpoint
    {
        endpoint.warn_of_tls(cause, error);
    }
}

/// The exchange broke off.
pub(super) fn while_proxying(
    shared: &Shared,
    session: &mut Session,
    mut error: Box<Error>,
    ctx: &mut RequestContext,
    reused: bool,
) -> Box<Error> {
    if ctx.refusal.is_some() {
        error.set_retry(false);
        return error;
    }
    // Already decided, on the head of a response.
    if matches!(error.etype(), ErrorType::HTTPStatus(_)) && *error.esource() == ErrorSource::Upstream {
        return error;
    }
    let answered = is_answered(session) || ctx.exchange.status.is_some();
    let (failure, outcome) = match (Overdue::in_error(&error), error.esource(), error.etype()) {
        (Some(Overdue::Response), ..) => (Failure::Timeout, Outcome::Timeout),
        (Some(Overdue::RequestBody), ..) => {
            ctx.refusal = Some(Refusal::new(ProblemKind::RequestTimeout, "The body came too slowly."));
            error.set_retry(false);
            return error;
        }
        (None, ErrorSource::Upstream, ErrorType::ReadTimedout | ErrorType::WriteTimedout) => {
            (Failure::Timeout, Outcome::Timeout)
        }
        (None, ErrorSource::Upstream, _) => (Failure::Reset, Outcome::Reset),
        // The client left, or the gateway failed: that says nothing about the upstream.
        _ => {
            error.set_retry(false);
            return error;
        }
    };
    match failure {
        Failure::Timeout => ctx.exchange.failure = Some("timeout"),
        _ => note_cause(ctx, &error, cause::of_break(&error)),
    }
    // A connection from the pool that the upstream had closed meanwhile says nothing about its health.
    let stale = reused && failure == Failure::Reset && !answered;
    let refused = was_refused(&error);
    if let Some(mut attempt) = ctx.exchange.attempt.take()
        && !stale
        && !refused
    {
        attempt.observe(outcome);
    }
    let retry =
        !answered && (stale && may_repeat_once(session, ctx) || may_retry(shared, session, ctx, failure, !refused));
    error.set_retry(retry);
    if !retry {
        cache::let_go_of_waiting(session, ctx);
    }
    if !retry && !answered {
        ctx.refusal = Some(match failure {
            Failure::Timeout => Refusal::new(ProblemKind::UpstreamTimeout, "The service did not answer in time."),
            _ => Refusal::new(ProblemKind::UpstreamError, "The service broke off."),
        });
    }
    error
}

/// Whether an upstream on HTTP/2 says that it has not looked at the request (RFC 9113 §8.7): it refused
/// the stream, or said goodbye before it. The goodbye of one that restarts is no failure.
fn was_refused(error: &Error) -> bool {
    let cause = error.root_cause().downcast_ref::<h2::Error>();
    cause.is_some_and(|cause| {
        cause.is_remote() && (cause.is_go_away() || cause.reason() == Some(h2::Reason::REFUSED_STREAM))
    })
}

/// Whether the client has the head of a response. Hints on the way to it (RFC 9110 §15.2) leave everything open.
fn is_answered(session: &Session) -> bool {
    session.response_written().is_some_and(|response| !response.status.is_informational())
}

/// An upstream may close a pooled connection at the very moment we use it. That is nobody's fault, and
/// no reason to spend the retry budget: such a request is sent again, once, if that is safe.
fn may_repeat_once(session: &mut Session, ctx: &mut RequestContext) -> bool {
    let downstream = session.as_downstream_mut();
    let safe = downstream.req_header().method.is_idempotent() && downstream.is_body_empty();
    let first = !ctx.exchange.repeated;
    if safe && first {
        ctx.exchange.repeated = true;
    }
    safe && first
}

/// Whether a failure lets the client have what is stored, although it is stale (RFC 5861 §4).
pub(super) fn serves_stale(session: &mut Session, ctx: &mut RequestContext, error: Option<&Error>) -> bool {
    // Stale responses that are being validated meanwhile were served before Pingora was asked.
    let Some(error) = error else { return false };
    let by_status = match error.etype() {
        ErrorType::HTTPStatus(status) if *error.esource() == ErrorSource::Upstream => Some(*status),
        _ => None,
    };
    let failed = by_status.is_none_or(is_failure);
    let gone = *error.esource() == ErrorSource::Downstream && Overdue::in_error(error) != Some(Overdue::Response);
    if !failed || gone || !may_serve_stale(ctx) {
        return false;
    }
    if let Some(status) = by_status.and_then(|status| StatusCode::from_u16(status).ok()) {
        ctx.exchange.status = Some(status);
        if let Some(attempt) = &mut ctx.exchange.attempt {
            attempt.observe(Outcome::Status(status));
        }
    }
    if let Some(peer) = Peer::of(session) {
        peer.watch.disarm();
    }
    ctx.refusal = None;
    if let Some(stored) = ctx.cache.fetch.as_ref().and_then(|fetch| fetch.stored.as_ref()) {
        stored.validation_failed();
    }
    cache::note_stale(ctx, by_status);
    true
}

/// Whether there is something stored that may be served when the origin fails.
pub(super) fn may_serve_stale(ctx: &RequestContext) -> bool {
    let Some(fetch) = &ctx.cache.fetch else { return false };
    let Some(stored) = &fetch.stored else { return false };
    let asked = &fetch.asked;
    stored.rules.serves_on_error(&asked.directives, asked.stale, SystemTime::now().into())
        // It may have been purged while the origin was asked.
        && asked.partition.still_holds(&asked.resource, stored)
}

/// Whether the answer of an upstream is a failure for which a stale response may stand in (RFC 5861 §4).
fn is_failure(status: u16) -> bool {
    matches!(status, 500 | 502 | 503 | 504)
}

/// In place of an error that an upstream has answered with, where Pingora's cache has been left, since the request has
/// waited for others in vain: what is stored may still stand in.
pub(super) fn give_way_to_stale(session: &Session, status: StatusCode, ctx: &RequestContext) -> Result<()> {
    if session.cache.enabled() || !is_failure(status.as_u16()) || !may_serve_stale(ctx) {
        return Ok(());
    }
    let mut error = Error::explain(ErrorType::HTTPStatus(status.as_u16()), "a stale response is served instead");
    error.as_up();
    error.set_retry(false);
    Err(error)
}

/// The last word to the client, if there still is one to be said.
pub(super) async fn answer(
    shared: &Shared,
    session: &mut Session,
    error: &Error,
    ctx: &mut RequestContext,
) -> FailToProxy {
    if let Some(peer) = Peer::of(session) {
        peer.watch.disarm();
        if matches!(error.etype(), ErrorType::H2Error) && *error.esource() == ErrorSource::Downstream {
            peer.count_reset();
        }
    }
    if let Some(refusal) = of_body(error) {
        ctx.refusal.get_or_insert(refusal);
    }
    let gone = *error.esource() == ErrorSource::Downstream
        && matches!(error.etype(), ErrorType::WriteError | ErrorType::ReadError | ErrorType::ConnectionClosed)
        && ctx.refusal.is_none();
    if let Some(response) = session.response_written().filter(|response| !response.status.is_informational()) {
        let ends_with_connection = !response.headers.contains_key(header::CONTENT_LENGTH)
            && !response.headers.contains_key(header::TRANSFER_ENCODING);
        if ends_with_connection {
            break_off(session);
        }
        return FailToProxy { error_code: 0, can_reuse_downstream: false };
    }
    if gone {
        return FailToProxy { error_code: 0, can_reuse_downstream: false };
    }
    if !is_innocent(session, error) {
        // The client is told, so that it sends nothing more on this connection.
        session.set_keepalive(None);
    }
    let stands_in =
        serves_stale(session, ctx, Some(error)).then(|| ctx.cache.fetch.as_ref()?.serving.clone()).flatten();
    let (sent, status) = if let Some(stored) = stands_in {
        (Box::pin(cache::serve(session, ctx, &stored)).await, stored.status)
    } else {
        let refusal = ctx.refusal.take().unwrap_or_else(|| refusal(error));
        (respond::refuse(shared, session, ctx, &refusal).await, refusal.status())
    };
    if sent.is_ok() && session.req_header().version != Version::HTTP_2 && !keep_connection(session).await {
        session.as_downstream_mut().shutdown().await;
    }
    // Asked for errors of filters only, and told there for all: the connection is kept in another way.
    FailToProxy { error_code: status.as_u16(), can_reuse_downstream: false }
}

/// Whether the client had no part in the failure: an upstream that is down must not cost clients their
/// connections as well.
fn is_innocent(session: &Session, error: &Error) -> bool {
    let of_upstream =
        *error.esource() != ErrorSource::Downstream || Overdue::in_error(error) == Some(Overdue::Response);
    // What a client may already have sent behind an upgrade cannot be told from a request.
    of_upstream && of_body(error).is_none() && !session.as_downstream().is_upgrade_req()
}

/// Leaves the connection open, if the client was told so and nothing of its request is left.
async fn keep_connection(session: &mut Session) -> bool {
    let downstream = session.as_downstream_mut();
    let kept = downstream.get_keepalive().is_some()
        && downstream.drain_request_body().await.is_ok()
        && downstream.is_body_done();
    if let Some(peer) = Peer::of(session)
        && kept
    {
        peer.keep_connection();
    }
    kept
}

/// What was wrong with the request's body, if that is what the exchange failed of.
fn of_body(error: &Error) -> Option<Refusal> {
    if Overdue::in_error(error) == Some(Overdue::RequestBody) {
        return Some(Refusal::new(ProblemKind::RequestTimeout, "The body came too slowly."));
    }
    ChunkError::in_error(error).map(|error| Refusal::new(ProblemKind::BadRequest, error.to_string()))
}

/// Where the connection's end is the end of the body, only a broken connection tells the client that
/// it has not got the whole.
fn break_off(session: &Session) {
    if let ServerSession::H1(session) = session.as_downstream()
        && let Some(transport) = session.stream().as_any().downcast_ref::<Transport>()
    {
        transport.reset_on_close();
    }
}

fn refusal(error: &Error) -> Refusal {
    match error.etype() {
        ErrorType::HTTPStatus(400) => Refusal::new(ProblemKind::BadRequest, "The request is malformed."),
        ErrorType::HTTPStatus(code) if *code == StatusCode::PAYLOAD_TOO_LARGE.as_u16() => {
            Refusal::new(ProblemKind::PayloadTooLarge, "The body is too large.")
        }
        ErrorType::ReadTimedout if *error.esource() == ErrorSource::Downstream => {
            Refusal::new(ProblemKind::RequestTimeout, "The body did not arrive in time.")
        }
        _ => match error.esource() {
            ErrorSource::Upstream => Refusal::new(ProblemKind::UpstreamError, "The service gave no valid answer."),
            ErrorSource::Downstream => Refusal::new(ProblemKind::BadRequest, "The request is malformed."),
            ErrorSource::Internal | ErrorSource::Unset => {
                tracing::error!(%error, "a request failed in the gateway");
                Refusal::new(ProblemKind::Internal, "")
            }
        },
    }
}
