//! What one replica does for all: the leader, until it dies and another one takes over.

use std::time::Duration;

use tokio::time::sleep;

use crate::{
    alerts::Evaluator,
    store::{Store, StoreError},
};

/// From one round to the next.
const ROUND: Duration = Duration::from_secs(1);

/// Keeps at it for as long as the process runs.
pub(crate) async fn keep(store: Store) {
    let mut leader = store.leader();
    let mut alerts = Evaluator::new(store.clone());
    let (mut events, mut looked) = (Fault::default(), Fault::default());
    loop {
        sleep(ROUND).await;
        alerts.try_store().await;
        if leader.leads().await {
            events.is_told(store.forget_events().await);
            looked.is_told(alerts.round().await);
        } else {
            alerts.forget();
        }
    }
}

/// The log is told of a fault when it begins, and not in each round.
#[derive(Debug, Default)]
struct Fault(Option<String>);

impl Fault {
    fn is_told(&mut self, done: Result<(), StoreError>) {
        let now = done.err().map(|error| error.to_string());
        if let Some(error) = now.as_ref().filter(|now| self.0.as_ref() != Some(now)) {
            tracing::warn!(error, "what the leading replica does cannot be done; trying again");
        }
        self.0 = now;
    }
}
