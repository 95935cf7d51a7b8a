//! Security headers on every response.

use std::collections::BTreeMap;

use http::{HeaderName, HeaderValue, header};
use pingora::http::ResponseHeader;
use seiketsu_config::values;

/// Set when no layer says otherwise. They fit an API, whose answers are data and not documents: the
/// strictest values, so that replacing an upstream's own never weakens it.
const DEFAULTS: [(&str, &str); 8] = [
    ("strict-transport-security", "max-age=31536000"),
    ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-site"),
];

/// Removed when no layer says otherwise: they tell an attacker what runs behind the gateway.
const REMOVED: [&str; 4] = ["server", "x-powered-by", "x-aspnet-version", "x-aspnetmvc-version"];

/// The headers of one layer of configuration.
pub type Layer = BTreeMap<values::HeaderName, Option<values::HeaderValue>>;

/// The security headers of a route, merged and ready to be written.
#[derive(Debug, Clone)]
pub struct SecurityHeaders {
    set: Box<[(HeaderName, HeaderValue)]>,
    remove: Box<[HeaderName]>,
    strict_transport_security: Option<HeaderValue>,
}

impl SecurityHeaders {
    /// Merges the layers, from the least to the most specific, entry by entry over the defaults.
    /// A value replaces what a layer below says; `null` leaves the header as the upstream sent it.
    pub fn compile<'a>(layers: impl IntoIterator<Item = &'a Layer>) -> Self {
        let mut set: BTreeMap<&str, (HeaderName, HeaderValue)> = DEFAULTS
            .into_iter()
            .map(|(name, value)| (name, (HeaderName::from_static(name), HeaderValue::from_static(value))))
            .collect();
        let mut remove: Vec<HeaderName> = REMOVED.into_iter().map(HeaderName::from_static).collect();
        for (name, value) in layers.into_iter().flatten() {
            let name = name.get();
            remove.retain(|removed| removed != name);
            match value {
                Some(value) => set.insert(name.as_str(), (name.clone(), value.get().clone())),
                None => set.remove(name.as_str()),
            };
        }
        let strict_transport_security = set.remove(header::STRICT_TRANSPORT_SECURITY.as_str()).map(|(_, value)| value);
        Self { set: set.into_values().collect(), remove: remove.into(), strict_transport_security }
    }

    /// Writes the headers over those of the upstream. `downstream_tls` says whether the client's
    /// connection is encrypted: `Strict-Transport-Security` must not be sent otherwise (RFC 6797 §7.2).
    pub fn apply(&self, response: &mut ResponseHeader, downstream_tls: bool) {
        for name in &self.remove {
            response.remove_header(name);
        }
        for (name, value) in &self.set {
            // Inserting a checked name and value does not fail.
            let _ = response.insert_header(name, value.clone());
        }
        match &self.strict_transport_security {
            Some(value) if downstream_tls => {
                let _ = response.insert_header(header::STRICT_TRANSPORT_SECURITY, value.clone());
            }
            None if downstream_tls => {}
            _ => {
                response.remove_header(&header::STRICT_TRANSPORT_SECURITY);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn layer(entries: &[(&str, Option<&str>)]) -> Layer {
        entries.iter().map(|(name, value)| (name.parse().unwrap(), value.map(|v| v.parse().unwrap()))).collect()
    }

    fn upstream_response(headers: &[(&'static str, &str)]) -> ResponseHeader {
        let mut response = ResponseHeader::build(200, None).unwrap();
        for (name, value) in headers {
            response.append_header(*name, *value).unwrap();
        }
        response
    }

    fn all(response: &ResponseHeader, name: &str) -> Vec<String> {
        response.headers.get_all(name).iter().map(|v| v.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn the_defaults_are_set_and_upstream_values_replaced() {
        let mut response = upstream_response(&[
            ("X-Frame-Options", "ALLOWALL"),
            ("X-Frame-Options", "SAMEORIGIN"),
            ("Server", "secret/1.2"),
            ("X-Powered-By", "PHP/4"),
        ]);
        SecurityHeaders::compile([]).apply(&mut response, true);
        assert_eq!(all(&response, "x-frame-options"), ["DENY"]);
        assert_eq!(all(&response, "x-content-type-options"), ["nosniff"]);
        assert_eq!(all(&response, "strict-transport-security"), ["max-age=31536000"]);
        assert!(all(&response, "server").is_empty());
        assert!(all(&response, "x-powered-by").is_empty());
    }

    #[test]
    fn strict_transport_security_is_never_sent_in_the_clear() {
        let policy = SecurityHeaders::compile([]);
        let mut response = upstream_response(&[("strict-transport-security", "max-age=1")]);
        policy.apply(&mut response, false);
        assert!(all(&response, "strict-transport-security").is_empty());

        let left_to_upstream = layer(&[("strict-transport-security", None)]);
        let policy = SecurityHeaders::compile([&left_to_upstream]);
        let mut response = upstream_response(&[("strict-transport-security", "max-age=1")]);
        policy.apply(&mut response, false);
        assert!(all(&response, "strict-transport-security").is_empty());
        let mut response = upstream_response(&[("strict-transport-security", "max-age=1")]);
        policy.apply(&mut response, true);
        assert_eq!(all(&response, "strict-transport-security"), ["max-age=1"]);
    }

    #[test]
    fn the_most_specific_layer_wins_entry_by_entry() {
        let tenant = layer(&[("Referrer-Policy", Some("origin")), ("Content-Security-Policy", None), ("Server", None)]);
        let route = layer(&[("content-security-policy", Some("default-src 'self'")), ("X-Extra", Some("yes"))]);
        let mut response =
            upstream_response(&[("content-security-policy", "default-src *"), ("server", "known to all")]);
        SecurityHeaders::compile([&tenant, &route]).apply(&mut response, true);
        assert_eq!(all(&response, "referrer-policy"), ["origin"]);
        assert_eq!(all(&response, "content-security-policy"), ["default-src 'self'"]);
        assert_eq!(all(&response, "x-extra"), ["yes"]);
        assert_eq!(all(&response, "server"), ["known to all"]);
    }

    #[test]
    fn null_leaves_the_header_to_the_upstream() {
        let own = layer(&[("content-security-policy", None)]);
        let policy = SecurityHeaders::compile([&own]);
        let mut response = upstream_response(&[("content-security-policy", "default-src 'self'")]);
        policy.apply(&mut response, true);
        assert_eq!(all(&response, "content-security-policy"), ["default-src 'self'"]);
        let mut response = upstream_response(&[]);
        policy.apply(&mut response, true);
        assert!(all(&response, "content-security-policy").is_empty());
    }
}
