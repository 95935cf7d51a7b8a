//! The arithmetic of accounts. `coordinator/redis/acquire.lua` repeats it in Redis, number for number; the tests
//! hold both against each other.
//!
//! What is true of a bucket at every moment: its level and what gateways hold of it, together, are never
//! more than its burst. Tokens are debited when they are given, so what is admitted in a window comes from
//! what was held at its beginning, and from what was given in it: burst + rate · window at most.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crate::{
    coordinator::{Answer, LEASE_TIME, Outcome, Pace, Request, SLOT_LEASE_TIME},
    terms::{Bucket, Terms},
};

/// Accounts that are not used are kept this long at least, and longer where they are not yet as new. No longer:
/// each value of a key has one, and whoever makes values up could fill the memory with them.
pub const KEPT: Duration = Duration::from_secs(10);

/// What a gateway spent is put right against a lease that has ended, for this long after its end, as long as the
/// account is in use.
pub(crate) const SETTLED_AFTER: Duration = Duration::from_mins(15);

/// Of a quota, a gateway that dies takes no more than this part with it.
pub(crate) const LEASE_PART: u64 = 1000;

/// Who has been promised less than a third of its part, or all together less than half of what comes, or who is the
/// first time, asks again after this time or a little later: others have not told yet that they have less to do, or
/// it is not known yet how much is wanted. See [`again`].
pub(crate) const AGAIN: Duration = Duration::from_millis(100);

/// Slow buckets are asked again when so many tokens have come for each gateway: what was wanted meanwhile says
/// something then.
const TOKENS_UNTIL_AGAIN: u64 = 2;

/// How soon it is worth asking again: by then others have asked too. Not later than an eighth of what the bucket takes
/// to fill.
pub(crate) fn again(bucket: &Bucket, live: u64) -> Duration {
    let unit = u64::try_from(bucket.unit()).unwrap_or(u64::MAX);
    let enough = (TOKENS_UNTIL_AGAIN * live).saturating_mul(unit).div_ceil(bucket.tokens());
    AGAIN.max(Duration::from_micros(enough)).min(bucket.time_to_fill() / 8)
}

/// What is wanted counts up to here, so that a double holds its product with any rate.
const MOST_WANTED: u64 = 1_000_000;

/// When and for how many an account is asked.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Microseconds since 1970.
    pub now: u64,
    /// Gateways that share the account.
    pub live: u64,
    /// When the coordinator began: an account that is not there may have been lost then, so it begins empty,
    /// and gives nothing until every lease of before has ended. 0 if there is no before.
    pub began: u64,
    /// Whether all gateways have told since then what they know of quotas.
    pub is_told: bool,
}

/// Gateways are waited for so long, after the coordinator began, until they have told what they know of quotas. One
/// that takes longer may have been given what is given again.
pub(crate) const TOLD_WITHIN: Duration = Duration::from_secs(30);

/// How soon is asked again whether they have.
pub(crate) const TOLD_SOON: Duration = Duration::from_millis(250);

/// One account.
#[derive(Debug, Clone)]
pub enum Ledger {
    Bucket(BucketLedger),
    Quota(QuotaLedger),
    Slots(SlotsLedger),
}

impl Ledger {
    /// An account that nothing is known of.
    pub fn open(terms: Terms, revision: u64, moment: &Moment, known: bool) -> Self {
        let lease_time = micros(lease_time(terms));
        // What it held is out there for a lease's time.
        let opens = if known { moment.now } else { moment.began } + lease_time;
        match terms {
            Terms::Bucket(bucket) => Self::Bucket(BucketLedger::open(bucket, revision, opens)),
            Terms::Quota { limit, .. } => {
                Self::Quota(QuotaLedger { limit, revision, debited: 0, opens, leases: BTreeMap::new() })
            }
            Terms::Slots { limit } => {
                Self::Slots(SlotsLedger { limit, revision, updated: opens, opens, leases: BTreeMap::new() })
            }
        }
    }

    /// Microseconds without an exchange after which the account is as good as a new one.
    pub fn is_as_new_after(&self) -> u64 {
        match self {
            Self::Bucket(ledger) => micros(kept(Terms::Bucket(ledger.terms))),
            Self::Quota(_) => u64::MAX,
            Self::Slots(ledger) => micros(kept(Terms::Slots { limit: ledger.limit })),
        }
    }

    /// Nothing is further ahead than a lease lasts, unless the clock was set back: then it is followed. Whoever
    /// has set it back, even by years, does not stop the account from filling.
    fn follow_clock(&mut self, now: u64) {
        match self {
            Self::Bucket(ledger) => {
                let ahead = now + micros(LEASE_TIME);
                ledger.opens = ledger.opens.min(ahead);
                if ledger.updated > ahead {
                    ledger.updated = now;
                    for lease in ledger.leases.values_mut().filter(|lease| !lease.ended) {
                        lease.ends = lease.ends.min(ahead);
                        lease.since = lease.since.min(now);
                    }
                }
            }
            Self::Quota(ledger) => ledger.opens = ledger.opens.min(now + micros(LEASE_TIME)),
            Self::Slots(ledger) => {
                let ahead = now + micros(SLOT_LEASE_TIME);
                ledger.opens = ledger.opens.min(ahead);
                if ledger.updated > ahead {
                    for lease in ledger.leases.values_mut() {
                        lease.ends = lease.ends.min(ahead);
                    }
                }
                ledger.updated = now;
            }
        }
    }

    pub fn exchange(&mut self, moment: &Moment, reporter: &Arc<str>, revision: u64, request: &Request) -> Answer {
        self.follow_clock(moment.now);
        match (&mut *self, request.terms) {
            (Self::Bucket(ledger), Terms::Bucket(terms)) => {
                ledger.adopt(moment.now, revision, terms);
                ledger.exchange(moment, reporter, request)
            }
            (Self::Quota(ledger), Terms::Quota { limit, starts, ends }) => {
                if revision >= ledger.revision {
                    (ledger.revision, ledger.limit) = (revision, limit);
                }
                ledger.exchange(moment, reporter, request, (starts, ends))
            }
            (Self::Slots(ledger), Terms::Slots { limit }) => {
                if revision >= ledger.revision {
                    (ledger.revision, ledger.limit) = (revision, limit);
                }
                ledger.exchange(moment, reporter, request)
            }
            // The same name for another kind of limit: the account begins anew.
            (_, terms) => {
                *self = Self::open(terms, revision, moment, true);
                self.exchange(moment, reporter, revision, request)
            }
        }
    }
}

/// What is known of one reporter.
#[derive(Debug, Clone, Copy, Default)]
struct Lease {
    /// What it said last that it had spent in all.
    spent: u64,
    /// Given to it, and neither spent nor given back as far as is known.
    out: u64,
    ends: u64,
    /// It ended without a word: its tokens may have been spent, and are not given to anybody else.
    ended: bool,
    /// Of a bucket: units that come to it each microsecond, since then and until it ends. They do not come to the
    /// bucket meanwhile.
    rate: i64,
    since: u64,
    /// While there is too little for all: what it would like, by which it has its part.
    want: u64,
}

impl Lease {
    /// Units that have come to it.
    fn came(&self, now: u64) -> i64 {
        self.rate * to_i64(now.min(self.ends).saturating_sub(self.since))
    }

    /// Units that will have come to it when it ends.
    fn promised(&self) -> i64 {
        self.came(self.ends)
    }
}

#[derive(Debug, Clone)]
pub struct BucketLedger {
    terms: Bucket,
    revision: u64,
    /// In units; below zero when more was spent than given, by gateways that were cut off.
    level: i64,
    updated: u64,
    /// Nothing is given before.
    opens: u64,
    leases: BTreeMap<Arc<str>, Lease>,
}

impl BucketLedger {
    fn open(terms: Bucket, revision: u64, opens: u64) -> Self {
        Self { terms, revision, level: 0, updated: opens, opens, leases: BTreeMap::new() }
    }

    /// Takes the terms, unless they are of a lower revision. What has come so far came under the old ones.
    fn adopt(&mut self, now: u64, revision: u64, terms: Bucket) {
        if revision < self.revision {
            return;
        }
        if terms != self.terms {
            self.refill(now);
            // What is promised counts as given: it has another unit, and may be more than comes by the new terms.
            let (unit, updated) = (self.terms.unit(), self.updated);
            for lease in self.leases.values_mut().filter(|lease| lease.rate > 0) {
                // Whole tokens, which is what is given back of them.
                let tokens = to_u64(lease.promised()).div_ceil(to_u64(unit));
                if !lease.ended {
                    self.level -= to_i64(tokens) * unit - lease.came(updated);
                }
                lease.out += tokens;
                (lease.rate, lease.want) = (0, 0);
            }
            // A part of a token is lost.
            let tokens = self.level.div_euclid(unit);
            self.terms = terms;
            self.level = (tokens * terms.unit()).max(-terms.capacity()).min(self.room());
        }
        self.revision = revision;
    }

    /// What the level can be at most: what is out there belongs to the burst.
    fn room(&self) -> i64 {
        let out: u64 = self.live_leases().map(|lease| lease.out).sum();
        let without_out = self.terms.capacity() - to_i64(out.min(self.terms.burst())) * self.terms.unit();
        (without_out - self.promised()).max(0)
    }

    fn live_leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values().filter(|lease| !lease.ended)
    }

    /// Units that are promised until leases end.
    fn promised(&self) -> i64 {
        self.live_leases().map(Lease::promised).sum()
    }

    /// Units that come each microsecond and are promised to nobody.
    fn free_rate(&self) -> i64 {
        self.terms.units_per_micro() - self.live_leases().map(|lease| lease.rate).sum::<i64>()
    }

    fn refill(&mut self, now: u64) {
        let mut ending: Vec<u64> =
            self.leases.values().filter(|lease| !lease.ended && lease.ends <= now).map(|lease| lease.ends).collect();
        ending.sort_unstable();
        // From each end on there is more room.
        for end in ending {
            self.refill_to(end);
            for lease in self.leases.values_mut().filter(|lease| !lease.ended && lease.ends <= end) {
                lease.ended = true;
            }
        }
        self.refill_to(now);
        let updated = self.updated;
        self.leases.retain(|_, lease| !lease.ended || lease.ends + micros(SETTLED_AFTER) > updated);
    }

    fn refill_to(&mut self, to: u64) {
        // Redis' clock may have gone back.
        let elapsed = i128::from(to.saturating_sub(self.updated));
        self.updated = self.updated.max(to);
        let level = i128::from(self.level) + elapsed * i128::from(self.free_rate());
        let room = self.room();
        self.level = i64::try_from(level).unwrap_or(i64::MAX).min(room);
    }

    fn exchange(&mut self, moment: &Moment, reporter: &Arc<str>, request: &Request) -> Answer {
        let Moment { now, live, .. } = *moment;
        if now < self.opens {
            // What it says is void: it will be asked again, and what it holds ends before.
            let wait = Duration::from_micros(self.opens - now);
            return Answer { outcome: Outcome::Recovering { wait }, pace: Pace::default(), left: 0, now };
        }
        self.refill(now);
        let wanted_before = self.settle(reporter, request);
        let (unit, rate) = (self.terms.unit(), self.terms.units_per_micro());
        let available = to_u64(self.level.div_euclid(unit));
        let ends_in = LEASE_TIME;
        let most = (self.terms.burst() / (2 * live)).max(1).saturating_sub(request.held);
        let tokens = if available < request.least {
            0
        } else {
            // When little is left, not everything goes to the first.
            let fair = available.div_ceil(2);
            request.want.min(most).min(fair).max(request.least)
        };
        self.level -= to_i64(tokens) * unit;
        let since = self.updated;
        let lease = Lease {
            spent: request.spent,
            out: request.held + tokens,
            // Where the clock was set back, promises begin later than now.
            ends: since + micros(ends_in),
            since,
            ..Lease::default()
        };
        self.leases.insert(Arc::clone(reporter), lease);
        let pace = if request.paced && tokens < request.want.min(most) {
            self.promise(reporter, request.want.min(MOST_WANTED), tokens, wanted_before, live)
        } else {
            Pace::default()
        };
        let left = to_u64(self.level.div_euclid(unit));
        let outcome = if available < request.least {
            let missing = to_i64(request.least) * unit - self.level;
            let wait = to_u64(missing).div_ceil(to_u64(rate));
            Outcome::NoneUntil { wait: Duration::from_micros(wait), ends_in }
        } else {
            Outcome::Granted { tokens, ends_in }
        };
        Answer { outcome, pace, left, now }
    }

    /// Promises the reporter its part of what will come: by what it wants, among those that have too little. What
    /// others were promised stays theirs until they tell the next time, or their leases end.
    fn promise(&mut self, reporter: &Arc<str>, want: u64, tokens: u64, wanted_before: u64, live: u64) -> Pace {
        let (unit, capacity, in_all) = (self.terms.unit(), self.terms.capacity(), self.terms.units_per_micro());
        // What was asked for in one second says little of the next one, where it was not much.
        let is_first = wanted_before == 0;
        let weight = if is_first { want } else { (wanted_before + want).div_ceil(2) };
        let weights = weight + self.live_leases().map(|lease| lease.want).sum::<u64>();
        let part = to_i64(to_u64(in_all) * weight / weights.max(1));
        let lease_time = to_i64(micros(LEASE_TIME));
        // As much as is asked for, which lasts for two leases.
        let of_use = part.min(to_i64(want.saturating_sub(tokens)) * unit / (2 * lease_time));
        // What comes to leases has its place in the burst from now on. Half of that is for what comes to the bucket:
        // debts are paid before anything is promised.
        let promised_at_most = (in_all - self.free_rate()) * lease_time;
        let place = (self.room() - self.level).min(capacity / 2 - promised_at_most).max(0);
        let place = if self.level < 0 { 0 } else { place };
        let rate = of_use.min(self.free_rate()).min(place / lease_time);
        // What others want is not known yet.
        let rate = if is_first { rate.min(in_all / to_i64(live)) } else { rate };
        if let Some(lease) = self.leases.get_mut(reporter) {
            (lease.rate, lease.want) = (rate, weight);
        }
        let is_little = 3 * rate < of_use || 2 * self.free_rate() > in_all || is_first && rate < of_use;
        let again_in = if is_little { again(&self.terms, live) } else { Duration::ZERO };
        Pace { rate: to_u64(rate), unit: to_u64(unit), again_in: Duration::from_micros(micros(again_in)) }
    }

    /// Puts right what the reporter was given with what it says to have spent and to hold. One that is not
    /// known is taken at its word. Returns what it wanted while there was too little.
    fn settle(&mut self, reporter: &Arc<str>, request: &Request) -> u64 {
        let (unit, updated) = (self.terms.unit(), self.updated);
        let unknown = Lease { spent: request.spent, out: request.held, ..Lease::default() };
        let lease = self.leases.entry(Arc::clone(reporter)).or_insert(unknown);
        // Less than before where requests gave back what they had taken.
        let newly_spent = to_i64(request.spent).saturating_sub(to_i64(lease.spent));
        let balance = to_i64(lease.out).saturating_sub(newly_spent).saturating_sub(to_i64(request.held));
        let balance = i128::from(balance) * i128::from(unit) + i128::from(lease.came(updated));
        // What it gives back is credited, unless the lease has ended; what it spent beyond it is owed.
        let balance = if lease.ended { balance.min(0) } else { balance };
        let wanted = if lease.ended { 0 } else { lease.want };
        *lease = Lease { spent: lease.spent, out: request.held, ..Lease::default() };
        let owed = -self.terms.capacity();
        let level = (i128::from(self.level) + balance).clamp(i128::from(owed), i128::from(self.room()));
        self.level = i64::try_from(level).unwrap_or(owed);
        wanted
    }
}

#[derive(Debug, Clone)]
pub struct QuotaLedger {
    limit: u64,
    revision: u64,
    /// Spent, and given to be spent.
    debited: u64,
    opens: u64,
    leases: BTreeMap<Arc<str>, QuotaLease>,
}

/// A lease of a quota ends with its period only: it was debited for good, whatever becomes of it.
#[derive(Debug, Clone, Copy, Default)]
struct QuotaLease {
    spent: u64,
    out: u64,
}

impl QuotaLedger {
    /// What is counted elsewhere, in an account that cannot be asked, was so much and is now so much.
    pub fn others_took(&mut self, before: u64, now: u64) {
        self.debited = self.debited.saturating_sub(before).saturating_add(now);
    }

    /// Spent, and given to be spent.
    pub fn debited(&self) -> u64 {
        self.debited
    }

    /// What will be debited after this exchange, at most: no more than a lease holds, or than the limit leaves.
    pub fn debited_after(&self, reporter: &str, request: &Request) -> u64 {
        let lease = self.leases.get(reporter).copied().unwrap_or_default();
        let accounted = self.accounted(&lease, request);
        // The request may bring another limit.
        let limit = match request.terms {
            Terms::Quota { limit, .. } => self.limit.max(limit),
            Terms::Bucket(_) | Terms::Slots { .. } => self.limit,
        };
        let given = request.want.min((limit / LEASE_PART).max(1)).max(request.least);
        accounted.saturating_add(given.min(limit.saturating_sub(accounted)))
    }

    /// What is debited when the reporter's word is taken: what it spent without having been given it is added,
    /// what it gives back is taken off.
    fn accounted(&self, lease: &QuotaLease, request: &Request) -> u64 {
        let after = i128::from(self.debited) + i128::from(request.spent) - i128::from(lease.spent)
            + i128::from(request.held)
            - i128::from(lease.out);
        u64::try_from(after.max(0)).unwrap_or(u64::MAX)
    }

    fn exchange(
        &mut self,
        moment: &Moment,
        reporter: &Arc<str>,
        request: &Request,
        (starts, ends): (u64, u64),
    ) -> Answer {
        let Moment { now, live, began, is_told } = *moment;
        if !(starts..ends).contains(&now) {
            return Answer { outcome: Outcome::OtherPeriod, pace: Pace::default(), left: 0, now };
        }
        let before = self.leases.get(reporter).copied().unwrap_or_default();
        let accounted = self.accounted(&before, request);
        self.debited = if request.has_ended { self.debited.max(accounted) } else { accounted };
        let lease = self.leases.entry(Arc::clone(reporter)).or_default();
        *lease = if request.has_ended {
            QuotaLease { spent: request.spent.max(before.spent + before.out), out: 0 }
        } else {
            QuotaLease { spent: request.spent, out: request.held }
        };
        let remaining = self.limit.saturating_sub(self.debited);
        let told_by = if is_told { 0 } else { began + micros(TOLD_WITHIN) };
        let opens = self.opens.max(told_by);
        if now < opens {
            // What is left is known once they have told.
            let soon = if is_told { opens } else { opens.min(now + micros(TOLD_SOON)) };
            let wait = Duration::from_micros(soon - now);
            return Answer { outcome: Outcome::Recovering { wait }, pace: Pace::default(), left: remaining, now };
        }
        let ends_in = Duration::from_micros(ends - now);
        if remaining < request.least {
            let outcome = Outcome::NoneUntil { wait: ends_in, ends_in };
            return Answer { outcome, pace: Pace::default(), left: remaining, now };
        }
        let most = (remaining / (2 * live)).min(self.limit / LEASE_PART).max(1).saturating_sub(request.held);
        let tokens = request.want.min(most).min(remaining).max(request.least);
        self.debited += tokens;
        lease.out += tokens;
        let outcome = Outcome::Granted { tokens, ends_in };
        Answer { outcome, pace: Pace::default(), left: remaining - tokens, now }
    }
}

#[derive(Debug, Clone)]
pub struct SlotsLedger {
    limit: u64,
    revision: u64,
    updated: u64,
    opens: u64,
    leases: BTreeMap<Arc<str>, Lease>,
}

impl SlotsLedger {
    /// `spent` are slots in use; those free are given back with each exchange, and taken anew.
    fn exchange(&mut self, moment: &Moment, reporter: &Arc<str>, request: &Request) -> Answer {
        let Moment { now, live, .. } = *moment;
        self.leases.retain(|_, lease| lease.ends > now);
        let others: u64 = self.leases.iter().filter(|(name, _)| *name != reporter).map(|(_, lease)| lease.out).sum();
        let available = self.limit.saturating_sub(others).saturating_sub(request.spent);
        let ends_in = SLOT_LEASE_TIME;
        if now < self.opens {
            // Those in use go on, and are on record again.
            let lease = Lease { out: request.spent, ends: now + micros(ends_in), ..Lease::default() };
            self.leases.insert(Arc::clone(reporter), lease);
            let wait = Duration::from_micros(self.opens - now);
            return Answer { outcome: Outcome::Recovering { wait }, pace: Pace::default(), left: available, now };
        }
        let tokens = if available < request.least {
            0
        } else {
            let most = (self.limit / (2 * live)).max(1).saturating_sub(request.spent);
            request.want.min(most).min(available.div_ceil(2)).max(request.least)
        };
        let lease = self.leases.entry(Arc::clone(reporter)).or_default();
        *lease = Lease { out: request.spent + tokens, ends: now + micros(ends_in), ..Lease::default() };
        let outcome = if available < request.least {
            Outcome::NoneUntil { wait: Duration::ZERO, ends_in }
        } else {
            Outcome::Granted { tokens, ends_in }
        };
        Answer { outcome, pace: Pace::default(), left: available.saturating_sub(tokens), now }
    }
}

/// How long an account is kept after its last use: until it is as new, from the deepest debt to the brim.
pub(crate) fn kept(terms: Terms) -> Duration {
    match terms {
        Terms::Bucket(bucket) => KEPT.max(bucket.time_to_fill() * 2) + LEASE_TIME,
        Terms::Quota { .. } => Duration::MAX,
        Terms::Slots { .. } => KEPT + SLOT_LEASE_TIME,
    }
}

/// How long what was given goes on without a word. A quota's lasts as long as its period, but gateways tell
/// of it as often as of a bucket's.
fn lease_time(terms: Terms) -> Duration {
    match terms {
        Terms::Bucket(_) | Terms::Quota { .. } => LEASE_TIME,
        Terms::Slots { .. } => SLOT_LEASE_TIME,
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn to_i64(tokens: u64) -> i64 {
    i64::try_from(tokens).unwrap_or(i64::MAX)
}

/// Below zero is nothing.
fn to_u64(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

#[cfg(test)]
mod tests;
