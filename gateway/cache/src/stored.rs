//! A stored response, and the variants that are stored under one key.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, StatusCode, header};

use crate::{
    key::Resource,
    purge::{Sequence, Tags},
    reuse::Rules,
    storage::{Place, Storage, Twin},
    time::Timestamp,
    vary::Selection,
};

/// Variants of one key; of more, the oldest goes. Each look-up compares with all of them.
pub const MOST_VARIANTS: usize = 32;

/// What a stored response takes beside its texts: the entry of the map, its statistics, the allocations.
const OVERHEAD: usize = 512;
/// What a field takes in a map beside its name and value.
const FIELD_OVERHEAD: usize = 80;

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
    slow: AtomicBool,
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
        let headers = with_room(headers);
        let tags = Tags::of(&headers);
        let fields =
            |(name, value): (&HeaderName, &http::HeaderValue)| name.as_str().len() + value.len() + FIELD_OVERHEAD;
        let weight =
            OVERHEAD + body.len() + headers.iter().map(fields).sum::<usize>() + selection.weight() + tags.weight();
        let (checked, refreshing) = (AtomicU64::new(since.get()), AtomicBool::new(false));
        let twin = Place::of(&body);
        let (failures, slow) = (AtomicU64::new(0), AtomicBool::new(false));
        Self { status, headers, body, rules, selection, tags, checked, refreshing, failures, slow, twin, weight }
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
        self.rules.can_be_fresh() && !self.slow.load(Relaxed)
    }

    /// Somebody has waited in vain; nobody else is to, until something else has taken its place.
    pub fn waited_in_vain(&self) {
        self.slow.store(true, Relaxed);
    }

    pub fn has_validator(&self) -> bool {
        self.headers.contains_key(header::ETAG) || self.headers.contains_key(header::LAST_MODIFIED)
    }
}

/// Answers begin as copies of a stored head, and fields are added to each. A copy's index is as large as that of the
/// original, which therefore gets one that need not grow; its list of fields is as long as it must be.
fn with_room(headers: HeaderMap) -> HeaderMap {
    let mut roomy = HeaderMap::with_capacity(headers.len() + ADDED_FIELDS);
    roomy.extend(headers);
    roomy.clone()
}

/// All that is stored under one key.
#[derive(Debug)]
pub struct Family {
    pub resource: Resource,
    pub(crate) key: Arc<[u8]>,
    variants: Vec<Arc<Stored>>,
    /// Until then responses are expected not to be storable, and requests do not wait for each other.
    pass_until: Option<Timestamp>,
    /// Since it was last considered for eviction.
    used: AtomicBool,
    weight: usize,
}

impl Family {
    pub(crate) fn new(key: Arc<[u8]>, resource: Resource) -> Self {
        Self { resource, key, variants: Vec::new(), pass_until: None, used: AtomicBool::new(false), weight: 0 }
            .weighed()
    }

    fn weighed(mut self) -> Self {
        let variants: usize = self.variants.iter().map(|stored| stored.weight() + size_of::<Stored>()).sum();
        // The key stands in the map and in the order of eviction as one allocation.
        self.weight = OVERHEAD + self.key.len() + self.resource.as_str().len() + variants;
        self
    }

    /// The same with this variant, which takes the place of the one with the same selection.
    pub(crate) fn with(&self, stored: Arc<Stored>) -> Self {
        let others = self.variants.iter().filter(|other| other.selection != stored.selection).cloned();
        let mut variants: Vec<_> = others.collect();
        variants.push(stored);
        if variants.len() > MOST_VARIANTS {
            variants.remove(0);
        }
        self.again(variants, None)
    }

    /// The same without this variant.
    pub(crate) fn without(&self, stored: &Arc<Stored>) -> Self {
        let others = self.variants.iter().filter(|other| !Arc::ptr_eq(other, stored)).cloned();
        self.again(others.collect(), self.pass_until)
    }

    pub(crate) fn passing(&self, until: Timestamp) -> Self {
        self.again(self.variants.clone(), Some(until))
    }

    fn again(&self, variants: Vec<Arc<Stored>>, pass_until: Option<Timestamp>) -> Self {
        let (resource, key) = (self.resource.clone(), self.key.clone());
        Self { resource, key, variants, pass_until, used: AtomicBool::new(self.is_used()), weight: 0 }.weighed()
    }

    /// The newest variant that may answer a request with these fields (RFC 9111 §4.1).
    pub(crate) fn find(&self, request: &HeaderMap) -> Option<&Arc<Stored>> {
        self.variants.iter().filter(|stored| stored.selection.matches(request)).max_by_key(|s| s.rules.answered)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.variants.is_empty()
    }

    pub(crate) fn variants(&self) -> &[Arc<Stored>] {
        &self.variants
    }

    pub(crate) fn passes(&self, now: Timestamp) -> bool {
        self.pass_until.is_some_and(|until| now < until)
    }

    pub(crate) fn weight(&self) -> usize {
        self.weight
    }

    pub(crate) fn touch(&self) {
        // Most are set already: a read is cheaper than a write that all cores see.
        if !self.is_used() {
            self.used.store(true, Relaxed);
        }
    }

    fn is_used(&self) -> bool {
        self.used.load(Relaxed)
    }

    /// Whether it was used since the last call.
    pub(crate) fn take_used(&self) -> bool {
        self.used.swap(false, Relaxed)
    }
}
