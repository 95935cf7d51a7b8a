//! Real Redis servers for tests: each a child process on a free port of loopback, with its own directory,
//! killed when dropped.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use redis::FromRedisValue;
use secrecy::SecretString;
use seiketsu_limits::coordinator::{
    Coordinator,
    redis::{RedisCoordinator, address::RedisAddress},
};
use tempfile::TempDir;

/// Much longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

const CONFIGURATION: &str = "sentinel.conf";

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub(crate) struct Server {
    pub(crate) port: u16,
    options: Vec<String>,
    child: Child,
    directory: TempDir,
}

impl Server {
    pub(crate) fn start(options: &[&str]) -> Self {
        Self::start_on(|port| {
            let mut all = vec!["--port".to_owned(), port.to_string()];
            all.extend(["--bind", "127.0.0.1", "--save", ""].map(str::to_owned));
            all.extend(options.iter().map(ToString::to_string));
            (all, String::new())
        })
    }

    /// A sentinel, which keeps what it learns in its configuration.
    pub(crate) fn start_sentinel(configuration: &str) -> Self {
        Self::start_on(|port| {
            let options = [CONFIGURATION, "--sentinel"].map(str::to_owned).to_vec();
            (options, format!("port {port}\nbind 127.0.0.1\n{configuration}\n"))
        })
    }

    fn start_on(settings: impl Fn(u16) -> (Vec<String>, String)) -> Self {
        // Another process may have taken the port before the server could.
        for _ in 0..10 {
            let port = free_port();
            let (options, configuration) = settings(port);
            let directory = tempfile::tempdir().unwrap();
            std::fs::write(directory.path().join(CONFIGURATION), configuration).unwrap();
            let child = spawn(&directory, &options);
            let mut server = Self { port, options, child, directory };
            if server.answers_soon() {
                return server;
            }
        }
        panic!("redis-server does not start");
    }

    /// With its data, as far as they are on disk.
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.child = spawn(&self.directory, &self.options);
        assert!(self.answers_soon(), "redis-server does not start again");
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// It hangs: its sockets stay open, and it answers nothing.
    pub(crate) fn pause(&self) {
        self.signal("-STOP");
    }

    pub(crate) fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn connection(&self) -> redis::Connection {
        redis::Client::open(self.url()).unwrap().get_connection().unwrap()
    }

    pub(crate) fn command<T: FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = redis::Cmd::new();
        command.arg(words);
        let deadline = Instant::now() + PATIENCE;
        loop {
            match command.query(&mut self.connection()) {
                Ok(answer) => return answer,
                // One that becomes a replica, or a master, drops its clients.
                Err(error) if error.is_io_error() && Instant::now() < deadline => pause(),
                Err(error) => panic!("{words:?}: {error}"),
            }
        }
    }

    fn answers_soon(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if answers(self.port) {
                return true;
            }
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            pause();
        }
        false
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(directory: &TempDir, options: &[String]) -> Child {
    Command::new("redis-server")
        .current_dir(directory.path())
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("these tests need redis-server")
}

/// Also with an error, such as that of a missing password; not while it loads its data.
fn answers(port: u16) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"PING\r\n")?;
        let mut answer = [0; 8];
        let length = stream.read(&mut answer)?;
        std::io::Result::Ok(answer[..length].starts_with(b"+PONG") || answer[..length].starts_with(b"-NOAUTH"))
    };
    ask().unwrap_or(false)
}

#[allow(clippy::disallowed_methods, reason = "between two looks at a condition")]
fn pause() {
    std::thread::sleep(Duration::from_millis(5));
}

/// Returns when the condition holds; fails the test if it does not for too long.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub(crate) fn address(url: &str) -> RedisAddress {
    RedisAddress::parse(&SecretString::from(url)).unwrap()
}

/// A coordinator that is connected.
pub(crate) async fn coordinator(url: &str, gateway: &str) -> Arc<RedisCoordinator> {
    let runtime = tokio::runtime::Handle::current();
    let coordinator = Arc::new(RedisCoordinator::start(address(url), gateway.into(), &runtime));
    // No gateway stands behind it that would know more than it says.
    coordinator.has_told(u64::MAX);
    until("a connection", async || coordinator.is_connected()).await;
    coordinator
}
