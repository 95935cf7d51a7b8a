//! Caching: what stands at the wrong layer, and sizes that keep nothing.

use super::{Findings, Rule, policies::Place};
use crate::{cache::Cache, path::At};

pub(super) fn check(at: At<'_>, cache: &Cache, place: Place<'_>, findings: &mut Findings) {
    findings.duplicates(at.key("targeted_fields"), "targeted field", &cache.targeted_fields);
    if !cache.enabled {
        return;
    }
    if cache.max_object.get() == 0 {
        let rule = Rule::Zero { what: "the size of what is kept", least: "at least 1KiB, or enabled: false" };
        findings.add(at.key("max_object"), cache.max_object, rule);
    }
    let Some(memory) = cache.memory else { return };
    let at = at.key("memory");
    if matches!(place, Place::Route(..)) {
        findings.add(at, memory, Rule::NotForRoutes { what: "the memory of the cache" });
    } else if memory < cache.max_object {
        let rule = Rule::Reversed {
            low: "max_object",
            low_value: cache.max_object.to_string(),
            high: "memory",
            high_value: memory.to_string(),
        };
        findings.add(at, memory, rule);
    }
}
