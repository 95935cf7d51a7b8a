//! The body of a response on its way to the client: JSON transform, then compression.

use std::time::Duration;

use bytes::Bytes;
use pingora_core::{Error, ErrorType, Result};
use pingora_proxy::Session;
use tokio::task::yield_now;

use super::{Downstream, RequestContext};
use crate::{
    cache::adapter::PIECE,
    policy::body_transform::{Body as TransformedBody, TransformFailure},
};

/// Larger bodies are not transformed; the exchange is broken off, since half of one cannot be.
const MAX_TRANSFORMED: usize = 1 << 20;

pub(super) fn filter(
    downstream: &impl Downstream,
    body: &mut Option<Bytes>,
    end_of_stream: bool,
    ctx: &mut RequestContext,
) -> Result<Option<Duration>> {
    if let Some(peer) = downstream.peer() {
        peer.watch.progress();
    }
    if ctx.cache.head_only {
        *body = None;
        return Ok(None);
    }
    if let Some(collected) = &mut ctx.response_body.collected {
        if let Some(piece) = body.take() {
            if collected.len() + piece.len() > MAX_TRANSFORMED {
                return Err(not_transformed(ctx, &TransformFailure::TooLarge));
            }
            collected.extend_from_slice(&piece);
        }
        if !end_of_stream {
            return Ok(None);
        }
        let whole = std::mem::take(collected);
        *body = transform(ctx, whole)?;
        ctx.response_body.collected = None;
    }
    if let Some(encoder) = &mut ctx.response_body.encoder {
        let piece = body.take().unwrap_or_default();
        let encoded = encoder
            .push(&piece, end_of_stream)
            .map_err(|error| Error::because(ErrorType::InternalError, "compressing a response", error))?;
        *body = (!encoded.is_empty()).then_some(encoded);
    }
    Ok(None)
}

/// The next piece of a long body that is there as a whole, as the client gets it, and whether it is the last. All others
/// whom the worker serves have their turn before it.
pub(super) async fn next_piece(
    downstream: &impl Downstream,
    left: &mut Bytes,
    ctx: &mut RequestContext,
) -> Result<(Option<Bytes>, bool)> {
    yield_now().await;
    let mut piece = Some(left.split_to(left.len().min(PIECE)));
    let is_last = left.is_empty();
    filter(downstream, &mut piece, is_last, ctx)?;
    Ok((piece, is_last))
}

/// Whether a body that is there as a whole is compressed while it is sent.
pub(super) fn goes_in_pieces(body: Option<&Bytes>, ctx: &RequestContext) -> bool {
    // What a transform makes of it is only known when it is done.
    body.is_some_and(|body| body.len() > PIECE) && ctx.response_body.is_left() && ctx.response_body.collected.is_none()
}

/// Where trailers follow, no piece of the body has said that it is the last one. What is left of it takes their
/// place: they speak of bytes that nobody will get.
pub(super) fn end_before_trailers(session: &Session, ctx: &mut RequestContext) -> Result<()> {
    let mut last = None;
    filter(session, &mut last, true, ctx)?;
    ctx.response_body.last = last;
    Ok(())
}

fn transform(ctx: &mut RequestContext, whole: Vec<u8>) -> Result<Option<Bytes>> {
    let Some(program) = ctx.route().and_then(|route| route.policies.response_body.clone()) else {
        return Ok(Some(whole.into()));
    };
    if whole.is_empty() {
        return Ok(None);
    }
    program.run_here(&whole).map(Some).map_err(|failure| not_transformed(ctx, &failure))
}

/// Where the head is still here, the client is told; where it has gone, the exchange is broken off, so
/// that nobody takes a part for the whole.
fn not_transformed(ctx: &mut RequestContext, failure: &TransformFailure) -> Box<Error> {
    if let Some(route) = ctx.route() {
        tracing::info!(route = %route.id, %failure, "a response body could not be transformed");
    }
    ctx.refusal = Some(failure.refusal(TransformedBody::OfResponse));
    let mut error = Error::explain(ErrorType::InvalidHTTPHeader, "the response could not be transformed");
    error.as_up();
    error
}
