//! Responses that are kept and served again (RFC 9111).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::{ByteSize, HeaderName, Span};

/// What is kept of responses to GET, and for how long. Where the origin says something about it, that counts; a
/// response that is meant for one caller is never kept.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Cache {
    /// `false` switches an inherited cache off.
    pub enabled: bool,
    /// For how long a response is fresh of which the origin does not say it. Default: a tenth of the time since
    /// its `Last-Modified`, a day at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Span>,
    /// For how long a stale response is served while it is being validated, where the origin says nothing.
    pub stale_while_revalidate: Span,
    /// For how long a stale response is served when the upstream fails, where the origin says nothing.
    pub stale_if_error: Span,
    /// How long requests for the same response wait for the first of them to get it.
    pub collapse: Span,
    /// Larger bodies are not kept.
    pub max_object: ByteSize,
    /// Whether clients may ask for fresher or staler responses than the cache would give them, with `Cache-Control`.
    pub client_directives: bool,
    /// Whether the order of query parameters makes no difference.
    pub sort_query: bool,
    /// Response fields that count instead of `Cache-Control` (RFC 9213), the first one that is there.
    pub targeted_fields: Vec<HeaderName>,
    /// Memory that the tenant's responses may take. For tenants, plans and defaults. Default: 64MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
}

impl Cache {
    /// What a tenant may take that sets nothing of its own.
    pub const DEFAULT_MEMORY: ByteSize = ByteSize::new(64 << 20);
}

impl Default for Cache {
    fn default() -> Self {
        let cdn_cache_control = HeaderName::from(http::HeaderName::from_static("cdn-cache-control"));
        Self {
            enabled: true,
            ttl: None,
            stale_while_revalidate: Span::from_secs(0),
            stale_if_error: Span::from_secs(0),
            collapse: Span::from_secs(10),
            max_object: ByteSize::new(8 << 20),
            client_directives: true,
            sort_query: false,
            targeted_fields: vec![cdn_cache_control],
            memory: None,
        }
    }
}
