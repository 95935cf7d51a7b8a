//! What the cache knows of one request, from the look-up to the end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::SystemTime,
};

use http::{HeaderMap, HeaderName, Method, header};
use pingora_http::RequestHeader;
use seiketsu_cache::{
    directives::RequestDirectives,
    key::{IdentityClass, KeyBytes, KeyParts, Resource, sorted},
    purge::Sequence,
    reuse::Windows,
    status::Status,
    storage::{Lookup, Partition},
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
    /// Its length is known, and not too large.
    pub(crate) announced: bool,
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

impl Fetch {
    /// What the origin has answered has been stored, or has renewed what is.
    pub(crate) fn is_kept(&self) -> bool {
        self.asked.kept.load(Relaxed)
    }
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
    pub(crate) stale: Windows,
    /// What the origin has answered is whole, and stored if there is room for it.
    pub(crate) filled: AtomicBool,
    /// There was, or it has renewed what is stored.
    pub(crate) kept: AtomicBool,
}

impl Asked {
    /// Whether responses for this key were not storable lately, and nothing is stored.
    pub(crate) fn passes(&self) -> bool {
        let now = SystemTime::now().into();
        matches!(self.partition.find(&self.key, &self.headers, now), Lookup::Passes)
    }
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

/// Whether by this field some servers take a request for one with another method than its first line says. Many take
/// `_` for `-` as well.
fn tells_method(name: &HeaderName) -> bool {
    const NAMES: [&str; 7] = [
        "x-http-method",
        "x-http-method-name",
        "x-http-method-override",
        "x-method",
        "x-method-name",
        "x-method-override",
        "x-original-method",
    ];
    matches!(name.as_str().as_bytes(), [b'x', b'-' | b'_', b'h' | b'm' | b'o', ..]) && is_one_of(name, &NAMES)
}

/// Whether by this field some servers take a request for one of another target than its first line and host say.
fn tells_target(name: &HeaderName) -> bool {
    const NAMES: [&str; 20] = [
        "x-original-url",
        "x-rewrite-url",
        "x-override-url",
        "x-original-uri",
        "x-rewrite-uri",
        "x-override-uri",
        "x-request-uri",
        "x-original-path",
        "x-rewrite-path",
        "x-override-path",
        "x-envoy-original-path",
        "x-envoy-original-host",
        "x-original-host",
        "x-host",
        "x-host-override",
        "x-http-host-override",
        "x-original-scheme",
        "x-url-scheme",
        "x-scheme",
        "front-end-https",
    ];
    // By far the most are not even looked at.
    let may_be = match name.as_str().as_bytes() {
        [b'x', b'-' | b'_', third, ..] => matches!(third, b'e' | b'h' | b'o' | b'r' | b's' | b'u'),
        [b'f', b'r', b'o', b'n', ..] => true,
        _ => false,
    };
    may_be && is_one_of(name, &NAMES)
}

fn is_one_of(name: &HeaderName, names: &[&str]) -> bool {
    names.iter().any(|other| is_spelled(name.as_str(), other))
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

/// Whether a request can be answered from the cache at all, its head being as it is. `trusted`: it comes from a proxy that
/// is believed, and many of those tell the target in each request; then that is part of the key.
pub(crate) fn may_use_cache(request: &RequestHeader, trusted: bool) -> bool {
    // Compared in one go, as in `crate::fields`.
    !request.headers.iter().any(|(name, value)| {
        let has_body = *name == header::TRANSFER_ENCODING || *name == header::CONTENT_LENGTH && value != "0";
        // Conditions that only the origin can judge go to it (RFC 9111 §4.3.2).
        let for_origin = *name == header::IF_MATCH || *name == header::IF_UNMODIFIED_SINCE;
        // The origin does not get to see what is named there (RFC 9110 §7.6.1), by which its answer would be chosen.
        let hides = *name == header::CONNECTION && !is_of_connection_alone(value.as_bytes());
        has_body || for_origin || hides || tells_method(name) || !trusted && tells_target(name)
    })
}

pub(crate) fn is_cacheable_method(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// The bytes of a request's key.
pub(crate) fn key(cache: &CompiledCache, request: &RequestHeader, origin: &Origin<'_>) -> KeyBytes {
    let forwarded = if origin.trusted { forwarded(&request.headers) } else { SmallVec::new() };
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

/// What a proxy that is believed says about the target, by which an upstream may make links, and about the user for whom
/// it has asked. The client's address is not among it: a response that depends on that says so in `Vary`, and is not
/// stored.
fn forwarded(headers: &HeaderMap) -> ForwardedParts<'_> {
    let mut parts = ForwardedParts::new();
    for (name, value) in headers {
        let is_of_family = name.as_str().strip_prefix("x-forwarded-").is_some_and(|rest| rest != "for");
        if is_of_family || tells_target(name) {
            parts.extend([name.as_str().as_bytes(), value.as_bytes()]);
        } else if *name == header::FORWARDED {
            push_forwarded(&mut parts, value.as_bytes());
        }
    }
    parts
}

type ForwardedParts<'a> = SmallVec<[&'a [u8]; 16]>;

/// A line of `Forwarded` (RFC 7239 §4), without the clients' addresses: `host`, `proto`, `by`, and what no RFC knows.
/// Which of several proxies has said it is a part of it, since some upstreams go by one of them alone.
fn push_forwarded<'a>(parts: &mut ForwardedParts<'a>, line: &'a [u8]) {
    // No name of a field, and so none of the parts above.
    const WHOLE: &[u8] = b"forwarded:";
    const TAKEN_APART: &[u8] = b"forwarded;";
    let elements = || line.split(|byte| *byte == b',').map(|element| element.split(|byte| *byte == b';'));
    // Where a quote is left open, what seems to end the parameter stands within its value.
    let is_open = |parameter: &[u8]| parameter.iter().fold(false, |open, byte| open != (*byte == b'"'));
    if line.contains(&b'\\') || elements().flatten().any(is_open) {
        parts.extend([WHOLE, line]);
        return;
    }
    parts.push(TAKEN_APART);
    for element in elements() {
        let is_address = |parameter: &[u8]| parameter.get(..4).is_some_and(|start| start.eq_ignore_ascii_case(b"for="));
        parts.extend(element.map(<[u8]>::trim_ascii).filter(|parameter| !is_address(parameter)));
        parts.push(b",");
    }
    parts.push(b";");
}

/// What a request's target is called when it is purged.
pub(crate) fn resource(request: &RequestHeader, host: &[u8]) -> Resource {
    Resource::new(host, request.uri.path(), request.uri.query())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::HeaderValue;

    use super::*;

    fn tells_another(name: &str) -> bool {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        tells_method(&name) || tells_target(&name)
    }

    #[test]
    fn what_some_servers_take_for_another_request_is_known_however_it_is_written() {
        let names = [
            "x-http-method-override",
            "x-http-method-name",
            "x-method",
            "x-original-uri",
            "x-original-path",
            "x-envoy-original-path",
            "x-host-override",
            "x-request-uri",
            "x-url-scheme",
            "x-scheme",
            "front-end-https",
        ];
        for name in names {
            for name in [name.to_owned(), name.replace('-', "_"), name.replacen('-', "_", 1)] {
                assert!(tells_another(&name), "{name}");
            }
        }
        for name in ["x-request-id", "x-other", "x-hosted", "host", "x-", "accept", "front-end"] {
            assert!(!tells_another(name), "{name}");
        }
    }

    fn told(lines: &[(&str, &str)]) -> Vec<Vec<u8>> {
        let field = |(name, value): &(&str, &str)| {
            (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
        };
        let headers: HeaderMap = lines.iter().map(field).collect();
        forwarded(&headers).iter().map(|part| part.to_vec()).collect()
    }

    fn same(one: &str, other: &str) -> bool {
        told(&[("forwarded", one)]) == told(&[("forwarded", other)])
    }

    #[test]
    fn addresses_of_clients_are_no_part_of_what_proxies_say() {
        assert!(same("for=192.0.2.1;host=a.test", "For=\"[2001:db8::1]:80\"; host=a.test"));
        assert!(same("for=192.0.2.1, for=192.0.2.2", "for=192.0.2.3,for=192.0.2.4"));
        let told = told(&[("x-forwarded-for", "192.0.2.1"), ("x-real-ip", "192.0.2.1"), ("x-forwarded-user", "alice")]);
        assert_eq!(told, [&b"x-forwarded-user"[..], b"alice"]);
    }

    #[test]
    fn the_target_that_a_trusted_proxy_tells_is_a_part_of_the_key_and_else_none_is_believed() {
        let request = |field: &'static str| {
            let mut request = RequestHeader::build("GET", b"/", None).unwrap();
            request.insert_header(field, "x").unwrap();
            request
        };
        assert!(may_use_cache(&request("x-scheme"), true) && !may_use_cache(&request("x-scheme"), false));
        assert_eq!(told(&[("x-scheme", "https")]), [&b"x-scheme"[..], b"https"]);
        assert!(!may_use_cache(&request("x-http-method-override"), true));
    }

    #[test]
    fn all_else_that_proxies_say_tells_requests_apart() {
        for (one, other) in [
            ("for=a;host=a.test", "for=a"),
            ("host=a.test", "host=b.test"),
            ("proto=http", "Proto=https"),
            ("by=a", "by=b"),
            ("secret=a", "secret=b"),
            ("for=a;host=a.test, for=b", "for=a, for=b;host=a.test"),
            ("host=a.test;proto=https", "host=a.test, proto=https"),
            ("for=\"a;host=a.test\"", "for=\"a;host=b.test\""),
            ("for=\"a\\\";host=a.test", "for=\"a\\\";host=b.test"),
            ("for=\"a, host=a.test", "for=\"a, host=b.test"),
        ] {
            assert!(!same(one, other), "{one} {other}");
        }
        assert_ne!(told(&[("forwarded", "host=a")]), told(&[("x-forwarded-host", "a")]));
    }
}
