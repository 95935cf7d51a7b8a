//! The whole gateway in this process, with an origin, and one connection to it.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use seiketsu_config::load;
use seiketsu_gateway::operations::LogLevel;
use tempfile::TempDir;
use tracing_subscriber::EnvFilter;

const ANSWER_BODY: usize = 1024;
/// Callgrind makes everything some fifty times slower.
const PATIENCE: Duration = Duration::from_mins(2);

/// A client's connection to a gateway with one worker and the policies that most routes have.
#[derive(Debug)]
pub struct Running {
    connection: TcpStream,
    request: Vec<u8>,
    answer: Vec<u8>,
    _folder: TempDir,
}

impl Running {
    /// The gateway ends with the process.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
        let tenants = TENANTS.replace("{{origin}}", &origin().to_string());
        write(&folder.path().join("tenants.yaml"), &tenants);
        let node = load::node(NODE, &folder.path().join("node.yaml")).unwrap_or_else(|errors| panic!("{errors}"));
        fs::create_dir_all(&node.state_dir).unwrap_or_else(|error| panic!("{error}"));
        let addresses = node.state_dir.join("addresses.json");
        thread::spawn(move || seiketsu_gateway::run(node, false, Arc::new(Silent)));
        let connection = TcpStream::connect(listening_at(&addresses)).unwrap_or_else(|error| panic!("{error}"));
        let _ = connection.set_nodelay(true);
        let request = "GET /v1/calls/4711 HTTP/1.1\r\nHost: api.example.com\r\nOrigin: https://app.example.com\r\n\
            User-Agent: bench\r\nAccept: application/json\r\n\r\n";
        Self { connection, request: request.into(), answer: vec![0; 16 << 10], _folder: folder }
    }

    /// Sends a request and reads its answer to the end; whether it was a 200.
    pub fn exchange(&mut self) -> bool {
        let sent = self.connection.write_all(&self.request);
        sent.unwrap_or_else(|error| panic!("{error}"));
        let mut read = 0;
        loop {
            match self.connection.read(&mut self.answer[read..]) {
                Ok(bytes) if bytes > 0 => read += bytes,
                other => panic!("the gateway closed the connection: {other:?}"),
            }
            let head = self.answer[..read].windows(4).position(|window| window == b"\r\n\r\n");
            if head.is_some_and(|end| read == end + 4 + ANSWER_BODY) {
                return self.answer.starts_with(b"HTTP/1.1 200");
            }
        }
    }
}

const NODE: &str = "
id: bench
listeners: { http: ['127.0.0.1:0'], operations: '127.0.0.1:0' }
tenants: tenants.yaml
state_dir: state
threads: 1
egress: { allow_loopback: true }
access_log: { output: { file: access.log } }
protection: { keepalive_requests: 1000000000 }
";

const TENANTS: &str = "
revision: 1
upstreams: { origin: { endpoints: [{ address: '{{origin}}' }] } }
tenants:
- id: acme
  hosts: [api.example.com]
  policies:
    auth: { accept: [anonymous] }
    cors: { origins: ['https://app.example.com'], credentials: true }
  routes:
  - { id: calls, match: { path: '/v1/calls/{id}' }, upstream: origin }
  - { id: rest, match: { path: '/{*rest}' }, upstream: origin }
";

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// The first address that a gateway says it listens at.
pub fn listening_at(addresses: &Path) -> SocketAddr {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        let listening =
            fs::read(addresses).ok().and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok());
        if let Some(address) = listening.and_then(|json| json["http"][0].as_str()?.parse().ok()) {
            return address;
        }
        thread::park_timeout(Duration::from_millis(5));
    }
    panic!("the gateway did not start");
}

/// Answers every request with 1 KiB. One `read` is one request: only the gateway calls it.
fn origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap_or_else(|error| panic!("{error}"));
    let address = listener.local_addr().unwrap_or_else(|error| panic!("{error}"));
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            thread::spawn(move || answer_all(connection));
        }
    });
    address
}

fn answer_all(mut connection: TcpStream) {
    let mut answer =
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {ANSWER_BODY}\r\n\r\n")
            .into_bytes();
    answer.resize(answer.len() + ANSWER_BODY, b'x');
    let mut request = [0; 4096];
    while connection.read(&mut request).is_ok_and(|read| read > 0) && connection.write_all(&answer).is_ok() {}
}

/// A log whose level nobody changes.
#[derive(Debug)]
pub struct Silent;

impl LogLevel for Silent {
    fn current(&self) -> Option<String> {
        None
    }

    fn replace(&self, _filter: EnvFilter) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_answered_on_one_connection() {
        let mut running = Running::start();
        assert!((0..10).all(|_| running.exchange()));
    }
}
