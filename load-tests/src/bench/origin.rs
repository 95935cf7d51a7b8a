//! The upstream of the comparison.

use std::{fs, net::SocketAddr, path::Path};

use clap::ValueEnum;

use super::{OTHER_CORE, peer::Binaries};
use crate::{
    load::gateway::fill,
    process::{Server, accepts_connections, command, free_address},
};

const NGINX: &str = include_str!("../../peers/origin-nginx.conf");

/// Lengths of what can be cached.
const CACHED: [usize; 2] = [1024, 65_536];

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// nginx that returns 1 KiB from its configuration.
    Nginx,
    /// The demo origin, one thread.
    Demo,
}

#[derive(Debug)]
pub struct Origin {
    server: Server,
    address: SocketAddr,
}

impl Origin {
    pub fn start(kind: Kind, binaries: &Binaries, folder: &Path) -> anyhow::Result<Self> {
        let address = free_address()?;
        let start = match kind {
            Kind::Nginx => {
                let configuration = folder.join("origin-nginx.conf");
                let values = [
                    ("port", address.port().to_string()),
                    ("folder", folder.display().to_string()),
                    ("body", "x".repeat(1024)),
                ];
                fs::write(&configuration, fill(NGINX, &values))?;
                let files = folder.join("origin-files/cached");
                fs::create_dir_all(&files)?;
                for length in CACHED {
                    fs::write(files.join(length.to_string()), "x".repeat(length))?;
                }
                let mut start = command(&binaries.nginx, Some(OTHER_CORE));
                start.arg("-p").arg(folder).arg("-c").arg(configuration);
                start
            }
            Kind::Demo => {
                let mut start = command(&binaries.demo_origin, Some(OTHER_CORE));
                start.args(["--threads", "1", "--listen", &address.to_string()]);
                start
            }
        };
        let mut server = Server::start("the origin", start, &folder.join("origin.log"))?;
        server.wait_until(|| accepts_connections(address))?;
        Ok(Self { server, address })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn pid(&self) -> u32 {
        self.server.pid()
    }
}
