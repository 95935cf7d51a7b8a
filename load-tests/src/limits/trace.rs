//! When whose requests come to which node.

use std::time::Duration;

/// One request that is due.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Planned {
    /// After the beginning of the trace.
    pub at: Duration,
    /// Index among the scenario's tenants.
    pub tenant: usize,
    pub node: usize,
}

/// How requests spread over nodes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Spread {
    /// Each node as likely as the others.
    Uniform,
    /// Nine of ten go to the first node.
    Skewed,
    /// All go to the first node.
    Sticky,
    /// All go to the first node, and from this moment to the second.
    Shift(Duration),
    /// The first two nodes get half each, and from this moment the first gets all.
    HalfShift(Duration),
    /// As `Uniform`, but from this moment the last node gets none.
    WithoutLast(Duration),
}

impl Spread {
    fn node(self, at: Duration, nodes: usize, random: &mut fastrand::Rng) -> usize {
        match self {
            Self::Uniform => random.usize(..nodes),
            Self::Skewed if random.f64() < 0.9 => 0,
            Self::Skewed => random.usize(1..nodes),
            Self::Sticky => 0,
            Self::Shift(moment) => usize::from(at >= moment),
            Self::HalfShift(moment) => random.usize(..2 - usize::from(at >= moment)),
            Self::WithoutLast(moment) => random.usize(..nodes - usize::from(at >= moment)),
        }
    }
}

/// How requests follow each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arrivals {
    /// Independent of each other (Poisson), as those of many clients are.
    Random,
    /// At equal distances; the first comes after half of one.
    Regular,
}

/// `rate` requests a second of one tenant, for as long.
pub fn of_tenant(
    tenant: usize,
    rate: f64,
    arrivals: Arrivals,
    spread: Spread,
    nodes: usize,
    lasts: Duration,
    seed: u64,
) -> Vec<Planned> {
    let mut random = fastrand::Rng::with_seed(seed.wrapping_add(tenant as u64));
    let (mut planned, mut at) = (Vec::new(), 0.0);
    let mut first = true;
    loop {
        at += match arrivals {
            Arrivals::Random => -(1.0 - random.f64()).ln() / rate,
            Arrivals::Regular if first => 0.5 / rate,
            Arrivals::Regular => 1.0 / rate,
        };
        first = false;
        let moment = Duration::from_secs_f64(at);
        if moment >= lasts {
            return planned;
        }
        planned.push(Planned { at: moment, tenant, node: spread.node(moment, nodes, &mut random) });
    }
}

/// `rate` requests a second in all, of so many tenants: the one of rank r as often as 1 / r (Zipf, s = 1).
pub fn zipf(first_tenant: usize, tenants: usize, rate: f64, nodes: usize, lasts: Duration, seed: u64) -> Vec<Planned> {
    let mut cumulated = Vec::with_capacity(tenants);
    let mut sum = 0.0;
    for rank in 1..=tenants {
        sum += 1.0 / rank as f64;
        cumulated.push(sum);
    }
    let mut random = fastrand::Rng::with_seed(seed);
    let mut planned = of_tenant(0, rate, Arrivals::Random, Spread::Uniform, nodes, lasts, seed);
    for one in &mut planned {
        let drawn = random.f64() * sum;
        one.tenant = first_tenant + cumulated.partition_point(|upto| *upto <= drawn).min(tenants - 1);
    }
    planned
}

/// All of them, in the order in which they are due.
pub fn merged(traces: impl IntoIterator<Item = Vec<Planned>>) -> Vec<Planned> {
    let mut all: Vec<Planned> = traces.into_iter().flatten().collect();
    all.sort_by_key(|planned| planned.at);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_has_its_rate_and_its_spread() {
        let lasts = Duration::from_secs(100);
        let planned = of_tenant(3, 100.0, Arrivals::Random, Spread::Skewed, 3, lasts, 7);
        assert!((9_500..10_500).contains(&planned.len()), "{}", planned.len());
        let first = planned.iter().filter(|one| one.node == 0).count();
        assert!((8_500..9_500).contains(&first), "{first}");
        let regular = of_tenant(0, 2.0, Arrivals::Regular, Spread::Uniform, 3, Duration::from_secs(3), 7);
        assert_eq!(
            regular.iter().map(|one| one.at.as_millis()).collect::<Vec<_>>(),
            [250, 750, 1250, 1750, 2250, 2750]
        );
    }

    #[test]
    fn half_of_the_requests_move_to_the_other_node() {
        let (moment, lasts) = (Duration::from_secs(50), Duration::from_secs(100));
        let planned = of_tenant(0, 100.0, Arrivals::Regular, Spread::HalfShift(moment), 3, lasts, 7);
        let (before, after): (Vec<_>, Vec<_>) = planned.into_iter().partition(|one| one.at < moment);
        let second = before.iter().filter(|one| one.node == 1).count();
        assert!((2_250..2_750).contains(&second) && before.iter().all(|one| one.node < 2), "{second}");
        assert!(after.iter().all(|one| one.node == 0));
    }

    #[test]
    fn of_zipfs_tenants_the_first_comes_most_often() {
        let planned = zipf(5, 1000, 100.0, 3, Duration::from_secs(100), 7);
        let count = |tenant| planned.iter().filter(|one| one.tenant == tenant).count();
        assert!(count(5) > count(6) && count(6) > count(15));
        assert!(planned.iter().all(|one| (5..1005).contains(&one.tenant)));
    }
}
