//! The tokens at hand. What a request pays is one atomic exchange for each limit.

use crate::sync::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Release},
};

/// Bits of the word: tokens, then how low they may get, then the generation.
pub(crate) const TOKEN_BITS: u32 = 45;
pub(crate) const LOW_BITS: u32 = 7;
const TOKENS: u64 = (1 << TOKEN_BITS) - 1;
const GENERATION_SHIFT: u32 = TOKEN_BITS + LOW_BITS;

/// The tokens of one account that this gateway holds.
///
/// A lease goes through generations: voiding it begins the next one, so that a token that is put back
/// after its lease has ended is not spent again.
///
/// A quarter of a cache line.
#[derive(Debug)]
#[repr(align(16))]
pub struct Lease {
    /// Generation; the mark below which renewal is due, in the form of [`to_mark`]; tokens.
    word: AtomicU64,
    /// From when on the tokens are void, in [`Nanos`](crate::clock::Nanos).
    ends: AtomicU64,
}

/// Those of one plan, in its order. The first ones lie within: see [`Holdings`](crate::holdings::Holdings).
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Leases {
    first: [Lease; Self::WITHIN],
    more: Box<[Lease]>,
    count: usize,
}

impl Leases {
    /// As many as a tenant mostly has.
    const WITHIN: usize = 4;

    /// Without tokens.
    pub(crate) fn new(count: usize) -> Self {
        let more = (Self::WITHIN..count).map(|_| Lease::new()).collect();
        Self { first: Default::default(), more, count }
    }

    /// Whoever asks knows the plan: what is not in it has no tokens.
    pub(crate) fn get(&self, index: usize) -> Option<&Lease> {
        self.first.get(index).or_else(|| self.more.get(index - Self::WITHIN))
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Lease> {
        self.first.iter().chain(&self.more).take(self.count)
    }
}

/// The largest number that is not above this one and has no more than two binary digits that are not 0, in a
/// few bits: twice its place of the first digit, and the second digit.
pub(crate) fn to_mark(tokens: u64) -> u64 {
    match tokens {
        0 | 1 => tokens,
        _ => {
            let first = tokens.ilog2();
            u64::from(2 * first) | tokens >> (first - 1) & 1
        }
    }
}

pub(crate) fn of_mark(mark: u64) -> u64 {
    if mark == 0 { 0 } else { ((2 | mark & 1) << (mark >> 1)) >> 1 }
}

/// Tokens that were taken, for [`Lease::put_back`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    generation: u16,
    /// Renewal is due.
    pub low: bool,
}

impl Lease {
    /// Without tokens.
    pub fn new() -> Self {
        Self { word: AtomicU64::new(0), ends: AtomicU64::new(0) }
    }

    /// Whether there seem to be as many tokens. Only reads, and so costs next to nothing beside taking them.
    pub fn seems_to_hold(&self, cost: u64, now: u64) -> bool {
        self.tokens() >= cost && !self.has_ended(now)
    }

    /// Takes `cost` tokens, if there are as many.
    pub fn take(&self, cost: u64, now: u64) -> Option<Taken> {
        let mut word = self.word.load(Acquire);
        loop {
            let tokens = word & TOKENS;
            // After the word: an end that was moved on belongs to these tokens or to later ones, and in a
            // later generation the exchange below fails.
            if tokens < cost || now >= self.ends.load(Acquire) {
                return None;
            }
            match self.word.compare_exchange_weak(word, word - cost, AcqRel, Acquire) {
                Ok(_) => {
                    let low = tokens - cost < of_mark(word >> TOKEN_BITS & ((1 << LOW_BITS) - 1));
                    return Some(Taken { generation: generation(word), low });
                }
                Err(changed) => word = changed,
            }
        }
    }

    /// Gives back what a request took and does not need. If the lease was voided meanwhile, they count as spent.
    pub fn put_back(&self, taken: Taken, cost: u64) {
        let mut word = self.word.load(Acquire);
        while generation(word) == taken.generation {
            match self.word.compare_exchange_weak(word, word + cost, AcqRel, Acquire) {
                Ok(_) => return,
                Err(changed) => word = changed,
            }
        }
    }

    /// Tokens at hand. Whether they have ended is not looked at.
    pub fn tokens(&self) -> u64 {
        self.word.load(Acquire) & TOKENS
    }

    /// The moment from which on the tokens are void.
    pub fn ends(&self) -> u64 {
        self.ends.load(Acquire)
    }

    /// Whether the tokens are void.
    pub fn has_ended(&self, now: u64) -> bool {
        now >= self.ends.load(Acquire)
    }

    /// Takes all tokens out and begins the next generation; returns how many.
    pub fn void(&self) -> u64 {
        let mut word = self.word.load(Acquire);
        loop {
            let next = (word >> GENERATION_SHIFT).wrapping_add(1) << GENERATION_SHIFT;
            match self.word.compare_exchange_weak(word, next, AcqRel, Acquire) {
                Ok(_) => return word & TOKENS,
                Err(changed) => word = changed,
            }
        }
    }

    /// Takes all tokens out, of this generation; returns how many. What was taken before can still be put back.
    pub fn drain(&self) -> u64 {
        let mut word = self.word.load(Acquire);
        loop {
            let next = word & !TOKENS;
            match self.word.compare_exchange_weak(word, next, AcqRel, Acquire) {
                Ok(_) => return word & TOKENS,
                Err(changed) => word = changed,
            }
        }
    }

    /// Adds tokens to those that are there, and moves the end of all. Those that had ended must have been
    /// voided.
    pub fn add(&self, tokens: u64, ends: u64) {
        self.ends.store(ends, Release);
        // Renewal is due when half of them are spent. A single one is not worth it.
        self.add_with_mark(tokens, |sum| to_mark(sum / 2));
    }

    /// The same, where it matters that even a single one is told of when it is spent.
    pub fn add_few(&self, tokens: u64, ends: u64) {
        self.ends.store(ends, Release);
        self.add_with_mark(tokens, |sum| to_mark(sum.div_ceil(2)));
    }

    /// Adds tokens that have come by and by, as more will without renewal. They end with those that are there.
    pub fn add_promised(&self, tokens: u64) {
        self.add_with_mark(tokens, |_| 0);
    }

    fn add_with_mark(&self, tokens: u64, mark: impl Fn(u64) -> u64) {
        let mut word = self.word.load(Acquire);
        loop {
            let sum = (word & TOKENS) + tokens;
            let low = mark(sum);
            let next = word >> GENERATION_SHIFT << GENERATION_SHIFT | low << TOKEN_BITS | sum & TOKENS;
            match self.word.compare_exchange_weak(word, next, AcqRel, Acquire) {
                Ok(_) => return,
                Err(changed) => word = changed,
            }
        }
    }

    /// Moves the end of the tokens.
    pub fn extend(&self, ends: u64) {
        self.ends.store(ends, Release);
    }

    /// The tokens are void from then on, if not before.
    pub fn end_by(&self, ends: u64) {
        self.ends.fetch_min(ends, AcqRel);
    }
}

/// It has twelve bits.
#[allow(clippy::cast_possible_truncation)]
fn generation(word: u64) -> u16 {
    (word >> GENERATION_SHIFT) as u16
}

impl Default for Lease {
    fn default() -> Self {
        Self::new()
    }
}
