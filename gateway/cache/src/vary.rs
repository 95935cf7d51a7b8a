//! Which requests a stored response may answer (RFC 9111 §4.1): `Vary`, and the fields it names.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use smallvec::SmallVec;

/// Fields that a response may depend on; on more, it counts as made for its request alone.
const MOST_NAMES: usize = 32;

/// The fields of requests that a response depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vary {
    /// These, in order and without repetition; none: it answers every request for its key.
    On(Vec<HeaderName>),
    /// `*`, something that cannot be read, or too many: it answers no other request.
    Anything,
}

impl Vary {
    /// All lines of `Vary` together.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut names: Vec<HeaderName> = Vec::new();
        for line in headers.get_all(header::VARY) {
            let members = line.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
            for name in members.filter(|name| !name.is_empty()) {
                let Some(name) = HeaderName::from_bytes(name).ok().filter(|name| name != "*") else {
                    return Self::Anything;
                };
                match names.binary_search_by(|have| have.as_str().cmp(name.as_str())) {
                    Ok(_) => {}
                    Err(at) if names.len() < MOST_NAMES => names.insert(at, name),
                    Err(_) => return Self::Anything,
                }
            }
        }
        Self::On(names)
    }
}

/// The fields that chose a response, as the request that it was made for had them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Selection(Box<[Selected]>);

/// A field and its value, in one form; none: the request did not have it.
type Selected = (HeaderName, Option<Box<[u8]>>);

impl Selection {
    pub fn of(names: &[HeaderName], request: &HeaderMap) -> Self {
        let select = |name: &HeaderName| (name.clone(), normalised(request, name).map(Vec::into_boxed_slice));
        Self(names.iter().map(select).collect())
    }

    /// Whether a request has the same fields.
    pub fn matches<'a>(&'a self, wishes: &mut Wishes<'a>) -> bool {
        self.0.iter().all(|(name, value)| match value {
            None => !wishes.request.contains_key(name),
            Some(value) => wishes.get(name) == Some(value),
        })
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The names and values, one after the other, each with its length: what tells selections apart.
    pub fn write(&self, to: &mut Vec<u8>) {
        for (name, value) in &self.0 {
            for part in [Some(name.as_str().as_bytes()), value.as_deref()] {
                let length = part.map_or(u64::MAX, |part| part.len() as u64);
                to.extend_from_slice(&length.to_be_bytes());
                to.extend_from_slice(part.unwrap_or_default());
            }
        }
    }

    /// Bytes that it takes.
    pub fn weight(&self) -> usize {
        let field = |(name, value): &Selected| {
            size_of::<Selected>() + name.as_str().len() + value.as_ref().map_or(0, |v| v.len())
        };
        self.0.iter().map(field).sum()
    }
}

/// The fields of one request, each brought into one form once, however many responses it is compared with.
#[derive(Debug)]
pub struct Wishes<'a> {
    request: &'a HeaderMap,
    /// In the order of their names, as far as they were asked for.
    normalised: SmallVec<[Wish<'a>; 4]>,
}

/// A field and its value, in one form; none: the request does not have it.
type Wish<'a> = (&'a HeaderName, Option<Vec<u8>>);

impl<'a> Wishes<'a> {
    pub fn of(request: &'a HeaderMap) -> Self {
        Self { request, normalised: SmallVec::new() }
    }

    fn get(&mut self, name: &'a HeaderName) -> Option<&[u8]> {
        let found = self.normalised.binary_search_by(|(have, _)| have.as_str().cmp(name.as_str()));
        let at = found.unwrap_or_else(|at| {
            self.normalised.insert(at, (name, normalised(self.request, name)));
            at
        });
        self.normalised.get(at)?.1.as_deref()
    }
}

/// All lines of a field as one, without the whitespace around its commas. Where the order and case of its members
/// mean nothing, they are brought into one form.
fn normalised(request: &HeaderMap, name: &HeaderName) -> Option<Vec<u8>> {
    if *name == header::COOKIE {
        return cookies(request);
    }
    let mut lines = request.get_all(name).iter();
    let first = lines.next()?;
    let mut joined = Vec::with_capacity(first.len());
    push_trimmed(&mut joined, first.as_bytes());
    for line in lines {
        joined.push(b',');
        push_trimmed(&mut joined, line.as_bytes());
    }
    if *name == header::ACCEPT_ENCODING || *name == header::ACCEPT_LANGUAGE || *name == header::ACCEPT_CHARSET {
        joined.make_ascii_lowercase();
        sort_members(&mut joined);
    }
    Some(joined)
}

/// All lines of `Cookie` as the origin gets them (RFC 9113 §8.2.3), and otherwise as they were sent: it is no list, and
/// commas and quotes are parts of its values.
fn cookies(request: &HeaderMap) -> Option<Vec<u8>> {
    let lines: SmallVec<[&[u8]; 4]> = request.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    (!lines.is_empty()).then(|| lines.join(&b"; "[..]))
}

/// Without whitespace at the ends and around commas and semicolons that do not stand in quotes.
fn push_trimmed(to: &mut Vec<u8>, line: &[u8]) {
    let separates = |byte: &u8| matches!(byte, b',' | b';');
    let (mut quoted, mut escaped) = (false, false);
    // Where whitespace has begun: what follows decides whether it counts.
    let mut gap = None;
    let line = line.trim_ascii();
    for (at, byte) in line.iter().enumerate() {
        if !quoted && byte.is_ascii_whitespace() {
            gap.get_or_insert(at);
            continue;
        }
        if let Some(start) = gap.take()
            && !separates(byte)
            && !to.last().is_some_and(separates)
        {
            to.extend_from_slice(&line[start..at]);
        }
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ => {}
        }
        to.push(*byte);
    }
}

/// Their weights say what is preferred, not their order (RFC 9110 §12.4.2): the same members are the same wish.
/// Members of equal weight that are ordered otherwise are the same wish to a server, too.
fn sort_members(list: &mut Vec<u8>) {
    let mut members: Vec<&[u8]> = list.split(|byte| *byte == b',').filter(|member| !member.is_empty()).collect();
    if members.is_sorted() {
        return;
    }
    members.sort_unstable();
    *list = members.join(&b',');
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn headers(name: &'static str, lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (HeaderName::from_static(name), HeaderValue::from_str(line).unwrap())).collect()
    }

    fn names(lines: &[&str]) -> Vec<String> {
        match Vary::of(&headers("vary", lines)) {
            Vary::On(names) => names.iter().map(ToString::to_string).collect(),
            Vary::Anything => vec!["*".to_owned()],
        }
    }

    #[test]
    fn vary_is_read_over_all_lines() {
        assert_eq!(names(&[]), Vec::<String>::new());
        assert_eq!(names(&["Accept-Encoding , origin", "ORIGIN,,"]), ["accept-encoding", "origin"]);
        for any in ["*", "origin, *", "a b", "\u{ff}"] {
            assert_eq!(names(&[any]), ["*"], "{any}");
        }
    }

    #[test]
    fn what_varies_on_too_much_varies_on_everything() {
        let list = |count: usize| (0..count).map(|number| format!("x-{number}")).collect::<Vec<_>>().join(",");
        assert_eq!(names(&[&list(MOST_NAMES), &list(MOST_NAMES).to_uppercase()]).len(), MOST_NAMES);
        assert_eq!(names(&[&list(MOST_NAMES), "x-0, origin"]), ["*"]);
        assert_eq!(names(&[&list(40_000)]), ["*"]);
    }

    fn same(name: &'static str, one: &[&str], other: &[&str]) -> bool {
        let selection = Selection::of(&[HeaderName::from_static(name)], &headers(name, one));
        let matches = selection.matches(&mut Wishes::of(&headers(name, other)));
        let equal = selection == Selection::of(&[HeaderName::from_static(name)], &headers(name, other));
        assert_eq!(matches, equal);
        matches
    }

    #[test]
    fn whitespace_and_lines_make_no_difference() {
        assert!(same("x-a", &["1, 2"], &["1,2"]));
        assert!(same("x-a", &["1", "2"], &[" 1 ,2 "]));
        assert!(same("x-a", &[], &[]));
        assert!(!same("x-a", &["1,2"], &["2,1"]));
        assert!(!same("x-a", &["a"], &["A"]));
        assert!(!same("x-a", &[], &[""]));
        assert!(!same("x-a", &["a b"], &["ab"]));
        assert!(!same("x-a", &[r#""a, b""#], &[r#""a,b""#]));
    }

    #[test]
    fn cookies_are_one_line_and_no_list() {
        assert!(same("cookie", &["a=1", "b=2"], &["a=1; b=2"]));
        assert!(same("cookie", &[], &[]));
        assert!(!same("cookie", &[], &[""]));
        assert!(!same("cookie", &["a=1", "b=2"], &["a=1,b=2"]));
        assert!(!same("cookie", &["a=1", "b=2"], &["b=2; a=1"]));
        assert!(!same("cookie", &["a=1, 2"], &["a=1,2"]));
        assert!(!same("cookie", &["a=1; b=2"], &["a=1;b=2"]));
    }

    #[test]
    fn the_order_of_wishes_makes_no_difference() {
        assert!(same("accept-encoding", &["gzip, br"], &["BR,gzip"]));
        assert!(same("accept-language", &["en;q=0.5, de"], &["de", "en; q=0.5"]));
        assert!(!same("accept-language", &["en;q=0.5, de"], &["de;q=0.5,en"]));
    }

    #[test]
    fn a_field_is_brought_into_its_form_once() {
        let name = header::ACCEPT_LANGUAGE;
        let request = headers("accept-language", &["de , en"]);
        let selections: Vec<_> = ["fr", "de,en", "en"]
            .map(|value| Selection::of(std::slice::from_ref(&name), &headers("accept-language", &[value])))
            .into();
        let any = Selection::default();
        let mut wishes = Wishes::of(&request);
        assert!(any.matches(&mut wishes) && wishes.normalised.is_empty());
        let matching: Vec<_> = selections.iter().map(|selection| selection.matches(&mut wishes)).collect();
        assert_eq!((matching, wishes.normalised.len()), (vec![false, true, false], 1));
    }

    /// What [`push_trimmed`] promises, in as few words as possible: it looks ahead from each byte of whitespace.
    fn trimmed(line: &[u8]) -> Vec<u8> {
        let separates = |byte: &u8| matches!(byte, b',' | b';');
        let (mut to, mut quoted, mut escaped) = (Vec::new(), false, false);
        let line = line.trim_ascii();
        for (at, byte) in line.iter().enumerate() {
            if !quoted && byte.is_ascii_whitespace() {
                let next = line[at..].trim_ascii_start().first();
                if to.last().is_some_and(separates) || next.is_none_or(separates) {
                    continue;
                }
            }
            match byte {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                _ => {}
            }
            to.push(*byte);
        }
        to
    }

    proptest! {
        #[test]
        fn whitespace_counts_within_members_alone(line in r#"[ab,;\t "\\]{0,24}"#) {
            let mut have = Vec::new();
            push_trimmed(&mut have, line.as_bytes());
            prop_assert_eq!(have, trimmed(line.as_bytes()));
        }

        #[test]
        fn a_request_matches_itself(lines in proptest::collection::vec("[ -~]{0,20}", 0..3)) {
            let request: Vec<&str> = lines.iter().map(String::as_str).collect();
            prop_assert!(same("x-a", &request, &request));
            prop_assert!(same("accept-encoding", &request, &request));
            prop_assert!(same("cookie", &request, &request));
        }

        #[test]
        fn what_is_written_tells_selections_apart(one in "[ab,]{0,4}", other in "[ab,]{0,4}") {
            let write = |value: &str| {
                let name = [HeaderName::from_static("x-a")];
                let selection = Selection::of(&name, &headers("x-a", &[value]));
                let mut bytes = Vec::new();
                selection.write(&mut bytes);
                (selection, bytes)
            };
            let (one, other) = (write(&one), write(&other));
            prop_assert_eq!(one.0 == other.0, one.1 == other.1);
        }
    }
}
