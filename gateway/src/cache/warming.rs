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
/// Lists that are remembered after their end.
const REMEMBERED: usize = 16;
/// URLs of one list that are named since they are not stored.
const MOST_NAMED: usize = 100;

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
    /// The first of both.
    missing: Mutex<Vec<Missing>>,
}

/// A URL whose response is not stored.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Missing {
    url: String,
    /// Of the origin's answer, if there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    /// Why it is not stored, in a word as in `Cache-Status`.
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
    /// The first that are not stored.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) missing: Vec<Missing>,
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
        let done = stored + not_stored + failed == total;
        Progress { id: self.id, total, stored, not_stored, failed, done, missing: self.missing.lock().clone() }
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
            let reason = fetched.and_then(|fetched| fetched.detail);
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
        background.wait_and_add(worker, Job::new(&target.uri, &list.headers, internal)).await;
        list.note(target, fetched.await.ok());
    }
}
