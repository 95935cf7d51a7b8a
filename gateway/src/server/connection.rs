//! From an accepted socket to HTTP: PROXY header, TLS handshake, choice of protocol.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use http::Version;
use pingora_core::{protocols::raw_connect::ProxyDigest, server::ShutdownWatch};
use pingora_timeout::{sleep, timeout};
use tokio::net::TcpStream;
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

use super::{
    caps::ConnectionSlot,
    http1, http2,
    peer::{Client, ClientTls, Peer},
    proxy_protocol,
    transport::{Framing, Socket, SocketAddresses, Transport},
    worker::Worker,
};
use crate::tenancy::tls::Verification;

/// Serves a connection to its end. The slot is its place among the connections that may be open.
pub(super) async fn serve(
    mut tcp: TcpStream,
    mut addresses: SocketAddresses,
    tls: bool,
    worker: Arc<Worker>,
    shutdown: ShutdownWatch,
    mut slot: ConnectionSlot,
) {
    // Small answers must not wait for the client's acknowledgement.
    let _ = tcp.set_nodelay(true);
    if worker.expects_proxy_header(addresses.peer.ip()) {
        let refuse = |addresses: SocketAddresses| {
            let client = Client::new(addresses.peer, false, None);
            worker.early_error("proxy_protocol", &client, Version::HTTP_09, None);
        };
        match in_time(worker.protection.handshake_timeout, &shutdown, proxy_protocol::read(&mut tcp)).await {
            Some(Ok(named)) => {
                addresses = named.unwrap_or(addresses);
                // Not before: behind a load balancer many clients share one address.
                if let Err(full) = slot.belongs_to(addresses.peer.ip()) {
                    return worker.metrics.refused(full.reason());
                }
            }
            Some(Err(error)) => {
                tracing::debug!(peer = %addresses.peer, %error, "connection refused");
                return refuse(addresses);
            }
            None => return refuse(addresses),
        }
    }
    let Some(mut transport) = (if tls {
        // Boxed: a handshake's state is large, and only needed for a moment.
        Box::pin(tls_transport(tcp, addresses, &worker, &shutdown)).await
    } else {
        plain_transport(tcp, addresses, &worker)
    }) else {
        return;
    };
    let protocol = if !tls {
        protocol(&mut transport, &worker, &shutdown).await
    } else if transport.negotiated_h2() {
        Protocol::Http2
    } else {
        Protocol::Http1(None)
    };
    match protocol {
        Protocol::Http2 => Box::pin(http2::serve(transport, &worker, shutdown)).await,
        Protocol::Http1(begun) => http1::serve(transport, &worker, shutdown, begun).await,
        Protocol::Late => http1::refuse_late(&mut transport, &worker).await,
        Protocol::None => {}
    }
}

/// Waits for this, for a bounded time; once the node drains, only as long as those who have just connected are given.
async fn in_time<T>(limit: Duration, shutdown: &ShutdownWatch, what: impl Future<Output = T>) -> Option<T> {
    let (began, mut shutdown) = (Instant::now(), shutdown.clone());
    let draining = async {
        super::shutdown::begun(&mut shutdown).await;
        sleep(http1::DRAIN_LINGER.saturating_sub(began.elapsed())).await;
    };
    let what = async {
        tokio::select! {
            biased;
            done = what => Some(done),
            () = draining => None,
        }
    };
    timeout(limit, what).await.ok().flatten()
}

fn peer_digest(addresses: SocketAddresses, tls: Option<ClientTls>, worker: &Worker) -> Option<Arc<ProxyDigest>> {
    let client = Client::new(addresses.peer, worker.trusts(addresses.peer.ip()), tls);
    Peer::new(Arc::new(client), worker.watch()).into_digest().ok()
}

fn plain_transport(tcp: TcpStream, addresses: SocketAddresses, worker: &Worker) -> Option<Box<Transport>> {
    let peer = peer_digest(addresses, None, worker)?;
    Some(Box::new(Transport::new(Socket::Plain(tcp), peer, addresses, worker.protection.write_timeout)))
}

async fn tls_transport(
    tcp: TcpStream,
    addresses: SocketAddresses,
    worker: &Worker,
    shutdown: &ShutdownWatch,
) -> Option<Box<Transport>> {
    let (stream, verification) =
        match in_time(worker.protection.handshake_timeout, shutdown, handshake(tcp, worker)).await {
            Some(Ok(done)) => done,
            Some(Err(error)) => {
                tracing::debug!(peer = %addresses.peer, %error, "TLS handshake failed");
                worker.metrics.tls_handshake("failed");
                return None;
            }
            None => {
                worker.metrics.tls_handshake("timeout");
                return None;
            }
        };
    worker.metrics.tls_handshake("ok");
    let session = stream.get_ref().1;
    let tls = ClientTls {
        server_name: session.server_name().map(|name| name.to_ascii_lowercase().into()),
        version: session.protocol_version().and_then(|version| version.as_str()).unwrap_or("unknown"),
        certificate: session
            .peer_certificates()
            .and_then(<[_]>::first)
            .and_then(|der| super::tls::client_certificate(der))
            .map(Arc::new),
        verification,
    };
    let peer = peer_digest(addresses, Some(tls), worker)?;
    Some(Box::new(Transport::new(Socket::Tls(Box::new(stream)), peer, addresses, worker.protection.write_timeout)))
}

async fn handshake(tcp: TcpStream, worker: &Worker) -> std::io::Result<(TlsStream<TcpStream>, Option<Verification>)> {
    let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), tcp).await?;
    let (config, verification) = worker.tls.config_for(start.client_hello().server_name());
    Ok((start.into_stream(config).await?, verification))
}

/// What a client without TLS speaks.
enum Protocol {
    Http2,
    /// With the time of its first byte, if there was one.
    Http1(Option<Instant>),
    /// It has begun with HTTP/2's preface, and taken too long.
    Late,
    /// It is silent, or gone.
    None,
}

/// Tells by the first bytes, which are put back.
async fn protocol(transport: &mut Transport, worker: &Worker, shutdown: &ShutdownWatch) -> Protocol {
    let mut bytes = BytesMut::new();
    let mut begun: Option<Instant> = None;
    let protocol = loop {
        let more = http1::receive(transport, &mut bytes);
        let received = match begun {
            None => in_time(worker.protection.keepalive, shutdown, more).await,
            // It is one head like any other, but for the odd client that sends it in pieces.
            Some(begun) => {
                let left = worker.protection.head_timeout.saturating_sub(begun.elapsed());
                match timeout(left, more).await {
                    Ok(received) => Some(received),
                    Err(_) => break Protocol::Late,
                }
            }
        };
        if !matches!(received, Some(Ok(1..))) {
            break Protocol::None;
        }
        let known = bytes.len().min(http2::PREFACE.len());
        if bytes[..known] != http2::PREFACE[..known] {
            break Protocol::Http1(begun);
        }
        if known == http2::PREFACE.len() {
            break Protocol::Http2;
        }
        begun.get_or_insert_with(Instant::now);
    };
    let framing = if matches!(protocol, Protocol::Http2) { Framing::Open } else { Framing::Length(0) };
    transport.begin_request(framing, bytes);
    protocol
}

/// Both ends of a socket, as the kernel knows them.
pub(super) fn addresses(tcp: &TcpStream, peer: SocketAddr) -> Option<SocketAddresses> {
    Some(SocketAddresses { peer, local: tcp.local_addr().ok()? })
}
