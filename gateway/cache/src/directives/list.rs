//! The list form of `Cache-Control`: names, some with an argument, separated by commas (RFC 9111 §5.2).

use std::borrow::Cow;

/// The directives of one line, each with its argument. A token and a quoted string mean the same.
///
/// In what is neither of both forms, each word that forbids something counts as a directive, wherever it stands:
/// `private; max-age=0` was meant to be private.
pub(crate) fn directives(line: &[u8]) -> impl Iterator<Item = (&[u8], Option<Cow<'_, [u8]>>)> {
    let mut rest = line;
    let mut malformed: &[u8] = &[];
    std::iter::from_fn(move || {
        if let Some(word) = next_forbidding(&mut malformed) {
            return Some((word, None));
        }
        while !rest.is_empty() {
            let (member, after) = split_at_comma(rest);
            rest = after;
            let member = member.trim_ascii();
            if member.is_empty() {
                continue;
            }
            let (name, argument) = match member.iter().position(|byte| *byte == b'=') {
                None => (member, None),
                Some(at) => (&member[..at], Some(&member[at + 1..])),
            };
            if !is_token(name) || argument.is_some_and(|argument| !is_token(argument) && !is_quoted(argument)) {
                malformed = member;
            }
            return Some((name, argument.map(unquoted)));
        }
        None
    })
}

/// What of a malformed member must not be overlooked.
fn is_forbidding(word: &[u8]) -> bool {
    ["no-store", "private", "no-cache"].iter().any(|known| word.eq_ignore_ascii_case(known.as_bytes()))
}

/// The next word that forbids something.
fn next_forbidding<'a>(text: &mut &'a [u8]) -> Option<&'a [u8]> {
    while !text.is_empty() {
        let end = text.iter().position(|byte| !is_token_character(*byte)).unwrap_or(text.len());
        let word = &text[..end];
        *text = text.get(end + 1..).unwrap_or_default();
        if is_forbidding(word) {
            return Some(word);
        }
    }
    None
}

/// RFC 9110 §5.6.2. An empty one is none, but there is nothing in it either.
fn is_token(text: &[u8]) -> bool {
    text.iter().all(|byte| is_token_character(*byte))
}

fn is_token_character(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether it is one quoted string, which ends where it should (RFC 9110 §5.6.4).
fn is_quoted(text: &[u8]) -> bool {
    let Some(inner) = text.strip_prefix(b"\"") else { return false };
    let mut escaped = false;
    let end = inner.iter().position(|byte| {
        let ends = *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        ends
    });
    end.is_some_and(|end| end + 1 == inner.len())
}

/// Up to the next comma that does not stand in quotes, and what comes after it.
fn split_at_comma(line: &[u8]) -> (&[u8], &[u8]) {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in line.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => return (&line[..at], &line[at + 1..]),
            _ => {}
        }
    }
    (line, &[])
}

/// What a quoted string stands for; anything else as it is.
fn unquoted(argument: &[u8]) -> Cow<'_, [u8]> {
    let Some(inner) = argument.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")) else {
        return Cow::Borrowed(argument);
    };
    if !inner.contains(&b'\\') {
        return Cow::Borrowed(inner);
    }
    let mut escaped = false;
    let keep = |byte: &&u8| {
        escaped = **byte == b'\\' && !escaped;
        !escaped
    };
    Cow::Owned(inner.iter().filter(keep).copied().collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quotes_and_escapes_are_taken_away() {
        let read: Vec<_> = directives(br#" a , b=1,c="x\"y, z" ,,d="""#).collect();
        let expected: [(&[u8], Option<&[u8]>); 4] =
            [(b"a", None), (b"b", Some(b"1")), (b"c", Some(br#"x"y, z"#)), (b"d", Some(b""))];
        assert_eq!(read.len(), expected.len());
        for ((name, argument), (wanted, value)) in read.iter().zip(expected) {
            assert_eq!((*name, argument.as_deref()), (wanted, value));
        }
    }

    /// The names of what forbids something.
    fn forbidding(line: &str) -> Vec<String> {
        let names = directives(line.as_bytes()).map(|(name, _)| name);
        names.filter(|name| is_forbidding(name)).map(|name| String::from_utf8_lossy(name).into_owned()).collect()
    }

    #[test]
    fn what_forbids_something_counts_also_where_it_is_malformed() {
        for (line, word) in [
            ("private; max-age=0", "private"),
            ("must-revalidate; private", "private"),
            ("no-store; max-age=60", "no-store"),
            ("max-age=60; no-store", "no-store"),
            ("max-age=60 No-Cache", "No-Cache"),
            ("no-store =1", "no-store"),
            ("private =\"x\"", "private"),
            ("\"no-store\"", "no-store"),
            ("(no-store)", "no-store"),
            ("foo=\"bar, no-store", "no-store"),
            ("foo=\"bar\\\", no-store", "no-store"),
            ("foo=\"bar\" no-store", "no-store"),
            ("foo=\"bar\"no-store\"", "no-store"),
        ] {
            assert_eq!(forbidding(line), [word], "{line}");
        }
        for line in ["foo=no-store", "foo=\"no-store, private\"", "no-stores", "x-private; a", "'no-store'"] {
            assert_eq!(forbidding(line), <[&str; 0]>::default(), "{line}");
        }
    }

    proptest! {
        #[test]
        fn no_store_is_found_outside_of_quotes(
            // Quotes are closed in it.
            before in r#"([a-z=;, ]{0,4}("([a-z,; ]|\\")*")?){0,4}"#,
            boundary in "[ ,;/]",
            after in r"([^a-zA-Z0-9!#$%&'*+.^_`|~-][ -~]{0,20})?",
        ) {
            let line = format!("{before}{boundary}no-store{after}");
            prop_assert!(forbidding(&line).contains(&"no-store".to_owned()), "{}", line);
        }

        #[test]
        fn anything_is_read_without_panic_and_nothing_is_invented(line: Vec<u8>) {
            let length = |(name, argument): (&[u8], Option<Cow<'_, [u8]>>)| name.len() + argument.map_or(0, |a| a.len());
            // Words of what is malformed are told once more.
            prop_assert!(directives(&line).map(length).sum::<usize>() <= 2 * line.len());
        }
    }
}
