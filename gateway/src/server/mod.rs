//! Everything between the network and a request: listening sockets, workers, connection caps, PROXY
//! protocol, TLS, the strict check of request heads, draining, and handing sockets to a new binary.
//!
//! Pingora's own server is not used, only its proxy: `docs/decisions/0002-own-accept-loop.md` says why.

mod active;
pub(crate) mod caps;
pub(crate) mod chunked;
mod connection;
pub(crate) mod handover;
pub mod head;
mod head_frames;
mod http1;
mod http2;
pub(crate) mod listener;
pub(crate) mod peer;
mod proxy_protocol;
mod shutdown;
mod stream;
pub(crate) mod tls;
pub(crate) mod transport;
pub(crate) mod watch;
pub(crate) mod worker;

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use pingora_core::server::configuration::ServerConf;
use pingora_proxy::http_proxy;
use seiketsu_config::node::NodeConfig;
use tokio::sync::watch as channel;

use self::{
    caps::ConnectionCaps,
    listener::{BindError, Endpoint, Listener},
    tls::LiveTls,
    worker::{Protection, Worker},
};
use crate::{
    cache::background::Jobs,
    policy::body_transform::STACK_BYTES,
    proxy::{Gateway, Shared},
};

/// Why workers could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("cannot start a worker thread: {0}")]
    Thread(#[source] io::Error),
    #[error("cannot copy a listening socket: {0}")]
    Clone(#[source] io::Error),
}

/// The running workers.
pub(crate) struct Server {
    workers: Vec<JoinHandle<()>>,
    draining: channel::Sender<bool>,
    /// Copies of the sockets, for handing them over.
    listeners: Vec<Listener>,
}

/// How many workers a node has.
pub(crate) fn worker_count(node: &NodeConfig) -> usize {
    match node.threads {
        0 => thread::available_parallelism().map_or(1, std::num::NonZero::get),
        threads => threads,
    }
}

/// Whether all ports of a node are there for it alone.
pub(crate) fn check_ports(node: &NodeConfig) -> Result<(), BindError> {
    node.listeners.http.iter().chain(&node.listeners.https).try_for_each(|address| listener::check_free(*address))
}

/// All listening sockets of a node, at least one per worker and address: those that a former process had there, and
/// new ones. What the node has no listener for is closed.
pub(crate) fn bind(node: &NodeConfig, mut former: Vec<Listener>) -> Result<Vec<Listener>, BindError> {
    let plain = node.listeners.http.iter().map(|address| Endpoint { address: *address, tls: false });
    let tls = node.listeners.https.iter().map(|address| Endpoint { address: *address, tls: true });
    let mut listeners: Vec<_> = plain.chain(tls).map(|endpoint| (endpoint, Vec::new())).collect();
    for (endpoint, sockets) in &mut listeners {
        *sockets = take(&mut former, endpoint.address, endpoint.tls);
    }
    // Of what nobody has asked for by its number, any port will do.
    for (endpoint, sockets) in listeners.iter_mut().filter(|(endpoint, _)| endpoint.address.port() == 0) {
        let is_alike = |had: &Endpoint| had.tls == endpoint.tls && had.address.ip() == endpoint.address.ip();
        if let Some(had) = former.iter().map(|listener| listener.endpoint).find(is_alike) {
            *sockets = take(&mut former, had.address, had.tls);
        }
    }
    let mut missing: Vec<_> = listeners.iter_mut().filter(|(_, sockets)| sockets.is_empty()).collect();
    missing.iter().try_for_each(|(endpoint, _)| listener::check_free(endpoint.address))?;
    for (endpoint, sockets) in &mut missing {
        *sockets = listener::bind(*endpoint, worker_count(node))?;
    }
    // A former process may have had fewer workers. Last, since connections come to these from here on.
    for (_, sockets) in &mut listeners {
        if let Some(had) = sockets.first().map(|listener| listener.endpoint) {
            while sockets.len() < worker_count(node) {
                match listener::bind(had, 1) {
                    Ok(more) => sockets.extend(more),
                    // Those that there are serve as before.
                    Err(error) => {
                        tracing::warn!(%error, "not every worker has a socket of its own, so that some have more to do");
                        break;
                    }
                }
            }
        }
    }
    Ok(listeners.into_iter().flat_map(|(_, sockets)| sockets).collect())
}

/// The sockets that listen at this address, which serve with or without TLS from here on.
fn take(former: &mut Vec<Listener>, address: SocketAddr, tls: bool) -> Vec<Listener> {
    let there = former.extract_if(.., |listener| listener.endpoint.address == address);
    there.map(|listener| Listener { endpoint: Endpoint { address, tls }, ..listener }).collect()
}

impl Server {
    /// Starts the workers; they serve from here on.
    pub(crate) fn start(
        node: &NodeConfig,
        shared: &Arc<Shared>,
        tls: &Arc<LiveTls>,
        listeners: Vec<Listener>,
    ) -> Result<Self, ServerError> {
        let (draining, watch) = channel::channel(false);
        let caps = Arc::new(ConnectionCaps::new(node.protection.connections_per_address, node.protection.connections));
        let waiting_streams = match node.protection.connections_per_address {
            0 => 0,
            // One connection may have all of its streams waiting.
            connections => connections.max(node.protection.h2_streams),
        };
        let waiting_streams = Arc::new(ConnectionCaps::new(waiting_streams, 0));
        let conf = Arc::new(pingora_settings(node));
        let count = worker_count(node);
        let mut shares: Vec<Vec<Listener>> = (0..count).map(|_| Vec::new()).collect();
        // In turn, so that each worker gets one socket of each address; also where the sockets come
        // from a process that had another number of workers.
        let mut kept = Vec::with_capacity(listeners.len());
        for (index, listener) in listeners.into_iter().enumerate() {
            let socket = listener.socket.try_clone().map_err(ServerError::Clone)?;
            shares[index % count].push(Listener { endpoint: listener.endpoint, socket });
            kept.push(listener);
        }
        let mut workers = Vec::with_capacity(count);
        for (index, share) in shares.into_iter().enumerate() {
            let shedder = shared.shedders.get(index).cloned();
            let worker = Arc::new(Worker {
                index,
                proxy: Arc::new(http_proxy(&conf, Gateway::new(shared.clone(), shedder.clone(), index))),
                shedder,
                protection: Protection::new(node),
                tls: tls.clone(),
                metrics: shared.metrics.connections(),
                shared: shared.clone(),
                caps: caps.clone(),
                waiting_streams: waiting_streams.clone(),
                proxy_protocol_from: node.listeners.proxy_protocol_from.clone().into(),
                trusted_proxies: node.forwarding.trusted_proxies.clone().into(),
            });
            let jobs = shared.cache.background.jobs(index);
            let (watch, drain_timeout) = (watch.clone(), node.drain.timeout.get());
            let thread = thread::Builder::new()
                .name(format!("worker-{index}"))
                .stack_size(STACK_BYTES)
                .spawn(move || run_worker(share, jobs, worker, watch, drain_timeout))
                .map_err(ServerError::Thread)?;
            workers.push(thread);
        }
        Ok(Self { workers, draining, listeners: kept })
    }

    pub(crate) fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    /// Stops accepting, lets what is in flight end, and returns when nothing is left. Blocks.
    pub(crate) fn drain(self) {
        drop(self.listeners);
        let _ = self.draining.send(true);
        for worker in self.workers {
            if worker.join().is_err() {
                tracing::error!("a worker thread ended in a panic");
            }
        }
    }
}

fn run_worker(
    listeners: Vec<Listener>,
    jobs: Option<Jobs>,
    worker: Arc<Worker>,
    shutdown: channel::Receiver<bool>,
    drain_timeout: Duration,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().thread_stack_size(STACK_BYTES).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "cannot start a worker's runtime"),
    };
    if let Err(error) = runtime.block_on(worker::run(listeners, jobs, worker, shutdown, drain_timeout)) {
        tracing::error!(%error, "a worker cannot serve");
    }
    // What is still open is cut: its time is over.
    runtime.shutdown_background();
}

fn pingora_settings(node: &NodeConfig) -> ServerConf {
    ServerConf {
        // Each worker has a proxy, and with it a pool of upstream connections, of its own.
        threads: 1,
        upstream_keepalive_pool_size: node.upstream_pool_size,
        // Attempts end by our own rules long before.
        max_retries: 16,
        ..ServerConf::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn sockets_of_a_former_process_go_where_the_file_says() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let node = |http: &[SocketAddr], https: &[SocketAddr]| {
            let mut node = NodeConfig { threads: 1, ..NodeConfig::default() };
            (node.listeners.http, node.listeners.https) = (http.to_vec(), https.to_vec());
            node
        };
        let former = bind(&node(&[any, any], &[any]), Vec::new()).unwrap();
        let had: Vec<Endpoint> = former.iter().map(|listener| listener.endpoint).collect();
        let [one, other, tls] = had[..] else { panic!("{had:?}") };
        let next = |http: &[SocketAddr], https: &[SocketAddr]| -> Vec<Endpoint> {
            let former = former.iter().map(|listener| listener.try_clone().unwrap()).collect();
            bind(&node(http, https), former).unwrap().iter().map(|listener| listener.endpoint).collect()
        };
        assert_eq!(next(&[any, any], &[any]), had);
        assert_eq!(next(&[any, one.address], &[]), [other, one], "a named port is none that may be any");
        let swapped = [Endpoint { tls: false, ..tls }, Endpoint { tls: true, ..one }];
        assert_eq!(next(&[tls.address], &[one.address]), swapped);
        let more = next(&[any, any, any], &[]);
        assert!(more[..2] == had[..2] && !had.contains(&more[2]), "{more:?}");
    }

    #[test]
    fn each_worker_has_a_socket_of_its_own_where_a_former_process_had_fewer() {
        let node = |threads, address| {
            let mut node = NodeConfig { threads, ..NodeConfig::default() };
            (node.listeners.http, node.listeners.https) = (vec![address], Vec::new());
            node
        };
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let former = bind(&node(1, any), Vec::new()).unwrap();
        let had = former[0].endpoint;
        let copies = |listeners: &[Listener]| listeners.iter().map(|listener| listener.try_clone().unwrap()).collect();
        for address in [any, had.address] {
            let next = bind(&node(4, address), copies(&former)).unwrap();
            let endpoints: Vec<_> = next.iter().map(|listener| listener.socket.local_addr().unwrap()).collect();
            assert_eq!(endpoints, [had.address; 4]);
            // What the kernel has given a socket already is not lost, so none is closed.
            assert_eq!(bind(&node(2, address), copies(&next)).unwrap().len(), 4);
        }
    }
}
