//! The `Vary` response header (RFC 9110 §12.5.5).

use http::{HeaderMap, HeaderValue, header::VARY};

/// Adds field names to `Vary`. Names that are there already, in any case, are not repeated, several
/// lines become one, and `*` stays alone: it says more than any name could.
pub(super) fn add(response: &mut HeaderMap, names: &[&str]) {
    let listed = |name: &str| {
        let lines = response.get_all(VARY).iter();
        lines
            .flat_map(|line| line.as_bytes().split(|b| *b == b','))
            .map(<[u8]>::trim_ascii)
            .any(|item| item == b"*" || item.eq_ignore_ascii_case(name.as_bytes()))
    };
    let missing: Vec<&str> = names.iter().copied().filter(|name| !listed(name)).collect();
    if missing.is_empty() {
        return;
    }
    let mut line: Vec<u8> = Vec::with_capacity(64);
    let present = response.get_all(VARY).iter().map(HeaderValue::as_bytes);
    for part in present.chain(missing.iter().map(|name| name.as_bytes())) {
        let part = part.trim_ascii();
        if !part.is_empty() {
            if !line.is_empty() {
                line.extend_from_slice(b", ");
            }
            line.extend_from_slice(part);
        }
    }
    // Joined from header values and names, so it is a header value again and inserting cannot fail.
    if let Ok(value) = HeaderValue::from_bytes(&line) {
        response.insert(VARY, value);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn vary_after(present: &[&str], names: &[&str]) -> Vec<String> {
        let mut response = HeaderMap::new();
        for line in present {
            response.append(VARY, line.parse().unwrap());
        }
        add(&mut response, names);
        response.get_all(VARY).iter().map(|v| v.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn names_are_merged_into_one_line_without_repetition() {
        assert_eq!(vary_after(&[], &["Origin"]), ["Origin"]);
        assert_eq!(vary_after(&["Accept-Encoding"], &["Origin"]), ["Accept-Encoding, Origin"]);
        assert_eq!(
            vary_after(&["accept-encoding", "ORIGIN"], &["Origin", "Accept"]),
            ["accept-encoding, ORIGIN, Accept"]
        );
        assert_eq!(vary_after(&["Accept , origin"], &["Origin"]), ["Accept , origin"]);
        assert_eq!(vary_after(&["", ","], &["Origin"]), [",, Origin"]);
    }

    #[test]
    fn a_star_stays_alone() {
        assert_eq!(vary_after(&["*"], &["Origin"]), ["*"]);
        assert_eq!(vary_after(&["Accept, *"], &["Origin"]), ["Accept, *"]);
    }

    proptest! {
        #[test]
        fn adding_twice_is_adding_once(lines in proptest::collection::vec("[ -~]{0,30}", 0..4)) {
            let mut response = HeaderMap::new();
            for line in &lines {
                response.append(VARY, line.parse().unwrap());
            }
            add(&mut response, &["Origin", "Accept"]);
            let once: Vec<_> = response.get_all(VARY).iter().cloned().collect();
            add(&mut response, &["Accept", "Origin"]);
            let twice: Vec<_> = response.get_all(VARY).iter().cloned().collect();
            prop_assert_eq!(once, twice);
        }
    }
}
