//! What unsafe requests make invalid (RFC 9111 §4.4).

use http::{HeaderMap, Method, StatusCode, header};
use smallvec::SmallVec;
use url::Url;

use crate::key::Resource;

/// Whether a method may change something (RFC 9110 §9.2.1); one that is not known may.
pub fn is_unsafe(method: &Method) -> bool {
    !method.is_safe()
}

/// The resources that are no longer what they were once an unsafe request has got this response: its target, and
/// what the response names with `Location` and `Content-Location`, as far as it is of the same host.
pub fn invalidated(
    target: &Resource,
    is_secure: bool,
    status: StatusCode,
    headers: &HeaderMap,
) -> SmallVec<[Resource; 3]> {
    let mut all = SmallVec::new();
    // An error says that nothing was changed.
    if !(status.is_success() || status.is_redirection()) {
        return all;
    }
    let scheme = if is_secure { "https" } else { "http" };
    let base = Url::parse(&format!("{scheme}://{}{}", target.host(), target.path_and_query())).ok();
    all.push(target.clone());
    let Some(base) = base else { return all };
    let named = [header::LOCATION, header::CONTENT_LOCATION].into_iter().flat_map(|name| headers.get_all(name));
    for reference in named {
        let resolved = reference.to_str().ok().and_then(|reference| base.join(reference.trim()).ok());
        // What one host says of another is not to be believed.
        let Some(resolved) = resolved.filter(|url| url.origin() == base.origin()) else { continue };
        let resource = Resource::new(target.host().as_bytes(), resolved.path(), resolved.query());
        if !all.contains(&resource) {
            all.push(resource);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::{HeaderName, HeaderValue};

    use super::*;

    fn paths(status: u16, fields: &[(&str, &str)]) -> Vec<String> {
        let field = |(name, value): &(&str, &str)| {
            (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
        };
        let headers = fields.iter().map(field).collect();
        let target = Resource::new(b"a.test:8080", "/x/y", Some("q"));
        let all = invalidated(&target, false, StatusCode::from_u16(status).unwrap(), &headers);
        all.iter().map(Resource::path_and_query).map(str::to_owned).collect()
    }

    #[test]
    fn the_target_and_what_the_response_names() {
        assert_eq!(paths(200, &[]), ["/x/y?q"]);
        assert_eq!(paths(201, &[("location", "z"), ("content-location", "/w?1")]), ["/x/y?q", "/x/z", "/w?1"]);
        assert_eq!(paths(303, &[("location", "http://a.test:8080/z")]), ["/x/y?q", "/z"]);
    }

    #[test]
    fn not_after_errors_and_not_for_others() {
        assert_eq!(paths(404, &[("location", "/z")]), Vec::<String>::new());
        assert_eq!(paths(500, &[]), Vec::<String>::new());
        for other in
            ["http://b.test/z", "//b.test/z", "http://a.test/z", "https://a.test:8080/z", "mailto:x", "http://"]
        {
            assert_eq!(paths(200, &[("location", other)]), ["/x/y?q"], "{other}");
        }
    }

    #[test]
    fn methods_that_are_not_known_may_change_something() {
        for method in ["POST", "PUT", "DELETE", "PATCH", "FOO"] {
            assert!(is_unsafe(&Method::from_bytes(method.as_bytes()).unwrap()), "{method}");
        }
        for method in ["GET", "HEAD", "OPTIONS"] {
            assert!(!is_unsafe(&Method::from_bytes(method.as_bytes()).unwrap()), "{method}");
        }
    }
}
