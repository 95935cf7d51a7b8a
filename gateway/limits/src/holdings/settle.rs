//! What an answer changes.

use std::time::Duration;

use super::{
    Holdings,
    account::State,
    promise::{self, Promise},
};
use crate::{
    clock::Nanos,
    coordinator::{Answer, Outcome, RENEWAL, Request},
    node::after,
    terms::Terms,
};

/// A lease ends here this much earlier than with the coordinator: a request that was just let in counts
/// as before its end everywhere.
const MARGIN: Duration = Duration::from_millis(20);

/// Who is refused asks again after this time at the earliest, unless a bucket would be full before: tokens
/// that come every few microseconds are not worth a call each.
pub(super) const PAUSE: Duration = Duration::from_millis(10);

/// A burst that is so many tokens for each gateway is taken up by what they have spent and not told of.
const FEW_EACH: u64 = 3;

impl Holdings {
    /// Takes what an answer says of one account.
    pub(super) fn settle(
        &self,
        state: &mut State,
        index: usize,
        request: &Request,
        answer: &Answer,
        sent_at: Nanos,
        now: Nanos,
    ) {
        let (Some(lease), Some(known)) = (self.leases.get(index), self.known.get(index)) else { return };
        let Some(account) = state.accounts.get_mut(index) else { return };
        let is_slots = matches!(request.terms, Terms::Slots { .. });
        let answered_before = std::mem::replace(&mut account.answered_at, now);
        let told = request.spent + request.held;
        let given = if let Outcome::Granted { tokens, .. } = answer.outcome { tokens } else { 0 };
        match answer.outcome {
            // It says what it has heard so far, and may have known more.
            Outcome::Recovering { .. } if account.has_known => known.set_left(known.left().min(answer.left)),
            Outcome::Recovering { .. } | Outcome::OtherPeriod => known.set_left(answer.left),
            Outcome::Granted { .. } | Outcome::NoneUntil { .. } => {
                if let Terms::Quota { limit, starts, .. } = request.terms {
                    let left = answer.left + given;
                    if account.has_known {
                        let elapsed = Duration::from_nanos(now.saturating_sub(answered_before));
                        account.others_took_till(left, known.left(), told, elapsed);
                    } else {
                        let elapsed = Duration::from_micros(answer.now.saturating_sub(starts));
                        account.others_took(limit.saturating_sub(left + told), elapsed);
                    }
                }
                account.has_known = true;
                known.set_left(answer.left);
            }
        }
        if matches!(request.terms, Terms::Quota { .. }) {
            let live = self.node.coordinator.live().max(1);
            account.share.quota_is_at_most(answer.left / live, account.granted.saturating_sub(told));
        }
        // It takes nothing down for a period that is not its own.
        if !matches!(answer.outcome, Outcome::OtherPeriod) {
            account.told = request.spent;
            account.debited = told + given;
        }
        let again_at = if answer.pace.again_in.is_zero() { 0 } else { after(now, answer.pace.again_in) };
        known.set_again_at(again_at);
        let is_promised = answer.pace.rate > 0;
        // What had come of a former promise is certain now.
        let rest = account.promise.take().map_or(0, |promise| promise.rest());
        account.in_vain = match (request.terms, answer.outcome) {
            (Terms::Bucket(bucket), Outcome::Granted { tokens, .. }) if !is_promised => {
                let most = promise::most_held(&bucket, self.node.coordinator.live().max(1));
                if tokens < request.want.min(most.saturating_sub(request.held)) {
                    account.in_vain.saturating_add(1)
                } else {
                    0
                }
            }
            _ => 0,
        };
        known.set_promised_until(0);
        let is_given = matches!(answer.outcome, Outcome::Granted { .. } | Outcome::NoneUntil { .. });
        if rest > 0 && is_given && !lease.has_ended(now) {
            account.granted += rest;
            lease.add_promised(rest);
        }
        if let (true, Outcome::Granted { ends_in, .. } | Outcome::NoneUntil { ends_in, .. }) =
            (is_promised, answer.outcome)
        {
            if lease.has_ended(now) {
                account.granted -= lease.void();
            }
            let until = ends(request.terms, sent_at, ends_in);
            lease.extend(until);
            account.promise = Some(Box::new(Promise::new(answer.pace, now, until)));
            known.set_next_at(0);
            known.lift_bar();
            known.set_promised_until(until);
        }
        match answer.outcome {
            Outcome::Granted { tokens, .. } if is_promised => {
                account.granted += tokens;
                lease.add_promised(tokens);
            }
            // Requests that wait for what comes know when it does.
            Outcome::NoneUntil { .. } if is_promised => {}
            Outcome::Granted { tokens, ends_in } => {
                if lease.has_ended(now) && !is_slots {
                    account.granted -= lease.void();
                }
                account.granted += tokens;
                let until = ends(request.terms, sent_at, ends_in);
                if self.crowds(request.terms, answer.left) {
                    lease.add_few(tokens, until);
                } else {
                    lease.add(tokens, until);
                }
                if let Terms::Quota { ends, .. } = request.terms {
                    let given = request.spent + request.held + tokens;
                    self.node.quota_given(&self.plan.tenant, &request.key, &self.reporter, given, ends);
                }
            }
            Outcome::NoneUntil { wait, ends_in } => {
                if !lease.has_ended(now) {
                    lease.extend(ends(request.terms, sent_at, ends_in));
                }
                let pause = match request.terms {
                    Terms::Bucket(bucket) => PAUSE.min(bucket.time_to_fill() / 4),
                    // A slot may come free at any moment.
                    Terms::Quota { .. } | Terms::Slots { .. } => PAUSE,
                };
                known.set_bar(request.least + request.held, after(now, wait.max(pause)).max(again_at));
            }
            // Asked again with what time it is now.
            Outcome::OtherPeriod | Outcome::Recovering { .. } => {}
        }
    }

    /// Whether what gateways have spent, and not told of yet, may leave no room for what comes until they do: where the
    /// burst is a few tokens for each of them, and the bucket is rather full.
    fn crowds(&self, terms: Terms, left: u64) -> bool {
        let Terms::Bucket(bucket) = terms else { return false };
        let live = self.node.coordinator.live().max(1);
        bucket.burst() <= FEW_EACH * live && left + live + bucket.tokens_in(RENEWAL) >= bucket.burst()
    }
}

/// The moment from which on what was granted is void here.
fn ends(terms: Terms, sent_at: Nanos, ends_in: Duration) -> Nanos {
    match terms {
        Terms::Quota { .. } => after(sent_at, ends_in),
        Terms::Bucket(_) | Terms::Slots { .. } => after(sent_at, ends_in.saturating_sub(MARGIN)),
    }
}
