//! The script and the ledger are held against each other.

use std::{collections::HashMap, sync::Arc, time::Duration};

use proptest::prelude::*;
use redis::{Cmd, Connection};
use seiketsu_limits::{
    coordinator::{Answer, CoordinatorError, Exchange, LEASE_TIME, Outcome, Request, SLOT_LEASE_TIME, redis::script},
    ledger::{Ledger, Moment},
    terms::{Bucket, Terms},
};

use crate::support::Server;

const SECOND: u64 = 1_000_000;
const DAY: u64 = 86_400 * SECOND;

/// Later than any day on which this runs, so that no quota's key has expired.
const BEGIN: u64 = 4_000_000_000 * SECOND;

const ACCOUNTS: usize = 3;

#[derive(Debug, Clone)]
struct Step {
    /// Microseconds since the step before; Redis' clock may be set back.
    elapsed: i64,
    live: u64,
    is_told: bool,
    revision: u64,
    reporter: usize,
    accounts: Vec<Said>,
}

#[derive(Debug, Clone)]
struct Said {
    account: usize,
    terms: Terms,
    newly_spent: i64,
    held: u64,
    known: bool,
    has_ended: bool,
    want: u64,
    least: u64,
    paced: bool,
}

fn bucket(tokens: u64, seconds: u64, burst: u64) -> Terms {
    Terms::Bucket(Bucket::new(tokens, Duration::from_secs(seconds), burst).unwrap())
}

fn terms() -> impl Strategy<Value = Terms> {
    let quota = |limit| Terms::Quota { limit, starts: BEGIN - DAY, ends: BEGIN + DAY };
    prop_oneof![
        6 => prop::sample::select(vec![
            bucket(10, 60, 10),
            bucket(1000, 60, 100),
            bucket(7, 3, 1),
            bucket(100_000, 1, 5000),
            bucket(1, 3600, 1_000_000),
            bucket(1_000_000_000, 1, 1),
            bucket(1_000_000_000, 3600, 1_000_000),
            bucket(999_999_937, 3599, 999_983),
        ]),
        2 => prop::sample::select(vec![0, 1, 5, 20, 2500, 1 << 50]).prop_map(quota),
        1 => Just(Terms::Quota { limit: 50, starts: BEGIN, ends: BEGIN + 2 * SECOND }),
        2 => prop::sample::select(vec![0, 1, 3, 50, 10_000_000]).prop_map(|limit| Terms::Slots { limit }),
    ]
}

fn elapsed() -> impl Strategy<Value = i64> {
    let lease = i64::try_from(LEASE_TIME.as_micros()).unwrap();
    let slot_lease = i64::try_from(SLOT_LEASE_TIME.as_micros()).unwrap();
    prop_oneof![
        4 => 0i64..1000,
        6 => 0i64..300_000,
        2 => prop::sample::select(vec![lease - 1, lease, lease + 1, slot_lease]),
        2 => lease / 2..slot_lease,
        1 => 895_000_000i64..910_000_000,
        1 => 0i64..4_000_000_000,
        1 => -5_000_000i64..0,
        1 => -4_000_000_000i64..-5_000_000,
    ]
}

fn said(account: usize) -> impl Strategy<Value = Said> {
    let tokens = || prop_oneof![3 => Just(0u64), 4 => 0u64..4, 3 => 0u64..60, 1 => 0u64..2_000_000];
    let newly_spent = prop_oneof![8 => tokens().prop_map(u64::cast_signed), 1 => -20i64..0, 1 => Just(1i64 << 45)];
    let least = prop_oneof![4 => 0u64..2, 2 => 0u64..12, 1 => 0u64..100_000];
    let flags = (prop::bool::weighted(0.2), prop::bool::weighted(0.1), prop::bool::weighted(0.7));
    (Just(account), terms(), newly_spent, tokens(), flags, tokens(), least).prop_map(
        |(account, terms, newly_spent, held, (known, has_ended, paced), want, least)| Said {
            account,
            terms,
            newly_spent,
            held,
            known,
            has_ended,
            want,
            least,
            paced,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let accounts = prop::sample::subsequence((0..ACCOUNTS).collect::<Vec<_>>(), 1..=ACCOUNTS);
    let accounts = accounts.prop_flat_map(|accounts| accounts.into_iter().map(said).collect::<Vec<_>>());
    let rest = (prop::bool::weighted(0.8), 1u64..5, 0usize..4, accounts);
    (elapsed(), 1u64..6, rest).prop_map(|(elapsed, live, (is_told, revision, reporter, accounts))| Step {
        elapsed,
        live,
        is_told,
        revision,
        reporter,
        accounts,
    })
}

/// Sequences in which an account mostly keeps its kind, and terms change only now and then.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let usual = prop::collection::vec(terms(), ACCOUNTS);
    let steps = prop::collection::vec((step(), prop::bool::weighted(0.9)), 1..120);
    (usual, steps).prop_map(|(usual, steps)| {
        let settle = |(mut step, as_usual): (Step, bool)| {
            if as_usual {
                for said in &mut step.accounts {
                    said.terms = usual[said.account];
                }
            }
            step
        };
        steps.into_iter().map(settle).collect()
    })
}

/// Redis with a script that is told the time and the server's information, instead of asking for them: so the
/// test decides on them. All else is the script as it is.
struct Script {
    connection: Connection,
    text: String,
    number: u64,
    told: &'static str,
}

impl Script {
    fn new(server: &Server) -> Self {
        let text = script::text();
        let told = text
            .replace("redis.call('TIME')", "{ ARGV[#ARGV - 2], ARGV[#ARGV - 1] }")
            .replace("redis.call('INFO', 'server')", "ARGV[#ARGV]");
        assert!(!told.contains("'TIME'") && !told.contains("'INFO'"));
        Self { connection: server.connection(), text: told, number: 0, told: "1,2" }
    }

    fn flush(&mut self) {
        redis::cmd("FLUSHALL").exec(&mut self.connection).unwrap();
    }

    fn exchange(
        &mut self,
        exchange: &Exchange,
        now: u64,
        live: u64,
        began_second: u64,
        run: &str,
    ) -> Result<Vec<Answer>, CoordinatorError> {
        self.number += 1;
        self.exchange_numbered(self.number, exchange, now, live, began_second, run)
    }

    fn exchange_numbered(
        &mut self,
        number: u64,
        exchange: &Exchange,
        now: u64,
        live: u64,
        began_second: u64,
        run: &str,
    ) -> Result<Vec<Answer>, CoordinatorError> {
        let (seconds, micros) = (now / SECOND, now % SECOND);
        let uptime = i128::from(seconds) - i128::from(began_second);
        let arguments = script::arguments(exchange, "session", number, live, self.told, "").unwrap();
        let mut command = Cmd::new();
        command.arg("EVAL").arg(&self.text).arg(arguments).arg(seconds).arg(micros);
        command.arg(format!("run_id:{run}\r\nuptime_in_seconds:{uptime}\r\n"));
        let numbers: Vec<u64> = command.query(&mut self.connection).unwrap();
        script::answers(&numbers, exchange.accounts.len())
    }
}

/// Does the same steps with both. Returns how many accounts were asked.
fn compare(script: &mut Script, began_second: u64, steps: &[Step]) -> Result<(), TestCaseError> {
    script.flush();
    let mut ledgers: HashMap<usize, Ledger> = HashMap::new();
    let mut spent: HashMap<(usize, usize), u64> = HashMap::new();
    let mut now = BEGIN;
    for step in steps {
        now = now.checked_add_signed(step.elapsed).unwrap();
        let reporter: Arc<str> = format!("gateway-{}", step.reporter).into();
        let moment =
            Moment { now, live: step.live, began: ((began_second + 1) * SECOND).min(now), is_told: step.is_told };
        let mut accounts = Vec::new();
        let mut expected = Vec::new();
        for said in &step.accounts {
            let spent = spent.entry((step.reporter, said.account)).or_default();
            *spent = spent.saturating_add_signed(said.newly_spent);
            let request = Request {
                key: format!("account {}", said.account).into(),
                terms: said.terms,
                spent: *spent,
                held: said.held,
                known: said.known,
                has_ended: said.has_ended,
                want: said.want,
                least: said.least,
                paced: said.paced,
            };
            let ledger = ledgers
                .entry(said.account)
                .or_insert_with(|| Ledger::open(said.terms, step.revision, &moment, said.known));
            expected.push(ledger.exchange(&moment, &reporter, step.revision, &request));
            accounts.push(request);
        }
        let exchange = Exchange { tenant: "tenant".into(), reporter, revision: step.revision, accounts };
        script.told = if step.is_told { "fedc,0123456789abcdef" } else { "fedc" };
        let answers = script.exchange(&exchange, now, step.live, began_second, "0123456789abcdef").unwrap();
        prop_assert_eq!(answers, expected, "{:?}", exchange);
    }
    Ok(())
}

#[test]
fn the_script_does_what_the_ledger_does() {
    let server = Server::start(&[]);
    let script = std::cell::RefCell::new(Script::new(&server));
    let config = ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() };
    let began = prop_oneof![3 => Just(0u64), 1 => BEGIN / SECOND - 3..BEGIN / SECOND + 1];
    proptest!(config, |(began_second in began, steps in steps())| {
        compare(&mut script.borrow_mut(), began_second, &steps)?;
    });
}

fn request(terms: Terms) -> Request {
    Request {
        key: "rate".into(),
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

fn exchange_of(reporter: &str, request: Request) -> Exchange {
    Exchange { tenant: "tenant".into(), reporter: reporter.into(), revision: 1, accounts: vec![request] }
}

#[test]
fn a_bucket_written_by_another_process_gives_nothing_until_all_leases_have_ended() {
    let server = Server::start(&[]);
    let mut script = Script::new(&server);
    let rate = request(bucket(60, 60, 10));
    let lease = u64::try_from(LEASE_TIME.as_micros()).unwrap();
    let mut ask = |now, run| script.exchange(&exchange_of("a", rate.clone()), now, 1, 0, run).unwrap()[0];

    assert!(matches!(ask(BEGIN, "1").outcome, Outcome::Granted { tokens: 1, .. }));
    // The other one has been there for long; the account has come to it, perhaps as it was a little before.
    assert_eq!(ask(BEGIN + 1000, "2").outcome, Outcome::Recovering { wait: LEASE_TIME });
    assert!(matches!(ask(BEGIN + 999 + lease, "2").outcome, Outcome::Recovering { .. }));
    // It begins empty.
    let second = Duration::from_secs(1);
    assert!(matches!(ask(BEGIN + 1000 + lease, "2").outcome, Outcome::NoneUntil { wait, .. } if wait == second));
    let filled = ask(BEGIN + 1000 + lease + SECOND, "2");
    assert!(matches!(filled.outcome, Outcome::Granted { tokens: 1, .. }), "{filled:?}");
}

#[test]
fn a_quota_that_has_moved_is_put_right_by_what_gateways_tell() {
    let server = Server::start(&[]);
    let mut script = Script::new(&server);
    let terms = Terms::Quota { limit: 10, starts: BEGIN, ends: BEGIN + DAY };
    let day = Request { want: 1, ..request(terms) };
    let mut ask = |request: Request, now, run| script.exchange(&exchange_of("a", request), now, 1, 0, run).unwrap()[0];

    assert_eq!(ask(day.clone(), BEGIN, "1").left, 9);
    // It spent 7 that the other process never heard of.
    let told = Request { spent: 7, held: 1, ..day };
    let answer = ask(told.clone(), BEGIN + SECOND, "2");
    assert_eq!((answer.outcome, answer.left), (Outcome::Recovering { wait: LEASE_TIME }, 2));
    let later = BEGIN + 3 * SECOND;
    let answer = ask(told, later, "2");
    assert!(matches!(answer.outcome, Outcome::Granted { tokens: 1, .. }));
    assert_eq!(answer.left, 1);
}

#[test]
fn slots_in_use_stay_on_record_over_a_failover() {
    let server = Server::start(&[]);
    let mut script = Script::new(&server);
    let slots = request(Terms::Slots { limit: 2 });
    let mut ask = |reporter: &str, spent, now, run| {
        let request = Request { spent, ..slots.clone() };
        script.exchange(&exchange_of(reporter, request), now, 1, 0, run).unwrap()[0]
    };
    assert!(matches!(ask("a", 0, BEGIN, "1").outcome, Outcome::Granted { tokens: 1, .. }));
    assert_eq!(ask("b", 0, BEGIN, "2").outcome, Outcome::Recovering { wait: SLOT_LEASE_TIME });
    assert!(matches!(ask("a", 2, BEGIN + SECOND, "2").outcome, Outcome::Recovering { .. }));
    let opened = BEGIN + u64::try_from(SLOT_LEASE_TIME.as_micros()).unwrap();
    assert!(matches!(ask("b", 0, opened, "2").outcome, Outcome::NoneUntil { .. }));
}

#[test]
fn a_message_that_was_overtaken_changes_nothing() {
    let server = Server::start(&[]);
    let mut script = Script::new(&server);
    for terms in
        [bucket(60, 60, 10), Terms::Quota { limit: 10, starts: BEGIN, ends: BEGIN + DAY }, Terms::Slots { limit: 10 }]
    {
        script.flush();
        let mut ask = |number, request| {
            let exchange = exchange_of("a", request);
            script.exchange_numbered(number, &exchange, BEGIN, 1, 0, "1")
        };
        let first = request(terms);
        let late = ask(1, first.clone()).unwrap()[0];
        let later = Request { held: 1, spent: 1, ..first.clone() };
        let before = ask(3, later.clone()).unwrap()[0];
        // It says that nothing is held, which was so before the first answer came.
        assert_eq!(ask(2, first), Err(CoordinatorError::TimedOut), "{late:?}");
        let held = Request { held: 2, want: 0, least: 0, ..later };
        let after = ask(4, held).unwrap()[0];
        let expected = if matches!(terms, Terms::Slots { .. }) { before.left + 1 } else { before.left };
        assert_eq!(after.left, expected, "{terms:?}");
    }
}

#[test]
fn accounts_are_kept_as_long_as_they_differ_from_new_ones() {
    let server = Server::start(&[]);
    let mut connection = server.connection();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let ends = now * SECOND + DAY;
    for (terms, least, most) in [
        // Twice the time to fill, and the lease.
        (bucket(1000, 60, 100), 13, 16),
        (bucket(1, 60, 60), 7200, 7203),
        // Ten seconds at least.
        (bucket(1000, 1, 100), 11, 14),
        (Terms::Slots { limit: 1 }, 14, 21),
        (Terms::Quota { limit: 1, starts: 0, ends }, 3 * 86_400 - 60, 3 * 86_400),
    ] {
        redis::cmd("FLUSHALL").exec(&mut connection).unwrap();
        let exchange = exchange_of("a", Request { known: true, ..request(terms) });
        let arguments = script::arguments(&exchange, "session", 1, 1, "", "").unwrap();
        let _: Vec<u64> = redis::cmd("EVAL").arg(script::text()).arg(arguments).query(&mut connection).unwrap();
        let kept: u64 = redis::cmd("TTL").arg("seiketsu:{tenant}:rate").query(&mut connection).unwrap();
        assert!((least..=most).contains(&kept), "{terms:?} is kept for {kept}s");
    }
}
