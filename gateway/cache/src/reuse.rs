//! Whether a stored response may answer a request (RFC 9111 §4), stale ones too (§4.2.4, RFC 5861).

use http::{HeaderMap, header};

use crate::{
    directives::{Lifetime, MaxStale, RequestDirectives, ResponseDirectives},
    freshness::Exchange,
    time::Timestamp,
};

/// Seconds that clocks of the same machine differ by, being read one after the other.
const SKEW: u64 = 1;

/// What holds for a stored response; all times in seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::struct_field_names)]
pub struct Rules {
    pub lifetime: u64,
    /// How old it was when it came.
    pub initial_age: u64,
    /// When it came.
    pub answered: Timestamp,
    /// It must be validated each time.
    pub no_cache: bool,
    /// No client may have it stale by its own wish.
    pub forbids_stale: bool,
    pub immutable: bool,
    /// None where the origin leaves it open.
    pub stale_while_revalidate: Option<u64>,
    /// None where the origin leaves it open.
    pub stale_if_error: Option<u64>,
}

/// For how long a response may be served although it is stale, in seconds, where its origin leaves that open. Whoever
/// sets it may do so when the origin is down already: it counts when a response is used, not when it is stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Windows {
    pub while_revalidate: u64,
    pub if_error: u64,
}

/// What may be done with a stored response for one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuse {
    /// It is fresh.
    Fresh,
    /// It is stale, which this client accepts.
    Stale,
    /// It is stale, but may be served while it is being validated.
    Refresh,
    /// The origin must be asked first.
    Validate,
}

impl Rules {
    pub fn new(directives: &ResponseDirectives, lifetime: u64, initial_age: u64, exchange: Exchange) -> Self {
        let strict = directives.must_revalidate || directives.proxy_revalidate || directives.no_cache.is_whole();
        // `s-maxage` forbids what the origin has not allowed in the same breath (RFC 9111 §5.2.2.10, RFC 5861).
        let window = |told: Lifetime| match told.seconds() {
            _ if strict => Some(0),
            None if directives.forbids_stale() => Some(0),
            told => told,
        };
        Self {
            lifetime,
            initial_age,
            answered: exchange.answered,
            no_cache: directives.no_cache.is_whole(),
            forbids_stale: directives.forbids_stale(),
            immutable: directives.immutable,
            stale_while_revalidate: window(directives.stale_while_revalidate),
            stale_if_error: window(directives.stale_if_error),
        }
    }

    /// It is not served stale unless its origin has said so: an error that is stale is of no use when there is another.
    pub(crate) fn assume_nothing(&mut self) {
        self.stale_while_revalidate.get_or_insert(0);
        self.stale_if_error.get_or_insert(0);
    }

    /// Seconds since the origin made it (RFC 9111 §4.2.3).
    pub fn age(&self, now: Timestamp) -> u64 {
        self.initial_age.saturating_add(now.since(self.answered))
    }

    /// Whether it has not come yet: the clock was set back, and nobody knows how old it is.
    fn is_of_unknown_age(&self, now: Timestamp) -> bool {
        self.answered.since(now) > SKEW
    }

    /// Seconds for which it stays fresh; negative: since when it is stale.
    pub fn remaining(&self, now: Timestamp) -> i64 {
        let signed = |seconds| i64::try_from(seconds).unwrap_or(i64::MAX);
        let left = signed(self.lifetime).saturating_sub(signed(self.age(now)));
        if self.is_of_unknown_age(now) { left.min(0) } else { left }
    }

    pub fn is_fresh(&self, now: Timestamp) -> bool {
        !self.no_cache && self.remaining(now) > 0
    }

    /// Whether one that comes now with the same rules could be served without asking: else nobody is served by waiting for
    /// somebody else to validate it.
    pub fn can_be_fresh(&self) -> bool {
        !self.no_cache && self.lifetime > self.initial_age
    }

    fn staleness(&self, now: Timestamp) -> u64 {
        self.age(now).saturating_sub(self.lifetime)
    }

    /// What may be done with it for a request.
    pub fn reuse(&self, request: &RequestDirectives, defaults: Windows, now: Timestamp) -> Reuse {
        if self.no_cache || request.no_cache || self.is_of_unknown_age(now) {
            return Reuse::Validate;
        }
        let fresh = self.is_fresh(now);
        let age = self.age(now);
        // A reload of what never changes while it is fresh asks for nothing new (RFC 8246 §2).
        let reload = request.max_age == Lifetime::Seconds(0) && self.immutable && fresh;
        if request.max_age.seconds().is_some_and(|most| age > most || most == 0) && !reload {
            return Reuse::Validate;
        }
        let left = self.lifetime.saturating_sub(age);
        if request.min_fresh.seconds().is_some_and(|least| left < least) {
            return Reuse::Validate;
        }
        if fresh {
            return Reuse::Fresh;
        }
        let staleness = self.staleness(now);
        let accepted = match request.max_stale {
            MaxStale::None => false,
            MaxStale::Seconds(most) => staleness <= most,
            MaxStale::Any => true,
        };
        if accepted && !self.forbids_stale {
            return Reuse::Stale;
        }
        let window = self.stale_while_revalidate.unwrap_or(defaults.while_revalidate);
        if window > 0 && staleness <= window {
            return Reuse::Refresh;
        }
        Reuse::Validate
    }

    /// Whether it may be served when the origin cannot be asked, or answers with an error (RFC 5861 §4).
    pub fn serves_on_error(&self, request: &RequestDirectives, defaults: Windows, now: Timestamp) -> bool {
        let asked = if self.forbids_stale { 0 } else { request.stale_if_error.seconds().unwrap_or(0) };
        let window = self.stale_if_error.unwrap_or(defaults.if_error).max(asked);
        window > 0 && self.staleness(now) <= window && !self.is_of_unknown_age(now)
    }

    /// Whether there can be a request that it answers, as it is or once it has been validated.
    pub(crate) fn may_be_of_use(&self, headers: &HeaderMap, defaults: Windows) -> bool {
        let refreshes = self.stale_while_revalidate.unwrap_or(defaults.while_revalidate) > 0;
        self.can_be_fresh()
            || !self.no_cache && refreshes
            || self.stale_if_error.unwrap_or(defaults.if_error) > 0
            || headers.contains_key(header::ETAG)
            || headers.contains_key(header::LAST_MODIFIED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directives::Scope;

    const CAME: u64 = 1_000_000_000;

    fn rules(change: impl FnOnce(&mut ResponseDirectives), lifetime: u64) -> Rules {
        let mut directives = ResponseDirectives::default();
        change(&mut directives);
        let at = Timestamp::from_unix(CAME);
        Rules::new(&directives, lifetime, 0, Exchange { requested: at, answered: at })
    }

    fn reuse(rules: &Rules, request: RequestDirectives, after: u64) -> Reuse {
        rules.reuse(&request, Windows::default(), Timestamp::from_unix(CAME + after))
    }

    #[test]
    fn it_is_fresh_until_its_lifetime_has_passed() {
        let rules = rules(|_| {}, 10);
        let plain = RequestDirectives::default();
        assert_eq!(reuse(&rules, plain, 0), Reuse::Fresh);
        assert_eq!(reuse(&rules, plain, 9), Reuse::Fresh);
        assert_eq!(reuse(&rules, plain, 10), Reuse::Validate);
        assert_eq!(rules.remaining(Timestamp::from_unix(CAME + 12)), -2);
    }

    #[test]
    fn a_client_may_want_it_fresher() {
        let rules = rules(|_| {}, 10);
        let at_most = |seconds| RequestDirectives { max_age: Lifetime::Seconds(seconds), ..Default::default() };
        assert_eq!(reuse(&rules, at_most(5), 5), Reuse::Fresh);
        assert_eq!(reuse(&rules, at_most(5), 6), Reuse::Validate);
        assert_eq!(reuse(&rules, at_most(0), 0), Reuse::Validate);
        let at_least = |seconds| RequestDirectives { min_fresh: Lifetime::Seconds(seconds), ..Default::default() };
        assert_eq!(reuse(&rules, at_least(5), 5), Reuse::Fresh);
        assert_eq!(reuse(&rules, at_least(5), 6), Reuse::Validate);
        let no_cache = RequestDirectives { no_cache: true, ..Default::default() };
        assert_eq!(reuse(&rules, no_cache, 0), Reuse::Validate);
    }

    #[test]
    fn a_client_may_take_it_stale_unless_the_origin_forbids_it() {
        let stale = |max_stale| RequestDirectives { max_stale, ..Default::default() };
        let open = rules(|_| {}, 10);
        assert_eq!(reuse(&open, stale(MaxStale::Any), 1000), Reuse::Stale);
        assert_eq!(reuse(&open, stale(MaxStale::Seconds(5)), 15), Reuse::Stale);
        assert_eq!(reuse(&open, stale(MaxStale::Seconds(5)), 16), Reuse::Validate);
        for strict in [
            rules(|said| said.must_revalidate = true, 10),
            rules(|said| said.proxy_revalidate = true, 10),
            rules(|said| said.s_maxage = Lifetime::Seconds(10), 10),
            rules(|said| said.no_cache = Scope::Whole, 10),
        ] {
            assert_eq!(reuse(&strict, stale(MaxStale::Any), 11), Reuse::Validate);
        }
    }

    #[test]
    fn it_may_be_served_while_it_is_validated() {
        let rules = |more: fn(&mut ResponseDirectives)| {
            rules(
                |said| {
                    said.stale_while_revalidate = Lifetime::Seconds(5);
                    more(said);
                },
                10,
            )
        };
        let plain = RequestDirectives::default();
        assert_eq!(reuse(&rules(|_| {}), plain, 15), Reuse::Refresh);
        assert_eq!(reuse(&rules(|_| {}), plain, 16), Reuse::Validate);
        assert_eq!(reuse(&rules(|said| said.s_maxage = Lifetime::Seconds(10)), plain, 15), Reuse::Refresh);
        assert_eq!(reuse(&rules(|said| said.must_revalidate = true), plain, 15), Reuse::Validate);
    }

    #[test]
    fn it_may_be_served_when_the_origin_fails() {
        let now = |after| Timestamp::from_unix(CAME + after);
        let plain = RequestDirectives::default();
        let allowed = rules(|said| said.stale_if_error = Lifetime::Seconds(5), 10);
        assert!(allowed.serves_on_error(&plain, Windows::default(), now(15)));
        assert!(!allowed.serves_on_error(&plain, Windows::default(), now(16)));
        let silent = rules(|_| {}, 10);
        assert!(!silent.serves_on_error(&plain, Windows::default(), now(11)));
        let asking = RequestDirectives { stale_if_error: Lifetime::Seconds(5), ..Default::default() };
        assert!(silent.serves_on_error(&asking, Windows::default(), now(11)));
        assert!(!rules(|said| said.must_revalidate = true, 10).serves_on_error(&asking, Windows::default(), now(11)));
    }

    #[test]
    fn what_the_origin_leaves_open_is_decided_when_it_is_used() {
        let now = Timestamp::from_unix(CAME + 15);
        let plain = RequestDirectives::default();
        let defaults = Windows { while_revalidate: 5, if_error: 5 };
        let silent = rules(|_| {}, 10);
        assert_eq!(silent.reuse(&plain, Windows::default(), now), Reuse::Validate);
        assert_eq!(silent.reuse(&plain, defaults, now), Reuse::Refresh);
        assert!(silent.serves_on_error(&plain, defaults, now));
        let mut of_error = silent.clone();
        of_error.assume_nothing();
        for said in [
            of_error,
            rules(|said| said.must_revalidate = true, 10),
            rules(|said| said.s_maxage = Lifetime::Seconds(10), 10),
            rules(
                |said| {
                    said.stale_while_revalidate = Lifetime::Seconds(4);
                    said.stale_if_error = Lifetime::Seconds(4);
                },
                10,
            ),
        ] {
            assert_eq!(said.reuse(&plain, defaults, now), Reuse::Validate);
            assert!(!said.serves_on_error(&plain, defaults, now));
        }
    }

    #[test]
    fn what_comes_from_the_future_is_validated() {
        let rules = rules(
            |said| {
                said.stale_while_revalidate = Lifetime::Seconds(5);
                said.stale_if_error = Lifetime::Seconds(5);
            },
            10,
        );
        let plain = RequestDirectives::default();
        let before = |seconds| Timestamp::from_unix(CAME - seconds);
        assert_eq!(rules.reuse(&plain, Windows::default(), before(1)), Reuse::Fresh);
        for seconds in [2, 3600] {
            let now = before(seconds);
            assert_eq!(rules.reuse(&plain, Windows::default(), now), Reuse::Validate, "{seconds}");
            assert!(
                !rules.is_fresh(now)
                    && rules.remaining(now) <= 0
                    && !rules.serves_on_error(&plain, Windows::default(), now)
            );
        }
    }

    #[test]
    fn what_is_immutable_is_not_asked_for_again_by_a_reload() {
        let rules = rules(|said| said.immutable = true, 10);
        let reload = RequestDirectives { max_age: Lifetime::Seconds(0), ..Default::default() };
        assert_eq!(reuse(&rules, reload, 5), Reuse::Fresh);
        assert_eq!(reuse(&rules, reload, 10), Reuse::Validate);
        let forced = RequestDirectives { no_cache: true, ..reload };
        assert_eq!(reuse(&rules, forced, 5), Reuse::Validate);
    }
}
