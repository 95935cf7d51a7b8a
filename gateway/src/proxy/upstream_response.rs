//! The head of an upstream's response: how the attempt went, and whether there will be another.

use http::{StatusCode, header};
use pingora_core::{Error, ErrorType, Result};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use super::{RequestContext, Shared, failure};
use crate::{
    server::peer::Peer,
    upstream::{endpoint::Outcome, retry::Failure},
};

pub(super) fn filter(
    shared: &Shared,
    session: &mut Session,
    response: &mut ResponseHeader,
    ctx: &mut RequestContext,
) -> Result<()> {
    // Hints on the way to the response (RFC 9110 §15.2) are not it.
    if response.status.is_informational() && response.status != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(());
    }
    if let Some(attempt) = &mut ctx.exchange.attempt {
        attempt.observe(Outcome::Status(response.status));
    }
    if failure::may_retry(shared, session, ctx, Failure::Status(response.status), true) {
        let mut error = Error::explain(ErrorType::HTTPStatus(response.status.as_u16()), "tried again");
        error.as_up();
        error.set_retry(true);
        return Err(error);
    }
    ctx.exchange.status = Some(response.status);
    ctx.exchange.headers_after = ctx.exchange.first_attempt_at.map(|at| at.elapsed());
    if let (Some(peer), Some(route)) = (Peer::of(session), ctx.route()) {
        let quiet = ctx.may_be_quiet
            || response.status == StatusCode::SWITCHING_PROTOCOLS
            || response
                .headers
                .get(header::CONTENT_TYPE)
                .is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"));
        if quiet {
            peer.watch.disarm();
        } else {
            peer.watch.arm(route.policies.timeouts.idle.get());
        }
    }
    Ok(())
}
