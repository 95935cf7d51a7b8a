//! Fields of a head, looked for by comparing names.
//!
//! A look-up in a [`HeaderMap`] hashes the name and walks an index: a hundred instructions, whether the field is there or
//! not. Requests have a handful of fields, and comparing a well-known name with each takes two or three. So what a request
//! is asked for and mostly lacks is looked for here.

use http::{HeaderMap, HeaderName, HeaderValue};

/// The first value of a field.
pub(crate) fn get<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    headers.iter().find(|(have, _)| *have == name).map(|(_, value)| value)
}

pub(crate) fn has(headers: &HeaderMap, name: &HeaderName) -> bool {
    headers.keys().any(|have| have == name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_finds_what_a_look_up_finds(fields in prop::collection::vec(("[a-d]|host|accept", "[0-9]"), 0..20), name in "[a-e]|host|accept") {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
            }
            let name: HeaderName = name.parse().unwrap();
            prop_assert_eq!(get(&headers, &name), headers.get(&name));
            prop_assert_eq!(has(&headers, &name), headers.contains_key(&name));
        }
    }
}
