//! What was purged, and when. A purge takes constant time: nothing is looked for and nothing is deleted. It gets a
//! number, and whatever was asked for before is not served any more. Stored responses are checked against the
//! purges since they were checked last, most of the time by comparing two numbers.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
};

use http::{HeaderMap, HeaderName};
use parking_lot::RwLock;

use crate::{key::Resource, stored::Stored};

/// The fields that give responses tags, and what stands between tags in them.
const TAG_FIELDS: [(HeaderName, u8); 2] =
    [(HeaderName::from_static("cache-tag"), b','), (HeaderName::from_static("surrogate-key"), b' ')];

/// Tags of one response; further ones do not count.
const MOST_TAGS: usize = 256;

/// Purges of one tenant that are kept apart. Beyond it the older half becomes one purge of everything before.
const MOST_KEPT: usize = 16 * 1024;

/// The number of a purge. Each is larger than those before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sequence(u64);

impl Sequence {
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    pub const fn get(self) -> u64 {
        self.0
    }
}

/// What is purged.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Purge {
    /// Everything of the tenant.
    All,
    /// One URL, whatever its scheme, and whoever it was stored for.
    Url(Resource),
    /// All paths that begin with this one, in whole segments; a host in front, unless it is for all hosts.
    Prefix { host: Option<Box<str>>, path: Box<str> },
    /// All responses with this tag.
    Tag(Box<str>),
}

/// The tags of a response (`Cache-Tag`, `Surrogate-Key`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tags(Box<[Box<str>]>);

impl Tags {
    pub fn of(headers: &HeaderMap) -> Self {
        let mut tags = Vec::new();
        for (name, separator) in &TAG_FIELDS {
            for line in headers.get_all(name).iter().filter_map(|line| line.to_str().ok()) {
                let found = line.split(char::from(*separator)).map(str::trim).filter(|tag| !tag.is_empty());
                tags.extend(found.take(MOST_TAGS - tags.len().min(MOST_TAGS)).map(Box::from));
            }
        }
        Self(tags.into())
    }

    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|tag| &**tag)
    }

    pub(crate) fn weight(&self) -> usize {
        self.0.iter().map(|tag| tag.len() + size_of::<Box<str>>()).sum()
    }
}

/// The purges of one tenant.
#[derive(Debug, Default)]
pub struct Purges {
    latest: AtomicU64,
    table: RwLock<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// Everything that was asked for before this one is purged.
    floor: Sequence,
    kept: HashMap<Purge, Sequence, foldhash::quality::RandomState>,
}

impl Purges {
    /// The last purge so far. Whatever is asked of the origin from now on is not concerned by it.
    pub fn latest(&self) -> Sequence {
        Sequence(self.latest.load(Ordering::Acquire))
    }

    /// Purges with the next number.
    pub fn add(&self, purge: Purge) {
        let mut table = self.table.write();
        let sequence = Sequence(self.latest.load(Ordering::Relaxed) + 1);
        table.add(purge, sequence);
        // Last, so that whoever sees the number finds the purge.
        self.latest.store(sequence.0, Ordering::Release);
    }

    /// Whether a stored response has not been purged.
    pub(crate) fn spare(&self, resource: &Resource, stored: &Stored) -> bool {
        let (latest, checked) = (self.latest(), stored.checked());
        if checked >= latest {
            return true;
        }
        if self.table.read().concern(resource, stored.tags.iter(), checked) {
            return false;
        }
        stored.set_checked(latest);
        true
    }
}

impl Table {
    fn add(&mut self, purge: Purge, sequence: Sequence) {
        if purge == Purge::All {
            self.floor = sequence;
            self.kept.clear();
            return;
        }
        self.kept.insert(purge, sequence);
        if self.kept.len() > MOST_KEPT {
            let mut numbers: Vec<Sequence> = self.kept.values().copied().collect();
            let (_, middle, _) = numbers.select_nth_unstable(MOST_KEPT / 2);
            self.floor = self.floor.max(*middle);
            let floor = self.floor;
            self.kept.retain(|_, sequence| *sequence > floor);
        }
    }

    /// Whether a purge after this number is about such a response.
    fn concern<'t>(&self, resource: &Resource, tags: impl Iterator<Item = &'t str>, since: Sequence) -> bool {
        let after = |purge: &Purge| self.kept.get(purge).is_some_and(|sequence| *sequence > since);
        self.floor > since
            || after(&Purge::Url(resource.clone()))
            || prefixes(resource.path()).any(|path| {
                [Some(resource.host()), None]
                    .into_iter()
                    .any(|host| after(&Purge::Prefix { host: host.map(Box::from), path: path.into() }))
            })
            || tags.into_iter().any(|tag| after(&Purge::Tag(tag.into())))
    }
}

/// The path and all that it begins with, in whole segments and without the slash at the end; the root is empty.
fn prefixes(path: &str) -> impl Iterator<Item = &str> {
    let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
    ends.map(|end| &path[..end])
}

/// A path as a prefix is kept.
pub fn prefix(path: &str) -> &str {
    path.strip_suffix('/').unwrap_or(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use bytes::Bytes;
    use http::{HeaderValue, StatusCode};

    use super::*;
    use crate::{
        directives::ResponseDirectives, freshness::Exchange, reuse::Rules, stored::Parts, time::Timestamp,
        vary::Selection,
    };

    fn stored(tags: &[(&'static str, &'static str)], since: Sequence) -> Stored {
        let at = Timestamp::from_unix(0);
        let exchange = Exchange { requested: at, answered: at };
        let headers =
            tags.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect();
        Stored::new(Parts {
            status: StatusCode::OK,
            headers,
            body: Bytes::new(),
            rules: Rules::new(&ResponseDirectives::default(), 60, 0, exchange),
            selection: Selection::default(),
            since,
        })
    }

    fn resource(path: &str) -> Resource {
        Resource::new(b"a.test", path, Some("q"))
    }

    /// Whether each of these paths outlives the purge.
    fn spared(purge: Purge, paths: &[&str]) -> Vec<bool> {
        let purges = Purges::default();
        let all: Vec<_> = paths.iter().map(|path| (resource(path), stored(&[], purges.latest()))).collect();
        purges.add(purge);
        all.iter().map(|(resource, stored)| purges.spare(resource, stored)).collect()
    }

    #[test]
    fn a_url_is_purged_alone() {
        assert_eq!(spared(Purge::Url(resource("/x")), &["/x", "/x/", "/xy", "/"]), [false, true, true, true]);
    }

    #[test]
    fn a_prefix_is_purged_in_whole_segments() {
        let paths = ["/x", "/x/", "/x/y/z", "/xy", "/"];
        let purge =
            |host: Option<&str>, path: &str| Purge::Prefix { host: host.map(Box::from), path: prefix(path).into() };
        assert_eq!(spared(purge(None, "/x/"), &paths), [false, false, false, true, true]);
        assert_eq!(spared(purge(Some("a.test"), "/x"), &paths), [false, false, false, true, true]);
        assert_eq!(spared(purge(Some("b.test"), "/x"), &paths), [true; 5]);
        assert_eq!(spared(purge(None, "/"), &paths), [false; 5]);
    }

    #[test]
    fn tags_are_read_from_both_fields() {
        let tags =
            |fields: &[_]| stored(fields, Sequence::default()).tags.iter().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(tags(&[("cache-tag", "a b, c,,d"), ("surrogate-key", "e  f,g")]), ["a b", "c", "d", "e", "f,g"]);
        let purges = Purges::default();
        let (one, other) =
            (stored(&[("cache-tag", "a,b")], purges.latest()), stored(&[("cache-tag", "ab")], purges.latest()));
        purges.add(Purge::Tag("b".into()));
        assert!(!purges.spare(&resource("/"), &one) && purges.spare(&resource("/"), &other));
    }

    #[test]
    fn what_was_asked_for_afterwards_is_not_concerned() {
        let purges = Purges::default();
        purges.add(Purge::All);
        let since = purges.latest();
        let fetched = stored(&[], since);
        assert!(purges.spare(&resource("/"), &fetched));
        // A purge while the origin is being asked concerns what it answers.
        purges.add(Purge::Url(resource("/")));
        assert!(!purges.spare(&resource("/"), &fetched));
        assert!(!purges.spare(&resource("/"), &stored(&[], since)));
    }

    #[test]
    fn so_many_purges_take_no_more_memory() {
        let purges = Purges::default();
        let early = stored(&[], purges.latest());
        for number in 0..3 * MOST_KEPT {
            purges.add(Purge::Tag(number.to_string().into()));
        }
        assert!(purges.table.read().kept.len() <= MOST_KEPT);
        // Rather too much is purged than too little.
        assert!(!purges.spare(&resource("/"), &early));
        assert!(purges.spare(&resource("/"), &stored(&[], purges.latest())));
    }
}
