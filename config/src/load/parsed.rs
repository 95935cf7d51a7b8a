//! Files of tenants, read in pieces on several threads, and re-read at the price of what has changed.

use std::{
    collections::HashMap,
    num::NonZero,
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use sha2::{Digest, Sha256};

use super::{
    Fault, describe,
    files::Resolver,
    locate::{Found, locate},
    split::{Piece, Pieces, split},
    yaml::{self, Anchors, Node, Refusal},
};
use crate::{
    check::{self, Member, Problem},
    error::ConfigErrors,
    path::{ConfigPath, PathStep},
    tenant::{Tenant, TenantFile, TenantHead},
    values::Id,
};

/// A file of tenants that was read and checked.
#[derive(Debug)]
pub struct ParsedTenants {
    origin: PathBuf,
    head: Arc<TenantHead>,
    tenants: Vec<Arc<Tenant>>,
    /// For each tenant the line it begins in.
    lines: Vec<u32>,
    /// For each tenant what its text hashes to; none if the document was read in one go.
    prints: Vec<Print>,
}

/// SHA-256 of a tenant's text: two texts with the same hash are the same text.
type Print = [u8; 32];

impl ParsedTenants {
    /// The file it was read from.
    pub fn origin(&self) -> &Path {
        &self.origin
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

    pub fn into_file(self) -> TenantFile {
        let TenantHead { revision, defaults, plans, upstreams } = Arc::unwrap_or_clone(self.head);
        let tenants = self.tenants.into_iter().map(Arc::unwrap_or_clone).collect();
        TenantFile { revision, defaults, plans, upstreams, tenants }
    }
}

/// Reads and checks a file of tenants. What `previous`, an earlier reading of the same file, has
/// already and is unchanged is taken from there: neither parsed nor checked again, and the same `Arc`.
///
/// Relative paths begin at the folder of `origin`.
pub fn tenants_with(
    previous: Option<&ParsedTenants>,
    text: &str,
    origin: &Path,
) -> Result<ParsedTenants, ConfigErrors> {
    let previous = previous.filter(|previous| previous.origin == origin);
    match split(text).and_then(|pieces| in_pieces(previous, &pieces, origin)) {
        Some(read) => Ok(read),
        None => in_one_go(previous, text, origin),
    }
}

/// A document of which each part is read, or refused.
struct Document {
    head: Result<TenantHead, Box<Refusal>>,
    tenants: Vec<Result<ReadTenant, Box<Refusal>>>,
    lines: Vec<u32>,
    prints: Vec<Print>,
}

struct ReadTenant {
    tenant: Arc<Tenant>,
    problems: Vec<Problem>,
    /// Whether it was taken from the previous reading.
    kept: bool,
}

impl ReadTenant {
    /// Checks a tenant (against the head, unless that is wrong itself) and resolves its paths.
    fn new(mut tenant: Tenant, head: Option<&TenantHead>, origin: &Path) -> Self {
        let problems = head.map(|head| check::tenant(&tenant, head)).unwrap_or_default();
        Resolver::beside(origin).tenant(&mut tenant);
        Self { tenant: Arc::new(tenant), problems, kept: false }
    }
}

/// Reads a document of any form. What this gives is the measure of what reading in pieces gives.
fn in_one_go(previous: Option<&ParsedTenants>, text: &str, origin: &Path) -> Result<ParsedTenants, ConfigErrors> {
    let locate = |paths: &[ConfigPath]| locate(text, paths);
    let mut root = match yaml::parse(text, Anchors::Allowed) {
        Ok(root) => root,
        Err(refusal) => return Err(describe(vec![(*refusal).into()], origin, locate)),
    };
    let items = root.take_list("tenants");
    let head = head_of(&root);
    let tenants = items.iter().map(|item| {
        let tenant = yaml::value(item)?;
        Ok(ReadTenant::new(tenant, head.as_ref().ok(), origin))
    });
    let document = Document {
        tenants: tenants.collect(),
        lines: items.iter().map(|item| item.position().line).collect(),
        prints: Vec::new(),
        head,
    };
    document.accept(previous, origin, locate)
}

/// Reads a document in pieces, each on its own. Gives nothing if a piece does not stand alone, or if
/// anything is wrong: reading in one go tells what.
fn in_pieces(previous: Option<&ParsedTenants>, pieces: &Pieces<'_>, origin: &Path) -> Option<ParsedTenants> {
    let root = yaml::parse(&pieces.head, Anchors::Refused).ok()?;
    let head = head_of(&root).ok()?;
    let reader = Reader { pieces: &pieces.tenants, head: &head, known: Known::of(previous, &head, origin), origin };
    let (prints, tenants): (_, Vec<_>) = reader.read_all()?.into_iter().unzip();
    let lines = pieces.tenants.iter().map(|piece| piece.line).collect();
    let tenants = tenants.into_iter().map(Ok).collect();
    Document { head: Ok(head), tenants, lines, prints }.accept(previous, origin, |_| Vec::new()).ok()
}

fn head_of(root: &Node<'_>) -> Result<TenantHead, Box<Refusal>> {
    yaml::value::<TenantFile>(root).map(|file| file.into_parts().0)
}

impl Document {
    /// Puts head and tenants together, or tells all that is wrong with them.
    fn accept(
        self,
        previous: Option<&ParsedTenants>,
        origin: &Path,
        locate: impl FnOnce(&[ConfigPath]) -> Vec<Option<Found>>,
    ) -> Result<ParsedTenants, ConfigErrors> {
        let Self { head, tenants: read, lines, prints } = self;
        let mut refusals: Vec<Fault> = Vec::new();
        let mut tenants = Vec::with_capacity(read.len());
        let mut problems = Vec::new();
        let mut fresh = Vec::new();
        for (index, read) in read.into_iter().enumerate() {
            match read {
                Ok(read) => {
                    if !read.kept {
                        fresh.push(index);
                    }
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
        faults.extend(clashes(&tenants, &lines));
        if !faults.is_empty() {
            return Err(describe(faults, origin, locate));
        }
        Resolver::beside(origin).head(&mut head);
        let mut parsed = ParsedTenants { origin: origin.to_owned(), head: Arc::new(head), tenants, lines, prints };
        if let Some(previous) = previous {
            parsed.share_with(previous, fresh);
        }
        Ok(parsed)
    }
}

fn in_tenant(index: usize, mut fault: Fault) -> Fault {
    let tenant = [PathStep::Key("tenants".into()), PathStep::Index(index)];
    fault.path = tenant.into_iter().chain(fault.path.steps().iter().cloned()).collect();
    fault
}

/// Ids and hosts that two tenants of the file have.
fn clashes(tenants: &[Arc<Tenant>], lines: &[u32]) -> impl Iterator<Item = Fault> {
    let members = tenants.iter().enumerate().map(|(index, tenant)| Member { file: 0, index, tenant });
    let place = |member: Member<'_>| format!("line {}", lines.get(member.index).copied().unwrap_or_default());
    check::duplicates(members, place).into_iter().map(|(_, problem)| problem.into())
}

/// Reads the pieces of a document on as many threads as there are processors.
struct Reader<'a> {
    pieces: &'a [Piece<'a>],
    head: &'a TenantHead,
    known: Known<'a>,
    origin: &'a Path,
}

type ReadPiece = (Print, ReadTenant);

/// Pieces that a thread takes at once: few enough that all end at about the same time.
const BATCH: usize = 256;

impl Reader<'_> {
    fn read_all(&self) -> Option<Vec<ReadPiece>> {
        let batches = self.pieces.len().div_ceil(BATCH);
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(batches);
        let next = AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            loop {
                let batch = next.fetch_add(1, Ordering::Relaxed);
                if batch >= batches {
                    return done;
                }
                let range = batch * BATCH..((batch + 1) * BATCH).min(self.pieces.len());
                done.push((batch, self.read(range)));
            }
        };
        let mut done: Vec<(usize, Option<Vec<ReadPiece>>)> = std::thread::scope(|scope| {
            let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let mut done = work();
            for helper in helpers {
                match helper.join() {
                    Ok(others) => done.extend(others),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            done
        });
        done.sort_unstable_by_key(|(batch, _)| *batch);
        let mut all = Vec::with_capacity(self.pieces.len());
        for (_, read) in done {
            all.append(&mut read?);
        }
        Some(all)
    }

    /// Nothing if one of the pieces does not stand alone.
    fn read(&self, range: Range<usize>) -> Option<Vec<ReadPiece>> {
        range.map(|index| self.read_one(index)).collect()
    }

    fn read_one(&self, index: usize) -> Option<ReadPiece> {
        let piece = &self.pieces[index];
        let print: Print = Sha256::digest(piece.text).into();
        let read = match self.known.tenant(index, &print) {
            Some(tenant) => {
                // What it refers to may have changed, even if it has not.
                let problems = if self.known.same_head { Vec::new() } else { check::tenant(tenant, self.head) };
                ReadTenant { tenant: Arc::clone(tenant), problems, kept: true }
            }
            None => self.parse(piece)?,
        };
        Some((print, read))
    }

    fn parse(&self, piece: &Piece<'_>) -> Option<ReadTenant> {
        let list = yaml::parse(piece.text, Anchors::Refused).ok()?;
        let tenant = yaml::value(list.only_item()?).ok()?;
        Some(ReadTenant::new(tenant, Some(self.head), self.origin))
    }
}

/// The tenants of a previous reading, by what their text hashes to.
struct Known<'a> {
    previous: Option<&'a ParsedTenants>,
    by_print: HashMap<&'a Print, usize>,
    same_head: bool,
}

impl<'a> Known<'a> {
    fn of(previous: Option<&'a ParsedTenants>, head: &TenantHead, origin: &Path) -> Self {
        let by_print = previous
            .map(|previous| previous.prints.iter().enumerate().map(|(index, print)| (print, index)).collect())
            .unwrap_or_default();
        let same_head = previous.is_some_and(|previous| {
            let mut resolved = head.clone();
            Resolver::beside(origin).head(&mut resolved);
            *previous.head == resolved
        });
        Self { previous, by_print, same_head }
    }

    /// The tenant with this text, most likely at the number that it had.
    fn tenant(&self, index: usize, print: &Print) -> Option<&'a Arc<Tenant>> {
        let previous = self.previous?;
        let index = if previous.prints.get(index) == Some(print) { index } else { *self.by_print.get(print)? };
        previous.tenants.get(index)
    }
}

impl ParsedTenants {
    /// Takes from an earlier reading what has the same value, though it was written differently.
    fn share_with(&mut self, previous: &ParsedTenants, fresh: impl IntoIterator<Item = usize>) {
        if !Arc::ptr_eq(&self.head, &previous.head) && self.head == previous.head {
            self.head = Arc::clone(&previous.head);
        }
        let mut before: Option<HashMap<&Id, &Arc<Tenant>>> = None;
        for index in fresh {
            let before =
                before.get_or_insert_with(|| previous.tenants.iter().map(|tenant| (&tenant.id, tenant)).collect());
            if let Some(same) = before.get(&self.tenants[index].id).filter(|same| ***same == self.tenants[index]) {
                self.tenants[index] = Arc::clone(same);
            }
        }
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
        in_pieces(None, &split(text)?, Path::new(ORIGIN))
    }

    fn whole(text: &str) -> Result<ParsedTenants, ConfigErrors> {
        in_one_go(None, text, Path::new(ORIGIN))
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
        let third = tenants_with(Some(&second), &format!("{}{}", &text[..start], &text[end..]), origin).unwrap();
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
        let errors = tenants_with(Some(&first), &text, origin).unwrap_err();
        assert_eq!(errors.iter().next().unwrap().cause.code(), "duplicate_host");
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
            let _ = tenants_with(None, &format!("revision: 1\ntenants:\n  - {text}"), Path::new(ORIGIN));
            let _ = super::super::node(&text, Path::new(ORIGIN));
        }
    }
}
