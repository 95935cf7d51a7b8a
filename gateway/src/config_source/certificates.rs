//! The certificate files in use, to notice when they are renewed or an authority is replaced.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use seiketsu_config::{
    tenant::{CertificateFiles, Tenant},
    values::Id,
};

use super::{pace::Pace, stamp::Stamp};

/// Certificates, keys and authorities, and who uses them. They are not watched, since they may lie
/// anywhere; each is looked at once, however many use it.
pub(super) struct CertificatesInUse {
    files: HashMap<PathBuf, InUse>,
    pace: Pace,
}

struct InUse {
    stamp: Stamp,
    tenants: BTreeSet<Id>,
    of_node: bool,
}

/// What has changed.
#[derive(Debug, Default)]
pub(super) struct Renewed {
    pub(super) files: HashSet<PathBuf>,
    /// The tenants that use them.
    pub(super) tenants: BTreeSet<Id>,
    /// Whether the node uses one of them.
    pub(super) of_node: bool,
}

impl CertificatesInUse {
    pub(super) fn of_node(certificates: &[CertificateFiles]) -> Self {
        let paths = certificates.iter().flat_map(|files| [&files.certificate, &files.key]);
        let now = SystemTime::now();
        let in_use = |path: &PathBuf| InUse { stamp: Stamp::of(path, now), tenants: BTreeSet::new(), of_node: true };
        let files = paths.map(|path| (path.clone(), in_use(path))).collect();
        Self { files, pace: Pace::new(Duration::ZERO) }
    }

    /// Looks at all of them; unless it is urgent, not at every call if they are very many.
    pub(super) fn look(&mut self, urgent: bool) -> Renewed {
        let mut renewed = Renewed::default();
        if !urgent && !self.pace.is_due() {
            return renewed;
        }
        let (began, now) = (Instant::now(), SystemTime::now());
        for (path, in_use) in &mut self.files {
            let stamp = Stamp::of(path, now);
            if in_use.stamp.differs_from(stamp) {
                in_use.stamp = stamp;
                renewed.files.insert(path.clone());
                renewed.tenants.extend(in_use.tenants.iter().cloned());
                renewed.of_node |= in_use.of_node;
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
            for path in files_of(tenant) {
                if let Some(in_use) = self.files.get_mut(path) {
                    in_use.tenants.remove(&tenant.id);
                    left.push(path);
                }
            }
        }
        for tenant in put {
            for path in files_of(tenant) {
                let new = || InUse { stamp: Stamp::of(path, read), tenants: BTreeSet::new(), of_node: false };
                let in_use = self.files.entry(path.to_owned()).or_insert_with(new);
                in_use.tenants.insert(tenant.id.clone());
            }
        }
        for path in left {
            if self.files.get(path).is_some_and(|in_use| in_use.tenants.is_empty() && !in_use.of_node) {
                self.files.remove(path);
            }
        }
    }
}

/// The certificate files that a tenant names.
pub(super) fn files_of(tenant: &Tenant) -> impl Iterator<Item = &Path> {
    tenant.tls.iter().flat_map(|tls| {
        let pairs = tls.certificates.iter().flat_map(|files| [&files.certificate, &files.key]);
        pairs.chain(&tls.client_ca).map(PathBuf::as_path)
    })
}
