//! What is wrong with the control plane itself: its trail, its store, and who tries to get in.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use time::OffsetDateTime;
use tokio::task::JoinHandle;

use super::Facts;
use crate::store::{
    Store, StoreError,
    alerts::{Found, RefusedLogin},
    audit::Verdict,
    replica::ReplicaLag,
    rows::RefusedRow,
    verify::Fault,
};

/// The longest window of trials.
const TRIALS_KEPT: Duration = Duration::from_hours(1);

/// Trials by whose median the store is slow.
const RECENT: usize = 10;

/// Refused logins that are kept.
const MOST_LOGINS: usize = 100_000;

/// The cursor that is written to try the store.
const TRIAL: &str = "trial";

#[derive(Debug, Default)]
pub(super) struct Service {
    trials: VecDeque<Trial>,
    logins: Logins,
    audit: Audit,
}

/// Something was written.
#[derive(Debug, Clone, Copy)]
struct Trial {
    at: Instant,
    /// None: it failed.
    took: Option<Duration>,
}

#[derive(Debug, Default)]
struct Logins {
    refused: VecDeque<RefusedLogin>,
    /// The last entry that was read; none, if none was yet.
    last: Option<u64>,
}

#[derive(Debug, Default)]
struct Audit {
    running: Option<JoinHandle<Result<Verdict, StoreError>>>,
    ended: Option<Instant>,
    verdict: Option<Verdict>,
    /// Why the last verification came to nothing.
    failed: Option<String>,
    /// A row that was refused, until a verification has ended that began after that.
    refused: Option<RefusedRow>,
    /// Whether the one that runs began after that.
    covers: bool,
    /// The last entry that told of such a row.
    told: Option<u64>,
}

/// When what came to nothing is begun again.
const AGAIN: Duration = Duration::from_mins(1);

impl Audit {
    /// Whoever meets with a row that was altered tells the trail: no need to wait until all of it is verified again.
    async fn follow(&mut self, store: &Store) -> Result<(), StoreError> {
        let last = store.last_refused_row().await?;
        let newest = last.as_ref().map_or(0, |row| row.entry);
        // What was told before this replica led is found by the verification that it begins with.
        if self.told.replace(newest).is_some_and(|told| newest > told) {
            (self.refused, self.covers, self.ended) = (last, false, None);
        }
        Ok(())
    }

    async fn end(&mut self) {
        if !self.running.as_ref().is_some_and(JoinHandle::is_finished) {
            return;
        }
        let Some(running) = self.running.take() else { return };
        self.failed = match running.await {
            Ok(Ok(verdict)) => {
                self.verdict = Some(verdict);
                None
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(format!("it ended in a fault: {error}")),
        };
        if let Some(why) = &self.failed {
            tracing::error!(why, "the audit trail cannot be verified");
        }
        self.refused.take_if(|_| self.covers);
        self.ended = self.refused.is_none().then(Instant::now);
    }

    fn begin_if_due(&mut self, store: &Store, every: Duration) {
        let pause = if self.failed.is_some() { every.min(AGAIN) } else { every };
        if self.running.is_none() && self.ended.is_none_or(|ended| ended.elapsed() >= pause) {
            let store = store.clone();
            self.running = Some(tokio::spawn(async move { store.verify_audit().await }));
            self.covers = true;
        }
    }

    fn found(&self) -> Option<String> {
        let refused = self.refused.as_ref().map(|RefusedRow { row, .. }| {
            format!("the audit trail is not intact: the row {row} was made, or altered, by somebody else")
        });
        let fault = self.verdict.as_ref().and_then(|verdict| verdict.faults.first());
        let fault =
            fault.map(|Fault { table, row, what, .. }| format!("the audit trail is not intact: {table} {row}: {what}"));
        let failed = || self.failed.as_ref().map(|why| format!("the audit trail cannot be verified: {why}"));
        refused.or(fault).or_else(failed)
    }
}

impl Service {
    pub(super) async fn try_store(&mut self, store: &Store) {
        let at = Instant::now();
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let done = store.mark(TRIAL, now.try_into().unwrap_or_default()).await;
        if let Err(error) = &done {
            tracing::warn!(%error, "a trial of the store failed");
        }
        self.trials.push_back(Trial { at, took: done.is_ok().then(|| at.elapsed()) });
        while self.trials.front().is_some_and(|trial| trial.at.elapsed() > TRIALS_KEPT) {
            self.trials.pop_front();
        }
    }
}

pub(super) fn store_writes(facts: &Facts<'_>, failures: u32, window_seconds: u32, slower_than: u32) -> Vec<Found> {
    let found = |subject: &str, summary: String| Found { subject: subject.to_owned(), tenant: None, summary };
    let trials = &facts.service.trials;
    let mut all = Vec::new();
    let window = Duration::from_secs(window_seconds.into());
    let failed = trials.iter().filter(|trial| trial.took.is_none() && trial.at.elapsed() < window).count();
    if failed >= failures as usize {
        let summary = format!("at least {failures} trials of writing to the store failed within {window_seconds} s");
        all.push(found("failed writes", summary));
    }
    let mut recent: Vec<Duration> = trials.iter().rev().filter_map(|trial| trial.took).take(RECENT).collect();
    recent.sort_unstable();
    let median = recent.get(recent.len() / 2).copied().unwrap_or_default();
    if recent.len() == RECENT && median > Duration::from_millis(slower_than.into()) {
        all.push(found("slow writes", format!("writing to the store takes longer than {slower_than} ms")));
    }
    all
}

pub(super) async fn webhook_disabled(facts: &Facts<'_>) -> Result<Vec<Found>, StoreError> {
    let disabled = facts.store.webhooks().await?.into_iter().filter_map(|webhook| {
        let reason = webhook.disabled_reason?;
        let subject = format!("webhook {}", webhook.id);
        Some(Found { subject, tenant: None, summary: format!("the webhook {} was disabled: {reason}", webhook.name) })
    });
    Ok(disabled.collect())
}

pub(super) async fn siem_stalled(facts: &Facts<'_>) -> Result<Vec<Found>, StoreError> {
    let sinks = facts.store.siem_sinks().await?.into_iter();
    let stalled = sinks.filter(|sink| sink.enabled && sink.failing_since.is_some()).map(|sink| Found {
        subject: format!("sink {}", sink.id),
        tenant: None,
        summary: format!("the sink {} does not take the audit trail", sink.name),
    });
    Ok(stalled.collect())
}

pub(super) async fn login_failures(
    facts: &mut Facts<'_>,
    count: u32,
    window_seconds: u32,
) -> Result<Vec<Found>, StoreError> {
    let Logins { refused, last } = &mut facts.service.logins;
    let new = facts.store.refused_logins(*last).await?;
    *last = Some(new.last().map_or(last.unwrap_or_default(), |login| login.entry));
    refused.extend(new);
    while refused.len() > MOST_LOGINS {
        refused.pop_front();
    }
    let since = facts.now - Duration::from_secs(window_seconds.into());
    let mut addresses: BTreeMap<&str, usize> = BTreeMap::new();
    let mut all = 0;
    for login in refused.iter().rev().take_while(|login| login.at >= since) {
        *addresses.entry(login.address.as_deref().unwrap_or("unknown")).or_default() += 1;
        all += 1;
    }
    if all <= count {
        return Ok(Vec::new());
    }
    let most = addresses.iter().max_by_key(|(_, times)| **times).map_or("unknown", |(address, _)| address);
    let summary = format!(
        "more than {count} calls without a token that holds within {window_seconds} s, most of them from {most}"
    );
    Ok(vec![Found { subject: "logins".to_owned(), tenant: None, summary }])
}

/// It takes its time: it is begun in one round and looked at in a later one.
pub(super) async fn audit_fault(facts: &mut Facts<'_>, every_minutes: u32) -> Result<Vec<Found>, StoreError> {
    let audit = &mut facts.service.audit;
    audit.follow(facts.store).await?;
    audit.end().await;
    audit.begin_if_due(facts.store, Duration::from_mins(every_minutes.into()));
    let about = |summary| Found { subject: "audit trail".to_owned(), tenant: None, summary };
    Ok(audit.found().map(about).into_iter().collect())
}

pub(super) fn replica_lag(facts: &Facts<'_>, more_than_seconds: u32) -> Vec<Found> {
    let most = Duration::from_secs(more_than_seconds.into());
    let summary = match facts.store.replica_lag() {
        Some(ReplicaLag::Unknown) => "the read replica cannot be reached, or does not follow the primary".to_owned(),
        Some(ReplicaLag::Behind(lag)) if lag > most => {
            format!("the read replica is behind by more than {more_than_seconds} s")
        }
        _ => return Vec::new(),
    };
    vec![Found { subject: "read replica".to_owned(), tenant: None, summary }]
}
