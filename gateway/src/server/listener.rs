//! The listening sockets: one per address and worker, so that the kernel spreads connections and no
//! worker waits for another.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

/// Connections that may wait to be accepted, per socket. The kernel lowers it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// What a listening socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    pub(crate) tls: bool,
}

/// A socket that listens.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) endpoint: Endpoint,
    pub(crate) socket: TcpListener,
}

impl Listener {
    /// The same socket once more.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { endpoint: self.endpoint, socket: self.socket.try_clone()? })
    }
}

/// Why a node cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}; is another process using it, or is the address not this machine's?")]
pub struct BindError {
    pub(crate) address: SocketAddr,
    pub(crate) source: io::Error,
}

/// Opens `count` sockets on one address. With port 0 the kernel chooses one port for all of them.
pub(crate) fn bind(mut endpoint: Endpoint, count: usize) -> Result<Vec<Listener>, BindError> {
    let mut listeners = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = open(endpoint.address).map_err(|source| BindError { address: endpoint.address, source })?;
        if let Ok(bound) = socket.local_addr() {
            endpoint.address = bound;
        }
        listeners.push(Listener { endpoint, socket });
    }
    Ok(listeners)
}

/// Whether a port is free. Sockets that are shared among workers are shared among processes of one user as
/// well: without this, a second gateway would take half of the first one's connections, and nobody would know.
pub(crate) fn check_free(address: SocketAddr) -> Result<(), BindError> {
    let bind = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // Connections that a former process has left behind are no listener.
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.into())
    };
    bind().map_err(|source| BindError { address, source })
}

fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        // `[::]` means IPv6 only; whoever wants both says so with two listeners.
        socket.set_only_v6(true)?;
    }
    // Connections inherit both: small answers leave at once, and peers that vanished are noticed.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new().with_time(Duration::from_mins(1)).with_interval(Duration::from_secs(15)).with_retries(4),
    )?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}
