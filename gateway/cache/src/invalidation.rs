//! What unsafe requests make invalid (RFC 9111 §4.4).

use http::{HeaderMap, Method, StatusCode, header};
use smallvec::SmallVec;
use url::Url;

use crate::key::Resource;

/// Longer ones cannot be requested.
const LONGEST_REFERENCE: usize = 32 << 10;

/// Whether a method may change something (RFC 9110 §9.2.1); one that is not known may.
pub fn is_unsafe(method: &Method) -> bool {
    !method.is_safe()
}

/// What an unsafe request was for.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Whether the client speaks TLS, with whomever.
    pub secure: bool,
    /// As `Host` or `:authority` has it.
    pub host: &'a [u8],
    pub path: &'a str,
    pub query: Option<&'a str>,
}

/// The resources that are no longer what they were once an unsafe request has got this response: its target, and
/// what the response names with `Location` and `Content-Location`, as far as it is of the same origin. Each of them has
/// one value (RFC 9110 §10.2.2, §8.7); where an origin sends several, the first counts. `normalise`: the path that is
/// looked up for a path that is requested; none where it cannot be requested.
pub fn invalidated(
    target: &Target<'_>,
    status: StatusCode,
    headers: &HeaderMap,
    normalise: impl Fn(&str) -> Option<String>,
) -> SmallVec<[Resource; 3]> {
    let mut all = SmallVec::new();
    // An error says that nothing was changed.
    if !(status.is_success() || status.is_redirection()) {
        return all;
    }
    all.push(Resource::new(target.host, target.path, target.query));
    // However much an origin names, one request makes three purges at most: each is told to all nodes.
    let mut named = [header::LOCATION, header::CONTENT_LOCATION].iter().filter_map(|name| headers.get(name)).peekable();
    if named.peek().is_none() {
        return all;
    }
    let scheme = if target.secure { "https" } else { "http" };
    let base = format!("{scheme}://{}{}", String::from_utf8_lossy(target.host), target.path);
    let Ok(base) = Url::parse(&base) else { return all };
    for reference in named.filter(|reference| reference.len() <= LONGEST_REFERENCE) {
        let resolved = str::from_utf8(reference.as_bytes()).ok().and_then(|text| base.join(text.trim()).ok());
        // What one origin says of another is not to be believed.
        let Some(resolved) = resolved.filter(|url| origin(url) == origin(&base)) else { continue };
        let Some(path) = normalise(resolved.path()) else { continue };
        let resource = Resource::new(target.host, &path, resolved.query());
        if !all.contains(&resource) {
            all.push(resource);
        }
    }
    all
}

/// RFC 9110 §4.3.1. A dot at the end of a host changes nothing here.
fn origin(url: &Url) -> (&str, Option<&str>, Option<u16>) {
    let host = url.host_str().map(|host| host.strip_suffix('.').unwrap_or(host));
    (url.scheme(), host, url.port_or_known_default())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::{HeaderName, HeaderValue};

    use super::*;

    /// What is invalid, as queries of one path are told apart, and as the target was asked for.
    fn invalid(secure: bool, host: &str, status: u16, fields: &[(&str, &str)]) -> Vec<Resource> {
        let field = |(name, value): &(&str, &str)| {
            (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
        };
        let headers = fields.iter().map(field).collect();
        let target = Target { secure, host: host.as_bytes(), path: "/x/y", query: Some("q") };
        let normalise = |path: &str| (!path.contains("%zz")).then(|| path.replace("//", "/"));
        invalidated(&target, StatusCode::from_u16(status).unwrap(), &headers, normalise).to_vec()
    }

    fn paths(status: u16, fields: &[(&str, &str)]) -> Vec<Resource> {
        invalid(false, "a.test:8080", status, fields)
    }

    fn resources(all: &[&str]) -> Vec<Resource> {
        let of = |target: &&str| {
            let (path, query) = target.split_once('?').map_or((*target, None), |(path, query)| (path, Some(query)));
            Resource::new(b"a.test", path, query)
        };
        all.iter().map(of).collect()
    }

    #[test]
    fn the_target_and_what_the_response_names() {
        assert_eq!(paths(200, &[]), resources(&["/x/y?q"]));
        let created = paths(201, &[("location", "z"), ("content-location", "/w?1")]);
        assert_eq!(created, resources(&["/x/y?q", "/x/z", "/w?1"]));
        assert_eq!(paths(303, &[("location", "http://a.test:8080/z")]), resources(&["/x/y?q", "/z"]));
        assert_eq!(paths(201, &[("location", "/x/./y?q")]), resources(&["/x/y?q"]), "once");
    }

    #[test]
    fn of_several_lines_of_a_field_the_first_counts() {
        let fields = [("location", "/v"), ("location", "/w"), ("content-location", "/x"), ("content-location", "/y")];
        assert_eq!(paths(201, &fields), resources(&["/x/y?q", "/v", "/x"]));
        assert_eq!(paths(201, &[("location", "http://b.test/v"), ("location", "/w")]), resources(&["/x/y?q"]));
    }

    #[test]
    fn what_the_response_names_is_brought_to_the_form_of_requests() {
        assert_eq!(paths(201, &[("location", "/v//w?a='1'&b")]), resources(&["/x/y?q", "/v/w?b&a='1'"]));
        assert_eq!(paths(201, &[("location", "/%zz")]), resources(&["/x/y?q"]), "it cannot be requested");
        let long = format!("/{}", "l".repeat(LONGEST_REFERENCE));
        assert_eq!(paths(201, &[("location", &long)]), resources(&["/x/y?q"]));
        assert_eq!(paths(201, &[("location", &long[1..])]).len(), 2);
    }

    #[test]
    fn not_after_errors_and_not_for_other_origins() {
        assert_eq!(paths(404, &[("location", "/z")]), []);
        assert_eq!(paths(500, &[]), []);
        for other in
            ["http://b.test/z", "//b.test/z", "http://a.test/z", "https://a.test:8080/z", "mailto:x", "http://"]
        {
            assert_eq!(paths(200, &[("location", other)]), resources(&["/x/y?q"]), "{other}");
        }
    }

    #[test]
    fn the_port_of_the_scheme_and_a_dot_at_the_end_of_the_host_are_of_the_same_origin() {
        for host in ["a.test", "a.test:443", "A.test.", "a.test.:443"] {
            let all = invalid(true, host, 201, &[("location", "https://a.test/z")]);
            assert_eq!(all, resources(&["/x/y?q", "/z"]), "{host}");
            let all = invalid(true, host, 201, &[("location", "http://a.test/z")]);
            assert_eq!(all, resources(&["/x/y?q"]), "{host}");
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
