//! Security headers on every response.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use seiketsu_config::layers;

use crate::fields;

/// Removed unless a layer says something about them: they tell an attacker what runs behind the gateway.
const REVEALING: [&str; 4] = ["server", "x-powered-by", "x-aspnet-version", "x-aspnetmvc-version"];

/// The security headers of a route, ready to be written.
#[derive(Debug, Clone)]
pub struct SecurityHeaders {
    set: Box<[(HeaderName, HeaderValue)]>,
    remove: Box<[HeaderName]>,
    /// How long the names in `remove` are, a bit for each length.
    removed_lengths: u64,
    strict_transport_security: Option<HeaderValue>,
}

impl SecurityHeaders {
    /// An entry with a value replaces what the upstream says; one without leaves the header as the
    /// upstream sent it.
    pub fn compile(config: &layers::SecurityHeaders) -> Self {
        let (mut set, mut strict_transport_security) = (Vec::new(), None);
        for (name, setting) in config {
            let Some(value) = &setting.value else { continue };
            if *name.get() == header::STRICT_TRANSPORT_SECURITY {
                strict_transport_security = Some(value.get().clone());
            } else {
                set.push((name.get().clone(), value.get().clone()));
            }
        }
        let remove = REVEALING.map(HeaderName::from_static).into_iter();
        let remove: Box<[HeaderName]> =
            remove.filter(|revealing| !config.keys().any(|name| name.get() == revealing)).collect();
        let removed_lengths = remove.iter().fold(0, |lengths, name| lengths | length_bit(name));
        Self { set: set.into(), remove, removed_lengths, strict_transport_security }
    }

    /// Writes the headers over those of the upstream. `downstream_tls` says whether the client's
    /// connection is encrypted: `Strict-Transport-Security` must not be sent otherwise (RFC 6797 §7.2).
    pub fn apply(&self, response: &mut HeaderMap, downstream_tls: bool) {
        // Mostly there is none, which one look at each field's length tells.
        if response.keys().any(|name| self.removed_lengths & length_bit(name) != 0) {
            for name in &self.remove {
                if fields::has(response, name) {
                    response.remove(name);
                }
            }
        }
        for (name, value) in &self.set {
            response.insert(name, value.clone());
        }
        match &self.strict_transport_security {
            Some(value) if downstream_tls => {
                response.insert(header::STRICT_TRANSPORT_SECURITY, value.clone());
            }
            None if downstream_tls => {}
            _ if fields::has(response, &header::STRICT_TRANSPORT_SECURITY) => {
                response.remove(header::STRICT_TRANSPORT_SECURITY);
            }
            _ => {}
        }
    }
}

fn length_bit(name: &HeaderName) -> u64 {
    1 << (name.as_str().len() % 64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use seiketsu_config::layers::{Layer, Setting};

    use super::*;

    fn policy(entries: &[(&str, Option<&str>)]) -> SecurityHeaders {
        let setting = |value: Option<&str>| Setting { layer: Layer::Tenant, value: value.map(|v| v.parse().unwrap()) };
        SecurityHeaders::compile(
            &entries.iter().map(|(name, value)| (name.parse().unwrap(), setting(*value))).collect(),
        )
    }

    fn applied(policy: &SecurityHeaders, upstream: &[(&'static str, &str)], tls: bool) -> HeaderMap {
        let mut response = HeaderMap::new();
        for (name, value) in upstream {
            response.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        policy.apply(&mut response, tls);
        response
    }

    fn all(response: &HeaderMap, name: &str) -> Vec<String> {
        response.get_all(name).iter().map(|v| v.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn upstream_values_are_replaced() {
        let upstream = [("X-Frame-Options", "ALLOWALL"), ("X-Frame-Options", "SAMEORIGIN")];
        let response =
            applied(&policy(&[("x-frame-options", Some("DENY")), ("x-extra", Some("yes"))]), &upstream, true);
        assert_eq!(all(&response, "x-frame-options"), ["DENY"]);
        assert_eq!(all(&response, "x-extra"), ["yes"]);
    }

    #[test]
    fn an_entry_without_a_value_leaves_the_header_to_the_upstream() {
        let policy = policy(&[("content-security-policy", None)]);
        let response = applied(&policy, &[("content-security-policy", "default-src 'self'")], true);
        assert_eq!(all(&response, "content-security-policy"), ["default-src 'self'"]);
        assert!(all(&applied(&policy, &[], true), "content-security-policy").is_empty());
    }

    #[test]
    fn what_reveals_the_upstream_is_removed_unless_a_layer_says_otherwise() {
        let upstream = [("Server", "secret/1.2"), ("X-Powered-By", "PHP/4")];
        let response = applied(&policy(&[]), &upstream, true);
        assert!(all(&response, "server").is_empty() && all(&response, "x-powered-by").is_empty());
        let response = applied(&policy(&[("server", Some("api")), ("x-powered-by", None)]), &upstream, true);
        assert_eq!(
            (all(&response, "server"), all(&response, "x-powered-by")),
            (vec!["api".to_owned()], vec!["PHP/4".to_owned()])
        );
    }

    #[test]
    fn strict_transport_security_is_never_sent_in_the_clear() {
        const NAME: &str = "strict-transport-security";
        let upstream = [(NAME, "max-age=1")];
        let ours = policy(&[(NAME, Some("max-age=2"))]);
        assert_eq!(all(&applied(&ours, &upstream, true), NAME), ["max-age=2"]);
        assert!(all(&applied(&ours, &upstream, false), NAME).is_empty());
        let upstreams = policy(&[(NAME, None)]);
        assert_eq!(all(&applied(&upstreams, &upstream, true), NAME), ["max-age=1"]);
        assert!(all(&applied(&upstreams, &upstream, false), NAME).is_empty());
    }
}
