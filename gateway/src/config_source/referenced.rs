//! The files that configuration refers to (certificates, keys, documents), to notice when they are others.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use seiketsu_config::{
    load::{files_of_head, files_of_tenant},
    tenant::{CertificateFiles, Tenant, TenantHead},
    values::Id,
};

use super::{pace::Pace, stamp::Stamp};
use crate::tenancy::tls::Coming;

/// Files, and who refers to them. They are not watched, since they may lie anywhere; each is looked at once,
/// however many refer to it. A certificate counts as another one when it becomes valid or gives way
/// to another.
pub(super) struct ReferencedFiles {
    files: HashMap<PathBuf, InUse>,
    /// Files of tenants that could not be compiled, and what each refers to.
    waiting: BTreeMap<PathBuf, Vec<PathBuf>>,
    coming: Arc<Coming>,
    pace: Pace,
}

#[derive(Debug)]
struct InUse {
    stamp: Stamp,
    users: BTreeSet<User>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum User {
    Node,
    Tenant(Id),
    /// All tenants of this file.
    Head(PathBuf),
    /// This file, of which something is wrong: perhaps what it refers to.
    Waiting(PathBuf),
}

/// What has changed.
#[derive(Debug, Default)]
pub(super) struct Renewed {
    pub(super) files: HashSet<PathBuf>,
    /// The tenants that refer to them.
    pub(super) tenants: BTreeSet<Id>,
    /// The files of tenants that refer to them as a whole.
    pub(super) referrers: BTreeSet<PathBuf>,
    /// Whether the node uses one of them.
    pub(super) of_node: bool,
}

impl ReferencedFiles {
    pub(super) fn of_node(certificates: &[CertificateFiles], coming: Arc<Coming>) -> Self {
        let paths = certificates.iter().flat_map(|files| [&files.certificate, &files.key]);
        let now = SystemTime::now();
        let in_use = |path: &PathBuf| InUse { stamp: Stamp::of(path, now), users: BTreeSet::from([User::Node]) };
        let files = paths.map(|path| (path.clone(), in_use(path))).collect();
        Self { files, waiting: BTreeMap::new(), coming, pace: Pace::new(Duration::ZERO) }
    }

    /// Looks at all of them; unless it is urgent, not at every call if they are very many.
    pub(super) fn look(&mut self, urgent: bool) -> Renewed {
        let mut renewed = Renewed::default();
        if !urgent && !self.pace.is_due() {
            return renewed;
        }
        let (began, now) = (Instant::now(), SystemTime::now());
        let due = self.coming.take_due();
        for (path, in_use) in &mut self.files {
            let stamp = Stamp::of(path, now);
            if in_use.stamp.differs_from(stamp) || due.contains(path) {
                in_use.stamp = stamp;
                renewed.files.insert(path.clone());
                for user in &in_use.users {
                    match user {
                        User::Node => renewed.of_node = true,
                        User::Tenant(id) => drop(renewed.tenants.insert(id.clone())),
                        User::Head(file) | User::Waiting(file) => drop(renewed.referrers.insert(file.clone())),
                    }
                }
            }
        }
        self.pace.looked(began);
        renewed
    }

    /// These tenants went and came, with what was read at this time or later.
    pub(super) fn replace<'a>(
        &mut self,
        gone: impl Iterator<Item = &'a Arc<Tenant>>,
        put: impl Iterator<Item = &'a Arc<Tenant>>,
        read: SystemTime,
    ) {
        let mut left = Vec::new();
        for tenant in gone {
            self.leave(&User::Tenant(tenant.id.clone()), files_of_tenant(tenant), &mut left);
        }
        for tenant in put {
            self.come(&User::Tenant(tenant.id.clone()), files_of_tenant(tenant), |path| Stamp::of(path, read));
        }
        self.forget(left);
    }

    /// The same with what a file says beside its tenants.
    pub(super) fn replace_head(
        &mut self,
        file: &Path,
        gone: Option<&TenantHead>,
        put: Option<&TenantHead>,
        read: SystemTime,
    ) {
        let (user, mut left) = (User::Head(file.to_owned()), Vec::new());
        if let Some(head) = gone {
            self.leave(&user, files_of_head(head), &mut left);
        }
        if let Some(head) = put {
            self.come(&user, files_of_head(head), |path| Stamp::of(path, read));
        }
        self.forget(left);
    }

    /// This file of tenants could not be compiled, and refers to these: when one of them is another, it may be
    /// good. Without any it no longer waits.
    pub(super) fn wait(&mut self, file: &Path, refers_to: Vec<PathBuf>) {
        let (user, mut left) = (User::Waiting(file.to_owned()), Vec::new());
        let before = self.waiting.remove(file).unwrap_or_default();
        self.leave(&user, before.iter().map(PathBuf::as_path), &mut left);
        if !refers_to.is_empty() {
            // Nothing is known of those that are new here: they may have come after they were missed, so the
            // next look finds them changed, and it is tried once more.
            self.come(&user, refers_to.iter().map(PathBuf::as_path), |_| Stamp::default());
            self.waiting.insert(file.to_owned(), refers_to);
        }
        self.forget(left);
    }

    fn leave<'a>(&mut self, user: &User, files: impl IntoIterator<Item = &'a Path>, left: &mut Vec<PathBuf>) {
        for path in files {
            if let Some(in_use) = self.files.get_mut(path) {
                in_use.users.remove(user);
                left.push(path.to_owned());
            }
        }
    }

    fn come<'a>(&mut self, user: &User, files: impl IntoIterator<Item = &'a Path>, stamp: impl Fn(&Path) -> Stamp) {
        for path in files {
            let new = || InUse { stamp: stamp(path), users: BTreeSet::new() };
            self.files.entry(path.to_owned()).or_insert_with(new).users.insert(user.clone());
        }
    }

    fn forget(&mut self, left: Vec<PathBuf>) {
        for path in left {
            if self.files.get(&path).is_some_and(|in_use| in_use.users.is_empty()) {
                self.files.remove(&path);
            }
        }
    }
}
