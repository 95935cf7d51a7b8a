//! The life of a request on Pingora: one file per hook, and this one, which only delegates.
//! `LIFECYCLE.md` tells the story in order.

mod cache;
mod cache_hit;
mod context;
mod downstream;
mod early_request;
mod failure;
pub(crate) mod fast_path;
mod logging;
mod parts;
mod request;
mod request_body;
mod request_cache;
mod response;
mod response_body;
mod response_cache;
mod shared;
mod upstream_admission;
mod upstream_peer;
mod upstream_request;
mod upstream_response;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderMap;
use pingora_cache::{CacheKey, CacheMeta, ForcedFreshness, HitHandler, NoCacheReason, RespCacheable};
use pingora_core::{
    Error, ErrorType, Result, modules::http::HttpModules, protocols::Digest, upstreams::peer::HttpPeer,
};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, RangeType, Session};
use seiketsu_limits::shedding::Shedder;

pub(crate) use self::context::RequestContext;
pub(crate) use self::downstream::Downstream;
pub(crate) use self::parts::{change_request, change_response};
pub(crate) use self::shared::{Shared, SharedError, identity};
use crate::upstream::joining::Joining;

/// What Pingora calls. One per worker; all share the same state.
pub(crate) struct Gateway {
    shared: Arc<Shared>,
    /// None where load shedding is off.
    shedder: Option<Arc<Shedder>>,
    joining: Joining,
    /// Which worker this is.
    worker: usize,
}

impl Gateway {
    pub(crate) fn new(shared: Arc<Shared>, shedder: Option<Arc<Shedder>>, worker: usize) -> Self {
        Self { shared, shedder, joining: Joining::default(), worker }
    }
}

#[async_trait]
impl ProxyHttp for Gateway {
    /// Boxed: Pingora moves it through several futures.
    type CTX = Box<RequestContext>;

    fn new_ctx(&self) -> Box<RequestContext> {
        Box::new(RequestContext::new())
    }

    fn init_downstream_modules(&self, _: &mut HttpModules) {
        // Pingora would add its compression module; ours is decided by policy, in `response`.
    }

    async fn early_request_filter(&self, session: &mut Session, ctx: &mut Box<RequestContext>) -> Result<()> {
        early_request::filter(&self.shared, session, ctx);
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Box<RequestContext>) -> Result<bool> {
        request::filter(&self.shared, self.shedder.as_ref(), self.worker, session, ctx).await
    }

    fn request_cache_filter(&self, session: &mut Session, ctx: &mut Box<RequestContext>) -> Result<()> {
        request_cache::filter(&self.shared, session, ctx);
        Ok(())
    }

    fn cache_key_callback(&self, _: &Session, ctx: &mut Box<RequestContext>) -> Result<CacheKey> {
        request_cache::key(ctx)
    }

    fn cache_miss(&self, session: &mut Session, ctx: &mut Box<RequestContext>) {
        if cache::has_come_to_nothing(ctx) {
            // Tells all others that wait, who would else find it out one after the other.
            session.cache.disable(NoCacheReason::ResponseTooLarge);
        } else {
            session.cache.cache_miss();
        }
    }

    async fn cache_hit_filter(
        &self,
        _: &mut Session,
        meta: &CacheMeta,
        _: &mut HitHandler,
        _: bool,
        ctx: &mut Box<RequestContext>,
    ) -> Result<Option<ForcedFreshness>> {
        Ok(cache_hit::filter(meta, ctx))
    }

    fn cache_not_modified_filter(
        &self,
        session: &Session,
        response: &ResponseHeader,
        _: &mut Box<RequestContext>,
    ) -> Result<bool> {
        Ok(cache_hit::is_not_modified(session, response))
    }

    fn range_header_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Box<RequestContext>,
    ) -> RangeType {
        cache_hit::range(session, response, ctx)
    }

    fn response_cache_filter(
        &self,
        _: &Session,
        response: &ResponseHeader,
        ctx: &mut Box<RequestContext>,
    ) -> Result<RespCacheable> {
        Ok(response_cache::filter(response, ctx))
    }

    async fn proxy_upstream_filter(&self, session: &mut Session, ctx: &mut Box<RequestContext>) -> Result<bool> {
        upstream_admission::filter(&self.shared, session, ctx).await
    }

    async fn upstream_peer(&self, session: &mut Session, ctx: &mut Box<RequestContext>) -> Result<Box<HttpPeer>> {
        upstream_peer::pick(&self.joining, session, ctx).await
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Box<RequestContext>,
    ) -> Result<()> {
        upstream_request::filter(&self.shared, session, request, ctx)
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Box<RequestContext>,
    ) -> Result<()> {
        request_body::filter(session, body, end_of_stream, ctx)
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Box<RequestContext>,
    ) -> Result<()> {
        upstream_response::filter(&self.shared, session, response, ctx)
    }

    fn upstream_response_trailer_filter(
        &self,
        session: &mut Session,
        trailers: &mut HeaderMap,
        ctx: &mut Box<RequestContext>,
    ) -> Result<()> {
        upstream_response::filter_trailers(trailers, ctx);
        // Not in `response_trailer_filter`: Pingora goes on after an error there, and the client would take a
        // part for the whole.
        response_body::end_before_trailers(session, ctx)
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Box<RequestContext>,
    ) -> Result<()> {
        response::filter(session, response, ctx)
    }

    fn response_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Box<RequestContext>,
    ) -> Result<Option<Duration>> {
        if !end_of_stream && cache::is_in_vain(session, ctx) {
            return Error::e_explain(ErrorType::InternalError, "nobody wants the rest of it");
        }
        response_body::filter(session, body, end_of_stream, ctx)
    }

    async fn response_trailer_filter(
        &self,
        _: &mut Session,
        _: &mut HeaderMap,
        ctx: &mut Box<RequestContext>,
    ) -> Result<Option<Bytes>> {
        Ok(ctx.response_body.last.take())
    }

    async fn connected_to_upstream(
        &self,
        _: &mut Session,
        reused: bool,
        _: &HttpPeer,
        _: std::os::fd::RawFd,
        _: Option<&Digest>,
        ctx: &mut Box<RequestContext>,
    ) -> Result<()> {
        if let Some(place) = &mut ctx.exchange.place {
            place.connected(reused);
        }
        Ok(())
    }

    fn error_while_proxy(
        &self,
        _: &HttpPeer,
        session: &mut Session,
        error: Box<Error>,
        ctx: &mut Box<RequestContext>,
        reused: bool,
    ) -> Box<Error> {
        failure::while_proxying(&self.shared, session, error, ctx, reused)
    }

    fn fail_to_connect(
        &self,
        session: &mut Session,
        _: &HttpPeer,
        ctx: &mut Box<RequestContext>,
        error: Box<Error>,
    ) -> Box<Error> {
        failure::to_connect(&self.shared, session, ctx, error)
    }

    fn should_serve_stale(&self, session: &mut Session, ctx: &mut Box<RequestContext>, error: Option<&Error>) -> bool {
        failure::serves_stale(session, ctx, error)
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, ctx: &mut Box<RequestContext>) -> FailToProxy {
        failure::answer(&self.shared, session, error, ctx).await
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut Box<RequestContext>) {
        cache::end_fill(&self.shared, self.worker, session, ctx, error);
        logging::finish(&self.shared, session, error, ctx);
    }

    fn request_summary(&self, session: &Session, _: &Box<RequestContext>) -> String {
        logging::summary(session)
    }

    fn suppress_error_log(&self, _: &Session, _: &Box<RequestContext>, _: &Error) -> bool {
        // Errors of single requests stand in the access log, with everything that is known about them.
        true
    }

    fn suppress_proxy_warn_log(&self, _: &Session, _: &Box<RequestContext>, _: &Error, _: ProxyWarnLogContext) -> bool {
        true
    }
}
