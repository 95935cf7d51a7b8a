//! How the store stands, as far as this process knows; and that it was set back.
//!
//! A store that is restored from a backup, or that has lost its last changes with a server, gives revisions again that it
//! had given before. Nodes hold what they were given first, and numbers do not show it: such a store is another store from
//! then on, and gets an id of its own. Whatever was held of the former one means nothing any more.

use parking_lot::Mutex;
use sea_orm::{EntityTrait, QuerySelect};
use seiketsu_config::push::Held;
use tokio::sync::watch;
use uuid::Uuid;

use super::{
    Author, PATIENCE, Store, StoreError, audit,
    entities::control::{self, Column},
    number, within,
};

/// How the audit trail calls it.
pub(super) const STORE_SET_BACK: &str = "store_set_back";

pub(super) struct Known {
    state: Mutex<Held>,
    newest: watch::Sender<u64>,
    store: watch::Sender<Uuid>,
}

impl Known {
    pub(super) fn new(state: Held) -> Self {
        let (newest, store) = (watch::Sender::new(state.revision), watch::Sender::new(state.store));
        Self { state: Mutex::new(state), newest, store }
    }

    fn state(&self) -> Held {
        *self.state.lock()
    }

    /// The store stands like this, or did a moment ago. Whether that goes on from what is known.
    fn learn(&self, state: Held) -> bool {
        let mut known = self.state.lock();
        if state.store != known.store || is_behind(state, *known) {
            return false;
        }
        self.set(&mut known, state);
        true
    }

    /// The store stands like this, whatever was known: nobody else can write meanwhile.
    fn turn_to(&self, state: Held) {
        self.set(&mut self.state.lock(), state);
    }

    fn set(&self, known: &mut Held, state: Held) {
        *known = state;
        let update = |revision: &mut u64| std::mem::replace(revision, state.revision) != state.revision;
        self.newest.send_if_modified(update);
        self.store.send_if_modified(|store| std::mem::replace(store, state.store) != state.store);
    }
}

/// Of one store.
fn is_behind(state: Held, known: Held) -> bool {
    state.revision < known.revision || state.revision == known.revision && state.sum != known.sum
}

pub(super) fn state_of(control: &control::Model) -> Result<Held, StoreError> {
    state(control.store, control.revision, &control.sum)
}

fn state(store: Uuid, revision: i64, sum: &str) -> Result<Held, StoreError> {
    let sum = sum.parse().map_err(|why| StoreError::corrupt("the sum of all documents", &why))?;
    Ok(Held { store, revision: number(revision), sum })
}

impl Store {
    /// Which store this is. Revisions of another one mean nothing.
    pub fn id(&self) -> Uuid {
        self.0.known.state().store
    }

    /// Changes when this is another store than before.
    pub fn other_store(&self) -> watch::Receiver<Uuid> {
        self.0.known.store.subscribe()
    }

    /// The newest revision that this process knows of.
    pub fn newest(&self) -> watch::Receiver<u64> {
        self.0.known.newest.subscribe()
    }

    /// Looks how the store stands, and whether it was set back.
    pub async fn look(&self) -> Result<(), StoreError> {
        within(PATIENCE, async {
            let read = control::Entity::find().select_only().columns([Column::Store, Column::Revision, Column::Sum]);
            let read: Option<(Uuid, i64, String)> = read.into_tuple().one(&self.0.database).await?;
            let (store, revision, sum) =
                read.ok_or_else(|| StoreError::corrupt("the control row", &"it is missing"))?;
            if self.0.known.learn(state(store, revision, &sum)?) { Ok(()) } else { self.settle().await }
        })
        .await
    }

    /// What was read may only have been old. It is certain while nobody else writes.
    async fn settle(&self) -> Result<(), StoreError> {
        let mut writing = self.writing().await?;
        let (found, known) = (state_of(&writing.control)?, self.0.known.state());
        if found.store != known.store {
            tracing::warn!(store = %found.store, former = %known.store, "this is another store than before");
            self.0.known.turn_to(found);
            return Ok(());
        }
        if self.0.known.learn(found) {
            return Ok(());
        }
        let store = Uuid::now_v7();
        tracing::warn!(
            found = found.revision, known = known.revision, %store,
            "the store was set back: it gets another id, and all nodes are sent the whole configuration"
        );
        writing.control.store = store;
        let by = Author {
            id: None,
            name: "control-plane".to_owned(),
            address: None,
            request: Uuid::now_v7().to_string(),
            action: STORE_SET_BACK,
        };
        let entry = audit::Entry::done().with("known", known.revision).with("found", found.revision);
        writing.audit(&by, entry.with("store", store.to_string())).await?;
        writing.finish().await
    }

    /// A change was committed, and nothing has been written since.
    pub(super) fn learn(&self, state: Held) {
        let known = &self.0.known;
        if known.learn(state) {
            return;
        }
        if state.store == known.state().store {
            self.0.look_again.notify_one();
        } else {
            known.turn_to(state);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use seiketsu_config::push::Sum;

    use super::*;

    #[test]
    fn only_what_goes_on_from_what_is_known_is_believed_at_once() {
        let held = |store, revision, of: &str| Held { store: Uuid::from_u128(store), revision, sum: Sum::of(None, of) };
        let known = Known::new(held(1, 5, "a"));
        let mut newest = known.newest.subscribe();
        assert!(known.learn(held(1, 5, "a")) && !newest.has_changed().unwrap());
        for other in [held(1, 4, "a"), held(1, 5, "b"), held(2, 6, "a")] {
            assert!(!known.learn(other), "{other:?}");
            assert_eq!(known.state(), held(1, 5, "a"));
        }
        assert!(known.learn(held(1, 6, "b")));
        assert_eq!(*newest.borrow_and_update(), 6);
        let other = known.store.subscribe();
        known.turn_to(held(2, 3, "a"));
        assert_eq!((*newest.borrow_and_update(), other.has_changed().unwrap()), (3, true));
    }
}
