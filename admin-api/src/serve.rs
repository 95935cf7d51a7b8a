//! The server: HTTP/1.1, with an end to everything that could go on for ever.

use std::{collections::VecDeque, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, extract::ConnectInfo};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch},
    time::{sleep, timeout},
};

use crate::{
    crowd::{Crowd, Member},
    edge::{self, Edge, Hello, NodeCertificate, Tls},
    patient::Patient,
};

/// With TLS, those that have said hello: they are as good as authenticated clients, which are many where there are many
/// nodes.
const MAX_CONNECTIONS: usize = 4096;
/// Connections that have said nothing yet. Each costs its socket, and the newest take the place of the oldest.
const MAX_ARRIVING: usize = 1024;
/// To say something: of TLS, the `ClientHello`.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(3);
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

/// Systems give a process some thousand descriptors, unless it asks for what it may have.
pub(crate) fn raise_limit_of_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
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
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut arriving = Arriving::default();
    let (end, ending) = watch::channel(());
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
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
                    hang_up: hang_up.clone(),
                };
                let arrival =
                    Arrival { stream, member: member.flatten(), places: places.clone(), pushed_out: arriving.enter() };
                let ending = ending.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        () = attend(arrival, service, bounds.write_timeout, ending) => {}
                        () = hang_up.0.notified() => {}
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop((listener, ending));
    end.send_replace(());
    // Whoever attends to a connection listens for this.
    if timeout(GRACE, end.closed()).await.is_err() {
        tracing::warn!("requests were still under way at the end");
    }
}

/// Those that have not said anything yet, and others that have since. The oldest that has not is pushed out.
#[derive(Debug, Default)]
struct Arriving(VecDeque<oneshot::Sender<()>>);

impl Arriving {
    /// Resolves when so many others have come that this one has to go.
    fn enter(&mut self) -> oneshot::Receiver<()> {
        if self.0.len() >= MAX_ARRIVING {
            // Whoever has said something, or is gone, makes room before anybody is pushed out.
            self.0.retain(|pushes_out| !pushes_out.is_closed());
        }
        if self.0.len() >= MAX_ARRIVING {
            self.0.pop_front();
        }
        let (pushes_out, pushed_out) = oneshot::channel();
        self.0.push_back(pushes_out);
        pushed_out
    }
}

/// A connection of which nothing is known yet.
struct Arrival {
    stream: TcpStream,
    member: Option<Member>,
    places: Arc<Semaphore>,
    pushed_out: oneshot::Receiver<()>,
}

/// One of the connections of an address, and of all.
type Place = (Option<OwnedSemaphorePermit>, Option<Member>);

/// Who has arrived: with TLS, it has said hello.
enum Arrived {
    Plain(TcpStream),
    Tls(Tls, Hello),
}

impl Arrival {
    /// None: it has said nothing, or there is no place for it.
    async fn arrive(self, tls: Option<Tls>) -> Option<(Arrived, Place)> {
        let Self { stream, member, places, pushed_out } = self;
        let _ = stream.set_nodelay(true);
        let arrived = async {
            let arrived = match tls {
                Some(tls) => Arrived::Tls(tls, Tls::hello(stream).await?),
                None => Arrived::Plain(stream),
            };
            // Never closed, so there is always a permit to wait for.
            Ok::<_, io::Error>((arrived, (places.acquire_owned().await.ok(), member)))
        };
        tokio::select! {
            arrived = timeout(ARRIVAL_TIMEOUT, arrived) => arrived.ok()?.ok(),
            _ = pushed_out => None,
        }
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

/// To its end, or to that of the process.
async fn attend(arrival: Arrival, service: WithPeer, patience: Duration, mut ending: watch::Receiver<()>) {
    let arrived = tokio::select! {
        arrived = arrival.arrive(service.edge.tls.clone()) => arrived,
        _ = ending.changed() => return,
    };
    let Some((arrived, place)) = arrived else {
        tracing::debug!(peer = %service.peer, "a connection came to nothing");
        return;
    };
    let (tls, hello) = match arrived {
        Arrived::Plain(stream) => return run(connection(Patient::new(stream, patience, place), service), ending).await,
        Arrived::Tls(tls, hello) => (tls, hello),
    };
    let accepted = tokio::select! {
        accepted = tls.accept(hello) => accepted,
        _ = ending.changed() => return,
    };
    match accepted {
        Ok((stream, certificate)) => {
            let stream = Patient::new(stream, patience, place);
            run(connection(stream, WithPeer { certificate, ..service }), ending).await;
        }
        Err(error) => tracing::debug!(peer = %service.peer, %error, "a handshake failed"),
    }
}

type Connection<S> = http1::UpgradeableConnection<TokioIo<Patient<S, Place>>, TowerToHyperService<WithPeer>>;

/// To its end, or to the end of the request under way when the process is to end.
async fn run<S>(connection: Connection<S>, mut ending: watch::Receiver<()>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = ending.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended");
    }
}

fn connection<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    stream: Patient<S, Place>,
    service: WithPeer,
) -> Connection<S> {
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_FIELDS)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
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
