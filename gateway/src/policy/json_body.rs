//! Whether a body that is looked at as JSON is read as the same JSON by the upstream, as far as its head says.
//!
//! JSON is UTF-8 (RFC 8259 §8.1), so nothing else was looked at. What names another charset or a coding, or may be
//! understood in two ways, would show the upstream another body than the one that was looked at.

use http::{HeaderMap, header::CONTENT_TYPE};

use super::compression;

/// Whether a `Content-Type` is that of JSON: `application/json`, its older name `text/json`, or a type with the suffix
/// `+json` (RFC 6839 §3.1).
pub fn is_json(content_type: &[u8]) -> bool {
    let media_type = content_type.split(|b| *b == b';').next().unwrap_or_default().trim_ascii().to_ascii_lowercase();
    matches!(&*media_type, b"application/json" | b"text/json") || media_type.ends_with(b"+json")
}

/// Says nothing about which types are JSON; that there is exactly one, in UTF-8 and without a coding.
pub fn is_unambiguous(headers: &HeaderMap) -> bool {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let (Some(value), None) = (types.next(), types.next()) else { return false };
    let mut parts = value.as_bytes().split(|b| *b == b';').map(<[u8]>::trim_ascii);
    parts.next().is_some_and(is_media_type) && parts.all(is_harmless) && compression::is_plain(headers)
}

/// Among lists of types, some servers take the first and others the last.
fn is_media_type(text: &[u8]) -> bool {
    let mut halves = text.split(|b| *b == b'/');
    halves.next().is_some_and(is_name) && halves.next().is_some_and(is_name) && halves.next().is_none()
}

/// `name=value` or `name="value"` (RFC 9110 §5.6.6), or nothing between two semicolons. A comma in quotes is not taken:
/// it would be the end of a type to whoever does not know of quotes.
fn is_harmless(parameter: &[u8]) -> bool {
    if parameter.is_empty() {
        return true;
    }
    let Some(equals) = parameter.iter().position(|b| *b == b'=') else { return false };
    let (name, value) = (&parameter[..equals], &parameter[equals + 1..]);
    let quoted = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
    let is_well_formed = match quoted {
        Some(text) => text.iter().all(|b| matches!(b, b' '..=b'~') && !b"\"\\,".contains(b)),
        None => is_name(value),
    };
    let value = quoted.unwrap_or(value);
    let is_utf8 = || value.eq_ignore_ascii_case(b"utf-8") || value.eq_ignore_ascii_case(b"utf8");
    is_name(name) && is_well_formed && (!name.eq_ignore_ascii_case(b"charset") || is_utf8())
}

/// RFC 6838 §4.2: fewer characters than a token has. `charset*` (RFC 8187) is none.
fn is_name(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$&^_.+-".contains(b))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::HeaderName;

    use super::is_json;

    fn is_unambiguous(fields: &[(&'static str, &'static str)]) -> bool {
        let fields = fields.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        super::is_unambiguous(&fields.collect())
    }

    #[test]
    fn json_has_several_names() {
        for kind in ["application/json", "Text/JSON", " application/vnd.api+JSON ; version=2", "a/b+json"] {
            assert!(is_json(kind.as_bytes()), "{kind}");
        }
        for kind in ["", "json", "+jso", "text/plain", "application/jsonx", "text/plain; x=application/json"] {
            assert!(!is_json(kind.as_bytes()), "{kind}");
        }
    }

    #[test]
    fn one_type_in_utf8_is_read_alike_by_all() {
        for kind in [
            "application/json",
            "Application/JSON ; Charset=UTF-8",
            "application/json;charset=\"utf-8\"",
            "application/json; charset=utf8;",
            "application/vnd.api+json; profile=\"https://a.test/b https://a.test/c\"; version=2",
        ] {
            assert!(is_unambiguous(&[("content-type", kind)]), "{kind}");
            assert!(is_unambiguous(&[("content-type", kind), ("content-encoding", "Identity")]), "{kind}");
        }
    }

    #[test]
    fn whatever_may_be_read_in_another_way_is_not_unambiguous() {
        for kind in [
            "",
            "json",
            "application/json; charset=utf-7",
            "application/json; charset=\"utf-16\"",
            "application/json; CHARSET=utf-16; charset=utf-8",
            "application/json; charset=utf-8; charset=utf-16",
            "application/json; charset = utf-7",
            "application/json; charset",
            "application/json; charset=",
            "application/json; charset=\"",
            "application/json; charset*=utf-7''x",
            "application/json; charset*0=utf-7",
            "application/json, text/plain",
            "application/json; a=b, text/plain",
            "application/json; a=\"b, text/plain; c=\"",
            "application/json; a=\"b\\\"",
            "application/x-www-form-urlencoded, a/b+json",
            "application/x-www-form-urlencoded a/b+json",
        ] {
            assert!(!is_unambiguous(&[("content-type", kind)]), "{kind}");
        }
        let json = ("content-type", "application/json");
        assert!(!is_unambiguous(&[json, ("content-type", "text/plain")]));
        assert!(!is_unambiguous(&[]));
        for coding in ["gzip", "identity, gzip", "x"] {
            assert!(!is_unambiguous(&[json, ("content-encoding", coding)]), "{coding}");
        }
        assert!(!is_unambiguous(&[json, ("content-encoding", "identity"), ("content-encoding", "br")]));
    }
}
