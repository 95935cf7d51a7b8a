//! What was purged, and when. A purge takes constant time: nothing is looked for and nothing is deleted. It gets a
//! number, and whatever was asked for before is not served any more. Stored responses are checked against the
//! purges since they were checked last, most of the time by comparing two numbers.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
};

use http::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::RwLock;
use sha2::{Digest as _, Sha256};

use crate::{
    key::{Digest, Resource, host_name},
    stored::Stored,
};

/// The fields that give responses tags, and what stands between tags in them.
static TAG_FIELDS: [(HeaderName, u8); 2] =
    [(HeaderName::from_static("cache-tag"), b','), (HeaderName::from_static("surrogate-key"), b' ')];

/// Tags of one response that are told apart.
const MOST_TAGS: usize = 256;

/// Purges of one kind and tenant that are told apart. However often half of them go, their table does not grow beyond twice
/// as many.
const MOST_TOLD_APART: usize = 14 * 1024;
/// Places for the numbers of older ones.
const PLACES: usize = 1 << u16::BITS;

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
    /// Everything of the tenant. What was purged before takes no memory any more.
    All,
    /// One URL, whatever its scheme, and whoever it was stored for: [`Resource::digest`].
    Url(Digest),
    /// All paths that begin with this one, in whole segments; of one host, unless it is for all hosts.
    Prefix { host: Option<Box<str>>, path: Box<str> },
    /// All responses with this tag.
    Tag(Box<str>),
}

/// The tags of a response (`Cache-Tag`, `Surrogate-Key`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tags {
    told_apart: Box<[Digest]>,
    /// It has more of them: any tag may be one of its own.
    has_more: bool,
}

impl Tags {
    pub fn of(headers: &HeaderMap) -> Self {
        let lines = TAG_FIELDS
            .iter()
            .flat_map(|(name, separator)| headers.get_all(name).into_iter().map(|line| (line.as_bytes(), *separator)));
        let mut tags = lines.flat_map(|(line, separator)| tags_of(line, separator)).map(Digest::of);
        let told_apart = tags.by_ref().take(MOST_TAGS).collect();
        Self { told_apart, has_more: tags.next().is_some() }
    }

    pub fn iter(&self) -> impl Iterator<Item = Digest> {
        self.told_apart.iter().copied()
    }

    pub(crate) fn weight(&self) -> usize {
        size_of_val(&*self.told_apart)
    }
}

fn tags_of(line: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    line.split(move |byte| *byte == separator).map(<[u8]>::trim_ascii).filter(|tag| !tag.is_empty())
}

/// Whether a response can have this tag.
pub fn is_tag(text: &str) -> bool {
    HeaderValue::from_str(text).is_ok_and(|value| value.to_str().is_ok())
        && TAG_FIELDS.iter().any(|(_, separator)| tags_of(text.as_bytes(), *separator).eq([text.as_bytes()]))
}

/// The purges of one tenant.
#[derive(Debug, Default)]
pub struct Purges {
    latest: AtomicU64,
    table: RwLock<Table>,
}

/// Operators make purges of all kinds, clients those of URLs alone, which therefore have a table of their own: however many
/// they are, they take no place of others.
#[derive(Debug, Default)]
struct Table {
    /// Everything that was asked for before this one is purged.
    floor: Sequence,
    urls: Kind,
    prefixes: Kind,
    /// Bytes of the longest path in `prefixes`: paths are looked up so far and no further.
    longest_prefix: usize,
    tags: Kind,
    /// The last one of a tag.
    last_of_tag: Sequence,
}

/// The purges of one kind, in bounded memory.
#[derive(Debug, Default)]
struct Kind {
    told_apart: HashMap<Digest, Sequence, foldhash::quality::RandomState>,
    /// Older ones than any of these. Each leaves its number in a place that it shares with few others, which are purged
    /// with it. There are places once they are needed.
    folded: Box<[Sequence]>,
}

impl Purges {
    /// The last purge so far. Whatever is asked of the origin from now on is not concerned by it.
    pub fn latest(&self) -> Sequence {
        Sequence(self.latest.load(Ordering::Acquire))
    }

    /// Purges with the next number. `true`: there are so many that older ones are not told apart any more, and some things
    /// beside those that were meant are purged.
    pub fn add(&self, purge: &Purge) -> bool {
        let mut table = self.table.write();
        let sequence = Sequence(self.latest.load(Ordering::Relaxed) + 1);
        let folded = table.add(purge, sequence);
        // Last, so that whoever sees the number finds the purge.
        self.latest.store(sequence.0, Ordering::Release);
        folded
    }

    /// Whether a stored response has not been purged.
    pub(crate) fn spare(&self, resource: &Resource, stored: &Stored) -> bool {
        let (latest, checked) = (self.latest(), stored.checked());
        if checked >= latest {
            return true;
        }
        if self.table.read().concern(resource, &stored.tags, checked) {
            return false;
        }
        stored.set_checked(latest);
        true
    }
}

impl Table {
    fn add(&mut self, purge: &Purge, sequence: Sequence) -> bool {
        match purge {
            Purge::All => {
                *self = Self { floor: sequence, ..Self::default() };
                false
            }
            Purge::Url(url) => self.urls.add(*url, sequence),
            Purge::Prefix { host, path } => {
                let path = path.strip_suffix('/').unwrap_or(path);
                self.longest_prefix = self.longest_prefix.max(path.len());
                let host = host.as_deref().map(host_name).unwrap_or_default();
                self.prefixes.add(Digest::of((host + path).as_bytes()), sequence)
            }
            Purge::Tag(tag) => {
                self.last_of_tag = sequence;
                self.tags.add(Digest::of(tag.as_bytes()), sequence)
            }
        }
    }

    /// Whether a purge after this number is about such a response.
    fn concern(&self, resource: &Resource, tags: &Tags, since: Sequence) -> bool {
        self.floor > since
            || self.urls.after(resource.digest(), since)
            || self.prefix_after(resource, since)
            || self.last_of_tag > since && (tags.has_more || tags.iter().any(|tag| self.tags.after(tag, since)))
    }

    /// The path and all that it begins with, in whole segments and without the slash at the end, with the host and
    /// without. One pass, however many segments there are.
    fn prefix_after(&self, resource: &Resource, since: Sequence) -> bool {
        if self.prefixes.is_empty() {
            return false;
        }
        let path = resource.path();
        let mut hashers = [Sha256::new_with_prefix(resource.host()), Sha256::new()];
        let mut start = 0;
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        for end in ends.take_while(|end| *end <= self.longest_prefix) {
            for hasher in &mut hashers {
                hasher.update(&path[start..end]);
                if self.prefixes.after(hasher.clone().into(), since) {
                    return true;
                }
            }
            start = end;
        }
        false
    }
}

impl Kind {
    fn is_empty(&self) -> bool {
        self.told_apart.is_empty()
    }

    /// `true`: older ones are not told apart any more.
    fn add(&mut self, digest: Digest, sequence: Sequence) -> bool {
        let is_full = self.told_apart.len() >= MOST_TOLD_APART && !self.told_apart.contains_key(&digest);
        if is_full {
            self.fold();
        }
        self.told_apart.insert(digest, sequence);
        is_full
    }

    /// The older half.
    fn fold(&mut self) {
        let mut numbers: Vec<Sequence> = self.told_apart.values().copied().collect();
        let (_, middle, _) = numbers.select_nth_unstable(MOST_TOLD_APART / 2);
        let middle = *middle;
        if self.folded.is_empty() {
            self.folded = vec![Sequence::default(); PLACES].into();
        }
        for (digest, sequence) in self.told_apart.extract_if(|_, sequence| *sequence <= middle) {
            if let Some(place) = self.folded.get_mut(usize::from(digest.short())) {
                *place = sequence.max(*place);
            }
        }
    }

    /// Whether this was purged after this number.
    fn after(&self, digest: Digest, since: Sequence) -> bool {
        // What is told apart is younger than all that is folded.
        let found = self.told_apart.get(&digest).or_else(|| self.folded.get(usize::from(digest.short())));
        found.is_some_and(|sequence| *sequence > since)
    }
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
    fn spared(purge: &Purge, paths: &[&str]) -> Vec<bool> {
        let purges = Purges::default();
        let all: Vec<_> = paths.iter().map(|path| (resource(path), stored(&[], purges.latest()))).collect();
        purges.add(purge);
        all.iter().map(|(resource, stored)| purges.spare(resource, stored)).collect()
    }

    #[test]
    fn a_url_is_purged_alone() {
        assert_eq!(spared(&Purge::Url(resource("/x").digest()), &["/x", "/x/", "/xy", "/"]), [false, true, true, true]);
    }

    #[test]
    fn a_prefix_is_purged_in_whole_segments() {
        let paths = ["/x", "/x/", "/x/y/z", "/xy", "/"];
        let purge = |host: Option<&str>, path: &str| Purge::Prefix { host: host.map(Box::from), path: path.into() };
        assert_eq!(spared(&purge(None, "/x/"), &paths), [false, false, false, true, true]);
        assert_eq!(spared(&purge(Some("a.test"), "/x"), &paths), [false, false, false, true, true]);
        assert_eq!(spared(&purge(Some("A.test.:80"), "/x/y/z"), &paths), [true, true, false, true, true]);
        assert_eq!(spared(&purge(Some("b.test"), "/x"), &paths), [true; 5]);
        assert_eq!(spared(&purge(None, "/"), &paths), [false; 5]);
    }

    #[test]
    fn tags_are_read_from_both_fields() {
        let tags = |fields: &[_]| stored(fields, Sequence::default()).tags.iter().collect::<Vec<_>>();
        let expected = ["a b", "c", "d", "e", "f,g"];
        let expected = expected.map(|tag| Digest::of(tag.as_bytes()));
        assert_eq!(tags(&[("cache-tag", "a b, c,,d"), ("surrogate-key", "e  f,g")]), expected);
        let purges = Purges::default();
        let (one, other) =
            (stored(&[("cache-tag", "a,b")], purges.latest()), stored(&[("cache-tag", "ab")], purges.latest()));
        purges.add(&Purge::Tag("b".into()));
        assert!(!purges.spare(&resource("/"), &one) && purges.spare(&resource("/"), &other));
    }

    #[test]
    fn a_tag_beyond_ascii_hides_none_beside_it() {
        let purges = Purges::default();
        let headers = [(TAG_FIELDS[0].0.clone(), HeaderValue::from_bytes("products, café".as_bytes()).unwrap())];
        let tags = Tags::of(&headers.into_iter().collect());
        assert_eq!(tags.iter().collect::<Vec<_>>(), ["products", "café"].map(|tag| Digest::of(tag.as_bytes())));
        purges.add(&Purge::Tag("products".into()));
        assert!(purges.table.read().concern(&resource("/"), &tags, Sequence::default()));
    }

    #[test]
    fn what_has_more_tags_than_are_told_apart_goes_with_any_of_them() {
        let tags = |count: usize| {
            let line: Vec<_> = (0..count).map(|number| format!("t{number}")).collect();
            let field = (TAG_FIELDS[1].0.clone(), HeaderValue::from_str(&line.join(" ")).unwrap());
            Tags::of(&[field].into_iter().collect())
        };
        let (many, most) = (tags(MOST_TAGS + 1), tags(MOST_TAGS));
        assert_eq!((many.iter().count(), most.iter().count()), (MOST_TAGS, MOST_TAGS));
        let purges = Purges::default();
        let concerned = |tags| purges.table.read().concern(&resource("/"), tags, Sequence::default());
        purges.add(&Purge::Url(resource("/y").digest()));
        assert!(!concerned(&many) && !concerned(&most));
        purges.add(&Purge::Tag(format!("t{MOST_TAGS}").into()));
        assert!(concerned(&many) && !concerned(&most));
    }

    #[test]
    fn what_was_asked_for_afterwards_is_not_concerned() {
        let purges = Purges::default();
        purges.add(&Purge::All);
        let since = purges.latest();
        let fetched = stored(&[], since);
        assert!(purges.spare(&resource("/"), &fetched));
        // A purge while the origin is being asked concerns what it answers.
        purges.add(&Purge::Url(resource("/").digest()));
        assert!(!purges.spare(&resource("/"), &fetched));
        assert!(!purges.spare(&resource("/"), &stored(&[], since)));
    }

    #[test]
    fn a_tag_that_no_response_can_have_is_none() {
        assert!(["a", "a b", "f,g", "!~"].into_iter().all(is_tag));
        for text in ["", " ", " a", "a ", "a, b", "a\n", "a\u{7f}", "\u{e4}"] {
            assert!(!is_tag(text), "{text:?}");
        }
    }

    fn numbered(number: usize) -> Resource {
        resource(&format!("/{number}"))
    }

    #[test]
    fn so_many_purges_take_no_more_memory_and_purge_little_beside_what_is_meant() {
        const PURGES: usize = 3 * MOST_TOLD_APART;
        let purges = Purges::default();
        let early = purges.latest();
        let folded = (0..PURGES).filter(|number| purges.add(&Purge::Url(numbered(*number).digest()))).count();
        assert_eq!(folded, 4);
        {
            let table = purges.table.read();
            assert!(table.urls.told_apart.len() <= MOST_TOLD_APART && table.urls.folded.len() == PLACES);
            assert!(table.urls.told_apart.capacity() <= 2 * MOST_TOLD_APART, "{}", table.urls.told_apart.capacity());
        }
        // Rather too much is purged than too little, and of what was not meant a small part.
        assert!((0..PURGES).all(|number| !purges.spare(&numbered(number), &stored(&[], early))));
        let others = PURGES..PURGES + 1000;
        let spared = others.filter(|number| purges.spare(&numbered(*number), &stored(&[], early))).count();
        assert!((500..1000).contains(&spared), "{spared}");
        assert!(purges.spare(&numbered(0), &stored(&[], purges.latest())));
    }

    #[test]
    fn where_everything_is_purged_nothing_else_is_kept() {
        let purges = Purges::default();
        for number in 0..=MOST_TOLD_APART {
            purges.add(&Purge::Url(numbered(number).digest()));
            purges.add(&Purge::Prefix { host: None, path: format!("/{number}").into() });
            purges.add(&Purge::Tag(number.to_string().into()));
        }
        let allocated = || {
            let table = purges.table.read();
            [&table.urls, &table.prefixes, &table.tags].map(|kind| (kind.told_apart.capacity(), kind.folded.len()))
        };
        assert!(allocated().iter().all(|(told_apart, folded)| *told_apart > 0 && *folded > 0));
        purges.add(&Purge::All);
        assert_eq!(allocated(), [(0, 0); 3]);
    }

    #[test]
    fn however_much_clients_change_no_purge_of_an_operator_is_given_up() {
        let purges = Purges::default();
        let early = purges.latest();
        purges.add(&Purge::Tag("t".into()));
        purges.add(&Purge::Prefix { host: None, path: "/p".into() });
        for number in 0..2 * MOST_TOLD_APART {
            purges.add(&Purge::Url(numbered(number).digest()));
        }
        let table = purges.table.read();
        assert_eq!((table.tags.told_apart.len(), table.prefixes.told_apart.len()), (1, 1));
        drop(table);
        assert!(!purges.spare(&resource("/x"), &stored(&[("cache-tag", "t")], early)));
        assert!(!purges.spare(&resource("/p/q"), &stored(&[], early)));
    }

    #[test]
    fn long_paths_are_looked_up_no_further_than_prefixes_are_long() {
        let purges = Purges::default();
        let early = purges.latest();
        purges.add(&Purge::Prefix { host: Some("a.test".into()), path: "/a/a/".into() });
        let long = resource(&"/a".repeat(4000));
        assert!(!purges.spare(&long, &stored(&[], early)));
        assert!(purges.spare(&resource(&"/b".repeat(4000)), &stored(&[], early)));
        assert_eq!(purges.table.read().longest_prefix, 4);
    }
}
