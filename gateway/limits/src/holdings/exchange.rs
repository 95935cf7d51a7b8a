//! Telling the coordinator what was spent, and taking new tokens: in the background, one exchange at a time.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use super::{
    Holdings, Kind, Limit, Place,
    alone::Alone,
    known::Known,
    promise::{self, FLIGHT, Promise},
};
use crate::{
    calendar::Period,
    clock::Nanos,
    coordinator::{Answer, CoordinatorError, Exchange, Outcome, RENEWAL, Request},
    lease::Lease,
    ledger,
    node::{Counters, after},
    terms::Terms,
};

/// Leases are taken to last so many renewals: half of one, the mark at which it is renewed early, is still
/// there at the next renewal, also where requests come irregularly.
const FORESIGHT: f64 = 3.0;

/// A bucket that is full loses what comes, until the coordinator hears that there is room. So leases of one that
/// is rather full grow by steps, each of which reports: to so many times what was spent since the last one.
const GROWTH: u64 = 3;

/// Accounts of one exchange, so that a tenant with very many limits does not keep the coordinator from the others.
const MOST_ACCOUNTS: usize = 32;

/// Between the parts of an exchange that is too long for one, requests that wait have their turn.
const PART_PAUSE: Duration = Duration::from_millis(2);

/// What is left when limits have been replaced is told so often, once in a [`RENEWAL`], until it is heard.
const LAST_WORDS: u32 = 600;

/// A lease ends here this much earlier than with the coordinator: a request that was just let in counts
/// as before its end everywhere.
const MARGIN: Duration = Duration::from_millis(20);

/// How often it is tried to tell again what the coordinator may have forgotten, before others have their turn.
const REMINDERS: u32 = 5;

/// A promise is renewed this often: not too late for its end, and no more than once in a second, with a few more
/// exchanges where what is asked for changes.
const PROMISED_RENEWAL: Duration = Duration::from_millis(1150);

/// Who is refused asks again after this time at the earliest, unless a bucket would be full before: tokens
/// that come every few microseconds are not worth a call each.
pub(super) const PAUSE: Duration = Duration::from_millis(10);

/// Who was given too little so often, each time at once after the time before, would ask for each request.
const IN_VAIN: u32 = 8;

/// That is at once.
const AT_ONCE: Duration = Duration::from_millis(50);

/// What is known of the accounts.
#[derive(Debug)]
pub(super) struct State {
    /// One for each limit, from the first exchange on: of many tenants, few are ever asked for.
    pub(super) accounts: Vec<Account>,
    pub(super) alone: Option<Alone>,
    /// An exchange is under way.
    in_flight: bool,
    exchanged_at: Nanos,
    /// The account that the next exchange begins with: the one before had no room for it.
    next: usize,
    /// Exchanges that were answered.
    heard: u64,
}

#[derive(Debug, Default)]
pub(super) struct Account {
    /// Tokens that came, less those that were given back or became void: what is not at hand of them is spent.
    pub(super) granted: u64,
    /// What was spent and asked for in vain, at the last exchange; and when that was.
    asked: u64,
    exchanged_at: Nanos,
    /// What the coordinator knows to be spent.
    told: u64,
    /// When the coordinator answered last; 0: never.
    answered_at: Nanos,
    /// Whether it has ever known what is left of it.
    has_known: bool,
    /// How often in succession less was given than a lease may hold.
    in_vain: u32,
    /// The account's period, if it is a quota's.
    pub(super) period: Option<Period>,
    /// What comes by and by. Not while an exchange is under way that tells how much has.
    pub(super) promise: Option<Promise>,
    /// Parts of a token that have come while the coordinator was away.
    pub(super) share: super::alone::Share,
}

impl Account {
    /// Whether the coordinator has ever said what is left of it, when it knew.
    pub(super) fn has_known(&self) -> bool {
        self.has_known
    }

    fn spent(&self, lease: &Lease) -> u64 {
        self.granted.saturating_sub(lease.tokens())
    }

    /// What was spent and asked for in vain so far; of slots, what was asked for. Wraps.
    fn asked_by_now(&self, lease: &Lease, known: &Known, is_slots: bool) -> u64 {
        let spent = if is_slots { 0 } else { self.spent(lease) };
        spent.wrapping_add(known.asked())
    }

    /// What has come by a promise is told, and what comes from now on is the coordinator's to give again. Returns the
    /// tokens that have come and are not at hand yet, if they are to be.
    fn tell_promise(&mut self, lease: &Lease, known: &Known, is_over: bool, now: Nanos) -> u64 {
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
        self.period.clone_from(&former.period);
        self.share = former.share.of_quota_with(left);
    }
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

impl Purpose<'_> {
    /// Of the exchange that goes on where this one ended.
    fn of_the_rest(self) -> Purpose<'static> {
        match self {
            Self::Wanted { .. } | Self::Renewal => Purpose::Renewal,
            Self::Return => Purpose::Return,
            Self::Reminder => Purpose::Reminder,
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
        if self.begin(Purpose::Wanted { limits, cost }, now) == Begun::Ended {
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
        let due = {
            let state = self.state.lock();
            let lives_on_promises = state.accounts.iter().any(|account| account.promise.is_some());
            after(state.exchanged_at, if lives_on_promises { PROMISED_RENEWAL } else { RENEWAL })
        };
        if now < due {
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

    /// Tells the coordinator again what was spent: it may have forgotten. Whether it has heard.
    pub(crate) async fn remind(&self) -> bool {
        for _ in 0..REMINDERS {
            let exchanged = self.exchanged.notified();
            tokio::pin!(exchanged);
            exchanged.as_mut().enable();
            let heard = self.state.lock().heard;
            match self.begin(Purpose::Reminder, self.node.clock.now()) {
                Begun::Ended | Begun::Silent => return true,
                // After another one that is under way, its turn comes.
                Begun::Not => {
                    let _ = tokio::time::timeout(RENEWAL, exchanged).await;
                }
                Begun::UnderWay => {
                    let ended = tokio::time::timeout(RENEWAL, exchanged).await.is_ok();
                    let state = self.state.lock();
                    if ended && !state.in_flight && state.next == 0 && state.heard > heard {
                        return true;
                    }
                }
            }
        }
        false
    }

    /// Whether there are quotas, of which more than the leases at hand must be known.
    pub(crate) fn has_quotas(&self) -> bool {
        self.plan.limits.iter().any(|limit| matches!(limit.kind, Kind::Quota { .. }))
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
        let (exchange, indices, is_a_part) = {
            let mut state = self.state.lock();
            let is_reminder = matches!(purpose, Purpose::Reminder);
            let is_early = state.alone.as_ref().is_some_and(|alone| now < alone.retry_at);
            if state.in_flight || is_early && !is_reminder {
                return Begun::Not;
            }
            let from = state.next;
            let mut report = self.report(&mut state, purpose, from, now);
            if report.requests.is_empty() && from > 0 {
                report = self.report(&mut state, purpose, 0, now);
            }
            state.next = report.next.unwrap_or(0);
            if report.requests.is_empty() {
                return Begun::Silent;
            }
            state.in_flight = true;
            state.exchanged_at = now;
            (self.exchange(report.requests), report.indices, report.next.is_some())
        };
        self.node.exchange_begins();
        if let Some(result) = self.node.coordinator.exchange_now(&exchange) {
            self.finish(&exchange, &indices, now, result);
            if is_a_part {
                self.begin(purpose.of_the_rest(), now);
            }
            return Begun::Ended;
        }
        let rest = is_a_part.then(|| purpose.of_the_rest());
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
            if let Some(rest) = rest {
                tokio::time::sleep(PART_PAUSE).await;
                this.begin(rest, this.node.clock.now());
            }
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

    /// What there is to say and to ask about the accounts that matter now: those that a request waits for, and
    /// of the others those from this one on.
    fn report(&self, state: &mut State, purpose: Purpose<'_>, from: usize, now: Nanos) -> Report {
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
            Purpose::Reminder => account.granted > 0,
            _ if is_slots => account.granted > 0,
            _ => account.spent(lease) != account.told,
        };
        if least == 0 && asked == 0 && lease.tokens() == 0 && !matters && !had_promise {
            return;
        }
        let rest = account.tell_promise(lease, known, matches!(purpose, Purpose::Return | Purpose::Reminder), now);
        let (key, terms) = match &limit.kind {
            Kind::Bucket(bucket) => (Arc::clone(&limit.key), Terms::Bucket(*bucket)),
            Kind::Slots { limit: slots } => (Arc::clone(&limit.key), Terms::Slots { limit: *slots }),
            Kind::Quota { limit: quota, calendar } => {
                let micros = self.node.coordinator_micros(now);
                if !account.period.as_ref().is_some_and(|period| period.contains(micros)) {
                    // A new period is a new account.
                    lease.void();
                    let period = calendar.period(micros);
                    known.set_renewed_at(after(now, Duration::from_micros(period.ends.saturating_sub(micros))));
                    let share = std::mem::take(&mut account.share).of_next_period();
                    *account = Account { share, period: Some(period), ..Account::default() };
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
            (_, Purpose::Return | Purpose::Reminder) => 0,
            // Too slow a bucket for leases: each request asks for itself, so that no token lies idle where
            // nobody wants it.
            (Kind::Bucket(bucket), _) if bucket.tokens_in(RENEWAL) < 2 * live => 0,
            (Kind::Slots { .. }, _) => (account.granted / 4).saturating_sub(held),
            (Kind::Bucket(bucket), _) if known.left() > bucket.burst() / 2 => {
                demand(asked, elapsed).min(asked.saturating_mul(GROWTH)).saturating_sub(held)
            }
            _ => demand(asked, elapsed).saturating_sub(held),
        };
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
                state.heard += 1;
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
        if self.has_something_to_say() {
            self.schedule(after(now, RENEWAL));
        }
        self.exchanged.notify_waiters();
    }

    fn settle(&self, state: &mut State, index: usize, request: &Request, answer: &Answer, sent_at: Nanos, now: Nanos) {
        let (Some(lease), Some(known)) = (self.leases.get(index), self.known.get(index)) else { return };
        let Some(account) = state.accounts.get_mut(index) else { return };
        let is_slots = matches!(request.terms, Terms::Slots { .. });
        account.answered_at = now;
        account.told = request.spent;
        match answer.outcome {
            // It says what it has heard so far, and may have known more.
            Outcome::Recovering { .. } if account.has_known => known.set_left(known.left().min(answer.left)),
            Outcome::Recovering { .. } | Outcome::OtherPeriod => known.set_left(answer.left),
            Outcome::Granted { .. } | Outcome::NoneUntil { .. } => {
                account.has_known = true;
                known.set_left(answer.left);
            }
        }
        let again_at = if answer.pace.again_in.is_zero() { 0 } else { after(now, answer.pace.again_in) };
        known.set_again_at(again_at);
        let is_promised = answer.pace.rate > 0;
        // What had come of a former promise is certain now.
        let rest = account.promise.take().map_or(0, |promise| promise.rest());
        account.in_vain = match (request.terms, answer.outcome) {
            (Terms::Bucket(bucket), Outcome::Granted { tokens, .. }) if !is_promised => {
                let most = promise::most_held(&bucket, self.node.coordinator.live().max(1));
                if tokens < request.want.min(most.saturating_sub(request.held)) { account.in_vain + 1 } else { 0 }
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
            account.promise = Some(Promise::new(answer.pace, now, until));
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
            Outcome::OtherPeriod => account.period = None,
            Outcome::Recovering { .. } => {}
        }
    }
}

impl Holdings {
    /// Whether what gateways have spent, and not told of yet, may leave no room for what comes until they do: where each
    /// of them can hold but one token, and the bucket is rather full.
    fn crowds(&self, terms: Terms, left: u64) -> bool {
        let Terms::Bucket(bucket) = terms else { return false };
        let live = self.node.coordinator.live().max(1);
        promise::most_held(&bucket, live) == 1 && left + live + bucket.tokens_in(RENEWAL) >= bucket.burst()
    }
}

impl Drop for Holdings {
    /// Other limits have taken their place: what is left is given back, and what was spent is told.
    fn drop(&mut self) {
        if !self.has_something_to_say() {
            return;
        }
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

/// What an exchange is about.
#[derive(Debug, Default)]
struct Report {
    requests: Vec<Request>,
    /// Where their limits stand in the plan.
    indices: Vec<usize>,
    /// The first account that there was no room for.
    next: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begun {
    /// Another one is under way, or it is too early.
    Not,
    /// There is nothing to say.
    Silent,
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

/// The account of a quota in one of its periods.
pub(super) fn key_of_period(limit: &Limit, period: &Period) -> Arc<str> {
    format!("{}:{}", limit.key, period.id).into()
}

/// Tokens to hold where so many were asked for in this time.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Bounded above, and never negative.
fn demand(asked: u64, elapsed: Duration) -> u64 {
    let per_renewal = asked as f64 * RENEWAL.as_secs_f64() / elapsed.as_secs_f64().max(0.001);
    (per_renewal * FORESIGHT).ceil().min(1e12) as u64
}
