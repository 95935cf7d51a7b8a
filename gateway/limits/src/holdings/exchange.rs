//! Telling the coordinator what was spent, and taking new tokens: in the background, one exchange at a time.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use super::{Holdings, Kind, Place, alone::Alone};
use crate::{
    calendar::Period,
    clock::Nanos,
    coordinator::{Answer, CoordinatorError, Exchange, Outcome, RENEWAL, Request},
    ledger,
    node::{Counters, after},
    terms::Terms,
};

/// Leases are taken to last so many renewals: half of one, the mark at which it is renewed early, is still
/// there at the next renewal, also where requests come irregularly.
const FORESIGHT: f64 = 3.0;

/// A bucket that is full loses what comes, until the coordinator hears that there is room. So leases of one that
/// is rather full grow by steps, each of which reports: to so many times what was spent since the last one.
const GROWTH: u64 = 4;

/// A lease ends here this much earlier than with the coordinator: a request that was just let in counts
/// as before its end everywhere.
const MARGIN: Duration = Duration::from_millis(20);

/// Who is refused asks again after this time at the earliest, unless a bucket would be full before: tokens
/// that come every few microseconds are not worth a call each.
pub(super) const PAUSE: Duration = Duration::from_millis(10);

/// What is known of the accounts.
#[derive(Debug)]
pub(super) struct State {
    /// One for each limit, from the first exchange on: of many tenants, few are ever asked for.
    pub(super) accounts: Vec<Account>,
    pub(super) alone: Option<Alone>,
    /// An exchange is under way.
    in_flight: bool,
    exchanged_at: Nanos,
}

#[derive(Debug, Default)]
pub(super) struct Account {
    /// Tokens that came, less those that were given back or became void: what is not at hand of them is spent.
    pub(super) granted: u64,
    /// The lease's count of tokens asked for, at the last exchange.
    asked: u64,
    /// When the coordinator answered last; 0: never.
    answered_at: Nanos,
    /// The account's period, if it is a quota's.
    period: Option<Period>,
    /// Parts of a token that have come while the coordinator was away.
    pub(super) share: super::alone::Share,
}

impl Account {
    /// Whether the coordinator has ever said anything about it.
    pub(super) fn has_an_answer(&self) -> bool {
        self.answered_at != 0
    }
}

impl State {
    pub(super) fn new() -> Self {
        Self { accounts: Vec::new(), alone: None, in_flight: false, exchanged_at: 0 }
    }

    /// When the exchange that is under way began.
    pub(super) fn waits_since(&self) -> Option<Nanos> {
        self.in_flight.then_some(self.exchanged_at)
    }
}

/// Why an exchange is made.
#[derive(Debug, Clone, Copy)]
enum Purpose<'a> {
    /// A request that costs as much waits for these limits.
    Wanted { limits: &'a [Place], cost: u64 },
    /// Leases are low, or old.
    Renewal,
    /// Nobody has asked for a while: everything is given back.
    Return,
    /// The coordinator may have forgotten what was told of quotas.
    Reminder,
}

impl Holdings {
    /// Begins an exchange for a request that needs tokens of these limits, or joins the one that is under
    /// way. Returns at its end, or when patience has.
    pub(crate) async fn wait_for(&self, limits: &[Place], cost: u64, deadline: Nanos) {
        let now = self.node.clock.now();
        let exchanged = self.exchanged.notified();
        tokio::pin!(exchanged);
        // Before anything begins, so that its end is not missed.
        exchanged.as_mut().enable();
        if self.begin(Purpose::Wanted { limits, cost }, now) == Begun::Ended {
            return;
        }
        let left = Duration::from_nanos(deadline.saturating_sub(now));
        let _ = tokio::time::timeout(left, exchanged).await;
    }

    /// Begins an exchange for a request that will ask for these limits next, if they are not at hand.
    pub(crate) fn ask_for(&self, limits: &[Place], cost: u64, now: Nanos) {
        let is_unknown = |place: &Place| {
            let cost = if place.is_slots() { 1 } else { cost };
            self.leases
                .get(place.index())
                .is_some_and(|lease| (lease.tokens() < cost || lease.has_ended(now)) && lease.barred_until() <= now)
        };
        if limits.iter().any(is_unknown) {
            self.begin(Purpose::Wanted { limits, cost }, now);
        }
    }

    /// Leases are low: more are taken in the background.
    pub(super) fn renew(&self, now: Nanos) {
        self.begin(Purpose::Renewal, now);
    }

    /// Looks whether leases are to be renewed or given back.
    pub(crate) fn look_after(&self, now: Nanos) {
        self.scheduled.store(false, Relaxed);
        let due = after(self.state.lock().exchanged_at, RENEWAL);
        if now < due {
            return self.schedule(due);
        }
        if !self.holds_anything() {
            return;
        }
        let purpose = if self.is_in_use() { Purpose::Renewal } else { Purpose::Return };
        if self.begin(purpose, now) == Begun::Not {
            self.schedule(after(now, RENEWAL));
        }
    }

    /// Tells the coordinator again what was spent: it may have forgotten.
    pub(crate) fn remind(&self) {
        self.begin(Purpose::Reminder, self.node.clock.now());
    }

    /// Whether there are quotas, of which more than the leases at hand must be known.
    pub(crate) fn has_quotas(&self) -> bool {
        self.plan.limits.iter().any(|limit| matches!(limit.kind, Kind::Quota { .. }))
    }

    /// Gives everything back that is not in use. Whoever asks again takes new leases.
    pub fn give_back(&self) {
        if self.holds_anything() {
            self.begin(Purpose::Return, self.node.clock.now());
        }
    }

    /// Whether nothing is held, and all accounts are what they would be if nobody had ever asked.
    pub(crate) fn is_as_new(&self, now: Nanos) -> bool {
        let state = self.state.lock();
        let given_until = after(state.exchanged_at, crate::coordinator::LEASE_TIME);
        let micros = self.node.coordinator_micros(now);
        self.leases.iter().zip(&state.accounts).zip(&self.plan.limits).all(|((lease, account), limit)| {
            let is_over = match &limit.kind {
                Kind::Bucket(bucket) => now > after(given_until, bucket.time_to_fill()),
                Kind::Quota { .. } => !account.period.as_ref().is_some_and(|period| period.contains(micros)),
                Kind::Slots { .. } => account.granted == 0,
            };
            is_over && (lease.tokens() == 0 || lease.has_ended(now))
        })
    }

    fn schedule(&self, at: Nanos) {
        if !self.scheduled.swap(true, Relaxed) {
            self.node.schedule(self.this.clone(), at);
        }
    }

    fn holds_anything(&self) -> bool {
        let state = self.state.lock();
        self.leases.iter().zip(&state.accounts).zip(&self.plan.limits).any(|((lease, account), limit)| {
            lease.tokens() > 0 || matches!(limit.kind, Kind::Slots { .. }) && account.granted > 0
        })
    }

    /// Whether anybody has asked for anything since the last exchange, or holds a slot.
    fn is_in_use(&self) -> bool {
        let state = self.state.lock();
        self.leases.iter().zip(&state.accounts).zip(&self.plan.limits).any(|((lease, account), limit)| {
            lease.asked() != account.asked
                || matches!(limit.kind, Kind::Slots { .. }) && lease.tokens() < account.granted
        })
    }

    fn begin(&self, purpose: Purpose<'_>, now: Nanos) -> Begun {
        let Some(this) = self.this.upgrade() else { return Begun::Not };
        let (exchange, indices) = {
            let mut state = self.state.lock();
            if state.in_flight || state.alone.as_ref().is_some_and(|alone| now < alone.retry_at) {
                return Begun::Not;
            }
            let (accounts, indices) = self.report(&mut state, purpose, now);
            if accounts.is_empty() {
                return Begun::Not;
            }
            state.in_flight = true;
            state.exchanged_at = now;
            (self.exchange(accounts), indices)
        };
        self.node.exchange_begins();
        if let Some(result) = self.node.coordinator.exchange_now(&exchange) {
            self.finish(&exchange, &indices, now, result);
            return Begun::Ended;
        }
        self.node.runtime.spawn(async move {
            let result = {
                let call = this.node.coordinator.exchange(&exchange);
                tokio::pin!(call);
                tokio::select! {
                    biased;
                    result = &mut call => result,
                    () = tokio::time::sleep(this.node.coordinator.patience()) => {
                        // Nobody waits any longer; what was sent may still be answered.
                        this.is_slow(now);
                        call.await
                    }
                }
            };
            this.finish(&exchange, &indices, now, result);
        });
        Begun::UnderWay
    }

    fn exchange(&self, accounts: Vec<Request>) -> Exchange {
        Exchange {
            tenant: Arc::clone(&self.plan.tenant),
            reporter: Arc::clone(&self.reporter),
            revision: self.plan.revision,
            accounts,
        }
    }

    /// What there is to say and to ask about each account that matters now, and their places.
    fn report(&self, state: &mut State, purpose: Purpose<'_>, now: Nanos) -> (Vec<Request>, Vec<usize>) {
        // After a longer silence only its end says what is to be expected.
        let elapsed = Duration::from_nanos(now.saturating_sub(state.exchanged_at)).min(RENEWAL);
        let live = self.node.coordinator.live().max(1);
        state.accounts.resize_with(self.leases.len(), Account::default);
        let (mut requests, mut indices) = (Vec::new(), Vec::new());
        for (index, (lease, limit)) in self.leases.iter().zip(&self.plan.limits).enumerate() {
            let Some(account) = state.accounts.get_mut(index) else { continue };
            let is_slots = matches!(limit.kind, Kind::Slots { .. });
            let asked = lease.asked().wrapping_sub(account.asked);
            let least = match purpose {
                Purpose::Wanted { limits, cost } if limits.iter().any(|wanted| wanted.index() == index) => {
                    if is_slots {
                        1
                    } else {
                        cost
                    }
                }
                _ => 0,
            };
            let matters = match purpose {
                Purpose::Reminder => account.granted > 0,
                _ => is_slots && account.granted > 0,
            };
            if least == 0 && asked == 0 && lease.tokens() == 0 && !matters {
                continue;
            }
            let (key, terms) = match &limit.kind {
                Kind::Bucket(bucket) => (Arc::clone(&limit.key), Terms::Bucket(*bucket)),
                Kind::Slots { limit: slots } => (Arc::clone(&limit.key), Terms::Slots { limit: *slots }),
                Kind::Quota { limit: quota, calendar } => {
                    let micros = self.node.coordinator_micros(now);
                    if !account.period.as_ref().is_some_and(|period| period.contains(micros)) {
                        // A new period is a new account.
                        lease.void();
                        let (asked, share) = (account.asked, std::mem::take(&mut account.share));
                        *account =
                            Account { asked, share, period: Some(calendar.period(micros)), ..Account::default() };
                    }
                    let Some(period) = &account.period else { continue };
                    let terms = Terms::Quota { limit: *quota, starts: period.starts, ends: period.ends };
                    (format!("{}:{}", limit.key, period.id).into(), terms)
                }
            };
            if lease.has_ended(now) || matches!(purpose, Purpose::Return) {
                // Of slots only those that are free.
                account.granted -= if is_slots { lease.drain() } else { lease.void() };
            }
            let held = lease.tokens();
            let prefetch = match (&limit.kind, purpose) {
                (_, Purpose::Return | Purpose::Reminder) => 0,
                // Too slow a bucket for leases: each request asks for itself, so that no token lies idle where
                // nobody wants it.
                (Kind::Bucket(bucket), _) if bucket.tokens_in(RENEWAL) < 2 * live => 0,
                (Kind::Slots { .. }, _) => (account.granted / 4).saturating_sub(held),
                (Kind::Bucket(bucket), _) if lease.left() > bucket.burst() / 2 => {
                    demand(asked, elapsed).min(asked.saturating_mul(GROWTH)).saturating_sub(held)
                }
                _ => demand(asked, elapsed).saturating_sub(held),
            };
            account.asked = account.asked.wrapping_add(asked);
            requests.push(Request {
                key,
                terms,
                spent: if is_slots { account.granted } else { account.granted.saturating_sub(held) },
                held: if is_slots { 0 } else { held },
                has_ended: false,
                known: account.answered_at != 0 && now < after(account.answered_at, ledger::KEPT / 2),
                want: prefetch.max(least.saturating_sub(held)),
                least: least.saturating_sub(held),
            });
            indices.push(index);
        }
        (requests, indices)
    }

    fn finish(
        &self,
        exchange: &Exchange,
        indices: &[usize],
        sent_at: Nanos,
        result: Result<Vec<Answer>, CoordinatorError>,
    ) {
        self.node.exchange_ends();
        let now = self.node.clock.now();
        let mut state = self.state.lock();
        state.in_flight = false;
        match result {
            Ok(answers) => {
                let mut recovering = None;
                for ((request, index), answer) in exchange.accounts.iter().zip(indices).zip(answers) {
                    if matches!(request.terms, Terms::Quota { .. }) {
                        self.node.heard_time(answer.now, now);
                    }
                    if let Outcome::Recovering { wait } = answer.outcome {
                        recovering = recovering.max(Some(wait));
                    }
                    self.settle(&mut state, *index, request, &answer, sent_at, now);
                }
                match recovering {
                    // It is back, and gives nothing yet.
                    Some(wait) => self.recovers_until(&mut state, after(now, wait)),
                    None => self.is_back(&mut state),
                }
            }
            Err(error) => {
                Counters::count(&self.node.counters.failures);
                tracing::debug!(tenant = %self.plan.tenant, %error, "no answer about limits");
                self.is_away(&mut state, sent_at, now);
            }
        }
        drop(state);
        if self.holds_anything() {
            self.schedule(after(now, RENEWAL));
        }
        self.exchanged.notify_waiters();
    }

    fn settle(&self, state: &mut State, index: usize, request: &Request, answer: &Answer, sent_at: Nanos, now: Nanos) {
        let (Some(lease), Some(account)) = (self.leases.get(index), state.accounts.get_mut(index)) else { return };
        let is_slots = matches!(request.terms, Terms::Slots { .. });
        account.answered_at = now;
        lease.set_left(answer.left);
        match answer.outcome {
            Outcome::Granted { tokens, ends_in } => {
                if lease.has_ended(now) && !is_slots {
                    account.granted -= lease.void();
                }
                account.granted += tokens;
                lease.add(tokens, ends(request.terms, sent_at, ends_in));
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
                lease.bar(request.least + request.held, after(now, wait.max(pause)));
            }
            // Asked again with what time it is now.
            Outcome::OtherPeriod => account.period = None,
            Outcome::Recovering { .. } => {}
        }
    }
}

impl Drop for Holdings {
    /// Other limits have taken their place: what is left is given back.
    fn drop(&mut self) {
        let now = self.node.clock.now();
        if !self.holds_anything() {
            return;
        }
        let exchange = {
            let mut state = self.state.lock();
            let (accounts, _) = self.report(&mut state, Purpose::Return, now);
            self.exchange(accounts)
        };
        let node = Arc::clone(&self.node);
        node.exchange_begins();
        if node.coordinator.exchange_now(&exchange).is_some() {
            return node.exchange_ends();
        }
        self.node.runtime.spawn(async move {
            // What cannot be given back is lost, as with a gateway that has died.
            let _ = node.coordinator.exchange(&exchange).await;
            node.exchange_ends();
        });
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begun {
    /// Another one is under way, or it is too early.
    Not,
    UnderWay,
    Ended,
}

/// The moment from which on what was granted is void here.
fn ends(terms: Terms, sent_at: Nanos, ends_in: Duration) -> Nanos {
    match terms {
        Terms::Quota { .. } => after(sent_at, ends_in),
        Terms::Bucket(_) | Terms::Slots { .. } => after(sent_at, ends_in.saturating_sub(MARGIN)),
    }
}

/// Tokens to hold where so many were asked for in this time.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Bounded above, and never negative.
fn demand(asked: u64, elapsed: Duration) -> u64 {
    let per_renewal = asked as f64 * RENEWAL.as_secs_f64() / elapsed.as_secs_f64().max(0.001);
    (per_renewal * FORESIGHT).ceil().min(1e12) as u64
}
