//! Gateways spend at random moments what they hold, messages take their time or are lost, gateways die, and the
//! coordinator's clock is set back: whatever they do, no more is admitted than an ideal account would admit.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

const GATEWAYS: usize = 4;
const BEGIN: u64 = 1_700_000_000_000_000;

#[derive(Debug, Clone)]
enum Step {
    Wait(u64),
    /// The coordinator's clock is set back.
    SetBack(u64),
    Spend {
        gateway: usize,
        tokens: u64,
    },
    /// What has begun comes to its end. Of slots only.
    Finish {
        gateway: usize,
        slots: u64,
    },
    Exchange {
        gateway: usize,
        give_back: u64,
        want: u64,
        least: u64,
        there: u64,
        back: u64,
        is_lost: bool,
        paced: bool,
    },
    /// It dies with all that it holds; another one takes its place.
    Restart(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let gateway = 0..GATEWAYS;
    let wait = prop_oneof![6 => 0u64..50_000, 3 => 0u64..2_000_000, 1 => 0u64..100_000_000];
    let flight = || prop_oneof![6 => Just(0u64), 3 => 0u64..20_000, 1 => 0u64..3_000_000];
    let flags = (prop::bool::weighted(0.1), prop::bool::weighted(0.7));
    let exchange = (gateway.clone(), 0u64..4, 0u64..40, 0u64..4, flight(), flight(), flags);
    prop_oneof![
        8 => wait.prop_map(Step::Wait),
        1 => (0u64..3_000_000).prop_map(Step::SetBack),
        10 => (gateway.clone(), 1u64..30).prop_map(|(gateway, tokens)| Step::Spend { gateway, tokens }),
        3 => (gateway.clone(), 1u64..5).prop_map(|(gateway, slots)| Step::Finish { gateway, slots }),
        12 => exchange.prop_map(|(gateway, give_back, want, least, there, back, (is_lost, paced))| {
            Step::Exchange { gateway, give_back, want, least, there, back, is_lost, paced }
        }),
        1 => gateway.prop_map(Step::Restart),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..300)
}

#[derive(Debug, Default, Clone)]
struct Gateway {
    generation: u64,
    spent: u64,
    held: u64,
    /// In true time, counted from before the message was sent.
    ends: u64,
    is_asking: bool,
    /// Since when, and how much of it has come.
    promise: Option<(Pace, u64, u64)>,
}

impl Gateway {
    /// What has come by and by is held.
    fn keep_promise(&mut self, now: u64) {
        if let Some((pace, from, came)) = &mut self.promise
            && now < self.ends
        {
            let in_all = pace.rate * (now - *from) / pace.unit;
            self.held += in_all - *came;
            *came = in_all;
        }
    }
}

/// A message on its way.
#[derive(Debug)]
struct Flight {
    gateway: usize,
    generation: u64,
    reporter: Arc<str>,
    request: Request,
    sent: u64,
    /// When it is carried out, and when the answer comes.
    there: u64,
    back: u64,
    is_lost: bool,
    answer: Option<Answer>,
}

impl Flight {
    fn next(&self) -> u64 {
        if self.answer.is_none() { self.there } else { self.back }
    }
}

/// Gateways and one account.
#[derive(Debug)]
struct World {
    terms: Terms,
    ledger: Ledger,
    gateways: Vec<Gateway>,
    flights: Vec<Flight>,
    /// True time.
    now: u64,
    /// The coordinator's clock is so far behind.
    behind: u64,
    /// When a token was spent.
    admitted: Vec<u64>,
}

impl World {
    fn new(terms: Terms) -> Self {
        let moment = Moment { now: BEGIN, live: GATEWAYS as u64, began: 0, is_told: true };
        Self {
            terms,
            ledger: Ledger::open(terms, 1, &moment, false),
            gateways: vec![Gateway::default(); GATEWAYS],
            flights: Vec::new(),
            now: BEGIN,
            behind: 0,
            admitted: Vec::new(),
        }
    }

    fn is_slots(&self) -> bool {
        matches!(self.terms, Terms::Slots { .. })
    }

    fn act(&mut self, step: &Step) {
        match *step {
            Step::Wait(micros) => self.wait_until(self.now + micros),
            Step::SetBack(micros) => self.behind += micros,
            Step::Spend { gateway, tokens } => self.spend(gateway, tokens),
            Step::Finish { gateway, slots } => {
                if self.is_slots() {
                    let gateway = &mut self.gateways[gateway];
                    gateway.spent = gateway.spent.saturating_sub(slots);
                }
            }
            Step::Exchange { gateway, give_back, want, least, there, back, is_lost, paced } => {
                let (is_slots, now, terms) = (self.is_slots(), self.now, self.terms);
                self.gateways[gateway].keep_promise(now);
                self.end_leases();
                let teller = &mut self.gateways[gateway];
                if teller.is_asking {
                    return;
                }
                teller.is_asking = true;
                teller.promise = None;
                // Free slots are all given back.
                teller.held = if is_slots { 0 } else { teller.held.saturating_sub(give_back) };
                let Gateway { spent, held, generation, .. } = *teller;
                let request = Request {
                    key: "limit".into(),
                    terms,
                    spent,
                    held,
                    known: true,
                    has_ended: false,
                    want,
                    least,
                    paced,
                };
                let reporter = format!("{gateway}-{generation}").into();
                let (there, back) = (now + there, now + there + back);
                let flight =
                    Flight { gateway, generation, reporter, request, sent: now, there, back, is_lost, answer: None };
                self.flights.push(flight);
                self.wait_until(now);
            }
            Step::Restart(gateway) => {
                let generation = self.gateways[gateway].generation + 1;
                self.gateways[gateway] = Gateway { generation, ..Gateway::default() };
            }
        }
    }

    /// In the order of time, messages are carried out and answers come.
    fn wait_until(&mut self, until: u64) {
        loop {
            let next = (0..self.flights.len()).min_by_key(|i| self.flights[*i].next());
            let Some(next) = next.filter(|i| self.flights[*i].next() <= until) else { break };
            self.now = self.now.max(self.flights[next].next());
            if self.flights[next].answer.is_none() {
                self.carry_out(next);
            } else {
                let flight = self.flights.swap_remove(next);
                self.receive(&flight);
            }
        }
        self.now = until;
        self.end_leases();
    }

    fn carry_out(&mut self, flight: usize) {
        let moment = Moment { now: self.now - self.behind, live: GATEWAYS as u64, began: 0, is_told: true };
        let Flight { reporter, request, answer, .. } = &mut self.flights[flight];
        *answer = Some(self.ledger.exchange(&moment, reporter, 1, request));
        if let Ledger::Bucket(bucket) = &self.ledger {
            assert!(bucket.level <= bucket.room(), "what is out belongs to the burst");
            assert!(bucket.free_rate() >= 0 && 2 * bucket.promised() <= bucket.terms.capacity());
        }
    }

    fn receive(&mut self, flight: &Flight) {
        self.end_leases();
        let gateway = &mut self.gateways[flight.gateway];
        if gateway.generation != flight.generation {
            return;
        }
        gateway.is_asking = false;
        if flight.is_lost {
            return;
        }
        let answer = flight.answer.unwrap();
        if let (true, Outcome::Granted { ends_in, .. } | Outcome::NoneUntil { ends_in, .. }) =
            (answer.pace.rate > 0, answer.outcome)
        {
            if self.now >= gateway.ends {
                gateway.held = 0;
            }
            gateway.ends = flight.sent + micros(ends_in);
            gateway.promise = Some((answer.pace, self.now, 0));
        }
        match answer.outcome {
            Outcome::Granted { tokens, ends_in } => {
                // Came too late for those that it held.
                if self.now >= gateway.ends {
                    gateway.held = 0;
                }
                gateway.held += tokens;
                gateway.ends = flight.sent + micros(ends_in);
            }
            Outcome::NoneUntil { ends_in, .. } => {
                if self.now < gateway.ends {
                    gateway.ends = flight.sent + micros(ends_in);
                }
            }
            Outcome::Recovering { .. } | Outcome::OtherPeriod => gateway.held = 0,
        }
        self.end_leases();
    }

    fn end_leases(&mut self) {
        let is_slots = self.is_slots();
        for gateway in self.gateways.iter_mut().filter(|gateway| gateway.ends <= self.now) {
            (gateway.held, gateway.promise) = (0, None);
            // What is in use without a lease is not counted here.
            if is_slots {
                gateway.spent = 0;
            }
        }
    }

    fn spend(&mut self, gateway: usize, tokens: u64) {
        self.gateways[gateway].keep_promise(self.now);
        self.end_leases();
        let gateway = &mut self.gateways[gateway];
        let tokens = tokens.min(gateway.held);
        gateway.held -= tokens;
        gateway.spent += tokens;
        self.admitted.extend((0..tokens).map(|_| self.now));
    }

    /// What an ideal bucket, full at first, has left in the worst moment, in units: below zero exactly if some
    /// window saw more than the burst and what came in it.
    fn lowest_level(&self, bucket: &Bucket) -> i128 {
        let full = i128::from(bucket.capacity());
        let (mut level, mut last, mut lowest) = (full, BEGIN, full);
        for when in &self.admitted {
            let came = i128::from(when - last) * i128::from(bucket.units_per_micro());
            level = (level + came).min(full) - i128::from(bucket.unit());
            lowest = lowest.min(level);
            last = *when;
        }
        lowest
    }
}

fn buckets() -> impl Strategy<Value = Bucket> {
    prop::sample::select(vec![(10, 60, 10), (600, 60, 1), (6000, 60, 100), (7, 3, 5), (100_000, 1, 50), (1, 3600, 64)])
        .prop_map(|(tokens, seconds, burst)| Bucket::new(tokens, Duration::from_secs(seconds), burst).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_window_sees_more_than_the_burst_and_what_comes_in_it(bucket in buckets(), steps in steps()) {
        let mut world = World::new(Terms::Bucket(bucket));
        for step in &steps {
            world.act(step);
        }
        let lowest = world.lowest_level(&bucket);
        prop_assert!(lowest >= 0, "{lowest} units, {} admitted", world.admitted.len());
    }

    #[test]
    fn a_quota_is_never_exceeded(
        limit in prop::sample::select(vec![0, 1, 7, 50, 3000, 100_000]),
        steps in steps(),
    ) {
        let mut world = World::new(Terms::Quota { limit, starts: 0, ends: 1 << 52 });
        for step in &steps {
            world.act(step);
            let held: u64 = world.gateways.iter().map(|gateway| gateway.held).sum();
            prop_assert!(world.admitted.len() as u64 + held <= limit);
        }
    }

    #[test]
    fn slots_under_live_leases_are_never_more_than_there_are(
        limit in prop::sample::select(vec![0, 1, 3, 20, 500]),
        steps in steps(),
    ) {
        let mut world = World::new(Terms::Slots { limit });
        for step in &steps {
            world.act(step);
            let taken: u64 = world.gateways.iter().map(|gateway| gateway.spent + gateway.held).sum();
            prop_assert!(taken <= limit, "{taken} of {limit}");
        }
    }
}

fn request(terms: Terms) -> Request {
    Request {
        key: "limit".into(),
        terms,
        spent: 0,
        held: 0,
        known: false,
        has_ended: false,
        want: 1,
        least: 1,
        paced: false,
    }
}

fn bucket(tokens: u64, burst: u64) -> Terms {
    Terms::Bucket(Bucket::new(tokens, Duration::from_mins(1), burst).unwrap())
}

/// One account with one gateway.
struct One {
    ledger: Ledger,
    now: u64,
}

impl One {
    fn new(terms: Terms) -> Self {
        let moment = Moment { now: BEGIN, live: 1, began: 0, is_told: true };
        Self { ledger: Ledger::open(terms, 1, &moment, false), now: BEGIN }
    }

    fn ask(&mut self, reporter: &str, revision: u64, request: &Request) -> Answer {
        let moment = Moment { now: self.now, live: 1, began: 0, is_told: true };
        self.ledger.exchange(&moment, &reporter.into(), revision, request)
    }
}

#[test]
fn one_gateway_gets_all_that_an_ideal_bucket_gives() {
    let terms = bucket(600, 10);
    let mut one = One::new(terms);
    let mut spent = 0;
    for _ in 0..100 {
        for _ in 0..20 {
            let answer = one.ask("a", 1, &Request { spent, ..request(terms) });
            if let Outcome::Granted { tokens, .. } = answer.outcome {
                spent += tokens;
            }
        }
        one.now += 1_000_000;
    }
    assert_eq!(spent, 10 + 99 * 10);
}

#[test]
fn the_wait_is_as_long_as_the_next_token_takes() {
    let terms = bucket(7, 1);
    let mut one = One::new(terms);
    assert!(matches!(one.ask("a", 1, &request(terms)).outcome, Outcome::Granted { tokens: 1, .. }));
    let empty = Request { spent: 1, ..request(terms) };
    let Outcome::NoneUntil { wait, .. } = one.ask("a", 1, &empty).outcome else { panic!() };
    assert_eq!(wait, Duration::from_micros(60_000_000_u64.div_ceil(7)));
    one.now += micros(wait) - 1;
    assert!(matches!(one.ask("a", 1, &empty).outcome, Outcome::NoneUntil { .. }));
    one.now += 1;
    assert!(matches!(one.ask("a", 1, &empty).outcome, Outcome::Granted { tokens: 1, .. }));
}

#[test]
fn what_is_given_back_is_there_for_others_and_what_ended_is_not() {
    let terms = bucket(1, 10);
    let mut one = One::new(terms);
    let five = Request { want: 5, least: 5, ..request(terms) };
    assert_eq!(one.ask("a", 1, &five).left, 5);
    let given_back = Request { want: 0, least: 0, ..request(terms) };
    assert_eq!(one.ask("a", 1, &given_back).left, 10);

    assert_eq!(one.ask("a", 1, &five).left, 5);
    one.now += micros(LEASE_TIME);
    assert_eq!(one.ask("a", 1, &given_back).left, 5);
}

#[test]
fn a_clock_that_is_set_back_by_hours_does_not_stop_an_account() {
    const HOUR: u64 = 3_600_000_000;
    let terms = bucket(60, 10);
    let mut one = One::new(terms);
    let all = Request { want: 10, least: 10, ..request(terms) };
    assert!(matches!(one.ask("a", 1, &all).outcome, Outcome::Granted { tokens: 10, .. }));
    one.now -= HOUR;
    let spent = Request { spent: 10, ..request(terms) };
    let outcome = one.ask("a", 1, &spent).outcome;
    assert!(matches!(outcome, Outcome::NoneUntil { wait, .. } if wait <= Duration::from_secs(1)), "{outcome:?}");
    one.now += 1_000_000;
    assert!(matches!(one.ask("a", 1, &spent).outcome, Outcome::Granted { tokens: 1, .. }));

    // What a gateway that has died held comes free as if nothing had been.
    let terms = Terms::Slots { limit: 1 };
    let mut one = One::new(terms);
    assert!(matches!(one.ask("dead", 1, &request(terms)).outcome, Outcome::Granted { tokens: 1, .. }));
    one.now -= HOUR;
    assert!(matches!(one.ask("a", 1, &request(terms)).outcome, Outcome::NoneUntil { .. }));
    one.now += micros(SLOT_LEASE_TIME);
    assert!(matches!(one.ask("a", 1, &request(terms)).outcome, Outcome::Granted { tokens: 1, .. }));

    // An account that is to open soon does so.
    let moment = |now| Moment { now, live: 1, began: BEGIN, is_told: true };
    for terms in [bucket(60, 10), Terms::Slots { limit: 1 }] {
        let mut ledger = Ledger::open(terms, 1, &moment(BEGIN), true);
        let outcome = ledger.exchange(&moment(BEGIN - HOUR), &"a".into(), 1, &request(terms)).outcome;
        assert!(matches!(outcome, Outcome::Recovering { wait } if wait <= SLOT_LEASE_TIME), "{outcome:?}");
    }
}

#[test]
fn debts_are_paid_before_anything_new_is_given() {
    let terms = bucket(60, 10);
    let mut one = One::new(terms);
    assert_eq!(one.ask("a", 1, &request(terms)).left, 9);
    // It was cut off, and spent 13 that it did not have.
    let owing = Request { spent: 14, ..request(terms) };
    let Outcome::NoneUntil { wait, .. } = one.ask("a", 1, &owing).outcome else { panic!() };
    assert_eq!(wait, Duration::from_secs(5));
    // However much it was: from the deepest debt it takes twice the time to fill.
    let owing = Request { spent: u64::MAX, ..request(terms) };
    let Outcome::NoneUntil { wait, .. } = one.ask("a", 1, &owing).outcome else { panic!() };
    assert_eq!(wait, Duration::from_secs(11));
}

#[test]
fn terms_change_forwards_only_and_at_once() {
    let mut one = One::new(bucket(60, 100));
    assert_eq!(one.ask("a", 1, &request(bucket(60, 100))).left, 99);
    // Lower: clipped. What is still out, as far as is known, belongs to the burst.
    assert_eq!(one.ask("a", 2, &Request { spent: 1, ..request(bucket(60, 10)) }).left, 8);
    // A gateway that has not heard of it yet changes nothing.
    assert_eq!(one.ask("b", 1, &request(bucket(60, 100))).left, 7);
    // Higher: more comes, at the new rate.
    one.now += 1_000_000;
    let now = Request { spent: 2, want: 0, least: 0, ..request(bucket(600, 100)) };
    assert_eq!(one.ask("a", 3, &now).left, 8);
    one.now += 1_000_000;
    assert_eq!(one.ask("a", 3, &now).left, 18);
}

#[test]
fn an_account_that_was_lost_gives_nothing_for_a_lease_time() {
    let moment = Moment { now: BEGIN, live: 1, began: 0, is_told: true };
    for (terms, time) in [
        (bucket(60, 10), LEASE_TIME),
        (Terms::Quota { limit: 10, starts: 0, ends: 1 << 52 }, LEASE_TIME),
        (Terms::Slots { limit: 10 }, SLOT_LEASE_TIME),
    ] {
        let mut one = One { ledger: Ledger::open(terms, 1, &moment, true), now: BEGIN };
        assert_eq!(one.ask("a", 1, &request(terms)).outcome, Outcome::Recovering { wait: time });
    }
}

#[test]
fn a_quota_counts_each_report_once() {
    let terms = Terms::Quota { limit: 100, starts: BEGIN, ends: BEGIN + 1_000_000 };
    let mut one = One::new(terms);
    let told = Request { spent: 10, want: 0, least: 0, ..request(terms) };
    assert_eq!(one.ask("a", 1, &told).left, 90);
    assert_eq!(one.ask("a", 1, &told).left, 90);
    // Requests gave back what they had taken.
    assert_eq!(one.ask("a", 1, &Request { spent: 4, ..told.clone() }).left, 96);
    assert_eq!(one.ask("a", 1, &told).left, 90);
    // Nothing is given that is not there, whatever is wanted.
    let rest = Request { spent: 100, want: 5, least: 0, ..request(terms) };
    assert!(matches!(one.ask("a", 1, &rest).outcome, Outcome::Granted { tokens: 0, .. }));
    one.now += 1_000_000;
    assert_eq!(one.ask("a", 1, &told).outcome, Outcome::OtherPeriod);
}

proptest! {
    /// What is written down before an exchange covers it, and not much more.
    #[test]
    fn what_is_known_before_of_a_quota_suffices(
        (before, limit) in (1u64..100_000, 1u64..100_000),
        (debited, spent, held) in (0u64..100_000, 0u64..1_000, 0u64..1_000),
        (want, least) in (0u64..1_000_000, 0u64..20),
    ) {
        let terms = |limit| Terms::Quota { limit, starts: 0, ends: 2 * BEGIN };
        let moment = Moment { now: BEGIN, live: 1, began: 0, is_told: true };
        let Ledger::Quota(mut ledger) = Ledger::open(terms(before), 1, &moment, false) else { unreachable!() };
        ledger.others_took(0, debited);
        let reporter: Arc<str> = "a".into();
        let request =
            Request { key: "day".into(), terms: terms(limit), spent, held, known: true, has_ended: false, want, least, paced: false };
        let known = ledger.debited_after(&reporter, &request);
        let portion = (before.max(limit) / LEASE_PART).max(least).max(1);
        prop_assert!(known <= debited + spent + held + portion);
        let mut account = Ledger::Quota(ledger);
        account.exchange(&moment, &reporter, 1, &request);
        let Ledger::Quota(ledger) = account else { unreachable!() };
        prop_assert!(ledger.debited() <= known, "{} of {known}", ledger.debited());
    }
}
