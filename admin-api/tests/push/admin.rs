//! A control plane as a real process on a free port, and what is asked of it.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Nothing here takes this long unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(30);

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

pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

pub struct Admin {
    pub folder: tempfile::TempDir,
    pub address: SocketAddr,
    pub process: Process,
    pub token: String,
    pub node_token: String,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// What a change answers.
    pub fn revision(&self) -> u64 {
        assert!((200..300).contains(&self.status), "{self:?}");
        self.json()["revision"].as_u64().unwrap_or_else(|| panic!("no revision: {self:?}"))
    }
}

impl Admin {
    /// On a store of its own.
    pub async fn start() -> Self {
        Self::start_on(None, None).await
    }

    /// `tokens` are those of a replica on the same store, which was there first.
    pub async fn start_on(database: Option<&str>, tokens: Option<&Admin>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = free_address();
        let process = spawn(folder.path(), address, database);
        let mut admin = Self { address, process, token: String::new(), node_token: String::new(), folder };
        admin.wait_until_ready().await;
        let folder = admin.folder.path();
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap().trim().to_owned();
        (admin.token, admin.node_token) = match tokens {
            Some(first) => (first.token.clone(), first.node_token.clone()),
            None => (read("admin-token"), read("node-token")),
        };
        admin
    }

    /// Kills it and starts it again on its store.
    pub async fn restart(&mut self) {
        self.process.0.kill().unwrap();
        self.process.0.wait().unwrap();
        self.process = spawn(self.folder.path(), self.address, None);
        self.wait_until_ready().await;
    }

    async fn wait_until_ready(&self) {
        let ready = eventually(async || {
            exchange(self.address, "GET", "/readyz", "", "").await.is_some_and(|answer| answer.status == 200)
        });
        assert!(ready.await, "not ready: {}", self.log());
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("admin.log")).unwrap()
    }

    pub async fn logs(&self, text: &str) -> bool {
        eventually(async || self.log().contains(text)).await
    }

    /// `path` begins after `/api/enterprise`.
    pub async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        let (kind, body) = match body {
            Some(Value::String(yaml)) => ("application/yaml", yaml),
            Some(json) => ("application/json", json.to_string()),
            None => ("application/json", String::new()),
        };
        let fields = format!("authorization: Bearer {}\r\ncontent-type: {kind}\r\n", self.token);
        let path = format!("/api/enterprise{path}");
        exchange(self.address, method, &path, &fields, &body).await.expect("an answer")
    }

    pub async fn get(&self, path: &str) -> Value {
        let answer = self.ask("GET", path, None).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    /// Writes a tenant; `query` as in `?wait=applied`.
    pub async fn put(&self, tenant: &Value, query: &str) -> Answer {
        let id = tenant["id"].as_str().unwrap();
        self.ask("PUT", &format!("/tenants/{id}{query}"), Some(tenant.clone())).await
    }

    pub async fn metrics(&self) -> String {
        exchange(self.address, "GET", "/metrics", "", "").await.expect("an answer").text
    }

    pub fn ctl(&self, arguments: &[&str]) -> Output {
        self.ctl_command(arguments).output().unwrap()
    }

    pub fn ctl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("gatewayctl"));
        command
            .args(arguments)
            .env("SEIKETSU_ADMIN", format!("http://{}", self.address))
            .env("SEIKETSU_TOKEN_FILE", self.folder.path().join("admin-token"))
            .env("HOME", self.folder.path())
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("SEIKETSU_TOKEN")
            .stdin(Stdio::null());
        command
    }
}

fn spawn(folder: &Path, address: SocketAddr, database: Option<&str>) -> Process {
    let log = fs::OpenOptions::new().create(true).append(true).open(folder.join("admin.log")).unwrap();
    let mut command = Command::new(binary("seiketsu-admin"));
    command
        .args(["--listen", &address.to_string(), "--state-dir"])
        .arg(folder)
        .env_remove("DATABASE_URL")
        // The same for all replicas.
        .env("SEIKETSU_ADMIN_KEY", "5e1e7500".repeat(8))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    if let Some(url) = database {
        command.env("DATABASE_URL", url);
    }
    Process(command.spawn().unwrap())
}

/// One request on a connection of its own; none, if nobody answers.
pub async fn exchange(address: SocketAddr, method: &str, path: &str, fields: &str, body: &str) -> Option<Answer> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{fields}content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("in time").ok()?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, text) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, head: head.to_owned(), text: text.to_owned() })
}

/// Asks again and again until it is so; not after [`PATIENCE`].
pub async fn eventually(question: impl AsyncFn() -> bool) -> bool {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        if question().await {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

/// A tenant that a control plane takes, with this many requests per minute.
pub fn tenant(id: &str, per_minute: u64) -> Value {
    json!({
        "id": id,
        "hosts": [format!("{id}.test")],
        "upstreams": { "own": { "endpoints": [{ "address": "127.0.0.1:9" }] } },
        "policies": {
            "auth": { "accept": ["anonymous"] },
            "limits": { "rate": { "requests": per_minute, "per": "1m", "burst": 10 } },
        },
        "routes": [{ "id": "all", "match": { "path": "/{*rest}" }, "upstream": "own" }],
    })
}
