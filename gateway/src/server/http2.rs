//! One client connection that speaks HTTP/2 (RFC 9113), over TLS by ALPN or without TLS by prior knowledge.

use std::{
    future::poll_fn,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::{Reason, server::Connection};
use http::{Method, Version};
use pingora_core::{
    apps::HttpServerApp,
    protocols::{
        Digest, Stream,
        http::{
            ServerSession,
            custom::server::Session as _,
            v2::server::{H2Accept, H2Options, HttpSession, default_h2_options, handshake},
        },
        raw_connect::ProxyDigest,
    },
    server::ShutdownWatch,
};
use pingora_timeout::{sleep, timeout};

use super::{
    active::Active,
    peer::{Client, Peer},
    shutdown,
    stream::{HELD_BYTES, WatchedStream},
    transport::Transport,
    worker::Worker,
};
use crate::respond::EarlyError;

/// What a client begins an HTTP/2 connection with (RFC 9113 §3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Malformed requests of one connection; Pingora forgets its own count with each stream that it accepts.
const MALFORMED_STREAMS: u32 = 32;

/// While draining, a connection without streams is kept for this long, for the client to see the goodbye and
/// for requests that had left it before.
const DRAIN_LINGER: Duration = Duration::from_secs(2);

/// How long a client may take to take the last frames of a connection.
const FAREWELL: Duration = Duration::from_secs(1);

/// Resets are counted over this time.
const RESET_WINDOW: Duration = Duration::from_secs(10);

/// Serves streams until either side has had enough.
pub(super) async fn serve(mut transport: Box<Transport>, worker: &Arc<Worker>, mut shutdown: ShutdownWatch) {
    let Some(client) = transport.peer().map(|peer| peer.client.clone()) else { return };
    let connection_digest = transport.digest();
    let overdue = transport.begin_h2(worker.protection.head_timeout);
    let early_error = |reason| worker.early_error(reason, &client, Version::HTTP_2, None);
    let handshake = handshake(transport as Stream, Some(options(worker)));
    let Ok(Ok(mut connection)) = timeout(worker.protection.handshake_timeout, handshake).await else {
        return early_error("h2_preface");
    };
    let active = Arc::new(Active::default());
    let mut resets = ResetWatch::new(worker.protection.h2_resets);
    let mut draining = false;
    let (mut streams, mut malformed) = (0_u32, 0_u32);
    loop {
        let Some(peer) = stream_peer(&client, worker) else { return };
        let digest = Arc::new(Digest { proxy_digest: Some(peer.clone()), ..connection_digest.clone() });
        let accepted = tokio::select! {
            biased;
            () = shutdown::begun(&mut shutdown), if !draining => {
                // Streams that are under way, or opened before the client sees this, are still served.
                connection.graceful_shutdown();
                draining = true;
                continue;
            }
            () = client.is_outdated(), if !draining => {
                connection.graceful_shutdown();
                draining = true;
                continue;
            }
            accepted = HttpSession::from_h2_conn(&mut connection, digest) => accepted,
            () = idle_for(&active, if draining { DRAIN_LINGER } else { worker.protection.keepalive }) => {
                // Answers that are whole may still be on their way. Who takes nothing of them is cut off by the transport.
                if client.is_behind() {
                    continue;
                }
                return say_goodbye(connection, Reason::NO_ERROR).await;
            }
        };
        match accepted {
            // The client left, or broke the protocol; h2 has told it.
            Err(_) | Ok(None) => {
                if overdue.load(Ordering::Relaxed) {
                    early_error("head_timeout");
                }
                return;
            }
            Ok(Some(H2Accept::Rejected)) => {
                early_error("h2_malformed");
                malformed += 1;
                if malformed >= MALFORMED_STREAMS {
                    return say_goodbye(connection, Reason::PROTOCOL_ERROR).await;
                }
            }
            Ok(Some(H2Accept::Session(session))) => {
                if resets.too_many(&client) {
                    early_error("h2_resets");
                    return say_goodbye(connection, Reason::ENHANCE_YOUR_CALM).await;
                }
                streams += 1;
                if streams >= worker.protection.keepalive_requests && !draining {
                    connection.graceful_shutdown();
                    draining = true;
                }
                let guard = Active::enter(&active);
                let (worker, shutdown) = (worker.clone(), shutdown.clone());
                tokio::spawn(async move {
                    let _guard = guard;
                    let mut stream =
                        Box::new(WatchedStream::new(session, peer.clone(), worker.waiting_streams.clone()));
                    stream.set_write_timeout(Some(worker.protection.write_timeout));
                    // Pingora would refuse it in words of its own.
                    if stream.req_header().method == Method::CONNECT {
                        return refuse_connect(&mut stream, &peer, &worker).await;
                    }
                    worker.proxy.process_new_http(ServerSession::new_custom(stream), &shutdown).await;
                });
            }
        }
    }
}

async fn refuse_connect(stream: &mut WatchedStream, peer: &ProxyDigest, worker: &Worker) {
    let answer = EarlyError::new(405, "CONNECT is not possible here");
    if let Some(peer) = Peer::from_digest(peer) {
        worker.early_error("connect", peer, Version::HTTP_2, Some(&answer));
    }
    let (head, body) = answer.into_response();
    if stream.write_response_header(head, false).await.is_ok() {
        // A client that is gone needs no answer.
        let _ = stream.write_body(body, true).await;
    }
}

/// Ends a connection and what is left on it, and tells the client why (RFC 9113 §6.8).
async fn say_goodbye(mut connection: Connection<Stream, Bytes>, reason: Reason) {
    connection.abrupt_shutdown(reason);
    let _ = timeout(FAREWELL, poll_fn(|cx| connection.poll_closed(cx))).await;
}

fn stream_peer(client: &Arc<Client>, worker: &Worker) -> Option<Arc<ProxyDigest>> {
    Peer::new(client.clone(), worker.watch()).into_digest().ok()
}

fn options(worker: &Worker) -> H2Options {
    // Pingora's own defaults, and then ours: options made from scratch would drop its safe bounds.
    let mut options = default_h2_options();
    let head = u32::try_from(worker.protection.head.bytes).unwrap_or(u32::MAX);
    options
        .max_header_list_size(head)
        .max_concurrent_streams(worker.protection.h2_streams)
        // Room for uploads: h2's own 64 KiB windows cap a stream at 64 KiB per round trip.
        .initial_window_size(256 * 1024)
        .initial_connection_window_size(1024 * 1024)
        .max_send_buffer_size(HELD_BYTES);
    options
}

/// Notices clients that open streams only to reset them: each costs them nothing and us a request
/// (CVE-2023-44487).
struct ResetWatch {
    most: u32,
    seen: u32,
    window: Instant,
}

impl ResetWatch {
    fn new(most: u32) -> Self {
        Self { most, seen: 0, window: Instant::now() }
    }

    fn too_many(&mut self, client: &Client) -> bool {
        if self.window.elapsed() > RESET_WINDOW {
            self.seen = 0;
            self.window = Instant::now();
        }
        self.seen += client.take_resets();
        self.most > 0 && self.seen > self.most
    }
}

async fn idle_for(active: &Active, time: Duration) {
    active.none_left().await;
    sleep(time).await;
}
