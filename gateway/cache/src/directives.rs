//! `Cache-Control` of requests and responses (RFC 9111 §5.2, RFC 5861, RFC 8246).
//!
//! What is unknown is ignored. What is known and malformed is taken in the way that keeps more from being
//! served: a lifetime that cannot be read makes a response stale (RFC 9111 §4.2.1), and what forbids something does so
//! although what stands beside it cannot be read.

mod list;

use http::{HeaderMap, HeaderName, header};

pub(crate) use self::list::directives;
use crate::time::delta_seconds;

/// How long something may last, as one directive says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Lifetime {
    #[default]
    Absent,
    Seconds(u64),
    /// Not a number of seconds, or several that differ: none that can be relied on.
    Malformed,
}

impl Lifetime {
    /// The seconds; 0 where they cannot be read.
    pub fn seconds(self) -> Option<u64> {
        match self {
            Self::Absent => None,
            Self::Seconds(seconds) => Some(seconds),
            Self::Malformed => Some(0),
        }
    }

    pub(crate) fn read(&mut self, argument: Option<&[u8]>) {
        let read = argument.and_then(delta_seconds).map_or(Self::Malformed, Self::Seconds);
        *self = match *self {
            Self::Absent => read,
            before if before == read => before,
            _ => Self::Malformed,
        };
    }
}

/// Fields that one directive may name; with more, it is about the whole response.
const MOST_FIELDS: usize = 64;

/// What a directive is about that can name fields: `no-cache`, `private`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Scope {
    #[default]
    Absent,
    /// The response as a whole.
    Whole,
    /// These fields of it.
    Fields(Vec<HeaderName>),
}

impl Scope {
    pub fn is_whole(&self) -> bool {
        *self == Self::Whole
    }

    pub fn fields(&self) -> &[HeaderName] {
        if let Self::Fields(fields) = self { fields } else { &[] }
    }

    pub(crate) fn read(&mut self, argument: Option<&[u8]>) {
        let fields: Option<Vec<HeaderName>> = argument.and_then(|names| {
            let names = names.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|name| !name.is_empty());
            names.take(MOST_FIELDS + 1).map(|name| HeaderName::from_bytes(name).ok()).collect()
        });
        let is_some = |fields: &Vec<HeaderName>| (1..=MOST_FIELDS).contains(&fields.len());
        *self = match (std::mem::take(self), fields.filter(is_some)) {
            (Self::Absent, Some(fields)) => Self::Fields(fields),
            (Self::Fields(mut before), Some(fields)) if before.len() + fields.len() <= MOST_FIELDS => {
                before.extend(fields);
                Self::Fields(before)
            }
            // Without names, with too many or with what can be none, it is about everything.
            _ => Self::Whole,
        };
    }
}

/// What a response says about being cached (RFC 9111 §5.2.2).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResponseDirectives {
    pub max_age: Lifetime,
    pub s_maxage: Lifetime,
    pub no_cache: Scope,
    pub private: Scope,
    pub no_store: bool,
    pub public: bool,
    pub must_revalidate: bool,
    pub proxy_revalidate: bool,
    pub must_understand: bool,
    /// RFC 8246.
    pub immutable: bool,
    /// RFC 5861 §3.
    pub stale_while_revalidate: Lifetime,
    /// RFC 5861 §4.
    pub stale_if_error: Lifetime,
}

impl ResponseDirectives {
    /// All lines of `Cache-Control` together.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut all = Self::default();
        for line in headers.get_all(header::CACHE_CONTROL) {
            for (name, argument) in directives(line.as_bytes()) {
                all.set(name, argument.as_deref());
            }
        }
        all
    }

    pub(crate) fn set(&mut self, name: &[u8], argument: Option<&[u8]>) {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        // In the order in which they are frequent.
        if is("max-age") {
            self.max_age.read(argument);
        } else if is("public") {
            self.public = true;
        } else if is("no-cache") {
            self.no_cache.read(argument);
        } else if is("private") {
            self.private.read(argument);
        } else if is("no-store") {
            self.no_store = true;
        } else if is("s-maxage") {
            self.s_maxage.read(argument);
        } else if is("must-revalidate") {
            self.must_revalidate = true;
        } else if is("stale-while-revalidate") {
            self.stale_while_revalidate.read(argument);
        } else if is("stale-if-error") {
            self.stale_if_error.read(argument);
        } else if is("immutable") {
            self.immutable = true;
        } else if is("proxy-revalidate") {
            self.proxy_revalidate = true;
        } else if is("must-understand") {
            self.must_understand = true;
        }
    }

    /// Whether it says that a shared cache may store it although the request had a credential (RFC 9111 §3.5).
    pub fn allows_sharing(&self) -> bool {
        self.public || self.must_revalidate || self.s_maxage != Lifetime::Absent
    }

    /// Whether it must not be served stale unless it says for how long it may (RFC 9111 §4.2.4).
    pub fn forbids_stale(&self) -> bool {
        self.must_revalidate || self.proxy_revalidate || self.no_cache.is_whole() || self.s_maxage != Lifetime::Absent
    }
}

/// What a client asks for (RFC 9111 §5.2.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestDirectives {
    pub max_age: Lifetime,
    pub min_fresh: Lifetime,
    pub max_stale: MaxStale,
    pub no_cache: bool,
    pub no_store: bool,
    pub only_if_cached: bool,
    /// RFC 5861 §4.
    pub stale_if_error: Lifetime,
}

/// For how long a response may be stale that the client takes all the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MaxStale {
    #[default]
    None,
    Seconds(u64),
    Any,
}

impl RequestDirectives {
    /// All lines of `Cache-Control` together; without any, `Pragma: no-cache` (RFC 9111 §5.4).
    pub fn of(headers: &HeaderMap) -> Self {
        let mut all = Self::default();
        let lines = headers.get_all(header::CACHE_CONTROL);
        let mut any = false;
        for (name, argument) in lines.iter().flat_map(|line| directives(line.as_bytes())) {
            any = true;
            all.set(name, argument.as_deref());
        }
        if !any {
            let lines = headers.get_all(header::PRAGMA);
            let mut pragmas = lines.iter().flat_map(|line| directives(line.as_bytes()));
            all.no_cache = pragmas.any(|(name, _)| name.eq_ignore_ascii_case(b"no-cache"));
        }
        all
    }

    fn set(&mut self, name: &[u8], argument: Option<&[u8]>) {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        if is("no-cache") {
            self.no_cache = true;
        } else if is("max-age") {
            self.max_age.read(argument);
        } else if is("no-store") {
            self.no_store = true;
        } else if is("only-if-cached") {
            self.only_if_cached = true;
        } else if is("min-fresh") {
            self.min_fresh.read(argument);
        } else if is("max-stale") {
            self.max_stale = match argument {
                None => MaxStale::Any,
                Some(argument) => delta_seconds(argument).map_or(MaxStale::None, MaxStale::Seconds),
            };
        } else if is("stale-if-error") {
            self.stale_if_error.read(argument);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::HeaderValue;

    use super::*;

    fn headers(lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (header::CACHE_CONTROL, HeaderValue::from_str(line).unwrap())).collect()
    }

    fn response(lines: &[&str]) -> ResponseDirectives {
        ResponseDirectives::of(&headers(lines))
    }

    #[test]
    fn directives_are_read_whatever_their_case_over_all_lines() {
        let read = response(&["MAX-age=60, Public", "s-maxage=\"120\" , stale-if-error=5", "foo=bar,,"]);
        assert_eq!((read.max_age, read.s_maxage), (Lifetime::Seconds(60), Lifetime::Seconds(120)));
        assert!(read.public && !read.no_store);
        assert_eq!(read.stale_if_error, Lifetime::Seconds(5));
    }

    #[test]
    fn a_lifetime_that_cannot_be_read_is_none() {
        for text in ["max-age", "max-age=", "max-age=x", "max-age=-1", "max-age=1.5", "max-age='60'", "max-age=\"6"] {
            assert_eq!(response(&[text]).max_age, Lifetime::Malformed, "{text}");
        }
        assert_eq!(response(&["max-age=60, max-age=1"]).max_age, Lifetime::Malformed);
        assert_eq!(response(&["max-age=60", "max-age=60"]).max_age, Lifetime::Seconds(60));
        assert_eq!(response(&["max-age =60"]).max_age, Lifetime::Absent);
        assert_eq!(response(&["max-age= 60"]).max_age, Lifetime::Malformed);
    }

    #[test]
    fn what_stands_in_quotes_is_no_directive() {
        let read = response(&[r#"extension="no-store, max-age=60", max-age=1"#]);
        assert_eq!((read.no_store, read.max_age), (false, Lifetime::Seconds(1)));
        let read = response(&[r#"extension="a\", no-store", max-age=2"#]);
        assert_eq!((read.no_store, read.max_age), (false, Lifetime::Seconds(2)));
    }

    #[test]
    fn scopes_name_fields_or_everything() {
        let fields = response(&[r#"no-cache="x-a, X-B", private=x-c"#]);
        assert_eq!(fields.no_cache.fields(), ["x-a", "x-b"]);
        assert_eq!(fields.private.fields(), ["x-c"]);
        for text in ["private", r#"private="""#, r#"private="a b""#, r#"private="x-a", private"#] {
            assert!(response(&[text]).private.is_whole(), "{text}");
        }
        let list = |count: usize| format!("private=\"{}\"", vec!["x-a"; count].join(","));
        assert_eq!(response(&[&list(MOST_FIELDS)]).private.fields().len(), MOST_FIELDS);
        for lines in [vec![list(MOST_FIELDS + 1)], vec![list(MOST_FIELDS), list(1)], vec![list(1); MOST_FIELDS + 1]] {
            let lines: Vec<_> = lines.iter().map(String::as_str).collect();
            assert!(response(&lines).private.is_whole(), "{lines:?}");
        }
    }

    #[test]
    fn what_forbids_something_counts_although_what_stands_beside_it_is_malformed() {
        assert!(response(&["private; max-age=60"]).private.is_whole());
        assert!(response(&["max-age=60 no-cache"]).no_cache.is_whole());
        assert!(response(&["private =\"x-a\""]).private.is_whole());
        assert!(response(&["max-age=\"60, no-store"]).no_store);
        let read = response(&["no-store; max-age=60, public"]);
        assert!(read.no_store && read.public && read.max_age == Lifetime::Absent);
        assert!(RequestDirectives::of(&headers(&["max-age=5; no-store"])).no_store);
    }

    #[test]
    fn a_client_is_understood() {
        let read = RequestDirectives::of(&headers(&["max-age=0, min-fresh=5, max-stale, only-if-cached"]));
        assert_eq!((read.max_age, read.min_fresh), (Lifetime::Seconds(0), Lifetime::Seconds(5)));
        assert_eq!((read.max_stale, read.only_if_cached), (MaxStale::Any, true));
        let stale = |text| RequestDirectives::of(&headers(&[text])).max_stale;
        assert_eq!((stale("max-stale=7"), stale("max-stale=x")), (MaxStale::Seconds(7), MaxStale::None));
    }

    #[test]
    fn pragma_counts_where_there_is_no_cache_control() {
        let mut fields = HeaderMap::new();
        fields.insert(header::PRAGMA, HeaderValue::from_static("foo, No-Cache"));
        assert!(RequestDirectives::of(&fields).no_cache);
        fields.insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=60"));
        assert!(!RequestDirectives::of(&fields).no_cache);
    }
}
