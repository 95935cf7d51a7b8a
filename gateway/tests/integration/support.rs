//! A gateway and origins as real processes on free ports, and a client that speaks plain bytes, so that
//! tests decide every byte that is sent.

pub mod control_plane;
pub mod frames;
pub mod http2;
pub mod pki;
pub mod tls;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Nothing here takes this long unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A program of the workspace: built into the folder above that of the tests.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join(name);
    assert!(path.exists(), "{} is missing: run the tests with `--workspace`", path.display());
    path
}

/// Ends with the test, however that ends.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.0.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }
}

/// The demo origin, on a port that the kernel chose.
pub struct Origin {
    pub address: SocketAddr,
    pub process: Process,
}

impl Origin {
    pub fn start(region: &str) -> Self {
        Self::start_on("127.0.0.1:0", region)
    }

    pub fn start_on(listen: &str, region: &str) -> Self {
        Self::start_with(listen, region, &[])
    }

    /// `arguments` are more of the command line.
    pub fn start_with(listen: &str, region: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new(binary("seiketsu-demo-origin"))
            .args(["--listen", listen, "--region", region])
            .args(arguments)
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("the demo origin is built with the workspace");
        let mut line = String::new();
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        errors.read_line(&mut line).unwrap();
        std::thread::spawn(move || std::io::copy(&mut errors, &mut std::io::sink()));
        let address = line.split_whitespace().find_map(|word| word.trim_start_matches("http://").parse().ok());
        Self { address: address.unwrap_or_else(|| panic!("no address in {line:?}")), process: Process(child) }
    }
}

/// A gateway with its tenants.
pub struct Gateway {
    pub folder: tempfile::TempDir,
    pub http: SocketAddr,
    pub https: SocketAddr,
    pub operations: SocketAddr,
    pub process: Process,
}

impl Gateway {
    pub fn start(tenants: &str) -> Self {
        Self::start_with(tenants, "")
    }

    /// `node` is more YAML for the node file.
    pub fn start_with(tenants: &str, node: &str) -> Self {
        Self::start_listening(tenants, "", node)
    }

    /// `listeners` are further keys of the node's listeners, in flow style.
    pub fn start_listening(tenants: &str, listeners: &str, node: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("tenants.yaml"), tenants).unwrap();
        Self::start_in(folder, "tenants.yaml", listeners, node)
    }

    /// In a folder where its tenants are already, in this file or folder.
    pub fn start_in(folder: tempfile::TempDir, tenants: &str, listeners: &str, node: &str) -> Self {
        let threads = if node.contains("threads: ") { "" } else { "threads: 2\n" };
        let node = format!(
            "id: test\n\
             listeners: {{ http: ['127.0.0.1:0'], https: ['127.0.0.1:0'], operations: '127.0.0.1:0'{listeners} }}\n\
             tls: {{ development_certificate: true }}\ntenants: {tenants}\nstate_dir: state\n{threads}\
             egress: {{ allow_loopback: true }}\naccess_log: {{ output: {{ file: access.log }} }}\n{node}"
        );
        fs::write(folder.path().join("node.yaml"), node).unwrap();
        let process = Self::spawn(folder.path(), &[]);
        let (http, https, operations) = Self::wait_until_ready(folder.path(), process.0.id());
        Self { folder, http, https, operations, process }
    }

    pub fn spawn(folder: &Path, arguments: &[&str]) -> Process {
        Self::spawn_by(Command::new(binary("seiketsu-gateway")), folder, arguments)
    }

    /// Kills it, and starts it again as a process that may open so many files.
    pub fn restart_with_open_files(&mut self, most: u32) {
        self.process.0.kill().unwrap();
        self.process.0.wait().unwrap();
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={most}:{most}")).arg(binary("seiketsu-gateway"));
        self.process = Self::spawn_by(command, self.folder.path(), &[]);
        (self.http, self.https, self.operations) = Self::wait_until_ready(self.folder.path(), self.process.0.id());
    }

    fn spawn_by(mut command: Command, folder: &Path, arguments: &[&str]) -> Process {
        let log = fs::OpenOptions::new().create(true).append(true).open(folder.join("gateway.log")).unwrap();
        let child = command
            .arg("--config")
            .arg(folder.join("node.yaml"))
            .args(arguments)
            .stderr(log)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Process(child)
    }

    /// Reads the addresses that the process with this id wrote.
    pub fn wait_until_ready(folder: &Path, pid: u32) -> (SocketAddr, SocketAddr, SocketAddr) {
        let path = folder.join("state/addresses.json");
        let text = wait_for(&|| {
            let text = fs::read_to_string(&path).ok()?;
            text.contains(&format!("\"pid\":{pid}")).then_some(text)
        })
        .unwrap_or_else(|| panic!("not ready: {}", fs::read_to_string(folder.join("gateway.log")).unwrap()));
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let address = |value: &serde_json::Value| value.as_str().unwrap().parse().unwrap();
        (address(&json["http"][0]), address(&json["https"][0]), address(&json["operations"]))
    }

    pub fn write_tenants(&self, tenants: &str) {
        let next = self.folder.path().join("tenants.next");
        fs::write(&next, tenants).unwrap();
        fs::rename(next, self.folder.path().join("tenants.yaml")).unwrap();
    }

    pub fn connect(&self) -> Client {
        Client::connect(self.http)
    }

    /// One request on a connection of its own.
    pub fn get(&self, host: &str, target: &str, fields: &str) -> Response {
        self.connect().request(&format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n"))
    }

    pub fn readyz(&self) -> Response {
        Client::connect(self.operations).request("GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    }

    /// What has been written so far: lines come a moment after what they tell of.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("gateway.log")).unwrap()
    }

    /// Whether the log comes to contain this.
    pub fn logs(&self, text: &str) -> bool {
        wait_for(&|| self.log().contains(text).then_some(())).is_some()
    }
}

/// Asks again and again until there is an answer; none after [`PATIENCE`].
pub fn wait_for<T>(question: &dyn Fn() -> Option<T>) -> Option<T> {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = question() {
            return Some(answer);
        }
        if Instant::now() > until {
            return None;
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// A connection, byte by byte.
pub struct Client {
    pub stream: BufReader<TcpStream>,
}

#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (have, value) = line.split_once(':')?;
            have.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
    }

    pub fn request(&mut self, text: &str) -> Response {
        self.send(text.as_bytes());
        self.receive().expect("an answer")
    }

    /// The next response; none if the connection ends instead.
    pub fn receive(&mut self) -> Option<Response> {
        receive(&mut self.stream)
    }

    /// Whether the other side closes, now or soon.
    pub fn is_closed(&mut self) -> bool {
        let mut byte = [0];
        matches!(self.stream.read(&mut byte), Ok(0) | Err(_))
    }
}

/// The next response; none if the connection ends instead.
pub fn receive(stream: &mut impl BufRead) -> Option<Response> {
    let mut head = String::new();
    loop {
        let mut line = String::new();
        match stream.read_line(&mut line) {
            Ok(read) if read > 0 => {}
            _ => return None,
        }
        if line == "\r\n" {
            break;
        }
        head.push_str(&line);
    }
    let mut response = Response { status: head.split(' ').nth(1)?.parse().ok()?, head, body: Vec::new() };
    if response.header("transfer-encoding").is_some() {
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).unwrap();
            let size = usize::from_str_radix(line.trim(), 16).unwrap();
            let mut piece = vec![0; size + 2];
            stream.read_exact(&mut piece).unwrap();
            if size == 0 {
                break;
            }
            response.body.extend_from_slice(&piece[..size]);
        }
    } else if let Some(length) = response.header("content-length") {
        response.body = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut response.body).unwrap();
    }
    Some(response)
}

/// Two tenants on one upstream: `acme.test` with a key and CORS, `globex.test` plain.
pub fn two_tenants(origins: &[SocketAddr], key: &str) -> String {
    let endpoints: Vec<String> = origins.iter().map(|address| format!("{{ address: '{address}' }}")).collect();
    let key_file = std::env::temp_dir().join(format!("seiketsu-test-key-{}", std::process::id()));
    fs::write(&key_file, key).unwrap();
    format!(
        "revision: 1
defaults: {{ auth: {{ accept: [anonymous] }} }}
upstreams:
  demo:
    endpoints: [{}]
tenants:
- id: acme
  hosts: [acme.test, '*.acme.test']
  consumers:
  - id: app
    scopes: [read]
    keys: [{{ prefix: testacme, key: '${{file:{}}}' }}]
  policies:
    cors: {{ origins: ['https://app.acme.test'], credentials: true }}
  routes:
  - {{ id: open, match: {{ path: '/v1/{{*rest}}' }}, upstream: demo }}
  - id: secure
    match: {{ path: '/v1/secure/{{*rest}}' }}
    upstream: demo
    policies: {{ auth: {{ accept: [api_key], scopes: [read] }} }}
  - {{ id: only-get, match: {{ path: /only, methods: [GET] }}, upstream: demo }}
- id: globex
  hosts: [globex.test]
  consumers:
  - id: app
    keys: [{{ prefix: testglobex, hash: 'sha256:{}' }}]
  routes:
  - {{ id: open, match: {{ path: '/v1/{{*rest}}' }}, upstream: demo }}
  - id: secure
    match: {{ path: '/v1/secure/{{*rest}}' }}
    upstream: demo
    policies: {{ auth: {{ accept: [api_key] }} }}
",
        endpoints.join(", "),
        key_file.display(),
        "0".repeat(64),
    )
}

pub const KEY: &str = "sk_testacme_0123456789abcdefghijklmnopqrstuv";
