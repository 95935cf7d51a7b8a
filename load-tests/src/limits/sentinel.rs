//! A master, its replica, and a sentinel that puts this in its place when it is gone.

use std::{fs, net::SocketAddr, path::Path};

use super::redis::{Redis, has_started, wait_until_told};
use crate::process::{Server, command, free_address};

#[derive(Debug)]
pub struct Sentinel {
    address: SocketAddr,
    _server: Server,
    master: Redis,
    replica: Redis,
}

impl Sentinel {
    /// Returns when the sentinel knows of a replica that has all that its master has.
    pub fn start(program: &Path, folder: &Path) -> anyhow::Result<Self> {
        let master = Redis::start(program, &folder.join("master"), &["--repl-diskless-sync-delay", "0"])?;
        let port = master.address().port();
        let replica = Redis::start(program, &folder.join("replica"), &["--replicaof", "127.0.0.1", &port.to_string()])?;
        wait_until_told(replica.address(), "INFO replication", "master_link_status:up")?;
        let address = free_address()?;
        // It keeps there what it learns.
        let settings = folder.join("sentinel.conf");
        fs::write(
            &settings,
            format!(
                "port {}\nbind 127.0.0.1\n\
                 sentinel monitor main 127.0.0.1 {port} 1\n\
                 sentinel down-after-milliseconds main 3000\n\
                 sentinel failover-timeout main 2000\n",
                address.port()
            ),
        )?;
        let mut start = command(program, None);
        start.arg(&settings).arg("--sentinel");
        let mut server = Server::start("redis-server --sentinel", start, &folder.join("sentinel.log"))?;
        server.wait_until(|| has_started(address))?;
        wait_until_told(address, "INFO sentinel", "slaves=1")?;
        Ok(Self { address, _server: server, master, replica })
    }

    pub fn url(&self) -> String {
        format!("redis+sentinel://{}/main", self.address)
    }

    pub fn master(&self) -> &Redis {
        &self.master
    }

    pub fn kill_master(&mut self) -> anyhow::Result<()> {
        self.master.kill()
    }

    /// Returns when the replica has become the master, which it says itself, before the sentinel names it.
    pub fn wait_until_promoted(&self) -> anyhow::Result<()> {
        wait_until_told(self.replica.address(), "INFO replication", "role:master")
    }
}
