//! Where tenant configuration comes from, and how it gets into force.
//!
//! A file, or a folder of files; or the control plane (`pushed`). A change goes parse → check → compile → swap, on a thread of its own;
//! requests notice nothing. It costs what has changed: of a folder only the files that the watch names are
//! looked at, and tenants that are as they were stay what they are. A file with an error changes nothing: its tenants keep their former state,
//! and the error stands in `/readyz`, in the log and in a metric until it is mended. What was last in
//! force is kept on disk, so that a node starts even from a file that somebody has just broken.

mod check;
mod compile;
mod conflicts;
mod events;
mod head;
mod in_force;
mod last_known_good;
mod pace;
mod pushed;
mod referenced;
mod reload;
mod seal;
mod stamp;
mod status;
mod tenant_files;
mod view;
mod watch;

#[cfg(test)]
mod tests;

use std::{
    io,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use seiketsu_config::node::Source;
use tokio::runtime::Handle;

pub use self::check::check_config;
pub(crate) use self::{events::log_upstream_events, status::StatusCell, view::RunningConfig};
use self::{
    pace::Pace,
    pushed::Follower,
    reload::{Look, Reloader},
    seal::UnsealKeyError,
    watch::{FileWatch, Notice},
};
use crate::{operations::Readiness, proxy::Shared, server::tls::LiveTls, upstream::resolver::ResolverError};

/// Changes that come in quick succession (an editor's write and rename, a deployment) are taken as one …
const QUIET: Duration = Duration::from_millis(30);
/// … but not for longer: what never comes to rest must not keep changes from getting into force.
const LONGEST: Duration = Duration::from_secs(1);
/// What configuration refers to is not watched, and neither are files that are links; without a watch nothing is.
const POLL: Duration = Duration::from_secs(2);
/// How long the end of the node waits for a reload that is under way. What it keeps on disk is whole at any time.
const PARTING: Duration = Duration::from_secs(1);
/// Notifications can be missed even if there is a watch.
const RARE_POLL: Duration = Duration::from_secs(30);

enum Message {
    Notice(Notice),
    Order(Order),
}

/// What the node wants of whatever the source is.
#[derive(Debug, Clone, Copy)]
enum Order {
    /// Look at everything again, also at what configuration refers to.
    ReloadAll,
    Stop,
}

/// Why there is no source of configuration.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("cannot start a thread: {0}")]
    Thread(#[from] io::Error),
    #[error("control_plane.unseal_key: {0}")]
    UnsealKey(#[from] UnsealKeyError),
    #[error(transparent)]
    Resolver(#[from] ResolverError),
    #[error("{0}")]
    NodeCertificates(String),
}

/// The running source. Ends its thread when dropped.
pub(crate) struct ConfigSource {
    order: Box<dyn Fn(Order) + Send>,
    /// Closed when there is a configuration in force.
    loaded: mpsc::Receiver<()>,
    /// Closed when the thread ends.
    ended: mpsc::Receiver<()>,
}

impl ConfigSource {
    /// Loads the configuration and then follows its changes. The first load of files has happened when this
    /// returns, and so has a start from what the control plane sent once.
    pub(crate) fn start(
        shared: Arc<Shared>,
        tls: Arc<LiveTls>,
        status: Arc<StatusCell>,
        readiness: Arc<Readiness>,
        runtime: Handle,
    ) -> Result<Self, SourceError> {
        let (ending, ended) = mpsc::channel();
        let (first, loaded) = mpsc::channel();
        let node = shared.node.clone();
        let spawn = |work: Box<dyn FnOnce() + Send>| {
            thread::Builder::new().name("config".to_owned()).spawn(move || {
                work();
                drop(ending);
            })
        };
        let order: Box<dyn Fn(Order) + Send> = match node.source() {
            Source::Files(path) => {
                let (messages, inbox) = mpsc::channel();
                let watch = FileWatch::new(path, {
                    let messages = messages.clone();
                    move |notice| {
                        let _ = messages.send(Message::Notice(notice));
                    }
                });
                shared.metrics.node.control_plane.connected.set(1);
                let mut reloader = Reloader::new(path, shared, tls, status, runtime);
                reloader.load_first();
                drop(first);
                spawn(Box::new(move || follow(&inbox, reloader, watch)))?;
                Box::new(move |order| drop(messages.send(Message::Order(order))))
            }
            Source::ControlPlane(settings) => {
                let (follower, order) = Follower::start(settings, &shared, tls, status, readiness, &runtime)?;
                let mut first = Some(first);
                spawn(Box::new(move || follower.follow(|| drop(first.take()))))?;
                Box::new(order)
            }
        };
        Ok(Self { order, loaded, ended })
    }

    /// Waits until there is a configuration in force, or none is to be expected.
    pub(crate) fn wait_until_loaded(&self) {
        let _ = self.loaded.recv();
    }

    /// Looks at everything again, soon: HUP.
    pub(crate) fn reload(&self) {
        (self.order)(Order::ReloadAll);
    }
}

impl Drop for ConfigSource {
    fn drop(&mut self) {
        (self.order)(Order::Stop);
        if self.ended.recv_timeout(PARTING) == Err(mpsc::RecvTimeoutError::Timeout) {
            tracing::warn!("reading configuration takes too long to be waited for");
        }
    }
}

fn follow(inbox: &mpsc::Receiver<Message>, mut reloader: Reloader, mut watch: FileWatch) {
    let (mut polled, mut rare_poll, mut watched_before) = (Instant::now(), Pace::new(RARE_POLL), true);
    while let Some(mut look) = next_look(inbox) {
        let began = Instant::now();
        if polled.elapsed() >= POLL {
            polled = began;
            look.referenced = true;
            let watched = watch.works();
            // A watch that begins has not seen what happened before.
            look.all |= !(watched && watched_before) || rare_poll.is_due();
            watched_before = watched;
        }
        reloader.look(&look);
        if look.all {
            rare_poll.looked(began);
        }
    }
}

/// What the messages that have come ask to be looked at; nothing, when it is time to end.
fn next_look(inbox: &mpsc::Receiver<Message>) -> Option<Look> {
    let mut look = Look::default();
    let mut until = None;
    loop {
        let patience = if until.is_some() { QUIET } else { POLL };
        match inbox.recv_timeout(patience) {
            Ok(Message::Notice(Notice::File(name))) => {
                look.named.insert(name);
            }
            Ok(Message::Notice(Notice::Anything)) => look.all = true,
            Ok(Message::Order(Order::ReloadAll)) => look.again = true,
            Ok(Message::Order(Order::Stop)) | Err(mpsc::RecvTimeoutError::Disconnected) => return None,
            Err(mpsc::RecvTimeoutError::Timeout) => return Some(look),
        }
        if Instant::now() > *until.get_or_insert_with(|| Instant::now() + LONGEST) {
            return Some(look);
        }
    }
}
