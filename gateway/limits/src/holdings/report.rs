//! What is told of what was spent, and what is asked for.

use std::{sync::Arc, time::Duration};

use super::{
    Holdings, Kind,
    account::{Account, State, key_of_period},
    exchange::Purpose,
    promise,
};
use crate::{
    clock::Nanos,
    coordinator::{RENEWAL, Request},
    ledger,
    node::after,
    terms::Terms,
};

/// Leases are taken to last so many renewals: half of one, the mark at which it is renewed early, is still
/// there at the next renewal, also where requests come irregularly.
const FORESIGHT: u64 = 3;

/// A bucket that is full loses what comes, until the coordinator hears that there is room. So leases of one that
/// is rather full grow by steps, each of which reports: to so many times what was spent since the last one.
const GROWTH: u64 = 3;

/// Accounts of one exchange, so that a tenant with very many limits does not keep the coordinator from the others.
const MOST_ACCOUNTS: usize = 32;

/// Who was given too little so often, each time at once after the time before, would ask for each request.
const IN_VAIN: u8 = 8;

/// That is at once.
const AT_ONCE: Duration = Duration::from_millis(50);
/// What an exchange is about.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) requests: Vec<Request>,
    /// Where their limits stand in the plan.
    pub(super) indices: Vec<usize>,
    /// The first account that there was no room for.
    pub(super) next: Option<usize>,
}
impl Holdings {
    /// What there is to say and to ask about the accounts that matter now: those that a request waits for, and
    /// of the others those from this one on.
    pub(super) fn report(&self, state: &mut State, purpose: Purpose<'_>, from: usize, now: Nanos) -> Report {
        state.accounts.resize_with(self.leases.len(), Account::default);
        let mut report = Report::default();
        let (wanted, cost) = match purpose {
            Purpose::Wanted { limits, cost } => (limits, cost),
            _ => (&[][..], 0),
        };
        for place in wanted {
            self.report_of(state, &mut report, place.index(), place.cost(cost), purpose, now);
        }
        for index in from..self.leases.len() {
            if wanted.iter().any(|place| place.index() == index) {
                continue;
            }
            if report.requests.len() >= MOST_ACCOUNTS {
                report.next = Some(index);
                break;
            }
            self.report_of(state, &mut report, index, 0, purpose, now);
        }
        report
    }

    /// Adds what there is to say of one account, if there is anything. `least` is what a request waits for.
    fn report_of(
        &self,
        state: &mut State,
        report: &mut Report,
        index: usize,
        least: u64,
        purpose: Purpose<'_>,
        now: Nanos,
    ) {
        let (Some(lease), Some(known), Some(limit)) =
            (self.leases.get(index), self.known.get(index), self.plan.limits.get(index))
        else {
            return;
        };
        let Some(account) = state.accounts.get_mut(index) else { return };
        let is_slots = matches!(limit.kind, Kind::Slots { .. });
        let had_promise = account.promise.is_some();
        let asked_by_now = account.asked_by_now(lease, known, is_slots);
        // Less than before where requests gave back what they had taken.
        let asked = u64::try_from(asked_by_now.wrapping_sub(account.asked).cast_signed()).unwrap_or_default();
        let matters = match purpose {
            Purpose::Reminder { .. } => account.granted > 0,
            _ if is_slots => account.granted > 0,
            _ => account.spent(lease) != account.told,
        };
        if least == 0 && asked == 0 && lease.tokens() == 0 && !matters && !had_promise {
            return;
        }
        let rest =
            account.tell_promise(lease, known, matches!(purpose, Purpose::Return | Purpose::Reminder { .. }), now);
        let (key, terms) = match &limit.kind {
            Kind::Bucket(bucket) => (Arc::clone(&limit.key), Terms::Bucket(*bucket)),
            Kind::Slots { limit: slots } => (Arc::clone(&limit.key), Terms::Slots { limit: *slots }),
            Kind::Quota { limit: quota, calendar } => {
                let micros = self.node.coordinator_micros(now);
                if !account.period.as_ref().is_some_and(|period| period.contains(micros)) {
                    let period = calendar.period(micros);
                    known.set_renewed_at(after(now, Duration::from_micros(period.ends.saturating_sub(micros))));
                    account.turn_to(period, lease);
                }
                let Some(period) = &account.period else { return };
                let terms = Terms::Quota { limit: *quota, starts: period.starts, ends: period.ends };
                (key_of_period(limit, period), terms)
            }
        };
        if lease.has_ended(now) || matches!(purpose, Purpose::Return) {
            // Of slots only those that are free.
            account.granted -= if is_slots { lease.drain() } else { lease.void() };
        }
        let live = self.node.coordinator.live().max(1);
        if let (true, Kind::Bucket(bucket)) = (had_promise, &limit.kind) {
            // Others want it too.
            let too_many = lease.tokens().saturating_sub(promise::most_held(bucket, live));
            if lease.take(too_many, now).is_some() {
                account.granted -= too_many;
            }
        }
        let held = lease.tokens();
        // After a longer silence only its end says what is to be expected.
        let elapsed = Duration::from_nanos(now.saturating_sub(account.exchanged_at)).min(RENEWAL);
        if elapsed > AT_ONCE {
            account.in_vain = 0;
        }
        // Only who had to refuse somebody wants to be promised something, and not by what a moment says.
        let is_short = known.has_refused() || account.in_vain >= IN_VAIN;
        let elapsed = match &limit.kind {
            Kind::Bucket(bucket) if is_short => elapsed.max(ledger::again(bucket, live)),
            _ => elapsed,
        };
        let prefetch = match (&limit.kind, purpose) {
            (_, Purpose::Return | Purpose::Reminder { .. }) => 0,
            // Too slow a bucket for leases, or too small: each request asks for itself, so that no token lies idle where
            // nobody wants it.
            (Kind::Bucket(bucket), _) if bucket.tokens_in(RENEWAL).min(bucket.burst()) < 2 * live => 0,
            (Kind::Slots { .. }, _) => (account.granted / 4).saturating_sub(held),
            (Kind::Bucket(bucket), _) if known.left() > bucket.burst() / 2 => {
                demand(asked, elapsed).min(asked.saturating_mul(GROWTH)).saturating_sub(held)
            }
            _ => demand(asked, elapsed).saturating_sub(held),
        };
        // Others tell first what they have spent.
        let may_ask = !state.alone.as_ref().is_some_and(|alone| alone.others_tell_first(now));
        let (prefetch, least) = if may_ask { (prefetch, least) } else { (0, 0) };
        let paced = match &limit.kind {
            Kind::Bucket(bucket) => {
                // Looked at whatever comes of it.
                let suits = promise::suits(bucket, live, known.heaviest().max(least));
                is_short && prefetch > 0 && suits && self.node.coordinator.promises()
            }
            Kind::Quota { .. } | Kind::Slots { .. } => false,
        };
        account.asked = account.asked_by_now(lease, known, is_slots);
        account.exchanged_at = now;
        if matches!(limit.kind, Kind::Bucket(_)) {
            account.usual = u32::try_from(per_renewal(asked, elapsed)).unwrap_or(u32::MAX);
        }
        report.requests.push(Request {
            key,
            terms,
            spent: if is_slots { account.granted } else { account.granted.saturating_sub(held) },
            held: if is_slots { 0 } else { held + rest },
            has_ended: false,
            known: account.answered_at != 0 && now < after(account.answered_at, ledger::kept(terms) / 2),
            want: prefetch.max(least.saturating_sub(held)),
            least: least.saturating_sub(held),
            paced,
        });
        report.indices.push(index);
    }
}

/// What is asked for in the time of a renewal, if so much was in this time.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Bounded above, and never negative.
fn per_renewal(asked: u64, elapsed: Duration) -> u64 {
    (asked as f64 * RENEWAL.as_secs_f64() / elapsed.as_secs_f64().max(0.001)).ceil().min(1e12) as u64
}

/// Tokens to hold where so many were asked for in this time.
fn demand(asked: u64, elapsed: Duration) -> u64 {
    per_renewal(asked, elapsed) * FORESIGHT
}
