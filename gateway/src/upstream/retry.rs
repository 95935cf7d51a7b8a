//! Whether an attempt that failed is made again.

use std::time::Duration;

use http::{Method, StatusCode};
use seiketsu_config::policy::{Retries, RetryOn};

use super::{clock::Nanos, window::Window};

/// Retries that are always allowed within ten seconds, however few requests there are.
const ALWAYS_ALLOWED: f64 = 10.0;

/// How an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No connection came about.
    Connect,
    /// The connection broke before the head of a response.
    Reset,
    /// No head of a response came in time.
    Timeout,
    /// A response came, with this status.
    Status(StatusCode),
}

impl Failure {
    /// Whether there is a setting by which it leads to another attempt. Most responses are no failure at all.
    pub fn is_ever_retried(self) -> bool {
        class(self).is_some()
    }
}

/// A failed attempt.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    pub method: &'a Method,
    pub failure: Failure,
    /// How many attempts this request has had, this one included.
    pub made: u8,
    /// Whether any byte of the request may have reached the upstream's application. False for a failed
    /// connect, and for a stream that HTTP/2 says was not processed (RFC 9113 §8.7).
    pub may_have_arrived: bool,
    /// Whether the body can be sent again: there is none, or all of it is still buffered.
    pub replayable: bool,
}

/// The retries of one upstream, as a share of its requests in the last ten seconds.
#[derive(Debug, Default)]
pub struct Budget {
    requests: Window,
    retries: Window,
}

impl Budget {
    /// Counts a request, not its attempts.
    pub fn request(&self, now: Nanos) {
        self.requests.add(now);
    }

    /// Takes one retry out of the budget, if there is one.
    fn take(&self, policy: &Retries, now: Nanos) -> bool {
        // In percent, as configured: a fraction such as 0.07 is not exact, and neither are its multiples.
        let allowed = policy.budget.get() * self.requests.sum(now) as f64;
        let left = ((self.retries.sum(now) * 100) as f64) < allowed.max(ALWAYS_ALLOWED * 100.0);
        if left {
            self.retries.add(now);
        }
        left
    }
}

/// What becomes of an attempt that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Make another one after this pause; it is counted against the budget.
    Again(Duration),
    /// What came back, or did not, is the answer.
    Final,
    /// So it is here, but only because the budget is used up.
    BudgetSpent,
}

/// Whether another attempt is made.
pub fn decide(policy: &Retries, attempt: &Attempt<'_>, budget: &Budget, now: Nanos) -> Verdict {
    let safe = !attempt.may_have_arrived || attempt.method.is_idempotent();
    let wanted = class(attempt.failure).is_some_and(|class| policy.on.contains(&class));
    let allowed = attempt.made <= policy.attempts && attempt.replayable && safe && wanted;
    if !allowed {
        Verdict::Final
    } else if budget.take(policy, now) {
        Verdict::Again(backoff(policy.backoff.get(), attempt.made))
    } else {
        Verdict::BudgetSpent
    }
}

fn class(failure: Failure) -> Option<RetryOn> {
    match failure {
        Failure::Connect => Some(RetryOn::ConnectFailure),
        Failure::Reset => Some(RetryOn::Reset),
        Failure::Timeout => Some(RetryOn::Timeout),
        Failure::Status(StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT) => {
            Some(RetryOn::GatewayError)
        }
        Failure::Status(_) => None,
    }
}

/// Full jitter: anything between nothing and the base doubled with each attempt, so that the clients of
/// a sick upstream do not come back in step.
fn backoff(base: Duration, made: u8) -> Duration {
    let doublings = u32::from(made.saturating_sub(1)).min(16);
    base.saturating_mul(1 << doublings).mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use seiketsu_config::values::{Percent, Span};

    use super::*;

    const SECOND: Nanos = 1_000_000_000;

    fn policy() -> Retries {
        Retries {
            attempts: 2,
            on: vec![RetryOn::ConnectFailure, RetryOn::Reset, RetryOn::Timeout, RetryOn::GatewayError],
            budget: Percent::new_const(20),
            backoff: Span::from_millis(10),
        }
    }

    fn attempt(method: &Method, failure: Failure) -> Attempt<'_> {
        Attempt { method, failure, made: 1, may_have_arrived: failure != Failure::Connect, replayable: true }
    }

    fn is_again(verdict: Verdict) -> bool {
        matches!(verdict, Verdict::Again(_))
    }

    fn retried(policy: &Retries, attempt: &Attempt<'_>) -> bool {
        is_again(decide(policy, attempt, &Budget::default(), SECOND))
    }

    #[test]
    fn a_request_that_may_have_arrived_is_repeated_only_if_idempotent() {
        for failure in [Failure::Reset, Failure::Timeout, Failure::Status(StatusCode::BAD_GATEWAY)] {
            for method in [Method::GET, Method::HEAD, Method::OPTIONS, Method::PUT, Method::DELETE, Method::TRACE] {
                assert!(retried(&policy(), &attempt(&method, failure)), "{method} {failure:?}");
            }
            for method in [Method::POST, Method::PATCH] {
                assert!(!retried(&policy(), &attempt(&method, failure)), "{method} {failure:?}");
            }
        }
    }

    #[test]
    fn a_request_that_never_left_is_repeated_whatever_its_method() {
        assert!(retried(&policy(), &attempt(&Method::POST, Failure::Connect)));
        let refused_stream = Attempt { may_have_arrived: false, ..attempt(&Method::POST, Failure::Reset) };
        assert!(retried(&policy(), &refused_stream));
    }

    #[test]
    fn only_the_listed_failures_are_repeated() {
        let only_connect = Retries { on: vec![RetryOn::ConnectFailure], ..policy() };
        assert!(retried(&only_connect, &attempt(&Method::GET, Failure::Connect)));
        assert!(!retried(&only_connect, &attempt(&Method::GET, Failure::Reset)));
        assert!(!retried(&policy(), &attempt(&Method::GET, Failure::Status(StatusCode::INTERNAL_SERVER_ERROR))));
    }

    #[test]
    fn attempts_and_lost_bodies_end_it() {
        let third = Attempt { made: 3, ..attempt(&Method::GET, Failure::Connect) };
        assert!(!retried(&policy(), &third));
        let lost = Attempt { replayable: false, ..attempt(&Method::PUT, Failure::Reset) };
        assert!(!retried(&policy(), &lost));
        let off = Retries { attempts: 0, ..policy() };
        assert!(!retried(&off, &attempt(&Method::GET, Failure::Connect)));
    }

    #[test]
    fn the_pause_stays_below_the_doubled_base() {
        for made in 1..=5u8 {
            let most = Duration::from_millis(10) * (1 << (made - 1));
            let pauses: Vec<_> = (0..500).map(|_| backoff(Duration::from_millis(10), made)).collect();
            assert!(pauses.iter().all(|pause| *pause <= most));
            assert!(pauses.iter().any(|pause| *pause > most / 2), "full jitter reaches the upper half");
            assert!(pauses.iter().any(|pause| *pause < most / 2), "and the lower");
        }
    }

    proptest! {
        #[test]
        fn retries_never_exceed_the_budget_nor_fall_below_ten(requests in 0u32..500, share in 0u8..=100) {
            let budget = Budget::default();
            let policy = Retries { budget: Percent::new_const(share), ..policy() };
            (0..requests).for_each(|_| budget.request(SECOND));
            let failed = attempt(&Method::GET, Failure::Connect);
            let made = (0..1000).filter(|_| is_again(decide(&policy, &failed, &budget, SECOND))).count();
            let allowed = (requests * u32::from(share)).div_ceil(100).max(10);
            prop_assert_eq!(made, allowed as usize);
            prop_assert!(is_again(decide(&policy, &failed, &budget, 20 * SECOND)), "it renews itself");
        }
    }
}
