//! The server: HTTP/1.1, with an end to everything that could go on for ever.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, extract::ConnectInfo};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Notify, Semaphore, watch},
    time::{sleep, timeout},
};

use crate::{
    crowd::Crowd,
    edge::{self, Edge, NodeCertificate},
    patient::Patient,
};

const MAX_CONNECTIONS: usize = 1024;
/// To the end of a request's head, and for idle connections.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_HEAD: usize = 64 << 10;
const MAX_FIELDS: usize = 100;
/// When the process is out of file descriptors, accepting pauses for this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What requests under way have to end when the process is to end.
const GRACE: Duration = Duration::from_secs(10);

/// What clients may have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Connections of one address.
    pub(crate) per_address: usize,
    /// How long a client may take nothing of an answer.
    pub(crate) write_timeout: Duration,
}

/// Serves until `stop` is done; then ends what is under way.
pub(crate) async fn serve(
    listener: TcpListener,
    edge: Edge,
    router: Router,
    bounds: Bounds,
    stop: impl Future<Output = ()>,
) {
    let crowd = Crowd::new(bounds.per_address);
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let (end, ending) = watch::channel(());
    let mut stop = std::pin::pin!(stop);
    loop {
        let accept = async {
            // Never closed, so there is always a permit to wait for.
            let permit = Arc::clone(&connections).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            accepted = accept => accepted,
            () = &mut stop => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                // Behind a proxy, all clients have its address.
                let is_proxy = edge.trusts(peer.ip());
                let member = (!is_proxy).then(|| crowd.enter(peer.ip()));
                if let Some(None) = member {
                    tracing::debug!(%peer, "the address has as many connections as it may have");
                    continue;
                }
                let hang_up = HangUp::default();
                let service = WithPeer {
                    router: router.clone(),
                    peer,
                    edge: edge.clone(),
                    certificate: None,
                    write_timeout: bounds.write_timeout,
                    hang_up: hang_up.clone(),
                };
                let ending = ending.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        () = attend(stream, service, ending) => {}
                        () = hang_up.0.notified() => {}
                    }
                    drop((permit, member));
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop((listener, end));
    let all = u32::try_from(MAX_CONNECTIONS).unwrap_or(u32::MAX);
    if timeout(GRACE, connections.acquire_many(all)).await.is_err() {
        tracing::warn!("requests were still under way at the end");
    }
}

/// Ends a connection whose client does not read: what has to be written to it would never be.
#[derive(Debug, Clone, Default)]
pub(crate) struct HangUp(Arc<Notify>);

impl HangUp {
    pub(crate) fn now(&self) {
        self.0.notify_one();
    }
}

/// With TLS, if there is any.
async fn attend(stream: TcpStream, service: WithPeer, mut ending: watch::Receiver<()>) {
    let _ = stream.set_nodelay(true);
    let Some(tls) = service.edge.tls.clone() else { return run(connection(stream, service), ending).await };
    let accepted = tokio::select! {
        accepted = tls.accept(stream) => accepted,
        _ = ending.changed() => return,
    };
    match accepted {
        Ok((stream, certificate)) => run(connection(stream, WithPeer { certificate, ..service }), ending).await,
        Err(error) => tracing::debug!(peer = %service.peer, %error, "a handshake failed"),
    }
}

type Connection<S> = http1::UpgradeableConnection<TokioIo<Patient<S>>, TowerToHyperService<WithPeer>>;

/// To its end, or to the end of the request under way when the process is to end.
async fn run<S>(connection: Connection<S>, mut ending: watch::Receiver<()>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        // Nothing is ever sent: the sender's end is the signal.
        _ = ending.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended");
    }
}

fn connection<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(stream: S, service: WithPeer) -> Connection<S> {
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_FIELDS)
        .serve_connection(TokioIo::new(Patient::new(stream, service.write_timeout)), TowerToHyperService::new(service))
        .with_upgrades()
}

/// Tells the router who the client is.
#[derive(Clone)]
struct WithPeer {
    router: Router,
    peer: SocketAddr,
    hang_up: HangUp,
    edge: Edge,
    /// What the client has shown in the handshake.
    certificate: Option<NodeCertificate>,
    write_timeout: Duration,
}

impl tower_service::Service<http::Request<hyper::body::Incoming>> for WithPeer {
    type Response = <Router as tower_service::Service<http::Request<hyper::body::Incoming>>>::Response;
    type Error = std::convert::Infallible;
    type Future = <Router as tower_service::Service<http::Request<hyper::body::Incoming>>>::Future;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        // A router is always ready.
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: http::Request<hyper::body::Incoming>) -> Self::Future {
        let client = edge::client(request.headers(), self.peer.ip(), &self.edge.trusted_proxies);
        request.extensions_mut().insert(ConnectInfo(SocketAddr::new(client, self.peer.port())));
        if let Some(certificate) = &self.certificate {
            request.extensions_mut().insert(certificate.clone());
        }
        request.extensions_mut().insert(self.hang_up.clone());
        tower_service::Service::call(&mut self.router, request)
    }
}
