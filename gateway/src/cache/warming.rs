//! Lists of URLs whose responses are fetched before anybody asks for them, and how far they are.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use http::{HeaderMap, Uri};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::oneshot;

use super::background::{Background, Fetched, Internal, Job};

/// Fetched at the same time for one list, so that clients notice nothing of it.
const AT_ONCE: usize = 8;
/// Lists that are remembered after their end.
const REMEMBERED: usize = 16;

/// What is being warmed, and what was.
#[derive(Debug, Default)]
pub(crate) struct Warming {
    lists: Mutex<VecDeque<Arc<List>>>,
    next: AtomicU64,
}

/// A URL, as far as it is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) host: Box<[u8]>,
    pub(crate) secure: bool,
    pub(crate) uri: Uri,
}

/// One list.
#[derive(Debug, Default)]
pub(crate) struct List {
    id: u64,
    targets: Vec<Target>,
    headers: HeaderMap,
    begun: AtomicUsize,
    stored: AtomicUsize,
    /// Answered, but not to be stored.
    not_stored: AtomicUsize,
    /// Not answered, with an error of the origin, or on no route with a cache.
    failed: AtomicUsize,
}

/// How far a list is.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Progress {
    pub(crate) id: u64,
    pub(crate) total: usize,
    pub(crate) stored: usize,
    pub(crate) not_stored: usize,
    pub(crate) failed: usize,
    pub(crate) done: bool,
}

impl Warming {
    /// Begins with a list, on the runtime of the caller.
    pub(crate) fn start(
        self: &Arc<Self>,
        background: &Arc<Background>,
        targets: Vec<Target>,
        headers: HeaderMap,
    ) -> Arc<List> {
        let list = Arc::new(List { id: self.next.fetch_add(1, Relaxed) + 1, targets, headers, ..List::default() });
        let mut lists = self.lists.lock();
        lists.push_back(list.clone());
        if lists.len() > REMEMBERED {
            lists.pop_front();
        }
        for worker in 0..AT_ONCE.min(list.targets.len()) {
            tokio::spawn(fetch(list.clone(), background.clone(), worker));
        }
        list
    }

    /// How far all lists are that are remembered, the newest first.
    pub(crate) fn progress(&self) -> Vec<Progress> {
        self.lists.lock().iter().rev().map(|list| list.progress()).collect()
    }
}

impl List {
    pub(crate) fn progress(&self) -> Progress {
        let [stored, not_stored, failed] =
            [&self.stored, &self.not_stored, &self.failed].map(|count| count.load(Relaxed));
        let total = self.targets.len();
        Progress { id: self.id, total, stored, not_stored, failed, done: stored + not_stored + failed == total }
    }
}

/// Fetches one after the other, until nothing of the list is left.
async fn fetch(list: Arc<List>, background: Arc<Background>, worker: usize) {
    while let Some(target) = list.targets.get(list.begun.fetch_add(1, Relaxed)) {
        let (done, fetched) = oneshot::channel();
        let internal = Internal {
            host: target.host.clone(),
            secure: target.secure,
            client: std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
            principal: None,
            place: None,
            canary: false,
            done: Some(done),
        };
        background.wait_and_add(worker, Job::new(&target.uri, &list.headers, internal)).await;
        let count = match fetched.await {
            Ok(Fetched { stored: true, .. }) => &list.stored,
            Ok(Fetched { status: 1..500, .. }) => &list.not_stored,
            _ => &list.failed,
        };
        count.fetch_add(1, Relaxed);
    }
}
