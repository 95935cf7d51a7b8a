//! The snapshot that is in force, and where former ones go.
//!
//! A request borrows the snapshot for as long as it takes to find its tenant, and then holds on to the
//! tenant alone. So a WebSocket of an hour keeps one tenant's former state in memory and not a hundred
//! thousand, and requests of different tenants do not share a reference count.
//!
//! Dropping a snapshot can mean to drop every tenant in it, which takes long. It never happens on a
//! request: a former snapshot goes to a thread that keeps a reference until nobody else has one. Whoever
//! drops its reference before is not the last, and the last to go is always that thread. What a request
//! may come to drop is its own tenant, if that was replaced meanwhile.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError, Sender},
    },
    thread,
    time::Duration,
};

use arc_swap::{ArcSwap, Guard};

use super::{
    hosts::HostError,
    snapshot::{Snapshot, TenantEntry},
};

/// How often former snapshots that are still in use are looked at.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// The snapshot in force.
#[derive(Debug)]
pub struct Live<T> {
    current: ArcSwap<Snapshot<T>>,
    former: Sender<Arc<Snapshot<T>>>,
}

impl<T: Send + Sync + 'static> Live<T> {
    /// Starts with this snapshot.
    ///
    /// # Errors
    /// When the thread that drops former snapshots cannot be started.
    pub fn new(first: Snapshot<T>) -> io::Result<Self> {
        let (former, receiver) = mpsc::channel();
        thread::Builder::new().name("snapshot-reaper".to_owned()).spawn(move || drop_when_unused(&receiver))?;
        Ok(Self { current: ArcSwap::from_pointee(first), former })
    }

    /// The tenant of a raw `Host` or `:authority` value, to be held by the request until its end.
    pub fn find(&self, raw_host: &[u8]) -> Result<Option<Arc<TenantEntry<T>>>, HostError> {
        Ok(self.current.load().find(raw_host)?.map(Arc::clone))
    }

    /// The snapshot in force, for a short time: not across an `await`.
    pub fn load(&self) -> Guard<Arc<Snapshot<T>>> {
        self.current.load()
    }

    /// Puts another snapshot in force. Requests that have found their tenant go on with that.
    ///
    /// There may be one writer only: with several, one undoes what another did.
    pub fn store(&self, next: Snapshot<T>) {
        let former = self.current.swap(Arc::new(next));
        // The thread ends only when this sender is gone. Had it died, the snapshot would be dropped here.
        let _ = self.former.send(former);
    }
}

/// Keeps what it receives until nobody else has a reference to it, then drops it.
fn drop_when_unused<S>(receiver: &mpsc::Receiver<Arc<S>>) {
    let mut former: Vec<Arc<S>> = Vec::new();
    loop {
        // Nobody can take a new reference to a former snapshot, so one that is unused stays so.
        former.retain(|snapshot| Arc::strong_count(snapshot) > 1);
        let received = if former.is_empty() {
            receiver.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            receiver.recv_timeout(RETRY_INTERVAL)
        };
        match received {
            Ok(snapshot) => former.push(snapshot),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{
        super::snapshot::{Change, ContentHash},
        *,
    };

    /// Tells on which thread it was dropped.
    #[derive(Debug)]
    struct Payload(Sender<Option<String>>);

    impl Drop for Payload {
        fn drop(&mut self) {
            let _ = self.0.send(thread::current().name().map(str::to_owned));
        }
    }

    const REAPER: Option<&str> = Some("snapshot-reaper");

    fn snapshot(revision: u64, dropped: &Sender<Option<String>>) -> Snapshot<Payload> {
        let host = "acme.example".parse().unwrap();
        let acme = TenantEntry::new("acme".parse().unwrap(), [host], ContentHash::of(b""), Payload(dropped.clone()));
        Snapshot::empty().with_changes(revision, [Change::Put(acme)]).unwrap()
    }

    #[test]
    fn a_stored_snapshot_is_in_force_at_once() {
        let (dropped, _receiver) = mpsc::channel();
        let live = Live::new(Snapshot::empty()).unwrap();
        assert!(live.find(b"acme.example").unwrap().is_none());
        live.store(snapshot(7, &dropped));
        assert_eq!(live.load().revision(), 7);
        assert_eq!(live.find(b"ACME.example:80").unwrap().unwrap().id().as_str(), "acme");
        assert!(live.find(b"").is_err());
    }

    #[test]
    fn a_former_snapshot_is_dropped_by_the_reaper() {
        let (dropped, receiver) = mpsc::channel();
        let live = Live::new(snapshot(1, &dropped)).unwrap();
        live.store(snapshot(2, &dropped));
        assert_eq!(receiver.recv().unwrap().as_deref(), REAPER);
    }

    #[test]
    fn a_reader_that_is_the_last_does_not_pay_for_the_drop() {
        let (dropped, receiver) = mpsc::channel();
        let live = Live::new(snapshot(1, &dropped)).unwrap();
        let borrowed = live.load();
        let owned = Guard::into_inner(live.load());
        live.store(snapshot(2, &dropped));
        assert_eq!((borrowed.revision(), owned.revision()), (1, 1));
        assert!(receiver.try_recv().is_err());
        drop(borrowed);
        drop(owned);
        assert_eq!(receiver.recv().unwrap().as_deref(), REAPER);
    }

    #[test]
    fn a_request_keeps_its_tenant_and_nothing_else() {
        let (dropped, receiver) = mpsc::channel();
        let live = Live::new(snapshot(1, &dropped)).unwrap();
        let tenant = live.find(b"acme.example").unwrap().unwrap();
        let former = Arc::downgrade(&live.load());
        live.store(snapshot(2, &dropped));
        // The snapshot is gone once its reference to the tenant is.
        while former.strong_count() > 0 || Arc::strong_count(&tenant) > 1 {
            thread::yield_now();
        }
        assert!(receiver.try_recv().is_err(), "the tenant is still in use");
        drop(tenant);
        assert_ne!(receiver.recv().unwrap().as_deref(), REAPER);
    }

    #[test]
    fn readers_see_whole_snapshots_while_a_writer_replaces_them() {
        let live = Live::new(Snapshot::<u64>::empty()).unwrap();
        let entry = |id: &str, revision| {
            let host = format!("{id}.example").parse().unwrap();
            Change::Put(TenantEntry::new(id.parse().unwrap(), [host], ContentHash::of(b""), revision))
        };
        live.store(Snapshot::empty().with_changes(1, [entry("a", 1), entry("b", 1)]).unwrap());
        thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for revision in 2..1_000 {
                    let next = live.load().with_changes(revision, [entry("a", revision), entry("b", revision)]);
                    live.store(next.unwrap());
                }
            });
            while !writer.is_finished() {
                let snapshot = live.load();
                for host in [b"a.example", b"b.example"] {
                    assert_eq!(*snapshot.find(host).unwrap().unwrap().compiled(), snapshot.revision());
                }
            }
        });
        assert_eq!(live.load().revision(), 999);
    }
}
