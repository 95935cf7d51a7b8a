//! What comes to a lease by and by, since the coordinator has promised it: while more is asked for than there is, a
//! gateway lives on that, and need not ask for each token.

use std::time::Duration;

use super::{Holdings, Kind, Known, Place};
use crate::{
    clock::{Nanos, nanos},
    coordinator::Pace,
    lease::Lease,
    node::after,
    terms::Bucket,
};

/// Tokens that come more often than this come together: each time a request has to see to it.
const AT_ONCE: Duration = Duration::from_micros(500);

/// What has come is put at hand so much later. An exchange mostly takes less; longer than this no request waits for
/// one anyway.
pub(super) const FLIGHT: Duration = Duration::from_millis(10);

/// This part of a promise is left with the coordinator, whose clock may be slower than this one.
const LEFT_PART: u64 = 1024;

/// What a request finds that has too little at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// Something has come meanwhile: there may be enough now.
    More,
    /// There is certainly nothing before.
    NoneUntil(Nanos),
    /// The coordinator must be asked.
    Unknown,
}

/// A promise that is being kept: what has come by it is put at hand somewhat later, so that there is something to
/// live on while an exchange is under way. Then requests need not wait for it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Promise {
    pace: Pace,
    /// When the answer came: what was promised begins no later.
    from: Nanos,
    until: Nanos,
    /// Tokens that have been put at hand.
    came: u64,
    /// Once the next exchange has begun: the tokens that had come by then.
    told: Option<u64>,
}

impl Promise {
    pub(super) fn new(pace: Pace, from: Nanos, until: Nanos) -> Self {
        Self { pace, from, until, came: 0, told: None }
    }

    /// Puts at hand what is due. Returns how many.
    pub(super) fn keep(&mut self, lease: &Lease, now: Nanos) -> u64 {
        let due = self.has_come(now.saturating_sub(nanos(FLIGHT)));
        let new = self.told.map_or(due, |told| due.min(told)).saturating_sub(self.came);
        self.came += new;
        if new > 0 {
            lease.add_promised(new);
        }
        new
    }

    /// The next exchange begins: no more comes by this promise. Returns how many tokens have come and are not at hand
    /// yet.
    pub(super) fn tell(&mut self, now: Nanos) -> u64 {
        let in_all = self.has_come(now);
        self.told = Some(in_all);
        in_all.saturating_sub(self.came)
    }

    /// What was told of it, and is not at hand yet.
    pub(super) fn rest(&self) -> u64 {
        self.told.map_or(0, |told| told.saturating_sub(self.came))
    }

    pub(super) fn is_told(&self) -> bool {
        self.told.is_some()
    }

    pub(super) fn has_come(&self, now: Nanos) -> u64 {
        let nanos = now.min(self.until).saturating_sub(self.from);
        let units = u128::from(nanos - nanos.div_ceil(LEFT_PART)) * u128::from(self.pace.rate) / 1000;
        u64::try_from(units / u128::from(self.pace.unit.max(1))).unwrap_or(u64::MAX)
    }

    /// When so many more are due.
    fn due(&self, tokens: u64) -> Nanos {
        let units = u128::from(self.came.saturating_add(tokens)) * u128::from(self.pace.unit);
        let nanos = (units * 1000).div_ceil(u128::from(self.pace.rate.max(1)));
        let nanos = nanos + nanos.div_ceil(u128::from(LEFT_PART - 1)) + 1;
        let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
        after(self.from.saturating_add(nanos), FLIGHT)
    }
}

impl Holdings {
    /// Looks for what a request needs that finds too little at hand.
    pub(crate) fn look_for(&self, place: Place, cost: u64, now: Nanos) -> Found {
        let (Some(known), Some(lease)) = (self.known.get(place.index()), self.leases.get(place.index())) else {
            return Found::Unknown;
        };
        let cost = place.cost(cost);
        let found = match known.bar(cost, now) {
            Some(until) => Found::NoneUntil(until),
            // Without it, something else may apply.
            None if !known.has_promise(now) || !self.node.coordinator.is_reachable() => return Found::Unknown,
            None => match known.comes_at(now).filter(|_| cost == 1) {
                Some(at) => Found::NoneUntil(at),
                None => self.see_to_promise(place, known, lease, cost, now),
            },
        };
        if place.is_bucket() && matches!(found, Found::NoneUntil(_)) {
            known.refuse(cost);
            if known.is_worth_asking(now) {
                self.renew(now);
            }
        }
        found
    }

    /// The same, for a request that will be decided later.
    pub(super) fn must_be_asked(&self, place: Place, cost: u64, now: Nanos) -> bool {
        let Some(known) = self.known.get(place.index()) else { return false };
        !known.has_promise(now) && known.bar(place.cost(cost), now).is_none()
    }

    fn see_to_promise(&self, place: Place, known: &Known, lease: &Lease, cost: u64, now: Nanos) -> Found {
        let mut state = self.state.lock();
        let Some(account) = state.accounts.get_mut(place.index()) else { return Found::Unknown };
        let Some(promise) = &mut account.promise else { return Found::Unknown };
        account.granted += promise.keep(lease, now);
        let until = known.promised_until();
        known.set_next_at(promise.due(1).max(after(now, AT_ONCE)).min(until));
        let tokens = lease.tokens();
        if tokens >= cost {
            return Found::More;
        }
        // More at a time than a promise brings must be asked for when it ends. That much does not come before either.
        let comes = promise.due(cost - tokens).min(until);
        let least = self.plan.limits.get(place.index()).map_or(now, |limit| match &limit.kind {
            Kind::Bucket(bucket) => after(now, bucket.time_to_bring(cost - tokens, known.left())),
            Kind::Quota { .. } | Kind::Slots { .. } => now,
        });
        Found::NoneUntil(comes.max(least).max(now + 1))
    }
}

/// Whether so much at a time can come by and by: who needs more asks for it.
pub(super) fn suits(bucket: &Bucket, live: u64, heaviest: u64) -> bool {
    heaviest <= (bucket.burst() / (8 * live)).max(1)
}

/// What a lease keeps at most while more comes to it.
pub(super) fn most_held(bucket: &Bucket, live: u64) -> u64 {
    (bucket.burst() / (2 * live)).max(1)
}
