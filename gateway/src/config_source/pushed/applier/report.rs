//! Telling what is in force and what is not: to the control plane, in the log, in metrics and in the status.

use std::time::Instant;

use seiketsu_config::{
    push::{FrameError, Refused},
    values::Id,
};

use super::{
    super::super::{reload::unix_seconds, status::ReloadStatus},
    Applier, MOST_SHOWN,
    step::Outcome,
};
use crate::telemetry::metrics::Reload;

/// Errors of one document that are told.
const MOST_ERRORS: usize = 20;

/// Errors of one document, and what stands of each, that are told to the control plane; so many documents with their
/// errors, so many by name, and of the rest how many there are. However much is refused, the answer stays far below what
/// a message may be.
const MOST_TOLD_ERRORS: usize = 5;
const MOST_ERROR_BYTES: usize = 1000;
const MOST_EXPLAINED: usize = 100;
const MOST_NAMED: usize = 10_000;

impl Applier {
    /// A message that cannot be read changes nothing.
    pub(in super::super) fn refuse_message(&self, error: &FrameError) {
        self.shared.metrics.node.control_plane.updates.count(Reload::Refused);
        tracing::error!(%error, "a message of the control plane cannot be read");
    }

    /// What the control plane is told of what is refused, and how much more is.
    pub(in super::super) fn told_refused(&self) -> (Vec<Refused>, u64) {
        let head = (!self.head_refused.is_empty()).then_some((None, &self.head_refused));
        let tenants = self.refused.iter().filter_map(|id| {
            let held = self.holding.tenants.get(id)?;
            Some((Some(id.clone()), &held.refused))
        });
        told(head.into_iter().chain(tenants))
    }

    pub(super) fn report(&mut self, outcome: &Outcome, began: Instant) {
        let errors_of = |id: &Id| self.holding.tenants.get(id).into_iter().flat_map(|held| &held.refused);
        let head = self.head_refused.iter().filter(|_| outcome.head_newly_refused);
        for error in head.chain(outcome.newly_refused.iter().take(MOST_SHOWN).flat_map(errors_of)) {
            tracing::error!("configuration refused: {error}");
        }
        let omitted = outcome.newly_refused.len().saturating_sub(MOST_SHOWN);
        if omitted > 0 {
            tracing::error!(omitted, "configuration refused: so many more tenants");
        }
        let mut errors: Vec<String> = self.node_certificates.iter().chain(&self.head_refused).cloned().collect();
        errors.extend(self.refused.iter().take(MOST_SHOWN).flat_map(errors_of).cloned());
        let omitted = self.refused.len().saturating_sub(MOST_SHOWN);
        if omitted > 0 {
            errors.push(format!("and {omitted} more tenants"));
        }
        let snapshot = self.shared.live.load();
        let (revision, tenants) = (snapshot.revision(), snapshot.tenant_count());
        let metrics = &self.shared.metrics.node;
        let refused = self.refused.len() + usize::from(!self.head_refused.is_empty());
        metrics.control_plane.refused.set(i64::try_from(refused).unwrap_or(i64::MAX));
        if outcome.changed {
            self.applied_at = unix_seconds();
            let (changes, took) = (outcome.tenants, began.elapsed());
            tracing::info!(revision, tenants, changes, refused, ?took, "configuration applied");
        }
        if outcome.changed || !errors.is_empty() {
            let result = match (errors.is_empty(), outcome.changed) {
                (true, _) => Reload::Applied,
                (false, true) => Reload::Partial,
                (false, false) => Reload::Refused,
            };
            metrics.config_reloaded(result, revision, unix_seconds() as f64);
        }
        metrics.config_read(0, outcome.compiled);
        self.status.set(ReloadStatus {
            loaded: self.loaded,
            revision,
            tenants,
            from_last_known_good: self.from_kept,
            last_known_good_error: self.keep_error.clone(),
            lost: self.lost.iter().take(MOST_SHOWN).map(ToString::to_string).collect(),
            errors,
            applied_at: self.applied_at,
        });
    }
}

pub(super) fn to_strings(errors: &seiketsu_config::error::ConfigErrors) -> Vec<String> {
    let mut told: Vec<String> = errors.iter().take(MOST_ERRORS).map(ToString::to_string).collect();
    let omitted = errors.iter().count().saturating_sub(MOST_ERRORS) + errors.omitted();
    if omitted > 0 {
        told.push(format!("and {omitted} more"));
    }
    told
}

fn told<'a>(all: impl Iterator<Item = (Option<Id>, &'a Vec<String>)>) -> (Vec<Refused>, u64) {
    let (mut named, mut more) = (Vec::new(), 0);
    for (tenant, errors) in all {
        if named.len() == MOST_NAMED {
            more += 1;
            continue;
        }
        let explained = if named.len() < MOST_EXPLAINED { MOST_TOLD_ERRORS } else { 0 };
        named.push(Refused { tenant, errors: errors.iter().take(explained).map(|error| shortened(error)).collect() });
    }
    (named, more)
}

fn shortened(error: &str) -> String {
    match error.floor_char_boundary(MOST_ERROR_BYTES) {
        end if end < error.len() => format!("{}…", &error[..end]),
        _ => error.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use seiketsu_config::push::{Applied, Frame, FromNode, MOST_SAID_BYTES, write};

    use super::*;

    #[test]
    fn however_much_is_refused_and_for_whatever_reason_the_answer_stays_small() {
        let errors = vec!["é\u{1}".repeat(1 << 14); 20];
        let ids: Vec<Id> = (0..200_000).map(|number| format!("{number:0>63}").parse().unwrap()).collect();
        let (refused, refused_more) = told(ids.iter().map(|id| (Some(id.clone()), &errors)));
        assert_eq!((refused.len(), refused_more), (MOST_NAMED, 190_000));
        assert!(refused[0].errors[0].ends_with('…') && refused[MOST_EXPLAINED].errors.is_empty());
        let applied = Applied { nonce: 1, revision: 1, refused, refused_more, lost: false };
        let length = serde_json::to_string(&applied).unwrap().len();
        assert!(length < MOST_SAID_BYTES, "{length}");
        assert!(matches!(write(&FromNode::Applied(applied)).unwrap(), Frame::Binary(_)));
    }
}
