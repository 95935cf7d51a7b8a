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
    Fault, Whole, describe,
    files::Resolver,
    locate::{Found, item_lines, locate},
    split::{Piece, Pieces, split},
    yaml::{self, Anchors, Refusal},
};
use crate::{
    check::{self, Member, Problem},
    error::{Cause, ConfigErrors},
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
    match split(text) {
        Some(pieces) => match in_pieces(previous, &pieces, origin) {
            Outcome::Read(result) => result,
            Outcome::WronglyCut => in_one_go(previous, text, origin),
        },
        None => in_one_go(previous, text, origin),
    }
}

/// The result of reading a document in one go, and the measure of what reading it in pieces gives.
fn in_one_go(previous: Option<&ParsedTenants>, text: &str, origin: &Path) -> Result<ParsedTenants, ConfigErrors> {
    let whole = Whole { text, origin };
    let file: TenantFile = yaml::read(text, Anchors::Allowed).map_err(|refusal| whole.refused(*refusal))?;
    let (mut head, tenants) = file.into_parts();
    let mut problems = check::head(&head);
    let tenants: Vec<_> = tenants
        .into_iter()
        .enumerate()
        .map(|(index, mut tenant)| {
            problems.extend(check::tenant(&tenant, &head).into_iter().map(|problem| in_tenant(index, problem)));
            Resolver::beside(origin).tenant(&mut tenant);
            Arc::new(tenant)
        })
        .collect();
    let lines = item_lines(text, "tenants");
    problems.extend(clashes(&tenants, &lines));
    whole.accept(problems)?;
    Resolver::beside(origin).head(&mut head);
    let mut parsed =
        ParsedTenants { origin: origin.to_owned(), head: Arc::new(head), tenants, lines, prints: Vec::new() };
    if let Some(previous) = previous {
        parsed.share_with(previous, 0..parsed.tenants.len());
    }
    Ok(parsed)
}

enum Outcome {
    Read(Result<ParsedTenants, ConfigErrors>),
    /// A piece does not stand alone: the document has to be read in one go.
    WronglyCut,
}

fn in_pieces(previous: Option<&ParsedTenants>, pieces: &Pieces<'_>, origin: &Path) -> Outcome {
    let head = match yaml::read::<TenantFile>(&pieces.head, Anchors::Refused) {
        Ok(file) => {
            let head = file.into_parts().0;
            let problems = check::head(&head);
            let mut resolved = head;
            Resolver::beside(origin).head(&mut resolved);
            match previous.map(ParsedTenants::head).filter(|before| ***before == resolved) {
                Some(before) => Ok((Arc::clone(before), problems)),
                None => Ok((Arc::new(resolved), problems)),
            }
        }
        Err(refusal) if refusal.understood => Err(*refusal),
        Err(_) => return Outcome::WronglyCut,
    };
    let reader = Reader { pieces: &pieces.tenants, previous, head: head.as_ref().ok().map(|(head, _)| head), origin };
    let read = reader.read_all();
    if read.iter().any(|read| matches!(&read.result, Err(refusal) if !refusal.understood)) {
        return Outcome::WronglyCut;
    }
    Outcome::Read(assemble(head, read, pieces, previous, origin))
}

/// What became of one piece.
struct ReadPiece {
    print: Print,
    result: Result<ReadTenant, Box<Refusal>>,
}

struct ReadTenant {
    tenant: Arc<Tenant>,
    problems: Vec<Problem>,
    /// Whether it was taken from the previous reading.
    kept: bool,
}

/// Reads the pieces of a document on as many threads as there are processors.
struct Reader<'a> {
    pieces: &'a [Piece<'a>],
    previous: Option<&'a ParsedTenants>,
    /// Absent if the head itself is wrong.
    head: Option<&'a Arc<TenantHead>>,
    origin: &'a Path,
}

/// Pieces that a thread takes at once: few enough that all end at about the same time.
const BATCH: usize = 256;

impl Reader<'_> {
    fn read_all(&self) -> Vec<ReadPiece> {
        let batches = self.pieces.len().div_ceil(BATCH);
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(batches);
        let known = Known::of(self.previous);
        if threads <= 1 {
            return self.read(0..self.pieces.len(), &known);
        }
        let next = AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            loop {
                let batch = next.fetch_add(1, Ordering::Relaxed);
                if batch >= batches {
                    return done;
                }
                let range = batch * BATCH..((batch + 1) * BATCH).min(self.pieces.len());
                done.push((batch, self.read(range, &known)));
            }
        };
        let mut done: Vec<(usize, Vec<ReadPiece>)> = std::thread::scope(|scope| {
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
        done.into_iter().flat_map(|(_, read)| read).collect()
    }

    fn read(&self, range: Range<usize>, known: &Known<'_>) -> Vec<ReadPiece> {
        range.map(|index| self.read_one(index, known)).collect()
    }

    fn read_one(&self, index: usize, known: &Known<'_>) -> ReadPiece {
        let piece = &self.pieces[index];
        let print: Print = Sha256::digest(piece.text).into();
        let result = match known.tenant(index, &print) {
            Some(tenant) => {
                // What it refers to may have changed, even if it has not.
                let problems = match self.head {
                    Some(head) if !known.has_head(head) => check::tenant(tenant, head),
                    _ => Vec::new(),
                };
                Ok(ReadTenant { tenant: Arc::clone(tenant), problems, kept: true })
            }
            None => self.parse(piece),
        };
        ReadPiece { print, result }
    }

    fn parse(&self, piece: &Piece<'_>) -> Result<ReadTenant, Box<Refusal>> {
        let [mut tenant] = yaml::read::<[Tenant; 1]>(piece.text, Anchors::Refused)?;
        let problems = self.head.map(|head| check::tenant(&tenant, head)).unwrap_or_default();
        Resolver::beside(self.origin).tenant(&mut tenant);
        Ok(ReadTenant { tenant: Arc::new(tenant), problems, kept: false })
    }
}

/// The tenants of a previous reading, by what their text hashes to.
struct Known<'a> {
    previous: Option<&'a ParsedTenants>,
    by_print: HashMap<&'a Print, usize>,
}

impl<'a> Known<'a> {
    fn of(previous: Option<&'a ParsedTenants>) -> Self {
        let by_print = previous
            .map(|previous| previous.prints.iter().enumerate().map(|(index, print)| (print, index)).collect())
            .unwrap_or_default();
        Self { previous, by_print }
    }

    /// The tenant with this text, most likely at the number that it had.
    fn tenant(&self, index: usize, print: &Print) -> Option<&'a Arc<Tenant>> {
        let previous = self.previous?;
        let index = if previous.prints.get(index) == Some(print) { index } else { *self.by_print.get(print)? };
        previous.tenants.get(index)
    }

    fn has_head(&self, head: &Arc<TenantHead>) -> bool {
        self.previous.is_some_and(|previous| Arc::ptr_eq(&previous.head, head))
    }
}

/// Puts head and tenants together, or all that is wrong with them, in the order of the document.
fn assemble(
    head: Result<(Arc<TenantHead>, Vec<Problem>), Refusal>,
    read: Vec<ReadPiece>,
    pieces: &Pieces<'_>,
    previous: Option<&ParsedTenants>,
    origin: &Path,
) -> Result<ParsedTenants, ConfigErrors> {
    let mut tenants = Vec::with_capacity(read.len());
    let mut prints = Vec::with_capacity(read.len());
    let mut refusals = Vec::new();
    let mut problems = Vec::new();
    let mut fresh = Vec::new();
    for (index, piece) in read.into_iter().enumerate() {
        match piece.result {
            Ok(read) => {
                if !read.kept {
                    fresh.push(tenants.len());
                }
                prints.push(piece.print);
                tenants.push(read.tenant);
                problems.extend(read.problems.into_iter().map(|problem| in_tenant(index, problem)));
            }
            Err(refusal) => refusals.push(refusal_in_tenant(*refusal, index, pieces)),
        }
    }
    let (head, head_problems) = match head {
        Ok(head) if refusals.is_empty() => head,
        Ok(_) => return Err(errors(refusals, pieces, origin)),
        Err(refusal) => return Err(errors(with_head_refusal(refusal, refusals, pieces), pieces, origin)),
    };
    let lines: Vec<u32> = pieces.tenants.iter().map(|piece| piece.line).collect();
    let problems = head_problems.into_iter().chain(problems).chain(clashes(&tenants, &lines));
    let faults: Vec<Fault> = problems.map(Fault::from).collect();
    if !faults.is_empty() {
        return Err(errors(faults, pieces, origin));
    }
    let mut parsed = ParsedTenants { origin: origin.to_owned(), head, tenants, lines, prints };
    if let Some(previous) = previous {
        parsed.share_with(previous, fresh);
    }
    Ok(parsed)
}

/// The fault of the head, among those of the tenants at the place where the document has it.
fn with_head_refusal(mut refusal: Refusal, tenants: Vec<Fault>, pieces: &Pieces<'_>) -> Vec<Fault> {
    // A missing key shows only when the whole document is read.
    let comes_first = !matches!(refusal.cause, Cause::MissingKey { .. })
        && refusal.position.is_none_or(|position| pieces.is_before_list(position.line));
    if let Some(position) = &mut refusal.position {
        position.line = pieces.line_of_head(position.line);
    }
    let mut faults = tenants;
    let place = if comes_first { 0 } else { faults.len() };
    faults.insert(place, refusal.into());
    faults
}

fn refusal_in_tenant(refusal: Refusal, index: usize, pieces: &Pieces<'_>) -> Fault {
    let mut fault = Fault::from(refusal);
    if let Some(position) = &mut fault.position {
        position.line += pieces.tenants[index].line - 1;
    }
    // The piece is a list of one tenant: its path begins with [0].
    fault.path = tenant_path(index).chain(fault.path.steps().iter().skip(1).cloned()).collect();
    fault
}

fn in_tenant(index: usize, mut problem: Problem) -> Problem {
    problem.path = tenant_path(index).chain(problem.path.steps().iter().cloned()).collect();
    problem
}

fn tenant_path(index: usize) -> impl Iterator<Item = PathStep> {
    [PathStep::Key("tenants".into()), PathStep::Index(index)].into_iter()
}

/// Ids and hosts that two tenants of the file have.
fn clashes(tenants: &[Arc<Tenant>], lines: &[u32]) -> Vec<Problem> {
    let members = tenants.iter().enumerate().map(|(index, tenant)| Member { file: 0, index, tenant });
    let place = |member: Member<'_>| format!("line {}", lines.get(member.index).copied().unwrap_or_default());
    check::duplicates(members, place).into_iter().map(|(_, problem)| problem).collect()
}

/// Looks each fault up in the piece that it stands in.
fn errors(faults: Vec<Fault>, pieces: &Pieces<'_>, origin: &Path) -> ConfigErrors {
    describe(faults, origin, |paths| {
        let mut found: Vec<Option<Found>> = vec![None; paths.len()];
        // The head, and each tenant that a path leads into, is read once.
        let mut wanted: HashMap<Option<usize>, Vec<usize>> = HashMap::new();
        for (number, path) in paths.iter().enumerate() {
            wanted.entry(path.within("tenants").map(|(index, _)| index)).or_default().push(number);
        }
        for (tenant, numbers) in wanted {
            let piece = tenant.and_then(|index| pieces.tenants.get(index));
            let local: Vec<ConfigPath> = numbers
                .iter()
                .map(|number| match paths[*number].within("tenants") {
                    Some((_, rest)) => std::iter::once(PathStep::Index(0)).chain(rest.iter().cloned()).collect(),
                    None => paths[*number].clone(),
                })
                .collect();
            let places = locate(piece.map_or(pieces.head.as_str(), |piece| piece.text), &local);
            for (number, place) in numbers.into_iter().zip(places) {
                found[number] = place.map(|mut place| {
                    place.position.line = match piece {
                        Some(piece) => place.position.line + piece.line - 1,
                        None => pieces.line_of_head(place.position.line),
                    };
                    place
                });
            }
        }
        found
    })
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

    fn in_pieces_only(text: &str) -> Option<Result<ParsedTenants, ConfigErrors>> {
        match in_pieces(None, &split(text)?, Path::new(ORIGIN)) {
            Outcome::Read(result) => Some(result),
            Outcome::WronglyCut => None,
        }
    }

    fn whole(text: &str) -> Result<ParsedTenants, ConfigErrors> {
        in_one_go(None, text, Path::new(ORIGIN))
    }

    /// Both ways of reading give the same. Of faults in the form the first one is compared: a document
    /// that is read in one go has no other.
    fn assert_same(text: &str) {
        match (in_pieces_only(text), whole(text)) {
            (None, _) => {}
            (Some(Ok(pieces)), Ok(whole)) => {
                assert_eq!(pieces.head, whole.head, "{text}");
                assert_eq!(pieces.tenants, whole.tenants, "{text}");
                assert_eq!(pieces.lines, whole.lines, "{text}");
            }
            (Some(Err(pieces)), Err(whole)) => {
                let show = |errors: &ConfigErrors| errors.iter().map(ToString::to_string).collect::<Vec<_>>();
                let (pieces, whole) = (show(&pieces), show(&whole));
                assert_eq!(pieces[0], whole[0], "{text}");
                if whole.len() > 1 {
                    assert_eq!(pieces, whole, "{text}");
                }
            }
            (Some(pieces), whole) => panic!("in pieces {pieces:?}, in one go {whole:?}\n{text}"),
        }
    }

    #[test]
    fn the_plain_form_is_read_in_pieces() {
        let parsed = in_pieces_only(DOCUMENT).unwrap().unwrap();
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
        assert_eq!(in_pieces_only(text).unwrap().unwrap().tenants.len(), 2);
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
