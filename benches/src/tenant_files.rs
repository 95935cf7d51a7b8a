//! Configurations of many tenants, as files.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

/// How the tenants are spread over files.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    pub files: usize,
    pub tenants_in_each: usize,
}

impl Layout {
    /// Writes all files into the folder.
    pub fn write(self, folder: &Path) {
        for file in 0..self.files {
            write(&path(folder, file), &self.text(file, 1));
        }
    }

    /// Replaces a file in one step, with another generation of its first tenant.
    pub fn replace_one_tenant(self, folder: &Path, file: usize, generation: usize) {
        let next = folder.join("next");
        write(&next, &self.text(file, generation));
        fs::rename(&next, path(folder, file)).unwrap_or_else(|error| panic!("{error}"));
    }

    fn text(self, file: usize, generation: usize) -> String {
        let mut text = "\
revision: 1
defaults:
  auth: {accept: [api_key, anonymous]}
upstreams:
  shared:
    endpoints: [{address: 127.0.0.1:9}]
tenants:
"
        .to_owned();
        for index in 0..self.tenants_in_each {
            let generation = if index == 0 { generation } else { 1 };
            let _ = write!(text, "{}", Tenant { number: file * self.tenants_in_each + index, generation });
        }
        text
    }
}

/// A tenant with five routes, a key, and a header that tells its generation.
struct Tenant {
    number: usize,
    generation: usize,
}

impl std::fmt::Display for Tenant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { number, generation } = self;
        write!(
            f,
            "  - id: tenant-{number:06}
    hosts: [tenant-{number:06}.example.com]
    consumers:
      - id: app
        keys: [{{prefix: 'prefix{number:08}', hash: 'sha256:{number:064x}'}}]
    policies: {{headers: {{response: {{set: {{x-generation: '{generation}'}}}}}}}}
    routes:
      - {{id: users, match: {{path: /v1/users, methods: [GET, POST]}}, upstream: shared}}
      - {{id: user, match: {{path: '/v1/users/{{id}}', methods: [GET, PATCH, DELETE]}}, upstream: shared}}
      - {{id: items, match: {{path: '/v1/orders/{{id}}/items', methods: [GET]}}, upstream: shared}}
      - {{id: recordings, match: {{path: '/v1/recordings/{{*path}}', methods: [GET]}}, upstream: shared}}
      - {{id: all, match: {{path: '/{{*rest}}'}}, upstream: shared}}
"
        )
    }
}

fn path(folder: &Path, file: usize) -> PathBuf {
    folder.join(format!("tenants-{file:06}.yaml"))
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

#[cfg(test)]
mod tests {
    use seiketsu_config::load;

    use super::*;

    #[test]
    fn every_layout_has_its_tenants_and_replaces_one() {
        let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
        let layout = Layout { files: 3, tenants_in_each: 4 };
        layout.write(folder.path());
        let read =
            |file| load::tenants_file(&path(folder.path(), file)).unwrap_or_else(|errors| panic!("{errors}")).tenants;
        let before = read(1);
        assert_eq!((before.len(), before[0].routes.len(), before[0].id.as_str()), (4, 5, "tenant-000004"));
        layout.replace_one_tenant(folder.path(), 1, 2);
        let after = read(1);
        assert!(before[0] != after[0] && before[1..] == after[1..]);
    }
}
