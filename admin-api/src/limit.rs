//! How often somebody may call: a token bucket (see `seiketsu_config::limits::TokenBucket`) for each.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// When there are more callers than this, those whose buckets are full are forgotten.
const MANY: usize = 10_000;

#[derive(Debug)]
pub(crate) struct Limiter<K> {
    per_second: f64,
    burst: f64,
    callers: Mutex<HashMap<K, Bucket>>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl<K: Hash + Eq> Limiter<K> {
    pub(crate) fn new(per_second: u32, burst: u32) -> Self {
        Self { per_second: per_second.max(1).into(), burst: burst.max(1).into(), callers: Mutex::default() }
    }

    /// Takes a token; else tells for how many seconds there will be none.
    pub(crate) fn take(&self, caller: K) -> Result<(), u64> {
        self.at(caller, Instant::now())
    }

    fn at(&self, caller: K, now: Instant) -> Result<(), u64> {
        let mut callers = self.callers.lock();
        if callers.len() > MANY {
            callers.retain(|_, bucket| self.tokens(bucket, now) < self.burst);
        }
        let bucket = callers.entry(caller).or_insert(Bucket { tokens: self.burst, at: now });
        let tokens = self.tokens(bucket, now);
        if tokens < 1.0 {
            let wait = Duration::from_secs_f64((1.0 - tokens) / self.per_second);
            return Err(wait.as_secs() + 1);
        }
        *bucket = Bucket { tokens: tokens - 1.0, at: now };
        Ok(())
    }

    fn tokens(&self, bucket: &Bucket, now: Instant) -> f64 {
        (bucket.tokens + now.saturating_duration_since(bucket.at).as_secs_f64() * self.per_second).min(self.burst)
    }
}

/// Whose address it is, for limits: of IPv6 a client has a /64, and may call from any address in it.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_addresses_of_one_network_are_one_caller() {
        let of = |text: &str| network(text.parse().unwrap()).to_string();
        assert_eq!([of("2001:db8:1:2:3:4:5:6"), of("2001:db8:1:2::")], ["2001:db8:1:2::", "2001:db8:1:2::"]);
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!([of("192.0.2.1"), of("::ffff:192.0.2.1")], ["192.0.2.1", "192.0.2.1"]);
    }

    #[test]
    fn a_caller_gets_its_burst_and_then_its_rate() {
        let limiter = Limiter::new(2, 3);
        let start = Instant::now();
        let passed = |millis, caller| limiter.at(caller, start + Duration::from_millis(millis)).is_ok();
        assert_eq!([0, 0, 0, 0].map(|at| passed(at, "a")), [true, true, true, false]);
        assert!(passed(0, "b"));
        assert_eq!([400, 500, 500, 1000].map(|at| passed(at, "a")), [false, true, false, true]);
        assert_eq!(limiter.at("a", start + Duration::from_secs(1)), Err(1));
    }
}
