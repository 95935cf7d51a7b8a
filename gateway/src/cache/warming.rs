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
use seiketsu_config::policy::CredentialKind;
use serde::Serialize;
use tokio::sync::oneshot;

use super::{
    background::{Background, Fetched, Internal, Job},
    request::is_identified,
};
use crate::tenancy::compile::{CompiledRoute, CompiledTenant};

/// Fetched at the same time for one list, so that clients notice nothing of it.
const AT_ONCE: usize = 8;
/// Lists at the same time. Together they take no more than half of the requests that one worker makes for the cache.
const MOST_LISTS: usize = 4;
/// Lists that are shown, those that have ended among them.
const REMEMBERED: usize = 16;
/// URLs of one list that are named since they are not stored.
const MOST_NAMED: usize = 100;

/// There are as many lists as there may be at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{MOST_LISTS} lists are being fetched already: wait until one is done, or stop one")]
pub(crate) struct TooManyLists;

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
    /// Not asked for, since the list was stopped.
    left_out: AtomicUsize,
    /// The first that are not stored, or have failed.
    missing: Mutex<Vec<Missing>>,
}

/// A URL whose response is not stored.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Missing {
    url: String,
    /// Of the origin's answer, if there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    /// Why it is not stored, in a word as in `Cache-Status`; or why nobody has answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

/// How far a list is.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Progress {
    pub(crate) id: u64,
    pub(crate) total: usize,
    pub(crate) stored: usize,
    pub(crate) not_stored: usize,
    pub(crate) failed: usize,
    pub(crate) done: bool,
    /// Somebody has stopped it before all was asked for.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) stopped: bool,
    /// The first that are not stored.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) missing: Vec<Missing>,
}

impl Warming {
    /// Begins with a list, on the runtime of the caller.
    pub(crate) fn start(
        &self,
        background: &Arc<Background>,
        targets: Vec<Target>,
        headers: HeaderMap,
    ) -> Result<Arc<List>, TooManyLists> {
        let mut lists = self.lists.lock();
        if lists.iter().filter(|list| !list.is_done()).count() >= MOST_LISTS {
            return Err(TooManyLists);
        }
        let list = Arc::new(List { id: self.next.fetch_add(1, Relaxed) + 1, targets, headers, ..List::default() });
        lists.push_back(list.clone());
        if lists.len() > REMEMBERED
            && let Some(oldest) = lists.iter().position(|list| list.is_done())
        {
            lists.remove(oldest);
        }
        for worker in 0..AT_ONCE.min(list.targets.len()) {
            tokio::spawn(fetch(list.clone(), background.clone(), worker));
        }
        Ok(list)
    }

    /// Asks for nothing more of a list; what is under way ends. None: no list of this number is remembered.
    pub(crate) fn stop(&self, id: u64) -> Option<Progress> {
        let list = self.lists.lock().iter().find(|list| list.id == id).cloned()?;
        list.stop();
        Some(list.progress())
    }

    /// How far all lists are that are remembered, the newest first.
    pub(crate) fn progress(&self) -> Vec<Progress> {
        self.lists.lock().iter().rev().map(|list| list.progress()).collect()
    }
}

impl List {
    pub(crate) fn progress(&self) -> Progress {
        // Before the counts: they may only be more than it says, and are right once it is.
        let done = self.is_done();
        let [stored, not_stored, failed] =
            [&self.stored, &self.not_stored, &self.failed].map(|count| count.load(Relaxed));
        Progress {
            id: self.id,
            total: self.targets.len(),
            stored,
            not_stored,
            failed,
            done,
            stopped: self.left_out.load(Relaxed) > 0,
            missing: self.missing.lock().clone(),
        }
    }

    /// Nothing of it is under way, or still to come.
    fn is_done(&self) -> bool {
        let ended = [&self.stored, &self.not_stored, &self.failed, &self.left_out].map(|count| count.load(Relaxed));
        ended.iter().sum::<usize>() == self.targets.len()
    }

    fn stop(&self) {
        // As if all had begun: whoever fetches finds nothing more to be fetched.
        let total = self.targets.len();
        let begun = self.begun.fetch_max(total, Relaxed);
        self.left_out.fetch_add(total.saturating_sub(begun), Relaxed);
    }

    /// Counts what came of a URL.
    fn note(&self, target: &Target, fetched: Option<Fetched>) {
        let count = match fetched {
            Some(Fetched { stored: true, .. }) => {
                self.stored.fetch_add(1, Relaxed);
                return;
            }
            Some(Fetched { status: 1..500, .. } | Fetched { status: 0, detail: Some(_), .. }) => &self.not_stored,
            _ => &self.failed,
        };
        let mut missing = self.missing.lock();
        if missing.len() < MOST_NAMED {
            let status = fetched.map(|fetched| fetched.status).filter(|status| *status > 0);
            let reason = fetched.and_then(|fetched| fetched.detail.or(fetched.failure));
            // It has taken too long, or the node is about to end.
            let reason = reason.or(status.is_none().then_some("given-up"));
            missing.push(Missing { url: target.uri.to_string(), status, reason });
        }
        count.fetch_add(1, Relaxed);
    }
}

/// Whether a response to a request with these fields could be served to callers that have not said who they are: the
/// route lets them in, and the request shows no credential that the origin may answer to.
pub(crate) fn is_for_anybody(tenant: &CompiledTenant, route: &CompiledRoute, headers: &HeaderMap) -> bool {
    let auth = &route.policies.auth;
    auth.accept.contains(&CredentialKind::Anonymous)
        && auth.scopes.is_empty()
        && auth.roles.is_empty()
        && !is_identified(None, headers, tenant.auth.credential_headers())
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
        background.wait_and_add(worker, Job::new(&target.uri, &list.headers, internal, None)).await;
        list.note(target, fetched.await.ok());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn targets() -> Vec<Target> {
        let target =
            Target { host: b"a.test".as_slice().into(), secure: false, uri: Uri::from_static("http://a.test/") };
        vec![target; 20]
    }

    #[tokio::test]
    async fn no_more_than_four_lists_are_fetched_at_once_and_each_can_be_stopped() {
        // Nobody makes the requests, so no list ends by itself.
        let (warming, background) = (Warming::default(), Arc::new(Background::new(1)));
        let start = || warming.start(&background, targets(), HeaderMap::new());
        let ids: Vec<u64> = (0..MOST_LISTS).map(|_| start().unwrap().id).collect();
        assert_eq!(start().err(), Some(TooManyLists));
        let stopped = warming.stop(ids[0]).unwrap();
        assert_eq!((stopped.stopped, stopped.done, stopped.stored), (true, true, 0));
        assert!(warming.stop(99).is_none());
        // However many have come and gone meanwhile, those that are not done are shown.
        for _ in 0..2 * REMEMBERED {
            warming.stop(start().unwrap().id).unwrap();
        }
        let shown = warming.progress();
        assert_eq!(shown.len(), REMEMBERED);
        assert!(ids[1..].iter().all(|id| shown.iter().any(|list| list.id == *id && !list.done)));
    }
}
