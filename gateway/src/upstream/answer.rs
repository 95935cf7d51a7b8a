//! What name servers say, and what stays known of it.

use std::{net::IpAddr, sync::Arc, time::Duration};

use hickory_resolver::net::NetError;

use super::{egress::Denied, resolver::LookupError};
use crate::telemetry::metrics::DnsFailure;

/// The replies for both address families.
pub(super) struct Questions {
    pub(super) v4: Reply,
    pub(super) v6: Reply,
}

/// What came back to one question.
pub(super) enum Reply {
    Answer { addresses: Vec<IpAddr>, denied: Option<Denied>, ttl: Duration },
    Failed(NetError),
}

impl Reply {
    fn ttl(&self) -> Option<Duration> {
        match self {
            Self::Answer { ttl, .. } => Some(*ttl),
            Self::Failed(_) => None,
        }
    }

    pub(super) fn denied(&self) -> Option<Denied> {
        match self {
            Self::Answer { denied, .. } => *denied,
            Self::Failed(_) => None,
        }
    }
}

impl Questions {
    /// What is wrong with the replies, if anything is.
    pub(super) fn failure(&self) -> Option<DnsFailure> {
        let replies = [&self.v4, &self.v6];
        if replies.iter().any(|reply| reply.denied().is_some()) {
            Some(DnsFailure::Denied)
        } else if replies.iter().any(|reply| matches!(reply, Reply::Failed(_))) {
            Some(DnsFailure::Failed)
        } else {
            let is_empty = |reply: &&Reply| matches!(reply, Reply::Answer { addresses, .. } if addresses.is_empty());
            replies.iter().all(is_empty).then_some(DnsFailure::NoAddress)
        }
    }

    /// Why there is no address in this.
    pub(super) fn error(self, host: &str) -> LookupError {
        let host = host.to_owned();
        match (self.v4.denied().or(self.v6.denied()), self.v4, self.v6) {
            (Some(denied), _, _) => LookupError::Denied { host, denied },
            (None, Reply::Failed(source), _) | (None, _, Reply::Failed(source)) => LookupError::Dns { host, source },
            _ => LookupError::NoAddress { host },
        }
    }
}

/// What is known about a name, per address family, since either may fail alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Answer {
    v4: Vec<IpAddr>,
    v6: Vec<IpAddr>,
    /// Both together.
    pub(super) addresses: Arc<[IpAddr]>,
    /// Whether the first question has been answered, in whatever way.
    pub(super) asked: bool,
}

impl Answer {
    pub(super) fn updated(&self, questions: &Questions) -> Self {
        let family = |reply: &Reply, before: &Vec<IpAddr>| match reply {
            Reply::Answer { addresses, .. } => addresses.clone(),
            Reply::Failed(_) => before.clone(),
        };
        let v4 = family(&questions.v4, &self.v4);
        let v6 = family(&questions.v6, &self.v6);
        let gone = v4.is_empty() && v6.is_empty();
        let denied = questions.v4.denied().or(questions.v6.denied()).is_some();
        if gone && !denied {
            return Self { asked: true, ..self.clone() };
        }
        let addresses = v4.iter().chain(&v6).copied().collect();
        Self { v4, v6, addresses, asked: true }
    }
}

/// The smaller TTL within the bounds. After failures from `min` on, doubled each time, up to `max`.
pub(super) fn pause(questions: &Questions, failures: &mut u32, min: Duration, max: Duration) -> Duration {
    let replies = [&questions.v4, &questions.v6];
    if replies.iter().any(|reply| reply.ttl().is_none()) {
        let pause = min.saturating_mul(1 << (*failures).min(16)).min(max);
        *failures += 1;
        return pause;
    }
    *failures = 0;
    // An empty family says little about how long the other stays.
    let answered =
        replies.iter().filter(|reply| !matches!(reply, Reply::Answer { addresses, .. } if addresses.is_empty()));
    answered.filter_map(|reply| reply.ttl()).min().unwrap_or(min).clamp(min, max)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn pauses_follow_the_ttl_within_bounds_and_grow_with_failures() {
        let (min, max) = (Duration::from_secs(5), Duration::from_mins(1));
        let answer = |seconds, addresses: &[&str]| Reply::Answer {
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            denied: None,
            ttl: Duration::from_secs(seconds),
        };
        let after = |v4, v6, failures: &mut u32| pause(&Questions { v4, v6 }, failures, min, max).as_secs();
        let mut failures = 0;
        assert_eq!(after(answer(30, &["10.0.0.1"]), answer(3600, &[]), &mut failures), 30);
        assert_eq!(after(answer(30, &["10.0.0.1"]), answer(1, &[]), &mut failures), 30);
        assert_eq!(after(answer(1, &["10.0.0.1"]), answer(1, &[]), &mut failures), 5);
        assert_eq!(after(answer(86_400, &["10.0.0.1"]), answer(1, &[]), &mut failures), 60);
        for expected in [5, 10, 20, 40, 60, 60] {
            let failed = || Reply::Failed(NetError::Timeout);
            assert_eq!(after(failed(), failed(), &mut failures), expected);
        }
        assert_eq!(after(answer(30, &["10.0.0.1"]), answer(0, &[]), &mut failures), 30);
    }
}
