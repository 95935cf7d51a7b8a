//! The list form of `Cache-Control`: names, some with an argument, separated by commas (RFC 9111 §5.2).

use std::borrow::Cow;

/// The directives of one line, each with its argument. A token and a quoted string mean the same.
pub(crate) fn directives(line: &[u8]) -> impl Iterator<Item = (&[u8], Option<Cow<'_, [u8]>>)> {
    let mut rest = line;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            let (item, after) = split_at_comma(rest);
            rest = after;
            let item = item.trim_ascii();
            if item.is_empty() {
                continue;
            }
            return Some(match item.iter().position(|byte| *byte == b'=') {
                None => (item, None),
                Some(at) => (&item[..at], Some(unquoted(&item[at + 1..]))),
            });
        }
        None
    })
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

    proptest! {
        #[test]
        fn anything_is_read_without_panic_and_nothing_is_invented(line: Vec<u8>) {
            let length: usize = directives(&line).map(|(name, argument)| name.len() + argument.map_or(0, |a| a.len())).sum();
            prop_assert!(length <= line.len());
        }
    }
}
