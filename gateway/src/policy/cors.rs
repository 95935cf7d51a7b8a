//! Cross-origin resource sharing (the Fetch standard, §3.2).

use http::{
    HeaderMap, HeaderName, HeaderValue, Method,
    header::{
        ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
        ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
        ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
    },
};
use pingora_http::RequestHeader;
use seiketsu_config::policy;

use super::{Refusal, vary};
use crate::respond::problem::ProblemKind;

const VARY_PREFLIGHT: &str = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers";
/// Names in one `Access-Control-Request-Headers` that are echoed at most, and their bytes.
const MAX_ECHOED_HEADERS: usize = 64;
const MAX_ECHOED_BYTES: usize = 2048;

/// Why a CORS policy is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CorsError {
    #[error(
        "origin {0:?} is not one: write a scheme and a host as in https://app.example.com or https://app.example.com:8443, without path or trailing slash; https://*.example.com for one or more labels; null; or * for any"
    )]
    InvalidOrigin(String),
    #[error("the origin * cannot go with credentials: any site could act as the user; list the origins that may")]
    WildcardWithCredentials,
    #[error("* is not taken in `request_headers`: leave the list empty to allow those that a preflight asks for")]
    WildcardRequestHeader,
    #[error("* in `expose_headers` has no effect together with credentials: list the headers")]
    WildcardExposeWithCredentials,
}

/// A CORS policy with its response headers ready.
#[derive(Debug, Clone)]
pub struct CorsPolicy {
    any_origin: bool,
    origins: OriginSet,
    methods: Box<[Method]>,
    /// Lower case, sorted. Empty: those that the preflight asks for.
    request_headers: Box<[Box<str>]>,
    allow_methods: HeaderValue,
    allow_headers: Option<HeaderValue>,
    expose_headers: Option<HeaderValue>,
    max_age: HeaderValue,
    credentials: bool,
}

/// What to do with a request that may be a CORS preflight.
#[derive(Debug, Clone, PartialEq)]
pub enum Preflight {
    /// It is none: go on.
    No,
    /// Answer 204 with these headers.
    Allowed(Vec<(HeaderName, HeaderValue)>),
    /// Answer with this refusal. It has no `Access-Control` header, which makes the browser refuse.
    Refused(Refusal),
}

impl CorsPolicy {
    /// `None` when the policy is switched off: preflights then go upstream and no header is touched.
    pub fn compile(config: &policy::Cors) -> Result<Option<Self>, CorsError> {
        if !config.enabled {
            return Ok(None);
        }
        let any_origin = config.origins.iter().any(|origin| origin == "*");
        if any_origin && config.credentials {
            return Err(CorsError::WildcardWithCredentials);
        }
        if config.request_headers.iter().any(|name| name.get().as_str() == "*") {
            return Err(CorsError::WildcardRequestHeader);
        }
        if config.credentials && config.expose_headers.iter().any(|name| name.get().as_str() == "*") {
            return Err(CorsError::WildcardExposeWithCredentials);
        }
        let mut request_headers: Vec<Box<str>> =
            config.request_headers.iter().map(|name| name.get().as_str().into()).collect();
        request_headers.sort_unstable();
        let names = |list: &[seiketsu_config::values::HeaderName]| {
            (!list.is_empty()).then(|| joined(list.iter().map(|name| name.get().as_str())))
        };
        Ok(Some(Self {
            any_origin,
            origins: OriginSet::compile(config.origins.iter().filter(|origin| *origin != "*"))?,
            methods: config.methods.iter().map(|method| method.get().clone()).collect(),
            allow_methods: joined(config.methods.iter().map(|method| method.get().as_str())),
            allow_headers: names(&config.request_headers),
            expose_headers: names(&config.expose_headers),
            request_headers: request_headers.into(),
            max_age: HeaderValue::from(config.max_age.get().as_secs()),
            credentials: config.credentials,
        }))
    }

    /// Decides on a preflight: an `OPTIONS` request with `Origin` and `Access-Control-Request-Method`.
    pub fn preflight(&self, request: &RequestHeader) -> Preflight {
        if request.method != Method::OPTIONS {
            return Preflight::No;
        }
        let (Some(origin), Some(method)) =
            (request.headers.get(ORIGIN), request.headers.get(ACCESS_CONTROL_REQUEST_METHOD))
        else {
            return Preflight::No;
        };
        match self.answer(request, origin, method) {
            Ok(headers) => Preflight::Allowed(headers),
            Err(detail) => Preflight::Refused(
                Refusal::new(ProblemKind::Forbidden, detail)
                    .with_header(VARY, HeaderValue::from_static(VARY_PREFLIGHT)),
            ),
        }
    }

    fn answer(
        &self,
        request: &RequestHeader,
        origin: &HeaderValue,
        method: &HeaderValue,
    ) -> Result<Vec<(HeaderName, HeaderValue)>, &'static str> {
        let is_single = |name: &HeaderName| request.headers.get_all(name).iter().nth(1).is_none();
        if !is_single(&ORIGIN) || !is_single(&ACCESS_CONTROL_REQUEST_METHOD) {
            return Err("Origin and Access-Control-Request-Method must be present once.");
        }
        let allow_origin = self.allow_origin(origin).ok_or("Scripts of this origin may not call this API.")?;
        if !self.methods.iter().any(|allowed| allowed.as_str().as_bytes() == method.as_bytes()) {
            return Err("Scripts may not use this method here.");
        }
        let mut headers = vec![
            (VARY, HeaderValue::from_static(VARY_PREFLIGHT)),
            (ACCESS_CONTROL_ALLOW_ORIGIN, allow_origin),
            (ACCESS_CONTROL_ALLOW_METHODS, self.allow_methods.clone()),
            (ACCESS_CONTROL_MAX_AGE, self.max_age.clone()),
        ];
        if self.credentials {
            headers.push((ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true")));
        }
        if let Some(allow_headers) = self.allow_headers_for(request)? {
            headers.push((ACCESS_CONTROL_ALLOW_HEADERS, allow_headers));
        }
        Ok(headers)
    }

    fn allow_headers_for(&self, request: &RequestHeader) -> Result<Option<HeaderValue>, &'static str> {
        let mut asked: Vec<String> = Vec::new();
        let mut bytes = 0;
        for line in request.headers.get_all(ACCESS_CONTROL_REQUEST_HEADERS) {
            for name in line.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|n| !n.is_empty()) {
                bytes += name.len();
                if asked.len() == MAX_ECHOED_HEADERS || bytes > MAX_ECHOED_BYTES {
                    return Err("Access-Control-Request-Headers is too long.");
                }
                // Only what is a header name is compared or echoed, in lower case.
                let name = HeaderName::from_bytes(name)
                    .map_err(|_| "Access-Control-Request-Headers must be a list of header names.")?;
                asked.push(name.as_str().to_owned());
            }
        }
        if self.request_headers.is_empty() {
            return Ok((!asked.is_empty()).then(|| joined(asked.iter().map(String::as_str))));
        }
        let listed = |name: &String| self.request_headers.binary_search_by(|have| (**have).cmp(name)).is_ok();
        if asked.iter().all(listed) {
            Ok(self.allow_headers.clone())
        } else {
            Err("Scripts may not send one of these headers.")
        }
    }

    /// Takes away what the upstream says about CORS: with a policy of its own, the gateway decides.
    pub fn remove_foreign(&self, response: &mut HeaderMap) {
        // Most upstreams say nothing: one look at the names costs less than seven lookups.
        if !response.keys().any(|name| name.as_str().starts_with("access-control-")) {
            return;
        }
        for name in [
            ACCESS_CONTROL_ALLOW_ORIGIN,
            ACCESS_CONTROL_ALLOW_CREDENTIALS,
            ACCESS_CONTROL_ALLOW_METHODS,
            ACCESS_CONTROL_ALLOW_HEADERS,
            ACCESS_CONTROL_EXPOSE_HEADERS,
            ACCESS_CONTROL_MAX_AGE,
        ] {
            response.remove(name);
        }
        response.remove("access-control-allow-private-network");
    }

    /// Writes the CORS headers that every response carries; those of a preflight's answer stay. `origin`
    /// is the request's `Origin` header.
    pub fn apply(&self, origin: Option<&HeaderValue>, response: &mut HeaderMap) {
        if !self.any_origin {
            // Also where no header is added: a cache must not serve that answer to a listed origin.
            vary::add(response, &["Origin"]);
        }
        let allow_origin = if self.any_origin {
            Some(HeaderValue::from_static("*"))
        } else {
            origin.and_then(|origin| self.allow_origin(origin))
        };
        let Some(allow_origin) = allow_origin else { return };
        response.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allow_origin);
        if self.credentials {
            response.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        if let Some(names) = &self.expose_headers {
            response.insert(ACCESS_CONTROL_EXPOSE_HEADERS, names.clone());
        }
    }

    /// The value of `Access-Control-Allow-Origin`. A listed origin is given back as it came, since the
    /// browser compares byte by byte.
    fn allow_origin(&self, origin: &HeaderValue) -> Option<HeaderValue> {
        if self.any_origin {
            Some(HeaderValue::from_static("*"))
        } else {
            self.origins.contains(origin.as_bytes()).then(|| origin.clone())
        }
    }
}

fn joined<'a>(items: impl Iterator<Item = &'a str>) -> HeaderValue {
    // Methods and header names are tokens, so the list is always a header value.
    HeaderValue::try_from(items.collect::<Vec<_>>().join(", ")).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Listed origins. Everything is kept in lower case and compared ASCII case-insensitively.
#[derive(Debug, Clone)]
struct OriginSet {
    /// Sorted.
    exact: Box<[Box<[u8]>]>,
    patterns: Box<[OriginPattern]>,
}

/// `https://*.example.com:8443` as `https://` and `.example.com:8443`.
#[derive(Debug, Clone)]
struct OriginPattern {
    before: Box<[u8]>,
    after: Box<[u8]>,
}

impl OriginSet {
    fn compile<'a>(origins: impl Iterator<Item = &'a String>) -> Result<Self, CorsError> {
        let (mut exact, mut patterns) = (Vec::new(), Vec::new());
        for origin in origins {
            let normal = normalised(origin).ok_or_else(|| CorsError::InvalidOrigin(origin.clone()))?;
            match normal.split_once('*') {
                None => exact.push(normal.into_bytes().into()),
                Some((before, after)) => {
                    patterns.push(OriginPattern { before: before.as_bytes().into(), after: after.as_bytes().into() });
                }
            }
        }
        exact.sort_unstable();
        exact.dedup();
        Ok(Self { exact: exact.into(), patterns: patterns.into() })
    }

    fn contains(&self, origin: &[u8]) -> bool {
        let in_lower_case = || origin.iter().map(u8::to_ascii_lowercase);
        self.exact.binary_search_by(|listed| listed.iter().copied().cmp(in_lower_case())).is_ok()
            || self.patterns.iter().any(|pattern| pattern.matches(origin))
    }
}

impl OriginPattern {
    fn matches(&self, origin: &[u8]) -> bool {
        let Some(length) = origin.len().checked_sub(self.before.len() + self.after.len()) else { return false };
        let (before, rest) = origin.split_at(self.before.len());
        let (star, after) = rest.split_at(length);
        before.eq_ignore_ascii_case(&self.before)
            && after.eq_ignore_ascii_case(&self.after)
            && star.split(|b| *b == b'.').all(is_label)
    }
}

fn is_label(label: &[u8]) -> bool {
    !label.is_empty() && label.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

/// An origin as browsers serialise it (RFC 6454 §6.2): lower case, without the scheme's own port. A
/// star may be the host's whole first label. `None` if it is no origin.
fn normalised(origin: &str) -> Option<String> {
    let lower = origin.to_ascii_lowercase();
    if lower == "null" {
        return Some(lower);
    }
    let (scheme, authority) = lower.split_once("://")?;
    let scheme_ok = scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let name = host.strip_prefix("*.").unwrap_or(host);
    let ipv6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host_ok = match ipv6 {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => name.split('.').all(|label| is_label(label.as_bytes())),
    };
    if !scheme_ok || !host_ok {
        return None;
    }
    match port {
        None => Some(lower),
        Some(port) => {
            let number: u16 = port.parse().ok().filter(|_| port.bytes().all(|b| b.is_ascii_digit()))?;
            match (scheme, number) {
                ("https", 443) | ("http", 80) => Some(format!("{scheme}://{host}")),
                _ => Some(format!("{scheme}://{host}:{number}")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn compile(value: serde_json::Value) -> Result<CorsPolicy, CorsError> {
        CorsPolicy::compile(&serde_json::from_value(value).unwrap()).map(Option::unwrap)
    }

    fn policy(origins: &[&str]) -> CorsPolicy {
        compile(json!({ "origins": origins })).unwrap()
    }

    fn allows(origins: &[&str], origin: &str) -> bool {
        policy(origins).allow_origin(&origin.parse().unwrap()).is_some()
    }

    fn preflight_request(fields: &[(&'static str, &str)]) -> RequestHeader {
        let mut request = RequestHeader::build("OPTIONS", b"/", None).unwrap();
        for (name, value) in fields {
            request.append_header(*name, *value).unwrap();
        }
        request
    }

    fn answer(policy: &CorsPolicy, fields: &[(&'static str, &str)]) -> Vec<(String, String)> {
        match policy.preflight(&preflight_request(fields)) {
            Preflight::Allowed(headers) => {
                headers.iter().map(|(n, v)| (n.to_string(), v.to_str().unwrap().to_owned())).collect()
            }
            other => panic!("not allowed: {other:?}"),
        }
    }

    fn is_refused(policy: &CorsPolicy, fields: &[(&'static str, &str)]) -> bool {
        match policy.preflight(&preflight_request(fields)) {
            Preflight::Refused(refusal) => {
                assert_eq!(refusal.status(), 403);
                assert!(refusal.headers.iter().all(|(name, _)| !name.as_str().starts_with("access-control")));
                true
            }
            Preflight::Allowed(_) => false,
            Preflight::No => panic!("not a preflight"),
        }
    }

    fn applied(policy: &CorsPolicy, origin: Option<&str>, upstream: &[(&'static str, &str)]) -> HeaderMap {
        let mut response = HeaderMap::new();
        for (name, value) in upstream {
            response.append(*name, value.parse().unwrap());
        }
        policy.remove_foreign(&mut response);
        policy.apply(origin.map(|origin| origin.parse().unwrap()).as_ref(), &mut response);
        response
    }

    fn field<'a>(response: &'a HeaderMap, name: &str) -> Option<&'a str> {
        response.get(name).map(|value| value.to_str().unwrap())
    }

    #[test]
    fn exact_origins_match_whole_and_without_regard_to_case() {
        let listed = &["https://app.example.com", "http://localhost:3000"];
        assert!(allows(listed, "https://app.example.com"));
        assert!(allows(listed, "HTTPS://APP.example.COM"));
        assert!(allows(listed, "http://localhost:3000"));
        for other in [
            "http://app.example.com",
            "https://app.example.com:8443",
            "https://app.example.com.evil.com",
            "https://evil-app.example.com",
            "https://app.example.com/",
            "https://app.example.co",
            "http://localhost",
            "null",
            "",
        ] {
            assert!(!allows(listed, other), "{other}");
        }
    }

    #[test]
    fn a_star_stands_for_one_or_more_labels_and_nothing_else() {
        let listed = &["https://*.example.com"];
        assert!(allows(listed, "https://a.example.com"));
        assert!(allows(listed, "https://a.b-c.example.com"));
        assert!(allows(listed, "https://A.EXAMPLE.com"));
        for other in [
            "https://example.com",
            "https://.example.com",
            "https://a..example.com",
            "http://a.example.com",
            "https://a.example.com:8443",
            "https://evilexample.com",
            "https://evil.com/.example.com",
            "https://evil.com#.example.com",
            "https://evil.com?x.example.com",
            "https://evil.com:443.example.com",
            "https://user@evil.com\\.example.com",
            "https://a.example.com.evil.com",
        ] {
            assert!(!allows(listed, other), "{other}");
        }
        assert!(allows(&["https://*.example.com:8443"], "https://a.example.com:8443"));
        assert!(!allows(&["https://*.example.com:8443"], "https://a.example.com"));
    }

    #[test]
    fn the_null_origin_is_allowed_only_if_listed() {
        assert!(!allows(&["https://app.example.com", "https://*.example.com"], "null"));
        assert!(allows(&["null"], "null"));
    }

    #[test]
    fn the_default_port_is_left_out_as_browsers_do() {
        assert!(allows(&["https://app.example.com:443"], "https://app.example.com"));
        assert!(allows(&["http://app.example.com:80"], "http://app.example.com"));
        assert!(allows(&["https://[::1]:8443"], "https://[::1]:8443"));
    }

    #[test]
    fn what_is_no_origin_is_refused_with_the_fix() {
        for wrong in [
            "app.example.com",
            "https://app.example.com/",
            "https://app.example.com/path",
            "https://user@app.example.com",
            "https://*",
            "https://*example.com",
            "https://a.*.example.com",
            "https://app.example.com:",
            "https://app.example.com:99999",
            "https://app.example.com:+443",
            "*://app.example.com",
            "https://",
            "https://a b",
            "",
        ] {
            let error = compile(json!({ "origins": [wrong] })).unwrap_err();
            assert_eq!(error, CorsError::InvalidOrigin(wrong.to_owned()));
        }
    }

    #[test]
    fn a_wildcard_origin_never_goes_with_credentials() {
        let error = compile(json!({ "origins": ["https://a.example", "*"], "credentials": true })).unwrap_err();
        assert_eq!(error, CorsError::WildcardWithCredentials);
        let response = applied(&policy(&["*"]), Some("https://evil.example"), &[]);
        assert_eq!(field(&response, "access-control-allow-origin"), Some("*"));
        assert_eq!(field(&response, "access-control-allow-credentials"), None);
    }

    #[test]
    fn a_disabled_policy_compiles_to_none() {
        let config = serde_json::from_value(json!({ "enabled": false, "origins": ["*"] })).unwrap();
        assert!(CorsPolicy::compile(&config).unwrap().is_none());
    }

    #[test]
    fn only_options_with_origin_and_method_is_a_preflight() {
        let policy = policy(&["*"]);
        assert_eq!(policy.preflight(&preflight_request(&[("origin", "https://a.example")])), Preflight::No);
        assert_eq!(policy.preflight(&preflight_request(&[("access-control-request-method", "GET")])), Preflight::No);
        let mut get = preflight_request(&[("origin", "https://a.example"), ("access-control-request-method", "GET")]);
        get.set_method(Method::GET);
        assert_eq!(policy.preflight(&get), Preflight::No);
    }

    #[test]
    fn a_preflight_is_answered_with_what_is_listed() {
        let policy = compile(json!({
            "origins": ["https://app.example.com"], "methods": ["GET", "PUT"], "credentials": true,
            "request_headers": ["X-Trace", "Authorization"], "max_age": "1h",
        }))
        .unwrap();
        let headers = answer(
            &policy,
            &[
                ("origin", "https://app.example.com"),
                ("access-control-request-method", "PUT"),
                ("access-control-request-headers", "authorization,X-TRACE"),
            ],
        );
        let expected = [
            ("vary", VARY_PREFLIGHT),
            ("access-control-allow-origin", "https://app.example.com"),
            ("access-control-allow-methods", "GET, PUT"),
            ("access-control-max-age", "3600"),
            ("access-control-allow-credentials", "true"),
            ("access-control-allow-headers", "x-trace, authorization"),
        ];
        assert_eq!(headers, expected.map(|(n, v)| (n.to_owned(), v.to_owned())));
    }

    #[test]
    fn a_preflight_for_what_is_not_listed_is_refused() {
        let policy = compile(
            json!({ "origins": ["https://app.example.com"], "methods": ["GET"], "request_headers": ["x-trace"] }),
        )
        .unwrap();
        let origin = ("origin", "https://app.example.com");
        let get = ("access-control-request-method", "GET");
        assert!(!is_refused(&policy, &[origin, get]));
        assert!(is_refused(&policy, &[("origin", "https://evil.example"), get]));
        assert!(is_refused(&policy, &[origin, ("access-control-request-method", "DELETE")]));
        assert!(is_refused(&policy, &[origin, ("access-control-request-method", "get")]));
        assert!(is_refused(&policy, &[origin, get, ("access-control-request-headers", "x-trace, x-other")]));
        assert!(is_refused(&policy, &[origin, get, ("origin", "https://app.example.com")]));
    }

    #[test]
    fn asked_headers_are_echoed_only_if_they_are_header_names() {
        let policy = policy(&["https://a.example"]);
        let ask = |names: &str| {
            let fields = [
                ("origin", "https://a.example"),
                ("access-control-request-method", "GET"),
                ("access-control-request-headers", names),
            ];
            policy.preflight(&preflight_request(&fields))
        };
        let Preflight::Allowed(headers) = ask(" X-One ,, x-two") else { panic!("refused") };
        let echoed = headers.iter().find(|(name, _)| *name == ACCESS_CONTROL_ALLOW_HEADERS).unwrap();
        assert_eq!(echoed.1, "x-one, x-two");
        assert!(matches!(ask("x one"), Preflight::Refused(_)));
        assert!(matches!(ask("x-a;drop"), Preflight::Refused(_)));
        assert!(matches!(ask(&"a,".repeat(65)), Preflight::Refused(_)));
        assert!(matches!(ask(&"a".repeat(3000)), Preflight::Refused(_)));
    }

    #[test]
    fn upstream_cors_headers_are_replaced() {
        let policy =
            compile(json!({ "origins": ["https://a.example"], "expose_headers": ["X-Total", "X-Page"] })).unwrap();
        let upstream = [
            ("Access-Control-Allow-Origin", "*"),
            ("Access-Control-Allow-Origin", "https://evil.example"),
            ("Access-Control-Allow-Credentials", "true"),
            ("Access-Control-Allow-Private-Network", "true"),
            ("Access-Control-Expose-Headers", "set-cookie"),
        ];
        let response = applied(&policy, Some("https://a.example"), &upstream);
        assert_eq!(response.get_all("access-control-allow-origin").iter().count(), 1);
        assert_eq!(field(&response, "access-control-allow-origin"), Some("https://a.example"));
        assert_eq!(field(&response, "access-control-allow-credentials"), None);
        assert_eq!(field(&response, "access-control-allow-private-network"), None);
        assert_eq!(field(&response, "access-control-expose-headers"), Some("x-total, x-page"));

        let response = applied(&policy, Some("https://evil.example"), &upstream);
        assert!(response.keys().all(|name| !name.as_str().starts_with("access-control")));
    }

    #[test]
    fn answers_that_depend_on_the_origin_say_so_to_caches_even_without_one() {
        let listed = policy(&["https://a.example"]);
        for origin in [None, Some("https://a.example"), Some("https://evil.example")] {
            assert_eq!(field(&applied(&listed, origin, &[]), "vary"), Some("Origin"));
            let merged = applied(&listed, origin, &[("vary", "Accept-Encoding, origin")]);
            assert_eq!(field(&merged, "vary"), Some("Accept-Encoding, origin"));
        }
        assert_eq!(field(&applied(&policy(&["*"]), None, &[]), "vary"), None);
    }

    proptest! {
        #[test]
        fn no_origin_outside_the_pattern_is_allowed(origin in "(https?://)?[a-z./:@#*-]{0,12}(\\.example\\.com)?[./:a-z0-9]{0,5}") {
            let allowed = allows(&["https://*.example.com"], &origin);
            let expected = url::Url::parse(&origin).is_ok_and(|url| {
                url.scheme() == "https"
                    && url.host_str().is_some_and(|host| {
                        host.strip_suffix(".example.com").is_some_and(|sub| sub.split('.').all(|l| is_label(l.as_bytes())))
                    })
                    && url.port().is_none()
                    && origin == format!("https://{}", url.host_str().unwrap_or_default())
            });
            // Never more than the URL standard agrees to; a few names that it refuses (a label of
            // `xn--` rubbish) may differ the other way, and those cannot be a browser's origin.
            prop_assert!(!expected || allowed);
            if allowed {
                prop_assert!(origin.starts_with("https://") && origin.ends_with(".example.com"));
                prop_assert!(!origin["https://".len()..].contains(['/', ':', '@', '#', '*']));
            }
        }

        #[test]
        fn any_request_headers_are_answered_without_a_panic(names in "\\PC{0,80}") {
            let mut request = preflight_request(&[("origin", "https://a.example"), ("access-control-request-method", "GET")]);
            if request.append_header("access-control-request-headers", names.as_str()).is_ok()
                && let Preflight::Allowed(headers) = policy(&["https://a.example"]).preflight(&request)
            {
                for (_, value) in headers {
                    prop_assert!(value.to_str().is_ok_and(|text| text.bytes().all(|b| (b' '..=b'~').contains(&b))));
                }
            }
        }
    }
}
