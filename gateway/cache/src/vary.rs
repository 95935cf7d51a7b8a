//! Which requests a stored response may answer (RFC 9111 §4.1): `Vary`, and the fields it names.

use http::{HeaderMap, HeaderName, header};

/// The fields of requests that a response depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vary {
    /// These, without repetition; none: it answers every request for its key.
    On(Vec<HeaderName>),
    /// `*`, or something that cannot be read: it answers no other request.
    Anything,
}

impl Vary {
    /// All lines of `Vary` together.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut names = Vec::new();
        for line in headers.get_all(header::VARY) {
            for name in line.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                match HeaderName::from_bytes(name) {
                    _ if name.is_empty() => {}
                    Ok(_) if name == b"*" => return Self::Anything,
                    Ok(name) if !names.contains(&name) => names.push(name),
                    Ok(_) => {}
                    Err(_) => return Self::Anything,
                }
            }
        }
        names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
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
        Self(names.iter().map(|name| (name.clone(), normalised(request, name))).collect())
    }

    /// Whether a request has the same fields.
    pub fn matches(&self, request: &HeaderMap) -> bool {
        self.0.iter().all(|(name, value)| match value {
            None => !request.contains_key(name),
            Some(value) => normalised(request, name).is_some_and(|have| have == *value),
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

/// All lines of a field as one, without the whitespace around its commas. Where the order and case of its members
/// mean nothing, they are brought into one form.
fn normalised(request: &HeaderMap, name: &HeaderName) -> Option<Box<[u8]>> {
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
    Some(joined.into())
}

/// Without whitespace at the ends and around commas that do not stand in quotes.
fn push_trimmed(to: &mut Vec<u8>, line: &[u8]) {
    let (mut quoted, mut escaped) = (false, false);
    let line = line.trim_ascii();
    for (at, byte) in line.iter().enumerate() {
        if !quoted && byte.is_ascii_whitespace() {
            let before = to.last().is_some_and(|last| matches!(last, b',' | b';'));
            let after = line[at..].trim_ascii_start().first().is_none_or(|next| matches!(next, b',' | b';'));
            if before || after {
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

    use http::HeaderValue;
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

    fn same(name: &'static str, one: &[&str], other: &[&str]) -> bool {
        let selection = Selection::of(&[HeaderName::from_static(name)], &headers(name, one));
        let matches = selection.matches(&headers(name, other));
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
    fn the_order_of_wishes_makes_no_difference() {
        assert!(same("accept-encoding", &["gzip, br"], &["BR,gzip"]));
        assert!(same("accept-language", &["en;q=0.5, de"], &["de", "en; q=0.5"]));
        assert!(!same("accept-language", &["en;q=0.5, de"], &["de;q=0.5,en"]));
    }

    proptest! {
        #[test]
        fn a_request_matches_itself(lines in proptest::collection::vec("[ -~]{0,20}", 0..3)) {
            let request: Vec<&str> = lines.iter().map(String::as_str).collect();
            prop_assert!(same("x-a", &request, &request));
            prop_assert!(same("accept-encoding", &request, &request));
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
