//! One HTTP/2 stream, as Pingora sees it.
//!
//! Pingora's own session for HTTP/2 has no deadline for a read, and nobody else polls the [`Watch`] of a
//! stream. This one waits for the client and for the watch together, as the transport does in HTTP/1. What
//! is overdue comes back as an error of the exchange, so there is still a stream to tell the client on, and
//! another attempt can be made.
//!
//! To Pingora something is written once the library holds it. Here, where the client is behind, it is when the connection
//! has taken it, as in HTTP/1: for a client that does not read the library holds next to nothing without a stream that
//! waits for it. Those that have waited for a while are counted by the client's address, like connections, which each hold
//! as much. (Heads and trailers it holds all the same: small ones, and no more than there may be streams.)
//!
//! [`Watch`]: super::watch::Watch

use std::{
    future::poll_fn,
    io,
    ops::{Deref, DerefMut},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use h2::Reason;
use http::{HeaderMap, header};
use pingora_core::{
    Error, ErrorType, Result,
    protocols::{
        Digest,
        http::{
            HttpTask,
            custom::{CustomMessageWrite, server::Session},
            v2::server::HttpSession,
        },
        l4::socket::SocketAddr,
        raw_connect::ProxyDigest,
    },
};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_timeout::timeout;
use tokio::runtime::Handle;

use super::{
    active::{Active, ActiveGuard},
    caps::ConnectionCaps,
    peer::Peer,
    watch::WatchTimer,
};
use crate::respond;

/// A client that was answered before it had sent all of its body is read from for this long, …
const LINGER: Duration = Duration::from_secs(5);
/// … but no more than this.
const LINGER_BYTES: usize = 16 << 20;

/// Who reads takes what is sent sooner than this, mostly; until then streams are not counted.
const GRACE: Duration = Duration::from_secs(1);

/// Of each stream, the library holds no more than this.
pub(super) const HELD_BYTES: usize = 32 * 1024;

/// A client gets the whole time-out for each piece of this size: that of a frame.
const PIECE_BYTES: usize = 16 * 1024;

/// See the [module documentation](self).
pub(super) struct WatchedStream {
    session: Lingering,
    /// Holds the stream's [`Peer`], and with it the watch.
    peer: Arc<ProxyDigest>,
    timer: WatchTimer,
    /// For one read of a body.
    read_timeout: Option<Duration>,
    /// Places for streams that wait for their client.
    waiting: Arc<ConnectionCaps>,
    /// The pieces that the library holds.
    held: Arc<Active>,
}

impl WatchedStream {
    pub(super) fn new(session: HttpSession, peer: Arc<ProxyDigest>, waiting: Arc<ConnectionCaps>) -> Self {
        if let Some(peer) = Peer::from_digest(&peer)
            && !session.is_body_done()
        {
            peer.watch.body_begins();
        }
        let session = Lingering { session: Some(session), answered: false };
        Self { session, peer, timer: WatchTimer::default(), read_timeout: None, waiting, held: Arc::default() }
    }

    /// Reads a piece of the body; `or_idle`: behind its end, waits until the client gives up.
    async fn read(&mut self, or_idle: Option<bool>) -> Result<Option<Bytes>> {
        let Self { session, peer, timer, read_timeout, .. } = self;
        let session: &mut HttpSession = session;
        let limit = if session.is_body_done() { None } else { *read_timeout };
        let read = async {
            match or_idle {
                Some(no_body_expected) => session.read_body_or_idle(no_body_expected).await,
                None => session.read_body_bytes().await,
            }
        };
        let read = async {
            match limit {
                None => read.await,
                Some(limit) => timeout(limit, read).await.unwrap_or_else(|_| {
                    Error::e_explain(ErrorType::ReadTimedout, format!("reading the request body, timeout: {limit:?}"))
                }),
            }
        };
        let Some(watch) = Peer::from_digest(peer).map(|peer| &peer.watch) else { return read.await };
        let piece = tokio::select! {
            biased;
            piece = read => piece?,
            overdue = poll_fn(|cx| timer.poll(watch, cx)) => {
                // Said once: what follows (a second attempt, an error for the client) begins with a clean slate.
                watch.disarm();
                watch.body_ended();
                let error = io::Error::new(io::ErrorKind::TimedOut, overdue);
                return Err(Error::because(ErrorType::ReadError, "waiting on an HTTP/2 stream", error));
            }
        };
        watch.body_received(piece.as_ref().map_or(0, Bytes::len) as u64);
        if piece.is_none() || session.is_body_done() {
            watch.body_ended();
        }
        Ok(piece)
    }

    /// Hands a part of the body to the library, as the client has room for it.
    async fn send(&mut self, mut data: Bytes, end: bool) -> Result<()> {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(PIECE_BYTES));
            let piece = Bytes::from_owner(Piece { data: piece, _held: Active::enter(&self.held) });
            let write = self.session.write_body(piece, end && data.is_empty());
            taken(write, &self.peer, &self.waiting).await?;
        }
        Ok(())
    }

    /// Waits until the connection has taken what the library holds, where the client is behind. Elsewhere it does so in its
    /// next turn: to wait for that would be one more turn for each answer.
    async fn sent(&self) -> Result<()> {
        if Peer::from_digest(&self.peer).is_some_and(|peer| peer.is_behind()) {
            return taken(self.none_held(), &self.peer, &self.waiting).await;
        }
        Ok(())
    }

    /// Waits no longer for a client that has taken back the room that it had given, while it takes what else there is.
    /// Whether it takes anything is for the transport to see: a client that it waits for again and again keeps its place.
    async fn none_held(&self) -> Result<()> {
        let peer = Peer::from_digest(&self.peer);
        loop {
            let stalls = peer.map(|peer| peer.stalls());
            let Some(limit) = self.session.get_write_timeout() else {
                self.held.none_left().await;
                return Ok(());
            };
            if timeout(limit, self.held.none_left()).await.is_ok() {
                return Ok(());
            }
            if !peer.is_some_and(|peer| peer.is_behind() || Some(peer.stalls()) != stalls) {
                return Error::e_explain(ErrorType::WriteTimedout, "the client has no room for what is to be sent");
            }
        }
    }
}

/// What the library still holds then is for a client that is waited for no longer, and may otherwise be held for as long
/// as the connection takes nothing.
impl Drop for WatchedStream {
    fn drop(&mut self) {
        if !self.session.answered
            && self.held.is_any()
            && let Some(mut stream) = self.session.take_response_body_writer()
        {
            stream.send_reset(Reason::CANCEL);
        }
    }
}

/// A piece of a body, counted until the library has let go of it.
struct Piece {
    data: Bytes,
    _held: ActiveGuard,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

/// Waits for a client to take what is written, if there is a place to wait.
async fn taken<T>(
    write: impl Future<Output = Result<T>>,
    peer: &ProxyDigest,
    waiting: &Arc<ConnectionCaps>,
) -> Result<T> {
    let mut write = pin!(write);
    if let Ok(written) = timeout(GRACE, write.as_mut()).await {
        return written;
    }
    // A proxy carries the streams of many clients.
    let client = Peer::from_digest(peer).filter(|peer| !peer.trusted).map(|peer| peer.ip());
    let place = waiting.admit(client);
    if place.is_err() {
        return Error::e_explain(ErrorType::WriteTimedout, "too many streams of this address wait to be read");
    }
    write.await
}

/// A session whose client is read from for a while when all was said and it is dropped.
///
/// A stream that is dropped while its body is still coming is reset. That is within the law (RFC 9113 §8.1), but
/// many clients take it for a failure, and their users never see the answer.
struct Lingering {
    /// Absent in `drop` only.
    session: Option<HttpSession>,
    /// Whether the whole answer was written.
    answered: bool,
}

impl Deref for Lingering {
    type Target = HttpSession;

    fn deref(&self) -> &HttpSession {
        match &self.session {
            Some(session) => session,
            None => unreachable!("only `drop` takes the session"),
        }
    }
}

impl DerefMut for Lingering {
    fn deref_mut(&mut self) -> &mut HttpSession {
        match &mut self.session {
            Some(session) => session,
            None => unreachable!("only `drop` takes the session"),
        }
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        let unread = self.session.take().filter(|session| self.answered && !session.is_body_done());
        if let (Some(session), Ok(runtime)) = (unread, Handle::try_current()) {
            runtime.spawn(read_on(session));
        }
    }
}

/// Reads what is still coming, which also gives the client the room to send it.
async fn read_on(mut session: HttpSession) {
    let reading = async {
        let mut left = LINGER_BYTES;
        while let Ok(Some(piece)) = session.read_body_bytes().await {
            match left.checked_sub(piece.len()) {
                Some(less) => left = less,
                None => break,
            }
        }
    };
    let _ = timeout(LINGER, reading).await;
}

/// Whether an answer of ours is gRPC's "Trailers-Only".
fn is_trailers_only(response: &ResponseHeader) -> bool {
    let empty = response.headers.get(header::CONTENT_LENGTH).is_some_and(|length| length == "0");
    empty && response.headers.contains_key("grpc-status")
}

#[async_trait]
impl Session for WatchedStream {
    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        self.read(None).await
    }

    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        self.read(Some(no_body_expected)).await
    }

    fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.read_timeout = timeout;
    }

    fn get_read_timeout(&self) -> Option<Duration> {
        self.read_timeout
    }

    // All else is Pingora's own session.

    fn req_header(&self) -> &RequestHeader {
        self.session.req_header()
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        self.session.req_header_mut()
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        self.session.drain_request_body().await
    }

    async fn write_response_header(&mut self, response: Box<ResponseHeader>, end: bool) -> Result<()> {
        // Pingora never ends a stream with the head. To gRPC that is the difference between an error and
        // a call that broke off.
        let end = end || is_trailers_only(&response);
        self.session.write_response_header(response, end)?;
        self.session.answered |= end;
        Ok(())
    }

    async fn write_response_header_ref(&mut self, response: &ResponseHeader, end: bool) -> Result<()> {
        self.session.write_response_header_ref(response, end)?;
        self.session.answered |= end;
        Ok(())
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        if data.is_empty() {
            return if end { self.finish().await } else { Ok(()) };
        }
        self.send(data, end).await?;
        self.sent().await?;
        self.session.answered |= end;
        Ok(())
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.session.write_trailers(trailers)?;
        self.session.answered = true;
        Ok(())
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let mut ended = false;
        for task in tasks {
            ended = match task {
                HttpTask::Header(head, end) => {
                    // A client is not concerned with what an upstream says where there is nothing more to say.
                    let is_whole = !respond::may_have_body(self.session.req_header(), head.status);
                    let end = end || is_whole && !head.status.is_informational();
                    self.session.write_response_header(head, end).map_err(Error::into_down)?;
                    end
                }
                HttpTask::Body(Some(data), end) if !data.is_empty() => {
                    self.send(data, end).await.map_err(Error::into_down)?;
                    end
                }
                task => self.session.response_duplex_vec(vec![task]).await?,
            };
            if ended {
                break;
            }
        }
        self.sent().await.map_err(Error::into_down)?;
        self.session.answered |= ended;
        // A client that takes its answer slowly is not an upstream that is silent.
        if let Some(peer) = Peer::from_digest(&self.peer) {
            peer.watch.progress();
        }
        Ok(ended)
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.session.set_write_timeout(timeout);
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.session.get_write_timeout()
    }

    fn set_total_drain_timeout(&mut self, timeout: Option<Duration>) {
        self.session.set_total_drain_timeout(timeout);
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.session.get_total_drain_timeout()
    }

    fn request_summary(&self) -> String {
        self.session.request_summary()
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.session.response_written()
    }

    async fn shutdown(&mut self, _: u32, _: &str) {
        self.session.shutdown();
    }

    fn is_body_done(&mut self) -> bool {
        self.session.is_body_done()
    }

    async fn finish(&mut self) -> Result<()> {
        self.session.finish()?;
        self.session.answered |= self.session.response_written().is_some();
        Ok(())
    }

    fn is_body_empty(&mut self) -> bool {
        self.session.is_body_empty()
    }

    fn body_bytes_sent(&self) -> usize {
        self.session.body_bytes_sent()
    }

    fn body_bytes_read(&self) -> usize {
        self.session.body_bytes_read()
    }

    fn digest(&self) -> Option<&Digest> {
        self.session.digest()
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        self.session.digest_mut()
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.session.client_addr()
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.session.server_addr()
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        self.session.pseudo_raw_h1_request_header()
    }

    fn enable_retry_buffering(&mut self) {
        self.session.enable_retry_buffering();
    }

    fn retry_buffer_truncated(&self) -> bool {
        self.session.retry_buffer_truncated()
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        self.session.get_retry_buffer()
    }

    // HTTP/2 has no messages beside those of HTTP.

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_reader(
        &mut self,
    ) -> Option<Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>> {
        None
    }

    fn restore_custom_message_reader(
        &mut self,
        _: Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>,
    ) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        None
    }

    fn restore_custom_message_writer(&mut self, _: Box<dyn CustomMessageWrite>) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use h2::server::Connection;
    use http::Request;
    use pingora_core::protocols::Stream as Transport;
    use pingora_core::protocols::http::v2::server::{H2Accept, handshake};
    use tokio::io::duplex;

    use super::*;
    use crate::server::{peer::Client, watch::Watch};

    /// A stream whose client has asked for something and given room for the answer, and its connection, which takes
    /// nothing unless it is polled.
    async fn stream() -> (WatchedStream, Connection<Transport, Bytes>) {
        let (near, far) = duplex(1 << 20);
        tokio::spawn(async move {
            let (mut sender, connection) = h2::client::handshake(far).await.unwrap();
            let request = Request::get("http://acme.test/").body(()).unwrap();
            let (response, _) = sender.send_request(request, true).unwrap();
            tokio::spawn(response);
            connection.await.unwrap();
        });
        let client = Client::new(([127, 0, 0, 1], 1).into(), false, None);
        let peer = Peer::new(Arc::new(client), Watch::new(0)).into_digest().unwrap();
        let mut connection = handshake(Box::new(near), None).await.unwrap();
        let digest = Arc::new(Digest { proxy_digest: Some(peer.clone()), ..Digest::default() });
        let accepted = HttpSession::from_h2_conn(&mut connection, digest).await.unwrap();
        let Some(H2Accept::Session(session)) = accepted else { panic!("no request") };
        (WatchedStream::new(session, peer, Arc::new(ConnectionCaps::new(0, 0))), connection)
    }

    fn answer() -> Vec<HttpTask> {
        let head = ResponseHeader::build(200, None).unwrap();
        vec![HttpTask::Header(Box::new(head), false), HttpTask::Body(Some(Bytes::from_static(b"{}")), true)]
    }

    /// One more turn of the event loop for each answer is what an overloaded node takes for a longer queue.
    #[tokio::test]
    async fn an_answer_waits_for_nothing_where_its_client_reads() {
        let (mut stream, _connection) = stream().await;
        let written = stream.response_duplex_vec(answer()).now_or_never();
        assert!(written.expect("at once").unwrap());
    }

    #[tokio::test]
    async fn an_answer_waits_for_the_connection_where_its_client_is_behind() {
        let (mut stream, mut connection) = stream().await;
        Peer::from_digest(&stream.peer).unwrap().set_behind(true);
        let mut written = pin!(stream.response_duplex_vec(answer()));
        assert!(written.as_mut().now_or_never().is_none());
        tokio::spawn(async move { poll_fn(|cx| connection.poll_closed(cx)).await });
        assert!(written.await.unwrap());
    }
}
