//! The server: one thread with a small runtime, plain HTTP/1.1.

use std::{
    convert::Infallible,
    fs::File,
    io,
    net::{SocketAddr, TcpListener},
    pin::pin,
    sync::Arc,
    thread,
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{sleep, timeout},
};

use super::{OperationsState, answer};
use crate::server::worker::is_exhausted;

/// Enough for probes, scrapers and people; nobody else should be here.
const MAX_CONNECTIONS: usize = 64;
/// To the end of a request's head, and for idle connections.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_HEAD: usize = 16 << 10;
const MAX_FIELDS: usize = 64;
/// A connection is asked to end after this time, and ended after the grace.
const CONNECTION_LIFETIME: Duration = Duration::from_mins(10);
const CONNECTION_GRACE: Duration = Duration::from_secs(10);
/// When the process is out of file descriptors, accepting pauses for this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Descriptors that are kept for probes and people while clients have taken all others: whoever cannot ask
/// what is wrong restarts the node, which makes it worse.
const SPARE_DESCRIPTORS: usize = 4;

/// Holds descriptors, to be let go when one is needed.
#[derive(Clone, Default)]
struct Spares(Arc<Mutex<Vec<File>>>);

impl Spares {
    fn fill(&self) {
        let mut spares = self.0.lock();
        while spares.len() < SPARE_DESCRIPTORS {
            let Ok(spare) = File::open("/dev/null") else { return };
            spares.push(spare);
        }
    }

    /// Makes room for one descriptor, if there is any to be made.
    fn spend(&self) -> bool {
        self.0.lock().pop().is_some()
    }
}

/// The running server. Dropping it ends it, open connections included.
#[derive(Debug)]
pub struct OperationsServer {
    address: SocketAddr,
    stop: Option<oneshot::Sender<Infallible>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl OperationsServer {
    /// Serves on a bound socket.
    pub fn start(listener: TcpListener, state: OperationsState) -> io::Result<Self> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new().name("operations".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = accept(listener, state, address.ip().is_loopback()) => {}
                    // Nothing is ever sent: the sender's end is the signal.
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for OperationsServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the operations server ended in a panic");
        }
    }
}

async fn accept(listener: tokio::net::TcpListener, state: OperationsState, loopback: bool) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let spares = Spares::default();
    spares.fill();
    loop {
        // Never closed, so there is always a permit to wait for.
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (state, spares) = (state.clone(), spares.clone());
                tokio::spawn(async move {
                    serve(stream, state, loopback, permit).await;
                    // At once, before somebody else takes what this connection had.
                    spares.fill();
                });
            }
            Err(error) if is_exhausted(&error) && spares.spend() => {}
            Err(error) => {
                tracing::debug!(%error, "the operations server cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, state: OperationsState, loopback: bool, permit: OwnedSemaphorePermit) {
    let service = service_fn(|request| async { Ok::<_, Infallible>(answer(request, &state, loopback).await) });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_FIELDS)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = timeout(CONNECTION_LIFETIME, connection.as_mut()).await;
    if ended.is_err() {
        connection.as_mut().graceful_shutdown();
        let _ = timeout(CONNECTION_GRACE, connection).await;
    }
    drop(permit);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{
        io::{BufRead, BufReader, Read, Write},
        net,
        sync::atomic::{AtomicBool, Ordering},
    };

    use seiketsu_config::node::{NodeConfig, UsageLog};
    use serde_json::{Value, json};
    use tracing_subscriber::{EnvFilter, Registry, reload};

    use super::*;
    use crate::{
        cache::Cache,
        operations::{ConfigStatus, ConfigView, NotConfigured, Readiness},
        telemetry::{
            metrics::Metrics,
            usage::{Caller, Counts, Usage},
        },
    };

    #[derive(Default)]
    struct Config {
        loaded: AtomicBool,
    }

    impl ConfigView for Config {
        fn status(&self) -> ConfigStatus {
            let revision = self.loaded.load(Ordering::Acquire).then_some(7);
            ConfigStatus { revision, last_reload: json!({ "errors": ["tenants.yaml:3: no"] }), control_plane: None }
        }

        fn effective(&self, tenant: &str, route: Option<&str>) -> Result<Value, NotConfigured> {
            match (tenant, route) {
                ("acme", None | Some("echo")) => Ok(json!({ "timeouts": "plan", "client_secret": "s3" })),
                ("acme", _) => Err(NotConfigured::Route),
                _ => Err(NotConfigured::Tenant),
            }
        }

        fn serves(&self, tenant: &str, host: &str) -> bool {
            (tenant, host) == ("acme", "acme.test")
        }
    }

    struct Node {
        config: Arc<Config>,
        readiness: Arc<Readiness>,
        usage: Arc<Usage>,
        server: OperationsServer,
        _folder: tempfile::TempDir,
        // The handle reaches its filter only while this lives.
        _log: reload::Layer<EnvFilter, Registry>,
    }

    fn node() -> Node {
        let (config, readiness) = (Arc::new(Config::default()), Arc::new(Readiness::default()));
        let (log, handle) = reload::Layer::new(EnvFilter::new("info"));
        let metrics = Arc::new(Metrics::new(1, [].into()).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let usage = Usage::open(&UsageLog::default(), folder.path(), 1, metrics.node.usage.clone()).unwrap();
        let usage = Arc::new(usage);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let state = OperationsState {
            readiness: readiness.clone(),
            config: config.clone(),
            metrics: metrics.clone(),
            usage: usage.clone(),
            cache: Arc::new(Cache::start(&NodeConfig::default(), 1, runtime.handle()).unwrap()),
            log_level: Arc::new(handle),
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = OperationsServer::start(listener, state).unwrap();
        Node { config, readiness, usage, server, _log: log, _folder: folder }
    }

    struct Connection(BufReader<net::TcpStream>);

    struct Reply {
        status: u16,
        head: String,
        body: String,
    }

    impl Reply {
        fn json(&self) -> Value {
            serde_json::from_str(&self.body).unwrap()
        }
    }

    impl Connection {
        fn to(node: &Node) -> Self {
            Self(BufReader::new(net::TcpStream::connect(node.server.address()).unwrap()))
        }

        fn ask(&mut self, method: &str, target: &str, body: &str) -> Reply {
            let length = body.len();
            write!(
                self.0.get_mut(),
                "{method} {target} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n{body}"
            )
            .unwrap();
            self.reply(method == "HEAD")
        }

        fn reply(&mut self, without_body: bool) -> Reply {
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                assert_ne!(self.0.read_line(&mut head).unwrap(), 0, "closed after {head:?}");
            }
            let head = head.to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            let mut body = vec![0; if without_body { 0 } else { length.parse().unwrap() }];
            self.0.read_exact(&mut body).unwrap();
            Reply { status: head[9..12].parse().unwrap(), head, body: String::from_utf8(body).unwrap() }
        }
    }

    #[test]
    fn a_node_is_live_before_it_is_ready_and_not_ready_while_it_drains() {
        let node = node();
        let mut connection = Connection::to(&node);
        assert_eq!(connection.ask("GET", "/livez", "").status, 200);
        assert_eq!(connection.ask("GET", "/readyz", "").status, 503);
        node.config.loaded.store(true, Ordering::Release);
        assert_eq!(connection.ask("GET", "/readyz", "").status, 503, "nobody listens yet");
        node.readiness.set_listening();
        let ready = connection.ask("GET", "/readyz", "");
        assert_eq!((ready.status, &ready.json()["revision"]), (200, &json!(7)));
        assert_eq!(ready.json()["last_reload"]["errors"][0], "tenants.yaml:3: no", "and is told all the same");
        node.readiness.set_draining();
        let draining = connection.ask("GET", "/readyz", "");
        assert_eq!((draining.status, &draining.json()["checks"]["not_draining"]), (503, &json!(false)));
        assert_eq!(connection.ask("GET", "/livez", "").status, 200);
    }

    #[test]
    fn metrics_are_prometheus_text() {
        let reply = Connection::to(&node()).ask("GET", "/metrics", "");
        assert_eq!(reply.status, 200);
        assert!(reply.head.contains("content-type: text/plain; version=0.0.4"), "{}", reply.head);
        assert!(reply.head.contains("cache-control: no-store"), "{}", reply.head);
        assert!(reply.body.contains("\nseiketsu_build_info{version=\""), "{}", reply.body);
    }

    #[test]
    fn the_effective_settings_are_shown_without_secrets() {
        let node = node();
        let mut connection = Connection::to(&node);
        let shown = connection.ask("GET", "/config?tenant=acme&route=echo", "");
        assert_eq!((shown.status, &shown.json()["effective"]["timeouts"]), (200, &json!("plan")));
        assert_eq!(shown.json()["effective"]["client_secret"], "***");
        assert_eq!(connection.ask("GET", "/config", "").json()["revision"], Value::Null);
        for (target, status) in [
            ("/config?tenant=nobody", 404),
            ("/config?tenant=acme&route=none", 404),
            ("/config?route=echo", 400),
            ("/config?tenat=acme", 400),
        ] {
            let refused = connection.ask("GET", target, "");
            assert_eq!(refused.status, status, "{target}");
            assert!(refused.head.contains("application/problem+json"), "{target}");
        }
    }

    #[test]
    fn the_log_level_changes_while_the_node_runs() {
        let node = node();
        let mut connection = Connection::to(&node);
        assert_eq!(connection.ask("GET", "/log-level", "").body, "info\n");
        assert_eq!(connection.ask("PUT", "/log-level", "warn,hyper=error").status, 200);
        let changed = "pingora_proxy::proxy_cache=error,pingora_proxy::proxy_h2=error,pingora_proxy::proxy_h1=error,\
                       hyper=error,warn\n";
        assert_eq!(connection.ask("GET", "/log-level", "").body, changed);
        assert_eq!(connection.ask("PUT", "/log-level", "no=such=filter").status, 400);
        assert_eq!(connection.ask("PUT", "/log-level", "").status, 400);
        assert_eq!(connection.ask("GET", "/log-level", "").body, changed, "a wrong one changes nothing");
        assert_eq!(Connection::to(&node).ask("PUT", "/log-level", &"x".repeat(2000)).status, 413);
    }

    #[test]
    fn usage_is_read_in_pages_and_taken_over() {
        let node = node();
        let mut connection = Connection::to(&node);
        let empty = connection.ask("GET", "/usage", "").json();
        assert_eq!((&empty["records"], empty.get("missing")), (&json!([]), None));
        for consumer in ["a", "b", "c"] {
            let counts = Counts { admitted: 2, ..Counts::default() };
            node.usage.count(&Caller { tenant: "acme", route: "echo", consumer }, &counts);
            node.usage.flush();
        }
        let first = connection.ask("GET", "/usage?limit=2", "").json();
        assert_eq!(
            first["records"][1],
            json!({
                "sequence": 2, "second": first["records"][1]["second"],
                "tenant": "acme", "route": "echo", "consumer": "b", "admitted": 2,
            })
        );
        let next = first["next"].as_str().unwrap();
        assert_eq!(next, format!("{}:2", first["log"].as_str().unwrap()));
        let taken = connection.ask("POST", &format!("/usage/taken?through={next}"), "");
        assert_eq!((taken.status, &taken.json()["taken"]), (200, &first["next"]));
        for target in ["/usage", &format!("/usage?after={next}"), &format!("/usage?after={next}&wait=60")] {
            let rest = connection.ask("GET", target, "").json();
            assert_eq!((&rest["records"][0]["sequence"], rest["records"].as_array().unwrap().len()), (&json!(3), 1));
        }
    }

    #[test]
    fn wrong_questions_about_usage_are_answered_with_the_fix() {
        let node = node();
        let mut connection = Connection::to(&node);
        let log = connection.ask("GET", "/usage", "").json()["log"].as_str().unwrap().to_owned();
        for (method, target, says) in [
            ("GET", "/usage?after=7".to_owned(), "<log>:<sequence>"),
            ("GET", format!("/usage?after={log}:7"), "the log ends at"),
            ("GET", "/usage?limit=0".to_owned(), "between 1 and 10000"),
            ("GET", "/usage?limit=all".to_owned(), "between 1 and 10000"),
            ("GET", "/usage?wait=3600".to_owned(), "between 0 and 60"),
            ("GET", "/usage?until=7".to_owned(), "`after`, `limit` and `wait`"),
            ("POST", "/usage/taken".to_owned(), "Add `through`"),
            ("POST", "/usage/taken?through=7".to_owned(), "<log>:<sequence>"),
            ("POST", "/usage/taken?through=0a:0".to_owned(), "another log"),
            ("POST", format!("/usage/taken?through={log}:7"), "the log ends at"),
            ("POST", "/usage/taken?thru=7".to_owned(), "The parameter is `through`"),
        ] {
            let refused = connection.ask(method, &target, "");
            assert_eq!(refused.status, 400, "{target}");
            let problem = refused.json();
            assert_eq!(problem["type"], "urn:seiketsu:problem:bad-request", "{target}");
            assert!(problem["detail"].as_str().unwrap().contains(says), "{target}: {problem}");
        }
        for (method, target, allowed) in
            [("POST", "/usage", "allow: get, head"), ("GET", "/usage/taken", "allow: post")]
        {
            let refused = connection.ask(method, target, "");
            assert!(refused.status == 405 && refused.head.contains(allowed), "{target}");
        }
    }

    #[test]
    fn head_is_get_without_the_body() {
        let node = node();
        let mut connection = Connection::to(&node);
        for target in ["/livez", "/metrics", "/nothing"] {
            let (head, get) = (connection.ask("HEAD", target, ""), connection.ask("GET", target, ""));
            assert_eq!(head.status, get.status, "{target}");
            assert!(head.head.contains("content-length: "), "{target}");
        }
    }

    #[test]
    fn other_paths_and_methods_are_refused_as_problems() {
        let node = node();
        let mut connection = Connection::to(&node);
        let unknown = connection.ask("GET", "/", "");
        assert_eq!((unknown.status, &unknown.json()["type"]), (404, &json!("urn:seiketsu:problem:no-route")));
        let wrong = connection.ask("DELETE", "/log-level", "");
        assert!(wrong.status == 405 && wrong.head.contains("allow: get, head, put"), "{}", wrong.head);
        assert_eq!(connection.ask("POST", "/livez", "").status, 405);
    }

    #[test]
    fn a_head_beyond_all_measure_is_refused() {
        let node = node();
        let mut connection = Connection::to(&node);
        let head = format!("GET /livez HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "y".repeat(20_000));
        connection.0.get_mut().write_all(head.as_bytes()).unwrap();
        assert_eq!(connection.reply(true).status, 431);
    }

    #[test]
    fn a_server_that_is_dropped_closes_its_connections() {
        let node = node();
        let mut connection = Connection::to(&node);
        assert_eq!(connection.ask("GET", "/livez", "").status, 200);
        drop(node);
        assert_eq!(connection.0.read(&mut [0]).unwrap_or(0), 0);
    }
}
