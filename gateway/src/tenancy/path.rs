//! The one normalisation of request targets.
//!
//! Routing, access control, caching and the request that goes upstream all use its result and nothing
//! else: two parts that read the same target differently are how access rules are passed by and caches
//! poisoned. The result is in the normal form of RFC 3986 §6.2.2, and normalising it again changes
//! nothing.
//!
//! | in the path | what becomes of it |
//! |---|---|
//! | escaped unreserved character (`%41`, `%7e`) | decoded |
//! | any other escape | kept, its digits in upper case; decoded only once: `%252e` stays |
//! | `"` `[` `]` `^` `{` `\|` `}` | escaped: browsers send some of them as they are |
//! | `.` and `..` segments, escaped or not | removed (§5.2.4) |
//! | `..` above the root | refused |
//! | `.;…` and `..;…` segments | refused: some servers drop path parameters and then see `..` |
//! | other path parameters (`;v=1`) | left alone |
//! | several slashes in a row | merged into one, before `.` and `..` are looked at |
//! | `%2F`, and a backslash, escaped or not | refused: servers differ on whether they separate segments |
//! | control characters, escaped or not; spaces; bytes beyond ASCII; `#`, `<`, `>`, `` ` `` | refused |
//! | escapes that are incomplete (`%4`) or no UTF-8 together (`%C0%AF`) | refused |
//!
//! The query is split off and left as it is; characters other than visible ASCII and `#`, `"`, `<`, `>` in it are
//! refused too, so that the whole target is safe to write into a request line or a log line. In HTTP/1 the check
//! of the head refuses what neither a path nor a query may hold before this is asked. In HTTP/2 the library that
//! reads `:path` does, but cuts it at a `#` before anybody sees it; what is left is what counts.

use std::{borrow::Cow, str};

/// The longest path that is accepted, in bytes.
pub const MAX_PATH_BYTES: usize = 65_535;

/// A request target in normal form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NormalisedPath<'a> {
    path: Cow<'a, str>,
    query: Option<&'a str>,
}

impl<'a> NormalisedPath<'a> {
    /// The path: visible ASCII, beginning with `/`.
    pub fn as_str(&self) -> &str {
        &self.path
    }

    /// What follows the first `?`, as it was sent; empty if nothing follows.
    pub fn query(&self) -> Option<&'a str> {
        self.query
    }

    /// Whether the path was sent in another form, so that the request line has to be written anew.
    pub fn is_rewritten(&self) -> bool {
        matches!(self.path, Cow::Owned(_))
    }

    /// The path, borrowed from the request if it was in normal form already.
    pub fn into_path(self) -> Cow<'a, str> {
        self.path
    }
}

/// Why a request target is refused: 400 to the client, 414 for [`PathError::TooLong`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("the request target does not begin with '/'")]
    NotOriginForm,
    #[error("the path is longer than {MAX_PATH_BYTES} bytes")]
    TooLong,
    #[error("the request target holds the byte {byte:#04x} at offset {at}, which must be percent-encoded or left out")]
    ForbiddenByte { byte: u8, at: usize },
    #[error("the '%' at offset {at} of the request target is not followed by two hexadecimal digits")]
    InvalidEscape { at: usize },
    #[error("the path holds the byte {byte:#04x} in percent-encoded form at offset {at}, which is not accepted")]
    ForbiddenEscape { byte: u8, at: usize },
    #[error("the escapes at offset {at} of the path are not UTF-8")]
    NotUtf8 { at: usize },
    #[error("the path leaves the root by its '..' segments")]
    AboveRoot,
    #[error("the path holds a '.' or '..' segment with parameters")]
    DotSegmentWithParameters,
}

/// Brings the path of an origin-form target (RFC 9112 §3.2.1) into normal form, as the module describes.
///
/// One pass and no allocation if it is in normal form already.
pub fn normalise(target: &[u8]) -> Result<NormalisedPath<'_>, PathError> {
    if target.first() != Some(&b'/') {
        return Err(PathError::NotOriginForm);
    }
    let text = str::from_utf8(target).map_err(|error| {
        let at = error.valid_up_to();
        PathError::ForbiddenByte { byte: target[at], at }
    })?;
    let scan = scan(target)?;
    if scan.path_end > MAX_PATH_BYTES {
        return Err(PathError::TooLong);
    }
    let query = match text.get(scan.path_end + 1..) {
        Some(query) => Some(checked_query(query, scan.path_end + 1)?),
        None => None,
    };
    let path = &text[..scan.path_end];
    let path = if scan.is_normal { Cow::Borrowed(path) } else { Cow::Owned(rewrite(path)?) };
    Ok(NormalisedPath { path, query })
}

/// An absolute-form target (RFC 9112 §3.2.2), split at the authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AbsoluteForm<'a> {
    /// Host and port; still to be checked by [`super::hosts::normalise`].
    pub authority: &'a [u8],
    /// The origin-form target, still to be normalised. An absent path has become `/`.
    pub target: Cow<'a, [u8]>,
}

/// Splits `http://host:port/path?query` into authority and origin form; `None` for any other form
/// and for other schemes than `http` and `https`.
pub fn split_absolute_form(target: &[u8]) -> Option<AbsoluteForm<'_>> {
    let rest = [b"http://".as_slice(), b"https://"].into_iter().find_map(|scheme| {
        let (start, rest) = target.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    })?;
    let authority_end = rest.iter().position(|b| matches!(b, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    let (authority, target) = rest.split_at(authority_end);
    let target = match target.first() {
        Some(b'/') => Cow::Borrowed(target),
        None => Cow::Borrowed(b"/".as_slice()),
        Some(_) => Cow::Owned([b"/", target].concat()),
    };
    Some(AbsoluteForm { authority, target })
}

/// What a byte means in the path of a request target.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Stands for itself: `pchar` of RFC 3986 §3.3 without escapes.
    Plain,
    Slash,
    Percent,
    /// `?`: the path ends here.
    Query,
    /// Has to be escaped.
    Escape,
    Refuse,
}

const CLASSES: [Class; 256] = {
    let mut classes = [Class::Refuse; 256];
    let mut byte = 0_u8;
    loop {
        classes[byte as usize] = match byte {
            // `unreserved`, `sub-delims`, and what else a segment may hold (RFC 3986 §3.3).
            b'a'..=b'z'
            | b'A'..=b'Z'
            | b'0'..=b'9'
            | b'-'
            | b'.'
            | b'_'
            | b'~'
            | b'!'
            | b'$'
            | b'&'
            | b'\''
            | b'('
            | b')'
            | b'*'
            | b'+'
            | b','
            | b';'
            | b'='
            | b':'
            | b'@' => Class::Plain,
            b'/' => Class::Slash,
            b'%' => Class::Percent,
            b'?' => Class::Query,
            b'"' | b'[' | b']' | b'^' | b'{' | b'|' | b'}' => Class::Escape,
            _ => Class::Refuse,
        };
        if byte == u8::MAX {
            break classes;
        }
        byte += 1;
    }
};

const fn class(byte: u8) -> Class {
    CLASSES[byte as usize]
}

struct Scan {
    /// Where the path ends: at the `?`, or at the end of the target.
    path_end: usize,
    is_normal: bool,
}

/// Finds the end of the path and whether it is in normal form; refuses what may not stand in it.
fn scan(target: &[u8]) -> Result<Scan, PathError> {
    let mut is_normal = true;
    let mut at = 0;
    while let Some(&byte) = target.get(at) {
        match class(byte) {
            Class::Plain => at += 1,
            Class::Slash => {
                at += 1;
                is_normal &= !needs_rewriting_after_slash(&target[at..]);
            }
            Class::Percent => {
                let escape = Escape::read(target, at)?;
                is_normal &= escape.is_normal(&target[at..]);
                at += escape.encoded_len;
            }
            Class::Escape => {
                is_normal = false;
                at += 1;
            }
            Class::Query => break,
            Class::Refuse => return Err(PathError::ForbiddenByte { byte, at }),
        }
    }
    Ok(Scan { path_end: at, is_normal })
}

/// Whether another slash or something like a dot segment follows a slash.
fn needs_rewriting_after_slash(rest: &[u8]) -> bool {
    match rest {
        [b'/', ..] => true,
        // Escaped dots are not looked for: an escape of a dot is not normal in itself.
        [b'.', after @ ..] => {
            let after = after.strip_prefix(b".").unwrap_or(after);
            matches!(after.first(), None | Some(b'/' | b'?' | b';'))
        }
        _ => false,
    }
}

/// Writes a path that was scanned before in normal form.
#[cold]
fn rewrite(path: &str) -> Result<String, PathError> {
    let path = path.as_bytes();
    let mut out = String::with_capacity(path.len() + 16);
    out.push('/');
    let mut segment_start = 1;
    let mut at = 1;
    while let Some(&byte) = path.get(at) {
        match class(byte) {
            Class::Slash => {
                finish_segment(&mut out, segment_start)?;
                if !out.ends_with('/') {
                    out.push('/');
                }
                segment_start = out.len();
                at += 1;
            }
            Class::Percent => {
                let escape = Escape::read(path, at)?;
                match escape.unreserved {
                    Some(byte) => out.push(char::from(byte)),
                    None => path[at..at + escape.encoded_len]
                        .iter()
                        .for_each(|byte| out.push(char::from(byte.to_ascii_uppercase()))),
                }
                at += escape.encoded_len;
            }
            Class::Escape => {
                push_escape(&mut out, byte);
                at += 1;
            }
            _ => {
                out.push(char::from(byte));
                at += 1;
            }
        }
    }
    finish_segment(&mut out, segment_start)?;
    Ok(out)
}

/// Applies the last segment of `out`, if it is a dot segment (RFC 3986 §5.2.4).
fn finish_segment(out: &mut String, segment_start: usize) -> Result<(), PathError> {
    match &out[segment_start..] {
        "." => out.truncate(segment_start),
        ".." => {
            // The slash before this segment goes with it; what remains ends in the slash before that.
            let parent = out[..segment_start - 1].rfind('/').ok_or(PathError::AboveRoot)?;
            out.truncate(parent + 1);
        }
        segment if segment.starts_with(".;") || segment.starts_with("..;") => {
            return Err(PathError::DotSegmentWithParameters);
        }
        _ => {}
    }
    Ok(())
}

fn push_escape(out: &mut String, byte: u8) {
    const DIGITS: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];
    out.push('%');
    out.push(DIGITS[usize::from(byte >> 4)]);
    out.push(DIGITS[usize::from(byte & 15)]);
}

/// The escape of one character: up to four `%XX` in a row.
struct Escape {
    encoded_len: usize,
    /// The character itself, if it need not have been escaped.
    unreserved: Option<u8>,
}

impl Escape {
    fn read(target: &[u8], at: usize) -> Result<Self, PathError> {
        let byte = escaped_byte(target, at)?;
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                Ok(Self { encoded_len: 3, unreserved: Some(byte) })
            }
            0..=0x1f | 0x7f | b'/' | b'\\' => Err(PathError::ForbiddenEscape { byte, at }),
            0x20..0x7f => Ok(Self { encoded_len: 3, unreserved: None }),
            0x80.. => {
                let len = match byte {
                    0xc2..=0xdf => 2,
                    0xe0..=0xef => 3,
                    0xf0..=0xf4 => 4,
                    _ => return Err(PathError::NotUtf8 { at }),
                };
                let mut character = [0; 4];
                for (i, byte) in character[..len].iter_mut().enumerate() {
                    let at = at + 3 * i;
                    *byte = match target.get(at) {
                        Some(b'%') => escaped_byte(target, at)?,
                        _ => return Err(PathError::NotUtf8 { at }),
                    };
                }
                match str::from_utf8(&character[..len]) {
                    Ok(_) => Ok(Self { encoded_len: 3 * len, unreserved: None }),
                    Err(_) => Err(PathError::NotUtf8 { at }),
                }
            }
        }
    }

    fn is_normal(&self, encoded: &[u8]) -> bool {
        self.unreserved.is_none() && !encoded[..self.encoded_len].iter().any(u8::is_ascii_lowercase)
    }
}

/// The byte that `%XX` at this offset stands for.
fn escaped_byte(target: &[u8], at: usize) -> Result<u8, PathError> {
    let digit = |byte: &u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    };
    let high = target.get(at + 1).and_then(digit);
    let low = target.get(at + 2).and_then(digit);
    high.zip(low).map(|(high, low)| high << 4 | low).ok_or(PathError::InvalidEscape { at })
}

fn checked_query(query: &str, offset: usize) -> Result<&str, PathError> {
    match query.bytes().position(|byte| !byte.is_ascii_graphic() || matches!(byte, b'#' | b'"' | b'<' | b'>')) {
        None => Ok(query),
        Some(at) => Err(PathError::ForbiddenByte { byte: query.as_bytes()[at], at: offset + at }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn path(target: &str) -> String {
        normalise(target.as_bytes()).unwrap_or_else(|error| panic!("{target:?}: {error}")).into_path().into_owned()
    }

    #[test]
    fn a_normal_path_is_borrowed() {
        for target in [
            "/",
            "/v1/users/42",
            "/v1/users/",
            "/a;v=1/b,c/(d)/e@f:g",
            "/caf%C3%A9/%20/%25/%E2%82%AC/%F0%9F%8E%99",
            "/.well-known/acme",
            "/...",
            "/..a/.b/a..",
            "/*",
        ] {
            let normal = normalise(target.as_bytes()).unwrap();
            assert!(!normal.is_rewritten(), "{target:?}");
            assert_eq!(normal.as_str(), target);
            assert_eq!(normal.query(), None);
        }
    }

    #[test]
    fn equivalent_paths_become_one() {
        for (target, normal) in [
            ("/%41%7e%2D%5f%2e", "/A~-_."),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/a%3ab", "/a%3Ab"),
            ("/%252e%252e/", "/%252e%252e/"),
            ("/{id}|[x]", "/%7Bid%7D%7C%5Bx%5D"),
            ("//", "/"),
            ("//evil.example/x", "/evil.example/x"),
            ("/a//b///c//", "/a/b/c/"),
            ("/.", "/"),
            ("/./", "/"),
            ("/a/.", "/a/"),
            ("/a/./b", "/a/b"),
            ("/a/..", "/"),
            ("/a/../", "/"),
            ("/a/../b", "/b"),
            ("/a/b/../../c", "/c"),
            ("/a/b/%2e%2E/c", "/a/c"),
            ("/a/.%2e/c", "/c"),
            ("/a/%2e/c", "/a/c"),
            ("/a//../b", "/b"),
            ("/a/.//..//b/", "/b/"),
        ] {
            assert_eq!(path(target), normal, "{target:?}");
        }
    }

    #[test]
    fn hostile_targets_are_refused() {
        use PathError::*;
        for (target, error) in [
            (&b""[..], NotOriginForm),
            (b"*", NotOriginForm),
            (b"v1/users", NotOriginForm),
            (b"http://example.com/", NotOriginForm),
            (b"\\admin", NotOriginForm),
            (b"/..", AboveRoot),
            (b"/../etc/passwd", AboveRoot),
            (b"/a/../../b", AboveRoot),
            (b"//../b", AboveRoot),
            (b"/%2e%2e/b", AboveRoot),
            (b"/./../b", AboveRoot),
            (b"/a/..;/admin", DotSegmentWithParameters),
            (b"/a/.;x=1/b", DotSegmentWithParameters),
            (b"/a/%2e%2e;/admin", DotSegmentWithParameters),
            (b"/a%2fb", ForbiddenEscape { byte: b'/', at: 2 }),
            (b"/a%2Fb", ForbiddenEscape { byte: b'/', at: 2 }),
            (b"/..%2fadmin", ForbiddenEscape { byte: b'/', at: 3 }),
            (b"/a%5cb", ForbiddenEscape { byte: b'\\', at: 2 }),
            (b"/a\\b", ForbiddenByte { byte: b'\\', at: 2 }),
            (b"/%00", ForbiddenEscape { byte: 0, at: 1 }),
            (b"/a%0d%0aSet-Cookie:x", ForbiddenEscape { byte: b'\r', at: 2 }),
            (b"/a%7F", ForbiddenEscape { byte: 0x7f, at: 2 }),
            (b"/a\0", ForbiddenByte { byte: 0, at: 2 }),
            (b"/a\r\nb", ForbiddenByte { byte: b'\r', at: 2 }),
            (b"/a\tb", ForbiddenByte { byte: b'\t', at: 2 }),
            (b"/a b", ForbiddenByte { byte: b' ', at: 2 }),
            (b"/a\x7f", ForbiddenByte { byte: 0x7f, at: 2 }),
            (b"/a#b", ForbiddenByte { byte: b'#', at: 2 }),
            (b"/a<b", ForbiddenByte { byte: b'<', at: 2 }),
            (b"/a>b", ForbiddenByte { byte: b'>', at: 2 }),
            (b"/a`b", ForbiddenByte { byte: b'`', at: 2 }),
            ("/é".as_bytes(), ForbiddenByte { byte: 0xc3, at: 1 }),
            (b"/\xff", ForbiddenByte { byte: 0xff, at: 1 }),
            (b"/%", InvalidEscape { at: 1 }),
            (b"/%4", InvalidEscape { at: 1 }),
            (b"/%zz", InvalidEscape { at: 1 }),
            (b"/%4?1", InvalidEscape { at: 1 }),
            (b"/%%41", InvalidEscape { at: 1 }),
            (b"/%u002e", InvalidEscape { at: 1 }),
            (b"/%c0%af", NotUtf8 { at: 1 }),
            (b"/%e0%80%af", NotUtf8 { at: 1 }),
            (b"/%ed%a0%80", NotUtf8 { at: 1 }),
            (b"/%c3", NotUtf8 { at: 4 }),
            (b"/%c3/%a9", NotUtf8 { at: 4 }),
            (b"/%a9", NotUtf8 { at: 1 }),
            (b"/%ff", NotUtf8 { at: 1 }),
            (b"/a?b#c", ForbiddenByte { byte: b'#', at: 4 }),
            (b"/a?b c", ForbiddenByte { byte: b' ', at: 4 }),
            (b"/a?b\"c", ForbiddenByte { byte: b'"', at: 4 }),
            (b"/a?b<c", ForbiddenByte { byte: b'<', at: 4 }),
            (b"/a?\x00", ForbiddenByte { byte: 0, at: 3 }),
            ("/a?é".as_bytes(), ForbiddenByte { byte: 0xc3, at: 3 }),
        ] {
            assert_eq!(normalise(target), Err(error), "{:?}", String::from_utf8_lossy(target));
        }
    }

    #[test]
    fn a_path_has_a_bound_and_a_query_has_not() {
        let mut target = vec![b'a'; MAX_PATH_BYTES];
        target[0] = b'/';
        assert!(normalise(&target).is_ok());
        assert!(normalise(&[&target, &b"?"[..], &target].concat()).is_ok());
        target.push(b'a');
        assert_eq!(normalise(&target), Err(PathError::TooLong));
    }

    #[test]
    fn the_query_is_split_off_untouched() {
        for (target, path, query) in [
            ("/a?", "/a", ""),
            ("/a?b=%2f%zz&c=../..//\\", "/a", "b=%2f%zz&c=../..//\\"),
            ("/a?`{[^|]}`", "/a", "`{[^|]}`"),
            ("/a/..?x?y", "/", "x?y"),
            ("/a/.?x", "/a/", "x"),
        ] {
            let normal = normalise(target.as_bytes()).unwrap();
            assert_eq!((normal.as_str(), normal.query()), (path, Some(query)));
        }
    }

    #[test]
    fn absolute_form_is_split_at_the_authority() {
        let split = |target: &'static str| {
            split_absolute_form(target.as_bytes()).map(|form| {
                (str::from_utf8(form.authority).unwrap(), String::from_utf8(form.target.into_owned()).unwrap())
            })
        };
        assert_eq!(split("http://a.example:8080/x?y"), Some(("a.example:8080", "/x?y".into())));
        assert_eq!(split("HTTPS://a.example"), Some(("a.example", "/".into())));
        assert_eq!(split("http://a.example?y"), Some(("a.example", "/?y".into())));
        assert_eq!(split("http://"), Some(("", "/".into())));
        assert_eq!(split("http://u:p@a.example/"), Some(("u:p@a.example", "/".into())));
        for other in ["/", "*", "a.example:443", "ftp://a.example/", "http:/a", "http", ""] {
            assert_eq!(split(other), None, "{other:?}");
        }
    }

    /// Targets that are full of what the normalisation looks for.
    fn tricky_target() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            Just("/"),
            Just("."),
            Just(".."),
            Just("%2e"),
            Just("%2E"),
            Just("%41"),
            Just("%3a"),
            Just("%3A"),
            Just("%c3%a9"),
            Just("%C3"),
            Just("%25"),
            Just("2e"),
            Just("%"),
            Just(";"),
            Just("a"),
            Just("b"),
            Just("|"),
            Just("?"),
            Just("%2f"),
            Just("\\"),
            Just("#"),
            Just("%00"),
        ];
        prop::collection::vec(part, 0..16).prop_map(|parts| format!("/{}", parts.concat()))
    }

    proptest! {
        #[test]
        fn normalising_twice_changes_nothing(target in tricky_target()) {
            if let Ok(once) = normalise(target.as_bytes()) {
                let twice = normalise(once.as_str().as_bytes()).unwrap();
                prop_assert!(!twice.is_rewritten(), "{target:?} became {:?} became {:?}", once.as_str(), twice.as_str());
                prop_assert_eq!(twice.as_str(), once.as_str());
            }
        }

        #[test]
        fn the_quick_scan_and_the_rewriting_agree(target in tricky_target()) {
            if let Ok(normal) = normalise(target.as_bytes()) {
                let sent = target.split('?').next().unwrap();
                prop_assert_eq!(normal.is_rewritten(), sent != normal.as_str());
                let rewritten = rewrite(sent).unwrap();
                prop_assert_eq!(rewritten.as_str(), normal.as_str());
            }
        }

        #[test]
        fn nothing_leaves_the_root_or_hides_a_segment(target in tricky_target()) {
            if let Ok(normal) = normalise(target.as_bytes()) {
                let path = normal.as_str();
                prop_assert!(path.starts_with('/') && !path.contains("//"));
                prop_assert!(path.split('/').all(|s| s != "." && s != ".." && !s.starts_with(".;") && !s.starts_with("..;")));
                let is_fit = |byte: u8| byte.is_ascii_graphic() && !b"\\#?\"<>[]^`{|}".contains(&byte);
                prop_assert!(path.bytes().all(is_fit));
                prop_assert!(!path.to_ascii_lowercase().contains("%2f") && !path.to_ascii_lowercase().contains("%5c"));
            }
        }

        #[test]
        fn any_bytes_are_answered_without_a_panic(target in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = normalise(&target);
            let _ = split_absolute_form(&target);
        }

        /// RFC 3986 §5.2.4 says what dot segments mean; this says it once more, the slow way.
        #[test]
        fn dot_segments_mean_what_the_rfc_says(segments in prop::collection::vec(prop_oneof![Just("."), Just(".."), Just("a"), Just("b")], 1..10)) {
            let mut stack: Vec<&str> = Vec::new();
            let mut left_root = false;
            for segment in &segments {
                match *segment {
                    "." => {}
                    ".." => left_root |= stack.pop().is_none(),
                    name => stack.push(name),
                }
            }
            let ends_as_folder = matches!(segments.last(), Some(&("." | "..")));
            let slash = if ends_as_folder && !stack.is_empty() { "/" } else { "" };
            let expected = format!("/{}{slash}", stack.join("/"));
            let target = format!("/{}", segments.join("/"));
            match normalise(target.as_bytes()) {
                Ok(normal) => { prop_assert!(!left_root); prop_assert_eq!(normal.as_str(), expected); }
                Err(error) => { prop_assert!(left_root); prop_assert_eq!(error, PathError::AboveRoot); }
            }
        }
    }
}
