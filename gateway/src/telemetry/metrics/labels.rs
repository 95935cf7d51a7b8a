//! Closed sets of label values.

/// A label whose values are known when the gateway is built.
pub trait Label: Copy + 'static {
    const VALUES: &'static [&'static str];

    /// Position of this value in [`Label::VALUES`].
    fn index(self) -> usize;
}

macro_rules! labels {
    ($($(#[$doc:meta])* $type:ident { $($(#[$value_doc:meta])* $value:ident = $text:literal,)+ })+) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
            pub enum $type {
                $($(#[$value_doc])* $value,)+
            }

            impl Label for $type {
                const VALUES: &'static [&'static str] = &[$($text),+];

                fn index(self) -> usize {
                    self as usize
                }
            }
        )+
    };
}

labels! {
    /// How an attempt to get an answer from an upstream ended.
    Attempt {
        /// The head of a response arrived, whatever its status.
        Answered = "answered",
        /// No connection came about.
        ConnectFailure = "connect_failure",
        /// The connection broke before the head of a response.
        Reset = "reset",
        Timeout = "timeout",
        /// The answer was not valid HTTP.
        Malformed = "malformed",
        /// The client went away first.
        Cancelled = "cancelled",
    }

    /// What the cache did for a request.
    CacheResult {
        /// Served from it, fresh.
        Hit = "hit",
        /// Served from it, stale.
        Stale = "stale",
        /// The origin said that what is stored is still good.
        Revalidated = "revalidated",
        /// Served what another request has fetched meanwhile.
        Collapsed = "collapsed",
        /// The origin was asked.
        Miss = "miss",
        /// The cache could not be used.
        Bypass = "bypass",
    }

    /// Why an endpoint was taken out of balancing.
    Ejection {
        ConsecutiveErrors = "consecutive_errors",
        ErrorRate = "error_rate",
        Latency = "latency",
        HealthCheck = "health_check",
    }

    /// The new state of a circuit breaker.
    BreakerState {
        Closed = "closed",
        Open = "open",
        HalfOpen = "half_open",
    }

    /// Why a look-up of a name gave less than was asked for.
    DnsFailure {
        /// A name server gave no answer, or an error.
        Failed = "failed",
        /// The name does not exist, or has no address.
        NoAddress = "no_address",
        /// An address may not be connected to.
        Denied = "denied",
    }

    /// What came of reading a configuration.
    Reload {
        Applied = "applied",
        /// Some tenants were refused and keep their former state.
        Partial = "partial",
        Refused = "refused",
    }

    /// Why an access-log line was not written.
    LogDrop {
        /// The writer did not keep up.
        Overflow = "overflow",
        /// The output could not be written to.
        WriteError = "write_error",
    }

    /// What the time of a request was spent on.
    Stage {
        Total = "total",
        /// Waiting for an upstream.
        Upstream = "upstream",
        /// The rest: the gateway's own.
        Gateway = "gateway",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_finds_its_own_text() {
        assert_eq!(Attempt::VALUES[Attempt::Cancelled.index()], "cancelled");
        assert_eq!(LogDrop::VALUES[LogDrop::WriteError.index()], "write_error");
        assert_eq!(Reload::VALUES.len(), 3);
    }
}
