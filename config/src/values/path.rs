//! The path patterns of routes.

use std::{fmt, str::FromStr};

use super::{InvalidValue, text_value};

/// The path part of a route: static segments, parameters (`{id}`, one segment) and a tail
/// (`{*rest}`, everything below, possibly nothing), as in `/v1/users/{id}` or `/files/{*path}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PathPattern {
    text: Box<str>,
    segments: Vec<PathSegment>,
}

/// One segment of a [`PathPattern`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PathSegment {
    /// These very characters, in normalised form.
    Static(Box<str>),
    /// Any one segment that is not empty.
    Parameter(Box<str>),
    /// Everything from here on, also nothing; always the last segment.
    Tail(Box<str>),
}

impl PathPattern {
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// `/v1/users/{id}` has three; `/` has one, static and empty; a trailing slash adds an empty one.
    pub fn segments(&self) -> &[PathSegment] {
        &self.segments
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for PathPattern {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = |why: &str| InvalidValue::new(format!("{text:?} is not a path pattern: {why}"));
        let Some(rest) = text.strip_prefix('/') else {
            return Err(refused("it must begin with '/', as in /v1/users/{id}"));
        };
        if text.len() > 1024 {
            return Err(refused("it is longer than 1024 characters"));
        }
        let mut segments = Vec::new();
        let mut names: Vec<&str> = Vec::new();
        let mut parts = rest.split('/').peekable();
        while let Some(part) = parts.next() {
            let last = parts.peek().is_none();
            let segment = if let Some(name) = part.strip_prefix('{').and_then(|p| p.strip_suffix('}')) {
                let (name, tail) = match name.strip_prefix('*') {
                    Some(name) => (name, true),
                    None => (name, false),
                };
                if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                    return Err(refused("a parameter is written {name} or {*name}, with letters, digits and '_'"));
                }
                if names.contains(&name) {
                    return Err(refused(&format!("the parameter {name:?} stands twice")));
                }
                names.push(name);
                match (tail, last) {
                    (true, false) => return Err(refused("a tail {*name} must be the last segment")),
                    (true, true) => PathSegment::Tail(name.into()),
                    (false, _) => PathSegment::Parameter(name.into()),
                }
            } else {
                if part.is_empty() && !last {
                    return Err(refused("it has an empty segment ('//')"));
                }
                if part == "." || part == ".." {
                    return Err(refused("'.' and '..' never reach a route: paths are normalised before matching"));
                }
                if !part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&b)) {
                    return Err(refused(
                        "a static segment holds unreserved and sub-delimiter characters (RFC 3986 §3.3); write a parameter as a whole segment, {name}",
                    ));
                }
                PathSegment::Static(part.into())
            };
            segments.push(segment);
        }
        Ok(Self { text: text.into(), segments })
    }
}

text_value!(PathPattern, "PathPattern", "The path of a route: /v1/users/{id}, /files/{*path}", Some("^/"));

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_are_read_segment_by_segment() {
        use PathSegment as S;
        for (text, segments) in [
            ("/", vec![S::Static("".into())]),
            ("/v1/users/", vec![S::Static("v1".into()), S::Static("users".into()), S::Static("".into())]),
            ("/users/{id}", vec![S::Static("users".into()), S::Parameter("id".into())]),
            ("/{*rest}", vec![S::Tail("rest".into())]),
            (
                "/a.b_c~d!$&'()*+,;=:@-/{x}/y",
                vec![S::Static("a.b_c~d!$&'()*+,;=:@-".into()), S::Parameter("x".into()), S::Static("y".into())],
            ),
        ] {
            assert_eq!(text.parse::<PathPattern>().unwrap().segments(), segments, "{text}");
        }
    }

    #[test]
    fn what_no_request_can_match_is_refused() {
        for bad in [
            "",
            "users",
            "//",
            "/a//b",
            "/.",
            "/a/../b",
            "/{}",
            "/{*}",
            "/{a-b}",
            "/{a}/{a}",
            "/{*a}/b",
            "/x{a}",
            "/{a}x",
            "/a?b",
            "/a#b",
            "/a b",
            "/ä",
            "/%41",
            "/{a",
            "/a}",
            &format!("/{}", "a".repeat(1024)),
        ] {
            assert!(bad.parse::<PathPattern>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_pattern_or_refused(text in "(?s)/?[a-z/{}*.%]{0,30}.{0,5}") {
            if let Ok(pattern) = text.parse::<PathPattern>() {
                prop_assert_eq!(pattern.as_str(), text.as_str());
                prop_assert_eq!(pattern.segments().len(), text.matches('/').count());
            }
        }
    }
}
