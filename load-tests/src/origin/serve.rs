//! The listener: HTTP/1.1 and HTTP/2 on one port, in the clear (prior knowledge) or over TLS (ALPN).

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto::Builder,
        graceful::{GracefulShutdown, Watcher},
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use super::{Connection, Origin};

/// How long requests in flight may take once the end was asked for.
const GRACE: Duration = Duration::from_secs(5);

/// Serves until `stop` resolves, then lets what is in flight end, for five seconds at most.
pub async fn serve(
    listener: TcpListener,
    origin: Arc<Origin>,
    tls: Option<TlsAcceptor>,
    stop: impl Future<Output = ()>,
) {
    let builder = Arc::new(builder());
    let graceful = GracefulShutdown::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let served = connection(builder.clone(), origin.clone(), tls.clone(), stream, peer, graceful.watcher());
                tokio::spawn(served);
            }
            Err(error) => {
                // Out of file descriptors, mostly: accepting again at once would only spin.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
    drop(listener);
    if tokio::time::timeout(GRACE, graceful.shutdown()).await.is_err() {
        tracing::warn!("some requests were still in flight after {GRACE:?}");
    }
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(256 << 10);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(1024).adaptive_window(true);
    builder
}

async fn connection(
    builder: Arc<Builder<TokioExecutor>>,
    origin: Arc<Origin>,
    tls: Option<TlsAcceptor>,
    stream: TcpStream,
    peer: SocketAddr,
    watcher: Watcher,
) {
    let _ = stream.set_nodelay(true);
    origin.control().connection_opened();
    let from = Connection { peer, tls: tls.is_some() };
    match tls {
        None => requests(&builder, origin.clone(), stream, from, watcher).await,
        Some(tls) => match tls.accept(stream).await {
            Ok(stream) => requests(&builder, origin.clone(), stream, from, watcher).await,
            Err(error) => tracing::debug!(%error, %peer, "TLS handshake failed"),
        },
    }
    origin.control().connection_closed();
}

async fn requests<S>(
    builder: &Builder<TokioExecutor>,
    origin: Arc<Origin>,
    stream: S,
    from: Connection,
    watcher: Watcher,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| origin.clone().answer(request, from));
    let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    if let Err(error) = watcher.watch(served).await {
        tracing::debug!(%error, peer = %from.peer, "connection ended early");
    }
}
