//! What a gateway knows of its accounts with the coordinator: what it was given of them, and what it has told.

use std::{sync::Arc, time::Duration};

use super::{
    Limit,
    alone::{Alone, Share},
    known::Known,
    promise::{FLIGHT, Promise},
};
use crate::{calendar::Period, clock::Nanos, coordinator::RENEWAL, lease::Lease, node::after};

/// Fewer tokens say nothing.
const FEW: u64 = 8;

/// What is known of the accounts.
#[derive(Debug)]
pub(super) struct State {
    /// One for each limit, from the first exchange on: of many tenants, few are ever asked for.
    pub(super) accounts: Vec<Account>,
    pub(super) alone: Option<Alone>,
    /// An exchange is under way.
    pub(super) in_flight: bool,
    pub(super) exchanged_at: Nanos,
    /// The account that the next exchange begins with: the one before had no room for it.
    pub(super) next: usize,
    /// Exchanges that were answered.
    pub(super) heard: u64,
}

impl State {
    pub(super) fn new() -> Self {
        Self { accounts: Vec::new(), alone: None, in_flight: false, exchanged_at: 0, next: 0, heard: 0 }
    }

    /// When the exchange that is under way began.
    pub(super) fn waits_since(&self) -> Option<Nanos> {
        self.in_flight.then_some(self.exchanged_at)
    }
}

#[derive(Debug, Default)]
pub(super) struct Account {
    /// Tokens that came, less those that were given back or became void: what is not at hand of them is spent.
    pub(super) granted: u64,
    /// What was spent and asked for in vain, at the last exchange; and when that was.
    pub(super) asked: u64,
    pub(super) exchanged_at: Nanos,
    /// What was asked for in a renewal's time, before that; of a quota, what others took of it in one, lately. As small
    /// as it can be: an idle tenant keeps one for each limit.
    pub(super) usual: u32,
    /// What the coordinator knows to be spent.
    pub(super) told: u64,
    /// When the coordinator answered last; 0: never.
    pub(super) answered_at: Nanos,
    /// Whether it has ever known what is left of it.
    pub(super) has_known: bool,
    /// How often in succession less was given than a lease may hold.
    pub(super) in_vain: u8,
    /// The account's period, if it is a quota's.
    pub(super) period: Option<Period>,
    /// What comes by and by. Not while an exchange is under way that tells how much has.
    pub(super) promise: Option<Promise>,
    /// Parts of a token that have come while the coordinator was away.
    pub(super) share: Share,
}

impl Account {
    pub(super) fn spent(&self, lease: &Lease) -> u64 {
        self.granted.saturating_sub(lease.tokens())
    }

    /// What was spent and asked for in vain so far; of slots, what was asked for. Wraps.
    pub(super) fn asked_by_now(&self, lease: &Lease, known: &Known, is_slots: bool) -> u64 {
        let spent = if is_slots { 0 } else { self.spent(lease) };
        spent.wrapping_add(known.asked())
    }

    /// Whether less than half of what has come by a promise is asked for, or half as much again as before: then others
    /// may want it, or have too much.
    pub(super) fn is_astray(&self, lease: &Lease, known: &Known, now: Nanos) -> bool {
        let Some(promise) = self.promise.as_ref().filter(|promise| !promise.is_told()) else { return false };
        let asked = self.asked_by_now(lease, known, false).wrapping_sub(self.asked).cast_signed();
        let asked = u64::try_from(asked).unwrap_or_default();
        let elapsed = Duration::from_nanos(now.saturating_sub(self.exchanged_at)).min(RENEWAL);
        let usual = u128::from(self.usual) * elapsed.as_micros() / RENEWAL.as_micros();
        let came = promise.has_come(now);
        came >= FEW && 2 * asked < came || u128::from(asked) > usual * 3 / 2 + 2 * u128::from(FEW)
    }

    /// Of a quota so much had been left when the coordinator answered before; now so much is, less what this gateway
    /// was given.
    pub(super) fn others_took(&mut self, left_before: u64, left: u64, answered_before: Nanos) {
        let elapsed = u128::from(self.answered_at.saturating_sub(answered_before));
        let renewal = RENEWAL.as_nanos();
        let took = u128::from(left_before.saturating_sub(left));
        // Answers may come one just after the other: what they say is added up, and what is older counts less.
        let lately = u128::from(self.usual) * renewal.saturating_sub(elapsed) / renewal;
        let took = lately + took * renewal / elapsed.max(renewal);
        self.usual = u32::try_from(took).unwrap_or(u32::MAX);
    }

    /// Of a quota: what others may have taken from when the coordinator answered last until it was away: as if they had
    /// begun to take twice as much, and a renewal before.
    pub(super) fn others_may_have_taken(&self, away_since: Nanos) -> u64 {
        let silence = Duration::from_nanos(away_since.saturating_sub(self.answered_at)) + RENEWAL;
        let most = 2 * u128::from(self.usual) * silence.as_millis() / RENEWAL.as_millis();
        u64::try_from(most).unwrap_or(u64::MAX)
    }

    /// What has come by a promise is told, and what comes from now on is the coordinator's to give again. Returns the
    /// tokens that have come and are not at hand yet, if they are to be.
    pub(super) fn tell_promise(&mut self, lease: &Lease, known: &Known, is_over: bool, now: Nanos) -> u64 {
        let Some(promise) = &mut self.promise else { return 0 };
        self.granted += promise.keep(lease, now);
        let rest = promise.tell(now);
        if is_over || lease.has_ended(now) {
            known.set_promised_until(0);
            self.promise = None;
            return 0;
        }
        known.set_promised_until(after(now, FLIGHT).min(lease.ends()));
        rest
    }

    /// Goes on where the same account of former limits stands, as far as requests without the coordinator need
    /// to know.
    pub(super) fn go_on_from(&mut self, former: &Self, left: u64) {
        self.answered_at = former.answered_at;
        self.has_known = former.has_known;
        self.usual = former.usual;
        self.period.clone_from(&former.period);
        self.share = former.share.of_quota_with(left);
    }
}

/// The account of a quota in one of its periods.
pub(super) fn key_of_period(limit: &Limit, period: &Period) -> Arc<str> {
    format!("{}:{}", limit.key, period.id).into()
}
