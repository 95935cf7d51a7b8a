//! Names: of things in the configuration, and of hosts.

use std::{fmt, str::FromStr};

use super::{InvalidValue, text_value};

/// The name of a tenant, route, upstream, plan, consumer, key or API version.
///
/// One to 63 characters: lower-case letters, digits, `-`, `_` and `.`; the first is a letter or digit.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(Box<str>);

impl Id {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl std::borrow::Borrow<str> for Id {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl FromStr for Id {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let starts_well = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let all_good =
            text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.'));
        if starts_well && all_good && text.len() <= 63 {
            Ok(Self(text.into()))
        } else {
            Err(InvalidValue::new(format!(
                "{text:?} is not a name: use 1 to 63 lower-case letters, digits, '-', '_' or '.', beginning with a letter or digit"
            )))
        }
    }
}

text_value!(Id, "Id", "A name: lower-case letters, digits, '-', '_', '.'", Some("^[a-z0-9][a-z0-9._-]{0,62}$"));

/// A host name that a tenant is served under: exact (`api.example.com`) or with a wildcard as its
/// whole first label (`*.example.com`, any depth below `example.com`, not `example.com` itself).
/// Kept in lower case, without a trailing dot and without a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPattern {
    name: Box<str>,
    wildcard: bool,
}

impl HostPattern {
    /// The host, or for a wildcard the part behind `*.`.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn is_wildcard(&self) -> bool {
        self.wildcard
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.wildcard {
            f.write_str("*.")?;
        }
        f.write_str(&self.name)
    }
}

impl FromStr for HostPattern {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.to_ascii_lowercase();
        let lower = lower.strip_suffix('.').unwrap_or(&lower);
        let (name, wildcard) = match lower.strip_prefix("*.") {
            Some(rest) => (rest, true),
            None => (lower, false),
        };
        let label_ok = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let ipv6 = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        if let Some(address) = ipv6.filter(|_| !wildcard).and_then(|text| text.parse::<std::net::Ipv6Addr>().ok()) {
            // An address has several spellings, one of which is kept.
            Ok(Self { name: format!("[{address}]").into(), wildcard })
        } else if name.len() <= 253 && name.split('.').all(label_ok) {
            Ok(Self { name: name.into(), wildcard })
        } else {
            Err(InvalidValue::new(format!(
                "{text:?} is not a host name: write it as api.example.com or *.example.com, without scheme, port or path"
            )))
        }
    }
}

text_value!(
    HostPattern,
    "HostPattern",
    "A host name, exact or with a wildcard as its first label: api.example.com, *.example.com",
    None
);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_short_and_plain() {
        for good in ["a", "0", "acme-eu_1.2", &"a".repeat(63)] {
            assert_eq!(good.parse::<Id>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", ".a", "_a", "Acme", "a b", "ä", "a/b", "a\n", &"a".repeat(64)] {
            assert!(bad.parse::<Id>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn hosts_are_kept_in_one_form() {
        let host: HostPattern = "API.Example.COM.".parse().unwrap();
        assert_eq!((host.name(), host.is_wildcard()), ("api.example.com", false));
        let host: HostPattern = "*.Example.com".parse().unwrap();
        assert_eq!((host.name(), host.is_wildcard()), ("example.com", true));
        assert_eq!("[2001:DB8::0:1]".parse::<HostPattern>().unwrap().name(), "[2001:db8::1]");
        for bad in [
            "",
            ".",
            "*",
            "*.",
            "a..b",
            "-a.example",
            "a-.example",
            "a.*.example",
            "*.*.example",
            "https://a.example",
            "a.example:80",
            "a.example/",
            "a b",
            "[::1",
            "[::1]:80",
            "*.[::1]",
            "..",
            "a.example..",
            &"a".repeat(64),
            &"a.".repeat(200),
        ] {
            assert!(bad.parse::<HostPattern>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_name_or_refused(text in "(?s).{0,80}") {
            if let Ok(id) = text.parse::<Id>() {
                prop_assert_eq!(id.to_string(), text.clone());
            }
            if let Ok(host) = text.parse::<HostPattern>() {
                prop_assert_eq!(host.to_string().parse::<HostPattern>().unwrap(), host);
            }
        }

        #[test]
        fn hosts_survive_being_written(text in r"(\*\.)?[a-zA-Z0-9]{1,10}(\.[a-z0-9_]([a-z0-9-]{0,8}[a-z0-9])?){0,4}\.?") {
            let host: HostPattern = text.parse().unwrap();
            prop_assert_eq!(host.to_string().parse::<HostPattern>().unwrap(), host);
        }
    }
}
