//! Fields that are meant for caches of one kind, and then count instead of `Cache-Control` (RFC 9213).

use http::{HeaderMap, HeaderName};
use sfv::{BareItem, Dictionary, ListEntry, Parser};

use crate::directives::{ResponseDirectives, Scope};

/// For all caches that stand in for an origin (RFC 9213 §3.1).
pub const CDN_CACHE_CONTROL: HeaderName = HeaderName::from_static("cdn-cache-control");

/// What counts of a response: the first field of the target list that is there and valid, else `Cache-Control`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    pub directives: ResponseDirectives,
    /// `Cache-Control` and `Expires` say nothing then.
    pub is_targeted: bool,
}

impl Said {
    /// `targets`: the fields that are meant for this cache, in order of preference.
    pub fn of(headers: &HeaderMap, targets: &[HeaderName]) -> Self {
        let targeted = targets.iter().find_map(|name| targeted(headers, name));
        Self {
            is_targeted: targeted.is_some(),
            directives: targeted.unwrap_or_else(|| ResponseDirectives::of(headers)),
        }
    }
}

/// None where the field is absent, empty or no dictionary (RFC 9213 §2.1).
fn targeted(headers: &HeaderMap, name: &HeaderName) -> Option<ResponseDirectives> {
    let mut lines = headers.get_all(name).iter();
    let first = lines.next()?;
    let mut joined = first.as_bytes().to_vec();
    for line in lines {
        joined.extend_from_slice(b", ");
        joined.extend_from_slice(line.as_bytes());
    }
    let members = Parser::parse_dictionary(&joined).ok().filter(|members| !members.is_empty())?;
    Some(directives(&members))
}

fn directives(members: &Dictionary) -> ResponseDirectives {
    let mut all = ResponseDirectives::default();
    for (name, member) in members {
        let ListEntry::Item(item) = member else { continue };
        let name = name.as_bytes();
        // What has another type than the directive is ignored, as if it were not there.
        match &item.bare_item {
            BareItem::Boolean(true) if !takes_seconds(name) => all.set(name, None),
            BareItem::Integer(seconds) if takes_seconds(name) && *seconds >= 0 => {
                all.set(name, Some(seconds.to_string().as_bytes()));
            }
            BareItem::String(fields) if name == b"no-cache" => all.no_cache = scope(fields),
            BareItem::String(fields) if name == b"private" => all.private = scope(fields),
            _ => {}
        }
    }
    all
}

fn takes_seconds(name: &[u8]) -> bool {
    matches!(name, b"max-age" | b"s-maxage" | b"stale-while-revalidate" | b"stale-if-error")
}

fn scope(fields: &str) -> Scope {
    let mut scope = Scope::Absent;
    scope.read(Some(fields.as_bytes()));
    scope
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::{HeaderValue, header};

    use super::*;
    use crate::directives::Lifetime;

    fn said(cdn: &[&str], cache_control: &str) -> Said {
        let mut headers = HeaderMap::new();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_str(cache_control).unwrap());
        for line in cdn {
            headers.append(CDN_CACHE_CONTROL, HeaderValue::from_str(line).unwrap());
        }
        Said::of(&headers, &[HeaderName::from_static("seiketsu-cache-control"), CDN_CACHE_CONTROL])
    }

    #[test]
    fn a_targeted_field_counts_alone() {
        let read = said(&["max-age=60, must-revalidate"], "no-store, max-age=5");
        assert!(read.is_targeted && read.directives.must_revalidate && !read.directives.no_store);
        assert_eq!(read.directives.max_age, Lifetime::Seconds(60));
        let read = said(&["max-age=10", "private=\"x-a\""], "");
        assert_eq!(read.directives.private.fields(), ["x-a"]);
    }

    #[test]
    fn one_that_is_malformed_or_empty_does_not_count() {
        for text in ["", "max-age=", "MAX-AGE=60", "max-age=60;;", "max-age=6 0", "a=\"", "max-age='1'"] {
            let read = said(&[text], "max-age=5");
            assert_eq!((read.is_targeted, read.directives.max_age), (false, Lifetime::Seconds(5)), "{text:?}");
        }
    }

    #[test]
    fn members_of_another_type_are_not_there() {
        for text in ["max-age=\"60\"", "max-age=1.5", "max-age", "max-age=?1", "max-age=(1 2)", "max-age=-1"] {
            let read = said(&[text], "max-age=5");
            assert_eq!((read.is_targeted, read.directives.max_age), (true, Lifetime::Absent), "{text:?}");
        }
        assert!(!said(&["no-store=?0"], "").directives.no_store);
        assert!(!said(&["public=1"], "").directives.public);
    }
}
