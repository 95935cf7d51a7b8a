//! What a gateway knows of its accounts with the coordinator: what it was given of them, and what it has told.

use std::{sync::Arc, time::Duration};

use super::{
    Limit,
    alone::{Alone, Share},
    known::Known,
    promise::{FLIGHT, Promise},
};
use crate::{
    calendar::Period,
    clock::Nanos,
    coordinator::{LEASE_TIME, RENEWAL},
    lease::Lease,
    node::after,
};

/// Fewer tokens say nothing.
const FEW: u64 = 8;

/// A token in the parts that slow rates are counted in.
const PARTS: u128 = 1024;

/// How long what others take is added up: what begins now must be seen at once, and what comes once in a while at all.
const LATELY: Duration = Duration::from_secs(1);
const FOR_LONG: Duration = Duration::from_mins(1);

/// Periods that a clock may jump to and fro between.
const FORMER_PERIODS: usize = 4;

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
}

impl State {
    pub(super) fn new() -> Self {
        Self { accounts: Vec::new(), alone: None, in_flight: false, exchanged_at: 0, next: 0 }
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
    /// What was asked for in a renewal's time, before that; of a quota, what others take of it in a second, lately and
    /// in the long run, in [`PARTS`] of a token. As small as can be: an idle tenant keeps them for each limit.
    pub(super) usual: u32,
    pub(super) usual_for_long: u32,
    /// What the coordinator knows to be spent.
    pub(super) told: u64,
    /// Of a quota: that, what it knows to be held, and what it gave since.
    pub(super) debited: u64,
    /// When the coordinator answered last; 0: never.
    pub(super) answered_at: Nanos,
    /// Whether it has ever known what is left of it.
    pub(super) has_known: bool,
    /// How often in succession less was given than a lease may hold.
    pub(super) in_vain: u8,
    /// The account's period, if it is a quota's.
    pub(super) period: Option<Period>,
    /// Should one of those come again; the last few.
    former: Box<[FormerPeriod]>,
    /// What comes by and by. Not while an exchange is under way that tells how much has. Apart, since few have one.
    pub(super) promise: Option<Box<Promise>>,
    /// Parts of a token that have come while the coordinator was away.
    pub(super) share: Share,
}

/// A period of a quota that has ended, as far as anybody knew: the coordinator's clock may have been ahead.
#[derive(Debug)]
struct FormerPeriod {
    starts: u64,
    granted: u64,
}

impl Account {
    pub(super) fn spent(&self, lease: &Lease) -> u64 {
        self.granted.saturating_sub(lease.tokens())
    }

    /// What was spent without the coordinator, as far as it did not know of it when it answered last.
    pub(super) fn untold(&self) -> u64 {
        self.granted.saturating_sub(self.debited)
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

    /// Whether this gateway holds nothing of it and has not heard of it for longer than a lease lasts.
    pub(super) fn is_silent(&self, now: Nanos) -> bool {
        self.answered_at == 0 || now > after(self.answered_at, LEASE_TIME)
    }

    /// Of a quota, so much had been left, and so much is now but for what this gateway was given; it had told so much.
    pub(super) fn others_took_till(&mut self, left: u64, left_before: u64, told: u64, elapsed: Duration) {
        let own = told.saturating_sub(self.debited);
        self.others_took(left_before.saturating_sub(left + own), elapsed);
    }

    /// Of a quota, others took so much in this time.
    pub(super) fn others_took(&mut self, tokens: u64, elapsed: Duration) {
        self.usual = per_second(self.usual, tokens, elapsed, LATELY);
        self.usual_for_long = per_second(self.usual_for_long, tokens, elapsed, FOR_LONG);
    }

    /// Of a quota: what others may have taken from when the coordinator answered last until it was away: as if they had
    /// begun to take twice as much, and a second before.
    pub(super) fn others_may_have_taken(&self, away_since: Nanos) -> u64 {
        let silence = Duration::from_nanos(away_since.saturating_sub(self.answered_at)) + LATELY;
        let usual = u128::from(self.usual.max(self.usual_for_long));
        let most = (2 * usual * silence.as_millis()).div_ceil(1000 * PARTS);
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

    /// Another period is another account: a new one, or the former one where the clock was ahead over its end and has come
    /// back. That goes on with its totals: the coordinator would take less for given back.
    pub(super) fn turn_to(&mut self, period: Period, lease: &Lease) {
        self.granted -= lease.void();
        let mut former = std::mem::take(&mut self.former).into_vec();
        let again = former.iter().position(|former| former.starts == period.starts).map(|index| former.remove(index));
        if let Some(ended) = &self.period
            && self.granted > 0
        {
            former.push(FormerPeriod { starts: ended.starts, granted: self.granted });
            former.drain(..former.len().saturating_sub(FORMER_PERIODS));
        }
        *self = Self {
            granted: again.map_or(0, |again| again.granted),
            share: std::mem::take(&mut self.share).of_next_period(),
            period: Some(period),
            former: former.into(),
            ..Self::default()
        };
    }

    /// Goes on where the same account of former limits stands, as far as requests without the coordinator need
    /// to know.
    pub(super) fn go_on_from(&mut self, former: &Self) {
        self.answered_at = former.answered_at;
        self.has_known = former.has_known;
        self.period.clone_from(&former.period);
        self.share = former.share.clone();
    }
}

/// What is taken in a second, by what was before and what was taken in the time that has passed: of a window that
/// slides, and of that time if it is longer.
fn per_second(before: u32, tokens: u64, elapsed: Duration, window: Duration) -> u32 {
    let (elapsed, window) = (elapsed.as_micros(), window.as_micros());
    // Rounded: what is lost or gained with each of many answers would be all of it.
    let still = (u128::from(before) * window.saturating_sub(elapsed) + window / 2) / window;
    let new = u128::from(tokens) * PARTS * 1_000_000;
    let now = still + new.div_ceil(elapsed.max(window));
    u32::try_from(now).unwrap_or(u32::MAX)
}

/// The account of a quota in one of its periods.
pub(super) fn key_of_period(limit: &Limit, period: &Period) -> Arc<str> {
    format!("{}:{}", limit.key, period.id).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_seen_however_often_and_seldom_they_are_looked_at() {
        for (every, tokens, parts) in [
            // 500 a second, half a one, and one in twenty seconds.
            (Duration::from_millis(2), 1, 500 * 1024),
            (Duration::from_secs(2), 1, 512),
            (Duration::from_mins(5), 15, 52),
        ] {
            let mut lately = 0;
            for _ in 0..5000 {
                lately = per_second(lately, tokens, every, LATELY);
            }
            assert!((parts * 9 / 10..=parts * 11 / 10).contains(&lately), "{every:?}: {lately} instead of {parts}");
        }
        // Nothing is taken while this gateway asks a hundred times in a second.
        let mut for_long = per_second(0, 108, Duration::from_mins(2), FOR_LONG);
        for _ in 0..100 {
            for_long = per_second(for_long, 0, Duration::from_millis(10), FOR_LONG);
        }
        assert!(for_long > 900, "{for_long}");
    }
}
