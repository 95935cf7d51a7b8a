//! What browsers may not do here: a page that an operator looks at can send requests to every address that the
//! operator's machine reaches, and read the answers if a name of its own leads there.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, header};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Why a request is refused, if it is. `loopback`: the interface is for this machine only, so that any other name
/// for it is one that somebody made lead here.
pub(super) fn refuse(headers: &HeaderMap, loopback: bool) -> Option<&'static str> {
    let is_own = |site: &[u8]| matches!(site, b"none" | b"same-origin");
    if headers.contains_key(header::ORIGIN)
        || headers.get_all(SEC_FETCH_SITE).iter().any(|site| !is_own(site.as_bytes()))
    {
        return Some("Pages of other sites may not ask this: call it without Origin and Sec-Fetch-Site, as curl does.");
    }
    let is_local = |host: &http::HeaderValue| host.to_str().is_ok_and(is_address_or_localhost);
    if loopback && !headers.get_all(header::HOST).iter().all(is_local) {
        return Some("Host: call this by its address or as localhost.");
    }
    None
}

fn is_address_or_localhost(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    bare.parse::<IpAddr>().is_ok() || name.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn refused(fields: &[(HeaderName, &'static str)], loopback: bool) -> bool {
        let fields = fields.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value)));
        refuse(&fields.collect(), loopback).is_some()
    }

    #[test]
    fn pages_of_other_sites_are_refused() {
        for loopback in [true, false] {
            assert!(refused(&[(header::ORIGIN, "https://evil.example")], loopback));
            assert!(refused(&[(header::ORIGIN, "null")], loopback));
            for (site, expected) in [("cross-site", true), ("same-site", true), ("same-origin", false), ("none", false)]
            {
                assert_eq!(refused(&[(SEC_FETCH_SITE, site)], loopback), expected, "{site}");
            }
        }
    }

    #[test]
    fn loopback_is_called_by_address_or_as_localhost() {
        for host in ["localhost", "LocalHost:9090", "127.0.0.1", "127.0.0.1:9090", "[::1]", "[::1]:9090", "10.0.0.7:1"]
        {
            assert!(!refused(&[(header::HOST, host)], true), "{host}");
        }
        for host in
            ["evil.example", "evil.example:9090", "localhost.evil.example", "127.0.0.1.evil.example", "", ":9090"]
        {
            assert!(refused(&[(header::HOST, host)], true), "{host}");
            assert!(!refused(&[(header::HOST, host)], false), "elsewhere it has a name: {host}");
        }
        assert!(!refused(&[], true), "a browser always says where it wants to go");
    }
}
