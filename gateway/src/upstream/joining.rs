//! One new connection at a time where many requests can share it.
//!
//! Pingora looks for an HTTP/2 connection with room before it makes a new one, but not for one that is just
//! being made: a hundred simultaneous first calls would make a hundred. So requests that would need a new
//! connection wait for the one that is under way, and then find it.
//!
//! Waiting is never much worse than not waiting: it ends with the time that a connection may take, and if the
//! connection fails, all that wait go on at once and on their own.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use super::peer::H2_STREAMS;

/// What is known of the connections to each endpoint. One for each worker, as connections are.
#[derive(Debug, Default)]
pub(crate) struct Joining(Arc<Mutex<HashMap<u64, Shared, RandomState>>>);

/// The connections of one kind: those that Pingora would reuse for the same requests.
#[derive(Debug, Default)]
struct Shared {
    /// Requests that have, or are about to get, a stream on one of them.
    requests: u32,
    /// For how many there is room. Too high when one of them has ended, which costs nothing but the waiting.
    room: u32,
    making: Option<Arc<Making>>,
}

/// A connection that is being made.
#[derive(Debug, Default)]
struct Making {
    ended: Notify,
    outcome: AtomicU8,
}

const UNDER_WAY: u8 = 0;
const OVER: u8 = 1;
const FAILED: u8 = 2;

/// The place of one request on a connection, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    joining: Arc<Mutex<HashMap<u64, Shared, RandomState>>>,
    kind: u64,
    /// The connection that this request makes and others wait for.
    making: Option<Arc<Making>>,
}

impl Joining {
    /// Waits until there is room on a connection, or nobody else is making one; not longer than `patience`.
    pub(crate) async fn place(&self, kind: u64, patience: Duration) -> Place {
        let deadline = Instant::now() + patience;
        loop {
            let making = match self.try_place(kind) {
                Ok(place) => return place,
                Err(making) => making,
            };
            let ended = making.ended.notified();
            let wait = async {
                let mut ended = std::pin::pin!(ended);
                // From here on no notification is missed, so looking once is enough.
                ended.as_mut().enable();
                if making.outcome.load(Ordering::Acquire) == UNDER_WAY {
                    ended.await;
                }
            };
            let waited = timeout_at(deadline, wait).await;
            if waited.is_err() || making.outcome.load(Ordering::Acquire) == FAILED {
                return self.place_anyway(kind);
            }
        }
    }

    fn try_place(&self, kind: u64) -> Result<Place, Arc<Making>> {
        let mut kinds = self.0.lock();
        let shared = kinds.entry(kind).or_default();
        let making = if shared.requests < shared.room {
            None
        } else if let Some(making) = &shared.making {
            return Err(making.clone());
        } else {
            let making = Arc::new(Making::default());
            shared.making = Some(making.clone());
            Some(making)
        };
        shared.requests += 1;
        Ok(Place { joining: self.0.clone(), kind, making })
    }

    fn place_anyway(&self, kind: u64) -> Place {
        self.0.lock().entry(kind).or_default().requests += 1;
        Place { joining: self.0.clone(), kind, making: None }
    }
}

impl Place {
    /// There is a connection; `reused`: it was there before.
    pub(crate) fn connected(&mut self, reused: bool) {
        if let Some(shared) = self.joining.lock().get_mut(&self.kind)
            && (!reused || shared.room == 0)
        {
            shared.room = shared.room.saturating_add(H2_STREAMS);
        }
        self.end(OVER);
    }

    pub(crate) fn failed(&mut self) {
        self.end(FAILED);
    }

    fn end(&mut self, outcome: u8) {
        let Some(making) = self.making.take() else { return };
        if let Some(shared) = self.joining.lock().get_mut(&self.kind) {
            shared.making = None;
        }
        making.outcome.store(outcome, Ordering::Release);
        making.ended.notify_waiters();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // A request that was given up in between says nothing: the next one makes the connection.
        self.end(OVER);
        if let Entry::Occupied(mut kind) = self.joining.lock().entry(self.kind) {
            let shared = kind.get_mut();
            shared.requests = shared.requests.saturating_sub(1);
            // Nobody is left who keeps the connections in use: they may end at any time.
            if shared.requests == 0 {
                kind.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, future::join_all};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn kinds(joining: &Joining) -> usize {
        joining.0.lock().len()
    }

    #[tokio::test(start_paused = true)]
    async fn many_requests_make_as_many_connections_as_they_need() {
        let joining = Arc::new(Joining::default());
        let made = Arc::new(Mutex::new(0));
        let requests = (0..250).map(|_| {
            let (joining, made) = (joining.clone(), made.clone());
            tokio::spawn(async move {
                let mut place = joining.place(7, PATIENCE).await;
                let makes = place.making.is_some();
                if makes {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    *made.lock() += 1;
                }
                place.connected(!makes);
                tokio::time::sleep(Duration::from_secs(1)).await;
            })
        });
        join_all(requests.collect::<Vec<_>>()).await;
        assert_eq!(*made.lock(), 3);
        assert_eq!(kinds(&joining), 0, "nothing is kept when nobody is there");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_lets_all_others_go_at_once() {
        let joining = Joining::default();
        let mut first = joining.place(7, PATIENCE).await;
        let mut others: Vec<_> = (0..10).map(|_| Box::pin(joining.place(7, PATIENCE))).collect();
        assert!(others.iter_mut().all(|other| other.as_mut().now_or_never().is_none()), "they wait");
        assert!(joining.place(8, PATIENCE).now_or_never().is_some(), "not for a connection of another kind");
        first.failed();
        let others: Vec<_> = others.into_iter().filter_map(FutureExt::now_or_never).collect();
        assert_eq!(others.len(), 10);
        drop((first, others));
        assert_eq!(kinds(&joining), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_has_an_end_and_whoever_gives_up_makes_room_for_the_next() {
        let joining = Joining::default();
        let first = joining.place(7, PATIENCE).await;
        let began = Instant::now();
        let second = joining.place(7, PATIENCE).await;
        assert_eq!((began.elapsed(), second.making.is_none()), (PATIENCE, true));
        let mut third = Box::pin(joining.place(7, PATIENCE));
        assert!(third.as_mut().now_or_never().is_none());
        drop(first);
        assert!(third.await.making.is_some(), "it makes the connection now");
    }
}
