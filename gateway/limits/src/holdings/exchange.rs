//! Exchanges with the coordinator: in the background, one at a time. When one is made, and for what.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::task::JoinHandle;

use super::{Holdings, Kind, Place, account::key_of_period};
use crate::{
    clock::Nanos,
    coordinator::{Answer, CoordinatorError, Exchange, Outcome, RENEWAL, Request},
    node::{Counters, after},
    terms::Terms,
};

/// Between the parts of an exchange that is too long for one, requests that wait have their turn.
const PART_PAUSE: Duration = Duration::from_millis(2);

/// What is left when limits have been replaced is told so often, once in a [`RENEWAL`], until it is heard.
const LAST_WORDS: u32 = 600;

/// How often it is tried to tell again what the coordinator may have forgotten, before others have their turn.
const REMINDERS: u32 = 5;

/// A promise is renewed this often: not too late for its end, and no more than once in a second, with a few more
/// exchanges where what is asked for changes.
const PROMISED_RENEWAL: Duration = Duration::from_millis(1150);

/// What is promised is looked at this often, whether it still suits what is asked for.
const LOOK: Duration = Duration::from_millis(200);

/// Why an exchange is made.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose<'a> {
    /// A request that costs as much waits for these limits.
    Wanted { limits: &'a [Place], cost: u64 },
    /// Leases are low, or old.
    Renewal,
    /// Nobody has asked for a while: everything is given back.
    Return,
    /// The coordinator may have forgotten what was told of quotas: from this account on.
    Reminder { from: usize },
}

impl Purpose<'_> {
    /// Of the exchange that goes on where this one ended. Who reminds goes on by itself.
    fn of_the_rest(self) -> Option<Purpose<'static>> {
        match self {
            Self::Wanted { .. } | Self::Renewal => Some(Purpose::Renewal),
            Self::Return => Some(Purpose::Return),
            Self::Reminder { .. } => None,
        }
    }
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
        if matches!(self.begin(Purpose::Wanted { limits, cost }, now), Begun::Ended { .. }) {
            return;
        }
        let left = Duration::from_nanos(deadline.saturating_sub(now));
        let _ = tokio::time::timeout(left, exchanged).await;
    }

    /// Begins an exchange for a request that will ask for these limits next, if they are not at hand.
    pub(crate) fn ask_for(&self, limits: &[Place], cost: u64, now: Nanos) {
        let is_unknown = |place: &Place| {
            let lease = self.leases.get(place.index());
            lease.is_some_and(|lease| !lease.seems_to_hold(place.cost(cost), now))
                && self.must_be_asked(*place, cost, now)
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
        let (due, is_astray) = {
            let state = self.state.lock();
            let lives_on_promises = state.accounts.iter().any(|account| account.promise.is_some());
            let due = after(state.exchanged_at, if lives_on_promises { PROMISED_RENEWAL } else { RENEWAL });
            let accounts = state.accounts.iter().zip(self.leases.iter()).zip(&self.known);
            let mut astray = accounts.map(|((account, lease), known)| account.is_astray(lease, known, now));
            let is_astray = lives_on_promises && astray.any(|is_astray| is_astray);
            (if lives_on_promises { due.min(after(now, LOOK)) } else { due }, is_astray || now >= due)
        };
        if !is_astray {
            return self.schedule(due);
        }
        if !self.has_something_to_say() {
            return;
        }
        let purpose = if self.is_in_use() { Purpose::Renewal } else { Purpose::Return };
        if matches!(self.begin(purpose, now), Begun::Not | Begun::Silent) {
            self.schedule(after(now, RENEWAL));
        }
    }

    /// Tells the coordinator again what was spent: it may have forgotten. Whether it has heard all of it.
    pub(crate) async fn remind(&self) -> bool {
        let (mut from, mut tries) = (0, 0);
        while tries < REMINDERS {
            let exchanged = self.exchanged.notified();
            tokio::pin!(exchanged);
            exchanged.as_mut().enable();
            let (is_heard, next) = match self.begin(Purpose::Reminder { from }, self.node.clock.now()) {
                Begun::Silent => return true,
                // After another one that is under way, its turn comes.
                Begun::Not => {
                    let _ = tokio::time::timeout(RENEWAL, exchanged).await;
                    (false, None)
                }
                Begun::Ended { is_heard, next } => (is_heard, next),
                Begun::UnderWay { is_heard, next } => {
                    (matches!(tokio::time::timeout(RENEWAL, is_heard).await, Ok(Ok(true))), next)
                }
            };
            match (is_heard, next) {
                (true, None) => return true,
                (true, Some(next)) => {
                    (from, tries) = (next, 0);
                    tokio::time::sleep(PART_PAUSE).await;
                }
                (false, _) => tries += 1,
            }
        }
        false
    }

    /// Whether there are quotas, of which more than the leases at hand must be known.
    pub(crate) fn has_quotas(&self) -> bool {
        self.plan.limits.iter().any(|limit| matches!(limit.kind, Kind::Quota { .. }))
    }

    /// Whether it has spent anything while the coordinator was away.
    pub(crate) fn has_debts(&self) -> bool {
        let is_alone = self.state.lock().alone.is_some();
        is_alone && self.has_something_to_say()
    }

    /// Gives everything back that is not in use. Whoever asks again takes new leases.
    pub fn give_back(&self) {
        if self.has_something_to_say() {
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

    /// Whether anything is held, or was spent that the coordinator does not know of.
    fn has_something_to_say(&self) -> bool {
        let state = self.state.lock();
        self.leases.iter().zip(&state.accounts).zip(&self.plan.limits).any(|((lease, account), limit)| {
            let is_slots = matches!(limit.kind, Kind::Slots { .. });
            lease.tokens() > 0
                || account.promise.as_ref().is_some_and(|promise| !promise.is_told())
                || if is_slots { account.granted > 0 } else { account.spent(lease) != account.told }
        })
    }

    /// Whether anybody has asked for anything since the last exchange, or holds a slot.
    fn is_in_use(&self) -> bool {
        let state = self.state.lock();
        let limits = self.leases.iter().zip(&self.known).zip(&self.plan.limits);
        limits.zip(&state.accounts).any(|(((lease, known), limit), account)| {
            let is_slots = matches!(limit.kind, Kind::Slots { .. });
            account.asked_by_now(lease, known, is_slots) != account.asked
                || is_slots && lease.tokens() < account.granted
        })
    }

    fn begin(&self, purpose: Purpose<'_>, now: Nanos) -> Begun {
        let Some(this) = self.this.upgrade() else { return Begun::Not };
        let (exchange, indices, is_part, next) = {
            let mut state = self.state.lock();
            let reminder_from = if let Purpose::Reminder { from } = purpose { Some(from) } else { None };
            let is_early = state.alone.as_ref().is_some_and(|alone| now < alone.retry_at);
            if state.in_flight || is_early && reminder_from.is_none() {
                return Begun::Not;
            }
            let mut from = reminder_from.unwrap_or(state.next);
            let mut report = self.report(&mut state, purpose, from, now);
            // What is reminded of is all there is, whatever was told last.
            if reminder_from.is_none() {
                if report.requests.is_empty() && from > 0 {
                    from = 0;
                    report = self.report(&mut state, purpose, from, now);
                }
                state.next = report.next.unwrap_or(0);
            }
            if report.requests.is_empty() {
                return Begun::Silent;
            }
            state.in_flight = true;
            state.exchanged_at = now;
            let is_part = report.next.is_some() || from > 0;
            (self.exchange(report.requests), report.indices, is_part, report.next)
        };
        let rest = next.and_then(|_| purpose.of_the_rest());
        self.node.exchange_begins();
        if let Some(result) = self.node.coordinator.exchange_now(&exchange) {
            let is_heard = self.finish(&exchange, &indices, is_part, now, result);
            if let Some(rest) = rest {
                self.begin(rest, now);
            }
            return Begun::Ended { is_heard, next };
        }
        let is_heard = self.node.runtime.spawn(async move {
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
            let is_heard = this.finish(&exchange, &indices, is_part, now, result);
            if let Some(rest) = rest {
                tokio::time::sleep(PART_PAUSE).await;
                this.begin(rest, this.node.clock.now());
            }
            is_heard
        });
        Begun::UnderWay { is_heard, next }
    }

    fn exchange(&self, accounts: Vec<Request>) -> Exchange {
        Exchange {
            tenant: Arc::clone(&self.plan.tenant),
            reporter: Arc::clone(&self.reporter),
            revision: self.plan.revision,
            accounts,
        }
    }

    /// Whether it was heard.
    fn finish(
        &self,
        exchange: &Exchange,
        indices: &[usize],
        is_part: bool,
        sent_at: Nanos,
        result: Result<Vec<Answer>, CoordinatorError>,
    ) -> bool {
        self.node.exchange_ends();
        let is_heard = result.is_ok();
        let now = self.node.clock.now();
        let mut state = self.state.lock();
        state.in_flight = false;
        let mut must_tell = false;
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
                    None => must_tell = self.is_back(&mut state, is_part, sent_at, now),
                }
            }
            Err(error) => {
                Counters::count(&self.node.counters.failures);
                tracing::debug!(tenant = %self.plan.tenant, %error, "no answer about limits");
                self.is_away(&mut state, sent_at, now);
            }
        }
        let has_promise = state.accounts.iter().any(|account| account.promise.is_some());
        drop(state);
        if let (true, Some(this)) = (must_tell, self.this.upgrade()) {
            self.node.runtime.spawn(async move { this.remind().await });
        }
        if self.has_something_to_say() {
            self.schedule(after(now, if has_promise { LOOK } else { RENEWAL }));
        }
        self.exchanged.notify_waiters();
        is_heard
    }
}

impl Drop for Holdings {
    /// Other limits have taken their place: what is left is given back, and what was spent is told.
    fn drop(&mut self) {
        for ((account, lease), limit) in
            self.state.get_mut().accounts.iter().zip(self.leases.iter()).zip(&self.plan.limits)
        {
            if let Some(period) = &account.period
                && account.spent(lease) > 0
            {
                let (key, spent) = (key_of_period(limit, period), account.spent(lease));
                self.node.reporter_gone(&self.plan.tenant, &key, &self.reporter, spent, period.ends);
            }
        }
        if self.has_something_to_say() {
            self.say_last_words();
        }
    }
}

impl Holdings {
    fn say_last_words(&self) {
        let now = self.node.clock.now();
        let (mut exchanges, mut from) = (Vec::new(), Some(0));
        {
            let mut state = self.state.lock();
            while let Some(index) = from {
                let report = self.report(&mut state, Purpose::Return, index, now);
                from = report.next;
                exchanges.push(self.exchange(report.requests));
            }
        }
        let node = Arc::clone(&self.node);
        exchanges.retain(|exchange| !exchange.accounts.is_empty() && !node.says_at_once(exchange));
        if exchanges.is_empty() {
            return;
        }
        self.node.runtime.spawn(async move {
            for exchange in exchanges {
                // While the coordinator is away, nobody else knows of it.
                for _ in 0..LAST_WORDS {
                    if node.says(&exchange).await {
                        break;
                    }
                    tokio::time::sleep(RENEWAL).await;
                }
            }
        });
    }
}

/// `next` is the first account that there was no room for.
#[derive(Debug)]
enum Begun {
    /// Another one is under way, or it is too early.
    Not,
    /// There is nothing to say.
    Silent,
    UnderWay {
        is_heard: JoinHandle<bool>,
        next: Option<usize>,
    },
    Ended {
        is_heard: bool,
        next: Option<usize>,
    },
}
