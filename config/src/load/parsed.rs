//! Files of tenants, read in pieces on several threads, and re-read at the price of what has changed.

use std::{
    collections::HashMap,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Fault, describe,
    files::Resolver,
    locate::{Found, locate},
    parallel,
    split::{Piece, Pieces, split},
    yaml::{self, Anchors, Node, Refusal},
};
use crate::{
    check::{self, Problem},
    error::ConfigErrors,
    path::{ConfigPath, PathStep},
    tenant::{Tenant, TenantFile, TenantHead},
    values::Id,
};

/// A file of tenants that was read and checked.
#[derive(Debug)]
pub struct ParsedTenants {
    origin: PathBuf,
    text: String,
    head: Arc<TenantHead>,
    tenants: Vec<Arc<Tenant>>,
    /// For each tenant the line it begins in.
    lines: Vec<u32>,
    /// For each tenant where its text stands; none if the document was read in one go.
    pieces: Vec<Range<usize>>,
}

/// What a reading of a file has that an earlier one has not, and the other way round.
#[derive(Debug, Default)]
pub struct Difference {
    /// The numbers of tenants that are new or have changed.
    pub put: Vec<usize>,
    /// Tenants of the earlier reading that have changed or are no longer there.
    pub gone: Vec<Arc<Tenant>>,
}

impl ParsedTenants {
    /// The file it was read from.
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// What was read.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What stands beside the tenants. The same `Arc` as before the file was re-read, if it is the same.
    pub fn head(&self) -> &Arc<TenantHead> {
        &self.head
    }

    /// The tenants in the order of the file. A tenant that a re-read left as it was is the same `Arc`.
    pub fn tenants(&self) -> &[Arc<Tenant>] {
        &self.tenants
    }

    /// The line that the tenant of this number begins in, counted from 1; 0 if there is none.
    pub fn line(&self, tenant: usize) -> u32 {
        self.lines.get(tenant).copied().unwrap_or_default()
    }

    /// What has changed since `previous`; everything, if there is none. A tenant that stands twice, though
    /// only once before, is new.
    pub fn since(&self, previous: Option<&Self>) -> Difference {
        let before = previous.map_or(&[][..], |previous| &previous.tenants);
        let middle = Middle::of(&self.tenants, before, Arc::ptr_eq);
        let before = &before[middle.before];
        let mut gone: HashMap<*const Tenant, &Arc<Tenant>> =
            before.iter().map(|tenant| (Arc::as_ptr(tenant), tenant)).collect();
        let put = middle.now.filter(|index| gone.remove(&Arc::as_ptr(&self.tenants[*index])).is_none()).collect();
        let gone = before.iter().filter(|tenant| gone.contains_key(&Arc::as_ptr(tenant))).cloned().collect();
        Difference { put, gone }
    }

    pub fn into_file(self) -> TenantFile {
        let TenantHead { revision, defaults, plans, upstreams } = Arc::unwrap_or_clone(self.head);
        let tenants = self.tenants.into_iter().map(Arc::unwrap_or_clone).collect();
        TenantFile { revision, defaults, plans, upstreams, tenants }
    }

    fn piece(&self, tenant: usize) -> Option<&str> {
        self.text.get(self.pieces.get(tenant)?.clone())
    }

    /// Takes from an earlier reading what has the same value, though it was written differently.
    fn share_with(&mut self, previous: &Self) {
        if self.head == previous.head {
            self.head = Arc::clone(&previous.head);
        }
        let Difference { put, gone } = self.since(Some(previous));
        let before: HashMap<&Id, &Arc<Tenant>> = gone.iter().map(|tenant| (&tenant.id, tenant)).collect();
        for index in put {
            if let Some(same) = before.get(&self.tenants[index].id).filter(|same| ***same == self.tenants[index]) {
                self.tenants[index] = Arc::clone(same);
            }
        }
    }
}

/// Reads and checks a file of tenants. What `previous`, an earlier reading of the same file, has
/// already and is unchanged is taken from there: neither parsed nor checked again, and the same `Arc`.
///
/// That no two tenants have the same id or host is for the caller to see, who knows those of other files
/// as well; [`clashes`] tells of those within the file.
///
/// Relative paths begin at the folder of `origin`.
pub fn tenants_with(
    previous: Option<&ParsedTenants>,
    text: impl Into<String>,
    origin: &Path,
) -> Result<ParsedTenants, ConfigErrors> {
    let text = text.into();
    let previous = previous.filter(|previous| previous.origin == origin);
    let mut parsed = match split(&text).and_then(|pieces| in_pieces(previous, &pieces, origin)) {
        Some(read) => read,
        None => in_one_go(&text, origin)?,
    };
    if let Some(previous) = previous {
        parsed.share_with(previous);
    }
    parsed.text = text;
    Ok(parsed)
}

/// The ids and hosts that a tenant of the file has from another one before it, if there are any.
pub fn clashes(parsed: &ParsedTenants) -> Result<(), ConfigErrors> {
    if check::duplicates(&parsed.tenants, |_| String::new()).is_empty() {
        return Ok(());
    }
    // Reading in one go says where exactly.
    in_one_go(&parsed.text, &parsed.origin).map(drop)
}

/// Reads a document of any form. What this gives is the measure of what reading in pieces gives.
fn in_one_go(text: &str, origin: &Path) -> Result<ParsedTenants, ConfigErrors> {
    let locate = |paths: &[ConfigPath]| locate(text, paths);
    let mut root = match yaml::parse(text, Anchors::Allowed) {
        Ok(root) => root,
        Err(refusal) => return Err(describe(vec![(*refusal).into()], origin, locate)),
    };
    let items = root.take_list("tenants");
    let head = head_of(&root);
    let read = items.iter().map(|item| {
        let tenant = yaml::value(item)?;
        Ok(ReadTenant::new(tenant, head.as_ref().ok(), origin))
    });
    let read: Vec<Result<ReadTenant, Box<Refusal>>> = read.collect();
    let lines: Vec<u32> = items.iter().map(|item| item.position().line).collect();
    accept(head, read, lines, origin, locate)
}

/// Puts head and tenants together, or tells all that is wrong with them.
fn accept(
    head: Result<TenantHead, Box<Refusal>>,
    read: Vec<Result<ReadTenant, Box<Refusal>>>,
    lines: Vec<u32>,
    origin: &Path,
    locate: impl FnOnce(&[ConfigPath]) -> Vec<Option<Found>>,
) -> Result<ParsedTenants, ConfigErrors> {
    let mut refusals: Vec<Fault> = Vec::new();
    let mut tenants = Vec::with_capacity(read.len());
    let mut problems = Vec::new();
    for (index, read) in read.into_iter().enumerate() {
        match read {
            Ok(read) => {
                tenants.push(read.tenant);
                problems.extend(read.problems.into_iter().map(|problem| in_tenant(index, problem.into())));
            }
            Err(refusal) => refusals.push(in_tenant(index, (*refusal).into())),
        }
    }
    let mut head = match head {
        Ok(head) if refusals.is_empty() => head,
        Ok(_) => return Err(describe(refusals, origin, locate)),
        Err(refusal) => {
            refusals.insert(0, (*refusal).into());
            return Err(describe(refusals, origin, locate));
        }
    };
    let mut faults: Vec<Fault> = check::head(&head).into_iter().map(Fault::from).collect();
    faults.extend(problems);
    let line = |index: usize| format!("line {}", lines.get(index).copied().unwrap_or_default());
    faults.extend(check::duplicates(&tenants, line).into_iter().map(Fault::from));
    if !faults.is_empty() {
        return Err(describe(faults, origin, locate));
    }
    Resolver::beside(origin).head(&mut head);
    let (head, origin) = (Arc::new(head), origin.to_owned());
    Ok(ParsedTenants { origin, text: String::new(), head, tenants, lines, pieces: Vec::new() })
}

fn in_tenant(index: usize, mut fault: Fault) -> Fault {
    let tenant = [PathStep::Key("tenants".into()), PathStep::Index(index)];
    fault.path = tenant.into_iter().chain(fault.path.steps().iter().cloned()).collect();
    fault
}

struct ReadTenant {
    tenant: Arc<Tenant>,
    problems: Vec<Problem>,
}

impl ReadTenant {
    /// Checks a tenant (against the head, unless that is wrong itself) and resolves its paths.
    fn new(mut tenant: Tenant, head: Option<&TenantHead>, origin: &Path) -> Self {
        let problems = head.map(|head| check::tenant(&tenant, head)).unwrap_or_default();
        Resolver::beside(origin).tenant(&mut tenant);
        Self { tenant: Arc::new(tenant), problems }
    }
}

/// Pieces that a thread takes at once.
const BATCH: usize = 256;

/// Reads a document in pieces, each on its own. Gives nothing if a piece does not stand alone, or if
/// anything is wrong: reading in one go tells what.
fn in_pieces(previous: Option<&ParsedTenants>, pieces: &Pieces<'_>, origin: &Path) -> Option<ParsedTenants> {
    let root = yaml::parse(&pieces.head, Anchors::Refused).ok()?;
    let as_written = head_of(&root).ok()?;
    let mut head = as_written.clone();
    Resolver::beside(origin).head(&mut head);
    let same_head = previous.is_some_and(|previous| *previous.head == head);
    if !same_head && !check::head(&as_written).is_empty() {
        return None;
    }
    let known = known(previous, &pieces.tenants);
    // What a kept tenant refers to may have changed, even if it has not.
    let kept: Vec<_> = known.iter().flatten().filter(|_| !same_head).collect();
    if parallel::map(&kept, BATCH, |tenant| check::tenant(tenant, &as_written).is_empty()).contains(&false) {
        return None;
    }
    let fresh: Vec<&Piece<'_>> =
        pieces.tenants.iter().zip(&known).filter(|(_, known)| known.is_none()).map(|(piece, _)| piece).collect();
    let read = parallel::map(&fresh, BATCH, |piece| {
        let list = yaml::parse(piece.text, Anchors::Refused).ok()?;
        let tenant = yaml::value(list.only_item()?).ok()?;
        let read = ReadTenant::new(tenant, Some(&as_written), origin);
        read.problems.is_empty().then_some(read.tenant)
    });
    let mut read = read.into_iter();
    let tenants = known.into_iter().map(|known| known.cloned().or_else(|| read.next().flatten()));
    let tenants: Vec<Arc<Tenant>> = tenants.collect::<Option<_>>()?;
    Some(ParsedTenants {
        origin: origin.to_owned(),
        text: String::new(),
        head: Arc::new(head),
        tenants,
        lines: pieces.tenants.iter().map(|piece| piece.line).collect(),
        pieces: pieces.tenants.iter().map(|piece| piece.start..piece.start + piece.text.len()).collect(),
    })
}

fn head_of(root: &Node<'_>) -> Result<TenantHead, Box<Refusal>> {
    yaml::value::<TenantFile>(root).map(|file| file.into_parts().0)
}

/// For each piece the tenant that an earlier reading made of the same text.
fn known<'a>(previous: Option<&'a ParsedTenants>, pieces: &[Piece<'_>]) -> Vec<Option<&'a Arc<Tenant>>> {
    let Some(previous) = previous else { return vec![None; pieces.len()] };
    let numbers: Vec<usize> = (0..previous.pieces.len()).collect();
    let middle = Middle::of(pieces, &numbers, |piece, number| previous.piece(*number) == Some(piece.text));
    // Most tenants stand where they stood, counted from the start or from the end; only if some do not,
    // all between the first and the last change are looked for.
    let mut by_text: Option<HashMap<&str, usize>> = None;
    let find = |index: usize| {
        if index < middle.now.start {
            return Some(index);
        }
        if index >= middle.now.end {
            return Some(index - middle.now.end + middle.before.end);
        }
        let text = pieces[index].text;
        if middle.before.contains(&index) && previous.piece(index) == Some(text) {
            return Some(index);
        }
        let by_text = by_text.get_or_insert_with(|| {
            middle.before.clone().filter_map(|number| Some((previous.piece(number)?, number))).collect()
        });
        by_text.get(text).copied()
    };
    (0..pieces.len()).map(find).map(|number| previous.tenants.get(number?)).collect()
}

/// What is left of two lists without that with which both begin, and that with which both end.
struct Middle {
    now: Range<usize>,
    before: Range<usize>,
}

impl Middle {
    fn of<A, B>(now: &[A], before: &[B], same: impl Fn(&A, &B) -> bool) -> Self {
        let start = now.iter().zip(before).take_while(|(now, before)| same(now, before)).count();
        let rest = now[start..].iter().rev().zip(before[start..].iter().rev());
        let end = rest.take_while(|(now, before)| same(now, before)).count();
        Self { now: start..now.len() - end, before: start..before.len() - end }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    const ORIGIN: &str = "conf/tenants.yaml";

    const DOCUMENT: &str = r#"# the file
revision: 7
upstreams:
  shared:
    endpoints: [{address: "10.0.0.1:80"}]
tenants: # all of them

  - id: acme
    hosts:
      - acme.example
      - '*.acme.example'
    # between
    routes:
      - id: all
        match: {path: "/{*rest}"}
        upstream: shared
        policies:
          transform:
            request_body: |
              .a
                | .b
            response_body: ". |
              .c"
  - id: globex
    hosts: [globex.example]
    upstreams: {own: {endpoints: [{address: 10.0.0.2:80}]}}
    routes:
    - id: one
      match:
        path: /one
      upstream: own
  # trailing
  - {id: initech, hosts: [initech.example], routes: []}

plans:
  basic:
    auth: {accept: [anonymous]}
"#;

    fn in_pieces_only(text: &str) -> Option<ParsedTenants> {
        let parsed = in_pieces(None, &split(text)?, Path::new(ORIGIN))?;
        check::duplicates(&parsed.tenants, |_| String::new()).is_empty().then_some(parsed)
    }

    fn whole(text: &str) -> Result<ParsedTenants, ConfigErrors> {
        in_one_go(text, Path::new(ORIGIN))
    }

    /// Both ways of reading give the same.
    fn assert_same(text: &str) {
        match (in_pieces_only(text), whole(text)) {
            (None, _) => {}
            (Some(pieces), Ok(whole)) => {
                assert_eq!(pieces.head, whole.head, "{text}");
                assert_eq!(pieces.tenants, whole.tenants, "{text}");
                assert_eq!(pieces.lines, whole.lines, "{text}");
            }
            (Some(pieces), whole) => panic!("in pieces {pieces:?}, in one go {whole:?}\n{text}"),
        }
    }

    #[test]
    fn the_plain_form_is_read_in_pieces() {
        let parsed = in_pieces_only(DOCUMENT).unwrap();
        assert_eq!(
            parsed.tenants.iter().map(|tenant| tenant.id.as_str()).collect::<Vec<_>>(),
            ["acme", "globex", "initech"]
        );
        assert_eq!(parsed.lines, [8, 24, 33]);
        assert_same(DOCUMENT);
    }

    #[test]
    fn a_list_at_the_left_edge_is_read_in_pieces() {
        let text = "revision: 1\ntenants:\n- id: a\n  hosts: [a.example]\n  routes: []\n- id: b\n  hosts: [b.example]\n  routes: []\nplans: {}\n";
        assert_eq!(in_pieces_only(text).unwrap().tenants.len(), 2);
        assert_same(text);
    }

    #[test]
    fn what_works_beyond_a_piece_is_read_in_one_go() {
        for (from, to) in [
            ("accept: [anonymous]", "accept: &all [anonymous]"),
            ("id: acme", "id: &name acme"),
            ("- id: globex", "-\n    id: globex"),
            ("revision: 7", "--- {}\n---\nrevision: 7"),
            ("tenants: # all of them", "tenants: []\nmore:"),
            ("\n", "\r\n"),
        ] {
            let text = DOCUMENT.replace(from, to);
            assert!(in_pieces_only(&text).is_none(), "{text}");
        }
    }

    #[test]
    fn an_alias_may_stand_for_something_in_another_tenant() {
        let text = "revision: 1\ntenants:\n  - id: a\n    hosts: [a.example]\n    policies: &p {access_log: {sample: 1}}\n    routes: []\n  - id: b\n    hosts: [b.example]\n    policies: *p\n    routes: []\n";
        let parsed = tenants_with(None, text, Path::new(ORIGIN)).unwrap();
        assert_eq!(parsed.tenants[0].policies, parsed.tenants[1].policies);
        assert!(parsed.tenants[0].policies.access_log.is_some());
    }

    #[test]
    fn faults_of_several_tenants_are_told_at_once_with_their_lines() {
        let text = DOCUMENT.replace("id: all\n", "idd: all\n").replace("      upstream: own", "      upstreem: own");
        let errors = tenants_with(None, &text, Path::new(ORIGIN)).unwrap_err();
        let lines: Vec<_> = errors.iter().map(|error| error.position.unwrap().line).collect();
        assert_eq!(lines, [14, 31]);
        assert_same(&text);
    }

    #[test]
    fn a_reread_keeps_what_is_the_same() {
        let origin = Path::new(ORIGIN);
        let first = tenants_with(None, DOCUMENT, origin).unwrap();
        // Another form, the same content: a comment, and the order of the tenants.
        let text = DOCUMENT.replace("id: globex", "id: globex # renamed soon");
        let second = tenants_with(Some(&first), &text, origin).unwrap();
        assert!(Arc::ptr_eq(&first.head, &second.head));
        assert!(first.tenants.iter().zip(&second.tenants).all(|(a, b)| Arc::ptr_eq(a, b)));
        // One tenant fewer in front: the others have other numbers.
        let start = text.find("  - id: acme").unwrap();
        let end = text.find("  - id: globex").unwrap();
        let third = tenants_with(Some(&second), format!("{}{}", &text[..start], &text[end..]), origin).unwrap();
        assert_eq!(third.tenants.len(), 2);
        assert!(Arc::ptr_eq(&third.tenants[0], &first.tenants[1]));
    }

    #[test]
    fn a_kept_tenant_is_checked_against_the_new_head() {
        let origin = Path::new(ORIGIN);
        let first = tenants_with(None, DOCUMENT, origin).unwrap();
        let text = DOCUMENT.replace("  shared:\n", "  shard:\n");
        let errors = tenants_with(Some(&first), &text, origin).unwrap_err();
        assert!(errors.to_string().contains("there is no upstream shared"), "{errors}");
    }

    #[test]
    fn the_difference_names_what_came_and_what_went() {
        let origin = Path::new(ORIGIN);
        let one = |id: &str, host: &str| format!("- id: {id}\n  hosts: [{host}.example]\n  routes: []\n");
        let file = |tenants: &[(&str, &str)]| {
            let tenants: String = tenants.iter().map(|(id, host)| one(id, host)).collect();
            format!("revision: 1\ntenants:\n{tenants}")
        };
        let first = tenants_with(None, file(&[("a", "a"), ("b", "b"), ("c", "c"), ("d", "d")]), origin).unwrap();
        assert_eq!((first.since(None).put.len(), first.since(Some(&first)).put.len()), (4, 0));
        for (tenants, put, gone) in [
            (&[("a", "a"), ("b", "x"), ("c", "c"), ("d", "d")][..], &[1][..], &["b"][..]),
            (&[("a", "a"), ("c", "c"), ("d", "d")], &[], &["b"]),
            (&[("a", "a"), ("b", "b"), ("n", "n"), ("c", "c"), ("d", "d")], &[2], &[]),
            (&[("d", "d"), ("c", "c"), ("b", "b"), ("a", "a")], &[], &[]),
            (&[("d", "d"), ("c", "x"), ("a", "a")], &[1], &["b", "c"]),
            // What stands twice is there once more than before.
            (&[("a", "a"), ("b", "b"), ("c", "c"), ("b", "b"), ("d", "d")], &[3], &[]),
        ] {
            let second = tenants_with(Some(&first), file(tenants), origin).unwrap();
            let difference = second.since(Some(&first));
            let names: Vec<_> = difference.gone.iter().map(|tenant| tenant.id.as_str()).collect();
            assert_eq!((&*difference.put, &*names), (put, gone), "{tenants:?}");
        }
    }

    #[test]
    fn another_file_shares_nothing() {
        let first = tenants_with(None, DOCUMENT, Path::new("a/tenants.yaml")).unwrap();
        let second = tenants_with(Some(&first), DOCUMENT, Path::new("b/tenants.yaml")).unwrap();
        assert!(!Arc::ptr_eq(&first.tenants[0], &second.tenants[0]));
    }

    #[test]
    fn a_kept_tenant_may_clash_with_a_new_one() {
        let origin = Path::new(ORIGIN);
        let first = tenants_with(None, DOCUMENT, origin).unwrap();
        let text = DOCUMENT.replace("hosts: [initech.example]", "hosts: [globex.example]");
        let errors = clashes(&tenants_with(Some(&first), &text, origin).unwrap()).unwrap_err();
        let error = errors.iter().next().unwrap();
        assert_eq!((error.cause.code(), error.position.unwrap().line), ("duplicate_host", 33));
        assert_same(&text);
    }

    /// A change that a tired hand, or a hostile one, makes to a line of a document.
    fn mutation() -> impl Strategy<Value = (prop::sample::Index, usize, prop::sample::Index)> {
        (any::<prop::sample::Index>(), 0..10_usize, any::<prop::sample::Index>())
    }

    const FRAGMENTS: [&str; 24] = [
        "\"",
        "'",
        ": ",
        "- ",
        "  - id: x",
        "#",
        " #",
        "&a ",
        "*a",
        "|",
        ">",
        "{",
        "}",
        "[",
        "]",
        "\t",
        "---",
        "...",
        "tenants:",
        "%YAML 1.2",
        "<<: ",
        "? ",
        "revision: 9",
        "",
    ];

    fn mutate(text: &str, mutations: &[(prop::sample::Index, usize, prop::sample::Index)]) -> String {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        for (place, kind, detail) in mutations {
            let at = place.index(lines.len());
            let fragment = FRAGMENTS[detail.index(FRAGMENTS.len())];
            let line = lines[at].clone();
            let cut = detail.index(line.len() + 1);
            let cut = (0..=cut).rev().find(|cut| line.is_char_boundary(*cut)).unwrap_or(0);
            match kind {
                0 => drop(lines.remove(at)),
                1 => lines.insert(at, line),
                2 => lines[at] = format!(" {line}"),
                3 => lines[at] = line.strip_prefix(' ').unwrap_or(&line).to_owned(),
                4 => lines[at].insert_str(cut, fragment),
                5 => lines[at].push_str(fragment),
                6 => lines.insert(at, fragment.to_owned()),
                7 => lines[at].truncate(cut),
                8 => lines[at] = format!("{fragment}{}", line.trim_start()),
                _ => lines[at].push_str(" x"),
            }
            if lines.is_empty() {
                lines.push(String::new());
            }
        }
        lines.join("\n")
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        #[test]
        fn both_ways_of_reading_give_the_same(mutations in prop::collection::vec(mutation(), 1..4)) {
            assert_same(&mutate(DOCUMENT, &mutations));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "(?s).{0,200}") {
            let _ = tenants_with(None, &text, Path::new(ORIGIN));
            let _ = tenants_with(None, format!("revision: 1\ntenants:\n  - {text}"), Path::new(ORIGIN));
            let _ = super::super::node(&text, Path::new(ORIGIN));
        }
    }
}
