//! Requests that what is stored may answer, without a session of Pingora's.
//!
//! Its session, its parsing and its futures are a third of what a hit costs, and made for a request that goes to an
//! upstream. So the plainest requests over HTTP/1.1 for a tenant that caches pass their checks here, which are the same
//! functions that the hooks call. What turns out to be no hit goes on in Pingora from where the checks have got to:
//! nothing is checked, taken from a limit, or counted twice.

use std::{fmt, io, sync::Arc, time::Instant};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version, header, response::Parts};
use memchr::memchr;
use pingora_core::protocols::http::date::get_cached_date;
use pingora_http::RequestHeader;
use pingora_proxy::Session;
use seiketsu_cache::stored::Stored;
use seiketsu_limits::shedding::Shedder;
use tokio::io::AsyncWriteExt;

use super::{
    Downstream, RequestContext, Shared, cache,
    context::Progress,
    early_request, logging,
    request::{self, Decision},
    response_body,
};
use crate::{
    fields, respond,
    server::{peer::Peer, transport::Transport},
    tenancy::{
        compile::{CompiledRoute, CompiledTenant},
        snapshot::TenantEntry,
    },
};

/// What the session of a request that goes on in Pingora is given to parse: its own head comes with [`Begun`].
const PLACEHOLDER: &[u8] = b"GET / HTTP/1.1\r\n\r\n";

/// A request that goes on in Pingora.
pub(crate) struct Begun {
    head: RequestHeader,
    closes: bool,
    ctx: Box<RequestContext>,
}

impl Begun {
    pub(super) fn go_on(self: Box<Self>, session: &mut Session, ctx: &mut Box<RequestContext>) {
        *session.req_header_mut() = self.head;
        if self.closes {
            session.close_after();
        }
        *ctx = self.ctx;
    }
}

impl fmt::Debug for Begun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Nothing of the head: it holds credentials.
        f.debug_struct("Begun").finish_non_exhaustive()
    }
}

/// What became of a request.
pub(crate) enum Served {
    /// By then.
    Answered(Instant),
    /// The client has gone, or has taken nothing for too long.
    Broken,
    /// A session is to be made for it, with this head.
    GoesOn(BytesMut),
}

/// The tenant that has this host, if it caches anything: for all others there is nothing to be gained here.
pub(crate) fn caching_tenant(shared: &Shared, host: &[u8]) -> Option<Arc<TenantEntry<CompiledTenant>>> {
    let snapshot = shared.live.load();
    snapshot.find(host).ok()?.filter(|tenant| tenant.compiled().cache.is_some()).cloned()
}

/// Serves a request whose head is all there is of it: a GET in HTTP/1.1 and origin form, for this tenant, that leaves
/// the connection open.
pub(crate) async fn serve(
    shared: &Shared,
    shedder: Option<&Arc<Shedder>>,
    worker: usize,
    transport: &mut Transport,
    peer: &Peer,
    tenant: Arc<TenantEntry<CompiledTenant>>,
    bytes: BytesMut,
) -> Served {
    let bytes = bytes.freeze();
    // What cannot be read here, Pingora refuses in its own way.
    let Some(head) = parse(&bytes) else { return Served::GoesOn(bytes.into()) };
    let mut ctx = Box::new(RequestContext::new());
    ctx.tenant = Some(tenant.clone());
    let tenant = tenant.compiled();
    let mut request = Direct { head, peer, closes: false, status: None, body_sent: 0 };
    early_request::identify(shared, &mut request, &mut ctx);
    let progress = check(shared, shedder, worker, &mut request, &mut ctx, tenant).await;
    let route = ctx.route.and_then(|index| tenant.routes.get(index));
    match (progress, route) {
        // A transform may fail, and then somebody else must answer.
        (Progress::Judged(Ok(Decision::Serve(stored))), Some(route))
            if route.policies.response_body.is_none() && !request.closes =>
        {
            let sent = send(transport, &mut request, &mut ctx, tenant, route, &stored).await;
            let took = logging::finish(shared, &request, None, &mut ctx);
            if sent { Served::Answered(ctx.started + took) } else { Served::Broken }
        }
        (progress, _) => {
            ctx.progress = progress;
            peer.put_begun(Box::new(Begun { head: request.head, closes: request.closes, ctx }));
            Served::GoesOn(PLACEHOLDER.into())
        }
    }
}

async fn check(
    shared: &Shared,
    shedder: Option<&Arc<Shedder>>,
    worker: usize,
    request: &mut Direct<'_>,
    ctx: &mut RequestContext,
    tenant: &CompiledTenant,
) -> Progress {
    match request::decide(shared, shedder, request, ctx) {
        Ok(Decision::Proxy) => {}
        other => return Progress::Judged(other),
    }
    let route = ctx.route.and_then(|index| tenant.routes.get(index));
    let Some(route) = route.filter(|route| route.cache.is_some() && !route.looks_at_body()) else {
        return Progress::Decided;
    };
    if let Err(refusal) = request::admit(shared, request, ctx, tenant, route).await {
        return Progress::Judged(Err(refusal));
    }
    Progress::Judged(request::look_up(shared, worker, request, ctx, tenant, route))
}

/// `false`: the client has not got all of it, and gets nothing more.
async fn send(
    transport: &mut Transport,
    request: &mut Direct<'_>,
    ctx: &mut RequestContext,
    tenant: &CompiledTenant,
    route: &CompiledRoute,
    stored: &Stored,
) -> bool {
    // Fails only where a body is transformed, or compressing fails, which it does not in memory.
    let Ok((mut parts, body)) = cache::answer(request, ctx, tenant, route, stored) else { return false };
    request.status = Some(parts.status);
    let body = body.unwrap_or_default();
    if ctx.response_body.is_left() {
        // Boxed, so that it makes no room in the future of all hits.
        return Box::pin(send_in_pieces(transport, request, ctx, &parts, body)).await;
    }
    let told = fields::get(&parts.headers, &header::CONTENT_LENGTH);
    let told = told.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    // Whatever is stored: a wrong length would make a part of this body the client's next answer.
    if respond::may_have_body(&request.head, parts.status) && told != Some(body.len()) {
        parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
    write_head(transport.begin_answer(), &parts, false);
    if transport.write_all(&body).await.is_err() || transport.flush().await.is_err() {
        return false;
    }
    request.body_sent = body.len() as u64;
    true
}

/// Sends a body while it is compressed: in chunks, as long as nobody knows its length (RFC 9112 §7.1).
async fn send_in_pieces(
    transport: &mut Transport,
    request: &mut Direct<'_>,
    ctx: &mut RequestContext,
    parts: &Parts,
    mut left: Bytes,
) -> bool {
    write_head(transport.begin_answer(), parts, true);
    // The first piece may be long in coming.
    if transport.flush().await.is_err() {
        return false;
    }
    loop {
        let Ok((piece, is_last)) = response_body::next_piece(&*request, &mut left, ctx).await else { return false };
        let piece = piece.unwrap_or_default();
        if write_chunks(transport, &piece, is_last).await.is_err() {
            return false;
        }
        request.body_sent += piece.len() as u64;
        if is_last {
            return true;
        }
    }
}

async fn write_chunks(transport: &mut Transport, piece: &[u8], is_last: bool) -> io::Result<()> {
    // An empty one would be the end.
    if !piece.is_empty() {
        transport.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).await?;
        transport.write_all(piece).await?;
        transport.write_all(b"\r\n").await?;
    }
    if is_last {
        transport.write_all(b"0\r\n\r\n").await?;
        transport.flush().await?;
    }
    Ok(())
}

/// RFC 9112 §4. `Connection` says what Pingora says in all other answers; `Date` is the one that is stored.
fn write_head(to: &mut BytesMut, parts: &Parts, is_chunked: bool) {
    to.put_slice(b"HTTP/1.1 ");
    to.put_slice(parts.status.as_str().as_bytes());
    to.put_u8(b' ');
    to.put_slice(parts.status.canonical_reason().unwrap_or_default().as_bytes());
    to.put_slice(b"\r\n");
    let mut is_dated = false;
    let is_ours = |name: &HeaderName| *name == header::CONNECTION || *name == header::TRANSFER_ENCODING;
    for (name, value) in parts.headers.iter().filter(|(name, _)| !is_ours(name)) {
        is_dated |= *name == header::DATE;
        write_field(to, name, value);
    }
    if !is_dated {
        write_field(to, &header::DATE, &get_cached_date());
    }
    if is_chunked {
        to.put_slice(b"transfer-encoding: chunked\r\n");
    }
    to.put_slice(b"connection: keep-alive\r\n\r\n");
}

fn write_field(to: &mut BytesMut, name: &HeaderName, value: &HeaderValue) {
    to.put_slice(name.as_str().as_bytes());
    to.put_slice(b": ");
    to.put_slice(value.as_bytes());
    to.put_slice(b"\r\n");
}

/// Reads a head that has passed the strict check (`server/head.rs`), which is why it can be taken apart so simply.
fn parse(bytes: &Bytes) -> Option<RequestHeader> {
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = Method::GET;
    parts.version = Version::HTTP_11;
    let first = memchr(b'\r', bytes)?;
    let target = b"GET ".len()..first.checked_sub(b" HTTP/1.1".len())?;
    parts.uri = Uri::from_maybe_shared(bytes.slice(target)).ok()?;
    let mut fields = HeaderMap::with_capacity(12);
    let mut at = first + 2;
    loop {
        let line = bytes.get(at..)?;
        let end = memchr(b'\r', line)?;
        if end == 0 {
            break;
        }
        let colon = memchr(b':', &line[..end])?;
        let raw = &line[colon + 1..end];
        let value = raw.trim_ascii();
        let begin = at + colon + 1 + (raw.len() - raw.trim_ascii_start().len());
        // Not copied: they are parts of the head.
        let value = HeaderValue::from_maybe_shared(bytes.slice(begin..begin + value.len())).ok()?;
        fields.try_append(HeaderName::from_bytes(&line[..colon]).ok()?, value).ok()?;
        at += end + 2;
    }
    parts.headers = fields;
    Some(parts.into())
}

/// A request without a session.
struct Direct<'a> {
    head: RequestHeader,
    peer: &'a Peer,
    closes: bool,
    status: Option<StatusCode>,
    body_sent: u64,
}

impl Downstream for Direct<'_> {
    fn head(&self) -> &RequestHeader {
        &self.head
    }

    fn head_mut(&mut self) -> &mut RequestHeader {
        &mut self.head
    }

    fn peer(&self) -> Option<&Peer> {
        Some(self.peer)
    }

    fn close_after(&mut self) {
        self.closes = true;
    }

    fn answered(&self) -> Option<StatusCode> {
        self.status
    }

    fn body_received(&self) -> u64 {
        0
    }

    fn body_sent(&self) -> u64 {
        self.body_sent
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::server::head::{HeadLimits, HeadScanner};

    fn read(text: &str) -> RequestHeader {
        parse(&Bytes::copy_from_slice(text.as_bytes())).unwrap()
    }

    #[test]
    fn a_head_is_read_as_it_was_sent() {
        let head = read("GET /a/b?c=%20d HTTP/1.1\r\nHost: acme.test\r\nX-Two:  1 \t\r\nx-two:2\r\nEmpty:\r\n\r\n");
        assert_eq!((&head.method, head.version), (&Method::GET, Version::HTTP_11));
        assert_eq!(head.raw_path(), b"/a/b?c=%20d");
        let fields: Vec<_> =
            head.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(fields, [("host", "acme.test"), ("x-two", "1"), ("x-two", "2"), ("empty", "")]);
    }

    #[test]
    fn an_answer_has_one_date_and_one_word_about_the_connection() {
        let mut parts = http::Response::new(()).into_parts().0;
        parts.headers.insert(header::DATE, HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT"));
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        let mut wire = BytesMut::new();
        write_head(&mut wire, &parts, false);
        let expected = "HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\nconnection: keep-alive\r\n\r\n";
        assert_eq!(wire, expected.as_bytes());
        parts.headers.remove(header::DATE);
        wire.clear();
        write_head(&mut wire, &parts, true);
        assert!(wire.ends_with(b"\r\ntransfer-encoding: chunked\r\nconnection: keep-alive\r\n\r\n"), "{wire:?}");
        assert!(wire.starts_with(b"HTTP/1.1 200 OK\r\ndate: "), "{wire:?}");
    }

    proptest! {
        /// Two readings of one head would be two requests.
        #[test]
        fn a_head_that_passes_the_check_is_read_like_by_others(
            target in "/[!-\"$-;=?-_a-~]{0,30}",
            fields in prop::collection::vec(("[!#-'*+.^_`|~0-9A-Za-z-]{1,20}", "[\t -~\u{80}-\u{ff}]{0,20}"), 0..12),
        ) {
            let mut wire = format!("GET {target} HTTP/1.1\r\nHost: acme.test\r\n").into_bytes();
            for (name, value) in &fields {
                wire.extend_from_slice(name.as_bytes());
                wire.push(b':');
                wire.extend(value.chars().map(|c| u8::try_from(u32::from(c)).unwrap()));
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"\r\n");
            let mut scanner = HeadScanner::new(HeadLimits { bytes: 1 << 16, fields: 100 });
            let Ok(Some(_)) = scanner.scan(&wire) else { return Ok(()) };
            let mut space = [httparse::EMPTY_HEADER; 100];
            let mut other = httparse::Request::new(&mut space);
            prop_assert!(other.parse(&wire).unwrap().is_complete());
            let head = parse(&Bytes::copy_from_slice(&wire)).unwrap();
            prop_assert_eq!(head.raw_path(), other.path.unwrap().as_bytes());
            let mut mine: Vec<_> =
                head.headers.iter().map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec())).collect();
            let mut theirs: Vec<_> =
                other.headers.iter().map(|field| (field.name.to_ascii_lowercase(), field.value.to_vec())).collect();
            // Those of one name stay in order; the names among each other need not.
            mine.sort_by(|a, b| a.0.cmp(&b.0));
            theirs.sort_by(|a, b| a.0.cmp(&b.0));
            prop_assert_eq!(mine, theirs);
        }
    }
}
