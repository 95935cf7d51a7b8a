//! The body of a response on its way to the client: JSON transform, then compression.

use std::time::Duration;

use bytes::Bytes;
use pingora_core::{Error, ErrorType, Result};
use pingora_proxy::Session;

use super::RequestContext;
use crate::server::peer::Peer;

/// Larger bodies are not transformed; the exchange is broken off, since half of one cannot be.
const MAX_TRANSFORMED: usize = 1 << 20;

pub(super) fn filter(
    session: &Session,
    body: &mut Option<Bytes>,
    end_of_stream: bool,
    ctx: &mut RequestContext,
) -> Result<Option<Duration>> {
    if let Some(peer) = Peer::of(session) {
        peer.watch.progress();
    }
    if let Some(collected) = &mut ctx.response_body.collected {
        if let Some(piece) = body.take() {
            if collected.len() + piece.len() > MAX_TRANSFORMED {
                return Err(Error::explain(ErrorType::InternalError, "the response is too large to be transformed"));
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

fn transform(ctx: &RequestContext, whole: Vec<u8>) -> Result<Option<Bytes>> {
    let Some(program) = ctx.route().and_then(|route| route.policies.response_body.as_ref()) else {
        return Ok(Some(whole.into()));
    };
    if whole.is_empty() {
        return Ok(None);
    }
    program
        .run_here(&whole)
        .map(Some)
        .map_err(|error| Error::explain(ErrorType::InternalError, format!("transforming a response: {error}")))
}
