//! A client that speaks HTTP/2, over TLS or not.

use std::{future::Future, net::SocketAddr, sync::Arc};

use ::h2::{
    RecvStream, SendStream,
    client::{ResponseFuture, SendRequest},
};
use bytes::Bytes;
use http::{HeaderMap, Request};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{Gateway, PATIENCE, Response, pki};

/// Waits, but not for ever.
pub async fn patiently<F: Future>(what: F) -> F::Output {
    tokio::time::timeout(PATIENCE, what).await.expect("in time")
}

/// One connection.
pub struct Http2 {
    pub sender: SendRequest<Bytes>,
    scheme: &'static str,
    /// Ends with the connection.
    pub ended: JoinHandle<Result<(), h2::Error>>,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: Option<HeaderMap>,
    /// The head was all of it: there was not even an empty body.
    pub head_only: bool,
}

impl Http2 {
    /// Without TLS, by prior knowledge.
    pub async fn plain(gateway: &Gateway) -> Self {
        Self::over(TcpStream::connect(gateway.http).await.unwrap(), "http").await
    }

    /// Over TLS, agreed on by ALPN.
    pub async fn tls(gateway: &Gateway, server_name: &str) -> Self {
        let config = pki::client(&["h2", "http/1.1"], pki::BOTH, None);
        Self::tls_as(gateway, server_name, config).await.unwrap()
    }

    pub async fn tls_as(gateway: &Gateway, server_name: &str, config: ClientConfig) -> std::io::Result<Self> {
        let tls = handshake(gateway.https, server_name, &Arc::new(config)).await?;
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        Ok(Self::over(tls, "https").await)
    }

    pub async fn over<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(io: S, scheme: &'static str) -> Self {
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(256 << 10).initial_connection_window_size(1 << 20);
        let (sender, connection) = patiently(builder.handshake(io)).await.unwrap();
        Self { sender, scheme, ended: tokio::spawn(connection) }
    }

    pub fn request(&self, method: &str, host: &str, target: &str) -> http::request::Builder {
        Request::builder().method(method).uri(format!("{}://{host}{target}", self.scheme))
    }

    /// Sends the head; the body, if any, is for the caller to send.
    pub async fn open(
        &self,
        request: http::request::Builder,
        end: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        patiently(self.sender.clone().ready()).await?.send_request(request.body(()).unwrap(), end)
    }

    pub async fn send(&self, request: http::request::Builder, body: &[u8]) -> Result<Answer, h2::Error> {
        let (response, mut stream) = self.open(request, body.is_empty()).await?;
        if !body.is_empty() {
            // A refusal may come before all of it is sent, and is an answer too.
            let _ = send_all(&mut stream, Bytes::copy_from_slice(body), true).await;
        }
        receive(response).await
    }

    pub async fn get(&self, host: &str, target: &str) -> Answer {
        self.send(self.request("GET", host, target), b"").await.unwrap()
    }
}

/// A TLS connection; for an IP address no name is sent.
pub async fn handshake(
    address: SocketAddr,
    server_name: &str,
    config: &Arc<ClientConfig>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(address).await?;
    let name = ServerName::try_from(server_name.to_owned()).unwrap();
    patiently(TlsConnector::from(config.clone()).connect(name, tcp)).await
}

/// Sends as the other side has room.
pub async fn send_all(stream: &mut SendStream<Bytes>, mut body: Bytes, end: bool) -> Result<(), h2::Error> {
    while !body.is_empty() {
        stream.reserve_capacity(body.len());
        let Some(room) = patiently(std::future::poll_fn(|cx| stream.poll_capacity(cx))).await else {
            return Err(h2::Reason::CANCEL.into());
        };
        let piece = body.split_to(room?.min(body.len()));
        let last = body.is_empty() && end;
        stream.send_data(piece, last)?;
    }
    Ok(())
}

pub async fn receive(response: ResponseFuture) -> Result<Answer, h2::Error> {
    let (head, mut stream) = patiently(response).await?.into_parts();
    let head_only = stream.is_end_stream();
    let mut body = Vec::new();
    while let Some(piece) = next(&mut stream).await {
        body.extend_from_slice(&piece?);
    }
    let trailers = patiently(stream.trailers()).await?;
    Ok(Answer { status: head.status.as_u16(), headers: head.headers, body, trailers, head_only })
}

/// The next piece of a body.
pub async fn next(stream: &mut RecvStream) -> Option<Result<Bytes, h2::Error>> {
    let piece = patiently(stream.data()).await?;
    if let Ok(piece) = &piece {
        stream.flow_control().release_capacity(piece.len()).unwrap();
    }
    Some(piece)
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// In the form that HTTP/1 answers have, for what is asked of both.
    pub fn plain(&self) -> Response {
        let mut head = format!("HTTP/2 {}\r\n", self.status);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap()));
        }
        Response { status: self.status, head, body: self.body.clone() }
    }

    pub fn json(&self) -> serde_json::Value {
        self.plain().json()
    }

    pub fn problem(&self) -> String {
        self.plain().problem()
    }
}
