//! Whether files are where their names say: a link could lead elsewhere.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

use super::{CONTROL_PLANE, files_of_head, files_of_tenant};
use crate::{
    check,
    tenant::{Tenant, TenantHead},
};

/// What is wrong with the files that a tenant of the control plane names, below `folder`.
pub fn tenant_leads_out(tenant: &Tenant, folder: &Path) -> Vec<String> {
    leads_out(files_of_tenant(tenant), &folder.join(check::files_for(Some(&tenant.id))))
}

/// The same for what stands beside the tenants.
pub fn head_leads_out(head: &TenantHead, folder: &Path) -> Vec<String> {
    leads_out(files_of_head(head), &folder.join(check::files_for(None)))
}

fn leads_out(files: Vec<&Path>, folder: &Path) -> Vec<String> {
    if files.is_empty() {
        return Vec::new();
    }
    // Who runs the node may have made a link of the folder itself.
    let Ok(real) = folder.canonicalize() else { return Vec::new() };
    let out = files.into_iter().filter(|path| !stays(path, &real));
    let told = |path: &Path| {
        let (path, folder) = (path.display(), folder.display());
        format!("{CONTROL_PLANE}: {path} is a link that leads out of {folder}; put the file itself there")
    };
    out.map(told).collect()
}

fn stays(path: &Path, folder: &Path) -> bool {
    match path.canonicalize() {
        Ok(real) => real.starts_with(folder),
        // There is nothing yet; a link that leads nowhere may lead somewhere soon.
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let there = path.ancestors().find(|part| part.symlink_metadata().is_ok()).map(Path::to_owned);
            let real: Option<PathBuf> = there.and_then(|there| there.canonicalize().ok());
            real.is_some_and(|real| real.starts_with(folder) || folder.starts_with(&real))
        }
        // Nor can it be read.
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn a_link_leads_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir_all(path("files/acme/there")).unwrap();
        fs::create_dir_all(path("files/globex")).unwrap();
        for file in ["files/acme/there/x", "files/globex/x", "x"] {
            fs::write(path(file), "").unwrap();
        }
        symlink("there/x", path("files/acme/inside")).unwrap();
        symlink("../globex/x", path("files/acme/other")).unwrap();
        symlink(path("x"), path("files/acme/absolute")).unwrap();
        symlink("../globex", path("files/acme/folder")).unwrap();
        symlink("../../not-yet", path("files/acme/dangling")).unwrap();
        let leads_out = |name: &str| {
            let file = path("files/acme").join(name);
            leads_out(vec![file.as_path()], &path("files/acme")).len() == 1
        };
        for name in ["inside", "there/x", "none", "none/none"] {
            assert!(!leads_out(name), "{name}");
        }
        for name in ["other", "absolute", "folder/x", "folder/none", "dangling"] {
            assert!(leads_out(name), "{name}");
        }
    }
}
