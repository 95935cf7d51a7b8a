//! What limits are, and which values they can have.

use std::time::Duration;

/// Token bucket: `burst` tokens at most, and `tokens` new ones every `period`.
///
/// In any window W no more than `burst + tokens · W / period` are admitted.
///
/// Its arithmetic is exact: a token counts `period` in microseconds units, and `tokens` units are added
/// each microsecond. A full bucket stays below 2⁵³ units, so that a double, which is what Lua has, holds
/// every level exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Bucket {
    tokens: u64,
    period_micros: u64,
    burst: u64,
}

/// Why a bucket cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BucketError {
    #[error("0 is no rate: use a quota of 0 to admit nothing, or leave the rate out to admit everything")]
    NoTokens,
    #[error("{0} per period are more than {max}: leave the rate out to admit everything", max = Bucket::MAX_TOKENS)]
    TooManyTokens(u64),
    #[error("the period must be between 1s and 1h, and is {0:?}")]
    Period(Duration),
    #[error("a burst of 0 admits nothing: it must be at least 1")]
    NoBurst,
    #[error("a burst of {0} is more than {max}", max = Bucket::MAX_BURST)]
    BurstTooLarge(u64),
}

impl Bucket {
    pub const MAX_TOKENS: u64 = 1_000_000_000;
    pub const MAX_BURST: u64 = 1_000_000;
    pub const MIN_PERIOD: Duration = Duration::from_secs(1);
    pub const MAX_PERIOD: Duration = Duration::from_hours(1);

    pub fn new(tokens: u64, period: Duration, burst: u64) -> Result<Self, BucketError> {
        if tokens == 0 {
            return Err(BucketError::NoTokens);
        }
        if tokens > Self::MAX_TOKENS {
            return Err(BucketError::TooManyTokens(tokens));
        }
        if !(Self::MIN_PERIOD..=Self::MAX_PERIOD).contains(&period) {
            return Err(BucketError::Period(period));
        }
        if burst == 0 {
            return Err(BucketError::NoBurst);
        }
        if burst > Self::MAX_BURST {
            return Err(BucketError::BurstTooLarge(burst));
        }
        let period_micros = u64::try_from(period.as_micros()).map_err(|_| BucketError::Period(period))?;
        Ok(Self { tokens, period_micros, burst })
    }

    /// New tokens per period.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    pub fn period(&self) -> Duration {
        Duration::from_micros(self.period_micros)
    }

    pub fn burst(&self) -> u64 {
        self.burst
    }

    /// Units that one token counts; also the period in microseconds.
    pub(crate) fn unit(&self) -> i64 {
        i64::try_from(self.period_micros).unwrap_or(i64::MAX)
    }

    /// Units that are added in each microsecond.
    pub(crate) fn units_per_micro(&self) -> i64 {
        i64::try_from(self.tokens).unwrap_or(i64::MAX)
    }

    /// Units of a full bucket.
    pub(crate) fn capacity(&self) -> i64 {
        i64::try_from(self.burst.saturating_mul(self.period_micros)).unwrap_or(i64::MAX)
    }

    /// Tokens that come in this time, rounded down.
    pub fn tokens_in(&self, time: Duration) -> u64 {
        let tokens = u128::from(self.tokens) * time.as_micros() / u128::from(self.period_micros);
        u64::try_from(tokens).unwrap_or(u64::MAX)
    }

    /// How long it takes until there are so many tokens where there are these, rounded up.
    pub fn time_to_bring(&self, tokens: u64, left: u64) -> Duration {
        let missing = u128::from(tokens.saturating_sub(left)) * u128::from(self.period_micros);
        Duration::from_micros(u64::try_from(missing.div_ceil(u128::from(self.tokens))).unwrap_or(u64::MAX))
    }

    /// How long it takes from empty to full, rounded up.
    pub fn time_to_fill(&self) -> Duration {
        Duration::from_micros(self.burst.saturating_mul(self.period_micros).div_ceil(self.tokens))
    }
}

/// What an account holds its gateways to, now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Terms {
    Bucket(Bucket),
    /// So many in this period of the calendar; microseconds since 1970.
    Quota {
        limit: u64,
        starts: u64,
        ends: u64,
    },
    /// So many at the same time.
    Slots {
        limit: u64,
    },
}

/// The largest quota. 2⁵³ is what Lua counts exactly.
pub const MAX_QUOTA: u64 = 1 << 50;

/// The largest number of requests at the same time.
pub const MAX_SLOTS: u64 = 10_000_000;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn absurd_buckets_are_refused() {
        use BucketError::*;
        let minute = Duration::from_mins(1);
        for (tokens, period, burst, error) in [
            (0, minute, 1, NoTokens),
            (u64::MAX, minute, 1, TooManyTokens(u64::MAX)),
            (1, Duration::ZERO, 1, Period(Duration::ZERO)),
            (1, Duration::MAX, 1, Period(Duration::MAX)),
            (1, minute, 0, NoBurst),
            (1, minute, u64::MAX, BurstTooLarge(u64::MAX)),
        ] {
            assert_eq!(Bucket::new(tokens, period, burst), Err(error));
        }
    }

    #[test]
    fn the_largest_bucket_is_counted_exactly_by_a_double() {
        let largest = Bucket::new(Bucket::MAX_TOKENS, Bucket::MAX_PERIOD, Bucket::MAX_BURST).unwrap();
        assert!(largest.capacity() < 1 << 53);
        // A microsecond may bring more than fits: it fills the bucket, and that is all.
        let fastest = Bucket::new(Bucket::MAX_TOKENS, Bucket::MIN_PERIOD, 1).unwrap();
        assert_eq!(fastest.time_to_fill(), Duration::from_micros(1));
    }

    #[test]
    fn tokens_come_as_the_rate_says() {
        let bucket = Bucket::new(1000, Duration::from_mins(1), 100).unwrap();
        assert_eq!(bucket.tokens_in(Duration::from_secs(6)), 100);
        assert_eq!(bucket.tokens_in(Duration::from_millis(59)), 0);
        assert_eq!(bucket.time_to_fill(), Duration::from_secs(6));
    }
}
