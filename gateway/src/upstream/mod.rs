//! Everything between "this route goes to upstream X" and "here is a connection to an endpoint of it".
//!
//! The tenancy snapshot asks [`UpstreamRegistry`] once per configuration for an [`UpstreamPool`] and
//! keeps the `Arc`. A request then goes through four calls, none of which locks or looks anything up
//! by name:
//!
//! 1. [`UpstreamPool::admit`]: is the breaker closed, is there room? Keeps a [`Permit`] meanwhile.
//! 2. [`UpstreamPool::pick`]: an endpoint that this request has not tried yet, and the peer to dial.
//! 3. [`Endpoint::begin`]: the attempt is in flight as long as its [`AttemptGuard`] lives.
//! 4. [`AttemptGuard::finish`]: what became of it; feeds latency, outlier ejection and breaker.
//!
//! Everything else happens in the background: names are resolved by [`Resolver`], endpoints probed by
//! [`health`]. What is learnt about an endpoint belongs to its address and outlives configurations.

mod answer;
pub mod balance;
pub mod breaker;
pub mod cause;
pub mod clock;
pub mod connect;
pub mod egress;
pub mod endpoint;
pub mod ewma;
pub mod health;
pub(crate) mod joining;
pub mod outbound;
pub mod outlier;
pub mod peer;
pub mod pool;
pub mod profile;
pub mod registry;
pub mod resolver;
pub mod retry;
pub mod status;
#[cfg(test)]
mod testing;
pub mod tls;
pub mod window;

pub use self::{
    breaker::{Permit, Refused},
    clock::Clock,
    egress::EgressPolicy,
    endpoint::{AttemptGuard, Endpoint, Outcome},
    outbound::OutboundClient,
    peer::PeerTimeouts,
    pool::{NoEndpoint, Picked, Selection, UpstreamPool},
    registry::{Owner, PoolKey, UpstreamRegistry},
    resolver::Resolver,
    retry::{Attempt, Failure},
};
