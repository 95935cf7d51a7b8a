//! Several gateways spend at the same time. What they admit, all together, is held against the limit.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use seiketsu_limits::{
    coordinator::{Coordinator, Exchange, LEASE_TIME, Outcome, Request, SLOT_LEASE_TIME, redis::RedisCoordinator},
    terms::{Bucket, Terms},
};

use crate::support::{self, Server, until};

const GATEWAYS: usize = 5;

/// A gateway as simple as can be: it asks for tokens, spends them one by one, and tells with the next exchange.
struct Gateway {
    coordinator: Arc<RedisCoordinator>,
    reporter: Arc<str>,
    terms: Terms,
    spent: u64,
    held: u64,
    /// From when on what is held is void.
    ends: Instant,
    random: fastrand::Rng,
}

impl Gateway {
    async fn exchange(&mut self, want: u64) -> Option<Outcome> {
        let sent = Instant::now();
        if sent >= self.ends {
            self.held = 0;
        }
        // Now and then it gives some back.
        if self.random.u8(..) < 20 {
            self.held /= 2;
        }
        let Self { terms, spent, held, .. } = *self;
        let request = Request {
            key: "limit".into(),
            terms,
            spent,
            held,
            known: true,
            has_ended: false,
            want,
            least: 1,
            paced: false,
        };
        let reporter = Arc::clone(&self.reporter);
        let exchange = Exchange { tenant: "tenant".into(), reporter, revision: 1, accounts: vec![request] };
        let answer = self.coordinator.exchange(&exchange).await.ok()?[0];
        match answer.outcome {
            Outcome::Granted { tokens, ends_in } => {
                self.held += tokens;
                self.ends = sent + ends_in;
            }
            Outcome::NoneUntil { ends_in, .. } => self.ends = sent + ends_in,
            Outcome::Recovering { .. } | Outcome::OtherPeriod => self.held = 0,
        }
        Some(answer.outcome)
    }

    /// Spends one token if it has one.
    fn admit(&mut self) -> Option<Instant> {
        let now = Instant::now();
        if self.held == 0 || now >= self.ends {
            return None;
        }
        self.held -= 1;
        self.spent += 1;
        Some(now)
    }
}

async fn gateways(server: &Server, terms: Terms) -> Vec<Gateway> {
    let mut gateways = Vec::new();
    for n in 0..GATEWAYS {
        gateways.push(Gateway {
            coordinator: support::coordinator(&server.url(), &format!("gateway-{n}")).await,
            reporter: format!("gateway-{n}-1").into(),
            terms,
            spent: 0,
            held: 0,
            ends: Instant::now(),
            random: fastrand::Rng::with_seed(n as u64),
        });
    }
    for gateway in &gateways {
        until("all gateways", async || gateway.coordinator.live() == GATEWAYS as u64).await;
    }
    gateways
}

/// All spend as fast as they can until this time, with pauses in which leases end. Returns when something was
/// admitted.
async fn spend(gateways: Vec<Gateway>, until: Instant) -> Vec<Instant> {
    let admitted = Arc::new(Mutex::new(Vec::new()));
    let tasks: Vec<_> = gateways
        .into_iter()
        .map(|mut gateway| {
            let admitted = Arc::clone(&admitted);
            tokio::spawn(async move {
                while Instant::now() < until {
                    while let Some(when) = gateway.admit() {
                        admitted.lock().push(when);
                        if gateway.random.u8(..) < 8 {
                            break;
                        }
                    }
                    let want = gateway.random.u64(1..50);
                    let outcome = gateway.exchange(want).await;
                    if let Some(Outcome::NoneUntil { wait, .. } | Outcome::Recovering { wait }) = outcome {
                        tokio::time::sleep(wait.min(Duration::from_millis(20))).await;
                    }
                    match gateway.random.u16(..) {
                        0..30 => tokio::time::sleep(LEASE_TIME + Duration::from_millis(100)).await,
                        30..2000 => tokio::time::sleep(Duration::from_millis(gateway.random.u64(1..20))).await,
                        _ => {}
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let mut admitted = std::mem::take(&mut *admitted.lock());
    admitted.sort_unstable();
    admitted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_window_sees_more_than_the_burst_and_the_rate() {
    let server = Server::start(&[]);
    let (rate, burst) = (500.0, 200.0);
    let bucket = Bucket::new(30_000, Duration::from_mins(1), 200).unwrap();
    let gateways = gateways(&server, Terms::Bucket(bucket)).await;
    let began = Instant::now();
    let admitted = spend(gateways, began + Duration::from_secs(6)).await;

    // Each window that begins and ends with an admission: the bucket that sees them as they come never lacks a
    // token. A gateway notes the time after it has decided, so two of them may differ by as much as a switch of
    // threads takes.
    let slack = 0.05;
    let (mut level, mut last, mut least) = (burst, began, f64::MAX);
    for when in &admitted {
        level = (level + (*when - last).as_secs_f64() * rate).min(burst) - 1.0;
        least = least.min(level);
        last = *when;
    }
    assert!(least >= -slack * rate, "{least} tokens at the lowest, of {} admitted", admitted.len());
    // And it was not idle: all together got most of what there was, from when leases of before had ended.
    let offered = burst + rate * 3.0;
    assert!(admitted.len() as f64 > offered * 0.7, "{} of {offered}", admitted.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_is_spent_to_its_end_and_not_further() {
    let server = Server::start(&[]);
    let limit = 3000;
    let terms = Terms::Quota { limit, starts: 0, ends: 1 << 52 };
    let gateways = gateways(&server, terms).await;
    let admitted = spend(gateways, Instant::now() + Duration::from_secs(5)).await;
    let admitted = admitted.len() as u64;
    // What the gateways hold at the end is not spent.
    assert!(admitted <= limit && admitted + 3 * GATEWAYS as u64 * 2 >= limit, "{admitted} of {limit}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_are_never_held_by_more_than_there_are() {
    let server = Server::start(&[]);
    let limit = 7;
    let gateways = gateways(&server, Terms::Slots { limit }).await;
    // So many are in use, as seen by all at once.
    let in_use = Arc::new(Mutex::new((0u64, 0u64)));
    let until = Instant::now() + SLOT_LEASE_TIME + Duration::from_secs(4);
    let tasks: Vec<_> = gateways
        .into_iter()
        .map(|mut gateway| {
            let in_use = Arc::clone(&in_use);
            tokio::spawn(async move {
                while Instant::now() < until {
                    // `spent` are those in use; those free are in `held`.
                    gateway.held = 0;
                    let Some(Outcome::Granted { tokens, .. }) = gateway.exchange(2).await else {
                        tokio::time::sleep(Duration::from_millis(3)).await;
                        continue;
                    };
                    gateway.spent += tokens;
                    {
                        let (now, most) = &mut *in_use.lock();
                        *now += tokens;
                        *most = (*most).max(*now);
                    }
                    tokio::time::sleep(Duration::from_millis(gateway.random.u64(0..30))).await;
                    let done = gateway.random.u64(0..=gateway.spent);
                    gateway.spent -= done;
                    in_use.lock().0 -= done;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let (_, most) = *in_use.lock();
    assert_eq!(most, limit);
}
