//! One client connection that speaks HTTP/1: heads are read and checked here, requests are served by Pingora.
//!
//! Reading heads ourselves is what makes idle connections cheap (no session, no buffer, no request
//! future), gives the whole head one deadline, and refuses what must not reach a parser.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::{Buf, BytesMut};
use http::Version;
use pingora_core::{
    apps::HttpServerApp,
    protocols::{Stream, http::ServerSession},
    server::ShutdownWatch,
};
use pingora_timeout::timeout;
use tokio::{
    io::AsyncWriteExt,
    time::{Sleep, sleep_until},
};

use super::{
    chunked::ChunkError,
    head::{Head, HeadError, HeadScanner},
    peer::Peer,
    shutdown::Draining,
    transport::{Framing, Transport},
    worker::Worker,
};
use crate::{
    proxy::fast_path::{self, Served},
    respond::EarlyError,
};

/// While draining, a client that has just connected or was just served may already be sending its next request: it gets this
/// long to do so, and is answered with `Connection: close`, instead of running into a closed connection.
pub(super) const DRAIN_LINGER: Duration = Duration::from_secs(1);

/// Serves requests until either side has had enough.
///
/// `begun`: when the client sent its first byte, if it has.
pub(super) async fn serve(
    mut transport: Box<Transport>,
    worker: &Worker,
    shutdown: ShutdownWatch,
    mut begun: Option<Instant>,
) {
    let mut draining = Draining::new(shutdown);
    let mut requests_left = worker.protection.keepalive_requests;
    let mut idle = IdleTimer::new(worker.protection.keepalive);
    let digest = transport.peer_digest();
    loop {
        let (bytes, head) = match next_head(&mut transport, worker, &mut draining, &mut idle, begun.take()).await {
            Next::Head(bytes, head) => (bytes, head),
            Next::Closed => {
                let _ = AsyncWriteExt::shutdown(&mut transport).await;
                return;
            }
            Next::TimedOut => return refuse_late(&mut transport, worker).await,
            Next::Refused(error) => {
                return refuse(&mut transport, worker, error.reason(), error.status(), &error.to_string()).await;
            }
        };
        let mut prefix = match hand_over(&mut transport, bytes, &head) {
            Ok(prefix) => prefix,
            Err(error) => return refuse(&mut transport, worker, "chunk", 400, &error.to_string()).await,
        };
        requests_left = requests_left.saturating_sub(1);
        if let (Some(host), Some(peer)) = (head.plain_host, Peer::from_digest(&digest))
            && requests_left > 0
            && let Some(tenant) = fast_path::caching_tenant(&worker.shared, &prefix[host])
            && !draining.has_begun()
        {
            // Boxed, so that an idle connection holds no room for it.
            match Box::pin(worker.fast_path(&mut transport, peer, tenant, prefix)).await {
                Served::Answered(at) => {
                    idle.since = at;
                    continue;
                }
                Served::Broken => return,
                Served::GoesOn(head) => prefix = head,
            }
        }
        let mut session = ServerSession::new_http1(transport as Stream);
        if requests_left == 0 {
            // So that the answer says it: what a session is told of keep-alive otherwise, the request overrides.
            session.set_keepalive_reuses_remaining(Some(0));
        }
        session.set_pipelined_prefix(prefix);
        let served = worker.proxy.process_new_http(session, &draining.watch).await;
        if let Some(peer) = Peer::from_digest(&digest) {
            // Whatever has become of the session: no other request may take it for its own.
            drop(peer.take_begun());
        }
        let same = match served {
            Some(reusable) => reusable.consume().0.into_any().downcast::<Transport>().ok(),
            // Also after a failure of the upstream, if the client had no part in it.
            None => Peer::from_digest(&digest).and_then(Peer::take_connection),
        };
        let Some(same) = same else { return };
        if requests_left == 0 {
            return;
        }
        transport = same;
        idle.begin();
    }
}

enum Next {
    Head(BytesMut, Head),
    /// The client left, stayed silent for too long, or the node is draining.
    Closed,
    TimedOut,
    Refused(HeadError),
}

async fn next_head(
    transport: &mut Transport,
    worker: &Worker,
    draining: &mut Draining,
    idle: &mut IdleTimer,
    begun: Option<Instant>,
) -> Next {
    let mut bytes = transport.take_ahead();
    if bytes.is_empty() {
        let first = match poll_fn(|cx| poll_first(transport, &mut bytes, draining, idle, cx)).await {
            First::Received(received) => received.ok(),
            First::Silent => None,
            First::Draining => {
                // Those that have been silent for a while are closed at once, so that an idle node ends at once.
                let linger = DRAIN_LINGER.saturating_sub(idle.since.elapsed());
                timeout(linger, receive(transport, &mut bytes)).await.ok().and_then(Result::ok)
            }
        };
        if first.is_none_or(|received| received == 0) {
            return Next::Closed;
        }
    }
    let mut scanner = HeadScanner::new(worker.protection.head);
    match scanner.scan(&bytes) {
        Ok(Some(head)) => return Next::Head(bytes, head),
        Ok(None) => {}
        Err(error) => return Next::Refused(error),
    }
    // Rare: the head comes in several pieces. Only now is a timer worth its cost.
    let rest = async {
        loop {
            match receive(transport, &mut bytes).await {
                Ok(received) if received > 0 => {}
                _ => return Next::Closed,
            }
            match scanner.scan(&bytes) {
                Ok(Some(head)) => return Next::Head(std::mem::take(&mut bytes), head),
                Ok(None) => {}
                Err(error) => return Next::Refused(error),
            }
        }
    };
    let passed = begun.map_or(Duration::ZERO, |begun| begun.elapsed());
    timeout(worker.protection.head_timeout.saturating_sub(passed), rest).await.unwrap_or(Next::TimedOut)
}

/// What comes first of a connection that waits for a request.
enum First {
    Received(io::Result<usize>),
    Silent,
    Draining,
}

fn poll_first(
    transport: &mut Transport,
    bytes: &mut BytesMut,
    draining: &mut Draining,
    idle: &mut IdleTimer,
    cx: &mut Context<'_>,
) -> Poll<First> {
    if let Poll::Ready(received) = transport.poll_append(cx, bytes) {
        return Poll::Ready(First::Received(received));
    }
    if idle.poll_ended(cx).is_ready() {
        return Poll::Ready(First::Silent);
    }
    draining.poll_begun(cx).map(|()| First::Draining)
}

/// How long a client may be silent between two requests. Its timer is not moved with each of them: when
/// it fires, it looks how long the present silence has lasted, and waits for the rest.
struct IdleTimer {
    limit: Duration,
    since: Instant,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl IdleTimer {
    fn new(limit: Duration) -> Self {
        Self { limit, since: Instant::now(), sleep: None }
    }

    /// The client has been heard of, and is silent from now on.
    fn begin(&mut self) {
        self.since = Instant::now();
    }

    /// Ready once the silence has lasted for too long. Always called by the same task, which the timer wakes: it is
    /// not told so again before it has fired.
    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let due = self.since + self.limit;
        let sleep = match &mut self.sleep {
            Some(sleep) if !sleep.is_elapsed() => return Poll::Pending,
            Some(sleep) => sleep,
            none => none.insert(Box::pin(sleep_until(due.into()))),
        };
        // It never fires too late: what is due moves on only.
        while sleep.as_mut().poll(cx).is_ready() {
            if Instant::now() >= due {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(due.into());
        }
        Poll::Pending
    }
}

/// Reads once; gives how much it was.
pub(super) async fn receive(transport: &mut Transport, into: &mut BytesMut) -> io::Result<usize> {
    poll_fn(|cx| transport.poll_append(cx, into)).await
}

/// Divides what was received: this head and the part of its body go to Pingora, the rest waits.
fn hand_over(transport: &mut Transport, mut bytes: BytesMut, head: &Head) -> Result<BytesMut, ChunkError> {
    let received = &bytes[head.end..];
    let mut framing = head.framing;
    let of_body = match &mut framing {
        Framing::Open => received.len(),
        Framing::Chunked(chunks) => chunks.scan(received)?,
        Framing::Length(left) => {
            let now = usize::try_from(*left).unwrap_or(usize::MAX).min(received.len());
            *left -= now as u64;
            now
        }
    };
    let mine = head.end + of_body;
    let ahead = if mine == bytes.len() { BytesMut::new() } else { bytes.split_off(mine) };
    transport.begin_request(framing, ahead);
    bytes.advance(head.start);
    Ok(match &head.authority_form {
        None => bytes,
        Some(form) => {
            let mut origin_form = BytesMut::with_capacity(bytes.len() + 1);
            origin_form.extend_from_slice(&bytes[..form.start - head.start]);
            if form.needs_slash {
                origin_form.extend_from_slice(b"/");
            }
            origin_form.extend_from_slice(&bytes[form.end - head.start..]);
            origin_form
        }
    })
}

/// Answers a head that has taken too long, and closes.
pub(super) async fn refuse_late(transport: &mut Transport, worker: &Worker) {
    refuse(transport, worker, "head_timeout", 408, "the request head did not arrive in time").await;
}

/// Answers a request that was not understood, and closes. `reason` is for operators, `detail` for the client.
async fn refuse(transport: &mut Transport, worker: &Worker, reason: &'static str, status: u16, detail: &str) {
    let answer = EarlyError::new(status, detail);
    if let Some(peer) = transport.peer() {
        worker.early_error(reason, peer, Version::HTTP_11, Some(&answer));
    }
    let answer = answer.http1();
    // Where it ends is not known, and there may be more of it on its way.
    transport.begin_request(Framing::Open, BytesMut::new());
    if transport.write_all(&answer).await.is_ok() {
        let _ = AsyncWriteExt::shutdown(transport).await;
    }
}
