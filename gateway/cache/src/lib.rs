//! A shared HTTP cache: its rules as pure functions over parsed types, and storage that keeps tenants apart.
//! Knows nothing of Pingora.
//!
//! From the most basic to the most general:
//!
//! | module | what it knows |
//! |---|---|
//! | [`time`] | HTTP dates and whole seconds (RFC 9110 §5.6.7) |
//! | [`directives`] | `Cache-Control` of requests and responses (RFC 9111 §5.2, RFC 5861, RFC 8246) |
//! | [`targeted`] | fields that are meant for this cache (RFC 9213) |
//! | [`freshness`] | how long a response is fresh, and how old it is (RFC 9111 §4.2) |
//! | [`vary`] | which requests a stored response may answer (RFC 9111 §4.1) |
//! | [`storing`] | whether a response may be stored, and what of it (RFC 9111 §3) |
//! | [`reuse`] | whether a stored response may answer a request (RFC 9111 §4, RFC 5861) |
//! | [`validation`] | conditions of clients, and what a 304 changes (RFC 9111 §4.3) |
//! | [`range`] | parts of stored responses (RFC 9110 §14) |
//! | [`invalidation`] | what unsafe requests make invalid (RFC 9111 §4.4) |
//! | [`status`] | what the cache says of itself (RFC 9211) |
//! | [`key`] | what tells stored responses apart, so that nobody gets another's |
//! | [`stored`] | a stored response, and the variants of one key |
//! | [`purge`] | what was purged, and when, in constant time |
//! | [`storage`] | everything that is stored, within the budgets of node and tenants |

pub mod directives;
pub mod freshness;
pub mod invalidation;
pub mod key;
pub mod purge;
pub mod range;
pub mod reuse;
pub mod status;
pub mod storage;
pub mod stored;
pub mod storing;
pub mod targeted;
pub mod time;
pub mod validation;
pub mod vary;
