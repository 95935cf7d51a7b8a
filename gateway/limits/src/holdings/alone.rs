//! What applies while the coordinator cannot be reached.
//!
//! Tokens that are admitted without it count as spent like any others. When it is back, it learns of them
//! with the next exchange, and takes them off before it gives new ones.

use std::{ops::RangeInclusive, sync::atomic::Ordering::Relaxed, time::Duration};

use super::{
    Holdings, Kind, Limit, Place, Unreachable,
    account::{Account, State, key_of_period},
    known::Known,
    settle::PAUSE,
};
use crate::{
    clock::{Nanos, nanos},
    coordinator::{LEASE_TIME, RENEWAL},
    node::after,
    terms::Bucket,
};

/// The coordinator is tried again after this time, give or take a fifth, so that gateways do not all come at
/// once.
const RETRY: Duration = Duration::from_millis(40);

/// Gateways that were alone tell what they have spent within this time from when the coordinator is back. Nobody asks it
/// for tokens before: others may have spent them. Longer where they may have to connect anew, and not much longer than it
/// was away.
const ALL_TELL: RangeInclusive<Duration> = Duration::from_millis(60)..=Duration::from_millis(250);

/// Whoever has an answer within this time was not alone, but had a slow one: the less is spent without knowing, the better.
const A_MOMENT: Duration = Duration::from_millis(100);

/// Where a limit is zero, a client need not ask again soon.
const NOTHING: Duration = Duration::from_mins(1);

/// Since when there has been no coordinator.
#[derive(Debug)]
pub(super) struct Alone {
    since: Nanos,
    /// There was none before, so that it may be nothing but one slow answer.
    is_first: bool,
    /// Also: when it was last tried, and a moment more.
    pub(super) retry_at: Nanos,
    /// Shares are counted up to here: when it is back and about to give again.
    until: Nanos,
    /// It is back, and has been told what was spent meanwhile.
    has_told: bool,
    /// It is back, and has forgotten what it gave.
    has_forgotten: bool,
}

impl Alone {
    /// Whether it was back by this time, knew what was spent without it, and gave again: what comes then is another
    /// absence. Nothing else ends one where nobody asks for anything more.
    fn is_over(&self, now: Nanos) -> bool {
        self.has_told && !self.has_forgotten && now >= self.until
    }

    /// Whether it has come back just now, if it is there at this time: it was tried a moment ago. Then others tell what
    /// they have spent before anybody is given more.
    pub(super) fn others_tell_first(&self, now: Nanos) -> bool {
        !self.has_told && now < after(self.retry_at, RENEWAL)
    }
}

/// What has come of this gateway's share and was not used yet.
#[derive(Debug, Clone, Default)]
pub(super) struct Share {
    /// Counted up to here; 0: not begun.
    counted_to: Nanos,
    /// Parts of tokens: so many nanoseconds of the whole bucket's period, of all gateways.
    parts: u64,
    /// Of a quota: what this gateway may still admit by itself.
    quota_left: Option<u64>,
}

/// What a gateway that is alone makes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// There are tokens now: it may try again to take them.
    TryAgain,
    /// It passes this limit without a token.
    Pass,
    Refused {
        until: Nanos,
    },
    /// It cannot be told whether the limit allows it.
    Unknown,
    /// It is not alone any more: there may be tokens now. If there are none, refused until then.
    NotAlone {
        until: Nanos,
    },
}

impl Holdings {
    /// Nobody has answered within a request's patience.
    pub(super) fn is_slow(&self, since: Nanos) {
        let now = self.node.clock.now();
        self.is_away(&mut self.state.lock(), since, now);
        self.exchanged.notify_waiters();
    }

    /// A request's patience has ended.
    pub(crate) fn was_waited_for(&self, now: Nanos) {
        let mut state = self.state.lock();
        // Its own exchange, or one that began shortly after.
        if let Some(sent_at) = state.waits_since()
            && now > after(sent_at, self.node.coordinator.patience() / 2)
        {
            self.is_away(&mut state, sent_at, now);
        }
    }

    pub(super) fn is_away(&self, state: &mut State, since: Nanos, now: Nanos) {
        let retry_at = after(now, RETRY.mul_f64(0.8 + 0.4 * fastrand::f64()));
        // Requests try again in the background as long as there are some. Who comes later waits for it as the first one
        // did: it may have been back for long. Not where that could be for longer than moments.
        let waits = self.node.coordinator.patience() < RENEWAL;
        self.alone_until.store(if waits { after(retry_at, RENEWAL) } else { Nanos::MAX }, Relaxed);
        if state.alone.as_ref().is_some_and(|alone| alone.is_over(since)) {
            state.end_absence();
        }
        let live = self.node.coordinator.live().max(1);
        // It may have been back, and gone again before it gave anything.
        if let Some(alone) = &mut state.alone {
            let was_silent = since > after(alone.retry_at, LEASE_TIME);
            let since = if was_silent { since } else { alone.since };
            let is_first = alone.is_first && !was_silent;
            *alone = Alone { since, is_first, retry_at, until: Nanos::MAX, has_told: false, has_forgotten: false };
            if was_silent {
                for (account, limit) in state.accounts.iter_mut().zip(&self.plan.limits) {
                    account.was_silent(limit, live, since);
                }
            }
            return;
        }
        let (until, has_told, has_forgotten) = (Nanos::MAX, false, false);
        state.alone = Some(Alone { since, is_first: true, retry_at, until, has_told, has_forgotten });
        let limits = self.known.iter().zip(&self.plan.limits);
        for (account, (known, limit)) in state.accounts.iter_mut().zip(limits) {
            account.promise = None;
            known.set_promised_until(0);
            let parts = match &limit.kind {
                Kind::Bucket(bucket) if account.is_silent(since) && account.share.counted_to == 0 => {
                    let left = if account.answered_at == 0 { bucket.burst() } else { known.left() };
                    Share::one_of(bucket, left, live)
                }
                _ => 0,
            };
            // New limits go on with the share of the former ones: of a quota, with all of it.
            account.share = Share { counted_to: since, parts, ..account.share.clone() };
        }
        tracing::debug!(tenant = %self.plan.tenant, "limits are held to without the coordinator");
    }

    /// It is there, but gives nothing before this time, since it may have forgotten what it gave.
    pub(super) fn recovers_until(&self, state: &mut State, until: Nanos) {
        // Also where it was away before: that may have been long ago.
        self.is_away(state, self.node.clock.now(), until);
        if let Some(alone) = &mut state.alone {
            *alone = Alone { retry_at: until, until, has_told: true, has_forgotten: true, ..*alone };
        }
        self.alone_until.store(until, Relaxed);
        // What is left of leases and shares ends when new ones are given.
        for lease in self.leases.iter() {
            lease.end_by(until);
        }
    }

    /// It is there, and may give again; not yet where others may still have to tell what they have spent. Whether this
    /// one still has to. `is_part`: it was told of a part of the accounts only.
    pub(super) fn is_back(&self, state: &mut State, is_part: bool, sent_at: Nanos, now: Nanos) -> bool {
        let has_shares = self.plan.unreachable == Unreachable::Share && self.node.coordinator.live() > 1;
        let was_slow = |alone: &Alone| alone.is_first && sent_at <= alone.since && now < after(alone.since, A_MOMENT);
        if let Some(alone) = &mut state.alone
            && has_shares
            && !was_slow(alone)
        {
            // It hung. What was spent since it was asked is still to be told.
            if sent_at <= alone.since {
                alone.retry_at = now;
                return true;
            }
            if alone.others_tell_first(sent_at) {
                let away = Duration::from_nanos(now.saturating_sub(alone.since));
                let until = after(now, away.clamp(*ALL_TELL.start(), *ALL_TELL.end()));
                *alone = Alone { retry_at: until, until, has_told: true, has_forgotten: false, ..*alone };
                self.alone_until.store(until, Relaxed);
                return is_part;
            }
            // It was only told once more.
            if alone.has_told && !alone.has_forgotten && sent_at < alone.until {
                return false;
            }
        }
        if state.end_absence() {
            self.alone_until.store(0, Relaxed);
            tracing::debug!(tenant = %self.plan.tenant, "the coordinator holds to limits again");
        }
        false
    }

    /// Decides about a request that finds too few tokens of a limit, without the coordinator. It is tried
    /// again in the background.
    pub(crate) fn decide_alone(&self, place: Place, cost: u64, now: Nanos) -> Verdict {
        self.renew(now);
        let cost = place.cost(cost);
        // Nothing of nothing is no share, and not for allowing either.
        if self.limit(place).is_some_and(|limit| limit.kind.is_none()) {
            return Verdict::Refused { until: after(now, NOTHING) };
        }
        match self.plan.unreachable {
            Unreachable::Deny if self.is_alone(now) => return Verdict::Unknown,
            Unreachable::Allow if !place.is_slots() => {
                self.pass(place, cost);
                return Verdict::Pass;
            }
            // Slots must come back, so there must be some.
            Unreachable::Allow | Unreachable::Share => {}
            Unreachable::Deny => return Verdict::NotAlone { until: after(now, PAUSE) },
        }
        let mut state = self.state.lock();
        let (until, has_forgotten) = match &state.alone {
            // It may have forgotten what others took of a quota. A share that is taken now would be told only when
            // it gives again, and it might give the same to others before.
            Some(alone) if alone.has_forgotten && place.is_quota() && self.node.coordinator.live() > 1 => {
                return Verdict::Refused { until: alone.until };
            }
            Some(alone) => (alone.until, alone.has_forgotten),
            // It can be reached: again, or there were tokens and others were quicker.
            None => return Verdict::NotAlone { until: after(now, PAUSE) },
        };
        if until <= now {
            return Verdict::NotAlone { until: after(now, PAUSE) };
        }
        let live = self.node.coordinator.live().max(1);
        let (Some(lease), Some(account), Some(described)) =
            (self.leases.get(place.index()), state.accounts.get_mut(place.index()), self.limit(place))
        else {
            return Verdict::Pass;
        };
        if lease.tokens() >= cost && !lease.has_ended(now) {
            return Verdict::TryAgain;
        }
        let (tokens, wait) = match &described.kind {
            // All gateways together would admit more of them at a time than there is room for.
            Kind::Bucket(bucket) if cost > 1 && cost > bucket.burst() / live => (0, RENEWAL),
            Kind::Bucket(bucket) => account.share.of_bucket(bucket, live, cost, now.min(until)),
            Kind::Quota { limit: quota, .. } => {
                let left = self.known.get(place.index()).map_or(0, Known::left);
                let all = if account.has_known {
                    account.left_by_others(left, live)
                } else {
                    // Of what others used nothing is known, but what the coordinator says if it is there.
                    let key = account.period.as_ref().map(|period| key_of_period(described, period));
                    let took = key.map_or(0, |key| self.node.former_took(&self.plan.tenant, &key));
                    let left = if has_forgotten { left } else { *quota };
                    left.min(quota.saturating_sub(took))
                };
                account.share.of_quota(all / live, cost)
            }
            Kind::Slots { limit: slots } => {
                let share = match self.plan.unreachable {
                    Unreachable::Allow => u64::MAX,
                    Unreachable::Share | Unreachable::Deny => (slots / live).max(1).min(*slots),
                };
                (u64::from(account.granted < share), Duration::from_millis(10))
            }
        };
        if tokens < cost {
            return Verdict::Refused { until: after(now, wait) };
        }
        let is_slots = matches!(described.kind, Kind::Slots { .. });
        if !is_slots {
            // Those left of the lease must not live longer than it.
            account.granted -= lease.void();
        }
        account.granted += tokens;
        if let (Kind::Quota { .. }, Some(period)) = (&described.kind, &account.period) {
            // The coordinator cannot be told before it is back; this process may have ended by then.
            let key = key_of_period(described, period);
            self.node.quota_given(&self.plan.tenant, &key, &self.reporter, account.granted, period.ends);
        }
        if let (false, Some(left), Some(known)) =
            (account.has_known, account.share.quota_left, self.known.get(place.index()))
        {
            // Clients are told what there is for them here.
            known.set_left(left);
        }
        self.node.counters.unbacked.fetch_add(tokens, Relaxed);
        lease.add(tokens, after(now, LEASE_TIME).min(until));
        Verdict::TryAgain
    }

    /// Admits a request that no token is there for; it counts as spent.
    fn pass(&self, place: Place, cost: u64) {
        if let Some(account) = self.state.lock().accounts.get_mut(place.index()) {
            account.granted += cost;
        }
        self.node.counters.unbacked.fetch_add(cost, Relaxed);
    }
}

impl State {
    /// The coordinator holds to limits again. With the absence end all shares: also those that new limits took over from
    /// former ones, and that have not begun here. But a share of a quota does not begin anew before all that was spent of
    /// it has been told: where one answer after the other is slow, what is not told of it is never more than one share.
    /// Whether there was an absence.
    fn end_absence(&mut self) -> bool {
        for account in &mut self.accounts {
            let quota_left = if account.untold() > 0 { account.share.quota_left } else { None };
            account.share = Share { quota_left, ..Share::default() };
        }
        self.alone.take().is_some()
    }
}

impl Account {
    /// Of a quota, what others have left of what was there when the coordinator answered last: near its end, a share of
    /// that may be there no longer.
    fn left_by_others(&self, left: u64, live: u64) -> u64 {
        let others = if live > 1 { self.others_may_have_taken(self.share.counted_to) } else { 0 };
        left.saturating_sub(others)
    }

    /// Nobody has asked for longer than leases last. The coordinator may have been there meanwhile, and others may have
    /// spent what came.
    fn was_silent(&mut self, limit: &Limit, live: u64, now: Nanos) {
        match &limit.kind {
            Kind::Bucket(bucket) => self.share.was_silent(bucket, live, now),
            Kind::Quota { .. } | Kind::Slots { .. } => self.share.counted_to = now,
        }
    }
}

impl Share {
    /// Where this gateway has not asked for long, one token is most likely there, so that nobody is refused only because
    /// the coordinator is away. More may have been spent elsewhere.
    fn one_of(bucket: &Bucket, left: u64, live: u64) -> u64 {
        if left < live { 0 } else { Self::token(bucket, live) }
    }

    /// As many as there may be of the largest bucket are still a number here.
    fn token(bucket: &Bucket, live: u64) -> u64 {
        nanos(bucket.period()).saturating_mul(live)
    }

    /// Tokens for a request that costs as much, or how long until there are enough: at one `live`th of the
    /// bucket's rate, and half of that part of its burst at most; a lease may still hold the other half.
    fn of_bucket(&mut self, bucket: &Bucket, live: u64, cost: u64, now: Nanos) -> (u64, Duration) {
        let token = Self::token(bucket, live);
        self.count(bucket, (bucket.burst() / (2 * live)).max(cost).saturating_mul(token), now);
        let needed = cost.saturating_mul(token);
        if self.parts < needed {
            return (0, Duration::from_nanos((needed - self.parts).div_ceil(bucket.tokens())));
        }
        self.parts -= needed;
        (cost, Duration::ZERO)
    }

    fn count(&mut self, bucket: &Bucket, most: u64, now: Nanos) {
        let come = now.saturating_sub(self.counted_to).saturating_mul(bucket.tokens());
        self.counted_to = self.counted_to.max(now);
        self.parts = self.parts.saturating_add(come).min(most);
    }

    /// One token, if as much has come.
    fn was_silent(&mut self, bucket: &Bucket, live: u64, now: Nanos) {
        self.count(bucket, Self::token(bucket, live), now);
    }

    /// For an account of other units.
    pub(super) fn without_tokens(&self) -> Self {
        Self { parts: 0, quota_left: None, ..self.clone() }
    }

    /// For an account that begins anew.
    pub(super) fn of_next_period(self) -> Self {
        Self { quota_left: None, ..self }
    }

    /// Of a quota: the share is so much at most, as of when the coordinator was asked. Since then this was taken of it.
    pub(super) fn quota_is_at_most(&mut self, share: u64, taken: u64) {
        if let Some(left) = &mut self.quota_left {
            *left = share.saturating_sub(taken).min(*left);
        }
    }

    /// The same of a quota: `most` is the share of what is left as far as is known now.
    fn of_quota(&mut self, most: u64, cost: u64) -> (u64, Duration) {
        let left = self.quota_left.get_or_insert(most);
        *left = most.min(*left);
        if *left < cost {
            return (0, Duration::from_secs(1));
        }
        *left -= cost;
        (cost, Duration::ZERO)
    }
}
