//! What is known of an account beside the tokens at hand: what only those requests need that find too few of
//! them, those who report, and those who tell clients.

use std::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use crate::clock::Nanos;

/// One account, as it was last heard of.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Until when requests that cost as much are refused without asking again.
    barred_until: AtomicU64,
    barred_cost: AtomicU64,
    /// What was left for everybody.
    left: AtomicU64,
    /// Tokens that requests asked for in vain; of slots, also those that were given. Wraps.
    asked: AtomicU64,
    /// Of a quota: when its period ends and the next one begins. Of a bucket, while tokens come by and by: when the
    /// next one does.
    next_at: AtomicU64,
    /// Of a bucket: until when tokens come by and by.
    promised_until: AtomicU64,
    /// When it is worth asking whether there is more; 0: when leases are renewed.
    again_at: AtomicU64,
    /// The most that one request has asked for in vain, and whether any was refused, since that was last looked at.
    heaviest: AtomicU32,
    refused: AtomicBool,
}

impl Known {
    /// Until when a request that costs as much is refused; none if there may be tokens for it.
    pub(super) fn bar(&self, cost: u64, now: Nanos) -> Option<Nanos> {
        let until = self.barred_until.load(Acquire);
        (now < until && cost >= self.barred_cost.load(Relaxed)).then_some(until)
    }

    /// Nothing that costs as much is to be had anywhere before this time.
    pub(super) fn set_bar(&self, cost: u64, until: Nanos) {
        self.barred_cost.store(cost, Relaxed);
        self.barred_until.store(until, Release);
    }

    pub(super) fn lift_bar(&self) {
        self.barred_until.store(0, Release);
    }

    /// Until when requests are refused without asking, if they are.
    pub(super) fn barred_until(&self) -> Nanos {
        self.barred_until.load(Relaxed)
    }

    pub(super) fn left(&self) -> u64 {
        self.left.load(Relaxed)
    }

    pub(super) fn set_left(&self, left: u64) {
        self.left.store(left, Relaxed);
    }

    pub(super) fn renewed_at(&self) -> Nanos {
        self.next_at.load(Relaxed)
    }

    pub(super) fn set_renewed_at(&self, at: Nanos) {
        self.next_at.store(at, Relaxed);
    }

    pub(super) fn ask(&self, cost: u64) {
        self.asked.fetch_add(cost, Relaxed);
        if cost > 1 {
            self.heaviest.fetch_max(u32::try_from(cost).unwrap_or(u32::MAX), Relaxed);
        }
    }

    /// Looks, and begins anew.
    pub(super) fn heaviest(&self) -> u64 {
        self.heaviest.swap(0, Relaxed).into()
    }

    /// A request is refused, and wanted so much all the same: by that each gateway has its part.
    pub(super) fn refuse(&self, cost: u64) {
        self.ask(cost);
        self.refused.store(true, Relaxed);
    }

    /// Looks, and begins anew.
    pub(super) fn has_refused(&self) -> bool {
        self.refused.swap(false, Relaxed)
    }

    pub(super) fn has_promise(&self, now: Nanos) -> bool {
        now < self.promised_until.load(Acquire)
    }

    /// When the next token comes, if it does not now.
    pub(super) fn comes_at(&self, now: Nanos) -> Option<Nanos> {
        let at = self.next_at.load(Relaxed);
        (now < at).then_some(at)
    }

    pub(super) fn set_next_at(&self, at: Nanos) {
        self.next_at.store(at, Relaxed);
    }

    pub(super) fn promised_until(&self) -> Nanos {
        self.promised_until.load(Relaxed)
    }

    pub(super) fn set_promised_until(&self, until: Nanos) {
        self.promised_until.store(until, Release);
    }

    pub(super) fn set_again_at(&self, at: Nanos) {
        self.again_at.store(at, Relaxed);
    }

    /// Whether it is worth asking again; says so to one of those who want to know.
    pub(super) fn is_worth_asking(&self, now: Nanos) -> bool {
        let at = self.again_at.load(Relaxed);
        at != 0 && now >= at && self.again_at.compare_exchange(at, 0, Relaxed, Relaxed).is_ok()
    }

    pub(super) fn asked(&self) -> u64 {
        self.asked.load(Relaxed)
    }
}
