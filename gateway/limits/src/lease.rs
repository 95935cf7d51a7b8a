//! The tokens at hand. What a request pays is one atomic exchange for each limit.

use crate::sync::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
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
/// Half a cache line is all that an admitted request touches, so that the four limits that a tenant
/// mostly has are two lines side by side: of many tenants, hardly one is in the processor's cache.
#[derive(Debug)]
#[repr(align(32))]
pub struct Lease {
    /// Generation; the mark below which renewal is due, in the form of [`to_mark`]; tokens.
    word: AtomicU64,
    /// From when on the tokens are void, in [`Nanos`](crate::clock::Nanos).
    ends: AtomicU64,
    /// Tokens that requests asked for since the last exchange.
    asked: AtomicU64,
    rest: Box<Rest>,
}

/// What only those requests need that find too few tokens, and those who report.
#[derive(Debug)]
struct Rest {
    /// Until when requests that cost as much are refused without asking again.
    barred_until: AtomicU64,
    barred_cost: AtomicU64,
    /// What was left for everybody when last heard.
    left: AtomicU64,
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

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Take {
    Taken(Taken),
    /// There are not enough tokens here; there may be some elsewhere.
    Empty,
    /// There are none anywhere before this time.
    Barred {
        until: u64,
    },
}

/// Tokens that were taken, for [`Lease::put_back`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    generation: u64,
    /// Renewal is due.
    pub low: bool,
}

impl Lease {
    /// Without tokens.
    pub fn new() -> Self {
        Self {
            word: AtomicU64::new(0),
            ends: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            rest: Box::new(Rest {
                barred_until: AtomicU64::new(0),
                barred_cost: AtomicU64::new(0),
                left: AtomicU64::new(0),
            }),
        }
    }

    /// Takes `cost` tokens, if there are as many.
    pub fn take(&self, cost: u64, now: u64) -> Take {
        // Not exact, and need not be: it is what demand is guessed from.
        self.asked.store(self.asked.load(Relaxed).wrapping_add(cost), Relaxed);
        let mut word = self.word.load(Acquire);
        loop {
            let tokens = word & TOKENS;
            // After the word: an end that was moved on belongs to these tokens or to later ones, and in a
            // later generation the exchange below fails.
            if tokens < cost || now >= self.ends.load(Acquire) {
                return self.nothing(cost, now);
            }
            match self.word.compare_exchange_weak(word, word - cost, AcqRel, Acquire) {
                Ok(_) => {
                    let low = tokens - cost < of_mark(word >> TOKEN_BITS & ((1 << LOW_BITS) - 1));
                    return Take::Taken(Taken { generation: word >> GENERATION_SHIFT, low });
                }
                Err(changed) => word = changed,
            }
        }
    }

    fn nothing(&self, cost: u64, now: u64) -> Take {
        let until = self.rest.barred_until.load(Acquire);
        if now < until && cost >= self.rest.barred_cost.load(Relaxed) { Take::Barred { until } } else { Take::Empty }
    }

    /// Gives back what a request took and does not need. If the lease was voided meanwhile, they count as spent.
    pub fn put_back(&self, taken: Taken, cost: u64) {
        let mut word = self.word.load(Acquire);
        while word >> GENERATION_SHIFT == taken.generation {
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
        let mut word = self.word.load(Acquire);
        loop {
            let sum = (word & TOKENS) + tokens;
            // Renewal is due when half of them are spent. A single one is not worth it.
            let low = to_mark(sum / 2);
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

    /// Nothing that costs as much is to be had anywhere before this time.
    pub fn bar(&self, cost: u64, until: u64) {
        self.rest.barred_cost.store(cost, Relaxed);
        self.rest.barred_until.store(until, Release);
    }

    /// What was left for everybody.
    pub fn set_left(&self, left: u64) {
        self.rest.left.store(left, Relaxed);
    }

    /// What was left for everybody when last heard.
    pub fn left(&self) -> u64 {
        self.rest.left.load(Relaxed)
    }

    /// What could be had, as far as is known here.
    pub fn remaining(&self, now: u64) -> u64 {
        let own = if self.has_ended(now) { 0 } else { self.tokens() };
        own.saturating_add(self.rest.left.load(Relaxed))
    }

    /// Until when requests are refused without asking, if they are.
    pub fn barred_until(&self) -> u64 {
        self.rest.barred_until.load(Relaxed)
    }

    /// Tokens asked for so far; wraps.
    pub fn asked(&self) -> u64 {
        self.asked.load(Relaxed)
    }
}

impl Default for Lease {
    fn default() -> Self {
        Self::new()
    }
}
