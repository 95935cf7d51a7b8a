//! Which traces are recorded: the samplers of the OpenTelemetry specification (SDK environment variables,
//! `OTEL_TRACES_SAMPLER`).

/// A sampler, with what it does without a parent's decision.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sampler {
    /// Follow the decision that comes with a request, where one does.
    parent_based: bool,
    root: Root,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Root {
    AlwaysOn,
    AlwaysOff,
    /// This share of traces, decided by trace id, so that all services decide alike.
    Ratio(f64),
}

impl Sampler {
    pub(super) const NAMES: &str = "always_on, always_off, traceidratio, parentbased_always_on, \
         parentbased_always_off or parentbased_traceidratio";

    /// By the names of the specification; the default is `parentbased_always_on`. `ratio` is for the
    /// samplers that take one.
    pub(super) fn named(name: Option<&str>, ratio: f64) -> Option<Self> {
        let name = name.unwrap_or("parentbased_always_on");
        let (parent_based, name) = name.strip_prefix("parentbased_").map_or((false, name), |rest| (true, rest));
        let root = match name {
            "always_on" => Root::AlwaysOn,
            "always_off" => Root::AlwaysOff,
            "traceidratio" => Root::Ratio(ratio),
            _ => return None,
        };
        Some(Self { parent_based, root })
    }

    /// `parent`: the decision that came with the request.
    pub(super) fn samples(self, trace_id: u128, parent: Option<bool>) -> bool {
        match (parent.filter(|_| self.parent_based), self.root) {
            (Some(decision), _) => decision,
            (None, Root::AlwaysOn) => true,
            (None, Root::AlwaysOff) => false,
            (None, Root::Ratio(ratio)) => {
                // The last 63 bits as a number between 0 and 1, as the SDKs do it.
                #[allow(clippy::cast_possible_truncation, reason = "the low half is what is meant")]
                let low = (trace_id as u64) >> 1;
                (low as f64) < ratio * (1_u64 << 63) as f64
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_parent_decides_for_samplers_that_ask_it() {
        let decide = |name, parent| Sampler::named(Some(name), 0.5).unwrap().samples(u128::MAX, parent);
        assert!(!decide("parentbased_always_on", Some(false)) && decide("parentbased_always_on", None));
        assert!(decide("parentbased_always_off", Some(true)) && !decide("parentbased_always_off", None));
        assert!(decide("parentbased_traceidratio", Some(true)) && !decide("parentbased_traceidratio", None));
        assert!(decide("always_on", Some(false)) && !decide("always_off", Some(true)));
        assert_eq!(Sampler::named(Some("jaeger_remote"), 1.0), None);
        assert_eq!(Sampler::named(None, 1.0), Sampler::named(Some("parentbased_always_on"), 0.1));
    }

    #[test]
    fn a_ratio_takes_its_share_of_traces() {
        for ratio in [0.0, 0.1, 0.5, 1.0] {
            let sampler = Sampler::named(Some("traceidratio"), ratio).unwrap();
            let sampled = (0..10_000).filter(|_| sampler.samples(fastrand::u128(..), None)).count();
            assert!((sampled as f64 / 10_000.0 - ratio).abs() < 0.03, "{sampled} at {ratio}");
        }
    }
}
