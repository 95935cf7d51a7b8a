//! Who is at the other end of a connection.

use std::{
    net::{IpAddr, SocketAddr},
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use bytes::Bytes;
use http::HeaderValue;
use parking_lot::Mutex;
use pingora_core::protocols::{Digest, raw_connect::ProxyDigest};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;
use seiketsu_cache::storage::Twin;
use seiketsu_identity::certificate::ClientCertificate;
use tokio::sync::Notify;

use super::{transport::Transport, watch::Watch};
use crate::{proxy::fast_path::Begun, tenancy::tls::Verification};

/// What is known of a client's connection before any request.
#[derive(Debug)]
pub(crate) struct Client {
    /// The client's address; behind a PROXY header, the one that it names.
    pub(crate) address: SocketAddr,
    /// The address without its port, as fields tell it to upstreams; made once for all requests of a connection.
    pub(crate) address_text: HeaderValue,
    /// Whether what the client says in `X-Forwarded-*` is believed.
    pub(crate) trusted: bool,
    pub(crate) tls: Option<ClientTls>,
    /// Requests of this connection that the client gave up (HTTP/2 `RST_STREAM`).
    resets: AtomicU32,
    outdated: Notify,
    /// The client has not taken what was sent last.
    behind: AtomicBool,
    /// How often that began.
    stalls: AtomicU32,
}

/// What the TLS handshake brought.
#[derive(Debug)]
pub(crate) struct ClientTls {
    /// The name the client asked for (SNI), in lower case.
    pub(crate) server_name: Option<Box<str>>,
    /// `TLSv1_2` or `TLSv1_3`.
    pub(crate) version: &'static str,
    /// Verified against the authorities of the tenant that `server_name` belongs to.
    pub(crate) certificate: Option<Arc<ClientCertificate>>,
    /// How that was done; none where no certificate was asked for.
    pub(crate) verification: Option<Verification>,
}

impl Client {
    pub(super) fn new(address: SocketAddr, trusted: bool, tls: Option<ClientTls>) -> Self {
        let text = Bytes::from(address.ip().to_canonical().to_string());
        // An address is always a field value.
        let address_text = HeaderValue::from_maybe_shared(text).unwrap_or(HeaderValue::from_static("unknown"));
        Self {
            address,
            address_text,
            trusted,
            tls,
            resets: AtomicU32::new(0),
            outdated: Notify::new(),
            behind: AtomicBool::new(false),
            stalls: AtomicU32::new(0),
        }
    }

    pub(crate) fn ip(&self) -> IpAddr {
        self.address.ip().to_canonical()
    }

    pub(crate) fn count_reset(&self) {
        self.resets.fetch_add(1, Ordering::Relaxed);
    }

    /// The client needs another connection: what this one began with no longer holds. In HTTP/2 it is told so.
    pub(crate) fn outdate(&self) {
        self.outdated.notify_one();
    }

    /// Resolves when that has happened. One waiter at a time.
    pub(super) async fn is_outdated(&self) {
        self.outdated.notified().await;
    }

    pub(super) fn set_behind(&self, behind: bool) {
        if !self.behind.swap(behind, Ordering::Relaxed) && behind {
            self.stalls.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Of two values that differ, the client was behind in between.
    pub(super) fn stalls(&self) -> u32 {
        self.stalls.load(Ordering::Relaxed)
    }

    /// Whether there is something that it has not taken yet.
    pub(super) fn is_behind(&self) -> bool {
        self.behind.load(Ordering::Relaxed)
    }

    /// The resets since the last call.
    pub(super) fn take_resets(&self) -> u32 {
        self.resets.swap(0, Ordering::Relaxed)
    }
}

/// A client and the watch over one exchange with it: of a connection in HTTP/1, of a stream in HTTP/2.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(super) client: Arc<Client>,
    pub(crate) watch: Watch,
    kept: Kept,
    /// Of the stored body that is being sent.
    twin: Mutex<Option<Arc<Twin>>>,
    /// The request whose session is being made.
    begun: Mutex<Option<Box<Begun>>>,
}

/// Pingora gives a connection back after requests that went well, and drops it after all others. Where such a
/// connection is still good, it comes back by this way.
#[derive(Debug, Default)]
struct Kept {
    wanted: AtomicBool,
    transport: Mutex<Option<Box<Transport>>>,
}

impl Peer {
    pub(super) fn new(client: Arc<Client>, watch: Watch) -> Self {
        Self { client, watch, kept: Kept::default(), twin: Mutex::new(None), begun: Mutex::new(None) }
    }

    /// What is sent of this body from now on may be sent from the file; none: of no body.
    pub(crate) fn set_twin(&self, twin: Option<Arc<Twin>>) {
        *self.twin.lock() = twin;
    }

    /// What the session that is made next goes on with.
    pub(crate) fn put_begun(&self, begun: Box<Begun>) {
        let before = self.begun.lock().replace(begun);
        debug_assert!(before.is_none(), "a request was begun and never gone on with");
    }

    /// Once.
    pub(crate) fn take_begun(&self) -> Option<Box<Begun>> {
        self.begun.lock().take()
    }

    /// The file in which these very bytes stand too, and where.
    pub(super) fn twin_of(&self, data: &[u8]) -> Option<(Arc<Twin>, u64)> {
        let twin = self.twin.lock();
        let twin = twin.as_ref()?;
        let at = twin.position_of(data)?;
        Some((twin.clone(), at))
    }

    /// The request is over and everything was said: the connection can take another one, although Pingora is
    /// about to drop it.
    pub(crate) fn keep_connection(&self) {
        self.kept.wanted.store(true, Ordering::Release);
    }

    /// Whether the transport that is being dropped is to be kept. Once.
    pub(super) fn wants_connection(&self) -> bool {
        self.kept.wanted.swap(false, Ordering::AcqRel)
    }

    pub(super) fn put_connection(&self, transport: Box<Transport>) {
        *self.kept.transport.lock() = Some(transport);
    }

    /// The connection that was kept, if it was.
    pub(super) fn take_connection(&self) -> Option<Box<Transport>> {
        self.kept.transport.lock().take()
    }

    /// Packs it into the slot that Pingora has for a connection's user data.
    pub(super) fn into_digest(self) -> Result<Arc<ProxyDigest>, Box<pingora_core::Error>> {
        // The response is that of an HTTP CONNECT proxy, which there is none of here.
        let unused = Box::new(ResponseHeader::build(200, Some(0))?);
        Ok(Arc::new(ProxyDigest::new(unused, Some(Box::new(self)))))
    }

    pub(super) fn from_digest(digest: &ProxyDigest) -> Option<&Self> {
        digest.user_data.as_ref()?.downcast_ref()
    }

    /// The peer of a request. `None` only for requests that did not come over a connection.
    pub(crate) fn of(session: &Session) -> Option<&Self> {
        let digest: &Digest = session.as_downstream().digest()?;
        Self::from_digest(digest.proxy_digest.as_ref()?)
    }
}

impl Deref for Peer {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}
