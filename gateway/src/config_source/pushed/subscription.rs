//! The connection to the control plane: made again and again until the node ends.
//!
//! What comes is handed to the configuration's thread as it is, a few messages ahead at most, and what that thread
//! answers is sent back. Nothing is believed of whoever cannot show a certificate for the name that was connected to.

use std::{
    fmt,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures::{SinkExt, StreamExt};
use http::{HeaderValue, StatusCode, Uri, header, uri::PathAndQuery};
use secrecy::ExposeSecret;
use seiketsu_config::{
    node::{ControlPlane, NodeConfig},
    push::{
        FrameError, FromNode, HEARTBEAT_SECONDS, Heartbeat, Held, Hello, MOST_MESSAGE_BYTES, SCHEMAS, SUBSCRIBE_PATH,
        ToNode, Welcome, read_binary, read_text,
        usage::{AskUsed, UsageTaken},
        write,
    },
    secret::{SecretError, SecretRef},
    tenant::UpstreamTls,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{self, Message as Frame, client::IntoClientRequest, protocol::WebSocketConfig},
};
use uuid::Uuid;

use super::{super::status::ConnectionStatus, Message, usage::Sending};
use crate::{
    config_source::StatusCell,
    limits::UsedBefore,
    operations::Readiness,
    proxy::Shared,
    telemetry::{metrics::ControlPlaneMetrics, usage::Usage},
    tenancy::{Live, compile::CompiledTenant},
    upstream::{
        connect::Stream,
        egress::EgressPolicy,
        outbound::{ConnectError, Connector},
        resolver::{Resolver, ResolverError},
        tls::{SystemRoots, TlsError},
    },
};

/// From the first attempt to connect to the welcome.
const GREETING: Duration = Duration::from_secs(10);
/// What is said has to be taken within this time.
const TAKEN: Duration = Duration::from_secs(10);
/// Of a peer that has said nothing for so many heartbeats, nothing is to be expected.
const SILENT_HEARTBEATS: u32 = 5;
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The same failure is told in the log this often at most.
const TOLD_AGAIN: Duration = Duration::from_mins(1);
/// Messages that wait for the configuration's thread. Whoever sends more waits with them.
const AHEAD: usize = 4;

/// What a message was, before anybody has looked into it.
#[derive(Debug)]
pub(super) struct Received {
    frame: Frame,
    /// Held until it has been looked at.
    _permit: OwnedSemaphorePermit,
}

impl Received {
    pub(super) fn read(&self) -> Result<ToNode, FrameError> {
        read(&self.frame)
    }
}

fn read(frame: &Frame) -> Result<ToNode, FrameError> {
    match frame {
        Frame::Text(text) => read_text(text),
        frame => read_binary(&frame.clone().into_data()),
    }
}

/// What is to be said or done on a connection.
#[derive(Debug)]
pub(super) enum Reply {
    Say(FromNode),
    /// Nothing good comes of this connection: begin anew.
    Leave(String),
}

/// Where the answers to what came on a connection go.
#[derive(Debug, Clone)]
pub(super) struct Replies {
    pub(super) replies: mpsc::UnboundedSender<Reply>,
    /// What is heard of usage, for whoever sends it.
    pub(super) taken: mpsc::UnboundedSender<UsageTaken>,
}

/// Why there is no connection, or no longer.
#[derive(Debug, thiserror::Error)]
pub(in crate::config_source) enum SubscriptionError {
    #[error("control_plane.token: {0}")]
    Token(#[from] SecretError),
    #[error("control_plane.token: what {0} holds cannot be sent as a bearer token: write one line of visible ASCII")]
    TokenForm(SecretRef),
    #[error("control_plane.ca: {0}")]
    Ca(#[from] TlsError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the control plane refuses {shown} ({status}): make a node token and write it there")]
    Unauthorised { shown: String, status: StatusCode },
    #[error("what answers there is no control plane, or one that cannot serve now: {0}")]
    Status(StatusCode),
    #[error("the connection broke off: {0}")]
    WebSocket(#[from] tungstenite::Error),
    #[error("the control plane has ended the connection{0}")]
    Closed(String),
    #[error("no welcome within {GREETING:?}")]
    NoWelcome,
    #[error("the control plane says something else than a welcome first")]
    NotWelcome,
    #[error(
        "the control plane sends documents of form {0}, this gateway reads {SCHEMAS:?}: upgrade the older of the two"
    )]
    Schema(u32),
    #[error("nothing was heard for {0:?}")]
    Silent(Duration),
    #[error("the control plane takes nothing of what it is told")]
    Stuck,
    #[error("{0}")]
    Message(#[from] FrameError),
    #[error("{0}")]
    Left(String),
    #[error("the address has no host")]
    Address(#[from] http::Error),
    #[error("the node ends")]
    Ending,
}

/// What a connection is made with, read anew for each.
pub(in crate::config_source) struct Credentials {
    bearer: Option<HeaderValue>,
    connector: Connector,
}

impl Credentials {
    /// Blocks on the file system.
    pub(in crate::config_source) fn read(
        settings: &ControlPlane,
        resolver: &Resolver,
        roots: &SystemRoots,
    ) -> Result<Self, SubscriptionError> {
        let tls = UpstreamTls {
            ca: settings.ca.clone(),
            client_certificate: settings.certificate.clone(),
            ..UpstreamTls::default()
        };
        Ok(Self {
            bearer: settings.token.as_ref().map(bearer).transpose()?,
            connector: Connector::for_websockets(resolver.clone(), &tls, roots)?,
        })
    }
}

fn bearer(from: &SecretRef) -> Result<HeaderValue, SubscriptionError> {
    let token = from.read()?;
    let token = token.expose_secret();
    let is_visible = !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic());
    let bearer = HeaderValue::try_from(format!("Bearer {token}"));
    let mut bearer = bearer.ok().filter(|_| is_visible).ok_or_else(|| SubscriptionError::TokenForm(from.clone()))?;
    bearer.set_sensitive(true);
    Ok(bearer)
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

/// The control plane is named by whoever runs the node, as its name servers are, and is as a rule a neighbour: what
/// tenants may not name is no matter here, except where nothing but metadata lives.
pub(in crate::config_source) const EGRESS: EgressPolicy = EgressPolicy { allow_loopback: true, allow_private: true };

/// The task that connects. Ends when dropped.
pub(super) struct Subscription {
    stop: watch::Sender<bool>,
}

impl Subscription {
    pub(super) fn start(
        shared: &Arc<Shared>,
        settings: &ControlPlane,
        status: Arc<StatusCell>,
        readiness: Arc<Readiness>,
        inbox: std::sync::mpsc::Sender<Message>,
        runtime: &Handle,
    ) -> Result<Self, ResolverError> {
        let failures = shared.metrics.node.dns_failures.clone();
        let (stop, stopped) = watch::channel(false);
        let task = Task {
            resolver: Resolver::new(&shared.node.dns, EGRESS, failures, runtime.clone())?,
            roots: SystemRoots::default(),
            settings: settings.clone(),
            node: shared.node.clone(),
            run: Uuid::now_v7(),
            live: shared.live.clone(),
            usage: shared.usage.clone(),
            used_before: shared.limits.used_before.clone(),
            metrics: shared.metrics.node.control_plane.clone(),
            status,
            readiness,
            inbox,
            stopped,
        };
        task.metrics.connected.set(0);
        task.show(false, None);
        runtime.spawn(task.run());
        Ok(Self { stop })
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
    }
}

struct Task {
    settings: ControlPlane,
    node: Arc<NodeConfig>,
    run: Uuid,
    resolver: Resolver,
    roots: SystemRoots,
    live: Arc<Live<CompiledTenant>>,
    usage: Arc<Usage>,
    used_before: Arc<UsedBefore>,
    metrics: ControlPlaneMetrics,
    status: Arc<StatusCell>,
    readiness: Arc<Readiness>,
    inbox: std::sync::mpsc::Sender<Message>,
    stopped: watch::Receiver<bool>,
}

type Socket = WebSocketStream<Heard<Stream>>;

impl Task {
    async fn run(mut self) {
        let mut pauses = Pauses::default();
        let mut told: Option<(String, Instant)> = None;
        loop {
            let error = match self.connect_and_follow(&mut pauses).await {
                Ok(()) | Err(SubscriptionError::Ending) => return,
                Err(error) => error.to_string(),
            };
            self.metrics.connected.set(0);
            self.metrics.failures.inc();
            self.show(false, Some(error.clone()));
            let is_known = told.as_ref().is_some_and(|(before, at)| *before == error && at.elapsed() < TOLD_AGAIN);
            if !is_known {
                let url = self.settings.url.as_str();
                tracing::warn!(url, %error, "not connected to the control plane; going on with what there is, and trying again");
                told = Some((error, Instant::now()));
            }
            tokio::select! {
                () = stopped(self.stopped.clone()) => return,
                () = tokio::time::sleep(pauses.next()) => {}
            }
        }
    }

    async fn connect_and_follow(&mut self, pauses: &mut Pauses) -> Result<(), SubscriptionError> {
        // What came on the last connection has been applied when this is answered.
        let (held, answer) = oneshot::channel();
        self.inbox.send(Message::Connecting(held)).map_err(|_| SubscriptionError::Ending)?;
        let holds = answer.await.map_err(|_| SubscriptionError::Ending)?;
        let greeting = timeout(GREETING, self.greet(holds));
        let (socket, welcome, heard) = tokio::select! {
            () = stopped(self.stopped.clone()) => return Ok(()),
            greeting = greeting => greeting.map_err(|_| SubscriptionError::NoWelcome)??,
        };
        let began = Instant::now();
        tracing::info!(url = self.settings.url.as_str(), "connected to the control plane");
        self.metrics.connected.set(1);
        self.show(true, None);
        self.inbox.send(Message::Welcomed(welcome.store)).map_err(|_| SubscriptionError::Ending)?;
        let ended = self.follow(socket, &welcome, &heard).await;
        // A control plane that lets everyone in and then falls over is not to be fallen upon.
        if began.elapsed() > LONGEST_PAUSE {
            pauses.reset();
        }
        ended
    }

    /// Connects, says who the node is and what it holds, and hears the answer.
    async fn greet(&self, holds: Option<Held>) -> Result<(Socket, Welcome, Arc<AtomicBool>), SubscriptionError> {
        let (settings, resolver, roots) = (self.settings.clone(), self.resolver.clone(), self.roots.clone());
        let credentials = tokio::task::spawn_blocking(move || Credentials::read(&settings, &resolver, &roots)).await;
        let Credentials { bearer, connector } = credentials.map_err(|_| SubscriptionError::Ending)??;
        let uri: Uri = self.settings.url.as_str().parse().map_err(http::Error::from)?;
        let request = request(&uri, bearer)?;
        let heard = Arc::new(AtomicBool::new(true));
        let stream = Heard { stream: connector.open(uri).await?, heard: heard.clone() };
        let limits = WebSocketConfig::default()
            .max_message_size(Some(MOST_MESSAGE_BYTES))
            .max_frame_size(Some(MOST_MESSAGE_BYTES));
        let (mut socket, _) = client_async_with_config(request, stream, Some(limits))
            .await
            .map_err(|error| self.handshake_error(error))?;
        let hello = Hello {
            node: self.node.id.clone(),
            run: self.run,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            region: self.node.region.clone(),
            zone: self.node.zone.clone(),
            schemas: SCHEMAS.to_vec(),
            holds,
            orders: true,
            usage: true,
        };
        say(&mut socket, &FromNode::Hello(hello)).await?;
        loop {
            match socket.next().await {
                Some(Ok(frame @ (Frame::Text(_) | Frame::Binary(_)))) => match read(&frame)? {
                    ToNode::Welcome(welcome) if SCHEMAS.contains(&welcome.schema) => {
                        return Ok((socket, welcome, heard));
                    }
                    ToNode::Welcome(welcome) => return Err(SubscriptionError::Schema(welcome.schema)),
                    _ => return Err(SubscriptionError::NotWelcome),
                },
                Some(Ok(frame)) => ended(frame)?,
                Some(Err(error)) => return Err(error.into()),
                None => return Err(SubscriptionError::Closed(String::new())),
            }
        }
    }

    fn handshake_error(&self, error: tungstenite::Error) -> SubscriptionError {
        let tungstenite::Error::Http(answer) = error else { return error.into() };
        let status = answer.status();
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let shown = match &self.settings.token {
                    Some(token) => format!("the token from {token}"),
                    None => "a node with this certificate and without a token".to_owned(),
                };
                SubscriptionError::Unauthorised { shown, status }
            }
            status => SubscriptionError::Status(status),
        }
    }

    /// Hands on what comes, and says what is to be said, until the connection ends.
    async fn follow(&self, mut socket: Socket, welcome: &Welcome, heard: &AtomicBool) -> Result<(), SubscriptionError> {
        let every = Duration::from_secs(match welcome.heartbeat_seconds {
            0 => HEARTBEAT_SECONDS,
            seconds => seconds.min(60),
        });
        let mut heartbeat = interval(every);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ahead = Arc::new(Semaphore::new(AHEAD));
        let (replies, mut answers) = mpsc::unbounded_channel();
        let (taken, heard_of_usage) = mpsc::unbounded_channel();
        let replies = Replies { replies, taken };
        let _sending = welcome.usage.then(|| Sending::start(self.usage.clone(), &replies, heard_of_usage));
        let mut asked = welcome.usage.then(|| self.used_before.connected(self.usage.clone()));
        let (mut permit, mut silent) = (None, 0);
        let mut stopped = pin!(stopped(self.stopped.clone()));
        loop {
            tokio::select! {
                () = &mut stopped => {
                    // So that nobody waits for a node that will not come back.
                    let goodbye = Heartbeat { draining: true, ..self.heartbeat() };
                    let said = async {
                        say(&mut socket, &FromNode::Heartbeat(goodbye)).await?;
                        socket.close(None).await.map_err(SubscriptionError::from)
                    };
                    let _ = timeout(Duration::from_millis(200), said).await;
                    return Ok(());
                }
                free = Arc::clone(&ahead).acquire_owned(), if permit.is_none() => permit = free.ok(),
                frame = socket.next(), if permit.is_some() => match frame {
                    Some(Ok(frame @ (Frame::Text(_) | Frame::Binary(_)))) => {
                        let Some(permit) = permit.take() else { continue };
                        let received = Received { frame, _permit: permit };
                        let message = Message::Received { received, replies: replies.clone() };
                        self.inbox.send(message).map_err(|_| SubscriptionError::Ending)?;
                    }
                    Some(Ok(frame)) => ended(frame)?,
                    Some(Err(error)) => return Err(error.into()),
                    None => return Err(SubscriptionError::Closed(String::new())),
                },
                Some(reply) = answers.recv() => match reply {
                    Reply::Say(message) => say(&mut socket, &message).await?,
                    Reply::Leave(why) => {
                        let _ = timeout(TAKEN, socket.close(None)).await;
                        return Err(SubscriptionError::Left(why));
                    }
                },
                Some(ask) = next_of(&mut asked) => say(&mut socket, &FromNode::AskUsed(ask)).await?,
                _ = heartbeat.tick() => {
                    // While the node itself is too busy to listen, it hears nothing.
                    silent = if heard.swap(false, Ordering::Relaxed) || permit.is_none() { 0 } else { silent + 1 };
                    if silent >= SILENT_HEARTBEATS {
                        return Err(SubscriptionError::Silent(every * SILENT_HEARTBEATS));
                    }
                    say(&mut socket, &FromNode::Heartbeat(self.heartbeat())).await?;
                    // Answered by any WebSocket (RFC 6455 §5.5.2): a peer that is gone is noticed.
                    send(&mut socket, Frame::Ping(bytes::Bytes::new())).await?;
                }
            }
        }
    }

    fn heartbeat(&self) -> Heartbeat {
        Heartbeat {
            revision: self.live.load().revision(),
            ready: self.status.get().loaded && self.readiness.is_serving(),
            draining: self.readiness.is_draining(),
        }
    }

    fn show(&self, connected: bool, error: Option<String>) {
        let before = self.status.connection();
        let since = before.filter(|before| before.connected == connected).map(|before| before.since);
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.status.set_connection(ConnectionStatus {
            url: self.settings.url.to_string(),
            connected,
            since: since.unwrap_or_else(now),
            error,
        });
    }
}

/// The request to become a WebSocket, with the node's token, if it has one.
fn request(
    uri: &Uri,
    bearer: Option<HeaderValue>,
) -> Result<tungstenite::handshake::client::Request, SubscriptionError> {
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::from_static(SUBSCRIBE_PATH));
    let is_tls = uri.scheme_str() == Some("https");
    parts.scheme = if is_tls { "wss" } else { "ws" }.parse().ok();
    let mut request = Uri::from_parts(parts).map_err(http::Error::from)?.into_client_request()?;
    if let Some(bearer) = bearer {
        request.headers_mut().insert(header::AUTHORIZATION, bearer);
    }
    Ok(request)
}

/// The next question, where questions are answered.
async fn next_of(asked: &mut Option<mpsc::UnboundedReceiver<AskUsed>>) -> Option<AskUsed> {
    match asked {
        Some(asked) => asked.recv().await,
        None => None,
    }
}

/// Waits until the node ends.
async fn stopped(mut stop: watch::Receiver<bool>) {
    // Whoever could say so is gone with it.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// What a frame that is no message means for the connection.
fn ended(frame: Frame) -> Result<(), SubscriptionError> {
    match frame {
        Frame::Close(reason) => {
            let reason = reason.map(|reason| reason.reason.to_string()).filter(|reason| !reason.is_empty());
            let shown =
                |reason: String| format!(": {}", reason.chars().filter(|c| !c.is_control()).collect::<String>());
            Err(SubscriptionError::Closed(reason.map(shown).unwrap_or_default()))
        }
        _ => Ok(()),
    }
}

async fn say(socket: &mut Socket, message: &FromNode) -> Result<(), SubscriptionError> {
    let frame = match write(message)? {
        seiketsu_config::push::Frame::Text(text) => Frame::text(text),
        seiketsu_config::push::Frame::Binary(bytes) => Frame::binary(bytes),
    };
    send(socket, frame).await
}

async fn send(socket: &mut Socket, frame: Frame) -> Result<(), SubscriptionError> {
    timeout(TAKEN, socket.send(frame)).await.map_err(|_| SubscriptionError::Stuck)?.map_err(Into::into)
}

/// Pauses between attempts: longer and longer, and never the same on all nodes.
#[derive(Debug, Default)]
struct Pauses(u32);

impl Pauses {
    fn next(&mut self) -> Duration {
        let pause = SHORTEST_PAUSE.saturating_mul(1 << self.0.min(10)).min(LONGEST_PAUSE);
        self.0 = self.0.saturating_add(1);
        pause / 2 + pause.mul_f64(fastrand::f64() / 2.0)
    }

    fn reset(&mut self) {
        self.0 = 0;
    }
}

/// A stream that tells whether anything was read of it: a large message on a slow line is no silence.
struct Heard<S> {
    stream: S,
    heard: Arc<AtomicBool>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let poll = Pin::new(&mut this.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            this.heard.store(true, Ordering::Relaxed);
        }
        poll
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn pauses_grow_from_a_tenth_of_a_second_to_five_and_differ() {
        let mut pauses = Pauses::default();
        let mut longest = SHORTEST_PAUSE;
        for _ in 0..40 {
            let pause = pauses.next();
            assert!(longest / 2 <= pause && pause <= longest, "{pause:?} {longest:?}");
            longest = (longest * 2).min(LONGEST_PAUSE);
        }
        assert_ne!((pauses.next(), pauses.next()), (pauses.next(), pauses.next()));
        pauses.reset();
        assert!(pauses.next() <= SHORTEST_PAUSE);
    }

    #[test]
    fn the_token_goes_into_a_header_that_is_not_shown() {
        let bearer = |text: &str| {
            let mut value = HeaderValue::try_from(text).unwrap();
            value.set_sensitive(true);
            Some(value)
        };
        for (url, uri) in [
            ("https://admin.example:9080/", "wss://admin.example:9080/internal/v1/subscribe"),
            ("http://127.0.0.1:9080", "ws://127.0.0.1:9080/internal/v1/subscribe"),
        ] {
            let request = request(&url.parse().unwrap(), bearer("Bearer hunter2")).unwrap();
            assert_eq!(request.uri().to_string(), uri);
            assert_eq!(request.headers()[header::AUTHORIZATION], "Bearer hunter2");
            assert!(!format!("{request:?}").contains("hunter2"));
        }
    }
}
