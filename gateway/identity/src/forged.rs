//! Header fields in which a client would tell upstreams who it is.
//!
//! `X-Gateway-…` speaks for the gateway. A client that sends such a field, in any spelling that some
//! upstream takes for it, is lying; it is removed before anything else happens. Servers that hand
//! headers on as variables (CGI, WSGI, Rack) do not tell `_` from `-`, so neither does this.

use http::{HeaderMap, HeaderName, header::CONNECTION};

const PREFIX: &[u8] = b"x-gateway-";

/// Whether a field of this name, in whatever case, may only come from the gateway. Also for trailers.
pub fn is_identity_header(name: &str) -> bool {
    name.len() >= PREFIX.len()
        && name.bytes().zip(PREFIX).all(|(byte, expected)| {
            let byte = if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
            byte == *expected
        })
}

/// Whether a field in lower case has this name, or may be taken for it since it says `_` for `-`.
#[inline]
pub fn is_spelled(name: &str, wanted: &str) -> bool {
    name.len() == wanted.len()
        && name.bytes().zip(wanted.bytes()).all(|(byte, wanted)| byte == wanted || byte == b'_' && wanted == b'-')
}

/// Removes fields that may be taken for one of these names since they say `_` for `-`. Those of the very name stay.
pub fn remove_twins(fields: &mut HeaderMap, names: &[HeaderName]) {
    let is_twin = |name: &HeaderName| {
        name.as_str().contains('_')
            && names.iter().any(|wanted| name != wanted && is_spelled(name.as_str(), wanted.as_str()))
    };
    // Empty, and not allocated, but for clients that are up to something.
    let twins: Vec<HeaderName> = fields.keys().filter(|name| is_twin(name)).cloned().collect();
    for name in twins {
        fields.remove(name);
    }
}

/// The names to remove from what a client sent; empty (and not allocated) for honest clients.
///
/// `Connection` is among them if it names an identity header: a proxy removes what `Connection` names
/// (RFC 9110 §7.6.1), and so would take away what the gateway itself adds.
pub fn forged_headers(headers: &HeaderMap) -> Vec<HeaderName> {
    let mut forged: Vec<HeaderName> =
        headers.keys().filter(|name| is_identity_header(name.as_str())).cloned().collect();
    let names_one = |value: &http::HeaderValue| {
        let mut options = value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        options.any(|option| std::str::from_utf8(option).is_ok_and(is_identity_header))
    };
    if headers.get_all(CONNECTION).iter().any(names_one) {
        forged.push(CONNECTION);
    }
    forged
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn honest_headers_stay() {
        let mut headers = HeaderMap::new();
        for name in ["host", "x-gateway", "x-gatewa-y", "gateway-identity", "x-forwarded-for", "ax-gateway-identity"] {
            headers.insert(HeaderName::from_static(name), "1".parse().unwrap());
        }
        headers.insert(CONNECTION, "keep-alive, upgrade".parse().unwrap());
        assert_eq!(forged_headers(&headers), Vec::<HeaderName>::new());
    }

    #[test]
    fn a_connection_header_cannot_take_the_gateways_word_away() {
        for value in ["X-Gateway-Identity", "close , x_gateway-IDENTITY", ",,x-gateway-scopes\t"] {
            let mut headers = HeaderMap::new();
            headers.append(CONNECTION, "keep-alive".parse().unwrap());
            headers.append(CONNECTION, value.parse().unwrap());
            assert_eq!(forged_headers(&headers), [CONNECTION], "{value}");
        }
    }

    #[test]
    fn twins_go_and_those_of_the_very_name_stay() {
        let names = ["x-api-key", "x-own_key", "authorization"].map(HeaderName::from_static);
        let mut headers = HeaderMap::new();
        for name in ["x-api-key", "x_api-key", "x_api_key", "x-own_key", "x_own_key", "authorization", "x_api_keys"] {
            headers.append(HeaderName::from_static(name), "1".parse().unwrap());
            headers.append(HeaderName::from_static(name), "2".parse().unwrap());
        }
        remove_twins(&mut headers, &names);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["authorization", "x-api-key", "x-own_key", "x_api_keys"]);
    }

    /// Any spelling of an identity header: case and `_` vary byte by byte.
    fn spelling() -> impl Strategy<Value = String> {
        ("[a-z0-9_-]{0,12}", prop::collection::vec(any::<(bool, bool)>(), 30)).prop_map(|(tail, how)| {
            format!("x-gateway-{tail}")
                .chars()
                .zip(how)
                .map(|(c, (upper, underscore))| match c {
                    '-' if underscore => '_',
                    c if upper => c.to_ascii_uppercase(),
                    c => c,
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn no_spelling_of_an_identity_header_passes(
            spellings in prop::collection::vec(spelling(), 1..5),
            others in prop::collection::vec("[a-w][a-z0-9-]{0,12}", 0..5),
        ) {
            let mut headers = HeaderMap::new();
            for name in spellings.iter().chain(&others) {
                // Twice: repeated fields go as well.
                headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), "a".parse().unwrap());
                headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), "b".parse().unwrap());
            }
            for name in forged_headers(&headers) {
                headers.remove(name);
            }
            for name in &spellings {
                prop_assert!(is_identity_header(name));
                prop_assert!(!headers.contains_key(name.as_str()));
            }
            for name in &others {
                prop_assert!(headers.contains_key(name.as_str()));
            }
        }

        #[test]
        fn a_name_counts_if_and_only_if_it_begins_like_one(name in "\\PC{0,20}") {
            let plain = name.to_ascii_lowercase().replace('_', "-");
            prop_assert_eq!(is_identity_header(&name), plain.starts_with("x-gateway-"));
        }
    }
}
