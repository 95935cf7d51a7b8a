//! A control plane that does what a test says, word by word.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use seiketsu_config::{
    push::{
        Applied, Document, FromNode, Heartbeat, Held, Hello, SCHEMAS, SUBSCRIBE_PATH, Sum, ToNode, Update, Welcome,
        read_binary, read_text, usage::UsagePage, write,
    },
    values::Id,
};
use serde_json::{Value, json, value::RawValue};
use tokio_tungstenite::tungstenite::{
    Message, WebSocket, accept_hdr,
    handshake::server::{ErrorResponse, Request, Response},
};
use uuid::Uuid;

use super::{Gateway, PATIENCE, Process, pki, wait_for};

pub const TOKEN: &str = "sn_right";

trait Wire: Read + Write + Send {}
impl<S: Read + Write + Send> Wire for S {}

/// Lets nodes in that show [`TOKEN`].
pub struct ControlPlane {
    pub address: SocketAddr,
    /// Connections that were refused for their token.
    refused: Arc<AtomicUsize>,
    sessions: Mutex<mpsc::Receiver<Session>>,
    /// Closed to end it.
    listener: TcpListener,
    ends: Arc<std::sync::atomic::AtomicBool>,
}

/// A node that is connected and has said hello.
pub struct Session {
    socket: WebSocket<Box<dyn Wire>>,
    tcp: TcpStream,
    pub hello: Hello,
}

impl ControlPlane {
    pub fn start() -> Self {
        Self::listen("127.0.0.1:0".parse().unwrap(), None)
    }

    /// Again where one was before.
    pub fn start_on(address: SocketAddr) -> Self {
        Self::listen(address, None)
    }

    /// Shows this certificate.
    pub fn start_with(leaf: &pki::Leaf) -> Self {
        let builder = ServerConfig::builder_with_provider(pki::provider()).with_protocol_versions(pki::BOTH).unwrap();
        let config =
            builder.with_no_client_auth().with_single_cert(vec![leaf.der.clone()], leaf.private_key()).unwrap();
        Self::listen("127.0.0.1:0".parse().unwrap(), Some(Arc::new(config)))
    }

    fn listen(address: SocketAddr, tls: Option<Arc<ServerConfig>>) -> Self {
        // One that was there before may not have gone yet.
        let listener = wait_for(&|| TcpListener::bind(address).ok()).unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, sessions) = mpsc::channel();
        let refused = Arc::new(AtomicUsize::new(0));
        let ends = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (accepting, count, end) = (listener.try_clone().unwrap(), refused.clone(), ends.clone());
        thread::spawn(move || {
            while let Ok((tcp, _)) = accepting.accept() {
                if end.load(Ordering::Acquire) {
                    return;
                }
                if let Some(session) = Session::open(tcp, tls.as_ref(), &count) {
                    let _ = sender.send(session);
                }
            }
        });
        Self { address, refused, sessions: Mutex::new(sessions), listener, ends }
    }

    pub fn refused(&self) -> usize {
        self.refused.load(Ordering::Acquire)
    }

    /// The next node that connects.
    pub fn accept(&self) -> Session {
        self.sessions.lock().unwrap().recv_timeout(PATIENCE).expect("a node connects")
    }

    /// The next node that connects, welcomed.
    pub fn welcome(&self) -> Session {
        let mut session = self.accept();
        session.welcome();
        session
    }

    /// Whether a node has connected that was not accepted yet.
    pub fn has_session(&self) -> bool {
        self.sessions.lock().unwrap().try_recv().is_ok()
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.listener.local_addr().unwrap());
    }
}

impl Session {
    fn open(tcp: TcpStream, tls: Option<&Arc<ServerConfig>>, refused: &AtomicUsize) -> Option<Self> {
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        let copy = tcp.try_clone().unwrap();
        let wire: Box<dyn Wire> = match tls {
            None => Box::new(tcp),
            Some(config) => Box::new(StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), tcp)),
        };
        #[allow(clippy::result_large_err)] // What tungstenite asks for.
        let check = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
            assert_eq!(request.uri().path(), SUBSCRIBE_PATH);
            let bearer = request.headers().get("authorization").and_then(|value| value.to_str().ok());
            if bearer == Some(&format!("Bearer {TOKEN}")) {
                return Ok(response);
            }
            refused.fetch_add(1, Ordering::AcqRel);
            let mut refusal = ErrorResponse::new(None);
            *refusal.status_mut() = http::StatusCode::UNAUTHORIZED;
            Err(refusal)
        };
        let mut socket = accept_hdr(wire, check).ok()?;
        match next(&mut socket)? {
            FromNode::Hello(hello) => Some(Self { socket, tcp: copy, hello }),
            other => panic!("{other:?}"),
        }
    }

    pub fn welcome(&mut self) {
        let welcome = Welcome { store: Uuid::nil(), schema: SCHEMAS[0], heartbeat_seconds: 1, usage: false };
        self.send(&ToNode::Welcome(welcome));
    }

    /// Welcomes it as one that takes usage.
    pub fn welcome_usage(&mut self) {
        let welcome = Welcome { store: Uuid::nil(), schema: SCHEMAS[0], heartbeat_seconds: 1, usage: true };
        self.send(&ToNode::Welcome(welcome));
    }

    /// The next page of usage.
    pub fn usage(&mut self) -> UsagePage {
        loop {
            match next(&mut self.socket).expect("a page of usage") {
                FromNode::Usage(page) => return page,
                FromNode::Hello(hello) => panic!("{hello:?}"),
                _ => {}
            }
        }
    }

    pub fn send(&mut self, message: &ToNode) {
        let message = match write(message).unwrap() {
            seiketsu_config::push::Frame::Text(text) => Message::text(text),
            seiketsu_config::push::Frame::Binary(bytes) => Message::binary(bytes),
        };
        self.socket.send(message).unwrap();
    }

    pub fn send_raw(&mut self, text: &str) {
        self.socket.send(Message::text(text)).unwrap();
    }

    /// Sends an update, and waits for what became of it.
    pub fn push(&mut self, update: Update) -> Applied {
        let nonce = update.nonce;
        self.send(&ToNode::Update(Box::new(update)));
        let applied = self.applied();
        assert_eq!(applied.nonce, nonce);
        applied
    }

    pub fn applied(&mut self) -> Applied {
        loop {
            match next(&mut self.socket).expect("an answer") {
                FromNode::Applied(applied) => return applied,
                FromNode::Heartbeat(_) | FromNode::Carried(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// The next heartbeat of which this holds.
    pub fn heartbeat(&mut self, holds: impl Fn(&Heartbeat) -> bool) -> Heartbeat {
        loop {
            match next(&mut self.socket).expect("a heartbeat") {
                FromNode::Heartbeat(heartbeat) if holds(&heartbeat) => return heartbeat,
                FromNode::Heartbeat(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Whether the node ends the connection.
    pub fn is_left(&mut self) -> bool {
        while next(&mut self.socket).is_some() {}
        true
    }
}

/// Ends without a word, as when a cable is pulled.
impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.tcp.shutdown(std::net::Shutdown::Both);
    }
}

/// The next message; none if the connection ends instead.
fn next(socket: &mut WebSocket<Box<dyn Wire>>) -> Option<FromNode> {
    loop {
        match socket.read().ok()? {
            Message::Text(text) => return Some(read_text(&text).unwrap()),
            Message::Binary(bytes) => return Some(read_binary(&bytes).unwrap()),
            Message::Close(_) => return None,
            _ => {}
        }
    }
}

/// What the control plane has: documents with the revisions that they were changed in. The empty name is the head.
#[derive(Debug, Clone, Default)]
pub struct Store {
    pub revision: u64,
    documents: BTreeMap<String, (u64, String)>,
    gone: BTreeMap<String, u64>,
}

impl Store {
    /// With an upstream `demo`, open to everyone.
    pub fn new(origin: SocketAddr) -> Self {
        let mut store = Self::default();
        let head = json!({
            "defaults": { "auth": { "accept": ["anonymous"] } },
            "upstreams": { "demo": { "endpoints": [{ "address": origin.to_string() }] } },
        });
        store.put("", &head);
        store
    }

    pub fn put(&mut self, name: &str, document: &Value) -> u64 {
        self.revision += 1;
        self.gone.remove(name);
        self.documents.insert(name.to_owned(), (self.revision, document.to_string()));
        self.revision
    }

    pub fn remove(&mut self, name: &str) {
        self.revision += 1;
        self.documents.remove(name);
        self.gone.insert(name.to_owned(), self.revision);
    }

    pub fn held(&self) -> Held {
        let sum = self.documents.iter().map(|(name, (_, content))| Sum::of(id(name).as_ref(), content));
        Held { store: Uuid::nil(), revision: self.revision, sum: sum.fold(Sum::default(), Sum::with) }
    }

    /// What has changed since that revision; without one, everything.
    pub fn update(&self, after: Option<u64>) -> Update {
        let since = after.unwrap_or_default();
        let document = |name: &str, revision, content: &str| Document {
            tenant: id(name),
            revision,
            content: RawValue::from_string(content.to_owned()).unwrap(),
        };
        let changed = self.documents.iter().filter(|(_, (revision, _))| *revision > since);
        let (head, put): (Vec<_>, Vec<_>) = changed
            .map(|(name, (revision, content))| document(name, *revision, content))
            .partition(|it| it.tenant.is_none());
        let gone = self.gone.iter().filter(|(_, at)| after.is_some() && **at > since);
        Update {
            nonce: self.revision,
            to: self.held(),
            after,
            more: false,
            head: head.into_iter().next(),
            put,
            gone: gone.filter_map(|(name, _)| id(name)).collect(),
        }
    }
}

fn id(name: &str) -> Option<Id> {
    (!name.is_empty()).then(|| name.parse().unwrap())
}

/// A tenant `<name>.test` with an open route to `demo`, with these policies.
pub fn tenant(name: &str, policies: &Value) -> Value {
    json!({
        "id": name,
        "hosts": [format!("{name}.test")],
        "policies": policies,
        "routes": [{ "id": "open", "match": { "path": "/v1/{*rest}" }, "upstream": "demo" }],
    })
}

/// The same, whose answers bear a mark.
pub fn marked(name: &str, mark: &str) -> Value {
    tenant(name, &json!({ "headers": { "response": { "set": { "x-mark": mark } } } }))
}

/// A gateway that waits for its control plane.
pub struct Waiting {
    pub folder: tempfile::TempDir,
    pub process: Process,
    pub operations: SocketAddr,
}

impl Waiting {
    /// `more` are further settings of `control_plane`, in flow style.
    pub fn start(url: &str, more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), TOKEN).unwrap();
        Self::start_in(folder, &format!("control_plane: {{ url: '{url}', token: '${{file:token}}'{more} }}\n"), &[])
    }

    pub fn of(plane: &ControlPlane) -> Self {
        Self::start(&format!("http://{}", plane.address), "")
    }

    pub fn start_in(folder: tempfile::TempDir, source: &str, arguments: &[&str]) -> Self {
        // Where it answers while it waits has to be known beforehand.
        let operations = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let node = format!(
            "id: test\nregion: eu-west\nlisteners: {{ http: ['127.0.0.1:0'], https: ['127.0.0.1:0'], operations: '{operations}' }}\n\
             tls: {{ development_certificate: true }}\nstate_dir: state\nthreads: 2\n\
             egress: {{ allow_loopback: true }}\naccess_log: {{ output: {{ file: access.log }} }}\n{source}"
        );
        std::fs::write(folder.path().join("node.yaml"), node).unwrap();
        let process = Gateway::spawn(folder.path(), arguments);
        Self { folder, process, operations }
    }

    /// When it serves.
    pub fn ready(self) -> Gateway {
        let (http, https, operations) = Gateway::wait_until_ready(self.folder.path(), self.process.0.id());
        Gateway { folder: self.folder, http, https, operations, process: self.process }
    }

    /// What it says of itself; none while it does not answer yet.
    pub fn readyz(&self) -> Option<super::Response> {
        let stream = TcpStream::connect(self.operations).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = super::Client { stream: std::io::BufReader::new(stream) };
        client.send(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n");
        client.receive()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("gateway.log")).unwrap_or_default()
    }
}

/// A gateway that has this configuration from its control plane, and the connection between them.
pub fn serving(plane: &ControlPlane, store: &Store) -> (Gateway, Session) {
    let waiting = Waiting::of(plane);
    let mut session = plane.welcome();
    let applied = session.push(store.update(None));
    assert!(applied.refused.is_empty() && !applied.lost, "{applied:?}");
    (waiting.ready(), session)
}

/// Ends the process and starts it again in its folder.
pub fn restarted(mut gateway: Gateway) -> Waiting {
    gateway.process.0.kill().unwrap();
    gateway.process.0.wait().unwrap();
    let process = Gateway::spawn(gateway.folder.path(), &[]);
    Waiting { operations: gateway.operations, folder: gateway.folder, process }
}

/// The files that copies of the last known good configuration are in.
pub fn copies(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder.join("state/control-plane")).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.extension().is_none()).collect()
}
