//! One worker thread: a runtime of its own, its own listening sockets, its own upstream connections.
//!
//! Nothing moves between workers: a request, its upstream connection and their timers stay on the
//! thread that accepted the connection. That spares locks and wake-ups across cores; the kernel
//! spreads connections over the workers' sockets.

use std::{
    io,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::BytesMut;
use http::Version;
use ipnet::IpNet;
use pingora_core::server::ShutdownWatch;
use pingora_proxy::HttpProxy;
use seiketsu_config::node::NodeConfig;
use seiketsu_limits::shedding::{self, Shedder};
use tokio::net::{TcpListener, TcpStream};

use super::{
    active::Active,
    caps::{ConnectionCaps, Full},
    connection,
    head::HeadLimits,
    listener::Listener,
    peer::{Client, Peer},
    shutdown,
    tls::LiveTls,
    transport::Transport,
    watch::Watch,
};
use crate::{
    cache::background::{self, Jobs},
    proxy::{
        Gateway, Shared,
        fast_path::{self, Served},
    },
    respond::EarlyError,
    telemetry::{access_log::AccessRecord, metrics::ConnectionMetrics},
    tenancy::{compile::CompiledTenant, snapshot::TenantEntry},
};

/// When the process or machine is out of file descriptors, accepting pauses for this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What every connection of a worker needs.
pub(super) struct Worker {
    pub(super) index: usize,
    pub(super) proxy: Arc<HttpProxy<Gateway>>,
    /// None where load shedding is off.
    pub(super) shedder: Option<Arc<Shedder>>,
    pub(super) protection: Protection,
    pub(super) tls: Arc<LiveTls>,
    pub(super) metrics: ConnectionMetrics,
    pub(super) shared: Arc<Shared>,
    pub(super) caps: Arc<ConnectionCaps>,
    /// Streams whose client has not taken what is to be sent: each holds as much as a connection.
    pub(super) waiting_streams: Arc<ConnectionCaps>,
    pub(super) proxy_protocol_from: Box<[IpNet]>,
    pub(super) trusted_proxies: Box<[IpNet]>,
}

/// [`seiketsu_config::node::Protection`] in the units that are needed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Protection {
    pub(super) head: HeadLimits,
    pub(super) head_timeout: Duration,
    pub(super) handshake_timeout: Duration,
    pub(super) write_timeout: Duration,
    pub(super) keepalive: Duration,
    pub(super) keepalive_requests: u32,
    /// Bytes per second; 0: no bound.
    pub(super) min_body_rate: u64,
    pub(super) h2_streams: u32,
    pub(super) h2_resets: u32,
}

impl Protection {
    pub(super) fn new(node: &NodeConfig) -> Self {
        let protection = &node.protection;
        Self {
            head: HeadLimits {
                bytes: protection.max_head.as_usize(),
                fields: usize::from(protection.max_header_fields),
            },
            head_timeout: protection.head_timeout.get(),
            handshake_timeout: protection.handshake_timeout.get(),
            write_timeout: protection.write_timeout.get(),
            keepalive: protection.keepalive.get(),
            keepalive_requests: protection.keepalive_requests,
            min_body_rate: protection.min_body_rate.get(),
            h2_streams: protection.h2_streams,
            h2_resets: protection.h2_resets,
        }
    }
}

impl Worker {
    pub(super) fn expects_proxy_header(&self, peer: IpAddr) -> bool {
        contains(&self.proxy_protocol_from, peer)
    }

    /// Counts and logs what was refused before it was a request; `answer` is what the client was told, if anything.
    pub(super) fn early_error(
        &self,
        reason: &'static str,
        client: &Client,
        version: Version,
        answer: Option<&EarlyError>,
    ) {
        self.metrics.early_error(reason);
        let status = answer.map_or(0, |answer| answer.kind.status().as_u16());
        if !self.shared.access_log.samples(1.0, status) {
            return;
        }
        self.shared.access_log.write(&AccessRecord {
            started: answer.map_or_else(SystemTime::now, |answer| answer.at),
            duration: Duration::ZERO,
            request_id: answer.map_or("", |answer| answer.id.as_str()),
            trace_id: None,
            tenant: "",
            route: "",
            consumer: "",
            client: client.ip(),
            method: "",
            host: b"",
            path: b"",
            protocol: version,
            tls: client.tls.as_ref().map_or("", |tls| tls.version),
            status,
            bytes_in: 0,
            bytes_out: 0,
            refusal: answer.map(|answer| answer.kind),
            early_error: reason,
            cache: None,
            limit: None,
            user_agent: b"",
            upstream: None,
        });
    }

    /// For a new exchange.
    pub(super) fn watch(&self) -> Watch {
        Watch::new(self.protection.min_body_rate)
    }

    /// Serves a request without a session of Pingora's, if that can be done.
    pub(super) async fn fast_path(
        &self,
        transport: &mut Transport,
        peer: &Peer,
        tenant: Arc<TenantEntry<CompiledTenant>>,
        head: BytesMut,
    ) -> Served {
        fast_path::serve(&self.shared, self.shedder.as_ref(), self.index, transport, peer, tenant, head).await
    }

    pub(super) fn trusts(&self, peer: IpAddr) -> bool {
        contains(&self.trusted_proxies, peer)
    }
}

fn contains(networks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}

/// Accepts and serves until the node drains and nothing is left, or until the deadline for that.
pub(super) async fn run(
    listeners: Vec<Listener>,
    jobs: Option<Jobs>,
    worker: Arc<Worker>,
    mut shutdown: ShutdownWatch,
    drain_timeout: Duration,
) -> io::Result<()> {
    let active = Arc::new(Active::default());
    if let Some(shedder) = &worker.shedder {
        tokio::spawn(shedding::Watch::new(shedder.clone()).run());
    }
    if let Some(jobs) = jobs {
        tokio::spawn(background::run(worker.proxy.clone(), jobs));
    }
    for listener in listeners {
        let tls = listener.endpoint.tls;
        let socket = TcpListener::from_std(listener.socket)?;
        tokio::spawn(accept(socket, tls, worker.clone(), active.clone(), shutdown.clone()));
    }
    shutdown::begun(&mut shutdown).await;
    // The accept loops take what already waits; give them their turn before looking.
    tokio::task::yield_now().await;
    if tokio::time::timeout(drain_timeout, active.none_left()).await.is_err() {
        tracing::warn!("connections were still open at the end of `drain.timeout` and are cut");
    }
    Ok(())
}

async fn accept(socket: TcpListener, tls: bool, worker: Arc<Worker>, active: Arc<Active>, mut shutdown: ShutdownWatch) {
    let mut last_warning: Option<Instant> = None;
    loop {
        // Biased: connections that wait when draining begins are still taken.
        let accepted = tokio::select! {
            biased;
            accepted = socket.accept() => accepted,
            () = shutdown::begun(&mut shutdown) => return,
        };
        match accepted {
            Ok((tcp, peer)) => {
                let Some(addresses) = connection::addresses(&tcp, peer) else { continue };
                // Load balancers that name their clients in a PROXY header are counted by these. Those that name
                // them in each request carry all clients on few addresses: the bound is not meant for them.
                let counts = !worker.expects_proxy_header(peer.ip()) && !worker.trusts(peer.ip());
                let client = counts.then(|| peer.ip());
                match worker.caps.admit(client) {
                    Ok(slot) => {
                        let guard = (Active::enter(&active), worker.metrics.accepted());
                        let (worker, shutdown) = (worker.clone(), shutdown.clone());
                        tokio::spawn(async move {
                            connection::serve(tcp, addresses, tls, worker, shutdown, slot).await;
                            drop(guard);
                        });
                    }
                    Err(full) => refuse(tcp, full, &worker),
                }
            }
            Err(error) if is_exhausted(&error) => {
                if last_warning.is_none_or(|at| at.elapsed() > Duration::from_secs(10)) {
                    last_warning = Some(Instant::now());
                    tracing::error!(%error, "cannot accept connections; raise the limit of open files (LimitNOFILE, ulimit -n)");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            // The client was gone before it was accepted.
            Err(error) => tracing::debug!(%error, "accept failed"),
        }
    }
}

fn refuse(tcp: TcpStream, full: Full, worker: &Worker) {
    worker.metrics.refused(full.reason());
    drop(tcp);
}

/// Whether there are no file descriptors or no memory for another socket.
pub(crate) fn is_exhausted(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM]
        .into_iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}
