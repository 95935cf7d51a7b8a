//! `ETag` and `If-Match` (RFC 9110 §8.8.3, §13.1.1): the revision that a document was last changed in.

use axum::extract::FromRequestParts;
use http::{HeaderValue, header, request::Parts};

use super::Problem;

pub(super) fn value(revision: u64) -> HeaderValue {
    // Digits and quotes are what a header may hold.
    HeaderValue::try_from(format!("\"{revision}\"")).unwrap_or(HeaderValue::from_static("\"\""))
}

/// The revision that the caller expects, if any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IfMatch(pub(super) Option<u64>);

impl<S: Send + Sync> FromRequestParts<S> for IfMatch {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let mut values = parts.headers.get_all(header::IF_MATCH).iter();
        match (values.next(), values.next()) {
            (None, _) => Ok(Self(None)),
            (Some(value), None) => parse(value).map(|revision| Self(Some(revision))).ok_or_else(refused),
            (Some(_), Some(_)) => Err(refused()),
        }
    }
}

fn parse(value: &HeaderValue) -> Option<u64> {
    value.to_str().ok()?.trim().strip_prefix('"')?.strip_suffix('"')?.parse().ok()
}

fn refused() -> Problem {
    Problem::bad_request("If-Match: send the one ETag that you were given, as in If-Match: \"42\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_etag_is_read_as_it_was_written() {
        assert_eq!(parse(&value(42)), Some(42));
        for wrong in ["42", "W/\"42\"", "*", "\"x\"", "\"-1\"", "", "\"1\", \"2\""] {
            assert_eq!(parse(&HeaderValue::from_static(wrong)), None, "{wrong}");
        }
    }
}
