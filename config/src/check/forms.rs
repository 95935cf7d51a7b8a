//! What texts look like that the model keeps as plain strings.

/// A token (RFC 9110 §5.6.2): names of cookies (RFC 6265 §4.1.1) and of media-type parameters.
pub(super) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// A scope (RFC 6749 §3.3): visible ASCII without `"` and `\`.
pub(super) fn is_scope(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\')
}

/// A role: as a scope, and without the comma that separates roles in a header.
pub(super) fn is_role(text: &str) -> bool {
    is_scope(text) && !text.contains(',')
}

/// The name of a claim, or names with dots between that go into objects.
pub(super) fn is_claim(text: &str) -> bool {
    !text.split('.').any(str::is_empty)
}

/// The value of a cookie (RFC 6265 §4.1.1).
pub(super) fn is_cookie_value(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_graphic() && !b"\",;\\".contains(&b))
}

/// A media type (RFC 9110 §8.3.1) without parameters; the subtype may be `*`.
pub(super) fn is_media_type(text: &str) -> bool {
    text.split_once('/').is_some_and(|(kind, subtype)| is_token(kind) && kind != "*" && is_token(subtype))
}

/// A path with or without a query, as it stands in a request line (RFC 9112 §3.2.1).
pub(super) fn is_origin_form(text: &str) -> bool {
    text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic() && b != b'#')
}

/// A path alone, percent-encoded where needed.
pub(super) fn is_path(text: &str) -> bool {
    is_origin_form(text) && !text.contains('?')
}

/// 64 hexadecimal digits.
pub(super) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// What an entry of `cors.origins` can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OriginForm {
    /// `*`
    Any,
    Exact,
    /// `https://*.example.com`
    Pattern,
    /// A pattern directly below a top-level domain.
    TooWide,
    Malformed,
}

/// An origin as browsers send it (RFC 6454 §6.2): scheme, host, and the port if it is not the default.
pub(super) fn origin_form(text: &str) -> OriginForm {
    if text == "*" {
        return OriginForm::Any;
    }
    let Some((scheme, rest)) = text.split_once("://") else { return OriginForm::Malformed };
    let scheme_ok = scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b));
    // The colons of an IPv6 address stand in brackets.
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (rest, None),
    };
    let default_port = match scheme {
        "http" => Some("80"),
        "https" => Some("443"),
        _ => None,
    };
    let port_ok = port.is_none_or(|port| {
        port.parse::<u16>().is_ok_and(|number| number.to_string() == port) && default_port != Some(port)
    });
    let host_ok = !host.ends_with('.') && host.bytes().all(|b| !b.is_ascii_uppercase());
    let Ok(pattern) = host.parse::<crate::values::HostPattern>() else { return OriginForm::Malformed };
    if !scheme_ok || !port_ok || !host_ok {
        OriginForm::Malformed
    } else if !pattern.is_wildcard() {
        OriginForm::Exact
    } else if pattern.name().contains('.') || pattern.name() == "localhost" {
        OriginForm::Pattern
    } else {
        OriginForm::TooWide
    }
}

/// The host of `host` or `host:port`, if both are well formed.
pub(super) fn is_authority(text: &str) -> bool {
    let exact = |host: &str| host.parse::<crate::values::HostPattern>().is_ok_and(|host| !host.is_wildcard());
    exact(text) || text.parse::<crate::values::HostPort>().is_ok()
}

/// The parameters `{name}` of a replacement path, or `None` if its braces do not fit together.
pub(super) fn path_parameters(text: &str) -> Option<Vec<&str>> {
    let mut names = Vec::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('{') {
        let (name, after) = behind.split_once('}')?;
        if before.contains('}') || name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return None;
        }
        names.push(name);
        rest = after;
    }
    (!rest.contains('}')).then_some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_told_apart() {
        use OriginForm as F;
        for (text, form) in [
            ("*", F::Any),
            ("https://app.example.com", F::Exact),
            ("http://localhost:3000", F::Exact),
            ("http://[::1]:3000", F::Exact),
            ("http://[::1]", F::Exact),
            ("capacitor://localhost", F::Exact),
            ("https://*.example.com", F::Pattern),
            ("https://*.example.com:8443", F::Pattern),
            ("https://*.localhost", F::Pattern),
            ("https://*.com", F::TooWide),
            ("https://*", F::Malformed),
            ("https://app.*.com", F::Malformed),
            ("https://App.example.com", F::Malformed),
            ("https://app.example.com/", F::Malformed),
            ("https://app.example.com:443", F::Malformed),
            ("https://app.example.com:0443", F::Malformed),
            ("https://app.example.com:", F::Malformed),
            ("app.example.com", F::Malformed),
            ("null", F::Malformed),
            ("", F::Malformed),
            ("https://", F::Malformed),
        ] {
            assert_eq!(origin_form(text), form, "{text}");
        }
    }

    #[test]
    fn braces_of_a_replacement_fit_together() {
        assert_eq!(path_parameters("/a/{id}/b/{rest}"), Some(vec!["id", "rest"]));
        assert_eq!(path_parameters("/a"), Some(vec![]));
        for broken in ["/{", "/}", "/{}", "/{a", "/a}", "/{a{b}}", "/{*rest}", "/}{"] {
            assert_eq!(path_parameters(broken), None, "{broken}");
        }
    }

    #[test]
    fn media_types_scopes_and_roles() {
        assert!(is_media_type("text/*") && is_media_type("application/problem+json"));
        assert!(!is_media_type("*/*") && !is_media_type("json") && !is_media_type("text/html; charset=utf-8"));
        assert!(is_scope("calls:read,write") && !is_scope("two words") && !is_scope(""));
        assert!(is_role("admin") && !is_role("a,b"));
    }
}
