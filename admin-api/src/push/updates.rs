//! What nodes lack, ready to be sent: read, written and compressed once for all that lack the same.

use std::{
    collections::HashMap,
    mem,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{body::Bytes, extract::ws::Message};
use parking_lot::Mutex;
use prometheus::IntCounter;
use seiketsu_config::push::{self, Document, Frame, FrameError, Held, ToNode, Update};
use serde_json::value::RawValue;
use tokio::task::JoinError;
use uuid::Uuid;

use crate::store::{Changes, Store, StoreError, StoredDocument};

/// A node that lacks more documents gets the whole configuration: comparing would cost it more than taking all.
const MOST_CHANGES: usize = 10_000;

/// Updates up to this size are kept for nodes that ask later.
const KEPT_BYTES: usize = 1 << 20;

/// Of nodes that come back with many revisions, each another one, this many updates are remembered.
const MOST_SLOTS: usize = 64;

/// Why there is no update.
#[derive(Debug, thiserror::Error)]
pub(super) enum UpdateError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("a document in the store cannot be sent: {0}")]
    Frame(#[from] FrameError),
    #[error("an update could not be written: {0}")]
    Task(#[from] JoinError),
}

/// An update, as it goes over connections.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) nonce: u64,
    pub(super) to: Held,
    pub(super) whole: bool,
    pub(super) parts: Vec<Message>,
}

pub(super) struct Updates {
    store: Store,
    prepared: IntCounter,
    nonces: AtomicU64,
    recent: Mutex<Recent>,
}

/// Updates to the newest revision of a store, by the revision that they follow upon.
#[derive(Default)]
struct Recent {
    store: Uuid,
    newest: u64,
    slots: HashMap<Option<u64>, Slot>,
}

/// Locked while the update is being made, so that the others who want it wait for it.
type Slot = Arc<tokio::sync::Mutex<Kept>>;

#[derive(Default)]
struct Kept {
    /// A large one lives as long as somebody sends it.
    update: Weak<Prepared>,
    _small: Option<Arc<Prepared>>,
}

impl Updates {
    pub(super) fn new(store: Store, prepared: IntCounter) -> Self {
        Self { store, prepared, nonces: AtomicU64::new(1), recent: Mutex::default() }
    }

    /// What leads a node that holds this to the newest revision, or beyond.
    pub(super) async fn since(&self, held: Option<Held>, newest: u64) -> Result<Arc<Prepared>, UpdateError> {
        let held = held.filter(|held| held.store == self.store.id() && held.revision <= newest);
        let Some(held) = held else { return self.shared(None, newest).await };
        let update = self.shared(Some(held.revision), newest).await?;
        // Where nothing has changed since, the sums tell whether both mean the same; else the node sees whether the update
        // leads to the sum that it should.
        if update.to.store != held.store || update.to.revision == held.revision && update.to.sum != held.sum {
            return self.shared(None, newest).await;
        }
        Ok(update)
    }

    async fn shared(&self, after: Option<u64>, newest: u64) -> Result<Arc<Prepared>, UpdateError> {
        let slot = self.recent.lock().slot(self.store.id(), after, newest);
        let mut kept = slot.lock().await;
        if let Some(update) = kept.update.upgrade() {
            return Ok(update);
        }
        let update = Arc::new(self.prepare(after).await?);
        let bytes: usize = update.parts.iter().map(length).sum();
        *kept = Kept { update: Arc::downgrade(&update), _small: (bytes <= KEPT_BYTES).then(|| Arc::clone(&update)) };
        Ok(update)
    }

    async fn prepare(&self, after: Option<u64>) -> Result<Prepared, UpdateError> {
        let (after, changes) = match after {
            Some(revision) => match self.store.changes_since(revision, MOST_CHANGES).await? {
                Some(changes) => (after, changes),
                None => (None, self.store.whole().await?),
            },
            None => (None, self.store.whole().await?),
        };
        let nonce = self.nonces.fetch_add(1, Ordering::Relaxed);
        let to = changes.to;
        self.prepared.inc();
        // Megabytes of text, in the case of a whole configuration.
        let parts = tokio::task::spawn_blocking(move || parts(nonce, after, changes)).await??;
        Ok(Prepared { nonce, to, whole: after.is_none(), parts })
    }
}

impl Recent {
    fn slot(&mut self, store: Uuid, after: Option<u64>, newest: u64) -> Slot {
        if store != self.store {
            *self = Self { store, ..Self::default() };
        }
        if newest > self.newest || self.slots.len() >= MOST_SLOTS {
            self.slots.clear();
            self.newest = self.newest.max(newest);
        }
        Arc::clone(self.slots.entry(after).or_default())
    }
}

pub(super) fn length(message: &Message) -> usize {
    match message {
        Message::Text(text) => text.len(),
        Message::Binary(bytes) => bytes.len(),
        _ => 0,
    }
}

/// Documents in messages of about [`push::PART_BYTES`]; what stands beside them goes with the first.
fn parts(nonce: u64, after: Option<u64>, changes: Changes) -> Result<Vec<Message>, FrameError> {
    let Changes { to, head, put, mut gone } = changes;
    let mut head = head.map(document).transpose()?;
    let mut documents = put.into_iter().peekable();
    let mut parts = Vec::new();
    loop {
        let (mut put, mut bytes) = (Vec::new(), 0);
        while bytes < push::PART_BYTES
            && let Some(stored) = documents.next()
        {
            bytes += stored.content.len();
            put.push(document(stored)?);
        }
        let more = documents.peek().is_some();
        let (head, gone) = (head.take(), mem::take(&mut gone));
        let update = ToNode::Update(Box::new(Update { nonce, to, after, more, head, put, gone }));
        parts.push(message(push::write(&update)?));
        if !more {
            return Ok(parts);
        }
    }
}

fn document(stored: StoredDocument) -> Result<Document, FrameError> {
    let StoredDocument { tenant, revision, content } = stored;
    Ok(Document { tenant, revision, content: RawValue::from_string(content)? })
}

pub(super) fn message(frame: Frame) -> Message {
    match frame {
        Frame::Text(text) => Message::Text(text.into()),
        Frame::Binary(bytes) => Message::Binary(Bytes::from(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use seiketsu_config::push::Sum;

    use super::*;

    fn read(message: &Message) -> Update {
        let read = match message {
            Message::Text(text) => push::read_text(text.as_str()),
            Message::Binary(bytes) => push::read_binary(bytes),
            other => panic!("{other:?}"),
        };
        match read.unwrap() {
            ToNode::Update(update) => *update,
            other => panic!("{other:?}"),
        }
    }

    fn changes(tenants: usize, bytes: usize) -> Changes {
        let tenant = |number: usize| StoredDocument {
            tenant: Some(format!("t{number}").parse().unwrap()),
            revision: 7,
            content: format!("[\"{}\"]", "x".repeat(bytes)),
        };
        Changes {
            to: Held { store: Uuid::nil(), revision: 7, sum: Sum::default() },
            head: Some(StoredDocument { tenant: None, revision: 2, content: "{}".to_owned() }),
            put: (0..tenants).map(tenant).collect(),
            gone: vec!["former".parse().unwrap()],
        }
    }

    #[test]
    fn many_documents_go_in_parts_and_each_goes_once() {
        let parts: Vec<Update> = parts(9, Some(3), changes(10, 1 << 20)).unwrap().iter().map(read).collect();
        assert_eq!(parts.len(), 3);
        let put: Vec<_> = parts.iter().flat_map(|part| &part.put).filter_map(|put| put.tenant.clone()).collect();
        assert_eq!(put, (0..10).map(|number| format!("t{number}").parse().unwrap()).collect::<Vec<_>>());
        assert_eq!(parts.iter().map(|part| part.more).collect::<Vec<_>>(), [true, true, false]);
        assert_eq!(parts.iter().filter(|part| part.head.is_some()).count(), 1);
        assert_eq!(parts.iter().map(|part| part.gone.len()).sum::<usize>(), 1);
        assert!(parts.iter().all(|part| (part.nonce, part.after, part.to.revision) == (9, Some(3), 7)));
    }

    #[test]
    fn what_was_made_of_another_store_is_not_sent_though_the_revisions_are_the_same() {
        let mut recent = Recent::default();
        let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let slot = recent.slot(one, Some(3), 7);
        assert!(Arc::ptr_eq(&slot, &recent.slot(one, Some(3), 7)));
        let set_back = recent.slot(other, Some(3), 5);
        assert!(!Arc::ptr_eq(&slot, &set_back));
        assert!(Arc::ptr_eq(&set_back, &recent.slot(other, Some(3), 5)));
        assert!(!Arc::ptr_eq(&set_back, &recent.slot(other, Some(3), 6)));
    }

    #[test]
    fn nothing_that_changed_is_one_message_all_the_same() {
        let parts = parts(1, Some(7), Changes { head: None, gone: Vec::new(), ..changes(0, 0) }).unwrap();
        assert_eq!(parts.len(), 1);
        assert!(!read(&parts[0]).more);
    }
}
