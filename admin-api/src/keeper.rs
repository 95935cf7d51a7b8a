//! What one replica does for all: the leader, until it dies and another one takes over.

use std::time::Duration;

use tokio::time::sleep;

use crate::{
    alerts::Evaluator,
    outbound::Outbound,
    siem::Exporter,
    store::{Store, StoreError},
};

/// From one round to the next.
const ROUND: Duration = Duration::from_secs(1);

/// Keeps at it for as long as the process runs.
pub(crate) async fn keep(store: Store, outbound: Outbound) {
    let mut leader = store.leader();
    let mut alerts = Evaluator::new(store.clone());
    let mut exporter = Exporter::default();
    let (mut events, mut looked, mut sent) = (Fault::default(), Fault::default(), Fault::default());
    loop {
        sleep(ROUND).await;
        alerts.try_store().await;
        if leader.leads().await {
            events.is_told(tell(&store).await);
            looked.is_told(alerts.round().await);
            sent.is_told(exporter.round(&store, &outbound).await);
        } else {
            exporter.stop();
            alerts.forget();
        }
    }
}

/// What is forgotten was told to webhooks before.
async fn tell(store: &Store) -> Result<(), StoreError> {
    if store.fan_out().await? { store.forget_events().await } else { Ok(()) }
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
