//! Keeps what the control plane has sent on disk, on a thread of its own: no update waits for a disk.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    sync::mpsc::{self, RecvTimeoutError},
    thread::{self, JoinHandle},
    time::Duration,
};

use seiketsu_config::{load::parallel, push::Held, values::Id};
use serde::{Deserialize, Serialize};

use super::{
    super::{last_known_good::LastKnownGood, seal::UnsealKey},
    holding::Sent,
};

const STATE: &str = "control-plane/state";
const HEAD: &str = "control-plane/head";
const TENANTS: &str = "control-plane/tenants";

/// What could not be kept is tried again, and what was removed is noticed, this often.
const AGAIN: Duration = Duration::from_secs(2);

/// As far as niceness goes.
const LEAST_URGENT: i32 = 19;

/// Copies that a thread reads at once.
const BATCH: usize = 64;

/// What is held, and how often its numbers have begun anew (see `numbering`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    #[serde(flatten)]
    pub(super) held: Held,
    #[serde(default)]
    pub(super) generation: u64,
}

/// A document as it was last sent, and as it is in force if that is another.
#[derive(Debug, Clone)]
pub(super) struct Copy {
    pub(super) newest: Sent,
    pub(super) former: Option<Sent>,
    /// It was refused, and nothing is in force in its place.
    pub(super) waits: bool,
}

/// What is to be kept in place of what was kept before.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) state: Option<State>,
    pub(super) head: Option<Copy>,
    /// None: the tenant is gone.
    pub(super) tenants: Vec<(Id, Option<Copy>)>,
    /// All tenants there are, where what is not among them is to go.
    pub(super) only: Option<HashSet<Id>>,
}

/// What was kept and could be read.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) state: Option<State>,
    pub(super) head: Option<Copy>,
    pub(super) tenants: Vec<(Id, Copy)>,
    /// What was altered, or sealed with another key.
    pub(super) unreadable: Vec<String>,
}

/// What the thread has to say.
#[derive(Debug)]
pub(super) enum Report {
    /// Everything is kept; or why something is not.
    Kept(Option<String>),
    /// What was kept was removed: all of it is to be kept again.
    Lost,
}

/// The running thread. Writes what is waiting when it is dropped.
pub(super) struct Keeper {
    changes: Option<mpsc::Sender<Changes>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Reads what is kept, and starts to keep what comes. `report` is called on the thread.
    pub(super) fn start(
        state_dir: &Path,
        key: UnsealKey,
        report: impl Fn(Report) + Send + 'static,
    ) -> std::io::Result<(Self, Kept)> {
        let store = LastKnownGood::open_sealed(state_dir.join("control-plane"), key);
        let kept = read(&store);
        let (changes, inbox) = mpsc::channel();
        let thread = thread::Builder::new().name("keeper".to_owned()).spawn(move || keep(store, &inbox, &report))?;
        Ok((Self { changes: Some(changes), thread: Some(thread) }, kept))
    }

    pub(super) fn keep(&self, changes: Changes) {
        if let Some(sender) = &self.changes {
            // The thread ends only when this sender is gone.
            let _ = sender.send(changes);
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.changes.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn keep(mut store: LastKnownGood, inbox: &mpsc::Receiver<Changes>, report: &impl Fn(Report)) {
    // In Linux of this thread alone. A hundred thousand copies take a processor for seconds, which requests and changes
    // want first; where it may not be, it is kept all the same.
    let _ = rustix::process::nice(LEAST_URGENT);
    let mut waiting = Waiting::default();
    loop {
        let ends = match inbox.recv_timeout(AGAIN) {
            Ok(changes) => {
                waiting.add(changes);
                // What has come meanwhile is written together.
                for changes in inbox.try_iter() {
                    waiting.add(changes);
                }
                false
            }
            Err(RecvTimeoutError::Timeout) => {
                if store.forget_lost(false) {
                    report(Report::Lost);
                }
                false
            }
            Err(RecvTimeoutError::Disconnected) => true,
        };
        if !waiting.is_empty() {
            report(Report::Kept(waiting.write(&mut store).err().map(|error| error.to_string())));
        }
        if ends {
            return;
        }
    }
}

/// What is not kept yet.
#[derive(Default)]
struct Waiting {
    texts: BTreeMap<PathBuf, Option<Text>>,
    only: Option<HashSet<Id>>,
}

enum Text {
    State(State),
    Document(Copy),
}

impl Waiting {
    fn add(&mut self, changes: Changes) {
        self.texts.extend(changes.state.map(|state| (STATE.into(), Some(Text::State(state)))));
        self.texts.extend(changes.head.map(|head| (HEAD.into(), Some(Text::Document(head)))));
        if changes.only.is_some() {
            self.only = changes.only;
        }
        for (id, copy) in changes.tenants {
            if let Some(only) = self.only.as_mut().filter(|_| copy.is_some()) {
                only.insert(id.clone());
            }
            self.texts.insert(name_of(&id), copy.map(Text::Document));
        }
    }

    fn is_empty(&self) -> bool {
        self.texts.is_empty() && self.only.is_none()
    }

    /// Writes all of it, or leaves it for the next time.
    fn write(&mut self, store: &mut LastKnownGood) -> std::io::Result<()> {
        let texts: Vec<(&Path, Option<String>)> =
            self.texts.iter().map(|(name, text)| (&**name, text.as_ref().map(Text::write))).collect();
        let texts: Vec<_> = texts.iter().map(|(name, text)| (*name, text.as_deref())).collect();
        store.keep(&texts)?;
        if let Some(only) = &self.only {
            let names: Vec<PathBuf> = only.iter().map(name_of).chain([STATE.into(), HEAD.into()]).collect();
            store.keep_only(&names.iter().map(PathBuf::as_path).collect())?;
        }
        *self = Self::default();
        Ok(())
    }
}

fn name_of(tenant: &Id) -> PathBuf {
    Path::new(TENANTS).join(tenant.as_str())
}

/// A copy in its own form.
#[derive(Serialize, Deserialize)]
struct Envelope {
    revision: u64,
    content: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    former: Option<Box<Envelope>>,
    #[serde(default)]
    waits: bool,
}

impl Text {
    fn write(&self) -> String {
        let envelope = |sent: &Sent, former, waits| Envelope {
            revision: sent.revision,
            content: (*sent.content).into(),
            former,
            waits,
        };
        let written = match self {
            Self::State(state) => serde_json::to_string(state),
            Self::Document(Copy { newest, former, waits }) => {
                let former = former.as_ref().map(|former| Box::new(envelope(former, None, false)));
                serde_json::to_string(&envelope(newest, former, *waits))
            }
        };
        // Neither form has anything that JSON cannot hold.
        written.unwrap_or_default()
    }
}

impl Copy {
    fn read(tenant: Option<&Id>, text: &str) -> Option<Self> {
        let Envelope { revision, content, former, waits } = serde_json::from_str(text).ok()?;
        let former = former.map(|former| Sent::new(tenant, former.revision, former.content));
        Some(Self { newest: Sent::new(tenant, revision, content), former, waits })
    }
}

fn read(store: &LastKnownGood) -> Kept {
    let mut kept = Kept::default();
    let paths = store.paths();
    let texts = parallel::map(&paths, BATCH, |path| store.text(path));
    for (path, text) in paths.iter().zip(texts) {
        let tenant = path.strip_prefix(TENANTS).ok().and_then(|id| id.to_str()?.parse::<Id>().ok());
        let read = text.and_then(|text| {
            match &tenant {
                Some(id) => kept.tenants.push((id.clone(), Copy::read(Some(id), &text)?)),
                None if path == Path::new(HEAD) => kept.head = Some(Copy::read(None, &text)?),
                None => kept.state = Some(serde_json::from_str(&text).ok()?),
            }
            Some(())
        });
        if read.is_none() {
            kept.unreadable.push(tenant.map_or_else(|| path.display().to_string(), |id| id.to_string()));
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use seiketsu_config::push::Sum;
    use uuid::Uuid;

    use super::*;

    fn id(text: &str) -> Id {
        text.parse().unwrap()
    }

    fn copy(tenant: &str, content: &str, former: Option<&str>) -> (Id, Option<Copy>) {
        let sent = |content: &str| Sent::new(Some(&id(tenant)), 3, content);
        (id(tenant), Some(Copy { newest: sent(content), former: former.map(sent), waits: false }))
    }

    fn start(folder: &Path) -> (Keeper, Kept, mpsc::Receiver<Report>) {
        let (sender, reports) = mpsc::channel();
        let key = UnsealKey::read(None, folder).unwrap();
        let (keeper, kept) = Keeper::start(folder, key, move |report| drop(sender.send(report))).unwrap();
        (keeper, kept, reports)
    }

    fn contents(kept: &Kept) -> Vec<(&str, &str, Option<&str>)> {
        let tenants = kept.tenants.iter();
        tenants
            .map(|(id, copy)| (id.as_str(), &*copy.newest.content, copy.former.as_ref().map(|it| &*it.content)))
            .collect()
    }

    #[test]
    fn what_was_kept_comes_back_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let (keeper, kept, _) = start(folder.path());
        assert!(kept.state.is_none() && kept.tenants.is_empty() && kept.unreadable.is_empty());
        let held = Held { store: Uuid::max(), revision: 9, sum: Sum::default() };
        let state = State { held, generation: 2 };
        let head = Copy { newest: Sent::new(None, 2, "{}"), former: None, waits: false };
        keeper.keep(Changes {
            state: Some(state),
            head: Some(head.clone()),
            tenants: vec![copy("a", "{\"é\": 1}", None), copy("b", "new", Some("old")), copy("c", "x", None)],
            only: None,
        });
        keeper.keep(Changes { tenants: vec![(id("c"), None)], ..Changes::default() });
        drop(keeper);
        let (keeper, kept, _) = start(folder.path());
        assert_eq!(kept.state, Some(state));
        assert_eq!(kept.head.as_ref().unwrap().newest, head.newest);
        assert_eq!(contents(&kept), [("a", "{\"é\": 1}", None), ("b", "new", Some("old"))]);
        assert_eq!(kept.tenants[0].1.newest, Sent::new(Some(&id("a")), 3, "{\"é\": 1}"));
        keeper.keep(Changes { only: Some(HashSet::from([id("b")])), ..Changes::default() });
        drop(keeper);
        assert_eq!(contents(&start(folder.path()).1).len(), 1);
    }

    #[test]
    fn an_altered_copy_is_named_and_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let (keeper, ..) = start(folder.path());
        keeper.keep(Changes { tenants: vec![copy("a", "1", None), copy("b", "1", None)], ..Changes::default() });
        drop(keeper);
        let journal = fs::read_to_string(folder.path().join("control-plane/journal.json")).unwrap();
        let line: serde_json::Value = serde_json::from_str(&journal).unwrap();
        let names = &line["files"];
        let file = |tenant: &str| {
            folder.path().join("control-plane").join(names[&format!("{TENANTS}/{tenant}")].as_str().unwrap())
        };
        let mut content = fs::read(file("a")).unwrap();
        *content.last_mut().unwrap() ^= 1;
        fs::write(file("a"), content).unwrap();
        let (_, kept, _) = start(folder.path());
        assert_eq!((contents(&kept), &*kept.unreadable), (vec![("b", "1", None)], &["a".to_owned()][..]));
        // With another key nothing can be read, and nothing is removed.
        let key = folder.path().join("unseal.key");
        let right = fs::read(&key).unwrap();
        fs::write(&key, "00".repeat(32)).unwrap();
        assert_eq!(start(folder.path()).1.unreadable.len(), 2);
        fs::write(&key, right).unwrap();
        assert_eq!(contents(&start(folder.path()).1), [("b", "1", None)]);
    }

    #[test]
    fn what_cannot_be_written_waits_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let (keeper, _, reports) = start(folder.path());
        let in_the_way = folder.path().join("control-plane");
        fs::write(&in_the_way, "").unwrap();
        keeper.keep(Changes { tenants: vec![copy("a", "1", None)], ..Changes::default() });
        assert!(matches!(reports.recv().unwrap(), Report::Kept(Some(_))));
        fs::remove_file(&in_the_way).unwrap();
        assert!(matches!(reports.iter().find(|it| matches!(it, Report::Kept(None))), Some(Report::Kept(None))));
        drop(keeper);
        assert_eq!(contents(&start(folder.path()).1), [("a", "1", None)]);
    }
}
