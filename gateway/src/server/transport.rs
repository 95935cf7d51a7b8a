//! The transport of one client connection, as Pingora sees it.
//!
//! Pingora reads and writes a client through its [`IO`](pingora_core::protocols::IO) traits. This type
//! implements them over TCP or TLS, and owns what Pingora's own stream leaves open:
//!
//! - **Where a request ends.** The strict head parser has read its framing, so the transport hands
//!   out exactly the bytes of that request's body. What a client sends beyond it (the next request of
//!   a pipeline) stays here until that request's turn. Meanwhile the end of the connection is still
//!   seen, so that an upstream is not kept busy for a client that left.
//! - **Writes in few pieces.** Header and body leave in one system call where they fit in 16 KiB. The
//!   buffer is allocated with the first write of a response and given back when it was flushed, so
//!   that an idle connection holds none.
//! - **Stored bodies without a copy.** Where the cache has a body in a file too, the kernel sends it from there.
//! - **Clients that take nothing.** A client that reads nothing of its answer for too long is cut off,
//!   whatever the answer is and whoever is writing it.
//! - **Nothing while idle.** There is no read buffer at all: heads are read from a stack buffer.

use std::{
    fmt, io,
    mem::MaybeUninit,
    os::fd::AsRawFd,
    pin::Pin,
    sync::{Arc, atomic::AtomicBool},
    task::{Context, Poll, ready},
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora_core::protocols::{
    ALPN, Digest, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest,
    UniqueID, UniqueIDType, raw_connect::ProxyDigest, tls::SslDigest,
};
use rustix::{
    fs::sendfile,
    net::{RecvFlags, SendFlags, recv, send},
};
use seiketsu_cache::storage::Twin;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep, sleep_until},
};
use tokio_rustls::server::TlsStream;

use super::{
    chunked::ChunkScanner,
    head_frames::HeadFrames,
    peer::Peer,
    watch::{Overdue, WatchTimer},
};

/// Header and body of an answer leave together up to this size.
const WRITE_BUFFER_BYTES: usize = 16 * 1024;

/// What a small answer takes.
const ANSWER_BYTES: usize = 2048;

/// How much of a pipeline is read ahead while a request is being answered.
const READ_AHEAD_BYTES: usize = 16 * 1024;

/// A client that was refused may still be sending: it is read from for this long after the answer, …
const LINGER: Duration = Duration::from_secs(2);
/// … but no more than this, …
const LINGER_BYTES: usize = 16 << 20;
/// … and much less where it sends frames: that is a flood, and no body that was under way.
const LINGER_BYTES_H2: usize = 64 << 10;

/// A client connection, plain or TLS.
pub(crate) enum Socket {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// It went on in another transport; see [`Transport::drop`].
    Moved,
}

impl Socket {
    fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(tcp) => Some(tcp),
            Self::Tls(tls) => Some(tls.get_ref().0),
            Self::Moved => None,
        }
    }
}

fn moved<T>() -> Poll<io::Result<T>> {
    Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
}

/// How many more bytes belong to the request that is being served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Exactly this many.
    Length(u64),
    /// Up to the end of the last chunk.
    Chunked(ChunkScanner),
    /// Whatever comes: HTTP/2, or a protocol that the connection was upgraded to.
    Open,
}

impl Framing {
    fn has_ended(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunks) => chunks.has_ended(),
            Self::Open => false,
        }
    }
}

/// See the [module documentation](self).
pub(crate) struct Transport {
    socket: Socket,
    framing: Framing,
    /// Bytes received that belong to a later request.
    ahead: BytesMut,
    /// Bytes of an answer that have not left yet.
    unsent: BytesMut,
    digests: Digests,
    timer: WatchTimer,
    /// A turn of the event loop that [`Transport::poll_forgotten`] waits for.
    turn: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
    stall: Stall,
    /// In HTTP/2.
    head_frames: Option<Box<HeadFrames>>,
    /// The write side is closed.
    said_all: bool,
    linger: Option<Pin<Box<Sleep>>>,
    linger_bytes: usize,
}

/// The timer of a client that takes nothing. It is moved when a stall begins, not with each write.
struct Stall {
    limit: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    began: bool,
}

impl Stall {
    /// Ready once nothing has been taken for too long.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let due = Instant::now() + self.limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if !self.began {
            self.began = true;
            timer.as_mut().reset(due);
        }
        timer.as_mut().poll(cx)
    }
}

/// What Pingora asks of every stream once per request; made once per connection.
#[derive(Clone)]
struct Digests {
    tls: Option<Arc<SslDigest>>,
    socket: Arc<SocketDigest>,
    /// Pingora's slot for user data of a connection; holds our [`Peer`](super::peer::Peer).
    peer: Arc<ProxyDigest>,
}

impl Transport {
    /// A client that takes nothing of an answer for `write_timeout` is cut off.
    pub(crate) fn new(
        socket: Socket,
        peer: Arc<ProxyDigest>,
        addresses: SocketAddresses,
        write_timeout: Duration,
    ) -> Self {
        let tls = match &socket {
            Socket::Plain(_) | Socket::Moved => None,
            Socket::Tls(tls) => Some(Arc::new(tls_digest(tls))),
        };
        let digest = SocketDigest::from_raw_fd(socket.tcp().map_or(-1, AsRawFd::as_raw_fd));
        // Filled in now, so that nobody needs a system call for them later.
        let _ = digest.peer_addr.set(Some(addresses.peer.into()));
        let _ = digest.local_addr.set(Some(addresses.local.into()));
        Self::over(socket, Digests { tls, socket: Arc::new(digest), peer }, write_timeout)
    }

    fn over(socket: Socket, digests: Digests, write_timeout: Duration) -> Self {
        Self {
            socket,
            framing: Framing::Length(0),
            ahead: BytesMut::new(),
            unsent: BytesMut::new(),
            digests,
            timer: WatchTimer::default(),
            turn: None,
            stall: Stall { limit: write_timeout, timer: None, began: false },
            head_frames: None,
            said_all: false,
            linger: None,
            linger_bytes: LINGER_BYTES,
        }
    }

    /// Whether the client and the gateway agreed on HTTP/2 in the TLS handshake.
    pub(crate) fn negotiated_h2(&self) -> bool {
        match &self.socket {
            Socket::Plain(_) | Socket::Moved => false,
            Socket::Tls(tls) => tls.get_ref().1.alpn_protocol() == Some(b"h2"),
        }
    }

    pub(crate) fn is_tls(&self) -> bool {
        matches!(self.socket, Socket::Tls(_))
    }

    /// The digest that HTTP/2 sessions of this connection begin with.
    pub(crate) fn digest(&self) -> Digest {
        Digest {
            ssl_digest: self.digests.tls.clone(),
            timing_digest: Vec::new(),
            proxy_digest: Some(self.digests.peer.clone()),
            socket_digest: Some(self.digests.socket.clone()),
        }
    }

    /// Pingora's slot with the [`Peer`] in it, for who needs it longer than the transport.
    pub(crate) fn peer_digest(&self) -> Arc<ProxyDigest> {
        self.digests.peer.clone()
    }

    pub(crate) fn peer(&self) -> Option<&Peer> {
        Peer::from_digest(&self.digests.peer)
    }

    /// Bytes that were received and not asked for yet.
    pub(crate) fn take_ahead(&mut self) -> BytesMut {
        std::mem::take(&mut self.ahead)
    }

    /// Puts back what belongs to a later request, and tells how much of what comes belongs to this one.
    pub(crate) fn begin_request(&mut self, framing: Framing, ahead: BytesMut) {
        self.framing = framing;
        self.ahead = ahead;
        if let Some(peer) = Peer::from_digest(&self.digests.peer) {
            match framing {
                framing if framing.has_ended() => peer.watch.body_ended(),
                _ => peer.watch.body_begins(),
            }
        }
    }

    /// From here on everything is HTTP/2, from the preface on. A header block that is not whole after `head_timeout`
    /// ends the connection; what is returned tells then that this was why.
    pub(crate) fn begin_h2(&mut self, head_timeout: Duration) -> Arc<AtomicBool> {
        self.framing = Framing::Open;
        self.linger_bytes = LINGER_BYTES_H2;
        if let Some(peer) = self.peer() {
            // Bodies are measured stream by stream; the connection itself may be quiet.
            peer.watch.body_ended();
        }
        let frames = Box::new(HeadFrames::new(head_timeout));
        let overdue = frames.overdue();
        self.head_frames = Some(frames);
        overdue
    }

    /// The head of an answer that is there as a whole goes in here; what is written then follows it.
    pub(crate) fn begin_answer(&mut self) -> &mut BytesMut {
        self.unsent.reserve(ANSWER_BYTES);
        &mut self.unsent
    }

    /// Reads whatever is there, regardless of framing. For heads, and before HTTP has begun.
    pub(crate) fn poll_receive(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Socket::Tls(tls) => Pin::new(tls.as_mut()).poll_read(cx, buf),
            Socket::Moved => moved(),
        }
    }

    /// The same, appended to what is there, through a buffer on the stack: nothing is held while waiting.
    pub(crate) fn poll_append(&mut self, cx: &mut Context<'_>, into: &mut BytesMut) -> Poll<io::Result<usize>> {
        let mut space = [const { MaybeUninit::uninit() }; 4096];
        if let Socket::Plain(tcp) = &self.socket {
            return poll_recv(tcp, cx, &mut space, |received| into.extend_from_slice(received));
        }
        let mut buf = ReadBuf::uninit(&mut space);
        ready!(self.poll_receive(cx, &mut buf))?;
        into.extend_from_slice(buf.filled());
        Poll::Ready(Ok(buf.filled().len()))
    }

    /// Waits for the client to send something (kept for later) or to leave.
    fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut space = [0; 2048];
        // A client that pipelines more than this is not read from, and not watched, until its turn.
        while self.ahead.len() < READ_AHEAD_BYTES {
            let mut buf = ReadBuf::new(&mut space);
            ready!(self.poll_receive(cx, &mut buf))?;
            if buf.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.ahead.extend_from_slice(buf.filled());
        }
        Poll::Pending
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let sent = match &mut self.socket {
            Socket::Plain(tcp) => poll_try_write(tcp, cx, || Ok(send(&*tcp, data, SendFlags::NOSIGNAL)?)),
            Socket::Tls(tls) => Pin::new(tls.as_mut()).poll_write(cx, data),
            Socket::Moved => moved(),
        };
        self.poll_taken(cx, sent)
    }

    /// Sends a part of a stored body from its file, and what waits before it.
    fn poll_send_file(&mut self, cx: &mut Context<'_>, twin: &Twin, at: u64, count: usize) -> Poll<io::Result<usize>> {
        let Socket::Plain(tcp) = &mut self.socket else { return moved() };
        while !self.unsent.is_empty() {
            // Waits in the kernel for what follows, so that both leave in one packet.
            let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
            let sent = ready!(poll_try_write(tcp, cx, || Ok(send(&*tcp, &self.unsent, flags)?)))?;
            self.unsent.advance(sent);
        }
        self.unsent = BytesMut::new();
        let mut at = at;
        match ready!(poll_try_write(tcp, cx, || Ok(sendfile(&*tcp, twin, Some(&mut at), count)?)))? {
            0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            sent => Poll::Ready(Ok(sent)),
        }
    }

    /// Gives up on a client that takes nothing.
    fn poll_taken<T>(&mut self, cx: &mut Context<'_>, taken: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let peer = Peer::from_digest(&self.digests.peer);
        if taken.is_ready() {
            if std::mem::take(&mut self.stall.began) {
                peer.inspect(|peer| peer.set_behind(false));
            }
            return taken;
        }
        if let Some(peer) = peer {
            peer.set_behind(true);
            // A client that takes its answer slowly is not an upstream that is silent.
            peer.watch.progress();
        }
        ready!(self.stall.poll(cx));
        self.reset_on_close();
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Once this is closed, the client sees a broken connection, and the kernel keeps nothing for it.
    pub(crate) fn reset_on_close(&self) {
        // Without it the client sees an end, which is less than it should know, but nothing worse.
        if let Some(tcp) = self.socket.tcp() {
            let _ = socket2::SockRef::from(tcp).set_linger(Some(Duration::ZERO));
        }
    }

    /// Sends what Pingora has written and not flushed. It flushes a body of known length when that is
    /// whole; until then, what has come would wait here for as long as the upstream pauses. Since
    /// the rest of a small answer mostly follows at once, one turn of the event loop is waited for.
    fn poll_forgotten(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unsent.is_empty() {
            self.turn = None;
            return Poll::Ready(Ok(()));
        }
        let turn = self.turn.get_or_insert_with(|| Box::pin(tokio::task::yield_now()));
        ready!(turn.as_mut().poll(cx));
        self.turn = None;
        self.poll_flush_all(cx)
    }

    fn poll_flush_all(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send_unsent(cx))?;
        let flushed = match &mut self.socket {
            Socket::Plain(_) => return Poll::Ready(Ok(())),
            Socket::Tls(tls) => Pin::new(tls.as_mut()).poll_flush(cx),
            Socket::Moved => moved(),
        };
        self.poll_taken(cx, flushed)
    }

    fn poll_send_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let unsent = std::mem::take(&mut self.unsent);
            let sent = self.poll_send(cx, &unsent);
            self.unsent = unsent;
            match ready!(sent)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.unsent.advance(n),
            }
        }
        // Given back: the next answer allocates again, an idle connection holds nothing.
        self.unsent = BytesMut::new();
        Poll::Ready(Ok(()))
    }

    /// Ends the connection so that the client can read what was said last: while it is still sending,
    /// it is read from, since closing a socket with unread bytes resets it (RFC 9112 §9.6).
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.said_all {
            ready!(self.poll_flush_all(cx))?;
            ready!(match &mut self.socket {
                Socket::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
                Socket::Tls(tls) => Pin::new(tls.as_mut()).poll_shutdown(cx),
                Socket::Moved => moved(),
            })?;
            self.said_all = true;
        }
        if self.framing.has_ended() && self.ahead.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let mut space = [0; 8192];
        loop {
            let mut buf = ReadBuf::new(&mut space);
            ready!(self.poll_receive(cx, &mut buf))?;
            let Some(left) = self.linger_bytes.checked_sub(buf.filled().len()) else { return Poll::Ready(Ok(())) };
            if buf.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.linger_bytes = left;
        }
    }
}

/// Reads as soon as there is something; gives how much it was, nothing at the end.
///
/// Not by tokio, which calls the C library: that guards each call against the cancellation of its thread, which costs two
/// atomic operations, and here each request is a call or two.
fn poll_recv(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    space: &mut [MaybeUninit<u8>],
    mut take: impl FnMut(&[u8]),
) -> Poll<io::Result<usize>> {
    loop {
        ready!(tcp.poll_read_ready(cx))?;
        let mut taken = None;
        let tried = tcp.try_io(Interest::READABLE, || {
            let whole = space.len();
            let ((received, _), _) = recv(tcp, &mut *space, RecvFlags::empty())?;
            take(received);
            taken = Some(received.len());
            // Less than there was room for: it is all there is. That is said here, so that the next call waits for more
            // in place of asking the kernel in vain.
            if (1..whole).contains(&received.len()) { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        match (taken, tried) {
            (Some(received), _) => return Poll::Ready(Ok(received)),
            (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            (None, Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            (None, Err(error)) => return Poll::Ready(Err(error)),
            // Cannot be: what was not taken has failed.
            (None, Ok(())) => {}
        }
    }
}

/// A system call that writes, as soon as there is room for it. See [`poll_recv`] for why it is not tokio's.
fn poll_try_write(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    mut write: impl FnMut() -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(tcp.poll_write_ready(cx))?;
        match tcp.try_io(Interest::WRITABLE, &mut write) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return Poll::Ready(done),
        }
    }
}

/// Both ends of a connection; behind a PROXY header, those that it names.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SocketAddresses {
    pub(crate) peer: std::net::SocketAddr,
    pub(crate) local: std::net::SocketAddr,
}

fn tls_digest(tls: &TlsStream<TcpStream>) -> SslDigest {
    let session = tls.get_ref().1;
    let cipher = session.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()).unwrap_or("");
    let version = session.protocol_version().and_then(|version| version.as_str()).unwrap_or("");
    SslDigest::new(cipher, version, None, None, Vec::new())
}

impl Transport {
    /// An error once the exchange stands still. Polled with every read, since Pingora always reads
    /// from the client while it waits for anything else.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if let Some(frames) = &mut self.head_frames
            && frames.poll_overdue(cx).is_ready()
        {
            return Poll::Ready(io::ErrorKind::TimedOut.into());
        }
        let Some(peer) = Peer::from_digest(&self.digests.peer) else { return Poll::Pending };
        let overdue: Overdue = ready!(self.timer.poll(&peer.watch, cx));
        // Said once: what follows (a second attempt, an error for the client) begins with a clean slate.
        peer.watch.disarm();
        peer.watch.body_ended();
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, overdue))
    }

    /// Reads a part of the present request's body.
    fn poll_body(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match self.framing {
            framing if framing.has_ended() => return self.poll_closed(cx),
            Framing::Open if !self.ahead.is_empty() => {
                let received = self.ahead.len().min(buf.remaining());
                buf.put_slice(&self.ahead.split_to(received));
            }
            Framing::Open | Framing::Chunked(_) => ready!(self.poll_receive(cx, buf))?,
            Framing::Length(left) => {
                let limit = usize::try_from(left).unwrap_or(usize::MAX);
                if limit >= buf.remaining() {
                    ready!(self.poll_receive(cx, buf))?;
                } else {
                    let mut part = ReadBuf::new(buf.initialize_unfilled_to(limit));
                    ready!(self.poll_receive(cx, &mut part))?;
                    let received = part.filled().len();
                    buf.advance(received);
                }
            }
        }
        if let Framing::Chunked(chunks) = &mut self.framing {
            let mine = before + chunks.scan(&buf.filled()[before..])?;
            self.ahead.extend_from_slice(&buf.filled()[mine..]);
            buf.set_filled(mine);
        }
        if let Some(frames) = &mut self.head_frames {
            frames.received(&buf.filled()[before..]);
        }
        let received = (buf.filled().len() - before) as u64;
        let watch = Peer::from_digest(&self.digests.peer).map(|peer| &peer.watch);
        watch.inspect(|watch| watch.body_received(received));
        if let Framing::Length(left) = &mut self.framing {
            *left -= received;
        }
        if self.framing.has_ended() {
            watch.inspect(|watch| watch.body_ended());
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Transport {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.poll_body(cx, buf) {
            Poll::Ready(done) => Poll::Ready(done),
            Poll::Pending => {
                if let Poll::Ready(Err(error)) = self.poll_forgotten(cx) {
                    return Poll::Ready(Err(error));
                }
                self.poll_overdue(cx).map(Err)
            }
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.unsent.len() + data.len() <= WRITE_BUFFER_BYTES {
            if self.unsent.capacity() == 0 {
                // One allocation for a small answer: its header comes first and is most of it.
                self.unsent.reserve(data.len().max(ANSWER_BYTES));
            }
            self.unsent.extend_from_slice(data);
            return Poll::Ready(Ok(data.len()));
        }
        if let Socket::Plain(_) = self.socket
            && let Some((twin, at)) = self.peer().and_then(|peer| peer.twin_of(data))
        {
            let sent = self.poll_send_file(cx, &twin, at, data.len());
            return self.poll_taken(cx, sent);
        }
        if self.unsent.is_empty() {
            return self.poll_send(cx, data);
        }
        // A header waits, and a large piece of body comes: both leave in one system call.
        let this = &mut *self;
        if let Socket::Plain(tcp) = &mut this.socket {
            let unsent = std::mem::take(&mut this.unsent);
            let both = [io::IoSlice::new(&unsent), io::IoSlice::new(data)];
            let sent = Pin::new(tcp).poll_write_vectored(cx, &both);
            this.unsent = unsent;
            let sent = ready!(this.poll_taken(cx, sent))?;
            let of_unsent = sent.min(this.unsent.len());
            this.unsent.advance(of_unsent);
            if sent > of_unsent {
                this.unsent = BytesMut::new();
                return Poll::Ready(Ok(sent - of_unsent));
            }
        }
        ready!(self.poll_send_unsent(cx))?;
        self.poll_send(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush_all(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = self.poll_end(cx);
        if ended.is_ready() {
            return ended;
        }
        let linger = self.linger.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        linger.as_mut().poll(cx).map(Ok)
    }
}

#[async_trait]
impl Shutdown for Transport {
    async fn shutdown(&mut self) {
        // The client may be gone already; there is nothing left to do for it.
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

impl UniqueID for Transport {
    fn id(&self) -> UniqueIDType {
        self.socket.tcp().map_or(-1, AsRawFd::as_raw_fd)
    }
}

impl Ssl for Transport {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.digests.tls.clone()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.negotiated_h2().then_some(ALPN::H2)
    }
}

impl GetTimingDigest for Transport {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for Transport {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        Some(self.digests.peer.clone())
    }
}

impl GetSocketDigest for Transport {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(self.digests.socket.clone())
    }
}

impl Peek for Transport {}

/// Pingora drops the connection of a request that failed. If there is nothing wrong with it
/// ([`Peer::keep_connection`]), it goes on in a transport of its own.
impl Drop for Transport {
    fn drop(&mut self) {
        let digests = self.digests.clone();
        let Some(peer) = Peer::from_digest(&digests.peer).filter(|peer| peer.wants_connection()) else { return };
        // Where any of this does not hold, the connection is out of step after all.
        if self.said_all || !self.unsent.is_empty() || !self.framing.has_ended() {
            return;
        }
        let socket = std::mem::replace(&mut self.socket, Socket::Moved);
        let mut next = Self::over(socket, digests.clone(), self.stall.limit);
        next.ahead = self.take_ahead();
        peer.put_connection(Box::new(next));
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport")
            .field("tls", &self.is_tls())
            .field("framing", &self.framing)
            .field("ahead", &self.ahead.len())
            .field("unsent", &self.unsent.len())
            .finish_non_exhaustive()
    }
}
