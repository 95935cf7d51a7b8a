//! What is done again and again, whoever calls or does not.

use std::time::Duration;

use tokio::{
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

use crate::{
    settings::UsageSettings,
    store::{Store, performance::Objectives, usage::Retention},
};

/// Usage comes a second or two after it was counted: a minute is complete a little later.
const MEASURED_EVERY: Duration = Duration::from_secs(20);
const FORGOTTEN_EVERY: Duration = Duration::from_mins(10);

/// Ends with the value.
#[derive(Debug)]
pub(crate) struct Background(Vec<JoinHandle<()>>);

impl Background {
    pub(crate) fn start(store: &Store, settings: &UsageSettings) -> Self {
        Self(vec![
            tokio::spawn(measure(store.clone(), settings.objectives())),
            tokio::spawn(forget(store.clone(), settings.retention())),
        ])
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

async fn measure(store: Store, objectives: Objectives) {
    let mut ticks = interval(MEASURED_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(error) = store.measure(&objectives).await {
            tracing::warn!(%error, "performance cannot be measured; trying again");
        }
    }
}

async fn forget(store: Store, retention: Retention) {
    let mut ticks = interval(FORGOTTEN_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(error) = store.forget_usage(&retention).await {
            tracing::warn!(%error, "old usage cannot be removed; trying again");
        }
    }
}
