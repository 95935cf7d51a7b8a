//! A Redis server of the run's own, with ways to fail.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::pause;
use crate::process::{Server, command, free_address};

/// Its data are on disk before it answers.
pub const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

/// What Redis is asked for again and again comes about within this.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Redis {
    program: PathBuf,
    folder: PathBuf,
    options: Vec<String>,
    address: SocketAddr,
    server: Option<Server>,
    began: Instant,
}

impl Redis {
    pub fn start(program: &Path, folder: &Path, options: &[&str]) -> anyhow::Result<Self> {
        fs::create_dir_all(folder)?;
        let mut redis = Self {
            program: program.to_owned(),
            folder: folder.to_owned(),
            options: options.iter().map(ToString::to_string).collect(),
            address: free_address()?,
            server: None,
            began: Instant::now(),
        };
        redis.start_again()?;
        Ok(redis)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// How long it has been running.
    pub fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// On the same port, with the data that are on disk.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        let mut start = command(&self.program, None);
        start.args(["--bind", "127.0.0.1", "--port", &self.address.port().to_string(), "--save", ""]);
        start.args(["--maxmemory-policy", "noeviction", "--dir"]).arg(&self.folder);
        start.args(&self.options);
        let mut server = Server::start("redis-server", start, &self.folder.join("redis.log"))?;
        server.wait_until(|| has_started(self.address))?;
        self.server = Some(server);
        self.began = Instant::now();
        Ok(())
    }

    /// As if power had failed.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::KILL)?;
        self.server = None;
        Ok(())
    }

    /// It hangs: its sockets stay open, and it answers nothing.
    pub fn hang(&self) -> anyhow::Result<()> {
        self.signal(Signal::STOP)
    }

    pub fn go_on(&self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)
    }

    /// Removes what is on disk, of a server that was killed.
    pub fn lose_data(&self) -> anyhow::Result<()> {
        let data = self.folder.join("appendonlydir");
        fs::remove_dir_all(&data).with_context(|| format!("cannot remove {}", data.display()))
    }

    /// How often scripts were run: exchanges and heartbeats.
    pub fn scripts_run(&self) -> anyhow::Result<u64> {
        let text = ask(self.address, "INFO commandstats")?;
        let line = text.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
        Ok(line.and_then(|line| line.split(',').next()?.parse().ok()).unwrap_or(0))
    }

    pub fn version(&self) -> String {
        let text = ask(self.address, "INFO server").unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("redis_version:")).unwrap_or("?").to_owned()
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let server = self.server.as_ref().context("Redis does not run")?;
        let pid = i32::try_from(server.pid()).ok().and_then(Pid::from_raw).context("no process id")?;
        Ok(kill_process(pid, signal)?)
    }
}

pub fn has_started(address: SocketAddr) -> bool {
    ask(address, "PING").is_ok_and(|answer| answer.starts_with("+PONG"))
}

/// Returns when this server's answer to `words` has `text` in it.
pub fn wait_until_told(address: SocketAddr, words: &str, text: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !ask(address, words).is_ok_and(|answer| answer.contains(text)) {
        if Instant::now() > deadline {
            bail!("Redis at {address} does not answer {words} with {text}");
        }
        pause(Duration::from_millis(10));
    }
    Ok(())
}

/// One inline command; of a bulk answer all, else a line.
fn ask(address: SocketAddr, words: &str) -> anyhow::Result<String> {
    let patience = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(format!("{words}\r\n").as_bytes())?;
    let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&answer);
        if let Some((head, rest)) = text.split_once("\r\n") {
            let length = head.strip_prefix('$').and_then(|length| length.parse().ok()).unwrap_or(0);
            if rest.len() >= length {
                return Ok(text.into_owned());
            }
        }
        match stream.read(&mut piece)? {
            0 => bail!("Redis closed the connection"),
            length => answer.extend_from_slice(&piece[..length]),
        }
    }
}
