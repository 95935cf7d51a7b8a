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
        // The whole of it with the end, in place of every piece. Before that, a piece of nothing: none at all is an end.
        *body = Some(if end_of_stream { replacement.clone() } else { Bytes::new() });
    } else if !session.was_upgraded() {
        count(body.as_ref().map_or(0, Bytes::len), ctx)?;
    }
    if end_of_stream {
        // Pingora would write a last piece of nothing as a chunk, which is the end of the body, and then the end. The
        // second end is the beginning of the next request to an HTTP/1 upstream.
        *body = body.take().filter(|piece| !piece.is_empty());
    }
    Ok(())
}

fn count(length: usize, ctx: &mut RequestContext) -> Result<()> {
    if let Some(counter) = &mut ctx.request_body.counter
        && let Err(exceeded) = counter.count(length)
    {
        ctx.refusal = Some(Refusal::from(exceeded));
        return Err(Error::explain(ErrorType::HTTPStatus(413), "the request body is larger than the route allows"));
    }
    Ok(())
}
