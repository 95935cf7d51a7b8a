//! Orders of the control plane: what is to be purged from the cache of this node, or fetched into it.

use std::{sync::Arc, time::Duration};

use seiketsu_cache::purge::Purge;
use seiketsu_config::push::{Carried, FromNode, Order, Purged, Task, Warmed};
use tokio::{runtime::Handle, time::sleep};
use uuid::Uuid;

use super::subscription::{Replies, Reply};
use crate::{
    cache::{Cache, warming::Progress},
    operations::{cache_purge, cache_warm},
};

/// How often it is told how far a list of URLs is.
const TOLD_EVERY: Duration = Duration::from_millis(250);

/// Who carries them out.
#[derive(Debug)]
pub(super) struct Orders {
    cache: Arc<Cache>,
    runtime: Handle,
}

impl Orders {
    pub(super) fn new(cache: Arc<Cache>, runtime: Handle) -> Self {
        Self { cache, runtime }
    }

    /// Purges at once; URLs are fetched meanwhile.
    pub(super) fn carry_out(&self, order: Order, replies: &Replies) {
        let Order { id, task } = order;
        let _ = match task {
            Task::Purge { tenant, what } => match purge(&what) {
                // Other nodes are told by the control plane itself. Whoever stores nothing of the tenant is done.
                Ok(purge) => {
                    self.cache.purging.here(tenant.as_str(), &purge);
                    tracing::info!(%tenant, ?what, "purged by the control plane");
                    say(replies, done(id, None))
                }
                Err(error) => say(replies, done(id, Some(error))),
            },
            Task::PurgeEverything => {
                self.cache.purging.everything();
                tracing::info!(
                    "everything is purged: the control plane does not know which purges this node has heard"
                );
                say(replies, done(id, None))
            }
            Task::Warm { urls, headers } => match cache_warm::read(&urls, &headers) {
                Ok((targets, headers)) => {
                    let (cache, replies) = (self.cache.clone(), replies.clone());
                    self.runtime.spawn(async move {
                        let list = match cache.warming.start(&cache.background, targets, headers) {
                            Ok(list) => list,
                            Err(error) => {
                                say(&replies, done(id, Some(error.to_string())));
                                return;
                            }
                        };
                        loop {
                            let progress = list.progress();
                            if !say(&replies, warmed(id, &progress)) || progress.done {
                                return;
                            }
                            sleep(TOLD_EVERY).await;
                        }
                    });
                    true
                }
                Err(error) => say(replies, done(id, Some(error))),
            },
        };
    }
}

fn purge(what: &Purged) -> Result<Purge, String> {
    match what {
        Purged::All => Ok(Purge::All),
        Purged::Url(url) => cache_purge::of_url(url),
        Purged::Prefix(text) => cache_purge::of_prefix(text),
        Purged::Tag(tag) => Ok(Purge::Tag(tag.as_str().into())),
    }
}

fn done(id: Uuid, error: Option<String>) -> Carried {
    Carried { id, done: true, error, warmed: None }
}

fn warmed(id: Uuid, progress: &Progress) -> Carried {
    let Progress { id: _, total, stored, not_stored, failed, done, stopped, missing: _ } = *progress;
    let [total, stored, not_stored, failed] = [total, stored, not_stored, failed].map(|count| count as u64);
    let error = stopped.then(|| "it was stopped at the node".to_owned());
    Carried { id, done, error, warmed: Some(Warmed { total, stored, not_stored, failed }) }
}

/// Whether somebody may hear it: nobody does if the connection has ended.
fn say(replies: &Replies, carried: Carried) -> bool {
    replies.replies.send(Reply::Say(FromNode::Carried(carried))).is_ok()
}
