//! What is tried, for how long, and what was promised of it.

use std::time::Duration;

use seiketsu_limits::terms::Bucket;
use serde::Serialize;

use super::trace::{Arrivals, Spread};

/// `rate_limit_rpm` and `burst_limit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Limit {
    pub per_minute: u64,
    pub burst: u64,
}

impl Limit {
    pub const fn new(per_minute: u64, burst: u64) -> Self {
        Self { per_minute, burst }
    }

    pub fn per_second(self) -> f64 {
        self.per_minute as f64 / 60.0
    }

    pub fn bucket(self) -> anyhow::Result<Bucket> {
        Ok(Bucket::new(self.per_minute, Duration::from_mins(1), self.burst)?)
    }
}

/// Whose requests are sent, and how many.
#[derive(Debug, Clone)]
pub struct Tenant {
    pub id: String,
    pub limit: Option<Limit>,
    /// Of a day, beside the limit if there is one. Without either it is unlimited: what others wait longer than it is what limits
    /// cost.
    pub quota: Option<u64>,
    /// Requests a second.
    pub rate: f64,
    pub arrivals: Arrivals,
}

impl Tenant {
    pub fn host(&self) -> String {
        format!("{}.localhost", self.id)
    }
}

/// Which gateways serve it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Setting {
    /// Three.
    Three,
    /// Three, the last of which reaches Redis over a way that can be cut; Redis itself can fail.
    Faulty,
    /// Three, which a sentinel tells where Redis is; it can fail, and another one take over.
    Sentinel,
    /// Three whose clocks can be moved.
    Clocks,
    /// Twenty.
    Twenty,
    /// Three with so many tenants more.
    Crowd(usize),
}

impl Setting {
    pub fn nodes(self) -> usize {
        if self == Self::Twenty { 20 } else { 3 }
    }
}

/// What happens while requests come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// The last gateway is killed.
    NodeKilled { at: Duration },
    /// Redis is killed and started again at once.
    RedisRestarted { at: Duration, with_data: bool },
    /// Redis is away for a while: killed, or hung.
    RedisAway { at: Duration, back: Duration, hung: bool },
    /// Redis is killed for good, and its replica takes over.
    FailedOver { at: Duration },
    /// The last gateway cannot reach Redis for a while.
    Cut { at: Duration, back: Duration },
    /// One gateway's clock is put forward by five seconds, another's back.
    ClocksMoved { at: Duration },
    /// The first tenant gets another limit for a while.
    LimitChanged { at: Duration, back: Duration, to: Limit },
}

/// What must hold of each tenant that has a limit, beside that nothing is admitted that should not be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Promise {
    /// At least this share of what an ideal bucket admits.
    Used(f64),
    /// Exactly what an ideal bucket admits.
    Exact,
    /// Nothing is refused.
    NothingRefused,
    /// Of what an ideal bucket admits, no more than this share is refused.
    RefusedAtMost(f64),
    /// At least 95 % are decided with a lease at hand.
    Local,
    /// At most one exchange for each gateway, tenant and second, once it goes its way.
    FewExchanges,
    /// At most five exchanges for a thousand admitted requests.
    FiveInThousand,
    /// While a tenant is refused, one exchange for each time that was told.
    RefusedAtNoCost,
    /// Once its quota is used up, one exchange for each gateway at most: it is told until when, which is the end of
    /// the day.
    UsedUpAtNoCost,
    /// From one second after this on, 99 % of what an ideal bucket admits.
    UsedAfterShift(Duration),
}

#[derive(Debug, Clone)]
pub struct Scenario {
    pub name: &'static str,
    pub about: &'static str,
    pub setting: Setting,
    pub tenants: Vec<Tenant>,
    pub spread: Spread,
    pub lasts: Duration,
    /// What was full at first is used up, and everything goes its way.
    pub steady_after: Duration,
    pub fault: Option<Fault>,
    pub promises: Vec<Promise>,
}

/// What is seen of the counters only when traffic goes its way.
const STEADY_AFTER: Duration = SECOND.saturating_mul(3);

const SMALL: Limit = Limit::new(1_000, 100);
const MIDDLE: Limit = Limit::new(6_000, 600);
const LARGE: Limit = Limit::new(36_000, 2_400);
/// At 90 % of it there are 200 requests a second for each of three gateways.
const BUSY: Limit = Limit::new(42_000, 2_400);
const TINY: Limit = Limit::new(60, 10);

/// Requests a second of the tenant without limits, beside which the others are seen.
const UNLIMITED_RATE: f64 = 50.0;

/// Requests a second of the tenant with a quota.
const QUOTA_RATE: f64 = 100.0;

const SECOND: Duration = Duration::from_secs(1);

struct Maker {
    all: Vec<Scenario>,
    quick: bool,
}

impl Maker {
    /// Each of these limits has a tenant, which asks for `load` times its rate.
    fn add(
        &mut self,
        name: &'static str,
        about: &'static str,
        (limits, load): (&[Limit], f64),
        (spread, seconds, in_quick): (Spread, u32, Option<u32>),
        promises: &[Promise],
    ) -> Option<&mut Scenario> {
        let seconds = if self.quick { in_quick? } else { seconds };
        let limited = limits.iter().map(|limit| Tenant {
            id: format!("{name}-{}", limit.per_minute),
            limit: Some(*limit),
            quota: None,
            rate: limit.per_second() * load,
            arrivals: Arrivals::Random,
        });
        let unlimited = Tenant {
            id: format!("{name}-unlimited"),
            limit: None,
            quota: None,
            rate: UNLIMITED_RATE,
            arrivals: Arrivals::Random,
        };
        // From when on no more is admitted than comes.
        let emptied = |limit: &Limit| limit.burst as f64 / limit.per_second() / (load - 1.0);
        let emptied = limits.iter().map(emptied).filter(|_| load > 1.0).fold(0.0, f64::max);
        self.all.push(Scenario {
            name,
            about,
            setting: Setting::Three,
            tenants: limited.chain([unlimited]).collect(),
            spread,
            lasts: SECOND * seconds,
            // Until then each gateway has found its part of what comes.
            steady_after: STEADY_AFTER.max(Duration::from_secs_f64(emptied) + SECOND * 4),
            fault: None,
            promises: promises.to_vec(),
        });
        self.all.last_mut()
    }

    fn add_fault(
        &mut self,
        name: &'static str,
        about: &'static str,
        (setting, fault, spread): (Setting, Fault, Spread),
        (seconds, in_quick): (u32, Option<u32>),
    ) {
        let limits = [SMALL, MIDDLE];
        if let Some(scenario) = self.add(name, about, (&limits, 2.0), (spread, seconds, in_quick), &[]) {
            scenario.setting = setting;
            scenario.fault = Some(fault);
            // Used up after the fault, and before the end.
            let asked = QUOTA_RATE * scenario.lasts.as_secs_f64();
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some thousand")]
            let quota = (asked * 0.8) as u64;
            scenario.tenants.push(Tenant {
                id: format!("{name}-quota"),
                limit: None,
                quota: Some(quota),
                rate: QUOTA_RATE,
                arrivals: Arrivals::Random,
            });
        }
    }
}

/// All of them, or those that are worth it when there is little time. Those that share gateways follow each other.
#[expect(clippy::too_many_lines, reason = "a list")]
pub fn all(quick: bool, crowd: usize) -> Vec<Scenario> {
    use Promise::{
        Exact, FewExchanges, FiveInThousand, Local, NothingRefused, RefusedAtMost, RefusedAtNoCost, Used,
        UsedAfterShift, UsedUpAtNoCost,
    };
    use Spread::{HalfShift, Shift, Skewed, Sticky, Uniform, WithoutLast};
    let mut make = Maker { all: Vec::new(), quick };
    let middle = SECOND * 8;
    make.add(
        "uniform",
        "Twice the rate, over all nodes alike.",
        (&[SMALL, MIDDLE, LARGE], 2.0),
        // Each gateway has a token that has partly come, and one that nobody has asked for yet. No loss, but of a slow
        // bucket one per cent of the first half minute.
        (Uniform, 65, Some(45)),
        &[Used(0.99), Local, FewExchanges],
    );
    make.add(
        "saturated",
        "Twice a high rate, over all nodes alike.",
        (&[LARGE], 2.0),
        (Uniform, 30, None),
        &[Used(0.99), Local, FewExchanges, FiveInThousand],
    );
    make.add(
        "below",
        "Nine tenths of the rate, over all nodes alike.",
        (&[SMALL, MIDDLE], 0.9),
        (Uniform, 25, Some(10)),
        &[NothingRefused, Local, FewExchanges],
    );
    make.add(
        "busy",
        "Nine tenths of a high rate, over all nodes alike.",
        (&[BUSY], 0.9),
        (Uniform, 20, Some(10)),
        &[NothingRefused, Local, FiveInThousand],
    );
    make.add(
        "below-sticky",
        "Nine tenths of the rate, to one node.",
        (&[SMALL, MIDDLE], 0.9),
        (Sticky, 15, None),
        &[NothingRefused, Local],
    );
    if let Some(scenario) = make.add(
        "small-burst",
        "85 % of the rate at equal distances, with bursts of next to nothing.",
        (&[Limit::new(60, 1), Limit::new(600, 5), Limit::new(1_000, 10)], 0.85),
        (Uniform, 15, None),
        &[RefusedAtMost(0.02)],
    ) {
        for tenant in scenario.tenants.iter_mut().filter(|tenant| tenant.limit.is_some()) {
            tenant.arrivals = Arrivals::Regular;
        }
    }
    make.add("sticky", "Twice the rate, to one node.", (&[SMALL, MIDDLE], 2.0), (Sticky, 25, None), &[Used(0.99)]);
    make.add(
        "skewed",
        "Twice the rate, nine tenths of it to one node.",
        (&[SMALL, MIDDLE], 2.0),
        (Skewed, 25, None),
        &[Used(0.95)],
    );
    make.add(
        "shift",
        "Twice the rate, from one node to another at once.",
        (&[SMALL, MIDDLE], 2.0),
        (Shift(middle), 20, Some(14)),
        &[UsedAfterShift(middle)],
    );
    make.add(
        "half-shift",
        "Twice the rate to two nodes, from one of which it moves to the other at once.",
        (&[SMALL, MIDDLE], 2.0),
        (HalfShift(middle), 20, None),
        &[UsedAfterShift(middle)],
    );
    make.add(
        "refused",
        "Three hundred times the rate, nearly all of it refused.",
        (&[TINY], 300.0),
        (Uniform, 12, Some(8)),
        &[Used(0.99), RefusedAtNoCost],
    );
    if let Some(scenario) = make.add(
        "used-up",
        "A day's quota is used up at once; twice the rate goes on to be asked for.",
        (&[MIDDLE], 2.0),
        (Uniform, 12, None),
        &[UsedUpAtNoCost],
    ) {
        scenario.tenants[0].quota = Some(300);
        // Used up in two seconds; what was held of the rate then has been given back after two more.
        scenario.steady_after = SECOND * 5;
    }
    make.add_fault(
        "partition",
        "One of three nodes is cut off from Redis.",
        (Setting::Faulty, Fault::Cut { at: middle, back: SECOND * 14 }, Uniform),
        (22, None),
    );
    make.add_fault(
        "redis-killed",
        "Redis is killed, and comes back with its data.",
        (Setting::Faulty, Fault::RedisAway { at: middle, back: SECOND * 12, hung: false }, Uniform),
        (22, Some(19)),
    );
    make.add_fault(
        "redis-hung",
        "Redis hangs, and goes on.",
        (Setting::Faulty, Fault::RedisAway { at: middle, back: SECOND * 12, hung: true }, Uniform),
        (22, None),
    );
    make.add_fault(
        "redis-restarted",
        "Redis is killed and started again at once, with its data.",
        (Setting::Faulty, Fault::RedisRestarted { at: middle, with_data: true }, Uniform),
        (20, None),
    );
    make.add_fault(
        "redis-emptied",
        "Redis is killed and started again at once, without its data.",
        (Setting::Faulty, Fault::RedisRestarted { at: middle, with_data: false }, Uniform),
        (20, None),
    );
    make.add_fault(
        "failover",
        "Redis is killed, and its replica takes over.",
        (Setting::Sentinel, Fault::FailedOver { at: middle }, Uniform),
        (22, None),
    );
    make.add_fault(
        "node-killed",
        "One of three nodes is killed.",
        (Setting::Three, Fault::NodeKilled { at: middle }, WithoutLast(middle)),
        (18, Some(12)),
    );
    make.add_fault(
        "clocks",
        "One node's clock is put forward by 5 s, another's back.",
        (Setting::Clocks, Fault::ClocksMoved { at: middle }, Uniform),
        (18, None),
    );
    if let Some(scenario) =
        make.add("changed", "1,000 a minute become 60, and 1,000 again.", (&[SMALL], 2.0), (Uniform, 70, None), &[])
    {
        scenario.fault = Some(Fault::LimitChanged { at: SECOND * 10, back: SECOND * 20, to: TINY });
    }
    if let Some(scenario) = make.add(
        "slow",
        "10 a minute over twenty nodes, with twelve times as many asked for.",
        (&[Limit::new(10, 10)], 12.0),
        (Uniform, 45, None),
        &[Exact],
    ) {
        scenario.setting = Setting::Twenty;
        scenario.tenants[0].arrivals = Arrivals::Regular;
    }
    if crowd > 0
        && let Some(scenario) = make.add(
            "crowd",
            "Very many tenants with 60 a minute each, whose requests are spread by Zipf's law.",
            (&[], 1.0),
            (Uniform, 20, None),
            &[],
        )
    {
        scenario.setting = Setting::Crowd(crowd);
    }
    // Gateways are started once for each setting.
    let order = |setting: Setting| match setting {
        Setting::Three => 0,
        Setting::Faulty => 1,
        Setting::Sentinel => 2,
        Setting::Clocks => 3,
        Setting::Twenty => 4,
        Setting::Crowd(_) => 5,
    };
    make.all.sort_by_key(|scenario| order(scenario.setting));
    make.all
}

/// Requests a second of all tenants of the crowd.
pub const CROWD_RATE: f64 = 600.0;

/// Those of the crowd: all have the same limit.
pub fn crowd(count: usize) -> impl Iterator<Item = Tenant> {
    (0..count).map(|number| Tenant {
        id: format!("crowd-{number}"),
        limit: Some(TINY),
        quota: None,
        rate: 0.0,
        arrivals: Arrivals::Random,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_tenants_have_the_same_name() {
        let scenarios = all(false, 1);
        let mut ids: Vec<_> =
            scenarios.iter().flat_map(|scenario| scenario.tenants.iter().map(|tenant| &tenant.id)).collect();
        let count = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), count);
    }

    #[test]
    fn a_quick_run_takes_two_minutes_and_a_whole_one_ten() {
        let lasts = |quick| all(quick, 1).iter().map(|scenario| scenario.lasts).sum::<Duration>();
        assert!(lasts(true) < Duration::from_mins(2), "{:?}", lasts(true));
        assert!(lasts(false) < Duration::from_mins(10), "{:?}", lasts(false));
    }
}
