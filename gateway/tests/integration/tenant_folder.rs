//! A folder of very many tenants: a change of one costs what one costs.

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use crate::{
    fixtures::comes_true,
    support::{Gateway, Origin},
};

const TENANTS: usize = 2_000;
const READ: &str = "seiketsu_config_files_read_total";
const COMPILED: &str = "seiketsu_config_tenants_compiled_total";

/// A folder of files, one tenant in each.
struct Folder<'a> {
    path: PathBuf,
    origin: &'a Origin,
}

impl Folder<'_> {
    fn file(&self, tenant: usize) -> PathBuf {
        self.path.join(format!("t{tenant}.yaml"))
    }

    /// The tenant with this host and this response header.
    fn text(&self, tenant: usize, host: &str, mark: &str) -> String {
        format!(
            "revision: 1\ndefaults: {{ auth: {{ accept: [anonymous] }} }}\n\
             upstreams: {{ demo: {{ endpoints: [{{ address: '{}' }}] }} }}\n\
             tenants:\n- id: t{tenant}\n  hosts: [{host}]\n\
             \x20 policies: {{ headers: {{ response: {{ set: {{ x-mark: '{mark}' }} }} }} }}\n\
             \x20 routes: [{{ id: open, match: {{ path: '/v1/{{*rest}}' }}, upstream: demo }}]\n",
            self.origin.address,
        )
    }

    fn put(&self, tenant: usize, host: &str, mark: &str) {
        put(&self.file(tenant), &self.text(tenant, host, mark));
    }
}

/// Writes a file in one step. It is no new file: what is only just written is read twice.
fn put(path: &Path, text: &str) {
    let next = path.with_extension("next");
    fs::write(&next, text).unwrap();
    let long_ago = SystemTime::now() - Duration::from_hours(1);
    File::options().append(true).open(&next).unwrap().set_modified(long_ago).unwrap();
    fs::rename(next, path).unwrap();
}

fn host(tenant: usize) -> String {
    format!("t{tenant}.test")
}

fn mark(gateway: &Gateway, host: &str) -> Option<String> {
    gateway.get(host, "/v1/echo", "").header("x-mark").map(str::to_owned)
}

fn counts(gateway: &Gateway) -> (usize, usize) {
    (gateway.metric(READ) as usize, gateway.metric(COMPILED) as usize)
}

#[test]
fn of_many_files_only_those_that_change_are_read() {
    let origin = Origin::start("a");
    let temporary = tempfile::tempdir().unwrap();
    let folder = Folder { path: temporary.path().join("tenants"), origin: &origin };
    fs::create_dir(&folder.path).unwrap();
    for tenant in 0..TENANTS {
        folder.put(tenant, &host(tenant), "first");
    }
    let gateway = Gateway::start_in(temporary, "tenants", "", "");
    assert_eq!(counts(&gateway), (TENANTS, TENANTS));
    assert_eq!(mark(&gateway, "t1234.test").as_deref(), Some("first"));
    let (mut files, mut tenants) = (TENANTS, TENANTS);
    let mut come_to = |read, compiled| {
        (files, tenants) = (files + read, tenants + compiled);
        let counted = || counts(&gateway) == (files, tenants);
        assert!(comes_true(counted), "{:?} and not {:?}: {}", counts(&gateway), (files, tenants), gateway.log());
    };

    // One is replaced, one comes, one goes, one changes its file's name.
    folder.put(1234, "t1234.test", "second");
    come_to(1, 1);
    assert_eq!(mark(&gateway, "t1234.test").as_deref(), Some("second"));
    folder.put(TENANTS, "new.test", "first");
    come_to(1, 1);
    assert_eq!(mark(&gateway, "new.test").as_deref(), Some("first"));
    fs::remove_file(folder.file(7)).unwrap();
    assert!(comes_true(|| mark(&gateway, "t7.test").is_none()));
    fs::rename(folder.file(8), folder.path.join("other-name.yaml")).unwrap();
    come_to(1, 1);
    assert_eq!(mark(&gateway, "t8.test").as_deref(), Some("first"));
    // What is no file of tenants is not read.
    put(&folder.path.join("notes.txt"), "");

    // A wrong file keeps its former state, and others go on. It is read again with each, to see whether
    // it is good now.
    put(&folder.file(9), "revision: [");
    come_to(1, 0);
    assert_eq!(mark(&gateway, "t9.test").as_deref(), Some("first"));
    folder.put(10, "t10.test", "second");
    come_to(2, 1);
    assert!(gateway.readyz().text().contains("t9.yaml"), "{}", gateway.readyz().text());
    // Now it claims the host of a file that has not changed, and gets it when that gives way.
    folder.put(9, "t11.test", "second");
    come_to(1, 0);
    assert!(gateway.readyz().text().contains("is served by the tenant t11 already"), "{}", gateway.readyz().text());
    assert_eq!(mark(&gateway, "t9.test").as_deref(), Some("first"));
    folder.put(11, "t9.test", "second");
    come_to(2, 2);
    for host in ["t9.test", "t11.test"] {
        assert_eq!(mark(&gateway, host).as_deref(), Some("second"), "{}", gateway.readyz().text());
    }
    assert!(!gateway.readyz().text().contains("already"));

    // HUP reads all.
    gateway.process.signal("-HUP");
    come_to(TENANTS, 0);
}

#[test]
fn a_volume_whose_link_is_turned_is_read_anew() {
    let origin = Origin::start("a");
    let temporary = tempfile::tempdir().unwrap();
    let folder = Folder { path: temporary.path().join("tenants"), origin: &origin };
    let turn = |version: &str| {
        let data = folder.path.join(version);
        fs::create_dir_all(&data).unwrap();
        for tenant in 0..3 {
            put(&data.join(format!("t{tenant}.yaml")), &folder.text(tenant, &host(tenant), version));
        }
        symlink(version, folder.path.join("..next")).unwrap();
        fs::rename(folder.path.join("..next"), folder.path.join("..data")).unwrap();
    };
    turn("..first");
    for tenant in 0..3 {
        symlink(format!("..data/t{tenant}.yaml"), folder.file(tenant)).unwrap();
    }
    let gateway = Gateway::start_in(temporary, "tenants", "", "");
    assert_eq!(mark(&gateway, "t1.test").as_deref(), Some("..first"));
    turn("..second");
    assert!(comes_true(|| mark(&gateway, "t1.test").as_deref() == Some("..second")));
}

#[test]
fn a_folder_that_is_exchanged_is_found_and_watched() {
    let origin = Origin::start("a");
    let temporary = tempfile::tempdir().unwrap();
    let folder = Folder { path: temporary.path().join("tenants"), origin: &origin };
    let next = Folder { path: temporary.path().join("next"), origin: &origin };
    for (folder, mark) in [(&folder, "first"), (&next, "second")] {
        fs::create_dir(&folder.path).unwrap();
        folder.put(1, "t1.test", mark);
    }
    let gateway = Gateway::start_in(temporary, "tenants", "", "");
    assert_eq!(mark(&gateway, "t1.test").as_deref(), Some("first"));
    fs::rename(&folder.path, gateway.folder.path().join("former")).unwrap();
    fs::rename(&next.path, &folder.path).unwrap();
    assert!(comes_true(|| mark(&gateway, "t1.test").as_deref() == Some("second")));
    folder.put(1, "t1.test", "third");
    assert!(comes_true(|| mark(&gateway, "t1.test").as_deref() == Some("third")));
}
