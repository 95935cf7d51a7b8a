//! What is done to a request and its response, apart from where it goes.
//!
//! Each file holds one policy: a `compile` step that takes the checked configuration and does all work
//! that can be done ahead, and functions that the proxy's hooks call. Nothing here knows a session, a
//! tenant or a snapshot, waits for the network or takes a lock.
//!
//! # The order in which they run
//!
//! On the way in, cheapest and most general refusal first:
//!
//! 1. [`access`]: may this address call at all?
//! 2. [`request_limits`]: is the head within bounds, the method allowed?
//! 3. [`versioning`]: which version of the API is meant? (Routes match by version, so before routing.)
//! 4. [`cors`]: a preflight is answered here, before authentication, since browsers send none with it.
//! 5. Load shedding, authentication, limits and quotas, which live elsewhere.
//! 6. [`validation`]: does the request conform to what was published? It sees what the client sent.
//! 7. [`transform`], [`headers`], [`body_transform`]: what the upstream receives.
//!
//! On the way back:
//!
//! 1. [`body_transform`], then [`headers`]: what the client receives.
//! 2. [`versioning`], [`cors`], [`security_headers`]: ours replace what the upstream said.
//! 3. [`compression`]: last, since it works on the final bytes and changes validators and framing.
//!
//! Refusals and other responses of the gateway's own get [`cors`] and [`security_headers`] as well.

pub mod access;
pub mod body_transform;
pub mod compression;
pub mod cors;
pub mod headers;
pub mod json_body;
pub mod request_limits;
pub mod security_headers;
pub mod transform;
pub mod validation;
pub mod versioning;

mod stack;
mod vary;

use std::borrow::Cow;

use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::Value;

use crate::respond::problem::ProblemKind;

/// A request that a policy refuses. The response is built from it in one place, `respond`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub kind: ProblemKind,
    /// For the client: what is wrong with this request and what would be right. Holds nothing secret.
    pub detail: Cow<'static, str>,
    /// Headers that the specification of the status asks for, such as `Allow`.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    extensions: Vec<(&'static str, Value)>,
}

impl Refusal {
    pub fn new(kind: ProblemKind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, detail: detail.into(), headers: Vec::new(), extensions: Vec::new() }
    }

    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// An extension member of the problem (RFC 9457 §3.2).
    #[must_use]
    pub fn with_extension(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.extensions.push((name, value.into()));
        self
    }

    pub fn extensions(&self) -> impl Iterator<Item = (&'static str, Value)> {
        self.extensions.iter().cloned()
    }

    pub fn status(&self) -> StatusCode {
        self.kind.status()
    }
}
