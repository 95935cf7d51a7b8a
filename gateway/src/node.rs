//! A node from start to end: build, serve, answer signals, drain.

use std::{
    io,
    net::TcpListener,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use seiketsu_config::node::NodeConfig;
use tokio::{
    runtime::{Builder, Handle, Runtime},
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
    task::JoinHandle,
};

use crate::{
    config_source::{self, ConfigSource, RunningConfig, SourceError, StatusCell},
    operations::{LogLevel, OperationsServer, OperationsState, Readiness},
    proxy::{Shared, SharedError},
    server::{
        self, Server, ServerError,
        handover::{self, HandoverError},
        listener::{self, BindError, Listener},
        tls,
    },
    telemetry::usage::Usage,
};

pub use crate::config_source::check_config;

/// A node that ends waits this long for the control plane to take its last usage over.
const TAKEN_OVER: Duration = Duration::from_secs(1);

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
    Handover(#[from] HandoverError),
    #[error("{0}")]
    Tls(#[from] tls::TlsError),
    #[error(transparent)]
    Source(#[from] SourceError),
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
    raise_limit_of_open_files();
    if !upgrade {
        // Ports that are taken are told at once, not after a long load. And before anything in the folder of its
        // state is touched: it may be that of the gateway that has them.
        server::check_ports(&node)?;
    }
    // Health checks, name resolution and the like. Workers have runtimes of their own.
    let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("background").enable_all().build()?;
    // Before anything that takes time: a HUP or QUIT that comes early must not end the process.
    let mut signals = Signals::install(runtime.handle())?;
    let shared = Arc::new(Shared::new(node, runtime.handle())?);
    let status = Arc::new(StatusCell::default());
    let (readiness, connection) = (Arc::new(Readiness::default()), status.clone());
    let state = OperationsState {
        readiness: readiness.clone(),
        config: Arc::new(RunningConfig { shared: shared.clone(), status: status.clone() }),
        metrics: shared.metrics.clone(),
        usage: shared.usage.clone(),
        cache: shared.cache.clone(),
        log_level,
    };
    let serve_operations = || {
        let listener = operations_listener(&shared.node).map_err(RunError::Operations)?;
        OperationsServer::start(listener, state).map_err(RunError::Operations)
    };
    // Probes get their answers while the configuration is being loaded. Where another process serves
    // meanwhile, it answers them: half of them would go to this one.
    let (mut operations, mut serve_operations) = (None, Some(serve_operations));
    if !upgrade {
        warn_of_shared_operations(shared.node.listeners.operations);
    }
    if !upgrade && let Some(serve) = serve_operations.take() {
        operations = Some(serve()?);
    }
    let prepared = prepare(shared.clone(), status, readiness.clone(), runtime.handle().clone(), upgrade)?;
    let prepared = runtime.block_on(async {
        tokio::select! {
            biased;
            prepared = prepared => Some(prepared),
            reason = signals.end() => {
                tracing::info!(reason, "ended before it began to serve");
                None
            }
        }
    });
    let Some(prepared) = prepared else {
        // What is still being read or waited for is of no use to anybody.
        runtime.shutdown_background();
        return Ok(());
    };
    // No word from the thread means that it ended in a panic, which stands in the log.
    let prepared = prepared.map_err(|_| io::Error::other("reading the configuration failed"))??;
    let Prepared { source, live_tls, listeners, inherited } = prepared;
    let server = Server::start(&shared.node, &shared, &live_tls, listeners)?;
    readiness.set_listening();
    if let Some(serve) = serve_operations.take() {
        operations = Some(serve()?);
    }
    warn_of_missing_certificates(&shared);
    announce(&shared, &server, operations.as_ref().map(OperationsServer::address));
    if let Some(inherited) = inherited {
        inherited.serving();
    }
    let background = spawn_background(&shared, runtime.handle());
    let end = runtime.block_on(wait_for_end(&shared, &source, &server, &mut signals));
    tracing::info!(reason = end, "draining");
    readiness.set_draining();
    end_at_second_signal(&runtime, signals, shared.usage.clone());
    if end == HANDED_OVER {
        // The new process answers from here on. If both did, every other probe would find a node that drains.
        drop(operations.take());
    } else {
        std::thread::park_timeout(shared.node.drain.delay.get());
    }
    server.drain();
    // Before the operations server ends, so that who follows the log may still hear of it.
    shared.usage.flush();
    if connection.connection().is_some_and(|connection| connection.connected) {
        // A node whose disk goes with it leaves nothing behind that way.
        runtime.block_on(shared.usage.wait_until_taken(TAKEN_OVER));
    }
    background.abort();
    runtime.block_on(shared.limits.close());
    drop((source, operations, shared));
    runtime.shutdown_timeout(Duration::from_secs(1));
    tracing::info!("ended");
    Ok(())
}

/// Systems give a process some thousand descriptors unless it asks for what it may have: for a gateway that is
/// a few hundred clients.
fn raise_limit_of_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
}

pub(crate) const NO_CERTIFICATE: &str = "listeners.https: there is no certificate, so that every handshake fails; add one to tls.certificates of the node or of a tenant";

fn warn_of_missing_certificates(shared: &Shared) {
    let snapshot = shared.live.load();
    if shared.node.lacks_certificates(snapshot.tenants().map(|tenant| &*tenant.compiled().config)) {
        tracing::warn!("{NO_CERTIFICATE}");
    }
}

/// Everything that may take its time before a node can serve.
struct Prepared {
    source: ConfigSource,
    live_tls: Arc<tls::LiveTls>,
    listeners: Vec<Listener>,
    inherited: Option<handover::Inherited>,
}

/// Loads the configuration and gets hold of the sockets, on a thread of its own.
fn prepare(
    shared: Arc<Shared>,
    status: Arc<StatusCell>,
    readiness: Arc<Readiness>,
    runtime: Handle,
    upgrade: bool,
) -> io::Result<oneshot::Receiver<Result<Prepared, RunError>>> {
    let (done, prepared) = oneshot::channel();
    let work = move || {
        let live_tls = Arc::new(tls::LiveTls::new(&shared.live)?);
        shared.metrics.show_certificates(live_tls.clone());
        let source = ConfigSource::start(shared.clone(), live_tls.clone(), status.clone(), readiness, runtime)?;
        // A control plane that is away may come back; files that are not there are a mistake.
        source.wait_until_loaded();
        if !status.get().loaded {
            return Err(RunError::NoConfiguration(status.get().errors.join("\n")));
        }
        let mut inherited =
            upgrade.then(|| handover::receive(&handover::socket_path(&shared.node.state_dir))).transpose()?;
        let former = inherited.as_mut().map(|inherited| std::mem::take(&mut inherited.listeners));
        let listeners = server::bind(&shared.node, former.unwrap_or_default())?;
        Ok(Prepared { source, live_tls, listeners, inherited })
    };
    std::thread::Builder::new().name("start".to_owned()).spawn(move || {
        // Nobody waits any more if the node was told to end.
        let _ = done.send(work());
    })?;
    Ok(prepared)
}

/// What operators say to the process.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    quit: Signal,
}

impl Signals {
    fn install(runtime: &Handle) -> io::Result<Self> {
        let _inside = runtime.enter();
        // Once somebody has asked for it, a file that has become too large for the limit of the process is an error of
        // whoever writes it, and no longer the end of the process.
        drop(signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?);
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
        })
    }

    /// Waits until the process is told to end; says by which signal.
    async fn end(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "TERM",
            _ = self.interrupt.recv() => "INT",
        }
    }
}

const HANDED_OVER: &str = "handed over";

/// Serves until a signal says otherwise; says which.
async fn wait_for_end(
    shared: &Arc<Shared>,
    source: &ConfigSource,
    server: &Server,
    signals: &mut Signals,
) -> &'static str {
    let mut handover: Option<JoinHandle<Result<(), HandoverError>>> = None;
    loop {
        // A new process that hangs must not keep the old one from hearing anything else.
        let handed_over = async {
            match &mut handover {
                Some(handover) => handover.await.unwrap_or_else(|error| Err(HandoverError::Failed(error.to_string()))),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            handed_over = handed_over => match handed_over {
                Ok(()) => return HANDED_OVER,
                Err(error) => {
                    handover = None;
                    tracing::error!(
                        %error,
                        "the sockets were not handed over; going on. Start the new process with --upgrade first"
                    );
                }
            },
            _ = signals.terminate.recv() => return "TERM",
            _ = signals.interrupt.recv() => return "INT",
            _ = signals.hangup.recv() => {
                tracing::info!("HUP: reading configuration and certificates again");
                source.reload();
                shared.access_log.reopen();
                if let Err(error) = shared.assertions.reload() {
                    tracing::error!(%error, "the key for assertions stays as it was");
                }
            }
            _ = signals.quit.recv() => {
                if handover.is_some() {
                    tracing::warn!("the sockets are being handed over already");
                    continue;
                }
                let path = handover::socket_path(&shared.node.state_dir);
                let listeners = server.listeners().iter().map(Listener::try_clone).collect::<Result<Vec<_>, _>>();
                handover = Some(tokio::task::spawn_blocking(move || {
                    let listeners = listeners.map_err(|error| HandoverError::Failed(error.to_string()))?;
                    handover::send(&path, &listeners)
                }));
            }
        }
    }
}

/// Signals that come this soon after the first are the same one.
const ONE_BREATH: Duration = Duration::from_millis(250);

/// Somebody who sends a second TERM does not want to wait for the last WebSocket.
fn end_at_second_signal(runtime: &Runtime, mut signals: Signals, usage: Arc<Usage>) {
    let first = Instant::now();
    runtime.spawn(async move {
        signals.end().await;
        // A terminal and a supervisor both say it, in the same breath: that is one wish, and no impatience.
        while first.elapsed() < ONE_BREATH {
            signals.end().await;
        }
        tracing::warn!("second signal: ending at once");
        usage.flush();
        std::process::exit(1);
    });
}

/// Where the node listens: in the log, and in `addresses.json` for tools, since ports may be chosen by the kernel.
fn announce(shared: &Shared, server: &Server, operations: Option<std::net::SocketAddr>) {
    let of_kind = |tls: bool| {
        let mut addresses: Vec<_> =
            server.listeners().iter().map(|l| l.endpoint).filter(|e| e.tls == tls).map(|e| e.address).collect();
        addresses.dedup();
        addresses
    };
    let (http, https) = (of_kind(false), of_kind(true));
    tracing::info!(
        ?http,
        ?https,
        operations = operations.map(tracing::field::display),
        version = env!("CARGO_PKG_VERSION"),
        "serving"
    );
    let addresses =
        serde_json::json!({ "http": http, "https": https, "operations": operations, "pid": std::process::id() });
    let path = shared.node.state_dir.join("addresses.json");
    if let Err(error) = crate::files::replace(&path, addresses.to_string().as_bytes()) {
        tracing::warn!(path = %path.display(), %error, "addresses could not be written");
    }
}

/// A former process that drains may still answer there, which is well. Another node that serves is not: each
/// probe would find one of the two.
fn warn_of_shared_operations(address: std::net::SocketAddr) {
    if let Err(error) = listener::check_free(address) {
        tracing::warn!(%error, "another process answers on the operations address; probes reach it or this one");
    }
}

fn operations_listener(node: &NodeConfig) -> io::Result<TcpListener> {
    let endpoint = listener::Endpoint { address: node.listeners.operations, tls: false };
    let mut bound = listener::bind(endpoint, 1).map_err(io::Error::other)?;
    bound.pop().map(|listener| listener.socket).ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

fn spawn_background(shared: &Arc<Shared>, runtime: &Handle) -> JoinHandle<()> {
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
