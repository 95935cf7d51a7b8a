//! A stored response, and the variants that are stored under one key.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::{
    key::Resource,
    purge::{Sequence, Tags},
    reuse::Rules,
    storage::{Place, Storage, Twin},
    vary::{Selection, Wishes},
};

/// Variants of one key; of more, the oldest goes that was not used lately. Each look-up compares with all of them.
pub const MOST_VARIANTS: usize = 32;

/// Seconds for which a response is not waited for where nothing storable was found.
pub const PASS_SECONDS: u64 = 30;

/// What a stored response takes beside its texts: the entry of the map, its statistics, the allocations.
const OVERHEAD: usize = 768;
/// What a field takes in a map beside its name and value: its place, its part of the index, and the allocation of a
/// name that is not well known.
const FIELD_OVERHEAD: usize = 192;

/// Fields that an answer may have beside the stored ones.
const ADDED_FIELDS: usize = 16;

/// One response, as it was stored or last validated.
#[derive(Debug)]
pub struct Stored {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub rules: Rules,
    pub selection: Selection,
    pub tags: Tags,
    /// The last purge that it is known not to be concerned by.
    checked: AtomicU64,
    /// Somebody is validating it in the background.
    refreshing: AtomicBool,
    /// How often validating it has failed, for those who wait for it.
    failures: AtomicU64,
    /// Somebody has waited for it to be validated, in vain.
    waited_in_vain: AtomicBool,
    /// Since it was last considered for making way to another variant.
    used: AtomicBool,
    /// None where the body is of no size for a twin.
    twin: Option<Arc<Place>>,
    weight: usize,
}

/// What a [`Stored`] is made of.
#[derive(Debug)]
pub struct Parts {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub rules: Rules,
    pub selection: Selection,
    /// The last purge before the origin was asked.
    pub since: Sequence,
}

impl Stored {
    pub fn new(parts: Parts) -> Self {
        let Parts { status, headers, body, rules, selection, since } = parts;
        let headers = compacted(&headers);
        let tags = Tags::of(&headers);
        let fields = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + FIELD_OVERHEAD;
        let weight =
            OVERHEAD + body.len() + headers.iter().map(fields).sum::<usize>() + selection.weight() + tags.weight();
        let checked = AtomicU64::new(since.get());
        let (refreshing, used) = (AtomicBool::new(false), AtomicBool::new(false));
        let twin = Place::of(&body);
        let (failures, waited_in_vain) = (AtomicU64::new(0), AtomicBool::new(false));
        Self {
            status,
            headers,
            body,
            rules,
            selection,
            tags,
            checked,
            refreshing,
            failures,
            waited_in_vain,
            used,
            twin,
            weight,
        }
    }

    /// The same body under what a validation has changed.
    #[must_use]
    pub fn renewed(&self, headers: HeaderMap, rules: Rules, selection: Selection, since: Sequence) -> Self {
        let (status, body) = (self.status, self.body.clone());
        let new = Self::new(Parts { status, headers, body, rules, selection, since });
        Self { twin: self.twin.clone(), ..new }
    }

    /// The body once more, for who is about to send it and can send a file; from the second time on.
    pub fn twin(&self, storage: &Storage) -> Option<Arc<Twin>> {
        self.twin.as_ref()?.twin(&self.body, storage.twins())
    }

    /// Bytes that it takes in memory, about.
    pub fn weight(&self) -> usize {
        self.weight
    }

    /// Once it has left the cache.
    pub(crate) fn let_go_of_file(&self) {
        if let Some(place) = &self.twin {
            place.clear();
        }
    }

    pub(crate) fn checked(&self) -> Sequence {
        Sequence::new(self.checked.load(Relaxed))
    }

    pub(crate) fn set_checked(&self, sequence: Sequence) {
        self.checked.fetch_max(sequence.get(), Relaxed);
    }

    /// The last purge that it is known not to be concerned by, for what replaces it.
    pub fn since(&self) -> Sequence {
        self.checked()
    }

    /// Whether the caller is the one to validate it in the background; nobody else is until [`Self::refreshed`].
    pub fn begin_refresh(&self) -> bool {
        !self.refreshing.swap(true, Relaxed)
    }

    /// The attempt to validate it is over. Where it went well, another has taken its place.
    pub fn refreshed(&self) {
        self.refreshing.store(false, Relaxed);
    }

    /// How often validating it has failed so far.
    pub fn failures(&self) -> u64 {
        self.failures.load(Relaxed)
    }

    /// Validating it has failed: whoever waits for that knows by [`Self::failures`].
    pub fn validation_failed(&self) {
        self.failures.fetch_add(1, Relaxed);
    }

    /// Whether it is worth while to wait for somebody else who validates it.
    pub fn is_worth_waiting_for(&self) -> bool {
        self.rules.can_be_fresh() && !self.waited_in_vain.load(Relaxed)
    }

    /// Somebody has waited in vain; nobody else is to, until something else has taken its place.
    pub fn waited_in_vain(&self) {
        self.waited_in_vain.store(true, Relaxed);
    }

    pub fn has_validator(&self) -> bool {
        self.headers.contains_key(header::ETAG) || self.headers.contains_key(header::LAST_MODIFIED)
    }
}

/// The same fields, in memory of their own: as they came, they are parts of whatever was read from the connection.
/// All values are parts of one allocation, which is as large as they are.
///
/// Answers begin as copies of a stored head, and fields are added to each. A copy's index is as large as that of the
/// original, which therefore gets one that need not grow; its list of fields is as long as it must be.
fn compacted(headers: &HeaderMap) -> HeaderMap {
    let mut text = Vec::with_capacity(headers.values().map(HeaderValue::len).sum());
    for value in headers.values() {
        text.extend_from_slice(value.as_bytes());
    }
    let mut text = Bytes::from(text);
    let mut roomy = HeaderMap::with_capacity(headers.len() + ADDED_FIELDS);
    for (name, value) in headers {
        let own = HeaderValue::from_maybe_shared(text.split_to(value.len()));
        // They can be read: they were read before.
        if let (Ok(name), Ok(mut own)) = (HeaderName::from_bytes(name.as_str().as_bytes()), own) {
            own.set_sensitive(value.is_sensitive());
            roomy.append(name, own);
        }
    }
    roomy.clone()
}

/// All that is stored under one key.
#[derive(Debug)]
pub struct Family {
    pub resource: Resource,
    pub(crate) key: Arc<[u8]>,
    variants: Vec<Arc<Stored>>,
    /// Since it was last considered for eviction.
    used: AtomicBool,
    weight: usize,
}

impl Family {
    pub(crate) fn new(key: Arc<[u8]>, resource: Resource) -> Self {
        Self { resource, key, variants: Vec::new(), used: AtomicBool::new(false), weight: 0 }.weighed()
    }

    fn weighed(mut self) -> Self {
        let variants: usize = self.variants.iter().map(|stored| stored.weight() + size_of::<Stored>()).sum();
        // The key stands in the map and in the order of eviction as one allocation.
        self.weight = OVERHEAD + self.key.len() + self.resource.as_str().len() + variants;
        self
    }

    /// The same with this variant, which takes the place of the one with the same selection. `most`: bytes that it may
    /// take in all, for which others go.
    pub(crate) fn with(&self, stored: Arc<Stored>, most: usize) -> Self {
        let others = self.variants.iter().filter(|other| other.selection != stored.selection).cloned();
        let mut variants: Vec<_> = others.collect();
        if variants.len() >= MOST_VARIANTS {
            // What was used gets a second chance, behind all others.
            let at = variants.iter().position(|variant| !variant.used.swap(false, Relaxed)).unwrap_or(0);
            variants.rotate_left(at);
            variants.remove(0);
        }
        variants.push(stored);
        let mut next = self.of(variants);
        while next.weight > most && next.variants.len() > 1 {
            next.variants.remove(0);
            next = next.weighed();
        }
        next
    }

    /// The same without this variant.
    pub(crate) fn without(&self, stored: &Arc<Stored>) -> Self {
        self.of(self.variants.iter().filter(|other| !Arc::ptr_eq(other, stored)).cloned().collect())
    }

    /// The same with these variants alone.
    pub(crate) fn of(&self, variants: Vec<Arc<Stored>>) -> Self {
        let (resource, key) = (self.resource.clone(), self.key.clone());
        Self { resource, key, variants, used: AtomicBool::new(self.is_used()), weight: 0 }.weighed()
    }

    /// The newest variant that may answer a request with these fields (RFC 9111 §4.1).
    pub(crate) fn find(&self, request: &HeaderMap) -> Option<&Arc<Stored>> {
        let mut wishes = Wishes::of(request);
        let matching = self.variants.iter().filter(|stored| stored.selection.matches(&mut wishes));
        let found = matching.max_by_key(|stored| stored.rules.answered)?;
        set(&found.used);
        Some(found)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.variants.is_empty()
    }

    pub(crate) fn variants(&self) -> &[Arc<Stored>] {
        &self.variants
    }

    pub(crate) fn weight(&self) -> usize {
        self.weight
    }

    pub(crate) fn touch(&self) {
        set(&self.used);
    }

    fn is_used(&self) -> bool {
        self.used.load(Relaxed)
    }

    /// Whether it was used since the last call.
    pub(crate) fn take_used(&self) -> bool {
        self.used.swap(false, Relaxed)
    }
}

/// Most are set already: a read is cheaper than a write that all cores see.
fn set(used: &AtomicBool) {
    if !used.load(Relaxed) {
        used.store(true, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn fields_are_kept_in_memory_of_their_own() {
        let read = Bytes::from([b"value, other-value, ".as_slice(), &[b' '; 4000]].concat());
        let mut headers = HeaderMap::new();
        for (name, range) in [("x-a", 0..5), ("etag", 7..18), ("x-a", 0..0)] {
            let value = HeaderValue::from_maybe_shared(read.slice(range)).unwrap();
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value);
        }
        headers.get_mut("etag").unwrap().set_sensitive(true);
        let own = compacted(&headers);
        assert_eq!(own, headers);
        assert!(own["etag"].is_sensitive() && !own["x-a"].is_sensitive());
        assert!(!read.is_unique());
        drop(headers);
        assert!(read.is_unique());
        // As long as the text of both.
        let start = |name: &str| own[name].as_bytes().as_ptr().addr();
        assert_eq!(start("x-a").abs_diff(start("etag")), 5);
    }
}
