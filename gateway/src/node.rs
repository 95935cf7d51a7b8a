//! A node from start to end: build, serve, answer signals, drain.

use std::{io, net::TcpListener, sync::Arc, time::Duration};

use seiketsu_config::node::NodeConfig;
use tokio::{
    runtime::{Builder, Handle, Runtime},
    signal::unix::{Signal, SignalKind, signal},
};

use crate::{
    config_source::{self, ConfigSource, RunningConfig, StatusCell},
    operations::{LogLevel, OperationsServer, OperationsState, Readiness},
    proxy::{Shared, SharedError},
    server::{
        self, Server, ServerError, handover,
        listener::{self, BindError},
        tls,
    },
};

pub use crate::config_source::check_config;

/// Why a node could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Shared(#[from] SharedError),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error("cannot take over from the running gateway: {0}")]
    Handover(#[from] handover::HandoverError),
    #[error("{0}")]
    Tls(#[from] tls::TlsError),
    #[error("there is no configuration to start with:\n{0}")]
    NoConfiguration(String),
    #[error("cannot serve operations: {0}")]
    Operations(#[source] io::Error),
    #[error("cannot start: {0}")]
    Io(#[from] io::Error),
}

/// Runs a node until it is told to end. `upgrade`: takes the sockets of the running gateway over.
pub fn run(node: NodeConfig, upgrade: bool, log_level: Arc<dyn LogLevel>) -> Result<(), RunError> {
    // rustls refuses to choose between providers that happen to be linked in; an error means that one
    // is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    // Health checks, name resolution and the like. Workers have runtimes of their own.
    let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("background").enable_all().build()?;
    let shared = Arc::new(Shared::new(node, runtime.handle())?);
    let status = Arc::new(StatusCell::default());
    let live_tls = Arc::new(tls::LiveTls::new(&shared.live)?);
    let source = ConfigSource::start(shared.clone(), live_tls.clone(), status.clone(), runtime.handle().clone())?;
    if !status.get().loaded {
        return Err(RunError::NoConfiguration(status.get().errors.join("\n")));
    }
    let inherited = upgrade.then(|| handover::receive(&handover::socket_path(&shared.node.state_dir))).transpose()?;
    let (listeners, inherited) = match inherited {
        Some(mut inherited) => (std::mem::take(&mut inherited.listeners), Some(inherited)),
        None => (server::bind(&shared.node)?, None),
    };
    let server = Server::start(&shared.node, &shared, &live_tls, listeners)?;
    let readiness = Arc::new(Readiness::default());
    readiness.set_listening();
    let state = OperationsState {
        readiness: readiness.clone(),
        config: Arc::new(RunningConfig { shared: shared.clone(), status: status.clone() }),
        metrics: shared.metrics.clone(),
        log_level,
    };
    let operations = operations_listener(&shared.node, upgrade)
        .and_then(|listener| OperationsServer::start(listener, state))
        .map_err(RunError::Operations)?;
    announce(&shared, &server, operations.address());
    if let Some(inherited) = inherited {
        inherited.serving();
    }
    let background = spawn_background(&shared, runtime.handle());
    let end = runtime.block_on(wait_for_end(&shared, &source, &server));
    tracing::info!(reason = end, "draining");
    readiness.set_draining();
    end_at_second_signal(&runtime);
    if end != "handed over" {
        std::thread::park_timeout(shared.node.drain.delay.get());
    }
    server.drain();
    background.abort();
    drop((source, operations, shared));
    runtime.shutdown_timeout(Duration::from_secs(1));
    tracing::info!("ended");
    Ok(())
}

/// Serves until a signal says otherwise; says which.
async fn wait_for_end(shared: &Arc<Shared>, source: &ConfigSource, server: &Server) -> &'static str {
    let install = || -> io::Result<[Signal; 4]> {
        Ok([
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::hangup())?,
            signal(SignalKind::quit())?,
        ])
    };
    let [mut terminate, mut interrupt, mut hangup, mut quit] = match install() {
        Ok(signals) => signals,
        Err(error) => {
            tracing::error!(%error, "signals cannot be received; the node can only be killed");
            return std::future::pending().await;
        }
    };
    loop {
        tokio::select! {
            _ = terminate.recv() => return "TERM",
            _ = interrupt.recv() => return "INT",
            _ = hangup.recv() => {
                tracing::info!("HUP: reading configuration and certificates again");
                source.reload();
                shared.access_log.reopen();
                if let Err(error) = shared.assertions.reload() {
                    tracing::error!(%error, "the key for assertions stays as it was");
                }
            }
            _ = quit.recv() => {
                let path = handover::socket_path(&shared.node.state_dir);
                let sent = tokio::task::block_in_place(|| handover::send(&path, server.listeners()));
                match sent {
                    Ok(()) => return "handed over",
                    Err(error) => tracing::error!(%error, "the sockets were not handed over; going on"),
                }
            }
        }
    }
}

/// Somebody who sends a second TERM does not want to wait for the last WebSocket.
fn end_at_second_signal(runtime: &Runtime) {
    runtime.spawn(async {
        let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
        else {
            return;
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::warn!("second signal: ending at once");
        std::process::exit(1);
    });
}

/// Where the node listens: in the log, and in `addresses.json` for tools, since ports may be chosen by the kernel.
fn announce(shared: &Shared, server: &Server, operations: std::net::SocketAddr) {
    let of_kind = |tls: bool| {
        let mut addresses: Vec<_> =
            server.listeners().iter().map(|l| l.endpoint).filter(|e| e.tls == tls).map(|e| e.address).collect();
        addresses.dedup();
        addresses
    };
    let (http, https) = (of_kind(false), of_kind(true));
    tracing::info!(?http, ?https, %operations, version = env!("CARGO_PKG_VERSION"), "serving");
    let addresses =
        serde_json::json!({ "http": http, "https": https, "operations": operations, "pid": std::process::id() });
    let path = shared.node.state_dir.join("addresses.json");
    if let Err(error) = crate::files::replace(&path, addresses.to_string().as_bytes()) {
        tracing::warn!(path = %path.display(), %error, "addresses could not be written");
    }
}

/// While the former process drains, both answer on the same port: each tells of itself, and what asks
/// finds one that is ready.
fn operations_listener(node: &NodeConfig, upgrade: bool) -> io::Result<TcpListener> {
    let endpoint = listener::Endpoint { address: node.listeners.operations, tls: false };
    let _ = upgrade;
    let mut bound = listener::bind(endpoint, 1).map_err(io::Error::other)?;
    bound.pop().map(|listener| listener.socket).ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

fn spawn_background(shared: &Arc<Shared>, runtime: &Handle) -> tokio::task::JoinHandle<()> {
    let events = config_source::log_upstream_events(shared.clone());
    let identity = shared.identity.clone();
    runtime.spawn(async move {
        let mut every_second = tokio::time::interval(Duration::from_secs(1));
        tokio::pin!(events);
        loop {
            tokio::select! {
                () = &mut events => return,
                _ = every_second.tick() => identity.jwks().refresh_due(),
            }
        }
    })
}
