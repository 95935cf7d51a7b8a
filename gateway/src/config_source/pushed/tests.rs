//! What comes change by change ends where the whole configuration ends.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use proptest::{prelude::*, sample::select};
use seiketsu_config::{
    load,
    node::Source,
    push::{Applied, Document, Held, Sum, Update},
    values::Id,
};
use serde_json::{json, value::RawValue};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use uuid::Uuid;

use super::{
    super::{StatusCell, seal::UnsealKey, status::ReloadStatus},
    applier::Applier,
    keeper::{Keeper, Report},
};
use crate::{proxy::Shared, server::tls::LiveTls};

/// A node that serves nobody, and what the control plane would have it hold.
struct Node {
    applier: Applier,
    shared: Arc<Shared>,
    status: Arc<StatusCell>,
    reports: mpsc::Receiver<Report>,
    folder: TempDir,
    _runtime: Runtime,
}

/// The control plane's side: documents with the revisions that they were changed in; None is the head.
#[derive(Debug, Clone, Default)]
struct Store {
    id: Uuid,
    revision: u64,
    documents: BTreeMap<Option<String>, (u64, String)>,
    gone: BTreeMap<String, u64>,
}

/// What an update leads to.
#[derive(Debug, PartialEq, Eq)]
struct State {
    /// Content and hosts of each tenant.
    tenants: BTreeMap<String, (String, Vec<String>)>,
    pools: Vec<String>,
    refused: BTreeSet<Option<String>>,
}

fn id(text: &str) -> Id {
    text.parse().unwrap()
}

impl Store {
    /// Changes documents, or removes tenants.
    fn change(&mut self, changes: &[(Option<&str>, Option<String>)]) {
        self.revision += 1;
        for (tenant, content) in changes {
            let key = tenant.map(str::to_owned);
            if let Some(content) = content {
                self.gone.remove(tenant.unwrap_or_default());
                self.documents.insert(key, (self.revision, content.clone()));
            } else {
                self.documents.remove(&key);
                self.gone.insert(tenant.unwrap().to_owned(), self.revision);
            }
        }
    }

    /// What has changed since that revision; without one, everything.
    fn update(&self, after: Option<u64>) -> Update {
        let sum =
            self.documents.iter().map(|(tenant, (_, content))| Sum::of(tenant.as_deref().map(id).as_ref(), content));
        let document = |tenant: &Option<String>, (revision, content): &(u64, String)| Document {
            tenant: tenant.as_deref().map(id),
            revision: *revision,
            content: RawValue::from_string(content.clone()).unwrap(),
        };
        let since = after.unwrap_or_default();
        let changed = || self.documents.iter().filter(|(_, (revision, _))| *revision > since);
        Update {
            nonce: self.revision,
            to: Held { store: self.id, revision: self.revision, sum: sum.fold(Sum::default(), Sum::with) },
            after,
            more: false,
            head: changed().find(|(tenant, _)| tenant.is_none()).map(|(tenant, it)| document(tenant, it)),
            put: changed().filter(|(tenant, _)| tenant.is_some()).map(|(tenant, it)| document(tenant, it)).collect(),
            gone: self
                .gone
                .iter()
                .filter(|(_, at)| after.is_some() && **at > since)
                .map(|(tenant, _)| id(tenant))
                .collect(),
        }
    }
}

impl Node {
    fn new() -> Self {
        Self::in_folder(tempfile::tempdir().unwrap())
    }

    fn in_folder(folder: TempDir) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let text = "control_plane: { url: 'http://localhost:1', token: '${env:NONE}' }\nstate_dir: state\nthreads: 1\n\
                    access_log: { output: 'off' }\negress: { allow_loopback: true }\n";
        let node = load::node(text, &folder.path().join("node.yaml")).unwrap_or_else(|errors| panic!("{errors}"));
        fs::create_dir_all(&node.state_dir).unwrap();
        let shared = Arc::new(Shared::new(node, runtime.handle()).unwrap());
        let status = Arc::new(StatusCell::default());
        let tls = Arc::new(LiveTls::new(&shared.live).unwrap());
        let (sender, reports) = mpsc::channel();
        let state_dir = &shared.node.state_dir;
        let key = UnsealKey::read(None, state_dir).unwrap();
        let (keeper, kept) = Keeper::start(state_dir, key, move |report| drop(sender.send(report))).unwrap();
        let Source::ControlPlane(settings) = shared.node.source() else { panic!() };
        let mut applier = Applier::new(settings, shared.clone(), tls, status.clone(), runtime.handle().clone(), keeper);
        applier.load(kept);
        Self { applier, shared, status, reports, folder, _runtime: runtime }
    }

    /// As after a crash that leaves what is on disk, or an end.
    fn restart(self) -> Self {
        let Self { applier, folder, .. } = self;
        drop(applier);
        Self::in_folder(folder)
    }

    fn take(&mut self, update: Update) -> Applied {
        self.applier.take(update).unwrap()
    }

    fn status(&self) -> Arc<ReloadStatus> {
        self.status.get()
    }

    /// Looks at files until this holds.
    fn looks_until(&mut self, holds: impl Fn(&Self) -> bool) {
        let until = Instant::now() + Duration::from_secs(20);
        while !holds(self) {
            assert!(Instant::now() < until, "{:?}", self.status());
            self.applier.look(false);
            std::thread::park_timeout(Duration::from_millis(2));
        }
    }

    fn hosts(&self, tenant: &str) -> Vec<String> {
        let snapshot = self.shared.live.load();
        snapshot.tenant(tenant).map(|it| it.hosts().map(ToString::to_string).collect()).unwrap_or_default()
    }

    fn state(&mut self) -> State {
        let snapshot = self.shared.live.load();
        let tenants = snapshot.tenants().map(|tenant| {
            let hosts = tenant.hosts().map(ToString::to_string).collect();
            (tenant.id().to_string(), (tenant.content_hash().to_string(), hosts))
        });
        State {
            tenants: tenants.collect(),
            pools: self.shared.upstreams.status().iter().map(|pool| pool.upstream.clone()).collect(),
            refused: self.applier.told_refused().0.into_iter().map(|it| it.tenant.map(|id| id.to_string())).collect(),
        }
    }
}

fn head(upstreams: &[&str]) -> String {
    let upstreams: serde_json::Map<_, _> = upstreams
        .iter()
        .map(|name| ((*name).to_owned(), json!({ "endpoints": [{ "address": "127.0.0.1:1" }] })))
        .collect();
    json!({ "upstreams": upstreams }).to_string()
}

fn tenant(id: &str, hosts: &[&str], upstream: &str) -> String {
    let hosts: Vec<String> = hosts.iter().map(|host| format!("{host}.example")).collect();
    let mut tenant = json!({
        "id": id, "hosts": hosts, "routes": [{ "id": "all", "match": { "path": "/{*rest}" }, "upstream": upstream }],
    });
    if upstream == "own" {
        tenant["upstreams"] = json!({ "own": { "endpoints": [{ "address": "127.0.0.1:2" }] } });
    }
    tenant.to_string()
}

fn names(applied: &Applied) -> Vec<&str> {
    applied.refused.iter().map(|refused| refused.tenant.as_ref().map_or("head", Id::as_str)).collect()
}

#[test]
fn a_wrong_tenant_keeps_its_former_state_and_the_others_go_on() {
    let (mut store, mut node) = (Store::default(), Node::new());
    store.change(&[
        (None, Some(head(&["shared"]))),
        (Some("a"), Some(tenant("a", &["a"], "shared"))),
        (Some("b"), Some(tenant("b", &["b"], "shared"))),
    ]);
    let applied = node.take(store.update(None));
    assert_eq!((applied.revision, names(&applied), applied.lost), (1, vec![], false));
    assert!(node.status().loaded);

    store.change(&[(Some("a"), Some(tenant("a", &["x"], "none"))), (Some("b"), Some(tenant("b", &["y"], "shared")))]);
    let applied = node.take(store.update(Some(1)));
    assert_eq!((applied.revision, names(&applied)), (2, vec!["a"]));
    assert!(
        applied.refused[0].errors[0].contains("routes[0].upstream (tenant a, route all): there is no upstream none")
    );
    assert_eq!((node.hosts("a"), node.hosts("b")), (vec!["a.example".to_owned()], vec!["y.example".to_owned()]));
    assert!(node.status().errors[0].contains("tenant a"));

    // A head that has what was missing mends it, and so does another document.
    store.change(&[(None, Some(head(&["shared", "none"])))]);
    assert_eq!(names(&node.take(store.update(Some(2)))), [""; 0]);
    assert_eq!(node.hosts("a"), ["x.example"]);
    assert_eq!(node.status().errors, [""; 0]);
    let whole = Node::new().take(store.update(None));
    assert_eq!(names(&whole), [""; 0]);
}

#[test]
fn a_wrong_head_keeps_the_former_one_and_tenants_go_on() {
    let (mut store, mut node) = (Store::default(), Node::new());
    store.change(&[(None, Some(head(&["shared"]))), (Some("a"), Some(tenant("a", &["a"], "shared")))]);
    node.take(store.update(None));
    store.change(&[(None, Some(r#"{"upstream":{}}"#.to_owned())), (Some("a"), Some(tenant("a", &["b"], "shared")))]);
    let applied = node.take(store.update(Some(1)));
    assert_eq!((applied.revision, names(&applied)), (2, vec!["head"]));
    assert_eq!(node.hosts("a"), ["b.example"]);
    // After a restart it is the same.
    let mut node = node.restart();
    assert!(node.status().loaded && node.status().from_last_known_good);
    assert_eq!(
        (node.hosts("a"), node.applier.begin().map(|held| held.revision)),
        (vec!["b.example".to_owned()], Some(2))
    );
    store.change(&[(None, Some(head(&["other"])))]);
    let applied = node.take(store.update(Some(2)));
    assert_eq!(names(&applied), ["a"], "its upstream is gone");
    // It goes on with what it had, whose upstream stays for it.
    assert_eq!((node.hosts("a"), node.state().pools.len()), (vec!["b.example".to_owned()], 2));
    store.change(&[(Some("a"), Some(tenant("a", &["b"], "other")))]);
    assert_eq!(names(&node.take(store.update(Some(3)))), [""; 0]);
    assert_eq!(node.state().pools.len(), 1);
}

#[test]
fn a_tenant_whose_plan_is_gone_is_not_served_without_one() {
    let (mut store, mut node) = (Store::default(), Node::new());
    let plan = |name: &str| json!({ "plans": { name: {} } }).to_string();
    let planned = json!({ "id": "a", "hosts": ["a.example"], "plan": "gold", "routes": [] }).to_string();
    store.change(&[(None, Some(plan("gold"))), (Some("a"), Some(planned))]);
    assert_eq!(names(&node.take(store.update(None))), [""; 0]);
    store.change(&[(None, Some(plan("silver")))]);
    assert_eq!(names(&node.take(store.update(Some(1)))), ["a"]);
    // To be tried again does not make it good.
    node.applier.look(true);
    assert!(node.status().errors[0].contains("gold"), "{:?}", node.status());
    store.change(&[(None, Some(plan("gold")))]);
    assert_eq!(names(&node.take(store.update(Some(2)))), [""; 0]);
}

#[test]
fn an_update_that_does_not_follow_changes_nothing() {
    let (mut store, mut node) = (Store::default(), Node::new());
    store.change(&[(None, Some(head(&["shared"]))), (Some("a"), Some(tenant("a", &["a"], "shared")))]);
    let applied = node.take(store.update(Some(0)));
    assert!(applied.lost && !node.status().loaded);
    node.take(store.update(None));
    store.change(&[(Some("a"), Some(tenant("a", &["b"], "shared")))]);
    store.change(&[(Some("b"), Some(tenant("b", &["c"], "shared")))]);
    let mut cut = store.update(Some(1));
    cut.put.pop();
    for update in [store.update(Some(2)), cut] {
        let applied = node.take(update);
        assert_eq!((applied.lost, applied.revision), (true, 1));
        assert_eq!(node.hosts("a"), ["a.example"]);
    }
    let applied = node.take(store.update(None));
    assert_eq!((applied.lost, applied.revision, node.hosts("a")), (false, 3, vec!["b.example".to_owned()]));
}

#[test]
fn a_tenant_that_is_refused_is_served_as_before_after_a_restart_too() {
    let (mut store, mut node) = (Store::default(), Node::new());
    store.change(&[(None, Some(head(&["shared"]))), (Some("a"), Some(tenant("a", &["a"], "shared")))]);
    node.take(store.update(None));
    store.change(&[(Some("a"), Some(tenant("a", &["b"], "none"))), (Some("b"), Some(tenant("b", &["b"], "own")))]);
    node.take(store.update(Some(1)));
    let before = node.state();
    let mut node = node.restart();
    assert_eq!(node.state(), before);
    assert_eq!(node.applier.begin(), Some(store.update(None).to));
    assert!(node.status().errors[0].contains("there is no upstream none"));
    // And another one asks for nothing but what has changed.
    store.change(&[(Some("b"), None)]);
    let applied = node.take(store.update(Some(2)));
    assert_eq!((names(&applied), applied.lost, node.hosts("b").len()), (vec!["a"], false, 0));
    let mut node = node.restart();
    assert_eq!((node.state().tenants.len(), node.applier.begin().map(|held| held.revision)), (1, Some(3)));
}

#[test]
fn a_host_stays_with_who_had_it_after_a_restart_too() {
    let (mut store, mut node) = (Store::default(), Node::new());
    store.change(&[(None, Some(head(&["shared"]))), (Some("r"), Some(tenant("r", &["z"], "shared")))]);
    node.take(store.update(None));
    store.change(&[(Some("r"), Some(tenant("r", &["z"], "own"))), (Some("p"), Some(tenant("p", &["z"], "shared")))]);
    assert_eq!(names(&node.take(store.update(Some(1)))), ["p"]);
    let before = node.state();
    let mut node = node.restart();
    assert_eq!(node.state(), before);
    assert!(node.status().lost.is_empty(), "what was never served is not lost");
}

#[test]
fn a_file_that_a_tenant_refers_to_is_read_again_when_it_is_another() {
    let (mut store, mut node) = (Store::default(), Node::new());
    let key = node.folder.path().join("files/a/key");
    fs::create_dir_all(key.parent().unwrap()).unwrap();
    let with_key = json!({
        "id": "a", "hosts": ["a.example"], "routes": [],
        "consumers": [{ "id": "app", "keys": [{ "prefix": "abcdefgh", "key": "${file:files/a/key}" }] }],
    });
    store.change(&[(Some("a"), Some(with_key.to_string()))]);
    let applied = node.take(store.update(None));
    assert_eq!(names(&applied), ["a"]);
    assert!(applied.refused[0].errors[0].contains(&key.display().to_string()), "{applied:?}");
    assert!(!node.status().loaded, "nothing is in force");
    fs::write(&key, "sk_abcdefgh_0123456789abcdefghijklmnopqrstuv").unwrap();
    node.looks_until(|node| node.status().loaded);
    assert_eq!((node.status().errors.len(), node.hosts("a")), (0, vec!["a.example".to_owned()]));
    let entry = node.shared.live.load().tenant("a").unwrap().clone();
    fs::write(&key, "sk_abcdefgh_vutsrqponmlkjihgfedcba9876543210").unwrap();
    node.looks_until(|node| !Arc::ptr_eq(&entry, node.shared.live.load().tenant("a").unwrap()));
    fs::remove_file(&key).unwrap();
    node.looks_until(|node| node.status().errors.len() == 1);
    assert_eq!(node.hosts("a").len(), 1, "it keeps the key that it has");
}

fn with_rate(id: &str, requests: u64) -> String {
    let mut tenant: serde_json::Value = serde_json::from_str(&tenant(id, &[id], "own")).unwrap();
    tenant["policies"] = json!({ "limits": { "rate": { "requests": requests, "per": "1m" } } });
    tenant.to_string()
}

#[test]
fn limits_of_another_store_and_of_one_that_was_set_back_hold_though_their_revisions_are_lower() {
    let (mut store, mut node) = (Store::default(), Node::new());
    let in_force = |node: &Node| {
        let snapshot = node.shared.live.load();
        let tenant = snapshot.tenant("a").unwrap().compiled();
        let config = serde_json::to_value(&*tenant.config).unwrap();
        (config["policies"]["limits"]["rate"]["requests"].as_u64(), tenant.limits_since.revision)
    };
    store.change(&[(None, Some(head(&["shared"])))]);
    for requests in 1..10 {
        store.change(&[(Some("a"), Some(with_rate("a", requests))), (Some("same"), Some(with_rate("same", 7)))]);
    }
    node.take(store.update(None));
    let mut highest = in_force(&node).1;
    // A lower revision that follows upon it means nothing: see `an_update_that_does_not_follow_changes_nothing`.
    let mut other = Store { id: Uuid::from_u128(1), ..Store::default() };
    other.change(&[
        (None, Some(head(&["shared"]))),
        (Some("a"), Some(with_rate("a", 100))),
        (Some("same"), Some(with_rate("same", 7))),
    ]);
    let mut set_back = other.clone();
    other.change(&[(Some("a"), Some(with_rate("a", 200)))]);
    set_back.documents.insert(Some("a".to_owned()), (1, with_rate("a", 300)));
    for (store, requests) in [(other, 200), (set_back, 300)] {
        let applied = node.take(store.update(None));
        assert_eq!((names(&applied), applied.revision), (vec![], store.revision));
        let (rate, since) = in_force(&node);
        assert_eq!(rate, Some(requests));
        assert!(since > highest, "accounts take only what is above: {since} {highest}");
        highest = since;
        // And a start from what was kept is no turn back.
        node = node.restart();
        assert_eq!(in_force(&node), (Some(requests), since));
        // Nor is a tenant that was the same in both stores numbered as in the former one: its next change has to hold too.
        let mut next = store.clone();
        next.change(&[(Some("same"), Some(with_rate("same", requests + 1)))]);
        let applied = node.take(next.update(Some(store.revision)));
        assert_eq!((names(&applied), applied.lost), (vec![], false));
    }
}

#[test]
fn revisions_that_were_given_twice_are_told_apart_by_their_sums() {
    let (mut store, mut node) = (Store::default(), Node::new());
    store.change(&[(None, Some(head(&["shared"]))), (Some("a"), Some(tenant("a", &["a"], "shared")))]);
    let mut again = store.clone();
    store.change(&[(Some("a"), Some(tenant("a", &["before"], "shared")))]);
    node.take(store.update(None));
    // The store is set back, and goes on: its second revision is another one.
    again.change(&[(Some("b"), Some(tenant("b", &["b"], "shared")))]);
    again.change(&[(Some("c"), Some(tenant("c", &["c"], "shared")))]);
    let applied = node.take(again.update(Some(2)));
    assert!(applied.lost, "{applied:?}");
    assert_eq!((node.hosts("a"), node.hosts("c").len()), (vec!["before.example".to_owned()], 0));
    let applied = node.take(again.update(None));
    assert_eq!((applied.lost, names(&applied), node.hosts("a")), (false, vec![], vec!["a.example".to_owned()]));
    assert_eq!((node.hosts("b").len(), node.hosts("c").len()), (1, 1));
}

#[test]
fn a_tenant_names_nothing_of_the_node_but_what_is_there_for_it() {
    let (mut store, mut node) = (Store::default(), Node::new());
    let file = |path: &str| node.folder.path().join(path);
    let (own, secret) = (file("files/a/key"), file("secret"));
    fs::create_dir_all(own.parent().unwrap()).unwrap();
    fs::write(&secret, "sk_abcdefgh_0123456789abcdefghijklmnopqrstuv").unwrap();
    let naming = |reference: &str| {
        let key = json!({ "prefix": "abcdefgh", "key": reference });
        json!({ "id": "a", "hosts": ["a.example"], "routes": [], "consumers": [{ "id": "app", "keys": [key] }] })
            .to_string()
    };
    for reference in ["${file:secret}", "${file:files/a/../../secret}", "${file:files/b/key}", "${env:PATH}"] {
        store.change(&[(Some("a"), Some(naming(reference)))]);
        let applied = node.take(store.update(None));
        assert!(applied.refused[0].errors[0].contains("consumers[0].keys[0].key"), "{applied:?}");
    }
    let absolute = naming(&format!("${{file:{}}}", secret.display()));
    store.change(&[(Some("a"), Some(absolute))]);
    assert_eq!(names(&node.take(store.update(None))), ["a"]);
    // A link is no way out either, until the file itself is there.
    std::os::unix::fs::symlink(&secret, &own).unwrap();
    store.change(&[(Some("a"), Some(naming("${file:files/a/key}")))]);
    let applied = node.take(store.update(None));
    assert!(applied.refused[0].errors[0].contains("is a link that leads out of"), "{applied:?}");
    fs::remove_file(&own).unwrap();
    fs::copy(&secret, &own).unwrap();
    node.looks_until(|node| node.status().errors.is_empty());
    assert_eq!(node.hosts("a"), ["a.example"]);
}

/// A node that held `a` and `b` and is started again, with this copy altered meanwhile.
fn with_altered_copy(of: &str) -> (Store, Node) {
    let (mut store, mut node) = (Store::default(), Node::new());
    store.change(&[
        (None, Some(head(&["shared"]))),
        (Some("a"), Some(tenant("a", &["a"], "shared"))),
        (Some("b"), Some(tenant("b", &["b"], "shared"))),
    ]);
    node.take(store.update(None));
    let state_dir = node.shared.node.state_dir.clone();
    let Node { applier, folder, .. } = node;
    drop(applier);
    let journal = fs::read_to_string(state_dir.join("control-plane/journal.json")).unwrap();
    let files = journal.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["files"].clone());
    let name = files.filter_map(|files| files[of].as_str().map(str::to_owned)).next_back().unwrap();
    fs::write(state_dir.join("control-plane").join(name), "evil").unwrap();
    (store, Node::in_folder(folder))
}

#[test]
fn what_is_not_as_it_was_kept_is_named_and_asked_for_again() {
    let (store, mut node) = with_altered_copy("control-plane/tenants/a");
    assert_eq!((node.hosts("a").len(), node.hosts("b").len(), &*node.status().lost), (0, 1, &["a".to_owned()][..]));
    assert_eq!(node.applier.begin(), None, "it does not hold what it should");
    node.take(store.update(None));
    assert_eq!((node.hosts("a").len(), node.status().lost.len()), (1, 0));
}

#[test]
fn without_the_head_that_was_kept_nobody_is_served() {
    let (store, mut node) = with_altered_copy("control-plane/head");
    assert_eq!((node.hosts("a").len(), node.hosts("b").len()), (0, 0));
    assert_eq!((node.status().loaded, &*node.status().lost), (false, &["a".to_owned(), "b".to_owned()][..]));
    assert_eq!(node.applier.begin(), None);
    node.take(store.update(None));
    assert_eq!((node.hosts("a").len(), node.hosts("b").len(), node.status().lost.len()), (1, 1, 0));
}

#[test]
fn one_of_very_many_costs_what_one_costs() {
    const TENANTS: usize = 5_000;
    let (mut store, mut node) = (Store::default(), Node::new());
    let id = |number: usize| format!("t{number}");
    let all: Vec<(String, String)> =
        (0..TENANTS).map(|number| (id(number), tenant(&id(number), &[&id(number)], "shared"))).collect();
    let mut changes: Vec<_> = all.iter().map(|(id, content)| (Some(id.as_str()), Some(content.clone()))).collect();
    changes.push((None, Some(head(&["shared"]))));
    store.change(&changes);
    node.take(store.update(None));
    let compiled = |node: &Node| {
        let text = node.shared.metrics.render();
        let line = text.lines().find(|line| line.starts_with("seiketsu_config_tenants_compiled_total")).unwrap();
        line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()
    };
    assert_eq!(compiled(&node), TENANTS);
    let entry = node.shared.live.load().tenant("t1").unwrap().clone();
    store.change(&[(Some("t7"), Some(tenant("t7", &["seven"], "shared")))]);
    node.take(store.update(Some(1)));
    assert_eq!((compiled(&node), node.hosts("t7")), (TENANTS + 1, vec!["seven.example".to_owned()]));
    assert!(Arc::ptr_eq(&entry, node.shared.live.load().tenant("t1").unwrap()));
    // The whole configuration once more compiles nothing that is as it was.
    node.take(store.update(None));
    assert_eq!(compiled(&node), TENANTS + 1);
    assert!(node.reports.iter().any(|report| matches!(report, Report::Kept(None))), "it is kept");
}

#[test]
fn tenants_that_set_nothing_but_limits_share_the_policies_of_all_others() {
    let (mut store, mut node) = (Store::default(), Node::new());
    let with = |id: &str, policies: serde_json::Value| {
        let mut tenant: serde_json::Value = serde_json::from_str(&tenant(id, &[id], "own")).unwrap();
        tenant["policies"] = policies;
        tenant.to_string()
    };
    let timeouts = |total: &str| json!({ "timeouts": { "total": total } });
    store.change(&[
        (Some("a"), Some(with_rate("a", 60))),
        (Some("b"), Some(with_rate("b", 70))),
        (Some("c"), Some(with("c", timeouts("7s")))),
    ]);
    node.take(store.update(None));
    let policies =
        |node: &Node, id: &str| node.shared.live.load().tenant(id).unwrap().compiled().routes[0].policies.clone();
    let shared = policies(&node, "a");
    assert!(Arc::ptr_eq(&shared, &policies(&node, "b")) && !Arc::ptr_eq(&shared, &policies(&node, "c")));
    // Also when they come one by one, later; and what is set is what holds.
    store.change(&[(Some("b"), Some(with_rate("b", 80)))]);
    store.change(&[(Some("c"), Some(with("c", timeouts("8s"))))]);
    node.take(store.update(Some(1)));
    assert!(Arc::ptr_eq(&shared, &policies(&node, "b")));
    assert_eq!(policies(&node, "c").timeouts.total.get(), Duration::from_secs(8));
    store.change(&[(Some("c"), Some(with_rate("c", 60))), (Some("a"), Some(with("a", timeouts("9s"))))]);
    node.take(store.update(Some(3)));
    assert_eq!(policies(&node, "a").timeouts.total.get(), Duration::from_secs(9));
    assert_eq!(policies(&node, "c").timeouts.total, shared.timeouts.total);
}

/// Hosts and an upstream; none, where the tenant is gone.
type Content = Option<(BTreeSet<&'static str>, &'static str)>;

/// What a document may be: good, or wrong in some way.
fn content() -> impl Strategy<Value = Content> {
    let hosts = prop::collection::btree_set(select(vec!["x", "y", "z", "w"]), 1..3);
    prop_oneof![
        6 => (hosts, select(vec!["shared", "own", "other", "none"])).prop_map(Some),
        1 => Just(None),
    ]
}

#[derive(Debug, Clone)]
struct Edit {
    tenants: Vec<(&'static str, Content)>,
    head: Option<&'static str>,
    restart: bool,
    /// How many changes come together.
    waits: bool,
}

fn edit() -> impl Strategy<Value = Edit> {
    let heads = select(vec![r#"{"upstreams":["#, "shared", "shared other", "other"]);
    (
        prop::collection::vec((select(vec!["p", "q", "r"]), content()), 0..4),
        prop::option::weighted(0.2, heads),
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.3),
    )
        .prop_map(|(tenants, head, restart, waits)| Edit { tenants, head, restart, waits })
}

impl Edit {
    fn make(&self, store: &mut Store) {
        let mut changes: Vec<(Option<&str>, Option<String>)> = Vec::new();
        let last: BTreeMap<&str, _> = self.tenants.iter().map(|(id, content)| (*id, content)).collect();
        for (id, content) in last {
            let exists = store.documents.contains_key(&Some(id.to_owned()));
            let text = content
                .as_ref()
                .map(|(hosts, upstream)| tenant(id, &hosts.iter().copied().collect::<Vec<_>>(), upstream));
            if text.is_some() || exists {
                changes.push((Some(id), text));
            }
        }
        if let Some(names) = self.head {
            let text = if names.starts_with('{') {
                json!({ "upstream": 1 }).to_string()
            } else {
                head(&names.split(' ').collect::<Vec<_>>())
            };
            changes.push((None, Some(text)));
        }
        store.change(&changes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn changes_end_where_the_whole_configuration_ends(edits in prop::collection::vec(edit(), 1..12)) {
        let (mut store, mut node) = (Store::default(), Node::new());
        store.change(&[(None, Some(head(&["shared"])))]);
        node.take(store.update(None));
        for (number, edit) in edits.iter().enumerate() {
            edit.make(&mut store);
            if edit.waits && number + 1 < edits.len() {
                continue;
            }
            if edit.restart {
                let before = node.state();
                node = node.restart();
                let after = node.state();
                // What only the former head could bear is not there any more.
                let same = before.tenants.iter().filter(|(id, _)| !before.refused.contains(&Some((*id).clone())));
                for (id, tenant) in same {
                    prop_assert_eq!(after.tenants.get(id), Some(tenant));
                }
            }
            let held = node.applier.begin().map(|held| held.revision);
            let applied = node.take(store.update(held));
            prop_assert!(!applied.lost, "{applied:?}");
            prop_assert_eq!(applied.revision, store.revision);
            // Every tenant is as its document says, or named.
            let state = node.state();
            let head_refused = state.refused.contains(&None);
            for (tenant, (_, content)) in &store.documents {
                let Some(tenant) = tenant else { continue };
                let document: serde_json::Value = serde_json::from_str(content).unwrap();
                let hosts: BTreeSet<&str> = document["hosts"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
                let is_so = state.tenants.get(tenant).is_some_and(|(_, now)| now.iter().map(String::as_str).collect::<BTreeSet<_>>() == hosts);
                prop_assert!(is_so || state.refused.contains(&Some(tenant.clone())), "{tenant} {state:?}");
            }
            prop_assert!(state.tenants.keys().all(|id| store.documents.contains_key(&Some(id.clone()))));
            // Where nothing is refused, the way there does not matter.
            if state.refused.is_empty() && !head_refused {
                let mut fresh = Node::new();
                fresh.take(store.update(None));
                prop_assert_eq!(fresh.state(), state);
            }
        }
    }
}
