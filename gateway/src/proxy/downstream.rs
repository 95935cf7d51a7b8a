//! The client's side of a request, as far as checks and answers need it.

use http::StatusCode;
use pingora_http::RequestHeader;
use pingora_proxy::Session;

use crate::server::peer::Peer;

/// A session of Pingora's; or a request that has none, on the [fast path](super::fast_path).
pub(crate) trait Downstream: Send + Sync {
    fn head(&self) -> &RequestHeader;

    fn head_mut(&mut self) -> &mut RequestHeader;

    /// `None` only for requests that did not come over a connection.
    fn peer(&self) -> Option<&Peer>;

    /// In HTTP/1, no other request comes over this connection; the answer says so.
    fn close_after(&mut self);

    /// The status that the client was told.
    fn answered(&self) -> Option<StatusCode>;

    /// Bytes of the request's body so far.
    fn body_received(&self) -> u64;

    /// Bytes of the answer's body so far.
    fn body_sent(&self) -> u64;
}

impl Downstream for Session {
    fn head(&self) -> &RequestHeader {
        self.req_header()
    }

    fn head_mut(&mut self) -> &mut RequestHeader {
        self.req_header_mut()
    }

    fn peer(&self) -> Option<&Peer> {
        Peer::of(self)
    }

    fn close_after(&mut self) {
        self.as_downstream_mut().set_keepalive(None);
    }

    fn answered(&self) -> Option<StatusCode> {
        self.response_written().map(|response| response.status)
    }

    fn body_received(&self) -> u64 {
        self.body_bytes_read() as u64
    }

    fn body_sent(&self) -> u64 {
        self.body_bytes_sent() as u64
    }
}
