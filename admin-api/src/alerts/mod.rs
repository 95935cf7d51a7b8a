//! Looks at what rules watch, round by round, and opens and resolves alerts. One replica does: the leader.

mod condition;
mod expiry;
mod later;
mod nodes;
mod quotas;
mod service;
mod traffic;
mod walk;

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use seiketsu_config::values::Id;
use time::OffsetDateTime;
use uuid::Uuid;

pub use self::{
    condition::{Condition, FirstRule, first_rules},
    traffic::StatusClass,
};
use self::{expiry::Keys, quotas::Quotas, service::Service, traffic::Traffic, walk::Tenants};
use crate::store::{
    Store, StoreError,
    alert_rules::AlertRule,
    alerts::{Alert, Found, Turn},
    nodes::NodeRow,
};

/// Of one rule, no more subjects than these have an alert at a time: the first by name.
const MOST_SUBJECTS: usize = 200;

/// Alerts that are opened in one round, and that are resolved.
const MOST_TURNED: usize = 100;

/// What is known in a round.
pub(crate) struct Facts<'a> {
    store: &'a Store,
    now: OffsetDateTime,
    nodes: Vec<NodeRow>,
    newest: u64,
    keys: &'a mut Keys,
    service: &'a mut Service,
    quotas: &'a mut Quotas,
    traffic: &'a mut Traffic,
}

/// What a rule finds right now.
#[derive(Debug, Default)]
pub(super) struct Findings {
    found: Vec<Found>,
    /// Of whom it is not known whether it is so.
    unknown: Arc<Tenants>,
}

impl From<Vec<Found>> for Findings {
    fn from(found: Vec<Found>) -> Self {
        Self { found, unknown: Arc::default() }
    }
}

/// Rule and subject, and since when it is so, what has to last for an alert; and of which tenant.
type Since = HashMap<(Uuid, String), (Instant, Option<Id>)>;

/// From round to round.
pub(crate) struct Evaluator {
    store: Store,
    since: Since,
    keys: Keys,
    service: Service,
    quotas: Quotas,
    traffic: Traffic,
}

impl Evaluator {
    pub(crate) fn new(store: Store) -> Self {
        Self {
            store,
            since: HashMap::new(),
            keys: Keys::default(),
            service: Service::default(),
            quotas: Quotas::default(),
            traffic: Traffic::default(),
        }
    }

    /// Another replica leads: what was seen here is old when this one does again.
    pub(crate) fn forget(&mut self) {
        self.since.clear();
        (self.quotas, self.traffic) = (Quotas::default(), Traffic::default());
    }

    /// Every replica does: whichever leads when the store is back knows that it was away.
    pub(crate) async fn try_store(&mut self) {
        self.service.try_store(&self.store).await;
    }

    pub(crate) async fn round(&mut self) -> Result<(), StoreError> {
        let rules = self.store.watched_rules().await?;
        let unresolved = self.store.unresolved_alerts().await?;
        let newest = *self.store.newest().borrow();
        // That one thing cannot be read is no reason to look at nothing else, the audit trail least of all.
        let (nodes, mut failed) = match self.store.nodes().await {
            Ok(nodes) => (Some(nodes), None),
            Err(error) => (None, Some(error)),
        };
        let are_nodes_known = nodes.is_some();
        let mut facts = Facts {
            store: &self.store,
            now: OffsetDateTime::now_utc(),
            nodes: nodes.unwrap_or_default(),
            newest,
            keys: &mut self.keys,
            service: &mut self.service,
            quotas: &mut self.quotas,
            traffic: &mut self.traffic,
        };
        let now = facts.now;
        let quotas = facts.quotas.turn(&self.store, now, newest).await;
        let traffic = facts.traffic.turn(&self.store).await;
        failed = quotas.and(traffic).err().or(failed);
        let mut looked = Vec::new();
        for rule in rules {
            if rule.condition.is_about_nodes() && !are_nodes_known {
                looked.push((rule, None));
                continue;
            }
            // What it has found before stays while it is not known whether it is so still.
            let mut found = match rule.condition.look(&mut facts, rule.tenant.as_ref()).await {
                Ok(found) => found,
                Err(error) => {
                    failed = Some(error);
                    None
                }
            };
            if let Some(Findings { found, .. }) = &mut found {
                found.retain(|found| rule.tenant.is_none() || found.tenant == rule.tenant);
                found.sort_unstable_by(|one, other| one.subject.cmp(&other.subject));
                found.dedup_by(|one, other| one.subject == other.subject);
                found.truncate(MOST_SUBJECTS);
            }
            looked.push((rule, found));
        }
        let turn = turn(looked, unresolved, &mut self.since, Instant::now()).most();
        if !turn.open.is_empty() || !turn.resolve.is_empty() {
            for (rule, found) in &turn.open {
                tracing::warn!(rule = %rule.name, subject = found.subject, summary = found.summary, "an alert opens");
            }
            self.store.turn_alerts(turn).await?;
        }
        failed.map_or(Ok(()), Err)
    }
}

impl Turn {
    /// As much as fits into one transaction, the worst first; the rest is found again in the next round.
    fn most(mut self) -> Self {
        self.open.sort_by_key(|(rule, _)| Reverse(rule.severity));
        self.open.truncate(MOST_TURNED);
        self.resolve.truncate(MOST_TURNED);
        self
    }
}

/// What is to be opened and resolved: `looked` has what each rule finds right now, none where that is not known. Of a tenant
/// of whom it is not known, nothing is.
fn turn(looked: Vec<(AlertRule, Option<Findings>)>, unresolved: Vec<Alert>, since: &mut Since, now: Instant) -> Turn {
    let there: HashSet<(Uuid, &str)> = unresolved.iter().map(|alert| (alert.rule_id, &*alert.subject)).collect();
    // None: of all.
    let mut unknown: HashMap<Uuid, Option<Arc<Tenants>>> = HashMap::new();
    let mut seen = HashSet::new();
    let mut open = Vec::new();
    for (rule, found) in looked {
        unknown.insert(rule.id, found.as_ref().map(|found| Arc::clone(&found.unknown)));
        let lasting = Duration::from_secs(rule.condition.for_seconds().into());
        for found in found.unwrap_or_default().found {
            let key = (rule.id, found.subject.clone());
            let (begun, _) = since.entry(key.clone()).or_insert_with(|| (now, found.tenant.clone()));
            if now.duration_since(*begun) >= lasting && !there.contains(&(rule.id, &*found.subject)) {
                open.push((rule.clone(), found));
            }
            seen.insert(key);
        }
    }
    // Rules that are gone find nothing more.
    let is_unknown = |rule: &Uuid, tenant: Option<&Id>| match unknown.get(rule) {
        None => false,
        Some(None) => true,
        Some(Some(tenants)) => tenant.is_some_and(|tenant| tenants.has(tenant.as_str())),
    };
    since.retain(|key, (_, tenant)| seen.contains(key) || is_unknown(&key.0, tenant.as_ref()));
    let is_over = |alert: &Alert| {
        !is_unknown(&alert.rule_id, alert.tenant.as_ref()) && !seen.contains(&(alert.rule_id, alert.subject.clone()))
    };
    drop(there);
    Turn { open, resolve: unresolved.into_iter().filter(is_over).collect() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::store::{alert_rules::Severity, alerts::AlertState};

    fn rule(id: u128, for_seconds: u32) -> AlertRule {
        AlertRule {
            id: Uuid::from_u128(id),
            name: "r".parse().unwrap(),
            condition: Condition::NodeNotReady { for_seconds },
            severity: Severity::Warning,
            tenant: None,
            enabled: true,
            revision: 1,
            created_at: OffsetDateTime::UNIX_EPOCH,
        }
    }

    fn found(subject: &str) -> Found {
        Found { subject: subject.to_owned(), tenant: None, summary: String::new() }
    }

    fn alert(rule: &AlertRule, found: Found) -> Alert {
        Alert {
            id: Uuid::nil(),
            rule_id: rule.id,
            rule: rule.name.clone(),
            kind: String::new(),
            severity: rule.severity,
            subject: found.subject,
            tenant: None,
            state: AlertState::Open,
            summary: String::new(),
            opened_at: OffsetDateTime::UNIX_EPOCH,
            acknowledged_at: None,
            acknowledged_by: None,
            resolved_at: None,
        }
    }

    #[test]
    fn the_worst_is_opened_first_and_the_rest_in_the_rounds_after() {
        let rule = |severity| AlertRule { severity, ..rule(1, 0) };
        let many = (0..2 * MOST_TURNED).map(|subject| (rule(Severity::Warning), found(&subject.to_string())));
        let worst = (rule(Severity::Critical), found("the worst"));
        let resolve = vec![alert(&rule(Severity::Info), found("over")); 2 * MOST_TURNED];
        let turn = Turn { open: many.chain([worst]).collect(), resolve }.most();
        assert_eq!((turn.open.len(), turn.resolve.len()), (MOST_TURNED, MOST_TURNED));
        assert_eq!(turn.open[0].1.subject, "the worst");
    }

    #[test]
    fn of_whom_it_is_not_known_nothing_opens_and_nothing_ends() {
        let of = |tenant: &str| Found { tenant: Some(tenant.parse().unwrap()), ..found(tenant) };
        let rule = rule(1, 0);
        let there = ["acme", "globex", "initech"]
            .map(|tenant| Alert { tenant: Some(tenant.parse().unwrap()), ..alert(&rule, of(tenant)) });
        let unknown = Tenants { names: ["globex".to_owned()].into(), ..Tenants::default() };
        let found = Findings { found: vec![of("acme"), of("umbrella")], unknown: Arc::new(unknown) };
        let mut since = Since::new();
        let turn = turn(vec![(rule, Some(found))], there.to_vec(), &mut since, Instant::now());
        assert_eq!(turn.open.iter().map(|(_, found)| &*found.subject).collect::<Vec<_>>(), ["umbrella"]);
        assert_eq!(turn.resolve.iter().map(|alert| &*alert.subject).collect::<Vec<_>>(), ["initech"]);
    }

    proptest! {
        /// Each round tells for each of three subjects whether it is so, or that nothing is known.
        #[test]
        fn there_is_one_alert_for_what_lasts_and_none_for_what_does_not(
            rounds in prop::collection::vec(prop::option::weighted(0.8, prop::array::uniform3(any::<bool>())), 1..40),
            lasting in 0_u32..4,
        ) {
            let rule = rule(1, lasting);
            let start = Instant::now();
            let (mut since, mut there) = (HashMap::new(), Vec::<Alert>::new());
            let mut begun: [Option<u64>; 3] = [None; 3];
            for (second, round) in (0_u64..).zip(rounds) {
                let now = start + Duration::from_secs(second);
                let so = round.map(|so| -> Vec<Found> {
                    (0..3).filter(|subject| so[*subject]).map(|subject| found(&subject.to_string())).collect()
                });
                let turn = turn(vec![(rule.clone(), so.map(Findings::from))], there.clone(), &mut since, now);
                there.retain(|alert| !turn.resolve.contains(alert));
                there.extend(turn.open.into_iter().map(|(rule, found)| alert(&rule, found)));
                let Some(so) = round else { continue };
                for subject in 0..3 {
                    begun[subject] = so[subject].then(|| begun[subject].unwrap_or(second));
                    let expected = usize::from(begun[subject].is_some_and(|begun| second - begun >= u64::from(lasting)));
                    let open = there.iter().filter(|alert| alert.subject == subject.to_string()).count();
                    prop_assert_eq!(open, expected, "subject {} in second {}", subject, second);
                }
            }
            // Without the rule, all are over.
            prop_assert_eq!(turn(Vec::new(), there.clone(), &mut since, start).resolve.len(), there.len());
        }
    }
}
