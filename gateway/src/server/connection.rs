//! From an accepted socket to HTTP: PROXY header, TLS handshake, choice of protocol.

use std::{net::SocketAddr, sync::Arc};

use bytes::BytesMut;
use pingora_core::{protocols::raw_connect::ProxyDigest, server::ShutdownWatch};
use pingora_timeout::timeout;
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
        match timeout(worker.protection.handshake_timeout, proxy_protocol::read(&mut tcp)).await {
            Ok(Ok(named)) => {
                addresses = named.unwrap_or(addresses);
                // Not before: behind a load balancer many clients share one address.
                if let Err(full) = slot.belongs_to(addresses.peer.ip()) {
                    return worker.metrics.refused(full.reason());
                }
            }
            Ok(Err(error)) => {
                tracing::debug!(peer = %addresses.peer, %error, "connection refused");
                return worker.metrics.early_error("proxy_protocol");
            }
            Err(_) => return worker.metrics.early_error("proxy_protocol"),
        }
    }
    let Some(mut transport) = (if tls {
        // Boxed: a handshake's state is large, and only needed for a moment.
        Box::pin(tls_transport(tcp, addresses, &worker)).await
    } else {
        plain_transport(tcp, addresses, &worker)
    }) else {
        return;
    };
    let h2 =
        if tls { transport.negotiated_h2() } else { begins_with_preface(&mut transport, &worker, &shutdown).await };
    if h2 {
        transport.begin_h2();
        Box::pin(http2::serve(transport, &worker, shutdown)).await;
    } else {
        http1::serve(transport, &worker, shutdown).await;
    }
}

fn peer_digest(addresses: SocketAddresses, tls: Option<ClientTls>, worker: &Worker) -> Option<Arc<ProxyDigest>> {
    let client = Client::new(addresses.peer, worker.trusts(addresses.peer.ip()), tls);
    Peer::new(Arc::new(client), worker.watch()).into_digest().ok()
}

fn plain_transport(tcp: TcpStream, addresses: SocketAddresses, worker: &Worker) -> Option<Box<Transport>> {
    let peer = peer_digest(addresses, None, worker)?;
    Some(Box::new(Transport::new(Socket::Plain(tcp), peer, addresses, worker.protection.write_timeout)))
}

async fn tls_transport(tcp: TcpStream, addresses: SocketAddresses, worker: &Worker) -> Option<Box<Transport>> {
    let stream = match timeout(worker.protection.handshake_timeout, handshake(tcp, worker)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(peer = %addresses.peer, %error, "TLS handshake failed");
            worker.metrics.tls_handshake("failed");
            return None;
        }
        Err(_) => {
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
    };
    let peer = peer_digest(addresses, Some(tls), worker)?;
    Some(Box::new(Transport::new(Socket::Tls(Box::new(stream)), peer, addresses, worker.protection.write_timeout)))
}

async fn handshake(tcp: TcpStream, worker: &Worker) -> std::io::Result<TlsStream<TcpStream>> {
    let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), tcp).await?;
    let config = worker.tls.config_for(start.client_hello().server_name());
    start.into_stream(config).await
}

/// Whether the client begins with HTTP/2's preface. What was read is put back.
async fn begins_with_preface(transport: &mut Transport, worker: &Worker, shutdown: &ShutdownWatch) -> bool {
    let mut bytes = BytesMut::new();
    let mut shutdown = shutdown.clone();
    let protection = worker.protection;
    let preface = async {
        let mut patience = protection.keepalive;
        loop {
            match timeout(patience, http1::receive(transport, &mut bytes)).await {
                Ok(Ok(received)) if received > 0 => {}
                _ => return false,
            }
            // It is one head like any other, but for the odd client that sends it in pieces.
            patience = protection.head_timeout;
            let known = bytes.len().min(http2::PREFACE.len());
            if bytes[..known] != http2::PREFACE[..known] {
                return false;
            }
            if known == http2::PREFACE.len() {
                return true;
            }
        }
    };
    let h2 = tokio::select! {
        biased;
        h2 = preface => h2,
        () = super::shutdown::begun(&mut shutdown) => false,
    };
    transport.begin_request(if h2 { Framing::Open } else { Framing::Length(0) }, bytes);
    h2
}

/// Both ends of a socket, as the kernel knows them.
pub(super) fn addresses(tcp: &TcpStream, peer: SocketAddr) -> Option<SocketAddresses> {
    Some(SocketAddresses { peer, local: tcp.local_addr().ok()? })
}
