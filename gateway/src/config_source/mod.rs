//! Where tenant configuration comes from, and how it gets into force.
//!
//! A file, or a folder of files. A change goes parse → check → compile → swap, on a thread of its own;
//! requests notice nothing. A file with an error changes nothing: its tenants keep their former state,
//! and the error stands in `/readyz`, in the log and in a metric until it is mended. What was last in
//! force is kept on disk, so that a node starts even from a file that somebody has just broken.

mod check;
mod compile;
mod events;
mod last_known_good;
mod reload;
mod status;
mod view;
mod watch;

use std::{
    io,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::runtime::Handle;

pub use self::check::check_config;
pub(crate) use self::{events::log_upstream_events, status::StatusCell, view::RunningConfig};
use self::{reload::Reloader, watch::FileWatch};
use crate::{proxy::Shared, server::tls::LiveTls};

/// Changes that come in quick succession (an editor's write and rename) are taken as one …
const QUIET: Duration = Duration::from_millis(30);
/// … but not more of them: what never comes to rest must not keep changes from getting into force.
const MOST_TOGETHER: usize = 100;
/// Notifications can be missed, and certificates are not watched: so files are looked at this often.
const POLL: Duration = Duration::from_secs(2);

enum Message {
    /// A file may have changed.
    Changed,
    /// Read everything again, also what configuration refers to.
    ReloadAll,
    Stop,
}

/// The running source. Ends its thread when dropped.
pub(crate) struct ConfigSource {
    messages: mpsc::Sender<Message>,
    thread: Option<JoinHandle<()>>,
}

impl ConfigSource {
    /// Loads the configuration and then follows its changes. The first load has happened when this
    /// returns; whether it found anything to serve is in the status.
    pub(crate) fn start(
        shared: Arc<Shared>,
        tls: Arc<LiveTls>,
        status: Arc<StatusCell>,
        runtime: Handle,
    ) -> io::Result<Self> {
        let (messages, inbox) = mpsc::channel();
        let watch = FileWatch::new(&shared.node.tenants, {
            let messages = messages.clone();
            move || {
                let _ = messages.send(Message::Changed);
            }
        });
        let mut reloader = Reloader::new(shared, tls, status, runtime);
        reloader.load_first();
        let thread = thread::Builder::new().name("config".to_owned()).spawn(move || follow(&inbox, reloader, watch))?;
        Ok(Self { messages, thread: Some(thread) })
    }

    /// Reads everything again, soon: HUP.
    pub(crate) fn reload(&self) {
        let _ = self.messages.send(Message::ReloadAll);
    }
}

impl Drop for ConfigSource {
    fn drop(&mut self) {
        let _ = self.messages.send(Message::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn follow(inbox: &mpsc::Receiver<Message>, mut reloader: Reloader, watch: FileWatch) {
    loop {
        let mut all = false;
        match inbox.recv_timeout(POLL) {
            Ok(Message::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Ok(Message::ReloadAll) => all = true,
            Ok(Message::Changed) => {
                for _ in 0..MOST_TOGETHER {
                    match inbox.recv_timeout(QUIET) {
                        Ok(Message::Changed) => {}
                        Ok(Message::ReloadAll) => all = true,
                        Ok(Message::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return,
                        Err(mpsc::RecvTimeoutError::Timeout) => break,
                    }
                }
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        if all || reloader.files_changed() {
            reloader.reload(all);
        }
    }
    drop(watch);
}
