//! What only requests that go upstream pay: the breaker, and the upstream's bound of requests in flight.

use http::{HeaderValue, header::RETRY_AFTER};
use pingora_core::Result;
use pingora_proxy::Session;

use super::{RequestContext, Shared, cache, failure};
use crate::{
    policy::Refusal,
    respond::{self, problem::ProblemKind},
    upstream::{breaker::Refused, pool::UpstreamPool},
};

/// `false`: the request was answered here.
pub(super) async fn filter(shared: &Shared, session: &mut Session, ctx: &mut RequestContext) -> Result<bool> {
    let Some(pool) = &ctx.exchange.pool else { return Ok(true) };
    match pool.admit() {
        Ok(permit) => {
            ctx.exchange.permit = Some(permit);
            Ok(true)
        }
        Err(refused) => {
            let refusal = refusal(refused, pool);
            if failure::may_serve_stale(ctx) {
                return Box::pin(cache::serve_stale(session, ctx)).await.map(|()| false);
            }
            // Boxed, so that what few requests need makes no room in the future of all.
            Box::pin(respond::refuse(shared, session, ctx, &refusal)).await?;
            Ok(false)
        }
    }
}

fn refusal(refused: Refused, pool: &UpstreamPool) -> Refusal {
    let (kind, detail, wait) = match refused {
        Refused::Open => {
            let open_for = pool.profile().config.breaker.open_for.get();
            // Rounded up: who comes back in time must not come too early.
            (
                ProblemKind::BreakerOpen,
                "The service is being given time to recover.",
                open_for.as_millis().div_ceil(1000).max(1),
            )
        }
        Refused::TooManyInFlight => (ProblemKind::Overloaded, "The service is handling as many requests as it can.", 1),
    };
    Refusal::new(kind, detail).with_header(RETRY_AFTER, HeaderValue::from(u64::try_from(wait).unwrap_or(u64::MAX)))
}
