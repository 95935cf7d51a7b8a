//! A TLS client that blocks, for tests that look at bytes.

use std::{
    net::{SocketAddr, TcpStream},
    sync::Arc,
};

use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::{PATIENCE, pki};

pub type TlsClient = StreamOwned<ClientConnection, TcpStream>;

/// Connects with `acme.test` as the server's name, for HTTP/1.1.
pub fn connect_tls(address: SocketAddr) -> TlsClient {
    connect_tls_as(address, pki::client(&["http/1.1"], pki::BOTH, None))
}

pub fn connect_tls_as(address: SocketAddr, config: ClientConfig) -> TlsClient {
    let connection = ClientConnection::new(Arc::new(config), "acme.test".try_into().unwrap()).unwrap();
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    StreamOwned::new(connection, socket)
}
