//! The request's body on its way to the upstream: its bound, and what replaces it.

use bytes::Bytes;
use pingora_core::{Error, ErrorType, Result};
use pingora_proxy::Session;

use super::RequestContext;
use crate::policy::Refusal;

pub(super) fn filter(
    session: &Session,
    body: &mut Option<Bytes>,
    end_of_stream: bool,
    ctx: &mut RequestContext,
) -> Result<()> {
    if let Some(replacement) = &ctx.request_body.replacement {
        // The whole of it with the end, in place of every piece.
        *body = end_of_stream.then(|| replacement.clone());
        return Ok(());
    }
    let length = body.as_ref().map_or(0, Bytes::len);
    if session.was_upgraded() {
        return Ok(());
    }
    if let Some(counter) = &mut ctx.request_body.counter
        && let Err(exceeded) = counter.count(length)
    {
        ctx.refusal = Some(Refusal::from(exceeded));
        return Err(Error::explain(ErrorType::HTTPStatus(413), "the request body is larger than the route allows"));
    }
    Ok(())
}
