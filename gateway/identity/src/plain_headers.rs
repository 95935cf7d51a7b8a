//! The caller in plain header fields, for upstreams that cannot verify a JWT and trust the network
//! between the gateway and themselves: `X-Gateway-Consumer`, `X-Gateway-Scopes`, `X-Gateway-Roles`.
//!
//! Scopes and roles are separated by one space. In each name, `%` and whatever is not a visible ASCII
//! character is percent-encoded (RFC 3986 §2.1), so that a role called `a b` is not two.

use http::{HeaderName, HeaderValue};

use crate::principal::{NameSet, Principal};

/// [`Principal::id`]: the consumer's name, or a JWT's issuer and subject, so that no subject passes for a
/// consumer. Absent for anonymous callers.
pub const CONSUMER_HEADER: HeaderName = HeaderName::from_static("x-gateway-consumer");
pub const SCOPES_HEADER: HeaderName = HeaderName::from_static("x-gateway-scopes");
pub const ROLES_HEADER: HeaderName = HeaderName::from_static("x-gateway-roles");

/// The fields that tell an upstream about the caller. What is empty is left out.
pub fn plain_headers(principal: &Principal) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    let joined = |names: &NameSet| names.iter().map(encoded).collect::<Vec<_>>().join(" ");
    let values = [
        (CONSUMER_HEADER, encoded(principal.id())),
        (SCOPES_HEADER, joined(principal.scopes())),
        (ROLES_HEADER, joined(principal.roles())),
    ];
    let filled = values.into_iter().filter(|(_, text)| !text.is_empty());
    // What is encoded is visible ASCII, so no value is lost here.
    filled.filter_map(|(name, text)| Some((name, HeaderValue::try_from(text).ok()?)))
}

fn encoded(name: &str) -> String {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_graphic() && byte != b'%' {
            text.push(char::from(byte));
        } else {
            let digits = [byte >> 4, byte & 15].map(|digit| char::from(DIGITS[usize::from(digit)]));
            text.extend(['%', digits[0], digits[1]]);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn headers(subject: &str, scopes: &[String], roles: &[String]) -> Vec<(String, String)> {
        let set = |names: &[String]| names.iter().map(String::as_str).collect();
        let principal =
            Principal::jwt("acme".parse().unwrap(), "https://i".into(), subject, set(scopes), set(roles), 1);
        let text = |(name, value): (HeaderName, HeaderValue)| (name.to_string(), value.to_str().unwrap().to_owned());
        plain_headers(&principal).map(text).collect()
    }

    #[test]
    fn a_role_with_a_space_is_one_role() {
        let fields = headers("Jörg", &["read".into()], &["user".into(), "not admin".into()]);
        let expected = [
            ("x-gateway-consumer", "https://i%20J%C3%B6rg"),
            ("x-gateway-scopes", "read"),
            ("x-gateway-roles", "not%20admin user"),
        ];
        assert_eq!(fields, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn an_anonymous_caller_is_not_told_about() {
        let anonymous = Principal::anonymous("acme".parse().unwrap());
        assert_eq!(plain_headers(&anonymous).count(), 0);
    }

    proptest! {
        #[test]
        fn as_many_names_come_out_as_go_in(roles in prop::collection::btree_set("\\PC{1,8}", 0..5)) {
            let roles: Vec<_> = roles.into_iter().collect();
            let fields = headers("s", &[], &roles);
            let value = fields.iter().find(|(name, _)| name == "x-gateway-roles").map_or("", |(_, value)| value);
            prop_assert_eq!(value.split_terminator(' ').count(), roles.len());
        }
    }
}
