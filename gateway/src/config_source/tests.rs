//! Reloads of what has changed end where reading everything ends.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use proptest::{prelude::*, sample::select};
use seiketsu_config::load;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use super::{
    StatusCell,
    last_known_good::LastKnownGood,
    reload::{Look, Reloader},
    status::ReloadStatus,
};
use crate::{proxy::Shared, server::tls::LiveTls};

/// A node that serves nobody, with its folder of tenants.
struct Node {
    reloader: Reloader,
    shared: Arc<Shared>,
    status: Arc<StatusCell>,
    folder: TempDir,
    _runtime: Runtime,
}

/// What a reload leads to.
#[derive(Debug, PartialEq, Eq)]
struct State {
    /// File, content and hosts of each tenant.
    tenants: BTreeMap<String, (PathBuf, String, Vec<String>)>,
    revision: u64,
    pools: Vec<String>,
    errors: Vec<String>,
    /// What would be served if the files were lost.
    kept: BTreeMap<PathBuf, String>,
}

impl Node {
    fn new() -> Self {
        Self::in_folder(tempfile::tempdir().unwrap())
    }

    fn in_folder(folder: TempDir) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        fs::create_dir_all(folder.path().join("tenants")).unwrap();
        let text = "tenants: tenants\nstate_dir: state\nthreads: 1\naccess_log: { output: 'off' }\n\
                    egress: { allow_loopback: true }\n";
        let node = load::node(text, &folder.path().join("node.yaml")).unwrap_or_else(|errors| panic!("{errors}"));
        fs::create_dir_all(&node.state_dir).unwrap();
        let shared = Arc::new(Shared::new(node, runtime.handle()).unwrap());
        let status = Arc::new(StatusCell::default());
        let tls = Arc::new(LiveTls::new(&shared.live).unwrap());
        let tenants = shared.node.tenants.clone().unwrap();
        let reloader = Reloader::new(&tenants, shared.clone(), tls, status.clone(), runtime.handle().clone());
        Self { reloader, shared, status, folder, _runtime: runtime }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("tenants").join(name)
    }

    /// Files that are none are removed.
    fn write(&self, files: &[(&str, Option<String>)]) {
        for (name, text) in files {
            let path = self.path(name);
            match text {
                Some(text) => fs::write(path, text).unwrap(),
                None => drop(fs::remove_file(path)),
            }
        }
    }

    /// As after notifications of these files.
    fn look_at(&mut self, names: &[&str]) {
        let named = names.iter().map(Into::into).collect();
        self.reloader.look(&Look { named, ..Look::default() });
    }

    fn look_at_everything(&mut self) {
        self.reloader.look(&Look { again: true, ..Look::default() });
    }

    fn status(&self) -> Arc<ReloadStatus> {
        self.status.get()
    }

    fn state(&self) -> State {
        let snapshot = self.shared.live.load();
        let short = |path: &Path| path.file_name().unwrap().into();
        let tenants = snapshot.tenants().map(|tenant| {
            let hosts = tenant.hosts().map(ToString::to_string).collect();
            let file = short(&tenant.compiled().file);
            (tenant.id().to_string(), (file, tenant.content_hash().to_string(), hosts))
        });
        let kept = LastKnownGood::open(&self.shared.node.state_dir);
        let folder = self.folder.path().display().to_string();
        State {
            tenants: tenants.collect(),
            revision: snapshot.revision(),
            pools: self.shared.upstreams.status().iter().map(|pool| pool.upstream.replace(&folder, "")).collect(),
            errors: self.status().errors.iter().map(|error| error.replace(&folder, "")).collect(),
            kept: kept.paths().iter().map(|path| (short(path), kept.text(path).unwrap())).collect(),
        }
    }
}

/// Tenants by id, hosts and whether they bring an upstream.
fn file(revision: u64, tenants: &[(&str, Vec<&str>, bool)]) -> String {
    let tenant = |(id, hosts, own): &(&str, Vec<&str>, bool)| {
        let upstreams = if *own { "  upstreams: {own: {endpoints: [{address: '127.0.0.1:2'}]}}\n" } else { "" };
        format!(
            "- id: {id}\n  hosts: [{}]\n{upstreams}  routes:\n  - {{id: all, match: {{path: '/{{*rest}}'}}, upstream: {}}}\n",
            hosts.iter().map(|host| format!("'{host}.example'")).collect::<Vec<_>>().join(", "),
            if *own { "own" } else { "shared" },
        )
    };
    let tenants: String = tenants.iter().map(tenant).collect();
    format!(
        "revision: {revision}\nupstreams: {{shared: {{endpoints: [{{address: '127.0.0.1:1'}}]}}}}\ntenants:\n{tenants}"
    )
}

fn one(id: &str, host: &str) -> String {
    file(1, &[(id, vec![host], false)])
}

#[test]
fn a_file_that_clashes_is_taken_when_the_other_one_gives_way() {
    let mut node = Node::new();
    node.write(&[("a.yaml", Some(one("a", "x"))), ("b.yaml", Some(one("b", "y"))), ("c.yaml", Some(one("c", "z")))]);
    node.look_at_everything();
    assert_eq!(node.status().errors, [""; 0]);

    // A change of one file clashes with another that has not changed; others go on.
    node.write(&[("a.yaml", Some(one("a", "y"))), ("c.yaml", Some(one("c", "w")))]);
    node.look_at(&["a.yaml", "c.yaml"]);
    let state = node.state();
    assert_eq!(
        state.errors,
        [
            "/tenants/a.yaml:4:1: tenants[0].hosts[0] (tenant a): the host y.example is served by the tenant b already\n    fix: a host belongs to one tenant: remove it from one of them"
        ]
    );
    assert_eq!(
        (&*state.tenants["a"].2, &*state.tenants["c"].2),
        (&["x.example".to_owned()][..], &["w.example".to_owned()][..])
    );

    // The other one gives way.
    node.write(&[("b.yaml", Some(one("b", "v")))]);
    node.look_at(&["b.yaml"]);
    let state = node.state();
    assert_eq!((state.errors.len(), &*state.tenants["a"].2), (0, &["y.example".to_owned()][..]));

    // The same tenant in another file, until the first is removed.
    node.write(&[("d.yaml", Some(one("a", "u")))]);
    node.look_at(&["d.yaml"]);
    let errors = &node.state().errors;
    assert!(errors[0].contains("the tenant a stands in /tenants/a.yaml:4 already"), "{errors:?}");
    node.write(&[("a.yaml", None)]);
    node.look_at(&["a.yaml"]);
    let state = node.state();
    assert_eq!((state.errors.len(), &*state.tenants["a"].2), (0, &["u.example".to_owned()][..]));
}

#[test]
fn tenants_of_one_file_clash_with_their_exact_place() {
    let mut node = Node::new();
    node.write(&[("a.yaml", Some(file(1, &[("a", vec!["x"], false), ("b", vec!["y"], false)])))]);
    node.look_at_everything();
    node.write(&[("a.yaml", Some(file(1, &[("a", vec!["x"], false), ("b", vec!["z", "x"], false)])))]);
    node.look_at(&["a.yaml"]);
    let errors = node.state().errors;
    assert!(errors[0].starts_with("/tenants/a.yaml:9:24: tenants[1].hosts[1] (tenant b)"), "{errors:?}");
}

#[test]
fn a_head_changes_all_tenants_of_its_file_and_no_others() {
    let mut node = Node::new();
    let both = file(1, &[("a", vec!["x"], false), ("b", vec!["y"], true)]);
    node.write(&[("a.yaml", Some(both.clone())), ("c.yaml", Some(one("c", "z")))]);
    node.look_at_everything();
    let entry = |node: &Node, id| node.shared.live.load().tenant(id).unwrap().clone();
    let before = ["a", "b", "c"].map(|id| entry(&node, id));
    node.write(&[("a.yaml", Some(both.replace("revision: 1", "revision: 7")))]);
    node.look_at(&["a.yaml"]);
    assert!(["a", "b", "c"].iter().zip(&before).all(|(id, before)| Arc::ptr_eq(&entry(&node, id), before)));
    assert_eq!(node.state().revision, 7);
    node.write(&[("a.yaml", Some(both.replace("127.0.0.1:1", "127.0.0.1:3")))]);
    node.look_at(&["a.yaml"]);
    let same = ["a", "b", "c"].map(|id| before.iter().any(|before| Arc::ptr_eq(&entry(&node, id), before)));
    assert_eq!((same, node.state().revision), ([false, false, true], 1));
}

#[test]
fn a_node_starts_each_wrong_file_from_what_was_kept() {
    let mut node = Node::new();
    node.write(&[("a.yaml", Some(one("a", "x"))), ("b.yaml", Some(one("b", "y"))), ("c.yaml", Some(one("c", "z")))]);
    node.reloader.load_first();
    assert!(node.status().loaded && !node.status().from_last_known_good);
    let before = node.state();
    node.write(&[("b.yaml", Some("revision: [".to_owned())), ("c.yaml", None)]);
    let Node { folder, reloader, .. } = node;
    drop(reloader);
    let mut node = Node::in_folder(folder);
    node.reloader.load_first();
    let state = node.state();
    assert!(node.status().from_last_known_good && state.errors.len() == 1, "{state:?}");
    assert_eq!(state.tenants.keys().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(state.tenants["b"], before.tenants["b"]);
    node.write(&[("b.yaml", Some(one("b", "w")))]);
    node.look_at(&["b.yaml"]);
    assert!(!node.status().from_last_known_good);
    assert_eq!(node.state().tenants["b"].2, ["w.example"]);
}

#[test]
fn what_was_kept_and_is_removed_is_kept_anew() {
    let mut node = Node::new();
    node.write(&[("a.yaml", Some(one("a", "x"))), ("b.yaml", Some(one("b", "y")))]);
    node.look_at_everything();
    let (before, kept) = (node.state(), node.shared.node.state_dir.join("last-known-good"));
    assert_eq!(before.kept.len(), 2);
    fs::remove_dir_all(&kept).unwrap();
    node.look_at(&[]);
    assert_eq!(node.state(), before);
    let journal = kept.join("journal.json");
    fs::remove_file(&journal).unwrap();
    node.look_at(&[]);
    assert_eq!(node.state(), before);
    fs::write(&journal, "").unwrap();
    node.look_at(&[]);
    assert_eq!(node.state(), before);
    fs::write(&journal, "{\"files\":{}}\n").unwrap();
    node.look_at_everything();
    assert_eq!(node.state(), before);
    let copies = || fs::read_dir(&kept).unwrap().map(|copy| copy.unwrap().path()).filter(|copy| *copy != journal);
    copies().take(1).for_each(|copy| fs::write(copy, "").unwrap());
    node.look_at_everything();
    assert_eq!(node.state(), before);
    copies().for_each(|copy| fs::remove_file(copy).unwrap());
    node.look_at_everything();
    assert_eq!(node.state(), before);

    // Where it cannot be, that is told, and what comes back meanwhile is overtaken.
    let away = node.folder.path().join("away");
    fs::rename(&kept, &away).unwrap();
    fs::write(&kept, "").unwrap();
    node.look_at(&[]);
    assert!(node.status().last_known_good_error.is_some());
    node.write(&[("a.yaml", None)]);
    node.look_at(&["a.yaml"]);
    fs::remove_file(&kept).unwrap();
    fs::rename(&away, &kept).unwrap();
    node.look_at(&[]);
    assert_eq!(node.status().last_known_good_error, None);
    assert_eq!(node.state().kept.into_keys().collect::<Vec<_>>(), [Path::new("b.yaml")]);
}

#[test]
fn what_is_gone_stays_in_force_while_a_new_file_is_wrong() {
    let mut node = Node::new();
    node.write(&[("a.yaml", Some(one("a", "x"))), ("b.yaml", Some(one("b", "y")))]);
    node.look_at_everything();
    let tenants = |node: &Node| node.state().tenants.into_keys().collect::<Vec<_>>();
    // It may be what has become of the first one.
    node.write(&[("a.yaml", None), ("c.yaml", Some("revision: [".to_owned()))]);
    node.look_at(&["a.yaml", "c.yaml"]);
    assert_eq!(tenants(&node), ["a", "b"]);
    // What has certainly another name gets it.
    node.write(&[("b.yaml", None), ("d.yaml", Some(one("b", "y")))]);
    node.look_at(&["b.yaml", "d.yaml"]);
    let state = node.state();
    assert_eq!((&*state.tenants["b"].0, state.errors.len()), (Path::new("d.yaml"), 1));
    node.write(&[("c.yaml", Some(one("c", "z")))]);
    node.look_at(&["c.yaml"]);
    assert_eq!((tenants(&node), node.status().errors.len()), (vec!["b".to_owned(), "c".to_owned()], 0));
}

/// Like [`file`], of tenants that all have this daily quota in the same place.
fn limited(revision: u64, tenants: &[&str], place: &str, daily: u64) -> String {
    let limits = format!("limits: {{quotas: {{daily: {daily}}}}}");
    let keyed = format!("limits: {{keyed: [{{id: k, by: {{header: x-k}}, quotas: {{daily: {daily}}}}}]}}");
    let tenants: Vec<_> = tenants.iter().map(|id| (*id, vec![*id], false)).collect();
    let text = file(revision, &tenants);
    let before_routes = |more: &str| text.replace("  routes:\n", &format!("  {more}\n  routes:\n"));
    let of_route = |more: &str| text.replace("upstream: shared}", &format!("upstream: shared, policies: {{{more}}}}}"));
    match place {
        "defaults" => format!("defaults: {{{limits}}}\n{text}"),
        "tenant" => before_routes(&format!("policies: {{{limits}}}")),
        "keyed" => before_routes(&format!("policies: {{{keyed}}}")),
        "consumer" => before_routes(&format!("consumers: [{{id: someone, {limits}}}]")),
        "route" => of_route(&limits),
        "keyed of a route" => of_route(&keyed),
        place => panic!("{place}"),
    }
}

#[test]
fn other_limits_of_a_lower_revision_are_refused() {
    for place in ["defaults", "tenant", "keyed", "consumer", "route", "keyed of a route"] {
        let mut node = Node::new();
        let mut reload = |revision, daily| {
            node.write(&[("a.yaml", Some(limited(revision, &["a"], place, daily)))]);
            node.look_at(&["a.yaml"]);
            node.state()
        };
        assert_eq!(reload(5, 3).errors, [""; 0], "{place}");
        let state = reload(4, 9);
        assert_eq!(state.revision, 5, "{place}");
        let told = [
            "tenants[0] (tenant a): its limits are not those in force, which are of revision 5",
            "from revision 4",
            "write revision: 5 or a higher one",
        ];
        assert!(told.iter().all(|part| state.errors[0].contains(part)), "{place}: {state:?}");
        // The same limits are those in force, whatever the number, and stay of the revision that brought them.
        let state = reload(4, 3);
        assert_eq!((state.errors.len(), state.revision), (0, 4), "{place}: {state:?}");
        assert_eq!(reload(4, 9).errors.len(), 1, "{place}");
        assert_eq!(reload(5, 9).errors, [""; 0], "{place}");
        assert_eq!(reload(6, 3).errors, [""; 0], "{place}");
    }
}

#[test]
fn a_tenant_does_not_go_to_a_file_where_its_limits_are_of_a_lower_revision() {
    let mut node = Node::new();
    let of = |revision, tenants: &[&str], daily| Some(limited(revision, tenants, "tenant", daily));
    node.write(&[("a.yaml", of(5, &["a", "c"], 3)), ("b.yaml", of(2, &["b"], 3))]);
    node.look_at_everything();
    let before = node.state();
    node.write(&[("a.yaml", of(5, &["c"], 3)), ("b.yaml", of(2, &["b", "a"], 9))]);
    node.look_at(&["a.yaml", "b.yaml"]);
    let state = node.state();
    assert_eq!(state.tenants, before.tenants, "it stays where it is");
    assert!(state.errors[0].contains("the tenant a is to go to /tenants/b.yaml, which is refused"), "{state:?}");
    assert!(state.errors[1].contains("b.yaml") && state.errors[1].contains("revision 5"), "{state:?}");
    // Also from one that is gone.
    node.write(&[("a.yaml", None)]);
    node.look_at(&["a.yaml"]);
    let state = node.state();
    assert_eq!((state.tenants, state.errors.len()), (before.tenants, 1), "{:?}", node.status().errors);
    node.write(&[("b.yaml", of(5, &["b", "a"], 9))]);
    node.look_at(&["b.yaml"]);
    let state = node.state();
    assert_eq!((state.errors.len(), state.tenants.into_keys().collect::<Vec<_>>()), (0, vec!["a".into(), "b".into()]));
}

const FILES: [&str; 4] = ["a.yaml", "b.yaml", "c.yaml", "d.yaml"];

fn content() -> impl Strategy<Value = Option<String>> {
    let tenant = (
        select(vec!["p", "q", "r"]),
        prop::collection::btree_set(select(vec!["x", "y", "z", "*.x"]), 1..3),
        any::<bool>(),
    );
    let tenants = prop::collection::vec(tenant, 0..3);
    prop_oneof![
        8 => (1..4_u64, tenants).prop_map(|(revision, tenants)| {
            let tenants: Vec<_> = tenants.into_iter().map(|(id, hosts, own)| (id, hosts.into_iter().collect(), own)).collect();
            let text = file(revision, &tenants);
            Some(if tenants.is_empty() { text.replace("tenants:\n", "tenants: []\n") } else { text })
        }),
        1 => Just(Some("revision: [".to_owned())),
        2 => Just(None),
    ]
}

/// Some files get another content; or two change their names.
#[derive(Debug, Clone)]
enum Edit {
    Write(Vec<(usize, Option<String>)>),
    Exchange(usize, usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        4 => prop::collection::vec((0..FILES.len(), content()), 1..4).prop_map(Edit::Write),
        1 => (0..FILES.len(), 0..FILES.len()).prop_map(|(one, other)| Edit::Exchange(one, other)),
    ]
}

impl Edit {
    /// Makes it, and says which files are others now.
    fn make(&self, node: &Node) -> BTreeSet<&'static str> {
        match self {
            Self::Write(files) => {
                let files: BTreeMap<usize, &Option<String>> = files.iter().map(|(file, text)| (*file, text)).collect();
                for (file, text) in &files {
                    node.write(&[(FILES[*file], (*text).clone())]);
                }
                files.keys().map(|file| FILES[*file]).collect()
            }
            Self::Exchange(one, other) => {
                let (one, other) = (FILES[*one], FILES[*other]);
                let texts = [one, other].map(|file| fs::read_to_string(node.path(file)).ok());
                node.write(&[(other, texts[0].clone())]);
                node.write(&[(one, texts[1].clone())]);
                [one, other].into()
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn what_is_read_file_by_file_ends_where_reading_everything_ends(edits in prop::collection::vec(edit(), 1..12)) {
        let (mut incremental, mut whole) = (Node::new(), Node::new());
        incremental.look_at_everything();
        whole.look_at_everything();
        for edit in &edits {
            let names: Vec<&str> = edit.make(&incremental).into_iter().collect();
            edit.make(&whole);
            incremental.look_at(&names);
            whole.look_at_everything();
            let state = incremental.state();
            prop_assert_eq!(&state, &whole.state());

            // What is in force of a file is what it says, unless something is wrong with it.
            for name in FILES {
                let Ok(text) = fs::read_to_string(incremental.path(name)) else { continue };
                let is_wrong = state.errors.iter().any(|error| error.starts_with(&format!("/tenants/{name}")));
                let folder_is_wrong = state.errors.iter().any(|error| error.starts_with("the folder"));
                prop_assert!(is_wrong || folder_is_wrong || state.kept.get(Path::new(name)) == Some(&text), "{} {:?}", name, state);
            }
            // And to look once more changes nothing.
            incremental.look_at_everything();
            prop_assert_eq!(&state, &incremental.state());
        }
        // Where nothing is wrong, the way there does not matter.
        let mut fresh = Node::new();
        for name in FILES {
            fresh.write(&[(name, fs::read_to_string(incremental.path(name)).ok())]);
        }
        fresh.look_at_everything();
        if fresh.status().errors.is_empty() {
            prop_assert_eq!(fresh.state(), incremental.state());
        }
    }
}
