//! Conditions of clients against what is stored (RFC 9111 §4.3.2), and what a 304 changes of it (§4.3.4, §3.2).

use http::{HeaderMap, HeaderName, StatusCode, header};

use crate::{
    storing::is_of_one_message,
    time::{Date, date},
};

/// Whether a client has the stored response already, and 304 is enough.
pub fn is_not_modified(request: &HeaderMap, status: StatusCode, stored: &HeaderMap) -> bool {
    if !status.is_success() {
        return false;
    }
    let mut tags = request.get_all(header::IF_NONE_MATCH).iter().peekable();
    if tags.peek().is_some() {
        // It counts alone (RFC 9110 §13.1.3).
        let etag = stored.get(header::ETAG).map(|etag| opaque(etag.as_bytes())).filter(|etag| is_quoted(etag));
        return tags.any(|line| {
            line.as_bytes().trim_ascii() == b"*"
                || etag.is_some_and(|etag| entity_tags(line.as_bytes()).any(|tag| opaque(tag) == etag))
        });
    }
    let Date::At(since) = date(request, &header::IF_MODIFIED_SINCE) else { return false };
    let modified = match date(stored, &header::LAST_MODIFIED) {
        Date::At(modified) => modified,
        Date::Absent | Date::Malformed => match date(stored, &header::DATE) {
            Date::At(generated) => generated,
            Date::Absent | Date::Malformed => return false,
        },
    };
    modified <= since
}

/// Without the mark of a weak tag: what counts in a weak comparison (RFC 9110 §8.8.3.2).
fn opaque(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// The tags of a list. A comma may stand in a tag.
fn entity_tags(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = line;
    std::iter::from_fn(move || {
        let start = rest.iter().position(|byte| !matches!(byte, b',' | b' ' | b'\t'))?;
        rest = &rest[start..];
        let open = if rest.starts_with(b"W/") { 2 } else { 0 };
        let end = match rest.get(open) {
            Some(b'"') => rest[open + 1..].iter().position(|byte| *byte == b'"').map(|at| open + 1 + at + 1),
            // Not a tag; some clients forget the quotes.
            _ => rest.iter().position(|byte| *byte == b','),
        };
        let (tag, after) = rest.split_at(end.unwrap_or(rest.len()));
        rest = after;
        Some(tag.trim_ascii())
    })
}

fn is_quoted(tag: &[u8]) -> bool {
    tag.len() >= 2 && tag.starts_with(b"\"") && tag.ends_with(b"\"")
}

/// Whether two strong tags are the same (RFC 9110 §8.8.3.2).
pub(crate) fn is_same_strong(one: &[u8], other: &[u8]) -> bool {
    one == other && is_quoted(one)
}

/// What is left of a response for a client that has it already (RFC 9110 §15.4.5).
pub fn without_content(headers: &mut HeaderMap) {
    for name in [header::CONTENT_LENGTH, header::CONTENT_TYPE, header::CONTENT_ENCODING, header::CONTENT_LANGUAGE] {
        headers.remove(name);
    }
    headers.remove(header::CONTENT_RANGE);
    headers.remove(header::TRANSFER_ENCODING);
}

/// Whether a 304 speaks of what is stored: if it names a tag, it must be the one that was asked about.
pub fn is_about(update: &HeaderMap, stored: &HeaderMap) -> bool {
    match (update.get(header::ETAG), stored.get(header::ETAG)) {
        (Some(told), Some(have)) => opaque(told.as_bytes()) == opaque(have.as_bytes()),
        _ => true,
    }
}

/// The fields of a stored response after a 304. `Age` is that of the 304, if it has one: the stored response is as old
/// as the one that confirms it (RFC 9111 §4.2.3).
#[must_use]
pub fn freshened(stored: &HeaderMap, update: &HeaderMap) -> HeaderMap {
    let mut fresh = stored.clone();
    for name in update.keys().filter(|name| may_update(name)) {
        let mut values = update.get_all(name).iter();
        if let Some(first) = values.next() {
            fresh.insert(name, first.clone());
        }
        for value in values {
            fresh.append(name, value.clone());
        }
    }
    // Without a date of its own it would count as made when the stored one was.
    if !update.contains_key(header::DATE) {
        fresh.remove(header::DATE);
    }
    fresh
}

/// What describes the stored bytes stays as they do: digests of a 304 are of nothing (RFC 9530 §2).
fn may_update(name: &HeaderName) -> bool {
    (!is_of_one_message(name) || *name == header::AGE)
        && !matches!(
            name.as_str(),
            "content-length" | "content-encoding" | "content-range" | "content-md5" | "content-digest"
        )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::HeaderValue;

    use super::*;

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let field = |(name, value): &(&str, &str)| {
            (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
        };
        fields.iter().map(field).collect()
    }

    fn not_modified(request: &[(&str, &str)], stored: &[(&str, &str)]) -> bool {
        is_not_modified(&headers(request), StatusCode::OK, &headers(stored))
    }

    #[test]
    fn tags_are_compared_weakly() {
        for (asked, have, same) in [
            ("\"a\"", "\"a\"", true),
            ("W/\"a\"", "\"a\"", true),
            ("\"a\"", "W/\"a\"", true),
            ("\"b\", W/\"a\"", "\"a\"", true),
            ("\"b,c\",\"a\"", "\"b,c\"", true),
            ("\"b,c\"", "\"c\"", false),
            ("\"A\"", "\"a\"", false),
            ("*", "\"a\"", true),
            ("\"\"", "\"a\"", false),
            ("a", "\"a\"", false),
            ("a, \"a\"", "\"a\"", true),
            ("\"a", "\"a\"", false),
        ] {
            assert_eq!(not_modified(&[("if-none-match", asked)], &[("etag", have)]), same, "{asked} {have}");
        }
        assert!(!not_modified(&[("if-none-match", "\"a\"")], &[]));
        assert!(!not_modified(&[("if-none-match", "\"")], &[("etag", "\"")]));
    }

    #[test]
    fn dates_count_only_without_tags() {
        let (early, late) = ("Sun, 06 Nov 1994 08:49:36 GMT", "Sun, 06 Nov 1994 08:49:37 GMT");
        let since = |asked, have| not_modified(&[("if-modified-since", asked)], &[("last-modified", have)]);
        assert!(since(late, early) && since(late, late) && !since(early, late));
        assert!(!since("yesterday", early));
        assert!(not_modified(&[("if-modified-since", late)], &[("date", early)]));
        let both = [("if-none-match", "\"b\""), ("if-modified-since", late)];
        assert!(!not_modified(&both, &[("etag", "\"a\""), ("last-modified", early)]));
    }

    #[test]
    fn only_what_would_succeed_is_not_modified() {
        let request = headers(&[("if-none-match", "\"a\"")]);
        assert!(!is_not_modified(&request, StatusCode::NOT_FOUND, &headers(&[("etag", "\"a\"")])));
    }

    #[test]
    fn a_304_replaces_what_it_names() {
        let stored = headers(&[("x-a", "1"), ("x-a", "2"), ("x-b", "3"), ("content-length", "5"), ("date", "d")]);
        let update =
            headers(&[("x-a", "4"), ("content-length", "0"), ("set-cookie", "a=b"), ("x-c", "6"), ("x-c", "7")]);
        let fresh = freshened(&stored, &update);
        let all = |name: &str| fresh.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!((all("x-a"), all("x-b"), all("x-c")), (vec!["4"], vec!["3"], vec!["6", "7"]));
        assert_eq!((all("content-length"), all("set-cookie"), all("date")), (vec!["5"], vec![], vec![]));
        assert_eq!(freshened(&stored, &headers(&[("age", "50")]))["age"], "50");
    }
}
