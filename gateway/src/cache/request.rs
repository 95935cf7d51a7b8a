//! What the cache knows of one request, from the look-up to the end.

use std::sync::{Arc, atomic::AtomicBool};

use http::{HeaderMap, HeaderName, Method, header};
use pingora_http::RequestHeader;
use seiketsu_cache::{
    directives::RequestDirectives,
    key::{IdentityClass, KeyBytes, KeyParts, Resource, sorted},
    purge::Sequence,
    reuse::Windows,
    status::Status,
    storage::Partition,
    stored::Stored,
    time::Timestamp,
};
use seiketsu_identity::{
    forged::{is_identity_header, is_spelled},
    principal::{Principal, PrincipalKind},
};
use smallvec::SmallVec;

use super::{background::Internal, compile::CompiledCache};

/// The cache's part of a request's context.
#[derive(Default)]
pub(crate) struct CacheContext {
    /// What clients are told. Absent where no cache was asked.
    pub(crate) status: Option<Status>,
    /// Present while the request goes to the origin for the cache.
    pub(crate) fetch: Option<Box<Fetch>>,
    /// What is known of a request that the cache makes itself.
    pub(crate) internal: Option<Box<Internal>>,
    /// The client gets a head alone, although there is a body.
    pub(crate) head_only: bool,
}

/// A request that goes to the origin, on behalf of all who may be served what it brings.
pub(crate) struct Fetch {
    pub(crate) asked: Arc<Asked>,
    /// What was found stale, or must be validated for this client.
    pub(crate) stored: Option<Arc<Stored>>,
    /// Who asks for the same thing waits for each other.
    pub(crate) collapses: bool,
    /// How often validating what is stored had failed when the request came.
    pub(crate) failures: u64,
    /// What the origin has answered is of no use to those who wait: each must have it validated for itself.
    pub(crate) frees_others: bool,
    /// The answer's body goes into the cache, if all of it comes.
    pub(crate) fills: bool,
    /// How often Pingora has looked for it.
    pub(crate) looked: u32,
    /// When the origin was last asked.
    pub(crate) requested: Timestamp,
    /// The last purge before that.
    pub(crate) since: Sequence,
    /// The fields of a 304, until they are merged.
    pub(crate) update: Option<HeaderMap>,
    /// What the client gets is stored, and not the origin's answer.
    pub(crate) serving: Option<Arc<Stored>>,
    /// Its fields, if a 304 said that nothing is to be stored any longer. Pingora would send its own merge of both, in
    /// which a tag or a digest of something else may stand over these bytes.
    pub(crate) told: Option<HeaderMap>,
}

/// What a look-up needs; shared with Pingora's key.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) partition: Arc<Partition>,
    pub(crate) key: Box<[u8]>,
    pub(crate) resource: Resource,
    /// The client's, for `Vary`.
    pub(crate) headers: HeaderMap,
    pub(crate) directives: RequestDirectives,
    pub(crate) identified: bool,
    pub(crate) max_object: usize,
    /// For how long stale responses may be served, where their origin leaves that open.
    pub(crate) open: Windows,
    /// What the origin has answered is whole, and stored if there is room for it.
    pub(crate) filled: AtomicBool,
}

/// What a request's key is made of, beside its head.
#[derive(Clone, Copy)]
pub(crate) struct Origin<'a> {
    pub(crate) tenant: &'a str,
    pub(crate) version: &'a str,
    pub(crate) canary: bool,
    pub(crate) identified: bool,
    pub(crate) secure: bool,
    pub(crate) host: &'a [u8],
    /// What a trusted proxy has added reaches the upstream, and so may change its answer.
    pub(crate) trusted: bool,
}

/// Whether the caller has said who it is, in any way that an upstream may answer to. `forwarded` are the fields of
/// credentials that reach it.
pub(crate) fn is_identified(principal: Option<&Principal>, headers: &HeaderMap, forwarded: &[HeaderName]) -> bool {
    let is_credential =
        |name: &HeaderName| *name == header::AUTHORIZATION || *name == header::COOKIE || forwarded.contains(name);
    principal.is_some_and(|principal| *principal.kind() != PrincipalKind::Anonymous)
        || headers.keys().any(is_credential)
}

/// Whether the client has a response already, or wants a part or the head of one: an origin whose answers are not stored may
/// well save itself the whole.
pub(crate) fn wants_less(request: &RequestHeader) -> bool {
    let names = [header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE, header::RANGE];
    request.method == Method::HEAD || names.iter().any(|name| request.headers.contains_key(name))
}

/// Whether by this field some servers take a request for another one than its first line and host say. Many take `_`
/// for `-` as well.
fn is_another_request(name: &HeaderName) -> bool {
    const OTHERS: [&str; 13] = [
        "x-http-method",
        "x-http-method-override",
        "x-method-override",
        "x-original-url",
        "x-rewrite-url",
        "x-override-url",
        "x-rewrite-uri",
        "x-request-uri",
        "x-original-host",
        "x-host",
        "x-http-host-override",
        "x-url-scheme",
        "front-end-https",
    ];
    let name = name.as_str();
    // By far the most are not even looked at.
    matches!(name.as_bytes(), [b'x', b'-' | b'_', b'h' | b'm' | b'o' | b'r' | b'u', ..] | [b'f', b'r', b'o', b'n', ..])
        && OTHERS.iter().any(|other| is_spelled(name, other))
}

/// Whether nothing is said there but how the connection goes on.
fn is_of_connection_alone(options: &[u8]) -> bool {
    options.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).all(|option| {
        let plain = [&b"keep-alive"[..], b"close", b"te", b"upgrade"];
        option.is_empty() || plain.iter().any(|plain| option.eq_ignore_ascii_case(plain))
    })
}

/// Whether the gateway writes this field into requests, from what it knows of each: by it the client's own says nothing
/// about which response is the right one. What tells the target is not among them, since it is part of the key.
pub(crate) fn is_written_by_gateway(name: &HeaderName) -> bool {
    matches!(name.as_str(), "x-forwarded-for" | "x-request-id" | "traceparent" | "tracestate")
        || is_identity_header(name.as_str())
}

/// Whether a request can be answered from the cache at all, its head being as it is.
pub(crate) fn may_use_cache(request: &RequestHeader) -> bool {
    // Compared in one go, as in `crate::fields`.
    !request.headers.iter().any(|(name, value)| {
        let has_body = *name == header::TRANSFER_ENCODING || *name == header::CONTENT_LENGTH && value != "0";
        // Conditions that only the origin can judge go to it (RFC 9111 §4.3.2).
        let for_origin = *name == header::IF_MATCH || *name == header::IF_UNMODIFIED_SINCE;
        // The origin does not get to see what is named there (RFC 9110 §7.6.1), by which its answer would be chosen.
        let hides = *name == header::CONNECTION && !is_of_connection_alone(value.as_bytes());
        has_body || for_origin || hides || is_another_request(name)
    })
}

pub(crate) fn is_cacheable_method(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// The bytes of a request's key.
pub(crate) fn key(cache: &CompiledCache, request: &RequestHeader, origin: &Origin<'_>) -> KeyBytes {
    let forwarded = if origin.trusted { forwarded_target(&request.headers) } else { SmallVec::new() };
    let query = request.uri.query();
    let in_order = query.filter(|_| cache.sort_query).map(sorted);
    let mut key = KeyBytes::new();
    KeyParts {
        tenant: origin.tenant.as_bytes(),
        settings: &cache.settings,
        version: origin.version.as_bytes(),
        canary: origin.canary,
        identity: if origin.identified { IdentityClass::Identified } else { IdentityClass::Anonymous },
        secure: origin.secure,
        host: origin.host,
        path: request.uri.path().as_bytes(),
        query: in_order.as_deref().or(query).map(str::as_bytes),
        forwarded: &forwarded,
    }
    .write(&mut key);
    key
}

/// What a proxy that is believed says about the target, by which an upstream may make links. Whom it speaks for is not
/// among it: a response that depends on that says so in `Vary`, and is not stored.
fn forwarded_target(headers: &HeaderMap) -> SmallVec<[&[u8]; 16]> {
    const NAMES: [&str; 8] = ["proto", "host", "port", "prefix", "scheme", "ssl", "server", "path"];
    let mut parts = SmallVec::new();
    for (name, value) in headers {
        if let Some(rest) = name.as_str().strip_prefix("x-forwarded-")
            && NAMES.contains(&rest)
        {
            parts.extend([rest.as_bytes(), value.as_bytes()]);
        }
    }
    parts
}

/// What a request's target is called when it is purged.
pub(crate) fn resource(request: &RequestHeader, host: &[u8]) -> Resource {
    Resource::new(host, request.uri.path(), request.uri.query())
}
