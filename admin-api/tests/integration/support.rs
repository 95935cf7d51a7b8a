//! A control plane as a real process on a free port, on SQLite or on a Postgres that is started for the test, and a client
//! that speaks plain bytes, so that tests decide every byte that is sent.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use seiketsu_admin_api::store::{StoreSettings, secrets::KeySource};
use seiketsu_config::push::{Hello, SCHEMAS};
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

/// Nothing here takes this long unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What all replicas wrap their keys with, unless a test says otherwise.
pub const KEY: &str = "5e1e75005e1e75005e1e75005e1e75005e1e75005e1e75005e1e75005e1e7500";

/// Each test on both stores: `on_both! { fn promise(database) { … } }`.
macro_rules! on_both {
    ($($(#[$meta:meta])* fn $name:ident($database:ident) $body:block)+) => {$(
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            $(#[$meta])*
            fn check($database: &crate::support::Database) $body

            #[test]
            fn on_sqlite() {
                check(&crate::support::Database::sqlite());
            }

            #[test]
            fn on_postgres() {
                check(&crate::support::Database::postgres());
            }
        }
    )+};
}
pub(crate) use on_both;

/// A node that says who it is.
pub fn hello(node: &str, region: Option<&str>) -> Hello {
    Hello {
        node: node.parse().unwrap(),
        run: Uuid::now_v7(),
        version: "0.1.0".to_owned(),
        region: region.map(|region| region.parse().unwrap()),
        zone: None,
        schemas: SCHEMAS.to_vec(),
        holds: None,
        orders: false,
        usage: false,
    }
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

    /// Waits until it has ended.
    pub fn wait(&mut self) {
        wait_until("the process has ended", || self.0.try_wait().unwrap().is_some());
    }
}

pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "never came: {what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// A store for one test.
pub enum Database {
    Sqlite(TempDir),
    Postgres(Postgres),
}

impl Database {
    pub fn sqlite() -> Self {
        Self::Sqlite(tempfile::tempdir().unwrap())
    }

    pub fn postgres() -> Self {
        Self::Postgres(Postgres::start())
    }

    pub fn url(&self) -> String {
        match self {
            Self::Sqlite(folder) => format!("sqlite:{}", folder.path().join("admin.db").display()),
            Self::Postgres(server) => server.url(),
        }
    }

    /// As somebody who has got at the database itself.
    pub fn execute(&self, sql: &str) {
        self.try_to_execute(sql).unwrap();
    }

    pub fn try_to_execute(&self, sql: &str) -> Result<(), String> {
        // Beside a runtime that a test may be in.
        let execute = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                use sea_orm::ConnectionTrait as _;
                let database = sea_orm::Database::connect(self.url()).await.unwrap();
                let done = database.execute_unprepared(sql).await;
                database.close().await.unwrap();
                done.map(|_| ()).map_err(|error| error.to_string())
            })
        };
        std::thread::scope(|scope| scope.spawn(execute).join().unwrap())
    }

    /// What a statement gives as `number`.
    pub fn number(&self, sql: &str) -> i64 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            use sea_orm::ConnectionTrait as _;
            let database = sea_orm::Database::connect(self.url()).await.unwrap();
            let statement = sea_orm::Statement::from_string(database.get_database_backend(), sql);
            let row = database.query_one_raw(statement).await.unwrap().unwrap();
            database.close().await.unwrap();
            row.try_get("", "number").unwrap()
        })
    }

    /// What a statement gives as `one` and `two`, both text.
    pub fn pairs(&self, sql: &str) -> Vec<(String, String)> {
        // Beside a runtime that a test may be in.
        let read = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                use sea_orm::ConnectionTrait as _;
                let database = sea_orm::Database::connect(self.url()).await.unwrap();
                let statement = sea_orm::Statement::from_string(database.get_database_backend(), sql);
                let rows = database.query_all_raw(statement).await.unwrap();
                database.close().await.unwrap();
                rows.iter().map(|row| (row.try_get("", "one").unwrap(), row.try_get("", "two").unwrap())).collect()
            })
        };
        std::thread::scope(|scope| scope.spawn(read).join().unwrap())
    }

    pub fn admin(&self) -> Admin {
        Admin::start(self, tempfile::tempdir().unwrap(), &[])
    }
}

/// A server of its own, in a folder that goes with it.
pub struct Postgres {
    folder: TempDir,
    port: u16,
    process: Option<Process>,
}

impl Postgres {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        own(folder.path());
        let made = command("initdb")
            .args(["--no-sync", "--auth=trust", "--username=admin", "--encoding=UTF8", "--locale=C", "-D"])
            .arg(folder.path().join("data"))
            .stdout(Stdio::null())
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut server = Self { folder, port: free_port(), process: None };
        server.run();
        server
    }

    /// Starts it, or starts it again.
    pub fn run(&mut self) {
        let process = command("postgres")
            .arg("-D")
            .arg(self.folder.path().join("data"))
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-c", "fsync=off"])
            .args(["-c", "unix_socket_directories="])
            .stdout(Stdio::null())
            .stderr(fs::File::create(self.folder.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        self.process = Some(Process(process));
        wait_until("postgres accepts connections", || {
            fs::read_to_string(self.folder.path().join("log")).unwrap().contains("ready to accept connections")
        });
    }

    /// As fast as it can without losing anything.
    pub fn stop(&mut self) {
        let mut process = self.process.take().unwrap();
        process.signal("-INT");
        process.wait();
    }

    pub fn process(&self) -> &Process {
        self.process.as_ref().unwrap()
    }

    pub fn url(&self) -> String {
        format!("postgres://admin@127.0.0.1:{}/postgres", self.port)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // It ends its own processes if it is asked to, and only then.
        if let Some(mut process) = self.process.take() {
            process.signal("-INT");
            process.wait();
        }
    }
}

/// PostgreSQL's programs, as a user that it runs as: not as root.
pub fn command(program: &str) -> Command {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let debian = versions.map(|version| version.path().join("bin").join(program)).filter(|path| path.exists()).max();
    let path = debian.unwrap_or_else(|| PathBuf::from(program));
    if postgres_user().is_none() {
        return Command::new(path);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(path).current_dir("/");
    command
}

/// Gives a folder to the user that PostgreSQL runs as.
pub fn own(folder: &Path) {
    if let Some((user, group)) = postgres_user() {
        chown(folder, Some(user), Some(group)).unwrap();
    }
}

/// Who runs it, where the tests are run as root.
fn postgres_user() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let user = users.lines().find(|line| line.starts_with("postgres:"));
    let user = user.expect("PostgreSQL is installed by script/test: it does not run as root");
    let mut numbers = user.split(':').skip(2).map(|number| number.parse().unwrap());
    Some((numbers.next().unwrap(), numbers.next().unwrap()))
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The control plane, and the token of its owner.
pub struct Admin {
    pub folder: TempDir,
    pub address: SocketAddr,
    pub process: Process,
    pub token: String,
    /// What it logged before it listened.
    pub started: String,
}

impl Admin {
    pub fn start(database: &Database, folder: TempDir, arguments: &[&str]) -> Self {
        let (address, process, started) = Self::spawn(database, folder.path(), arguments);
        // With the store of another replica there is none; whoever starts it that way has one.
        let token = fs::read_to_string(folder.path().join("admin-token")).unwrap_or_default().trim().to_owned();
        Self { folder, address, process, token, started }
    }

    fn spawn(database: &Database, folder: &Path, arguments: &[&str]) -> (SocketAddr, Process, String) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_seiketsu-admin"))
            .args(["--listen", "127.0.0.1:0", "--state-dir"])
            .arg(folder)
            .args(arguments)
            .env("DATABASE_URL", database.url())
            // Flags go before these.
            .env("SEIKETSU_ADMIN_KEY", KEY)
            .env("SEIKETSU_ADMIN_REQUESTS_PER_SECOND", "100000")
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        let process = Process(child);
        let mut log = String::new();
        let address = loop {
            let mut line = String::new();
            assert!(errors.read_line(&mut line).unwrap() > 0, "it ended: {log}");
            let read: Value = serde_json::from_str(&line).unwrap_or_default();
            if read["fields"]["message"] == "listening" {
                break read["fields"]["address"].as_str().unwrap().parse().unwrap();
            }
            log.push_str(&line);
        };
        let kept = folder.join("log");
        std::thread::spawn(move || std::io::copy(&mut errors, &mut fs::File::create(kept).unwrap()));
        (address, process, log)
    }

    /// Kills it, and starts another one on the same store.
    pub fn restart(&mut self, database: &Database) {
        self.process.0.kill().unwrap();
        self.process.0.wait().unwrap();
        (self.address, self.process, self.started) = Self::spawn(database, self.folder.path(), &[]);
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    pub fn client(&self) -> Client {
        Client { address: self.address, token: Some(self.token.clone()) }
    }

    /// A client for a new operator.
    pub fn operator(&self, name: &str, role: &str, tenants: Option<&[&str]>) -> Client {
        let owner = self.client();
        let operator = owner.post("/operators", &json!({ "name": name, "role": role, "tenants": tenants })).is(201);
        let id = operator.json()["id"].clone();
        let token = owner.post("/tokens", &json!({ "kind": "operator", "name": name, "operator": id })).is(201);
        Client { address: self.address, token: Some(token.json()["token"].as_str().unwrap().to_owned()) }
    }
}

/// Sends requests with a token, or without one.
#[derive(Clone)]
pub struct Client {
    pub address: SocketAddr,
    pub token: Option<String>,
}

#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Client {
    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], body.to_string().as_bytes())
    }

    pub fn put(&self, path: &str, body: &Value) -> Answer {
        self.put_if(path, body, None)
    }

    pub fn put_if(&self, path: &str, body: &Value, etag: Option<&str>) -> Answer {
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(etag.map(|etag| ("if-match", etag)));
        self.send("PUT", path, &headers, body.to_string().as_bytes())
    }

    pub fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, &[], b"")
    }

    pub fn import(&self, query: &str, yaml: &str) -> Answer {
        self.send("POST", &format!("/import{query}"), &[("content-type", "application/yaml")], yaml.as_bytes())
    }

    pub fn without_token(&self) -> Self {
        Self { token: None, ..self.clone() }
    }

    /// Paths are those of operations, unless they begin with `//`.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let path = match path.strip_prefix('/') {
            Some(root) if root.starts_with('/') => root.to_owned(),
            _ => format!("/api/enterprise{path}"),
        };
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n");
        if let Some(token) = &self.token {
            head.push_str(&format!("authorization: Bearer {token}\r\n"));
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() || method != "GET" {
            head.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE * 4)).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        // It may be refused before all of it is sent.
        let _ = stream.write_all(body);
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        Answer::parse(&answer).unwrap_or_else(|| panic!("{method} {path}: {read:?}: {answer:?}"))
    }
}

impl Answer {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
        let head = String::from_utf8(bytes[..end].to_vec()).ok()?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let mut body = bytes[end + 4..].to_vec();
        if head.to_lowercase().contains("transfer-encoding: chunked") {
            body = unchunked(&body);
        }
        Some(Self { status, head, body })
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    pub fn etag(&self) -> &str {
        self.header("etag").unwrap_or_else(|| panic!("no ETag: {self}"))
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self}"))
    }

    #[track_caller]
    pub fn is(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self}");
        self
    }

    /// It is a problem of this type, in its full form.
    #[track_caller]
    pub fn is_problem(&self, status: u16, kind: &str) -> Value {
        assert_eq!(self.status, status, "{self}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self}");
        let problem = self.json();
        assert!(problem["type"].as_str().unwrap().ends_with(kind), "{kind}: {self}");
        assert_eq!(problem["status"], status);
        assert_eq!(problem["instance"].as_str(), self.header("x-request-id"), "{self}");
        problem
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let body: String = String::from_utf8_lossy(&self.body).chars().take(2000).collect();
        write!(f, "{}\n\n{body}", self.head)
    }
}

fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        let start = end + 2;
        body.extend_from_slice(&bytes[start..start + size]);
        if size == 0 {
            break;
        }
        bytes = &bytes[start + size + 2..];
    }
    body
}

/// A tenant that needs nothing from the head.
pub fn tenant(id: &str) -> Value {
    json!({
        "id": id,
        "hosts": [format!("{id}.example")],
        "upstreams": { "own": { "endpoints": [{ "address": "127.0.0.1:9001" }] } },
        "policies": { "auth": { "accept": ["anonymous"] } },
        "routes": [{ "id": "all", "match": { "path": "/{*rest}" }, "upstream": "own" }],
    })
}

/// The same with a rate.
pub fn tenant_with_rate(id: &str, requests: u64) -> Value {
    let mut tenant = tenant(id);
    tenant["policies"]["limits"] = json!({ "rate": { "requests": requests, "per": "1m" } });
    tenant
}

pub fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// How the tests open a store themselves.
pub fn settings(url: String) -> StoreSettings {
    StoreSettings { url: url.into(), key: KeySource::Given(KEY.into()) }
}
